"""A table to masks in a folder: the published masks again, three rows by hand, a folder that one can come back to."""

import csv
import json
import os
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco
from typer.testing import CliRunner

import cxu
from builders import join_numbers, plain_decode_rle, published_csv, published_row
from cxu import maskplan
from cxu.anatomy import LEFT_LUNG, ORGAN_NAMES, ORGANS, RIGHT_LUNG
from cxu.cli import app
from cxu.errors import DuplicateIdError, OutputExistsError, UsageError, WorkerError
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.raster import encode_png
from cxu.rasterize import estimate_bytes, rasterize_table
from cxu.store import Home
from mask_helpers import last_corner, picture, read_png, store_rows, tiny_chest, tiny_rows, tree

csv.field_size_limit(sys.maxsize)


def plan(stored, out, policy="confident", format_="labels", target=None, **others):
    return plan_masks(stored, out, MaskOptions(policy, format_), target or Target(), **others)


def draw(stored, out, policy="confident", format_="labels", target=None, *, frame=None, **others):
    return rasterize_table(plan(stored, out, policy, format_, target, frame=frame), **others)


def cxu_command(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done


def index_of(out):
    return pq.read_table(out / "index.parquet").to_pylist()


# --- the published masks ---------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize(
    ("file", "source", "rows"),
    [("MIMIC-CXR-JPG.csv", "mimic", 49), ("ChestX-Ray8.csv", "chestxray8", 50), ("Padchest.csv", "padchest", 50)],
)
def test_published_masks_are_redrawn_character_for_character(shared_data, tmp_path, file, source, rows):
    home, out = tmp_path / "home", tmp_path / "masks"
    published = shared_data / "chexmask" / file
    cxu_command("import", published, "--source", source, "--frame", "model", "--home", home)
    cxu_command("rasterize", source, "--policy", "full", "--format", "rle", "--out", out, "--home", home)
    with published.open(newline="") as stream:
        expected = {}
        for line in csv.DictReader(stream):
            image_id = next(iter(line.values())).removesuffix(".png")
            expected |= {(image_id, organ.name): line[organ.published_column] for organ in ORGANS}
    drawn = [line for part in sorted((out / "masks").glob("*.parquet")) for line in pq.read_table(part).to_pylist()]
    assert len(drawn) == len(expected) == 3 * rows
    for line in drawn:
        assert line["rle"] == expected[line["image_id"], line["organ"]]
        size = [line["height"], line["width"]]
        decoded = coco.decode({"size": size, "counts": line["rle_coco"].encode()})
        np.testing.assert_array_equal(decoded, plain_decode_rle(line["rle"], tuple(size)))


# --- three rows by hand ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The selection of three rows of 12 × 10 px, by --max-std 0.45 in their own pixels.

    ``clear`` is certain everywhere; in ``corner`` four nodes of the right lung are not, a gap that is bridged, and
    five of the left lung, one that is not; ``lost`` is certain nowhere.
    """
    folder = tmp_path_factory.mktemp("by_hand")
    corner = np.full(120, 0.4)
    corner[last_corner(RIGHT_LUNG) | last_corner(LEFT_LUNG)] = 0.5
    corner[LEFT_LUNG.stop - 5] = 0.5
    sigmas = {"clear": np.full(120, 0.4), "corner": corner, "lost": np.full(120, 9.0)}
    rows = [
        published_row(
            f"{image_id}.png",
            Height="10",
            Width="12",
            **{
                "Landmarks (Mean)": join_numbers(tiny_chest()),
                "Landmarks (Std)": join_numbers(np.repeat(sigma, 2), 2),
            },
        )
        for image_id, sigma in sigmas.items()
    ]
    (folder / "NIH.csv").write_text(published_csv(rows))
    home = folder / "home"
    cxu_command("import", folder / "NIH.csv", "--source", "NIH", "--frame", "image", "--home", home)
    cxu_command("filter", "--max-std", "0.45", "--unit", "image", "--home", home)
    return Home(home).open()


CLEAR = picture("""
    ............
    .1111..2222.
    .1111..2222.
    .1111..2222.
    .1111..2222.
    .1111333322.
    .1111333322.
    .....3333...
    .....3333...
    ............
""")
CORNER = {
    "full": picture("""
        ............
        .1111..####.
        .1111..####.
        .1111..####.
        .1111..####.
        .111133####.
        .111133####.
        .....3333...
        .....3333...
        ............
    """),
    # the triangle of the three confident corners
    "confident": picture("""
        ............
        .1111..####.
        ..111..####.
        ..111..####.
        ...11..####.
        ...1133####.
        ....133####.
        .....3333...
        .....3333...
        ............
    """),
    # 2.8 * 0.5 = 1.4 px at the uncertain corner, 2.8 * 0.4 = 1.12 px at its neighbours
    "ignore": picture("""
        .#..........
        ###11..####.
        ###11..####.
        ###11..####.
        ###11..####.
        #####33####.
        ######3####.
        .####3333...
        .....3333...
        ............
    """),
}


@pytest.mark.parametrize("policy", ["confident", "full", "ignore"])
def test_labels_of_the_three_rows(by_hand, tmp_path, policy):
    report = draw(by_hand, tmp_path / "out", policy)
    assert (report.rows, report.files, report.failures) == (2, 2, [])
    assert report.unusable == {"right_lung": 0, "left_lung": 1, "heart": 0}
    written = {path.name: read_png(path) for path in (tmp_path / "out/chestxray8").iterdir()}
    assert sorted(written) == ["clear.png", "corner.png"]
    np.testing.assert_array_equal(written["clear.png"], CLEAR)
    np.testing.assert_array_equal(written["corner.png"], CORNER[policy])


def test_probabilities_of_the_three_rows(by_hand, tmp_path):
    draw(by_hand, tmp_path / "out", "probability", "organs")
    names = sorted(path.name for path in (tmp_path / "out/chestxray8").iterdir())
    clear = [f"clear.{name}.png" for name in sorted(ORGAN_NAMES)]
    assert names == [*clear, "corner.heart.png", "corner.right_lung.png"]
    # line 3 of the right lung from x = 0: the edge at 4 has sigma 0.4, that at 1 0.44 there, three fifths from its
    # uncertain end: 255 Φ(±1 / 0.4) = 253.4, 1.6 and 255 Φ(±1 / 0.44) = 252.1, 2.9
    plane = read_png(tmp_path / "out/chestxray8/corner.right_lung.png")
    assert plane[3, :7].tolist() == [3, 128, 252, 253, 128, 2, 0]


@pytest.mark.parametrize(("policy", "ratio"), [("confident", 0.5), ("full", 1), ("ignore", 8 / 24)])
def test_index_of_the_three_rows(by_hand, tmp_path, policy, ratio):
    draw(by_hand, tmp_path / "out", policy)
    lines = index_of(tmp_path / "out")
    assert [(line["source"], line["image_id"], line["organ"]) for line in lines] == [
        ("chestxray8", image_id, name) for image_id in ("clear", "corner") for name in ORGAN_NAMES
    ]
    assert {line["path"] for line in lines} == {"chestxray8/clear.png", "chestxray8/corner.png"}
    assert [line["usable"] for line in lines] == [True, True, True, True, False, True]
    assert [line["area_ratio"] for line in lines] == pytest.approx([1, 1, 1, ratio, 0, 1])
    assert list(lines[0]) == ["source", "image_id", "organ", "path", "usable", "area_ratio", "crosses_itself"]


def test_index_and_report_say_which_contours_cross_themselves(tmp_path):
    landmarks = np.stack([tiny_chest()] * 3)
    landmarks[1, [14, 28]] = landmarks[1, [28, 14]]  # of the right lung
    landmarks[2, [60, 75]] = landmarks[2, [75, 60]]  # of the left lung
    usable = np.array([[True, True, True], [True, True, True], [True, False, True]])
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(3, landmarks_xy=landmarks, usable=usable))
    report = draw(stored, tmp_path / "out", "full")
    crossing = [(line["image_id"], line["organ"]) for line in index_of(tmp_path / "out") if line["crosses_itself"]]
    assert crossing == [("image0001", "right_lung")]  # an unusable organ is not said to
    assert report.crossing == {"right_lung": 1, "left_lung": 0, "heart": 0}


def test_index_has_no_path_where_an_organ_is_drawn_nowhere(by_hand, tmp_path):
    for format_, expected in {
        "organs": "chestxray8/corner.{}.png",
        "rle": "masks/part-00000.parquet",
    }.items():
        draw(by_hand, tmp_path / format_, "full", format_)
        paths = {line["organ"]: line["path"] for line in index_of(tmp_path / format_) if line["image_id"] == "corner"}
        assert paths == {name: None if name == "left_lung" else expected.format(name) for name in ORGAN_NAMES}


def test_the_same_rows_without_a_selection_are_usable_throughout(by_hand, tmp_path):
    home = Home(by_hand.paths[0].parents[1])
    report = draw(home.open("chestxray8"), tmp_path / "out", "confident")
    assert (report.rows, sum(report.unusable.values())) == (3, 0)
    for name in ("clear", "corner", "lost"):
        np.testing.assert_array_equal(read_png(tmp_path / f"out/chestxray8/{name}.png"), CLEAR)


# --- sizes and frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "shape_hw", "right_lung"),
    [
        # the right lung has its corners at (1, 1) and (4, 6)
        (Target(), (10, 12), (1, 1, 4, 6)),
        (Target(longest=24), (20, 24), (2, 2, 8, 12)),
        (Target(longest=6), (5, 6), (0, 0, 2, 3)),  # 0.5 is rounded to even
        (Target(size_hw=(40, 12)), (40, 12), (1, 4, 4, 24)),
        (Target(longest=1), (1, 1), (0, 0, 0, 0)),
    ],
)
def test_sizes(tmp_path, target, shape_hw, right_lung):
    stored = store_rows(tmp_path / "t.parquet", tiny_rows())
    draw(stored, tmp_path / "out", "full", "organs", target)
    plane = read_png(tmp_path / "out/chestxray8/image0000.right_lung.png")
    expected = np.zeros(shape_hw, np.uint8)
    left, top, right, bottom = right_lung
    expected[top : bottom + 1, left : right + 1] = 1
    np.testing.assert_array_equal(plane, expected)


def test_sigma_is_scaled_with_the_mask(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(confident=~last_corner(RIGHT_LUNG)))
    draw(stored, tmp_path / "out", "ignore", "organs", Target(longest=48))
    plane = read_png(tmp_path / "out/chestxray8/image0000.right_lung.png")
    # 2.8 * 0.5 * 4 = 5.6 px on either side of the edge at 4
    assert np.flatnonzero(plane[12] == 255).tolist() == list(range(10))


def test_a_row_that_does_not_know_its_size_is_listed(tmp_path):
    rows = tiny_rows(3, height=pa.array([10, None, 10], pa.int32()))
    report = draw(store_rows(tmp_path / "t.parquet", rows), tmp_path / "out")
    assert report.rows == 2
    (failure,) = report.failures
    assert (failure.source, failure.image_id) == ("chestxray8", "image0001")
    assert "does not know its height and width" in failure.reason
    assert "--frame model" in failure.reason
    assert {line["image_id"] for line in index_of(tmp_path / "out")} == {"image0000", "image0002"}


def test_landmarks_that_are_nowhere_are_listed(tmp_path):
    landmarks = np.stack([tiny_chest(), np.where(np.arange(240).reshape(120, 2) == 7, np.nan, tiny_chest())])
    rows = tiny_rows(2, landmarks_xy=landmarks.astype(np.float32))
    report = draw(store_rows(tmp_path / "t.parquet", rows), tmp_path / "out")
    assert [str(failure) for failure in report.failures] == [
        "chestxray8 image0001: landmarks that are no number, or beyond 1,000,000 px"
    ]


def both_frames(path):
    rows = [tiny_rows(2, frame=frame, image_id=["a", "b"]) for frame in ("model", "image")]
    return store_rows(path, pa.concat_tables(rows))


def test_an_image_in_both_frames_asks_for_a_frame(tmp_path):
    stored = both_frames(tmp_path / "t.parquet")
    with pytest.raises(DuplicateIdError, match=r"2 images stand more than once .*chestxray8 a first.*--frame model"):
        plan(stored, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = draw(stored, tmp_path / "out", frame="image")
    assert report.rows == 2
    with pytest.raises(OutputExistsError, match='frame was "image", now "model"'):
        draw(stored, tmp_path / "out", frame="model")


def test_a_frame_of_which_there_are_no_rows_is_refused(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", tiny_rows())
    with pytest.raises(UsageError, match=r"no row of .* is in the model frame"):
        plan(stored, tmp_path / "out", frame="model")
    # one of which all are changes nothing
    assert plan(stored, tmp_path / "out", frame="image").record == plan(stored, tmp_path / "out").record


def test_an_image_that_stands_twice_is_refused(tmp_path):
    # also where the ids are so short that Python keeps a single copy of them
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(3, image_id=["a", "b", "a"]), group_rows=2)
    for format_ in ("labels", "rle"):
        with pytest.raises(DuplicateIdError, match="1 images stand more than once"):
            plan(stored, tmp_path / "out", "full", format_)


def test_an_empty_selection_has_an_empty_index(tmp_path):
    for format_ in ("labels", "rle", "tar"):
        report = draw(store_rows(tmp_path / "t.parquet", tiny_rows(0)), tmp_path / format_, "full", format_)
        assert (report.rows, report.files, report.failures) == (0, 0, [])
        assert index_of(tmp_path / format_) == []
        assert sorted(tree(tmp_path / format_)) == ["cxu.json", "index.parquet"]


# --- what the rows must have -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "format_"), [("ignore", "labels"), ("probability", "organs")])
def test_rows_without_sigma_are_refused_before_anything_is_written(tmp_path, policy, format_):
    rows = tiny_rows(3)
    sigma = pa.array([None, *rows["sigma_xy"].to_pylist()[1:]], rows.schema.field("sigma_xy").type)
    rows = rows.set_column(rows.schema.get_field_index("sigma_xy"), rows.schema.field("sigma_xy"), sigma)
    stored = store_rows(tmp_path / "t.parquet", rows)
    with pytest.raises(
        UsageError, match=f"--policy {policy} needs standard deviations, and 1 of 3 rows .*--policy full"
    ):
        plan(stored, tmp_path / "out", policy, format_)
    assert not (tmp_path / "out").exists()
    assert draw(stored, tmp_path / "out", "full").rows == 3


def test_kept_samples_are_drawn_where_there_are_some(tmp_path):
    samples = np.stack([tiny_chest(), tiny_chest() + 2]).astype(np.float32).ravel()
    column = pa.array([samples.tolist(), None], pa.list_(pa.float32()))
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(2, samples_xy=column))
    draw(stored, tmp_path / "out", "probability", "organs")
    sampled, by_sigma = (read_png(tmp_path / f"out/chestxray8/image000{n}.right_lung.png") for n in (0, 1))
    assert sampled[1:9, 3].tolist() == [128, 128, 255, 255, 255, 255, 128, 128]
    assert by_sigma[3, :7].tolist() == [6, 128, 249, 249, 128, 6, 0]


def test_a_row_with_neither_samples_nor_sigma_is_refused(tmp_path):
    samples = pa.array([tiny_chest().ravel().tolist(), None], pa.list_(pa.float32()))
    sigma = pa.array([None, None], pa.list_(pa.float32(), 240))
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(2, samples_xy=samples, sigma_xy=sigma))
    with pytest.raises(UsageError, match="1 of 2 rows"):
        plan(stored, tmp_path / "out", "probability", "organs")
    with pytest.raises(UsageError, match="2 of 2 rows"):
        plan(stored, tmp_path / "out", "ignore")


# --- paths -----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../etc/passwd",
    "..",
    "/etc/passwd",
    "C:\\Windows\\system32",
    "C:/Windows",
    "a\\..\\..\\b",
    "nul\0byte",
    "CON",
    "aux.png",
    "trailing.",
    "~root",
    "a" * 300,
    "é" * 150,
    "x!y.tar!z",
    "percent%2E%2E",
    "new\nline",
    " ",
]


@pytest.mark.parametrize("format_", ["labels", "organs", "npz", "rle", "tar"])
def test_hostile_ids_stay_in_the_folder(tmp_path, format_):
    stored = store_rows(tmp_path / "in/t.parquet", tiny_rows(len(HOSTILE), image_id=HOSTILE))
    out = tmp_path / "in/deep/out"
    report = draw(stored, out, "full", format_)
    assert (report.rows, report.failures) == (len(HOSTILE), [])
    files = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / "in/t.parquet"}
    assert all(path.is_relative_to(out) for path in files)
    assert report.files == len(files) - 3  # cxu.json, index.parquet and the lines of the block
    assert report.bytes == sum(path.stat().st_size for path in files if ".cxu" not in path.parts and path.parent != out)
    lines = index_of(out)
    assert [line["image_id"] for line in lines] == [image_id for image_id in HOSTILE for _ in ORGAN_NAMES]
    for line in lines:
        assert (out / (line["path"].split("!")[0] if format_ == "tar" else line["path"])).is_file()
    # the same command finds every one of them again
    assert draw(stored, out, "full", format_).resumed_rows == len(HOSTILE)
    for path in files:
        assert all(len(part.encode()) <= 255 for part in path.relative_to(out).parts)


def test_ids_keep_their_own_folders_and_dots(tmp_path):
    ids = ["train/patient1/study1/view1_frontal.jpg", "1.2.840.113", "a.PNG", "x.nii"]
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(4, image_id=ids))
    draw(stored, tmp_path / "out")
    names = {name.removeprefix("chestxray8/") for name in tree(tmp_path / "out") if name.startswith("chestxray8/")}
    assert names == {"train/patient1/study1/view1_frontal.png", "1.2.840.113.png", "a.png", "x.nii.png"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("a/b", "a//b"), ("a", "a.png"), ("image", "IMAGE"), ("straße", "STRASSE"), ("a.jpg", "a.dcm"), ("a ", "a%20")],
)
def test_two_rows_for_one_path_are_refused_before_anything_is_written(tmp_path, first, second):
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(2, image_id=[first, second]), group_rows=1)
    is_one = not first.endswith(" ")  # percent signs are escaped themselves: these are two
    for format_ in ("labels", "organs", "npz", "tar") if is_one else ():
        with pytest.raises(UsageError, match=r"two rows would be written to .* one file on many systems"):
            plan(stored, tmp_path / "out", "full", format_)
    assert not (tmp_path / "out").exists()
    # rows of one Parquet file need no path of their own
    assert draw(stored, tmp_path / "out", "full", "rle" if is_one else "labels").rows == 2


def test_sources_have_folders_of_their_own(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(2, source=["mimic", "vindr"], image_id=["a", "a"]))
    draw(stored, tmp_path / "out")
    assert {"mimic/a.png", "vindr/a.png"} <= set(tree(tmp_path / "out"))


# --- coming back -----------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    """Eleven rows in shards of four."""
    return store_rows(tmp_path / "many.parquet", tiny_rows(11, confident=~last_corner(RIGHT_LUNG)), group_rows=4)


EVERY_FORMAT = ["labels", "organs", "npz", "rle", "tar"]


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_the_same_command_finds_everything_done(many, tmp_path, format_):
    assert draw(many, tmp_path / "out", "full", format_).resumed_rows == 0
    before = tree(tmp_path / "out")
    steps = []
    again = draw(many, tmp_path / "out", "full", format_, progress=steps.append)
    assert (again.rows, again.resumed_rows, steps) == (11, 11, [4, 4, 3])
    assert tree(tmp_path / "out") == before
    masks = [content for name, content in before.items() if name.startswith(("chestxray8/", "masks/"))]
    assert (again.files, again.bytes) == (len(masks), sum(map(len, masks)))


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_a_deleted_mask_is_drawn_again(many, tmp_path, format_):
    draw(many, tmp_path / "out", "full", format_)
    before = tree(tmp_path / "out")
    masks = sorted(name for name in before if name.startswith(("chestxray8/", "masks/")))
    (tmp_path / "out" / masks[-1]).unlink()
    again = draw(many, tmp_path / "out", "full", format_)
    assert again.resumed_rows == 8
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("format_", ["labels", "rle", "tar"])
def test_two_workers_write_what_one_does(many, tmp_path, format_):
    one = draw(many, tmp_path / "one", "full", format_)
    assert draw(many, tmp_path / "two", "full", format_, workers=2) == one
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("rows_a_block", [1, 3, 1000])
def test_blocks_do_not_show(many, tmp_path, monkeypatch, rows_a_block):
    draw(many, tmp_path / "a", "ignore")
    monkeypatch.setattr(maskplan, "BLOCK_ROWS", rows_a_block)
    draw(many, tmp_path / "b", "ignore")
    assert index_of(tmp_path / "a") == index_of(tmp_path / "b")
    assert (tmp_path / "a/cxu.json").read_bytes() == (tmp_path / "b/cxu.json").read_bytes()
    masks = [{name: bytes_ for name, bytes_ in tree(tmp_path / x).items() if name.startswith("chest")} for x in "ab"]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 11


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_interrupted_at_any_row_and_continued(many, tmp_path, monkeypatch, format_):
    draw(many, tmp_path / "whole", "full", format_)
    whole = tree(tmp_path / "whole")
    real = maskplan.Block.read
    for stop_at in range(3):
        out, calls = tmp_path / f"out{stop_at}", []

        def read(block, columns, calls=calls, stop_at=stop_at):
            calls.append(block)
            if len(calls) == stop_at + 1:
                raise KeyboardInterrupt
            return real(block, columns)

        with monkeypatch.context() as patch:
            patch.setattr(maskplan.Block, "read", read)
            with pytest.raises(KeyboardInterrupt):
                draw(many, out, "full", format_)
        assert not (out / "index.parquet").exists()
        assert draw(many, out, "full", format_).resumed_rows == 4 * stop_at
        assert tree(out) == whole


def test_another_command_there_is_refused_and_named(many, tmp_path):
    draw(many, tmp_path / "out", "full")
    before = tree(tmp_path / "out")
    other_rows = store_rows(tmp_path / "other.parquet", tiny_rows(3))
    for refused, said in {
        lambda: draw(many, tmp_path / "out", "ignore"): 'policy was "full", now "ignore"',
        lambda: draw(many, tmp_path / "out", "full", "npz"): 'format was "labels", now "npz"',
        lambda: draw(many, tmp_path / "out", "full", target=Target(longest=5)): "longest was null, now 5",
        lambda: draw(other_rows, tmp_path / "out", "full"): "the table was .*many.parquet, now .*other.parquet",
    }.items():
        with pytest.raises(OutputExistsError, match=said):
            refused()
    assert tree(tmp_path / "out") == before


def test_a_selection_that_changed_is_another_command(many, tmp_path):
    draw(many, tmp_path / "out", "full")
    changed = store_rows(tmp_path / "many.parquet", tiny_rows(12))
    with pytest.raises(OutputExistsError, match=r"the table .*many\.parquet has changed"):
        draw(changed, tmp_path / "out", "full")


def test_another_version_is_another_command(many, tmp_path, monkeypatch):
    draw(many, tmp_path / "out", "full")
    monkeypatch.setattr(cxu, "__version__", "99.0")
    with pytest.raises(OutputExistsError, match=r'cxu_version was ".*", now "99\.0"'):
        draw(many, tmp_path / "out", "full")
    report = draw(many, tmp_path / "out", "full", overwrite=True)
    assert (report.rows, report.resumed_rows) == (11, 0)


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_overwriting_leaves_what_a_fresh_folder_has_and_foreign_files(many, tmp_path, format_):
    out = tmp_path / "out"
    draw(many, out, "confident", format_)
    (out / "chestxray8").mkdir(exist_ok=True)
    (out / "chestxray8/notes.txt").write_text("mine")
    report = draw(many, out, "full", "labels", overwrite=True)
    assert report.resumed_rows == 0
    draw(many, tmp_path / "fresh", "full", "labels")
    assert tree(out) == {**tree(tmp_path / "fresh"), "chestxray8/notes.txt": b"mine"}


def test_overwriting_takes_away_a_block_that_was_cut_short(many, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def cut(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("cxu.maskfolder.MaskFolder.finish", cut)
        with pytest.raises(SystemExit):
            draw(many, out, "confident", "organs")
    assert len(list(out.rglob("*.png"))) == 12
    draw(many, out, "full", "labels", overwrite=True)
    draw(many, tmp_path / "fresh", "full", "labels")
    assert tree(out) == tree(tmp_path / "fresh")


def test_images_are_never_overwritten_by_masks(tmp_path):
    image = tmp_path / "images/chestxray8/image0000.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"precious")
    stored = store_rows(tmp_path / "t.parquet", tiny_rows())
    with pytest.raises(OutputExistsError, match="not empty"):
        draw(stored, tmp_path / "images")
    with pytest.raises(OutputExistsError, match="was not written by cxu rasterize"):
        draw(stored, tmp_path / "images", overwrite=True)
    assert image.read_bytes() == b"precious"


def test_the_record_says_what_was_asked_and_of_what(many, tmp_path):
    draw(many, tmp_path / "out", "ignore", target=Target(longest=24))
    record = json.loads((tmp_path / "out/cxu.json").read_text())
    assert record["command"] == "rasterize"
    assert record["options"] == {"policy": "ignore", "format": "labels", "band": 2.8, "unusable": "ignore"}
    assert record["target"] == {"images": [], "size_hw": None, "longest": 24, "layout": "ids"}
    assert record["provenance"] == {"repo": [], "revision": [], "model_id": ["published"], "seed": []}
    assert (record["table"], record["table_name"]) == (many.digest, many.name)
    assert record["cxu_version"] == cxu.__version__


# --- how it is done --------------------------------------------------------------------------------------------------


def test_number_and_size_of_files(many, tmp_path):
    for format_, files in {"labels": 11, "npz": 11, "organs": 33}.items():
        planned = plan(many, tmp_path / format_, "full", format_)
        assert planned.n_files == files
        report = rasterize_table(planned)
        # the rows are all alike
        assert estimate_bytes(planned) == report.bytes
        assert report.files == files
    assert {plan(many, tmp_path / "x", "full", format_).n_files for format_ in ("rle", "tar")} == {3}


def test_size_is_estimated_from_the_first_row_that_can_be_drawn(tmp_path):
    rows = tiny_rows(3, height=pa.array([None, 10, 10], pa.int32()))
    planned = plan(store_rows(tmp_path / "t.parquet", rows), tmp_path / "out")
    rasterize_table(planned)
    assert estimate_bytes(planned) == 3 * (tmp_path / "out/chestxray8/image0001.png").stat().st_size
    nothing = plan(store_rows(tmp_path / "n.parquet", tiny_rows(1, height=None)), tmp_path / "n")
    assert estimate_bytes(nothing) == 0


def kill_worker(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class KillingTuple(tuple):
    """A tuple that kills the process it is unpickled in: a worker that dies of a task."""

    def __reduce__(self):
        return kill_worker, ()


def test_a_killed_worker_says_how_to_continue(many, tmp_path):
    planned = plan(many, tmp_path / "out", "full")
    blocks = [
        maskplan.Block(b.name, b.shard, b.rows, KillingTuple(b.stems), b.images) if b.name.endswith("2") else b
        for b in planned.blocks
    ]
    dying = maskplan.MaskPlan(planned.out, planned.options, planned.target, tuple(blocks), planned.record)
    with pytest.raises(WorkerError, match="run the same command again to continue, with fewer --workers"):
        rasterize_table(dying, workers=2)
    report = rasterize_table(planned, workers=2)
    assert report.rows == 11
    draw(many, tmp_path / "whole", "full")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_failures_come_from_every_block_in_order(tmp_path):
    height = [None if n in (1, 6, 10) else 10 for n in range(11)]
    stored = store_rows(tmp_path / "t.parquet", tiny_rows(11, height=pa.array(height, pa.int32())), group_rows=4)
    for workers in (1, 2):
        report = draw(stored, tmp_path / f"out{workers}", workers=workers)
        assert [failure.image_id for failure in report.failures] == ["image0001", "image0006", "image0010"]
        assert report.rows == 8
        # no block is finished: all are tried again
        assert draw(stored, tmp_path / f"out{workers}", workers=workers).resumed_rows == 0
    assert report.unusable == {"right_lung": 0, "left_lung": 0, "heart": 0}


def test_a_replaced_image_is_drawn_anew(tmp_path):
    path = tmp_path / "images" / "image0000.png"
    path.parent.mkdir()
    path.write_bytes(encode_png(np.full((20, 24), 9, np.uint8)))
    stored, target = store_rows(tmp_path / "rows.parquet", tiny_rows(source="vindr")), Target((str(path.parent),))
    draw(stored, tmp_path / "out", target=target)
    assert draw(stored, tmp_path / "out", target=target).resumed_rows == 1
    path.write_bytes(encode_png(np.full((30, 36), 9, np.uint8)))
    again = draw(stored, tmp_path / "out", target=target)
    assert again.resumed_rows == 0
    assert read_png(tmp_path / "out/vindr/image0000.png").shape == (30, 36)


def test_a_row_of_absurd_size_is_listed_and_the_others_drawn(tmp_path):
    rows = pa.concat_tables([tiny_rows(image_id=["big"], height=60_000, width=60_000), tiny_rows(image_id=["small"])])
    report = draw(store_rows(tmp_path / "rows.parquet", rows), tmp_path / "out")
    assert [failure.image_id for failure in report.failures] == ["big"]
    assert "at most 80,000,000 pixels" in report.failures[0].reason
    assert (report.rows, report.files) == (1, 1)
