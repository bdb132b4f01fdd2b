"""``cxu overlay``: what it prints and where, its exit codes, and what Ctrl-C leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import make_rows, published_csv, published_row
from cxu import table
from cxu.cli import app
from mask_helpers import store_rows, tree

BLANK = "The outlines are on a blank frame: --images draws them over the images."


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


def overlay(*arguments, size=64):
    return cxu("overlay", "--out", "out", "--size", size, *arguments)


def save_films(*names, shape_hw=(256, 256)):
    for number, name in enumerate(names):
        path = Path("films") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full(shape_hw, 60 + number, np.uint8)
        pixels[:, 96:160] += 90
        Image.fromarray(pixels).save(path)


def without_files(folder=Path()):
    return not [path for path in folder.rglob("*") if path.suffix == ".png" and "films" not in path.parts]


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_the_latest_selection_is_drawn(home):
    done = overlay()
    assert done.exit_code == 0
    assert done.stdout.startswith("3 rows on 3 pictures, ")
    assert done.stdout.endswith("kB in out; index.csv says which is where\n")
    said = done.stderr.splitlines()
    assert said[0].startswith("home cxu-data · selection latest: 3 rows, made ")
    assert said[0].endswith("max_std 5 px")
    assert said[-1] == BLANK
    assert sorted(path.name for path in Path("out/chestxray8").iterdir()) == ["a.png", "b.png", "c.png"]


def test_over_images_nothing_is_said_of_a_blank_frame(home):
    save_films("x/a.png", "b.png", "c.png")
    done = overlay("--images", "films")
    assert done.exit_code == 0
    assert BLANK not in done.stderr
    assert list((home / "cache").iterdir())
    with Image.open("out/chestxray8/a.png") as picture:
        assert picture.mode == "RGB"
        assert 255 in np.asarray(picture)


def test_contact_sheets_are_paged(home):
    done = overlay("--sheet", "--columns", 2, "--rows", 1)
    assert done.exit_code == 0
    assert done.stdout.startswith("3 rows on 2 pages, ")
    assert Path("out/index.csv").read_text().splitlines() == [
        '"source","image_id","path","row","column"',
        '"chestxray8","a","sheet-001.png",1,1',
        '"chestxray8","b","sheet-001.png",1,2',
        '"chestxray8","c","sheet-002.png",1,1',
    ]


def test_json_is_the_only_thing_on_stdout(home):
    content = json.loads(overlay("--json").stdout)
    size = sum(len(content) for name, content in tree(Path("out")).items() if name.endswith(".png"))
    assert content == {
        "out": "out",
        "rows": 3,
        "files": 3,
        "bytes": size,
        "resumed_rows": 0,
        "without_image": 0,
        "without_colour": 0,
        "assumed": 0,
        "failures": [],
        "ids_unmatched": [],
        "over_images": False,
    }


def test_every_run_has_a_manifest(home):
    overlay()
    (path,) = (home / "runs").glob("*-overlay.json")
    manifest = json.loads(path.read_text())
    assert (manifest["command"], manifest["rows"]) == ("overlay", 3)
    assert manifest["record"] == json.loads(Path("out/cxu.json").read_text())


def test_the_same_command_continues_and_says_so(home):
    overlay()
    before = tree(Path("out"))
    again = overlay()
    assert again.exit_code == 0
    assert "3 rows were already drawn" in again.stderr
    assert tree(Path("out")) == before


def test_a_table_without_sigma_has_outlines_and_says_so(tmp_path):
    store_rows(tmp_path / "old.parquet", make_rows(2))
    done = overlay("old.parquet")
    assert done.exit_code == 0
    told = "warning: 2 of 2 rows have no standard deviations of known scale: drawn in the colours of the organs"
    assert told in done.stderr
    assert json.loads(overlay("old.parquet", "--json").stdout)["without_colour"] == 2


def test_organs_need_no_uncertainty_and_nothing_is_said(tmp_path):
    store_rows(tmp_path / "old.parquet", make_rows(1))
    done = overlay("old.parquet", "--colour", "organ")
    assert done.exit_code == 0
    assert "warning" not in done.stderr


def test_a_limit_passes_over_rows_without_an_image(home):
    save_films("b.png")
    done = overlay("--images", "films", "--limit", 2)
    assert done.exit_code == 0
    assert "2 rows have no image among those given: not chosen from" in done.stderr
    assert done.stdout.startswith("1 row on 1 picture, ")


def test_many_single_pictures_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("cxu.pictures.MANY_FILES", 1)
    store_rows(tmp_path / "t.parquet", make_rows(2))
    assert "2 pictures, about half a megabyte each: --sheet" in overlay("t.parquet").stderr


def test_predictions_are_drawn_over_their_own_images(tmp_path):
    from cxu.shape import load_shape_model

    save_films("ward/one.png", "two.png")
    landmarks = np.broadcast_to(load_shape_model().mean_xy / 4, (2, 120, 2))
    rows = make_rows(
        2,
        source="local",
        image_id=["ward/one.png", "two.png"],
        height=256,
        width=256,
        frame="image",
        frame_side=256.0,
        frame_offset_xy=np.zeros((2, 2), np.float32),
        landmarks_xy=landmarks,
        model_id="mine",
        **table.sigma_columns(np.full((2, 120, 2), 2.0, np.float32), np.full(2, 256.0)),
    )
    store_rows(tmp_path / "predictions.parquet", rows)
    done = overlay("predictions.parquet", "--images", "films")
    assert done.exit_code == 0, done.stderr
    assert sorted(name for name in tree(Path("out")) if name.endswith(".png")) == [
        "local/two.png",
        "local/ward/one.png",
    ]


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_rows_without_an_image_are_listed(home):
    save_films("a.png", "b.png")
    done = overlay("--images", "films")
    assert done.exit_code == 3
    assert "1 row has no picture:\n  chestxray8 c: no image of this id among the images given" in done.stderr
    assert done.stdout.startswith("2 rows on 2 pictures, ")


def test_ids_that_are_not_there_are_listed(home):
    Path("ids.txt").write_text("a.png\nz\n")
    done = overlay("--ids", "ids.txt")
    assert done.exit_code == 3
    assert "1 id of --ids was not found:\n  z" in done.stderr
    assert done.stdout.startswith("1 row on 1 picture, ")


# --- exit 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no table, selection or source called 'nothing'"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "empty"], "no image in"),
        (["--images", " "], "--images is blank"),
        (["--columns", "3"], "give them with --sheet"),
        (["--band", "-1"], "--band -1: expected 0 or more"),
        (["--vmax", "0"], "--vmax 0: expected px above 0"),
        (["--colour", "radius"], "has calibrated radii"),
        (["--ids", "none.txt"], "--ids none.txt: no such file"),
        (["--frame", "image"], "no row of latest is in the image frame"),
        (["--colour", "grey"], "'grey' is not one of"),
        (["--limit", "0"], "should be greater than or equal to 1"),
    ],
)
def test_wrong_requests_draw_nothing(home, arguments, told):
    Path("empty").mkdir()
    done = overlay(*arguments)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert without_files()


def test_images_of_another_data_set_are_refused(home):
    save_films("x.png")
    done = overlay("--images", "films")
    assert done.exit_code == 2
    assert "none of the 3 rows has an image in films (first: chestxray8 a)" in done.stderr
    assert not Path("out").exists()


def test_an_empty_table_is_refused(tmp_path):
    store_rows(tmp_path / "t.parquet", make_rows(0))
    done = overlay("t.parquet")
    assert done.exit_code == 2
    assert "no row to draw: t.parquet is empty" in done.stderr


def test_no_selection_yet():
    done = overlay()
    assert done.exit_code == 2
    assert "no selection yet" in done.stderr


def test_another_command_into_the_folder_is_refused(home):
    overlay()
    done = overlay("--sheet")
    assert done.exit_code == 2
    assert "holds the pictures of another command (sheet was false, now true)" in done.stderr
    assert overlay("--sheet", "--overwrite").exit_code == 0
    assert sorted(name for name in tree(Path("out")) if name.endswith(".png")) == ["sheet-001.png"]


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals a process group")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_whole_pictures_and_the_same_command_continues(tmp_path, workers):
    n_rows = 120  # seconds of work
    rows = make_rows(n_rows, image_id=[f"{number:05d}" for number in range(n_rows)])
    store_rows(tmp_path / "t.parquet", rows, group_rows=50)
    options = ["overlay", "t.parquet", "--size", "128", "--workers", str(workers)]
    running = subprocess.Popen(
        [sys.executable, "-m", "cxu", *options, "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        while len(list(Path("out/chestxray8").glob("0*.png"))) < 2:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        # as a terminal does: to the whole group
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "cxu: interrupted. What is finished is kept: the same command continues."
    drawn = list(Path("out/chestxray8").glob("*.png"))
    assert 0 < len(drawn) < n_rows
    for path in drawn:
        with Image.open(path) as picture:
            picture.load()
    assert not list(Path("out").rglob(".cxu-tmp-*"))
    assert not Path("out/index.csv").exists()
    again = cxu(*options, "--out", "out")
    assert again.exit_code == 0
    assert "rows were already drawn" in again.stderr
    assert again.stdout.startswith("120 rows on 120 pictures")
    assert cxu(*options, "--out", "whole").exit_code == 0
    assert tree(Path("out")) == tree(Path("whole"))
