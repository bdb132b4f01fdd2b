"""Masks as files: what each format holds, read by the libraries that people read it with."""

import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from pycocotools import mask as coco

from builders import plain_decode_rle
from cxu import files, maskfiles
from cxu.anatomy import ORGAN_NAMES, RIGHT_LUNG
from cxu.maskfiles import RLE_SCHEMA, encode_row, open_writer, part_path, row_suffixes
from cxu.masks import MaskOptions, Placement, RowShape, draw_organs, merge_labels
from mask_helpers import last_corner, read_png, tiny_chest, tree

ALL_USABLE, NO_LEFT_LUNG, NONE_USABLE = (True,) * 3, (True, False, True), (False,) * 3


def options(format_, policy="confident", **others):
    return MaskOptions(policy, format_, **others)


def draw(chosen, usable=ALL_USABLE, confident=None):
    confident = ~last_corner(RIGHT_LUNG) if confident is None else confident
    row = RowShape(tiny_chest(), np.full((120, 2), 0.5, np.float32), confident, np.array(usable))
    return draw_organs(row, Placement((10, 12)), chosen)


def write(folder, chosen, rows):
    """Write rows, (image_id, usable) each, as one block; return the paths of each row and the writer."""
    with open_writer(folder, "part-00000", chosen) as writer:
        paths = [
            writer.write("mine", image_id, files.safe_relative(f"mine/{image_id}").as_posix(), draw(chosen, usable))
            for image_id, usable in rows
        ]
    return paths, writer


# --- a file or more a row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["confident", "full", "ignore"])
def test_labels_are_one_png(policy):
    chosen = options("labels", policy)
    organs = draw(chosen, NO_LEFT_LUNG)
    row = encode_row(organs, chosen)
    assert list(row.contents) == list(row_suffixes(chosen)) == [".png"]
    np.testing.assert_array_equal(read_png(row.contents[".png"]), merge_labels(organs, chosen))
    # the region of an unusable organ is in it, as 255
    assert row.suffixes == dict.fromkeys(ORGAN_NAMES, ".png")


@pytest.mark.parametrize("policy", ["confident", "full", "ignore", "probability"])
def test_organs_are_a_png_each_but_for_unusable_ones(policy):
    chosen = options("organs", policy)
    organs = draw(chosen, NO_LEFT_LUNG)
    row = encode_row(organs, chosen)
    assert list(row.contents) == [".right_lung.png", ".heart.png"]
    assert row_suffixes(chosen) == (".right_lung.png", ".left_lung.png", ".heart.png")
    assert row.suffixes == {"right_lung": ".right_lung.png", "left_lung": None, "heart": ".heart.png"}
    for name in ("right_lung", "heart"):
        np.testing.assert_array_equal(read_png(row.contents[f".{name}.png"]), organs[name].plane)
    values = set(np.unique(read_png(row.contents[".right_lung.png"])))
    assert values == {"ignore": {0, 1, 255}, "probability": {0, 1, 6, 128, 249}}.get(policy, {0, 1})


@pytest.mark.parametrize(
    ("policy", "usable", "keys"),
    [
        ("confident", ALL_USABLE, ["right_lung", "left_lung", "heart", "labels"]),
        ("ignore", NO_LEFT_LUNG, ["right_lung", "heart", "labels"]),
        ("full", NONE_USABLE, ["labels"]),
        ("probability", NO_LEFT_LUNG, ["right_lung", "heart"]),
    ],
)
def test_npz_holds_usable_planes_and_labels(tmp_path, policy, usable, keys):
    chosen = options("npz", policy)
    organs = draw(chosen, usable)
    row = encode_row(organs, chosen)
    (tmp_path / "row.npz").write_bytes(row.contents[".npz"])
    with np.load(tmp_path / "row.npz", allow_pickle=False) as arrays:
        assert list(arrays) == keys
        for name in keys:
            plane = merge_labels(organs, chosen) if name == "labels" else organs[name].plane
            assert arrays[name].dtype == np.uint8
            np.testing.assert_array_equal(arrays[name], plane)
    in_it = {name: ".npz" if name in keys or "labels" in keys else None for name in ORGAN_NAMES}
    assert row.suffixes == in_it


def test_probabilities_of_no_usable_organ_make_no_file():
    for format_ in ("npz", "organs"):
        chosen = options(format_, "probability")
        row = encode_row(draw(chosen, NONE_USABLE), chosen)
        assert (row.contents, row.suffixes) == ({}, dict.fromkeys(ORGAN_NAMES))


@pytest.mark.parametrize("format_", ["labels", "organs", "npz"])
def test_rows_of_their_own_files_keep_the_folders_of_their_ids(tmp_path, format_):
    chosen = options(format_)
    paths, writer = write(tmp_path, chosen, [("a/b/1", ALL_USABLE), ("2.3", NO_LEFT_LUNG)])
    written = tree(tmp_path)
    assert sorted(written) == sorted({path for row in paths for path in row.values() if path})
    assert {path.partition(".")[0] for path in written} == {"mine/a/b/1", "mine/2"}
    assert all(path.startswith(("mine/a/b/1.", "mine/2.3.")) for path in written)
    assert writer.n_bytes == sum(map(len, written.values()))
    assert part_path(chosen, "part-00000") is None


# --- RLE -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_rle_is_in_both_dialects_and_null_where_unusable(tmp_path):
    chosen = options("rle")
    paths, writer = write(tmp_path, chosen, [("1", ALL_USABLE), ("2", NO_LEFT_LUNG)])
    assert list(tree(tmp_path)) == ["masks/part-00000.parquet"] == [part_path(chosen, "part-00000")]
    assert writer.n_bytes == (tmp_path / "masks/part-00000.parquet").stat().st_size
    assert paths[0] == dict.fromkeys(ORGAN_NAMES, "masks/part-00000.parquet")
    assert paths[1]["left_lung"] is None
    lines = pq.read_table(tmp_path / "masks/part-00000.parquet")
    assert lines.schema.equals(RLE_SCHEMA, check_metadata=True)
    lines = lines.to_pylist()
    assert [(line["image_id"], line["organ"]) for line in lines] == [(i, name) for i in "12" for name in ORGAN_NAMES]
    for line in lines:
        assert (line["source"], line["height"], line["width"]) == ("mine", 10, 12)
        plane = draw(chosen)[line["organ"]].plane
        if (line["image_id"], line["organ"]) == ("2", "left_lung"):
            assert line["rle"] is line["rle_coco"] is None
            continue
        np.testing.assert_array_equal(plain_decode_rle(line["rle"], (10, 12)), plane)
        decoded = coco.decode({"size": [10, 12], "counts": line["rle_coco"].encode()})
        np.testing.assert_array_equal(decoded, plane)


def test_rle_does_not_depend_on_how_many_masks_become_text_together(tmp_path, monkeypatch):
    rows = [(str(number), (ALL_USABLE, NO_LEFT_LUNG, NONE_USABLE)[number % 3]) for number in range(7)]
    for together in (1, 4, 192):
        monkeypatch.setattr(maskfiles, "_MASKS_TOGETHER", together)
        write(tmp_path / str(together), options("rle"), rows)
    assert tree(tmp_path / "1") == tree(tmp_path / "4") == tree(tmp_path / "192")
    lines = pq.read_table(tmp_path / "1/masks/part-00000.parquet").to_pylist()
    assert [line["image_id"] for line in lines[::3]] == list("0123456")


# --- tar -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "names"),
    [("confident", ["labels.png"]), ("ignore", ["labels.png"]), ("probability", ["right_lung.png", "heart.png"])],
)
def test_webdataset_reads_the_tar(tmp_path, policy, names):
    chosen = options("tar", policy)
    ids = ["train/patient1/view1", "1.2.840.113", "a%b", "CON"]
    paths, writer = write(tmp_path, chosen, [(image_id, NO_LEFT_LUNG) for image_id in ids])
    tar = tmp_path / part_path(chosen, "part-00000")
    assert writer.n_bytes == tar.stat().st_size
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False))
    assert [json.loads(sample["json"])["image_id"] for sample in samples] == ids
    organs = draw(chosen, NO_LEFT_LUNG)
    for sample, in_tar in zip(samples, paths, strict=True):
        assert sorted(name for name in sample if not name.startswith("__")) == sorted([*names, "json"])
        facts = json.loads(sample["json"])
        assert facts["source"] == "mine"
        assert facts["usable"] == dict(zip(ORGAN_NAMES, NO_LEFT_LUNG, strict=True))
        for name in names:
            organ = name.removesuffix(".png")
            plane = merge_labels(organs, chosen) if organ == "labels" else organs[organ].plane
            np.testing.assert_array_equal(read_png(sample[name]), plane)
        holders = {name: name if policy == "probability" else "labels" for name in ORGAN_NAMES}
        for name, path in in_tar.items():
            if policy == "probability" and name == "left_lung":
                assert path is None
            else:
                assert path == f"masks/part-00000.tar!{sample['__key__']}.{holders[name]}.png"
    decoded = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False).decode("l8")
    assert next(iter(decoded))[names[0]].shape == (10, 12)


def test_members_of_a_tar_have_no_clock_time_and_no_owner(tmp_path):
    write(tmp_path, options("tar"), [("1", ALL_USABLE)])
    with tarfile.open(tmp_path / "masks/part-00000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


# --- all of them -----------------------------------------------------------------------------------------------------

EVERY = [
    (policy, format_)
    for policy in ("confident", "full", "ignore", "probability")
    for format_ in ("labels", "organs", "npz", "rle", "tar")
    if (policy, format_) not in {("ignore", "rle"), ("probability", "labels"), ("probability", "rle")}
]


@pytest.mark.parametrize(("policy", "format_"), EVERY)
def test_the_same_rows_give_the_same_bytes(tmp_path, policy, format_):
    chosen = options(format_, policy)
    rows = [("1", ALL_USABLE), ("2", NO_LEFT_LUNG), ("3", NONE_USABLE)]
    write(tmp_path / "a", chosen, rows)
    write(tmp_path / "b", chosen, rows)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a")


@pytest.mark.parametrize("format_", ["rle", "tar"])
def test_a_block_that_fails_leaves_nothing(tmp_path, format_):
    chosen = options(format_)
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path, "part-00000", chosen) as writer:  # noqa: PT012
        writer.write("mine", "1", "mine/1", draw(chosen))
        raise KeyboardInterrupt
    assert tree(tmp_path) == {}
