"""Crops of images: their pixels, their boxes, who has none and why, and what an interruption leaves."""

import io
import zipfile

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cxu
from crop_helpers import CORNERS, IMAGE_HW, TIGHT, noise, outlines, read_crop, rows_of, save, stored_rows
from cxu.anatomy import HEART, ORGANS
from cxu.cropfolder import BOX_SCHEMA
from cxu.cropping import CropShape, Margin
from cxu.cropplan import CropOptions, plan_crops
from cxu.crops import crop_table, cut_crop, estimate_bytes
from cxu.errors import FormatError, ImageError, MissingInputError, OutputExistsError, UsageError
from cxu.films import read_film
from cxu.image_listing import ImageFile
from cxu.images import resize_grey
from cxu.masks import Placement, RowShape
from cxu.rowchoice import Choice
from cxu.thresholds import parse_organs
from film_helpers import save_film
from mask_helpers import last_corner, read_png, tree

LUNGS = ("right_lung", "left_lung")


def organs_of(text):
    return parse_organs(text, also_all=True)


def options(organ="lungs", *, margin=0, percent=0.0, square=False, size=None, **others):
    return CropOptions(organs_of(organ), CropShape(Margin(percent, margin), square, size), **others)


def plan(stored, out, images, chosen=None):
    return plan_crops(stored, out, [str(images)], chosen or options(), Choice())


def crop(stored, out, images, chosen=None, **how):
    return crop_table(plan(stored, out, images, chosen), **how)


def boxes_of(out):
    return pq.read_table(out / "boxes.parquet").to_pylist()


def part(image, box):
    left, top, right, bottom = box
    return image[top:bottom, left:right]


@pytest.fixture
def films(tmp_path):
    return tmp_path / "films"


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("organ", TIGHT)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_crop_is_the_image_there_pixel_for_pixel(tmp_path, films, organ, dtype):
    image = save(films / "a.png", noise(dtype=dtype))
    report = crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films, options(organ))
    assert (report.rows, report.files, report.failures, report.left_out) == (1, 1, [], [])
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    assert cut.dtype == dtype
    np.testing.assert_array_equal(cut, part(image, TIGHT[organ]))


@pytest.mark.parametrize(("suffix", "dtype"), [("tiff", np.uint8), ("tif", np.uint16)])
def test_tiff(tmp_path, films, suffix, dtype):
    image = save(films / f"a.{suffix}", noise(dtype=dtype))
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    np.testing.assert_array_equal(cut, part(image, TIGHT["lungs"]))
    assert cut.dtype == dtype


def test_jpeg_and_grey_that_was_saved_as_colour(tmp_path, films):
    save(films / "a.jpg", noise())
    save(films / "b.png", np.repeat(noise(seed=1)[..., None], 3, axis=2))
    crop(stored_rows(tmp_path, rows_of("ab")), tmp_path / "out", films)
    with Image.open(films / "a.jpg") as image:
        expected = np.array(image)
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(expected, TIGHT["lungs"]))
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/b.png"), part(noise(seed=1), TIGHT["lungs"]))


def save_dicom(path, stored, **elements):
    bits = 8 * stored.dtype.itemsize
    depth = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    save_film(path, shape_hw=stored.shape, PixelData=stored.tobytes(), **{**depth, **elements})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_keeps_its_bits_and_is_bright_where_dense(tmp_path, films, dtype, photometric):
    stored = noise(dtype=dtype)
    save_dicom(films / "a.dcm", stored, PhotometricInterpretation=photometric)
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    expected = np.iinfo(dtype).max - stored if photometric == "MONOCHROME1" else stored
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    assert cut.dtype == dtype
    np.testing.assert_array_equal(cut, part(expected, TIGHT["lungs"]))


def test_dicom_with_a_window_has_the_grey_values_that_are_predicted_from(tmp_path, films):
    stored = noise(dtype=np.uint16) >> 4
    save_dicom(films / "a.dcm", stored, BitsStored=12, HighBit=11, WindowCenter=2000, WindowWidth=3000)
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    film = read_film(ImageFile.at(films / "a.dcm"), turn=False)
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(film.grey, TIGHT["lungs"]))


def test_a_negative_keeps_the_values_of_its_file_and_is_marked(tmp_path, films):
    image = np.full(IMAGE_HW, 40, np.uint8)
    for name in LUNGS:
        left, top, right, bottom = CORNERS[name]
        image[top:bottom, left:right] = 220
    save(films / "a.png", image)
    assert read_film(ImageFile.at(films / "a.png")).turned
    report = crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    assert report.negative == 1
    assert boxes_of(tmp_path / "out")[0]["negative"]
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(image, TIGHT["lungs"]))


def test_an_image_of_one_grey_is_cropped_too(tmp_path, films):
    save(films / "a.png", np.full(IMAGE_HW, 7, np.uint8))
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    assert (read_crop(tmp_path / "out/chestxray8/a.png") == 7).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("organ", ["lungs", "heart", "all"])
def test_blank_outside_leaves_what_rasterize_draws(tmp_path, films, dtype, organ):
    image = save(films / "a.png", noise(dtype=dtype))
    stored = stored_rows(tmp_path, rows_of())
    crop(stored, tmp_path / "out", films, options(organ, margin=9, blank="outside"))
    cxu.rasterize_rows(stored, tmp_path / "masks", format="organs", policy="full", images=[films])
    names = [one.name for one in ORGANS if one.name in organs_of(organ)]
    covered = np.any([read_png(tmp_path / f"masks/chestxray8/a.{name}.png") for name in names], axis=0)
    (line,) = boxes_of(tmp_path / "out")
    box = (line["left"], line["top"], line["right"], line["bottom"])
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(image * covered, box))


def test_a_square_of_a_narrow_image_is_black_beside_it(tmp_path, films):
    image = save(films / "a.png", noise((240, 100)))
    landmarks = outlines() * (1 / 3, 1)
    stored = stored_rows(tmp_path, rows_of(landmarks=landmarks, width=100))
    report = crop(stored, tmp_path / "out", films, options("all", margin=10, square=True))
    (line,) = boxes_of(tmp_path / "out")
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    assert report.padded == 1
    assert line["padded"]
    # rows 40 to 210; columns 10 to 87, 78 of them: 46 more at the left and 47 at the right make 171
    assert (line["left"], line["top"], line["right"], line["bottom"]) == (-36, 40, 135, 211)
    np.testing.assert_array_equal(cut[:, 36:136], image[40:211])
    assert not cut[:, :36].any()
    assert not cut[:, 136:].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("size", "shape_hw"), [(57, (47, 57)), (342, (282, 342)), (171, (141, 171))])
def test_size_is_the_longer_side_and_keeps_the_bits(tmp_path, films, dtype, size, shape_hw):
    image = save(films / "a.png", noise(dtype=dtype))
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films, options(size=size))
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    assert (cut.shape, cut.dtype) == (shape_hw, dtype)
    (line,) = boxes_of(tmp_path / "out")
    assert (line["width"], line["height"]) == shape_hw[::-1]
    assert (line["scale_x"], line["scale_y"]) == (shape_hw[1] / 171, shape_hw[0] / 141)
    whole = part(image, TIGHT["lungs"]).astype(float)
    if size == 57:  # a third: each pixel is the mean of nine
        mean = whole.reshape(47, 3, 57, 3).mean(axis=(1, 3))
        assert np.abs(cut - mean).max() < 0.51
    if size == 171:
        np.testing.assert_array_equal(cut, whole)


def test_squares_of_one_size_are_all_alike(tmp_path, films):
    save(films / "a.png", noise())
    save(films / "b.png", noise((480, 600)))
    rows = rows_of("a"), rows_of("b", landmarks=outlines() * 2, height=480, width=600)
    crop(stored_rows(tmp_path, *rows), tmp_path / "out", films, options(percent=5.0, square=True, size=64))
    assert {read_crop(path).shape for path in (tmp_path / "out/chestxray8").iterdir()} == {(64, 64)}


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "width", "expected"),
    [
        ([0, 4, 10, 20], 2, [2, 15]),
        ([0, 30, 60], 2, [10, 50]),  # one pixel and a half each
        ([10, 20], 4, [10, 12, 18, 20]),  # 12.5 and 17.5, halves to even
        ([10, 20], 1, [15]),
        ([9], 5, [9, 9, 9, 9, 9]),
        ([1, 2, 3], 3, [1, 2, 3]),
    ],
)
def test_resized_rows_worked_out_by_hand(row, width, expected):
    for dtype in (np.uint8, np.uint16):
        across = resize_grey(np.array([row], dtype), (1, width))
        assert across.tolist() == [expected]
        assert across.dtype == dtype
        assert resize_grey(np.array([row], dtype).T, (width, 1)).T.tolist() == [expected]


@pytest.mark.parametrize("shape_hw", [(3, 5), (100, 7), (31, 200), (64, 48)])
def test_an_even_image_stays_even_to_its_edges(shape_hw):
    for level, dtype in ((255, np.uint8), (65535, np.uint16)):
        assert (resize_grey(np.full((40, 50), level, dtype), shape_hw) == level).all()


@pytest.mark.parametrize("shape_hw", [(0, 3), (3, 0)])
def test_nothing_is_not_resized(shape_hw):
    with pytest.raises(UsageError, match="sides must be positive"):
        resize_grey(np.ones((4, 4), np.uint8), shape_hw)


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_say_where_a_crop_lies(tmp_path, films):
    save(films / "a.png", noise())
    report = crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films, options(margin=55))
    assert report.clipped == 1
    assert boxes_of(tmp_path / "out") == [
        {
            "source": "chestxray8",
            "image_id": "a",
            "path": "chestxray8/a.png",
            "organs": "right_lung,left_lung",
            "left": 5,
            "top": 0,
            "right": 286,
            "bottom": 240,
            "organ_left": 60,
            "organ_top": 50,
            "organ_right": 231,
            "organ_bottom": 191,
            "image_width": 300,
            "image_height": 240,
            "width": 281,
            "height": 240,
            "scale_x": 1.0,
            "scale_y": 1.0,
            "clipped": True,
            "padded": False,
            "negative": False,
        }
    ]


def test_both_tables_say_the_same(tmp_path, films):
    for name in ("a", "b, c", 'd"'):
        save(films / f"{name}.png", noise())
    crop(stored_rows(tmp_path, rows_of(["a", "b, c", 'd"'])), tmp_path / "out", films, options(size=50))
    read = pa_csv.read_csv(tmp_path / "out/boxes.csv")
    assert read.column_names == BOX_SCHEMA.names
    assert read.to_pylist() == boxes_of(tmp_path / "out")
    assert [line["path"] for line in read.to_pylist()] == [
        "chestxray8/a.png",
        "chestxray8/b, c.png",
        "chestxray8/d%22.png",
    ]
    assert all((tmp_path / "out" / line["path"]).is_file() for line in read.to_pylist())


def test_one_id_of_two_sources_has_two_crops(tmp_path, films):
    images = {name: save(films / name / "a.png", noise(seed=seed)) for seed, name in enumerate(("one", "two"))}
    stored = stored_rows(tmp_path, rows_of(["one/a"], source="mine"), rows_of(["two/a"], source="yours"))
    crop(stored, tmp_path / "out", films)
    for path, image in (("mine/one/a.png", images["one"]), ("yours/two/a.png", images["two"])):
        np.testing.assert_array_equal(read_crop(tmp_path / "out" / path), part(image, TIGHT["lungs"]))


def test_an_organ_that_reaches_out_of_the_image_has_the_box_of_what_is_seen(tmp_path, films):
    save(films / "a.png", noise())
    landmarks = outlines()
    # a triangle whose tip lies far above and left of the image: its own box would begin at 0, 0
    landmarks[HEART.nodes] = np.repeat([(-400, -200), (20, 100), (20, 60)], (10, 8, 8), axis=0)
    stored = stored_rows(tmp_path, rows_of(landmarks=landmarks))
    crop(stored, tmp_path / "out", films, options("heart", blank="outside"))
    (line,) = boxes_of(tmp_path / "out")
    cut = read_crop(tmp_path / "out/chestxray8/a.png")
    assert (line["left"], line["right"], line["bottom"]) == (0, 21, 101)
    assert line["top"] > 40
    assert all(edge.any() for edge in (cut[0], cut[-1], cut[:, 0], cut[:, -1]))


def test_an_organ_outside_the_image_is_a_failure(tmp_path, films):
    save(films / "a.png", noise())
    landmarks = outlines()
    landmarks[HEART.nodes] += 1000
    report = crop(stored_rows(tmp_path, rows_of(landmarks=landmarks)), tmp_path / "out", films, options("all"))
    assert [str(one) for one in report.failures] == [
        "chestxray8 a: no pixel of heart lies in the image of 300 × 240 px"
    ]
    assert boxes_of(tmp_path / "out") == []


# --- frames ----------------------------------------------------------------------------------------------------------


def to_model(points, left, top, width, height):
    """Map image pixels to the model frame, from the description: crop, pad to a centred square, resize to 1024."""
    side = max(width, height)
    pad = np.array([(side - width) // 2, (side - height) // 2])
    return (points - [left, top] + pad) * 1024 / side


def test_the_pad_of_the_model_frame_is_undone(tmp_path, films):
    image = save(films / "a.png", noise())
    landmarks = to_model(outlines(), 0, 0, 300, 240)
    stored = stored_rows(
        tmp_path, rows_of(landmarks=landmarks, source="padded", frame="model", height=1024, width=1024)
    )
    report = crop(stored, tmp_path / "out", films)
    assert report.assumed == 1
    np.testing.assert_array_equal(read_crop(tmp_path / "out/padded/a.png"), part(image, TIGHT["lungs"]))


def test_the_black_border_that_the_model_frame_leaves_out_is_undone(tmp_path, films):
    image = np.zeros((300, 340), np.uint8)
    image[20:260, 30:330] = noise()
    name = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
    save(films / f"p10/{name}.png", image)
    inside = image > 1
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 259, 30, 329)
    landmarks = to_model(outlines() + np.array([30, 20]), 30, 20, 300, 240)
    stored = stored_rows(
        tmp_path, rows_of([name], landmarks=landmarks, source="mimic", frame="model", height=1024, width=1024)
    )
    report = crop(stored, tmp_path / "out", films)
    assert (report.assumed, report.failures) == (0, [])
    (line,) = boxes_of(tmp_path / "out")
    assert (line["left"], line["top"], line["right"], line["bottom"]) == (90, 70, 261, 211)
    np.testing.assert_array_equal(read_crop(tmp_path / f"out/mimic/{name}.png"), image[70:211, 90:261])


def test_an_image_at_half_its_size_is_cropped_in_its_own_pixels(tmp_path, films):
    save(films / "a.png", noise((120, 150)))
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", films)
    (line,) = boxes_of(tmp_path / "out")
    assert (line["left"], line["top"], line["right"], line["bottom"]) == (30, 25, 116, 96)  # 115 and 95 are in it
    assert (line["image_width"], line["image_height"]) == (150, 120)


# --- who has none ----------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_the_rows_is_a_failure_with_its_reason(tmp_path, films):
    save(films / "a.png", noise())
    save(films / "b.png", noise((200, 300)))
    save(films / "d.png", np.random.default_rng(0).integers(0, 255, (*IMAGE_HW, 3), np.uint8))
    (films / "e.png").write_bytes((films / "a.png").read_bytes()[:5000])
    report = crop(stored_rows(tmp_path, rows_of("abcde")), tmp_path / "out", films)
    assert (report.rows, report.left_out) == (1, [])
    reasons = {one.image_id: one.reason for one in report.failures}
    assert list(reasons) == ["b", "c", "d", "e"]
    assert "b.png is 200 × 300 px (height × width), the row says 240 × 300" in reasons["b"]
    assert reasons["c"] == "no image of this id among the images given"
    assert "is a colour image" in reasons["d"]
    assert "e.png is damaged or truncated" in reasons["e"]
    assert [line["image_id"] for line in boxes_of(tmp_path / "out")] == ["a"]
    assert sorted(path.name for path in (tmp_path / "out/chestxray8").iterdir()) == ["a.png"]


@pytest.mark.parametrize(
    ("usable", "reason"),
    [
        ((True, True, False), None),  # the heart was not asked for
        ((False, True, True), "right_lung unusable"),
        ((False, False, True), "right_lung, left_lung unusable"),
    ],
)
def test_a_row_with_an_unusable_organ_is_left_out(tmp_path, films, usable, reason):
    save(films / "a.png", noise())
    stored = stored_rows(tmp_path, rows_of(usable=usable))
    report = crop(stored, tmp_path / "out", films)
    assert [str(one) for one in report.left_out] == ([f"chestxray8 a: {reason}"] if reason else [])
    assert report.failures == []
    assert report.rows == len(boxes_of(tmp_path / "out")) == (0 if reason else 1)


def test_reasons_are_counted_the_most_frequent_first(tmp_path, films):
    usable = [(False, True, True), (True, False, True), (True, False, True)]
    for name in "abc":
        save(films / f"{name}.png", noise())
    report = crop(stored_rows(tmp_path, rows_of("abc", usable=usable)), tmp_path / "out", films)
    assert list(report.reasons().items()) == [("left_lung unusable", 2), ("right_lung unusable", 1)]


def test_an_unusable_organ_is_taken_whole_on_demand(tmp_path, films):
    image = save(films / "a.png", noise())
    confident = ~last_corner(HEART)
    stored = stored_rows(tmp_path, rows_of(usable=(True, True, False), confident=confident))
    crop(stored, tmp_path / "out", films, options("heart", unusable="full", blank="outside"))
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(image, TIGHT["heart"]))


def test_a_usable_organ_without_a_confident_node_is_left_out_where_only_those_are_drawn(tmp_path, films):
    image = save(films / "a.png", noise())
    confident = np.ones(120, bool)
    confident[HEART.nodes] = False
    stored = stored_rows(tmp_path, rows_of(usable=(True, True, True), confident=confident))
    report = crop(stored, tmp_path / "none", films, options("heart"))
    assert [one.reason for one in report.left_out] == ["heart without a confident node"]
    for number, chosen in enumerate((options("heart", policy="full"), options("heart", unusable="full"))):
        crop(stored, tmp_path / f"{number}", films, chosen)
        np.testing.assert_array_equal(read_crop(tmp_path / f"{number}/chestxray8/a.png"), part(image, TIGHT["heart"]))


@pytest.mark.parametrize("unusable", ["skip", "full"])
def test_a_row_without_landmarks_of_the_organ_is_left_out(tmp_path, films, unusable):
    save(films / "a.png", noise())
    landmarks = outlines()
    landmarks[HEART.stop - 1] = np.nan
    stored = stored_rows(tmp_path, rows_of(landmarks=landmarks))
    report = crop(stored, tmp_path / "heart", films, options("heart", unusable=unusable))
    assert [one.reason for one in report.left_out] == ["heart without landmarks"]
    assert crop(stored, tmp_path / "lungs", films, options("lungs")).rows == 1


def test_an_outline_through_confident_nodes_alone_has_a_smaller_box(tmp_path, films):
    image = save(films / "a.png", noise())
    confident = np.ones(120, bool)
    confident[HEART.nodes] = [True] * 16 + [False] * 10  # the two lower corners
    stored = stored_rows(tmp_path, rows_of(usable=(True, True, True), confident=confident))
    crop(stored, tmp_path / "some", films, options("heart"))
    assert read_crop(tmp_path / "some/chestxray8/a.png").shape == (1, 81)
    crop(stored, tmp_path / "all", films, options("heart", policy="full"))
    np.testing.assert_array_equal(read_crop(tmp_path / "all/chestxray8/a.png"), part(image, TIGHT["heart"]))


def test_a_row_that_is_left_out_needs_no_image(tmp_path, films):
    save(films / "a.png", noise())
    rows = rows_of("ab", usable=[(True, True, True), (False, True, True)])
    report = crop(stored_rows(tmp_path, rows), tmp_path / "out", films)
    assert (report.rows, len(report.left_out), report.failures) == (1, 1, [])


# --- one crop --------------------------------------------------------------------------------------------------------


def shape_of(landmarks):
    return RowShape(landmarks, np.full((120, 2), np.nan), np.ones(120, bool), np.ones(3, bool))


def test_a_crop_in_memory():
    image = noise()
    made = cut_crop(shape_of(outlines()), Placement(IMAGE_HW), image, options("heart", margin=3))
    np.testing.assert_array_equal(made.grey, image[117:204, 107:194])
    assert tuple(made.region.tight) == TIGHT["heart"]


def test_a_crop_of_another_image_is_refused():
    with pytest.raises(ImageError, match=r"the image is 300 × 200 px, its row is placed in 300 × 240"):
        cut_crop(shape_of(outlines()), Placement(IMAGE_HW), noise((200, 300)), options())


def test_landmarks_far_beyond_any_image_are_refused():
    with pytest.raises(FormatError, match="beyond 1,000,000 px"):
        cut_crop(shape_of(outlines() + 2e6), Placement(IMAGE_HW), noise(), options())


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"organs": ()}, {"organs": ("liver",)}, {"policy": "ignore"}, {"unusable": "ignore"}, {"blank": "inside"}],
)
def test_options_that_are_none(wrong):
    with pytest.raises(UsageError, match="expected"):
        CropOptions(**wrong)


def test_images_are_needed(tmp_path, films):
    stored = stored_rows(tmp_path, rows_of())
    with pytest.raises(UsageError, match="name a folder, glob, list or zip with --images"):
        plan_crops(stored, tmp_path / "out", [], options(), Choice())
    save(films / "other.png", noise())
    with pytest.raises(MissingInputError, match="are these the images of that data set"):
        plan(stored, tmp_path / "out", films)
    assert not (tmp_path / "out").exists()


def test_the_size_of_all_crops_is_guessed_from_the_first(tmp_path, films):
    for name in "bcd":
        save(films / f"{name}.png", noise())
    rows = rows_of("abcd", usable=[(True, True, True), (False, True, True), (True, True, True), (True, True, True)])
    planned = plan(stored_rows(tmp_path, rows), tmp_path / "out", films)
    report = crop_table(planned)
    assert report.files == 2
    assert estimate_bytes(planned) == 2 * report.bytes


# --- zips ------------------------------------------------------------------------------------------------------------


def test_images_in_a_zip(tmp_path):
    image, stream = noise(dtype=np.uint16), io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.writestr("deep/a.png", stream.getvalue())
    crop(stored_rows(tmp_path, rows_of()), tmp_path / "out", tmp_path / "films.zip")
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/a.png"), part(image, TIGHT["lungs"]))


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, films, monkeypatch):
    """Rows in four blocks, of which one is left out and one has no image."""
    monkeypatch.setattr("cxu.cropplan.BLOCK_ROWS", 2)
    names = "abcdefgh"
    for seed, name in enumerate(names[:-1]):
        save(films / f"{name}.png", noise(seed=seed))
    usable = np.ones((8, 3), bool)
    usable[1, 0] = False
    return stored_rows(tmp_path, rows_of(names, usable=usable))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_command_continues_and_workers_change_nothing(many, tmp_path, films, monkeypatch, workers):
    from cxu.blockfolder import BlockFolder

    finish, done = BlockFolder.finish, []

    def cut_short(self, *arguments):
        if len(done) == 2:
            raise SystemExit
        done.append(arguments[0])
        finish(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BlockFolder, "finish", cut_short)
        with pytest.raises(SystemExit):
            crop(many, tmp_path / "out", films)
    assert not (tmp_path / "out/boxes.parquet").exists()
    # a file of the block that was cut short, half written
    (tmp_path / "out/chestxray8/.cxu-tmp-99999999-f.png").write_bytes(b"half")
    report = crop(many, tmp_path / "out", films, workers=workers)
    assert (report.rows, report.resumed_rows, len(report.left_out), len(report.failures)) == (6, 3, 1, 1)
    fresh = crop(many, tmp_path / "fresh", films)
    assert (fresh.rows, fresh.bytes, fresh.left_out) == (report.rows, report.bytes, report.left_out)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_what_failed_is_gone_or_changed_is_cut_again(many, tmp_path, films):
    crop(many, tmp_path / "out", films)
    (tmp_path / "out/chestxray8/a.png").unlink()
    changed = save(films / "e.png", noise(seed=50))
    save(films / "h.png", noise())
    report = crop(many, tmp_path / "out", films)
    assert (report.rows, report.resumed_rows, report.failures) == (7, 2, [])
    np.testing.assert_array_equal(read_crop(tmp_path / "out/chestxray8/e.png"), part(changed, TIGHT["lungs"]))
    assert len(boxes_of(tmp_path / "out")) == 7


def test_another_command_is_refused_unless_it_replaces(many, tmp_path, films):
    out = tmp_path / "out"
    crop(many, out, films)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r'holds the crops of another command \(margin was "0px", now "9px"\)'):
        crop(many, out, films, options(margin=9))
    crop(many, out, films, options("heart", margin=9), overwrite=True)
    crop(many, tmp_path / "fresh", films, options("heart", margin=9))
    assert tree(out) == {**tree(tmp_path / "fresh"), "notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["chestxray8/a.png", "boxes.csv", "boxes.parquet"])
def test_a_file_of_somebody_else_is_never_replaced(many, tmp_path, films, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="is not empty and was not made by cxu crop"):
        crop(many, tmp_path / "out", films)
    with pytest.raises(OutputExistsError, match="was not written by cxu crop, so it is not replaced"):
        crop(many, tmp_path / "out", films, overwrite=True)
    assert tree(tmp_path / "out") == {name: b"precious"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_of_masks_is_no_folder_of_crops(many, tmp_path, films, overwrite):
    cxu.rasterize_rows(many, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="was made by cxu rasterize: choose another --out"):
        crop(many, tmp_path / "out", films, overwrite=overwrite)
    assert tree(tmp_path / "out") == before


def test_in_python(many, tmp_path, films):
    report = cxu.crop_rows(many, tmp_path / "out", [films], organ="heart", margin="10%", square=True, size=64)
    assert (report.rows, len(report.failures)) == (7, 1)
    assert read_crop(tmp_path / "out/chestxray8/a.png").shape == (64, 64)
