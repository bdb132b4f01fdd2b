"""``cxu crop``: what it prints and where, its exit codes, and what Ctrl-C leaves behind."""

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

from builders import published_csv, published_row
from crop_helpers import IMAGE_HW, noise, read_crop, rows_of, save, stored_rows
from cxu.cli import app
from mask_helpers import tree

NO_LIMIT = "warning: no limit of uncertainty was set, so every node counts as confident"


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
    save_films("a", "b", "c")
    return tmp_path / "cxu-data"


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def crop(*arguments):
    return cxu("crop", "--images", "films", "--out", "out", *arguments)


def save_films(*names, shape_hw=(256, 256)):
    for seed, name in enumerate(names):
        save(Path(f"films/{name}.png"), noise(shape_hw, seed=seed))


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_the_latest_selection_is_cropped(home):
    done = crop()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["left out", "left_lung unusable"]
    assert lines[1].endswith(" 1")
    assert lines[2] == ""
    assert lines[3].startswith("2 crops, ")
    assert lines[3].endswith(" kB in out; boxes.csv says where they lie")
    said = done.stderr.splitlines()
    assert said[0].startswith("home cxu-data · selection latest: 3 rows, made ")
    assert said[1:] == ["1 row left out:", "  chestxray8 b: left_lung unusable"]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".cxu",
        "boxes.csv",
        "boxes.parquet",
        "chestxray8",
        "cxu.json",
    ]
    assert list((home / "cache").iterdir())


def test_an_organ_that_is_usable_everywhere(home):
    done = crop("--organ", "heart")
    assert done.exit_code == 0
    assert done.stdout.startswith("3 crops, ")


def test_unusable_organs_are_taken_on_demand(home):
    assert crop("--unusable", "full").stdout.startswith("3 crops, ")


def test_every_option_at_once(home):
    Path("ids.txt").write_text("a.png\nb\n")
    done = crop(
        *("--organ", "all", "--margin", "20px", "--square", "--size", 64, "--blank", "outside", "--policy", "full"),
        *("--unusable", "full", "--ids", "ids.txt", "--limit", 1, "--seed", 3, "--workers", 1),
    )
    assert done.exit_code == 0, done.stderr
    (path,) = Path("out/chestxray8").iterdir()
    cut = read_crop(path)
    assert cut.shape == (64, 64)
    assert (cut == 0).any()


def test_a_source_without_any_selection_says_that_there_is_no_limit(home):
    done = crop("chestxray8")
    assert done.exit_code == 0
    assert NO_LIMIT in done.stderr
    assert NO_LIMIT not in cxu("crop", "--images", "films", "--out", "b", "chestxray8", "--policy", "full").stderr


def test_the_position_of_a_source_of_ones_own_is_assumed_and_said(tmp_path):
    stored_rows(tmp_path, rows_of(source="mine", frame="model", height=1024, width=1024))
    save(Path("films/a.png"), noise((300, 300)))
    done = crop("rows.parquet")
    assert done.exit_code == 0
    assert "1 rows are of a source that does not say how its images became the model frame" in done.stderr


def test_json_is_the_only_thing_on_stdout(home):
    content = json.loads(crop("--json").stdout)
    size = sum(len(content) for name, content in tree(Path("out")).items() if name.endswith(".png"))
    assert content == {
        "out": "out",
        "organs": ["right_lung", "left_lung"],
        "rows": 2,
        "files": 2,
        "bytes": size,
        "resumed_rows": 0,
        "clipped": 0,
        "padded": 0,
        "negative": 0,
        "without_image": 0,
        "assumed": 0,
        "left_out": {"left_lung unusable": 1},
        "failures": [],
        "ids_unmatched": [],
    }


def test_clipped_and_padded_crops_are_counted(tmp_path):
    stored_rows(tmp_path, rows_of())
    save(Path("films/a.png"), noise())
    assert crop("rows.parquet", "--margin", "200", "--square").stdout.startswith("1 crop, 1 clipped, 1 padded, ")


def test_negatives_are_said(tmp_path):
    stored_rows(tmp_path, rows_of())
    image = np.full(IMAGE_HW, 40, np.uint8)
    image[60:190, 60:120] = image[60:190, 170:230] = 220
    save(Path("films/a.png"), image)
    done = crop("rows.parquet")
    assert done.exit_code == 0
    assert "warning: 1 image with bright lungs, clearly negatives" in done.stderr


def test_every_run_has_a_manifest(home):
    crop()
    (path,) = (home / "runs").glob("*-crop.json")
    manifest = json.loads(path.read_text())
    assert (manifest["command"], manifest["rows"]) == ("crop", 2)
    assert manifest["left_out_rows"] == [["chestxray8", "b", "left_lung unusable"]]
    assert manifest["record"] == json.loads(Path("out/cxu.json").read_text())
    assert manifest["record"]["options"] == {
        "organ": "right_lung,left_lung",
        "margin": "5%",
        "square": False,
        "size": None,
        "policy": "confident",
        "unusable": "skip",
        "blank": None,
    }


def test_the_same_command_continues_and_says_so(home):
    crop()
    before = tree(Path("out"))
    again = crop()
    assert again.exit_code == 0
    assert "2 rows were already cropped" in again.stderr
    assert "chestxray8 b: left_lung unusable" in again.stderr
    assert tree(Path("out")) == before


def test_with_a_limit_rows_without_an_image_are_passed_over(home):
    Path("films/a.png").unlink()
    done = crop("--limit", 5, "--organ", "heart")
    assert done.exit_code == 0
    assert "1 rows have no image among those given: not chosen from" in done.stderr
    assert done.stdout.startswith("2 crops, ")


def test_images_that_came_since_change_what_a_limit_takes(home):
    Path("films/a.png").unlink()
    assert crop("--limit", 5, "--organ", "heart").exit_code == 0
    save_films("a")
    done = crop("--limit", 5, "--organ", "heart")
    assert done.exit_code == 2
    assert "holds the crops of another command (images have changed since)" in done.stderr
    assert crop("--limit", 5, "--organ", "heart", "--overwrite").stdout.startswith("3 crops, ")


def test_many_files_are_announced_with_their_size(home, monkeypatch):
    monkeypatch.setattr("cxu.crops.MANY_FILES", 2)
    done = crop()
    assert "3 files, about " in done.stderr
    assert "--size makes them smaller" in done.stderr


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_rows_without_a_crop_are_listed(home):
    Path("films/a.png").unlink()
    done = crop("--organ", "heart")
    assert done.exit_code == 3
    assert "1 row without a crop:\n  chestxray8 a: no image of this id among the images given" in done.stderr
    assert done.stdout.startswith("2 crops, ")


def test_ids_that_are_not_there_are_listed(home):
    Path("ids.txt").write_text("a\nnobody\n")
    done = crop("--ids", "ids.txt")
    assert done.exit_code == 3
    assert "1 id of --ids not found:\n  nobody" in done.stderr
    assert json.loads(crop("--ids", "ids.txt", "--json").stdout)["ids_unmatched"] == ["nobody"]


# --- exit 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--organ", "liver"), "unknown organ 'liver'; expected one of right_lung, left_lung, lungs, heart, all"),
        (("--margin", "wide"), "--margin 'wide': expected a percentage of the box such as 5%"),
        (("--margin", "-5%"), "--margin '-5%'"),
        (("--size", "0"), "--size 0: expected 1 to 8,192 px"),
        (("--blank", "inside"), "Invalid value for '--blank'"),
        (("--policy", "ignore"), "Invalid value for '--policy'"),
        (("--unusable", "ignore"), "Invalid value for '--unusable'"),
        (("--limit", "0"), "Invalid value for '--limit'"),
        (("--ids", "none.txt"), "--ids none.txt: no such file"),
        (("nothing",), "nothing"),
        (("--frame", "image"), "no row of latest is in the image frame"),
        (("--images", " "), "--images is blank"),
        (("--images", "nowhere"), "nowhere"),
    ],
)
def test_wrong_requests(home, arguments, said):
    done = crop(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("missing", ["--images", "--out"])
def test_images_and_out_are_required(home, missing):
    given = {"--images": "films", "--out": "out"}
    done = cxu("crop", *(word for name, value in given.items() if name != missing for word in (name, value)))
    assert done.exit_code == 2
    assert missing in done.stderr


def test_another_command_in_the_folder_is_refused(home):
    crop()
    done = crop("--square")
    assert done.exit_code == 2
    assert "holds the crops of another command (square was false, now true)" in done.stderr
    assert crop("--square", "--overwrite").exit_code == 0


def test_a_folder_of_other_files_is_refused(home):
    done = cxu("crop", "--images", "films", "--out", "films")
    assert done.exit_code == 2
    assert "films is not empty and was not made by cxu crop" in done.stderr


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_says_what_it_is_not():
    assert "not a medical device" in " ".join(cxu("crop", "--help").stdout.split())


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals a process group")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_whole_crops_and_the_same_command_continues(tmp_path, workers):
    names = [f"{number:05d}" for number in range(160)]
    image = noise((600, 750), np.uint16)
    save(tmp_path / "one.png", image)
    for name in names:
        path = Path(f"films/{name}.png")
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(tmp_path / "one.png")
    stored_rows(tmp_path, rows_of(names, height=IMAGE_HW[0], width=IMAGE_HW[1]))
    options = ["crop", "rows.parquet", "--images", "films", "--workers", str(workers)]
    running = subprocess.Popen(
        [sys.executable, "-m", "cxu", *options, "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        while len(list(Path("out/chestxray8").glob("0*.png"))) < 70:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        # as a terminal does: to the whole group
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130
    assert "interrupted. What is finished is kept: the same command continues." in said
    for path in Path("out/chestxray8").glob("0*.png"):
        with Image.open(path) as picture:
            picture.load()
    assert not list(Path("out").rglob(".cxu-tmp-*"))
    assert cxu(*options, "--out", "out").exit_code == 0
    assert cxu(*options, "--out", "fresh").exit_code == 0
    assert tree(Path("out")) == tree(Path("fresh"))
