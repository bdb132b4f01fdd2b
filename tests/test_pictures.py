"""Pictures of rows: which are planned, what they show, what becomes of the folder."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from PIL import Image

from builders import chest, make_rows
from cxu import table
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.canvas import HALO, sigma_colours
from cxu.errors import DuplicateIdError, MissingInputError, OutputExistsError, UsageError
from cxu.labels import IdList
from cxu.pictureplan import PictureOptions, plan_pictures
from cxu.pictures import draw_pictures
from cxu.rowchoice import Choice
from cxu.table import field_of, lists_from_numpy
from mask_helpers import store_rows, tree

SMALL = {"size": 128}
SIDE = 600  # wide enough for the header


def rows_of(n_rows=3, *, sigma=3.0, confident=None, usable=None, limits=None, **columns):
    """Return rows of ChestX-ray8 with this uncertainty of every node, or of each [120], or of each row [n, 120]."""
    of_nodes = np.broadcast_to(np.asarray(sigma, np.float32), (n_rows, 120))
    sigma_xy = np.repeat(of_nodes[..., None], 2, axis=2).astype(np.float32)
    rows = make_rows(n_rows, **{**table.sigma_columns(sigma_xy), **columns})
    for name, values, width in (("confident", confident, 120), ("usable", usable, 3)):
        if values is not None:
            filled = np.broadcast_to(np.asarray(values, bool), (n_rows, width))
            rows = rows.append_column(field_of(name), lists_from_numpy(filled, field_of(name).type))
    return rows if limits is None else table.with_facts(rows, limits)


@pytest.fixture
def films(tmp_path):
    """A folder of flat grey films of the rows' ids."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(5):
        save_film(folder / f"image{number:04d}.png", 40 + 10 * number)
    return folder


def save_film(path, grey=90, shape_hw=(256, 256)):
    pixels = np.full(shape_hw, grey, np.uint8)
    pixels[:, 3 * shape_hw[1] // 8 : 5 * shape_hw[1] // 8] += 40  # brighter between the lungs, as films are
    Image.fromarray(pixels).save(path)


def plan(tmp_path, content, *images, choice=None, **options):
    stored = store_rows(tmp_path / "t.parquet", content, group_rows=2)
    return plan_pictures(
        stored, tmp_path / "out", PictureOptions(**{**SMALL, **options}), choice or Choice(), [str(i) for i in images]
    )


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def ids(planned):
    return planned.index["image_id"].to_pylist()


# --- plan ------------------------------------------------------------------------------------------------------------


def test_every_row_has_a_picture_of_its_own(tmp_path):
    planned = plan(tmp_path, rows_of(3))
    assert [picture.path for picture in planned.pictures] == [f"chestxray8/image{n:04d}.png" for n in range(3)]
    assert planned.index.to_pydict() == {
        "source": ["chestxray8"] * 3,
        "image_id": ["image0000", "image0001", "image0002"],
        "path": [f"chestxray8/image{n:04d}.png" for n in range(3)],
    }
    assert (planned.rows, planned.without_image, planned.without_value, planned.drops) == (3, 0, 0, False)


def test_pages_of_a_contact_sheet(tmp_path):
    planned = plan(tmp_path, rows_of(7), sheet=True, columns=2, rows=2)
    assert [(picture.path, len(picture.rows), picture.page) for picture in planned.pictures] == [
        ("sheet-001.png", 4, 1),
        ("sheet-002.png", 3, 2),
    ]
    assert planned.index["path"].to_pylist() == ["sheet-001.png"] * 4 + ["sheet-002.png"] * 3
    places = list(zip(planned.index["row"].to_pylist(), planned.index["column"].to_pylist(), strict=True))
    assert places == [(1, 1), (1, 2), (2, 1), (2, 2), (1, 1), (1, 2), (2, 1)]


def test_most_uncertain_first(tmp_path):
    sigma = np.repeat([[4.0], [9.0], [2.0], [9.0]], 120, axis=1)
    rows = rows_of(4, sigma=sigma)
    choice = Choice(order="uncertain", limit=3)
    assert ids(plan(tmp_path, rows, choice=choice)) == ["image0001", "image0003", "image0000"]


def test_rows_without_uncertainty_come_last(tmp_path):
    rows = pa.concat_tables([make_rows(1, image_id=["none"]), rows_of(1, sigma=0.5)])
    assert ids(plan(tmp_path, rows, choice=Choice(order="uncertain"))) == ["image0000", "none"]


def test_a_limit_draws_by_its_seed_in_the_order_of_the_table(tmp_path):
    rows = rows_of(40)
    first, again, other = (ids(plan(tmp_path, rows, choice=Choice(limit=8, seed=seed))) for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert len(first) == 8
    assert first != other
    assert len(ids(plan(tmp_path, rows, choice=Choice(limit=99)))) == 40


def test_only_the_ids_asked_for(tmp_path):
    (tmp_path / "ids.txt").write_text("image0002.png\nimage0000\nnobody\n")
    listed = IdList(tmp_path / "ids.txt")
    assert ids(plan(tmp_path, rows_of(4), choice=Choice(ids=listed))) == ["image0000", "image0002"]
    assert listed.unmatched() == ["nobody"]


def test_a_limit_takes_rows_that_have_an_image_and_counts_the_others(tmp_path, films):
    planned = plan(tmp_path, rows_of(8), films, choice=Choice(limit=4))
    assert set(ids(planned)) <= {f"image{number:04d}" for number in range(5)}
    assert (planned.rows, planned.without_image) == (4, 3)
    assert plan(tmp_path, rows_of(8), films).without_image == 0  # they are drawn, or rather missed


@pytest.mark.parametrize(
    ("thresholds", "limits_px", "expected"),
    [
        ({"unit": "model"}, [{"px": {"right_lung": 5.0, "left_lung": 5.0, "heart": None}}], (5.0,)),
        ({"unit": "model"}, [{"px": {"right_lung": 5.0, "heart": 8.0}}, {"px": {"heart": 7.256}}], (5.0, 7.26, 8.0)),
        ({"unit": "image"}, [{"px": {"right_lung": 5.0}}], ()),
    ],
)
def test_limits_of_the_selection_are_marked(tmp_path, thresholds, limits_px, expected):
    groups = [{"source": "chestxray8", "model_id": "published", **one} for one in limits_px]
    facts = {"kind": "selection", "thresholds": thresholds, "limits_px": groups}
    planned = plan(tmp_path, rows_of(1, confident=True, usable=True, limits=facts))
    assert planned.limits_px == expected
    assert planned.drops


def test_limits_of_a_radius_are_those_of_the_radius(tmp_path):
    facts = {
        "kind": "selection",
        "thresholds": {"max_radius90": {"heart": 20.0}},
        "limits_px": [{"source": "chestxray8", "model_id": "published", "px": {"heart": 5.0}}],
    }
    rows = rows_of(1, radius90_px=np.full((1, 120), 9.0, np.float32), limits=facts)
    assert plan(tmp_path, rows, colour="radius").limits_px == (20.0,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 10}, "--size 10: expected 64 to 4,096 px"),
        ({"band": -1.0}, "--band -1: expected 0 or more"),
        ({"band": float("nan")}, "--band nan"),
        ({"vmax_px": 0.0}, "--vmax 0: expected px above 0"),
        ({"columns": 0}, "--columns 0 --rows 4: expected 1 or more"),
        ({"columns": 100, "rows": 100}, "at most 1,000 pictures on a page"),
        ({"colour": "grey"}, "--colour grey: expected one of sigma, radius, organ"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(UsageError, match=told):
        PictureOptions(**options)


def test_what_cannot_be_planned(tmp_path, films):
    with pytest.raises(UsageError, match=r"no row to draw: .*t\.parquet is empty"):
        plan(tmp_path, rows_of(0))
    (tmp_path / "ids.txt").write_text("x\ny\n")
    with pytest.raises(UsageError, match="no row to draw: none of the 2 ids of --ids"):
        plan(tmp_path, rows_of(2), choice=Choice(ids=IdList(tmp_path / "ids.txt")))
    with pytest.raises(MissingInputError, match=r"none of the 2 rows has an image in .*first: chestxray8 a"):
        plan(tmp_path, rows_of(2, image_id=["a", "b"]), films)
    with pytest.raises(UsageError, match=r"--colour radius: no row of .* has calibrated radii"):
        plan(tmp_path, rows_of(2), colour="radius")
    with pytest.raises(DuplicateIdError, match="stand more than once"):
        plan(tmp_path, rows_of(2, image_id=["a", "a"]))
    (films / "more").mkdir()
    save_film(films / "more" / "image0000.png")
    with pytest.raises(UsageError, match=r"1 image id.* with more than one file"):
        plan(tmp_path, rows_of(2), films)


# --- pictures --------------------------------------------------------------------------------------------------------


def shown(path):
    """Return the part of a picture of :data:`SIDE` px that shows the frame: below the header, margins even."""
    whole = pixels(path)
    margin = (whole.shape[1] - SIDE) // 2
    return whole[whole.shape[0] - SIDE - margin : whole.shape[0] - margin, margin : margin + SIDE]


def at_node(drawn, node):
    x, y = (chest()[node] * SIDE / 1024).astype(int)
    return drawn[y, x]


def test_outlines_lie_where_the_landmarks_are_in_the_film(tmp_path, films):
    planned = plan(tmp_path, rows_of(1, sigma=10.0), films, size=SIDE, band=0.0)
    report = draw_pictures(planned)
    assert (report.rows, report.files, report.failures) == (1, 1, [])
    drawn = shown(tmp_path / "out/chestxray8/image0000.png")
    np.testing.assert_allclose(at_node(drawn, LEFT_LUNG.first), sigma_colours(np.array(10.0)), atol=6)
    # the film itself, brighter in the middle
    assert drawn[20, 300].tolist() == [255] * 3
    assert drawn[20, 100].tolist() == [0] * 3


def test_a_wide_film_is_not_padded_in_a_picture_of_its_own(tmp_path, films):
    rows = rows_of(1, height=128, width=256, frame="image", landmarks_xy=chest(256, 128)[None])
    save_film(films / "image0000.png", shape_hw=(128, 256))
    draw_pictures(plan(tmp_path, rows, films, size=SIDE))
    height, width, _ = pixels(tmp_path / "out/chestxray8/image0000.png").shape
    assert width > height


def test_rows_of_another_image_are_listed_and_the_others_drawn(tmp_path, films):
    save_film(films / "image0001.png", shape_hw=(100, 256))
    (films / "image0002.png").write_bytes(b"no picture")
    report = draw_pictures(plan(tmp_path, rows_of(7), films))
    assert report.rows == 3
    reasons = {failure.image_id: failure.reason for failure in report.failures}
    assert set(reasons) == {"image0001", "image0002", "image0005", "image0006"}
    assert "not the same image" in reasons["image0001"]
    assert "no PNG, JPEG, TIFF or DICOM" in reasons["image0002"]
    assert reasons["image0005"] == "no image of this id among the images given"
    index = pa_csv.read_csv(tmp_path / "out/index.csv")
    assert index["image_id"].to_pylist() == ["image0000", "image0003", "image0004"]


def with_and_without(tmp_path, **columns):
    """Draw two rows that differ by what a filter left of them; return both pictures."""
    drawn = []
    for number, kept in enumerate((columns, {"confident": True, "usable": True})):
        folder = tmp_path / str(number)
        folder.mkdir()
        draw_pictures(plan(folder, rows_of(1, **kept), size=SIDE))
        drawn.append(shown(folder / "out/chestxray8/image0000.png"))
    return drawn


def test_dropped_nodes_are_hollow(tmp_path):
    confident = np.ones(120, bool)
    confident[LEFT_LUNG.first] = False
    dropped, whole = with_and_without(tmp_path, confident=confident, usable=True)
    assert at_node(dropped, LEFT_LUNG.first).tolist() == list(HALO)
    np.testing.assert_allclose(at_node(whole, LEFT_LUNG.first), sigma_colours(np.array(3.0)), atol=6)
    np.testing.assert_allclose(at_node(dropped, RIGHT_LUNG.first), at_node(whole, RIGHT_LUNG.first), atol=6)


def test_an_unusable_organ_loses_its_colour(tmp_path):
    drawn = with_and_without(tmp_path, confident=True, usable=[True, True, False])
    x, y = (chest()[HEART.nodes].mean(axis=0) * SIDE / 1024).astype(int)
    hues = [np.ptp(picture[y - 12 : y + 12, x - 12 : x + 12], axis=2).max() for picture in drawn]
    assert hues[0] < 12 < 30 < hues[1]


def test_colours_say_what_was_asked(tmp_path):
    radius = np.full((1, 120), 30.0, np.float32)
    found = {}
    for colour in ("sigma", "radius", "organ"):
        folder = tmp_path / colour
        folder.mkdir()
        draw_pictures(plan(folder, rows_of(1, sigma=6.0, radius90_px=radius), size=SIDE, colour=colour, band=0.0))
        found[colour] = at_node(shown(folder / "out/chestxray8/image0000.png"), LEFT_LUNG.first)
    np.testing.assert_allclose(found["sigma"], sigma_colours(np.array(6.0), vmax_px=24.0), atol=6)
    np.testing.assert_allclose(found["radius"], sigma_colours(np.array(30.0), vmax_px=60.0), atol=6)
    np.testing.assert_allclose(found["organ"], LEFT_LUNG.colour_rgb, atol=6)


def test_rows_without_uncertainty_have_the_colours_of_their_organs(tmp_path):
    planned = plan(tmp_path, make_rows(2), size=SIDE)
    assert (planned.without_value, planned.has_colours) == (2, False)
    draw_pictures(planned)
    for organ in (RIGHT_LUNG, LEFT_LUNG):
        drawn = at_node(shown(tmp_path / "out/chestxray8/image0001.png"), organ.first)
        np.testing.assert_allclose(drawn, organ.colour_rgb, atol=6)


def test_a_page_has_every_row_and_says_which_are_missing(tmp_path, films):
    (films / "image0001.png").unlink()
    planned = plan(tmp_path, rows_of(3), films, sheet=True, columns=2, rows=2)
    report = draw_pictures(planned)
    assert (report.rows, report.files, len(report.failures)) == (2, 1, 1)
    missing = json.loads((tmp_path / "out/.cxu/sheet-001.json").read_text())
    assert missing == ["chestxray8 image0001: no image of this id among the images given"]
    assert pa_csv.read_csv(tmp_path / "out/index.csv").to_pylist()[1] == {
        "source": "chestxray8",
        "image_id": "image0002",
        "path": "sheet-001.png",
        "row": 2,
        "column": 1,
    }


@pytest.mark.parametrize("sheet", [False, True])
def test_the_same_plan_gives_the_same_bytes_whatever_the_workers(tmp_path, films, sheet):
    found = []
    for workers in (1, 2):
        planned = plan(tmp_path, rows_of(5), films, sheet=sheet, columns=2, rows=2)
        draw_pictures(planned, workers=workers, overwrite=True)
        found.append(tree(tmp_path / "out"))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.endswith(".png")]) == (2 if sheet else 5)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_same_command_draws_only_what_is_gone(tmp_path, films):
    planned = plan(tmp_path, rows_of(4), films)
    draw_pictures(planned)
    before = tree(tmp_path / "out")
    (tmp_path / "out/chestxray8/image0002.png").unlink()
    report = draw_pictures(planned)
    assert (report.rows, report.resumed_rows) == (4, 3)
    assert tree(tmp_path / "out") == before


def test_a_page_with_gaps_is_drawn_again(tmp_path, films):
    (films / "image0001.png").write_bytes(b"")
    rows = rows_of(3)
    assert len(draw_pictures(plan(tmp_path, rows, films, sheet=True)).failures) == 1
    again = draw_pictures(plan(tmp_path, rows, films, sheet=True))
    assert (again.resumed_rows, len(again.failures)) == (0, 1)
    save_film(films / "image0001.png")
    # another image, so another command
    with pytest.raises(OutputExistsError, match="images have changed since"):
        draw_pictures(plan(tmp_path, rows, films, sheet=True))
    whole = draw_pictures(plan(tmp_path, rows, films, sheet=True), overwrite=True)
    assert (whole.rows, whole.failures) == (3, [])
    assert [path.name for path in (tmp_path / "out/.cxu").iterdir()] == ["pictures.json"]


def test_another_command_is_refused_and_says_what_differs(tmp_path):
    draw_pictures(plan(tmp_path, rows_of(2)))
    with pytest.raises(OutputExistsError, match=r'holds the pictures of another command \(colour was "sigma", now'):
        draw_pictures(plan(tmp_path, rows_of(2), colour="organ"))
    with pytest.raises(OutputExistsError, match="limit was null, now 1"):
        draw_pictures(plan(tmp_path, rows_of(2), choice=Choice(limit=1)))
    with pytest.raises(OutputExistsError, match=r"the table .* has changed"):
        draw_pictures(plan(tmp_path, rows_of(2, sigma=7.0)))


def test_overwriting_removes_old_pictures_and_nothing_else(tmp_path):
    draw_pictures(plan(tmp_path, rows_of(3)))
    note = tmp_path / "out/chestxray8/note.txt"
    note.write_text("mine")
    report = draw_pictures(plan(tmp_path, rows_of(3), sheet=True), overwrite=True)
    assert report.rows == 3
    assert sorted(name for name in tree(tmp_path / "out") if not name.startswith(".cxu")) == [
        "chestxray8/note.txt",
        "cxu.json",
        "index.csv",
        "sheet-001.png",
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_left_alone(tmp_path, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / "film.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="is not empty and was not made by cxu overlay"):
        draw_pictures(plan(tmp_path, rows_of(1)), overwrite=overwrite)
    (out / "film.png").unlink()
    (out / "cxu.json").write_text('{"command": "rasterize", "identity": "x"}')
    with pytest.raises(OutputExistsError, match="was made by cxu rasterize"):
        draw_pictures(plan(tmp_path, rows_of(1)), overwrite=overwrite)
    assert sorted(tree(out)) == ["cxu.json"]


def test_a_picture_that_is_not_ours_is_never_replaced(tmp_path):
    draw_pictures(plan(tmp_path, rows_of(1)))
    mine = tmp_path / "out/sheet-001.png"
    mine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"sheet-001\.png is there and was not written by cxu overlay"):
        draw_pictures(plan(tmp_path, rows_of(1), sheet=True), overwrite=True)
    assert mine.read_bytes() == b"mine"
