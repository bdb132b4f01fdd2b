"""Overlays, the phantom below them and contact sheets: known pixels for known input."""

import numpy as np
import pytest
from PIL import Image

from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG
from cxu.canvas import GREY, HALO, PAPER, add_caption, fitting_font, load_font, shorten_text, sigma_colours
from cxu.errors import UsageError
from cxu.overlay import draw_overlay
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model
from cxu.sheet import LEGEND_KEYS, LEGEND_TEXT, contact_sheet, message_tile

SIZE = 512  # half the model frame
CENTRES = {RIGHT_LUNG: (220, 512), LEFT_LUNG: (804, 512), HEART: (512, 512)}
RADIUS = 120


def rings():
    """Three circles in the 1024 frame; node 0 of each lies to the right of its centre."""
    landmarks = np.empty((120, 2))
    for organ, (x, y) in CENTRES.items():
        angle = np.arange(organ.n_nodes) * 2 * np.pi / organ.n_nodes
        landmarks[organ.nodes] = np.stack([x + RADIUS * np.cos(angle), y + RADIUS * np.sin(angle)], axis=1)
    return landmarks


def pixels(picture):
    return np.asarray(picture).astype(int)


def pixel(picture, point_xy):
    """Return the colour at a point of the 1024 frame."""
    x, y = (np.asarray(point_xy) * picture.width / 1024).astype(int)
    return pixels(picture)[y, x]


def draw(background=None, sigma_px=None, **options):
    return draw_overlay(background, rings(), sigma_px, size=SIZE, **options)


def lightness(rgb):
    """Return CIE L* of sRGB colours."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(luminance) - 16


def test_colours_rise_evenly_in_lightness():
    light = lightness(sigma_colours(np.linspace(0, 12, 25), vmax_px=12).astype(float))
    steps = np.diff(light)
    assert steps.min() > 0.8
    assert steps.max() < 4
    assert light[0] > 40  # seen against a dark lung


def test_colours_are_clipped_and_unknown_is_grey():
    colours = sigma_colours(np.array([[-1, 0], [10, 99], [np.nan, np.inf]]), vmax_px=10)
    assert colours.shape == (3, 2, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours[0, 0], colours[0, 1])
    np.testing.assert_array_equal(colours[1, 0], colours[1, 1])
    assert colours[2].tolist() == [list(GREY), list(GREY)]


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_organs_are_tinted_over_the_background(organ):
    picture = draw(np.full((64, 64), 100, np.uint8))
    inside = pixel(picture, CENTRES[organ])
    share = 82 / 255
    np.testing.assert_allclose(inside, 100 * (1 - share) + share * np.array(organ.colour_rgb), atol=2)
    assert pixel(picture, (512, 60)).tolist() == [100, 100, 100]


def test_outline_takes_the_colour_of_its_sigma():
    sigma = np.full(120, 3.0)
    sigma[LEFT_LUNG.nodes] = 9.0
    picture = draw(None, sigma, vmax_px=12.0)
    for organ, value in ((RIGHT_LUNG, 3.0), (LEFT_LUNG, 9.0)):
        x, y = rings()[organ.first]
        np.testing.assert_allclose(pixel(picture, (x, y)), sigma_colours(np.array(value), vmax_px=12.0), atol=3)


def test_colour_blends_along_an_edge():
    sigma = np.zeros(120)
    sigma[HEART.first] = 12.0
    start, stop = rings()[HEART.first : HEART.first + 2]
    middle = pixel(draw(None, sigma, vmax_px=12.0), (start + stop) / 2)
    scale = np.linspace(0, 12, 121)
    distance = np.abs(sigma_colours(scale, vmax_px=12.0).astype(int) - middle).sum(axis=1)
    assert distance.min() < 12
    assert scale[distance.argmin()] == pytest.approx(6.0, abs=1.5)


def test_dropped_nodes_are_hollow_and_confident_ones_filled():
    confident = np.ones(120, bool)
    confident[RIGHT_LUNG.first] = False
    picture = draw(None, np.full(120, 3.0), confident=confident)
    assert pixel(picture, rings()[RIGHT_LUNG.first]).tolist() == list(HALO)
    filled = pixel(picture, rings()[LEFT_LUNG.first])
    np.testing.assert_allclose(filled, sigma_colours(np.array(3.0)), atol=3)


def test_no_confident_nodes_at_all():
    picture = draw(None, np.full(120, 3.0), confident=np.zeros(120, bool))
    centres = [pixel(picture, point).tolist() for point in rings()]
    assert all(colour == list(HALO) for colour in centres)


def test_without_sigma_outlines_have_organ_colours():
    picture = draw()
    for organ in ORGANS:
        np.testing.assert_allclose(pixel(picture, rings()[organ.first]), organ.colour_rgb, atol=3)


def test_unusable_organ_is_dashed_hatched_and_grey():
    usable = np.array([True, False, True])
    whole, broken = draw(np.zeros((8, 8), np.uint8)), draw(np.zeros((8, 8), np.uint8), usable=usable)
    angle = np.linspace(0, 2 * np.pi, 2000)
    ring = np.stack([804 + RADIUS * np.cos(angle), 512 + RADIUS * np.sin(angle)], axis=1)
    columns, rows = (ring / 2).astype(int).T
    drawn = [np.mean(pixels(picture)[rows, columns].max(axis=1) > 150) for picture in (whole, broken)]
    assert drawn[0] == 1
    assert 0.35 < drawn[1] < 0.75
    inside = pixels(broken)[236:276, 382:422]
    assert np.ptp(inside, axis=2).max() <= 4  # no hue
    assert inside.max() - inside.min() > 60  # lines


def test_labels_decide_the_tint_at_any_resolution():
    labels = np.zeros((128, 128), np.uint8)
    labels[8:16, 8:16], labels[100:110, 8:20] = LEFT_LUNG.label, 255
    picture = draw(np.full((32, 32), 50, np.uint8), labels=labels)
    green = pixel(picture, (96, 96))
    assert green[1] > green[0] + 20
    assert pixel(picture, CENTRES[HEART]).tolist() == [50, 50, 50]
    ignored = pixels(picture)[404:436, 36:76]
    assert ignored.min() < 50 < 90 < ignored.max()  # lines darker than what is below, and lighter ones


def test_ignored_pixels_differ_from_organs_and_background():
    labels = np.full((16, 16), 255, np.uint8)
    ignored = pixels(draw(np.full((8, 8), 50, np.uint8), labels=labels))[:40, :40].mean()
    assert 70 < ignored < 140


def test_a_wide_frame_is_centred():
    landmarks = rings() * [1, 0.5]
    picture = draw_overlay(np.full((10, 20), 200, np.uint8), landmarks, size=200, frame_hw=(512, 1024))
    column = pixels(picture)[:, 5, 0]
    assert (column[53:147] == 200).all()
    assert (column[:47] < 60).all()
    assert (column[153:] < 60).all()
    x, y = landmarks[LEFT_LUNG.first] * 200 / 1024
    np.testing.assert_allclose(pixels(picture)[int(y + 50), int(x)], LEFT_LUNG.colour_rgb, atol=40)


def test_an_organ_that_is_not_there_is_left_out():
    landmarks = rings()
    landmarks[HEART.nodes] = np.nan
    picture = draw_overlay(None, landmarks, np.full(120, 4.0), size=SIZE)
    assert pixel(picture, CENTRES[HEART]).max() < 60
    assert pixel(picture, CENTRES[LEFT_LUNG]).max() > 60


def test_sizes_with_and_without_caption():
    assert draw().size == (SIZE, SIZE)
    titled, both = draw(title="row"), draw(title="row", subtitle="120 of 120 nodes")
    assert titled.width == both.width == SIZE
    assert SIZE < titled.height < both.height
    np.testing.assert_array_equal(pixels(both)[:SIZE], pixels(draw()))


def test_the_same_input_gives_the_same_bytes():
    options = {"confident": np.arange(120) % 3 > 0, "usable": np.array([True, True, False]), "title": "x"}
    first, second = (draw(None, np.linspace(0, 20, 120), **options).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigma_px", np.zeros((120, 2))), ("confident", np.ones(3, bool)), ("usable", np.ones(120, bool))],
)
def test_wrong_shapes_are_named(name, value):
    with pytest.raises(UsageError, match=f"{name} has shape"):
        draw_overlay(None, rings(), **{name: value})
    with pytest.raises(UsageError, match=r"landmarks_xy has shape \(240,\); expected \(120, 2\)"):
        draw_overlay(None, rings().ravel())


def test_long_captions_are_shortened_in_the_middle():
    font = load_font(14)
    text = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
    short = shorten_text(text, font, 150)
    assert font.getlength(short) <= 150
    head, tail = short.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert min(len(head), len(tail)) >= 4
    assert shorten_text("short", font, 150) == "short"
    assert shorten_text(text, font, 1) == "…"


def test_a_caption_stays_within_its_picture():
    captioned = pixels(add_caption(Image.new("RGB", (150, 150)), "a" * 200, "b" * 200))
    assert (captioned[150:, -1] == PAPER).all()
    assert (captioned[-1] == PAPER).all()
    assert captioned[150:].max() > 150


def test_the_phantom_has_dark_lungs_and_a_bright_heart():
    mean = load_shape_model().mean_xy
    picture = synthetic_background(mean, 256, np.random.default_rng(0))
    assert (picture.shape, picture.dtype) == ((256, 256), np.uint8)
    lung = picture[100:130, 55:80].mean()
    heart, outside = picture[155:185, 125:155].mean(), picture[:8, :8].mean()
    assert outside < 25 < lung - 10
    assert heart > lung + 60


def test_the_phantom_is_repeatable_and_grained_by_its_generator():
    mean = load_shape_model().mean_xy
    first, again, other = (synthetic_background(mean, 64, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def tiles(count, side=200):
    return [Image.new("RGB", (side, side), (200, 10, 10 + index)) for index in range(count)]


def red_pixels(sheet):
    return int((pixels(sheet)[..., 0] == 200).sum())


@pytest.mark.parametrize(("count", "columns"), [(1, 6), (5, 2), (7, 3)])
def test_every_tile_is_on_the_sheet_unclipped(count, columns):
    sheet = contact_sheet(tiles(count), columns=columns, legend=(), vmax_px=None)
    assert red_pixels(sheet) == count * 200 * 200
    shades = pixels(sheet)[..., 2][pixels(sheet)[..., 0] == 200]
    assert len(np.unique(shades)) == count


def test_tiles_run_from_the_left_and_then_down():
    sheet = pixels(contact_sheet(tiles(3), columns=2, legend=(), vmax_px=None))
    first, second, third = (np.argwhere((sheet == (200, 10, 10 + index)).all(axis=2))[0] for index in range(3))
    assert first[0] == second[0] < third[0]
    assert first[1] == third[1] < second[1]


def test_legend_and_bar_show_the_colours():
    bare = contact_sheet(tiles(6), legend=(), vmax_px=None)
    sheet = contact_sheet(tiles(6), limit_px=5.0, title="synthetic", footer="note")
    assert sheet.width == bare.width
    assert sheet.height > bare.height
    colours = {tuple(colour) for colour in np.unique(pixels(sheet).reshape(-1, 3), axis=0).tolist()}
    assert {organ.colour_rgb for organ in ORGANS} <= colours
    assert {tuple(colour) for colour in sigma_colours(np.array([0.0, 99.0])).tolist()} <= colours


def test_margins_stay_empty_with_long_texts():
    text = "a title that is far longer than the sheet is wide " * 3 + "x" * 300
    sheet = pixels(contact_sheet(tiles(1), title=text, subtitle=text, footer=text))
    assert (sheet[:, -20:] == PAPER).all()
    assert (sheet[-20:] == PAPER).all()
    assert (sheet[:, :20] == PAPER).all()


def test_every_legend_key_has_a_text():
    assert set(LEGEND_KEYS) == {*(organ.name for organ in ORGANS), "ignore", "confident", "dropped", "unusable"}
    assert all(LEGEND_TEXT[organ.name] == organ.title for organ in ORGANS)


@pytest.mark.parametrize(("count", "columns"), [(0, 3), (2, 0)])
def test_a_sheet_needs_a_tile_and_a_column(count, columns):
    with pytest.raises(UsageError, match="needs one of each at least"):
        contact_sheet(tiles(count), columns=columns)


# --- bands, faint stretches, trimming ---------------------------------------------------------------------------------


def test_a_band_is_as_wide_as_its_node_is_uncertain():
    sigma, band = np.full(120, 3.0), np.full(120, 2.0)
    band[LEFT_LUNG.nodes] = 40.0
    plain, banded = draw(None, sigma), draw(None, sigma, band_px=band)
    changed = np.abs(pixels(banded) - pixels(plain)).max(axis=2) > 8
    for organ, reaches in ((LEFT_LUNG, True), (RIGHT_LUNG, False)):
        x, y = CENTRES[organ]
        for away, within in ((30, reaches), (50, False)):
            point = (np.array([x, y - RADIUS - away]) / 2).astype(int)
            assert changed[point[1], point[0]] == within, (organ.name, away)


def test_a_band_has_the_colour_of_its_uncertainty_and_lets_the_film_through():
    sigma = np.full(120, 24.0)
    band = np.full(120, 30.0)
    dark, light = (draw(np.full((8, 8), grey, np.uint8), sigma, band_px=band) for grey in (20, 200))
    above = (CENTRES[RIGHT_LUNG][0], CENTRES[RIGHT_LUNG][1] - RADIUS - 20)
    of_dark, of_light = pixel(dark, above), pixel(light, above)
    yellow = sigma_colours(np.array(24.0)).astype(int)
    for drawn, grey in ((of_dark, 20), (of_light, 200)):
        np.testing.assert_allclose(drawn, grey + (yellow - grey) * 120 / 255, atol=3)


def test_unknown_and_absent_bands_leave_the_picture_as_it_was():
    sigma = np.full(120, 3.0)
    for band in (np.zeros(120), np.full(120, np.nan)):
        np.testing.assert_array_equal(pixels(draw(None, sigma, band_px=band)), pixels(draw(None, sigma)))


def test_the_line_is_faint_beside_dropped_nodes():
    confident = np.ones(120, bool)
    confident[HEART.first : HEART.first + 4] = False
    sigma, options = np.full(120, 3.0), {"stroke": 0.6, "tint": 0.0}
    firm, faint = draw(None, sigma, **options), draw(None, sigma, confident=confident, **options)
    between = rings()[[HEART.first + 1, HEART.first + 2]].mean(axis=0)
    widths = []
    for picture in (firm, faint):
        x, y = (between / 2).astype(int)
        widths.append(int((pixels(picture)[y, x - 10 : x + 10].max(axis=1) > 120).sum()))
    assert 0 < widths[1] < 0.7 * widths[0]


def test_a_wide_frame_is_trimmed_to_itself():
    landmarks = rings() * [1, 0.5]
    options = {"size": 200, "frame_hw": (512, 1024)}
    whole = draw_overlay(np.full((10, 20), 200, np.uint8), landmarks, **options)
    trimmed = draw_overlay(np.full((10, 20), 200, np.uint8), landmarks, trim=True, **options)
    assert (whole.size, trimmed.size) == ((200, 200), (200, 100))
    np.testing.assert_array_equal(pixels(trimmed), pixels(whole)[50:150])


@pytest.mark.parametrize("tint", [0.0, 0.5])
def test_the_tint_is_as_strong_as_asked(tint):
    picture = draw(np.full((64, 64), 100, np.uint8), tint=tint)
    wanted = 100 * (1 - tint) + tint * np.array(HEART.colour_rgb)
    np.testing.assert_allclose(pixel(picture, CENTRES[HEART]), wanted, atol=2)


def test_long_captions_become_smaller_before_they_are_cut():
    text = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
    assert fitting_font("short", 18, 320).size == 18
    font = fitting_font(text, 18, 320)
    assert 11 <= font.size < 18
    assert shorten_text(text, font, 320) == text


def test_several_limits_are_marked_on_the_bar():
    one, two = (pixels(contact_sheet(tiles(6), legend=(), limit_px=limits)) for limits in (5.0, [5.0, 12.0]))
    colours = sigma_colours(np.linspace(0, 24, 2)).astype(int)
    y = np.argwhere((one == colours[0]).all(axis=2))[0][0]

    def marks(sheet):
        line = sheet[y]
        left = np.flatnonzero((line == colours[0]).all(axis=1))[0]
        right = np.flatnonzero((line == colours[1]).all(axis=1))[-1]
        white = np.flatnonzero((line[left:right] == (240, 241, 243)).all(axis=1))
        groups = np.split(white, np.flatnonzero(np.diff(white) > 1) + 1)
        return [24 * float(group.mean()) / (right - left) for group in groups]

    assert marks(one) == pytest.approx([5.0], abs=0.2)
    assert marks(two) == pytest.approx([5.0, 12.0], abs=0.2)


def test_a_message_takes_the_place_of_a_picture():
    tile = message_tile("no picture: the file is not there " * 8, 200, title="an id")
    assert tile.size[0] == 200
    assert tile.size[1] > 200
    assert pixels(tile)[:200].max() > 150
    assert (pixels(tile)[:200, -6:] == (34, 37, 43)).all()
