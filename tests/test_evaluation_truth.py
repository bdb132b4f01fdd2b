"""What is compared with what: ids, rows in the model frame, landmarks in .npz files, folders of masks."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builders import chest, make_rows
from cxu.errors import DuplicateIdError, FormatError, ImageError, MissingInputError, UsageError
from cxu.evaluation.match import match_ids
from cxu.evaluation.truth import LandmarkTruth, model_rows, open_truth, read_npz
from cxu.evaluation.truth_masks import list_masks, mask_placement, read_planes
from cxu.frame import ModelFrame
from cxu.store import Home
from mask_helpers import store_rows

NAMES = ("found", "true")


def pairs_of(found, true):
    matches = match_ids(found, true, names=NAMES)
    return [(found[i], true[j]) for i, j in zip(matches.predictions, matches.truths, strict=True)], matches


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_pair_without_suffix_in_the_order_of_the_predictions():
    pairs, matches = pairs_of(["b.png", "a/c.JPG", "x"], ["a/c", "b.dcm", "y"])
    assert pairs == [("b.png", "b.dcm"), ("a/c.JPG", "a/c")]
    assert matches.lone_predictions == ("x",)
    assert matches.lone_truths == ("y",)


def test_ids_pair_by_their_last_part_where_it_is_unique():
    pairs, matches = pairs_of(["p1/view1", "p2/view1", "p3/film"], ["view1", "other/film.png"])
    assert pairs == [("p3/film", "other/film.png")]
    assert matches.lone_predictions == ("p1/view1", "p2/view1")
    assert matches.lone_truths == ("view1",)


def test_the_whole_id_goes_before_its_last_part():
    pairs, _ = pairs_of(["a/1", "1"], ["1"])
    assert pairs == [("1", "1")]


def test_ids_with_dots_keep_them():
    pairs, _ = pairs_of(["1.2.840"], ["1.2.840.png"])
    assert len(pairs) == 1


@pytest.mark.parametrize(("found", "true"), [(["a"], ["b"]), ([], ["b"]), (["a"], [])])
def test_nothing_in_common_names_an_example_of_both(found, true):
    with pytest.raises(UsageError) as caught:
        match_ids(found, true, names=NAMES)
    for ids, name in ((found, "found"), (true, "true")):
        assert f"{name} has {repr(ids[0]) if ids else 'no row'}" in str(caught.value)


def test_an_id_twice_is_refused_on_either_side():
    for found, true, name in ((["a", "a.png"], ["a"], "found"), (["a"], ["a", "a"], "true")):
        with pytest.raises(DuplicateIdError, match=f"{name}: 1 ids stand there more than once, 'a'"):
            match_ids(found, true, names=NAMES)


ids = st.lists(st.from_regex(r"([ab]/)?[a-d]{1,2}(\.png)?", fullmatch=True), unique_by=lambda x: x.removesuffix(".png"))


@settings(max_examples=50)
@given(ids, ids)
def test_every_id_is_paired_once_or_named(found, true):
    try:
        pairs, matches = pairs_of(found, true)
    except UsageError:
        assert not {one.removesuffix(".png") for one in found} & {one.removesuffix(".png") for one in true}
        return
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert len(pairs) + len(matches.lone_predictions) == len(found)
    assert len(pairs) + len(matches.lone_truths) == len(true)
    assert all(a.removesuffix(".png").split("/")[-1] == b.removesuffix(".png").split("/")[-1] for a, b in pairs)


# --- rows ------------------------------------------------------------------------------------------------------------


def image_rows(n_rows=1, side=2048.0, offset=(-100.0, 0.0), **columns):
    landmarks = chest() * side / 1024 + np.asarray(offset)
    defaults = {
        "frame": "image",
        "height": 2048,
        "width": 1848,
        "frame_side": side,
        "frame_offset_xy": np.broadcast_to(np.array(offset, np.float32), (n_rows, 2)),
        "landmarks_xy": np.broadcast_to(landmarks.astype(np.float32), (n_rows, 120, 2)),
    }
    return make_rows(n_rows, **{**defaults, **columns})


def test_rows_in_image_pixels_come_into_the_model_frame():
    rows = model_rows(image_rows(), "t")
    np.testing.assert_allclose(rows.landmarks_xy[0], chest())
    assert rows.images == (((2048, 1848), ModelFrame(2048.0, (-100.0, 0.0))),)


def test_rows_in_the_model_frame_stay():
    rows = model_rows(make_rows(2), "t")
    np.testing.assert_array_equal(rows.landmarks_xy, np.stack([chest(), chest()]))
    assert rows.images == (None, None)
    assert len(rows) == 2
    assert np.isnan(rows.sigma_px).all()


def test_rows_that_do_not_know_their_frame_are_left_out_and_named():
    unknown = image_rows(frame_side=None, image_id=["lost"])
    rows = model_rows(pa.concat_tables([image_rows(image_id=["a"]), unknown, make_rows(1, image_id=["b"])]), "t")
    assert rows.image_id == ("a", "b")
    assert [one.image_id for one in rows.left_out] == ["lost"]
    assert "model frame" in rows.left_out[0].reason
    np.testing.assert_allclose(rows.landmarks_xy, np.stack([chest(), chest()]))


def test_taken_rows_stay_together():
    rows = model_rows(image_rows(3, image_id=["a", "b", "c"], model_id=["m", "n", "o"]), "t").take([2, 0])
    assert (rows.image_id, rows.model_id, len(rows.images)) == (("c", "a"), ("o", "m"), 2)


# --- landmarks -------------------------------------------------------------------------------------------------------


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_landmarks_of_an_npz(tmp_path):
    points = np.stack([chest(), chest() + 1])
    points[1, 94:] = np.nan
    truth = read_npz(save_npz(tmp_path / "t.npz", name=["a", "b"], landmarks_xy=points, other=[1]))
    assert truth.image_id == ("a", "b")
    np.testing.assert_array_equal(truth.landmarks_xy, points)


@pytest.mark.parametrize(
    "arrays",
    [
        {"name": ["a"]},
        {"landmarks_xy": np.zeros((1, 120, 2))},
        {"name": ["a"], "landmarks_xy": np.zeros((2, 120, 2))},
        {"name": ["a"], "landmarks_xy": np.zeros((1, 119, 2))},
        {"name": ["a"], "landmarks_xy": np.array([["x"]])},
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    with pytest.raises(FormatError, match="landmarks_xy"):
        read_npz(save_npz(tmp_path / "t.npz", **arrays))


def test_a_damaged_or_missing_npz_is_named(tmp_path):
    (tmp_path / "t.npz").write_bytes(b"PK no zip")
    with pytest.raises(FormatError, match=r"t\.npz"):
        read_npz(tmp_path / "t.npz")
    with pytest.raises(MissingInputError, match="does not exist"):
        read_npz(tmp_path / "none.npz")


def test_a_truth_is_told_by_what_lies_there(tmp_path):
    home = Home(tmp_path / "home")
    store_rows(tmp_path / "table.parquet", make_rows(1, image_id=["t"]))
    store_rows(tmp_path / "folder" / "predictions.parquet", make_rows(1, image_id=["f"]))
    save_png(tmp_path / "folder" / "overlay.png", [[0]])
    save_png(tmp_path / "masks" / "m.png", [[1]])
    save_npz(tmp_path / "n.NPZ.npz", name=["n"], landmarks_xy=chest()[None])
    opened = {name: open_truth(home, str(tmp_path / name)) for name in ("table.parquet", "folder", "n.NPZ.npz")}
    assert [one.image_id for one in opened.values()] == [("t",), ("f",), ("n",)]
    assert all(isinstance(one, LandmarkTruth) for one in opened.values())
    assert open_truth(home, str(tmp_path / "masks")).kind == "labels"
    with pytest.raises(MissingInputError):
        open_truth(home, "nothing")


# --- masks -----------------------------------------------------------------------------------------------------------


def save_png(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(pixels, np.uint8))
    if mode:
        image = image.convert(mode)
    image.save(path)
    return path


def test_label_images_are_listed_by_their_paths(tmp_path):
    save_png(tmp_path / "p" / "a.png", [[0]])
    save_png(tmp_path / "b.png", [[0]])
    truth = list_masks(tmp_path)
    assert (truth.kind, truth.image_id) == ("labels", ("b", "p/a"))


def test_masks_of_single_organs_are_listed_together(tmp_path):
    for name in ("a.right_lung", "a.heart", "b.left_lung"):
        save_png(tmp_path / f"{name}.png", [[1]])
    truth = list_masks(tmp_path)
    assert (truth.kind, truth.image_id) == ("organs", ("a", "b"))
    assert [sorted(paths) for paths in truth.paths] == [["heart", "right_lung"], ["left_lung"]]


def test_an_index_says_the_ids(tmp_path):
    save_png(tmp_path / "chexpert" / "train%3A.png", [[0]])
    lines = [
        {"source": "chexpert", "image_id": "train:", "organ": organ, "path": "chexpert/train%3A.png"}
        for organ in ("right_lung", "left_lung", "heart")
    ]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "index.parquet")
    truth = list_masks(tmp_path)
    assert (truth.kind, truth.image_id) == ("labels", ("train:",))


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match="no mask"):
        list_masks(tmp_path)
    for options, told in (({"policy": "probability"}, "probabilities"), ({"format": "rle"}, "rle")):
        (tmp_path / "cxu.json").write_text(json.dumps({"options": options}))
        with pytest.raises(UsageError, match=told):
            list_masks(tmp_path)
    (tmp_path / "cxu.json").unlink()
    save_png(tmp_path / "a.png", [[0]])
    save_png(tmp_path / "a.heart.png", [[0]])
    with pytest.raises(UsageError, match="one kind"):
        list_masks(tmp_path)


def labels(path):
    return dict.fromkeys(("right_lung", "left_lung", "heart"), path)


@pytest.mark.parametrize("mode", [None, "P"])
def test_planes_of_a_label_image(tmp_path, mode):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8), "L")
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 9)])
    image.save(path)
    read = read_planes(labels(path), "labels")
    assert {name: plane.tolist() for name, plane in read.planes.items()} == {
        "right_lung": [[False, True, False, False]],
        "left_lung": [[False, False, True, False]],
    }  # no pixel of the heart: nobody drew one
    assert read.ignored["right_lung"].tolist() == [[False, False, False, True]]


def test_planes_of_single_organs(tmp_path):
    paths = {
        "right_lung": save_png(tmp_path / "r.png", [[1, 0, 255]]),
        "heart": save_png(tmp_path / "h.png", [[0, 0, 0]]),
    }
    read = read_planes(paths, "organs")
    assert read.planes["right_lung"].tolist() == [[True, False, False]]
    assert read.planes["heart"].tolist() == [[False, False, False]]  # drawn, and empty
    assert read.ignored["right_lung"].tolist() == [[False, False, True]]
    assert not read.ignored["heart"].any()


def test_masks_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ImageError, match="has the value 4; expected 0, 1, 2, 3, 255"):
        read_planes(labels(save_png(path, [[0, 4]])), "labels")
    with pytest.raises(ImageError, match="has the value 2; expected 0, 1, 255"):
        read_planes({"heart": save_png(path, [[0, 2]])}, "organs")
    with pytest.raises(ImageError, match="255 but no 1"):
        read_planes({"heart": save_png(path, [[0, 255]])}, "organs")
    with pytest.raises(ImageError, match="pixels of kind RGB"):
        read_planes(labels(save_png(path, [[0, 1]], "RGB")), "labels")
    sizes = {"heart": save_png(path, [[0, 1]]), "right_lung": save_png(tmp_path / "b.png", [[1]])}
    with pytest.raises(ImageError, match="different size: heart 2 × 1, right_lung 1 × 1"):
        read_planes(sizes, "organs")
    with pytest.raises(ImageError, match="no organ has a mask"):
        read_planes({}, "organs")
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png cannot be read"):
        read_planes(labels(path), "labels")
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.png cannot be read"):
        read_planes(labels(path), "labels")


OWN = ((2048, 1848), ModelFrame(2048.0, (-100.0, 0.0)))


def test_a_mask_is_in_the_image_or_in_the_model_frame():
    assert mask_placement((2048, 1848), OWN) == (2.0, (-100.0, 0.0))
    assert mask_placement((1024, 1024), OWN) == (1.0, (0.0, 0.0))
    assert mask_placement((1024, 1024), None) == (1.0, (0.0, 0.0))
    assert mask_placement((1024, 1024), ((1024, 1024), ModelFrame(1024.0, (0.0, 0.0)))) == (1.0, (0.0, 0.0))


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(ImageError, match=r"512 × 600 px .*expected the image's 1848 × 2048 or 1024 × 1024"):
        mask_placement((600, 512), OWN)
    with pytest.raises(ImageError, match="expected 1024 × 1024"):
        mask_placement((2048, 1848), None)
    with pytest.raises(ImageError, match="may be the image's own pixels or the model frame"):
        mask_placement((1024, 1024), ((1024, 1024), ModelFrame(900.0, (60.0, 60.0))))
