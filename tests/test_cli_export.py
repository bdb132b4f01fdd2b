"""``cxu export``: what it prints and where, its files, its exit codes, and what Ctrl-C leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from builders import make_rows, published_csv, published_row
from cxu.cli import app
from cxu.errors import UsageError
from cxu.export.plan import ExportOptions
from film_helpers import save_film
from mask_helpers import store_rows, tiny_chest, tiny_rows

NO_OVERLAY = "Outlines are in the pixels of the rows; they do not overlay the original files without --images."
OUTS = {"coco": "x.json", "csv": "x.csv", "geojson": "x.geojson"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made_home(tmp_path_factory):
    """A home with three rows of ChestX-ray8 and the selection ``latest``, in which one left lung is unusable."""
    folder = tmp_path_factory.mktemp("made")
    std = ",".join(["1.00"] * 88 + ["9.00"] * 100 + ["1.00"] * 52)
    rows = [published_row("a.png"), published_row("b.png", **{"Landmarks (Std)": std}), published_row("c.png")]
    (folder / "NIH.csv").write_text(published_csv(rows))
    where = ("--home", folder / "cxu-data")
    assert cxu("import", folder / "NIH.csv", "--source", "chestxray8", *where).exit_code == 0
    assert cxu("filter", "--max-std", 5, *where).exit_code == 0
    return folder / "cxu-data"


@pytest.fixture
def home(made_home, tmp_path):
    """A home of the test's own, where commands look for it."""
    shutil.copytree(made_home, tmp_path / "cxu-data")
    return tmp_path / "cxu-data"


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save_images(*names):
    for name in names:
        path = Path("images") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((1024, 1024), 90, np.uint8)).save(path)


# --- exit 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["coco", "geojson"])
def test_the_latest_selection_is_exported(home, format_):
    done = cxu("export", "--format", format_, "--out", OUTS[format_])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:5] == [
        "organ       usable  unusable",
        "right_lung       3         0",
        "left_lung        2         1",
        "heart            3         0",
        "",
    ]
    assert done.stdout.splitlines()[5].startswith("3 rows, 1 file, ")
    assert done.stdout.endswith(f" kB in {OUTS[format_]}\n")
    said = done.stderr.splitlines()
    assert said[0].startswith("home cxu-data · selection latest: 3 rows, made ")
    assert said[-1] == NO_OVERLAY
    assert "warning" not in done.stderr


def test_a_source_and_a_file_are_exported_too(home):
    store_rows(Path("mine.parquet"), tiny_rows(2))
    for table, n_rows in (("chestxray8", 3), ("mine.parquet", 2)):
        done = cxu("export", table, "--format", "coco", "--policy", "full", "--out", f"{n_rows}.json")
        assert done.exit_code == 0
        assert len(COCO(f"{n_rows}.json").imgs) == n_rows
        assert "warning" not in done.stderr


def test_without_a_limit_it_says_that_every_node_is_drawn(home):
    done = cxu("export", "chestxray8", "--format", "coco", "--out", "x.json")
    assert "warning: no limit of uncertainty was set, so every node counts as confident" in done.stderr


def test_csv_says_what_it_cannot_hold(home):
    done = cxu("export", "--format", "csv", "--out", "x.csv")
    assert done.exit_code == 0
    assert "warning: 1 unusable organs are in the file like the others" in done.stderr
    assert NO_OVERLAY not in done.stderr
    assert cxu("import", "x.csv", "--source", "chestxray8", "--home", "again").exit_code == 0


def test_json_is_the_only_thing_on_stdout(home):
    done = cxu("export", "--format", "coco", "--rle", "--out", "out/x.json", "--json")
    assert json.loads(done.stdout) == {
        "out": "out/x.json",
        "format": "coco",
        "rows": 3,
        "files": 1,
        "bytes": Path("out/x.json").stat().st_size,
        "paths": ["out/x.json"],
        "resumed_rows": 0,
        "organs": {"right_lung": 3, "left_lung": 2, "heart": 3},
        "unusable": {"right_lung": 0, "left_lung": 1, "heart": 0},
        "crossing": {"right_lung": 0, "left_lung": 0, "heart": 0},
        "assumed": 0,
        "left_out": 0,
        "failures": 0,
        "overlays_images": False,
    }


def test_every_run_has_a_manifest(home):
    cxu("export", "--format", "geojson", "--nodes", "--out", "x.geojson")
    (path,) = (home / "runs").glob("*-export.json")
    manifest = json.loads(path.read_text())
    assert (manifest["command"], manifest["table"], manifest["rows"]) == ("export", "latest", 3)
    assert (manifest["failed"], manifest["left_out_rows"]) == ([], [])
    assert manifest["options"]["thresholds"]["max_std"]["heart"] == "5 px"
    assert manifest["options"]["nodes"] is True


def test_with_images_nothing_is_said_of_overlaying(home):
    save_images("x/a.png", "b.png", "c.png")
    done = cxu("export", "--format", "coco", "--out", "x.json", "--images", "images", "--workers", "2")
    assert done.exit_code == 0
    assert NO_OVERLAY not in done.stderr
    names = {image["file_name"] for image in json.loads(Path("x.json").read_bytes())["images"]}
    assert names == {"x/a.png", "b.png", "c.png"}


def test_dicom_films(home):
    for name in "abc":
        save_film(Path(f"images/{name}.dcm"), shape_hw=(1024, 1024))
    for resumed in (False, True):
        done = cxu("export", "--format", "dicomseg", "--out", "seg", "--images", "images")
        assert done.exit_code == 0
        assert done.stdout.splitlines()[5].startswith("3 rows, 3 files, ")
        assert done.stdout.endswith(" MB in seg\n")
        assert ("3 rows were already exported" in done.stderr) is resumed
    assert sorted(path.name for path in Path("seg/chestxray8").iterdir()) == ["a.dcm", "b.dcm", "c.dcm"]


def test_rows_without_a_usable_organ_are_named_and_no_failure(tmp_path):
    usable = np.array([[True, True, True], [False, False, False]])
    store_rows(tmp_path / "t.parquet", tiny_rows(2, usable=usable))
    done = cxu("export", "t.parquet", "--format", "coco", "--out", "x.json", "--json")
    assert done.exit_code == 0
    assert "1 rows are left out, none of their organs is usable:\n  chestxray8 image0001\n" in done.stderr
    assert json.loads(done.stdout)["left_out"] == 1
    (path,) = Path("cxu-data/runs").glob("*-export.json")
    assert json.loads(path.read_text())["left_out_rows"] == [["chestxray8", "image0001"]]


def test_places_that_are_assumed_and_outlines_that_cross_are_warned_of(tmp_path):
    landmarks = tiny_chest()[None] * 100
    landmarks[0, 94:] = np.repeat([[500, 500], [800, 800], [800, 500], [500, 800]], [8, 8, 6, 4], axis=0)
    store_rows(tmp_path / "t.parquet", make_rows(1, source="mine", image_id=["a.png"], landmarks_xy=landmarks))
    save_images("a.png")
    done = cxu("export", "t.parquet", "--format", "geojson", "--out", "x.geojson", "--images", "images")
    assert "warning: outlines that cross themselves: 1 × heart" in done.stderr
    assert "warning: 1 rows are of a source that does not say how its images became the model frame" in done.stderr


def test_frames_are_chosen(tmp_path):
    columns = {"frame": ["image", "model", "model"], "image_id": ["a", "a", "b"]}
    store_rows(tmp_path / "t.parquet", tiny_rows(3, **columns))
    done = cxu("export", "t.parquet", "--format", "coco", "--out", "x.json", "--frame", "model", "--json")
    assert json.loads(done.stdout)["rows"] == 2
    assert cxu("export", "t.parquet", "--format", "coco", "--out", "y.json").exit_code == 1


# --- exit 1 ----------------------------------------------------------------------------------------------------------


def test_exit_1_where_the_table_is_damaged(tmp_path):
    store_rows(tmp_path / "t.parquet", tiny_rows(2))
    Path("t.parquet").write_bytes(Path("t.parquet").read_bytes()[:-50])
    done = cxu("export", "t.parquet", "--format", "coco", "--out", "x.json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("cxu: error: t.parquet is no readable Parquet file")


def test_exit_1_where_the_file_cannot_be_written(home):
    Path("blocked").write_text("")
    done = cxu("export", "--format", "coco", "--out", "blocked/x.json")
    assert done.exit_code == 1
    assert "blocked" in done.stderr.splitlines()[-1]


def test_exit_1_without_highdicom(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    done = cxu("export", "--format", "dicomseg", "--out", "seg", "--images", ".")
    assert done.exit_code == 1
    assert "cxu: error: --format dicomseg needs highdicom: pip install 'cxu[dicomseg]'" in done.stderr


# --- exit 2 ----------------------------------------------------------------------------------------------------------

REFUSED = [
    (["--format", "coco", "--out", "x.csv"], "--out x.csv: --format coco writes a file .json"),
    (["--format", "coco", "--out", "x"], "writes a file .json"),
    (["--format", "geojson", "--out", "x.csv"], "writes a file .geojson or .json or .geojsonl"),
    (["--format", "csv", "--out", "x.json"], "writes a file .csv, or a folder"),
    (["--format", "dicomseg", "--out", "x.dcm", "--images", "."], "writes a folder"),
    (["--format", "dicomseg", "--out", "x"], "--format dicomseg needs --images"),
    (["--format", "csv", "--out", "x.csv", "--images", "."], "--images does not go with --format csv"),
    (
        ["--format", "csv", "--out", "x.csv", "--policy", "confident"],
        "--policy confident does not go with --format csv",
    ),
    (["--format", "csv", "--out", "x.csv", "--rle"], "--rle goes with --format coco only, not with csv"),
    (["--format", "coco", "--out", "x.json", "--exact"], "--exact goes with --format csv only"),
    (["--format", "coco", "--out", "x.json", "--nodes"], "--nodes goes with --format geojson only"),
    (["nothing", "--format", "coco", "--out", "x.json"], "no table, selection or source called 'nothing'"),
    (["--format", "coco", "--out", "x.json", "--images", "gone"], "gone does not exist"),
    (["--format", "coco", "--out", "cxu-data/x.json", "--frame", "image"], "no row of latest is in the image frame"),
    (["--format", "coco", "--out", "taken.json"], "taken.json is there: choose another --out"),
    (["--format", "dicomseg", "--out", "cxu-data", "--images", "images"], "cxu-data is not empty"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_exit_2_where_the_request_is_wrong(home, arguments, said):
    Path("taken.json").write_text("mine")
    save_images("a.png")
    before = sorted(path for path in Path().rglob("*") if "cache" not in path.parts)
    done = cxu("export", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before


@pytest.mark.parametrize("arguments", [["--out", "x.json"], ["--format", "coco"], ["--format", "voc", "--out", "x"]])
def test_exit_2_where_options_are_missing_or_unknown(home, arguments):
    assert cxu("export", *arguments).exit_code == 2


def test_exit_2_without_anything_to_export():
    done = cxu("export", "--format", "coco", "--out", "x.json")
    assert done.exit_code == 2
    assert "no selection yet in cxu-data" in done.stderr


def test_unknown_words_are_refused_in_python_too():
    with pytest.raises(UsageError, match="format 'voc' is unknown; expected coco, csv, dicomseg, geojson"):
        ExportOptions("voc")
    with pytest.raises(UsageError, match="--policy ignore: an export holds outlines; expected confident or full"):
        ExportOptions("coco", "ignore")


def test_overwrite_replaces_a_file(home):
    Path("x.json").write_text("mine")
    assert cxu("export", "--format", "coco", "--out", "x.json", "--overwrite").exit_code == 0
    assert json.loads(Path("x.json").read_bytes())["images"]


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_exit_3_where_rows_could_not_be_exported(home):
    save_images("a.png")
    done = cxu("export", "--format", "coco", "--out", "x.json", "--images", "images", "--json")
    assert done.exit_code == 3
    content = json.loads(done.stdout)
    assert (content["rows"], content["failures"]) == (1, 2)
    assert "2 rows could not be exported:\n  chestxray8 b: no image of this id" in done.stderr
    (path,) = (home / "runs").glob("*-export.json")
    assert [failed[1] for failed in json.loads(path.read_text())["failed"]] == ["b", "c"]
    assert len(json.loads(Path("x.json").read_bytes())["images"]) == 1


def test_exit_3_where_films_are_no_dicom(home):
    save_images("a.png", "b.png")
    save_film(Path("images/c.dcm"), shape_hw=(1024, 1024))
    done = cxu("export", "--format", "dicomseg", "--out", "seg", "--images", "images")
    assert done.exit_code == 3
    assert "a.png is a PNG file: a segmentation belongs to a DICOM file" in done.stderr
    assert [path.name for path in Path("seg/chestxray8").iterdir()] == ["c.dcm"]


# --- exit 130 --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
@pytest.mark.parametrize(("format_", "workers"), [("coco", 1), ("csv", 2)])
def test_ctrl_c_leaves_no_file_and_the_same_command_continues(tmp_path, format_, workers):
    n_rows = 1_000  # seconds of work: on a busy machine the signal comes late
    rows = make_rows(n_rows, image_id=[f"{number:06d}" for number in range(n_rows)])
    store_rows(tmp_path / "t.parquet", rows, group_rows=50)
    command = ["export", "t.parquet", "--format", format_, "--policy", "full", "--workers", str(workers), "--out"]
    out = Path("out", OUTS[format_])
    running = subprocess.Popen(
        [sys.executable, "-m", "cxu", *command, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        while len(list(Path("out").glob("*.parts/part-*"))) < 3:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        stdout, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, stdout) == (130, "")
    assert err.splitlines()[-1] == "cxu: interrupted. What is finished is kept: the same command continues."
    assert "Traceback" not in err
    assert [path.name for path in Path("out").iterdir()] == [f"{out.name}.parts"]
    done = cxu(*command, out)
    assert done.exit_code == 0
    assert " rows were already exported\n" in done.stderr
    assert [path.name for path in Path("out").iterdir()] == [out.name]
    assert cxu(*command, f"whole{out.suffix}").exit_code == 0
    assert out.read_bytes() == Path(f"whole{out.suffix}").read_bytes()


def test_what_a_killed_run_left_goes_with_the_next(home):
    leftover = Path(f".cxu-tmp-{2**22 + 1}@000000-x.json")  # of no process that runs
    other = Path(".cxu-tmp-1-y.json")
    for path in (leftover, other):
        path.write_text("part")
    os.utime(leftover, (0, 0))
    assert cxu("export", "--format", "coco", "--out", "x.json").exit_code == 0
    assert not leftover.exists()
    assert other.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
def test_ctrl_c_keeps_objects_that_are_finished_and_the_same_command_continues(tmp_path):
    ids = [f"{number:03d}.dcm" for number in range(150)]
    for name in ids:
        save_film(tmp_path / "films" / name)
    store_rows(tmp_path / "t.parquet", tiny_rows(len(ids), source="mine", image_id=ids), group_rows=10)
    command = ["export", "t.parquet", "--format", "dicomseg", "--images", "films", "--out", "seg"]
    running = subprocess.Popen(
        [sys.executable, "-m", "cxu", *command], stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        while not list(Path("seg/.cxu").glob("part-*.parquet")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert err.splitlines()[-1] == "cxu: interrupted. What is finished is kept: the same command continues."
    before = {path: path.read_bytes() for path in Path("seg/mine").glob("*.dcm")}
    assert 10 <= len(before) < 150
    done = cxu(*command, "--json")
    content = json.loads(done.stdout)
    assert (done.exit_code, content["rows"], content["files"]) == (0, 150, 150)
    assert content["resumed_rows"] == len(before) // 10 * 10
    assert {
        path: path.read_bytes() for path in before if path.name < f"{content['resumed_rows']:03d}"
    }.items() <= before.items()
    assert not list(Path("seg").rglob(".cxu-tmp-*"))
