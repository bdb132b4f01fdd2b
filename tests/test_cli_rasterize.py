"""``cxu rasterize``: what it prints and where, its exit codes, and what Ctrl-C leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import make_rows, published_csv, published_row
from cxu import rasterize, table
from cxu.anatomy import ORGAN_NAMES
from cxu.cli import app
from mask_helpers import read_png, store_rows, tiny_chest, tiny_rows, tree

NO_OVERLAY = "These masks are in the pixels of the rows; they do not overlay the original files without --images."


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path):
    """A home with three rows of ChestX-ray8 and the selection ``latest``, in which one left lung is unusable."""
    std = ",".join(["1.00"] * 88 + ["9.00"] * 100 + ["1.00"] * 52)
    rows = [published_row("a.png"), published_row("b.png", **{"Landmarks (Std)": std}), published_row("c.png")]
    Path("NIH.csv").write_text(published_csv(rows))
    assert cxu("import", "NIH.csv", "--source", "chestxray8").exit_code == 0
    assert cxu("filter", "--max-std", 5).exit_code == 0
    return tmp_path / "cxu-data"


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save_images(*names, shape_hw=(1024, 1024)):
    for name in names:
        path = Path("images") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(shape_hw, 90, np.uint8)).save(path)


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_the_latest_selection_is_drawn(home):
    done = cxu("rasterize", "--out", "masks/")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "organ       usable  unusable",
        "right_lung       3         0",
        "left_lung        2         1",
        "heart            3         0",
        "",
        done.stdout.splitlines()[5],
    ]
    assert done.stdout.splitlines()[5].startswith("3 rows, 3 files, ")
    assert done.stdout.endswith(" kB in masks\n")
    said = done.stderr.splitlines()
    assert said[0].startswith("home cxu-data · selection latest: 3 rows, made ")
    assert said[-1] == NO_OVERLAY
    assert set(np.unique(read_png("masks/chestxray8/b.png"))) == {0, 1, 3, 255}


@pytest.mark.parametrize("policy", ["confident", "ignore"])
def test_a_source_is_drawn_without_any_selection_and_says_so(home, policy):
    done = cxu("rasterize", "chestxray8", "--out", "masks", "--policy", policy)
    assert done.exit_code == 0
    assert "warning: no limit of uncertainty was set, so every node counts as confident" in done.stderr
    assert f"--policy {policy} draws what full does" in done.stderr
    assert set(np.unique(read_png("masks/chestxray8/b.png"))) == {0, 1, 2, 3}


def test_a_selection_without_a_limit_says_so_too(home):
    assert cxu("filter", "--min-rca", "0.5", "--name", "rca").exit_code == 0
    assert "warning: no limit of uncertainty was set" in cxu("rasterize", "rca", "--out", "masks").stderr


@pytest.mark.parametrize("arguments", [["chestxray8", "--policy", "full"], []])
def test_nothing_is_said_where_there_is_a_limit_or_none_is_needed(home, arguments):
    done = cxu("rasterize", *arguments, "--out", "masks")
    assert done.exit_code == 0
    assert "warning" not in done.stderr


def test_a_table_is_drawn_from_its_path(tmp_path):
    store_rows(tmp_path / "mine.parquet", tiny_rows(2))
    assert cxu("rasterize", "mine.parquet", "--out", "masks").exit_code == 0
    assert read_png("masks/chestxray8/image0001.png").shape == (10, 12)


def test_json_is_the_only_thing_on_stdout(home):
    done = cxu("rasterize", "--out", "masks", "--json")
    content = json.loads(done.stdout)
    assert content == {
        "out": "masks",
        "rows": 3,
        "files": 3,
        "bytes": sum(len(b) for name, b in tree(Path("masks")).items() if name.startswith("chestxray8")),
        "resumed_rows": 0,
        "unusable": {"right_lung": 0, "left_lung": 1, "heart": 0},
        "crossing": {"right_lung": 0, "left_lung": 0, "heart": 0},
        "assumed": 0,
        "failures": 0,
        "overlays_images": False,
    }


def test_the_same_command_says_what_was_already_drawn(home):
    cxu("rasterize", "--out", "masks")
    before = tree(Path("masks"))
    done = cxu("rasterize", "--out", "masks")
    assert done.exit_code == 0
    assert "3 rows were already drawn" in done.stderr
    assert "3 rows, 3 files" in done.stdout
    assert tree(Path("masks")) == before


def test_with_images_the_masks_overlay_and_nothing_is_said(home):
    save_images("x/a.png", "b.png", "c.png", shape_hw=(512, 512))
    done = cxu("rasterize", "--out", "masks", "--images", "images", "--layout", "images")
    assert done.exit_code == 0
    assert NO_OVERLAY not in done.stderr
    assert read_png("masks/x/a.png").shape == (512, 512)
    assert list((home / "cache").iterdir())


def test_every_run_has_a_manifest(home):
    cxu("rasterize", "--out", "masks")
    (path,) = (home / "runs").glob("*-rasterize.json")
    manifest = json.loads(path.read_text())
    assert manifest["command"] == "rasterize"
    assert (manifest["rows"], manifest["failed"]) == (3, [])
    assert manifest["record"] == json.loads(Path("masks/cxu.json").read_text())


@pytest.mark.parametrize(
    ("policy", "format_", "names"),
    [
        ("confident", "npz", ["a.npz", "b.npz", "c.npz"]),
        ("ignore", "organs", [f"{i}.{o}.png" for i in "abc" for o in ORGAN_NAMES if (i, o) != ("b", "left_lung")]),
        ("probability", "organs", [f"{i}.{o}.png" for i in "abc" for o in ORGAN_NAMES if (i, o) != ("b", "left_lung")]),
        ("full", "rle", ["part-00000.parquet"]),
        ("probability", "tar", ["part-00000.tar"]),
    ],
)
def test_formats(home, policy, format_, names):
    arguments = ["--size", 64, "--policy", policy, "--format", format_]
    assert cxu("rasterize", "--out", "masks", *arguments).exit_code == 0
    written = [Path(name) for name in tree(Path("masks")) if not name.startswith((".cxu", "cxu", "index"))]
    assert sorted(path.name for path in written) == sorted(names)
    folder = "masks" if format_ in {"rle", "tar"} else "chestxray8"
    assert {path.parent.as_posix() for path in written} == {folder}


@pytest.mark.parametrize(("size", "shape_hw"), [("100", (100, 100)), ("50x80", (50, 80)), ("50×80", (50, 80))])
def test_sizes(home, size, shape_hw):
    assert cxu("rasterize", "--out", "masks", "--size", size).exit_code == 0
    assert read_png("masks/chestxray8/a.png").shape == shape_hw


def test_an_unusable_organ_as_background(home):
    cxu("rasterize", "--out", "masks", "--unusable", "background")
    assert set(np.unique(read_png("masks/chestxray8/b.png"))) == {0, 1, 3}


def test_a_wider_band(home):
    areas = []
    for band in ("1", "5"):
        arguments = ["--policy", "ignore", "--format", "organs", "--band", band, "--out", f"masks{band}"]
        store_rows(Path("some.parquet"), tiny_rows(confident=np.arange(120) % 40 != 0))
        assert cxu("rasterize", "some.parquet", *arguments).exit_code == 0
        areas.append((read_png(f"masks{band}/chestxray8/image0000.right_lung.png") == 255).sum())
    assert areas[0] < areas[1]


def test_many_files_are_announced_with_their_size(home, monkeypatch):
    monkeypatch.setattr(rasterize, "MANY_FILES", 8)
    done = cxu("rasterize", "chestxray8", "--policy", "full", "--format", "organs", "--out", "organs")
    assert done.exit_code == 0
    size = f"{sum(path.stat().st_size for path in Path('organs').rglob('a.*.png')) * 3 / 1e3:,.1f} kB"
    assert f"9 files, about {size}: many file systems suffer; --format tar packs them" in done.stderr
    for format_ in ("labels", "tar", "rle"):
        done = cxu("rasterize", "chestxray8", "--policy", "full", "--format", format_, "--out", format_)
        assert "file systems" not in done.stderr


def test_contours_that_cross_themselves_are_warned_of(tmp_path):
    crossed = tiny_chest()
    crossed[[14, 28]] = crossed[[28, 14]]
    store_rows(tmp_path / "t.parquet", tiny_rows(2, landmarks_xy=np.stack([crossed, tiny_chest()])))
    done = cxu("rasterize", "t.parquet", "--out", "masks")
    assert "warning: contours that cross themselves: 1 × right_lung; listed in index.parquet" in done.stderr


def test_a_place_that_is_assumed_is_warned_of(tmp_path):
    save_images("1.png")
    rows = make_rows(1, source="mine", image_id=["1"])
    store_rows(tmp_path / "t.parquet", rows)
    done = cxu("rasterize", "t.parquet", "--out", "masks", "--images", "images")
    assert done.exit_code == 0
    assert "warning: 1 rows are of a source that does not say how its images became the model frame" in done.stderr


# --- exit 1 ----------------------------------------------------------------------------------------------------------


def test_exit_1_where_the_table_is_damaged(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    done = cxu("rasterize", "t.parquet", "--out", "masks")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: t.parquet is no readable Parquet file" in done.stderr


def test_exit_1_where_a_worker_is_killed(home, monkeypatch):
    from cxu.errors import WorkerError

    def killed(*_, **__):
        raise WorkerError("a worker process ended unexpectedly")

    monkeypatch.setattr(rasterize, "run_shards", killed)
    done = cxu("rasterize", "--out", "masks", "--workers", 2)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cxu: error: a worker process ended unexpectedly" in done.stderr


def test_exit_1_where_the_folder_cannot_be_made(home):
    Path("file").write_text("")
    done = cxu("rasterize", "--out", "file/masks")
    assert done.exit_code == 1
    assert "cxu: error: " in done.stderr


# --- exit 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "probability"], "--policy probability cannot be written as labels; take organs or npz or tar"),
        (["--policy", "probability", "--format", "rle"], "cannot be written as rle; take organs or npz or tar"),
        (["--policy", "ignore", "--format", "rle"], "cannot be written as rle; take labels or organs or npz or tar"),
        (["--policy", "best"], "'best' is not one of"),
        (["--format", "gif"], "'gif' is not one of"),
        (["--band", "-1"], "--band -1.0: expected a number of standard deviations, 0 or more"),
        (["--size", "big"], "--size 'big': expected a number such as 512, or height x width such as 512x448"),
        (["--size", "0"], "--size 0: expected sides of 1 to 8,944 px"),
        (["--size", "512", "--images", "."], "--size does not go with --images"),
        (["--layout", "images"], "--layout images mirrors the image tree, and needs --images"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--images", ""], "--images is blank"),
        (["--workers", "0"], "--workers"),
        (["--frame", "image"], "no row of latest is in the image frame"),
        (["nothing"], "no table, selection or source called 'nothing'"),
        (["nothing.parquet"], "nothing.parquet does not exist"),
    ],
)
def test_exit_2_where_the_request_is_wrong(home, arguments, said):
    done = cxu("rasterize", "--out", "masks", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("masks").exists()


def test_exit_2_without_out(home):
    done = cxu("rasterize")
    assert done.exit_code == 2
    assert "--out" in done.stderr


def test_exit_2_without_anything_to_draw():
    done = cxu("rasterize", "--out", "masks")
    assert done.exit_code == 2
    assert "no selection yet in cxu-data" in done.stderr


def test_exit_2_where_rows_have_no_sigma(tmp_path):
    rows = tiny_rows(2)
    field = table.field_of("sigma_xy")
    rows = rows.set_column(rows.schema.get_field_index("sigma_xy"), field, pa.nulls(2, field.type))
    store_rows(tmp_path / "t.parquet", rows)
    done = cxu("rasterize", "t.parquet", "--policy", "ignore", "--out", "masks")
    assert done.exit_code == 2
    assert "--policy ignore needs standard deviations, and 2 of 2 rows" in done.stderr


def test_exit_2_where_the_folder_is_another_commands(home):
    assert cxu("rasterize", "--out", "masks").exit_code == 0
    done = cxu("rasterize", "--out", "masks", "--policy", "full", "--unusable", "background")
    assert (done.exit_code, done.stdout) == (2, "")
    assert 'policy was "confident", now "full"; unusable was "ignore", now "background"' in done.stderr
    assert "replace them with --overwrite" in done.stderr
    assert cxu("rasterize", "--out", "masks", "--policy", "full", "--overwrite").exit_code == 0
    assert json.loads(Path("masks/cxu.json").read_text())["options"]["policy"] == "full"


def test_exit_2_where_the_selection_has_changed(home):
    assert cxu("rasterize", "--out", "masks").exit_code == 0
    assert cxu("filter", "--max-std", 20).exit_code == 0
    done = cxu("rasterize", "--out", "masks")
    assert done.exit_code == 2
    assert "the table latest has changed" in done.stderr


def test_exit_2_where_the_folder_holds_other_things(home):
    Path("masks").mkdir()
    Path("masks/notes.txt").write_text("mine")
    done = cxu("rasterize", "--out", "masks")
    assert done.exit_code == 2
    assert "masks is not empty and was not made by cxu rasterize" in done.stderr
    assert list(tree(Path("masks"))) == ["notes.txt"]


def test_exit_2_where_an_image_is_found_twice(home):
    save_images("a.png", "b.png", "c.png", "more/a.png")
    done = cxu("rasterize", "--out", "masks", "--images", "images")
    assert done.exit_code == 2
    assert "1 image id(s) with more than one file: 'a'" in done.stderr


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_exit_3_where_rows_have_no_mask(home):
    save_images("a.png")
    save_images("b.png", shape_hw=(300, 400))
    done = cxu("rasterize", "--out", "masks", "--images", "images")
    assert done.exit_code == 3
    assert "2 rows have no mask:" in done.stderr
    assert "  chestxray8 b: " in done.stderr
    assert "b.png is 300 × 400 px (height × width), the row says 1024 × 1024" in done.stderr
    assert "  chestxray8 c: no image of this id among the images given" in done.stderr
    assert "1 rows, 1 files" in done.stdout
    (path,) = (home / "runs").glob("*-rasterize.json")
    failed = json.loads(path.read_text())["failed"]
    assert [line[:2] for line in failed] == [["chestxray8", "b"], ["chestxray8", "c"]]
    # the image that came later, and the copy that fits
    save_images("b.png", "c.png")
    done = cxu("rasterize", "--out", "masks", "--images", "images")
    assert (done.exit_code, "3 rows, 3 files" in done.stdout) == (0, True)


# --- exit 130 --------------------------------------------------------------------------------------------------------


def state_and_parent(pid):
    """Return a process's state letter and its parent, from Linux's own listing; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # an ended process that nobody has asked for
    return None if fields[0] == "Z" else (fields[0], int(fields[1]))


def children_of(parent):
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if (found := state_and_parent(pid)) and found[1] == parent]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_everything_and_the_same_command_continues(tmp_path, workers):
    n_rows = 1000  # seconds of work: on a busy machine the signal comes late
    rows = make_rows(n_rows, image_id=[f"{number:05d}" for number in range(n_rows)])
    store_rows(tmp_path / "t.parquet", rows, group_rows=50)
    command = [sys.executable, "-m", "cxu", "rasterize", "t.parquet", "--workers", str(workers), "--size", "512"]
    running = subprocess.Popen(
        [*command, "--out", "masks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        while not (drawn := sum(1 for _ in Path("masks/chestxray8").glob("0*.png"))):
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        below = children_of(running.pid)
        assert len(below) >= (workers if workers > 1 else 0)
        # as a terminal does: to the whole group
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "cxu: interrupted. What is finished is kept: the same command continues."
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while left := [pid for pid in below if state_and_parent(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.02)
    assert 0 < drawn < n_rows
    assert not list(Path("masks").rglob(".cxu-tmp-*"))
    assert not Path("masks/index.parquet").exists()
    again = cxu(*command[3:], "--out", "masks")
    assert again.exit_code == 0
    assert "1,000 rows, 1,000 files" in again.stdout
    assert cxu(*command[3:], "--out", "whole").exit_code == 0
    assert tree(Path("masks")) == tree(Path("whole"))
