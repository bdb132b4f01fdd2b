"""``--shard I/N``: the jobs of an array, in any order or at the same time, leave what one run leaves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from builders import chest, make_rows, published_csv, published_row
from crop_helpers import noise, rows_of, save, stored_rows
from cxu.cli import app
from mask_helpers import store_rows, tiny_rows, tree
from predict_helpers import write_film, write_weights

WEIGHTS = "tiny.safetensors"
ORDERS = [("1/3", "2/3", "3/3"), ("3/3", "1/3", "2/3")]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxu.maskplan.BLOCK_ROWS", 4)


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments, code=0):
    result = cxu(*arguments)
    assert result.exit_code == code, result.output + result.stderr
    return result


def run_at_once(*commands):
    """Run commands in processes of their own, begun together; return their outputs."""
    Path("sitecustomize.py").write_text("import cxu.maskplan\ncxu.maskplan.BLOCK_ROWS = 4\n")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "cxu", *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    ended = [(*one.communicate(timeout=120), one.returncode) for one in running]
    assert [code for *_, code in ended] == [0] * len(commands), ended
    return [out for out, *_ in ended]


def some_rows(number, **columns):
    """Return rows that differ, with standard deviations."""
    rng = np.random.default_rng(5)
    points = chest() + rng.normal(0, 8, (number, 120, 2)).astype(np.float32)
    return make_rows(number, landmarks_xy=points, sigma_xy=np.full((number, 120, 2), 4.0, np.float32), **columns)


# --- rasterize -------------------------------------------------------------------------------------------------------


def masks(out, *others):
    return ("rasterize", "t.parquet", "--policy", "full", "--out", out, *others)


@pytest.mark.parametrize("format_", ["labels", "tar", "rle"])
@pytest.mark.parametrize("order", ORDERS)
def test_shares_of_masks_in_any_order_leave_what_one_run_leaves(format_, order):
    store_rows(Path("t.parquet"), tiny_rows(30), group_rows=10)
    done(*masks("whole", "--format", format_))
    for number, shard in enumerate(order):
        assert Path("shares/index.parquet").is_file() == (number == 3)
        done(*masks("shares", "--format", format_, "--shard", shard))
    assert tree(Path("shares")) == tree(Path("whole"))


def test_a_job_that_is_not_the_last_says_what_is_left():
    store_rows(Path("t.parquet"), tiny_rows(30))
    assert done(*masks("out", "--shard", "2/3")).stdout == (
        "share 2 of 3 done (10 rows); 3 of 8 blocks of the whole are finished; the index is written by the last job, "
        "or by the same command without --shard\n"
    )
    told = json.loads(done(*masks("out", "--shard", "1/3", "--json")).stdout)
    assert (told["shard"], told["blocks"], told["blocks_finished"], told["rows"]) == ("1/3", 8, 6, 12)
    assert told["files"] == 12
    last = done(*masks("out", "--shard", "3/3"))
    assert "30 rows, 30 files" in last.stdout
    again = done(*masks("out", "--shard", "1/3"))
    assert "12 rows were already drawn" in again.stderr
    assert "30 rows, 30 files" in again.stdout


def test_the_command_without_a_share_does_the_rest():
    store_rows(Path("t.parquet"), tiny_rows(30))
    done(*masks("whole"))
    done(*masks("out", "--shard", "1/3"))
    rest = done(*masks("out"))
    assert "12 rows were already drawn" in rest.stderr
    assert tree(Path("out")) == tree(Path("whole"))


def test_rows_that_failed_in_other_jobs_are_counted():
    points = np.stack([chest()] * 12).astype(np.float32)
    # rows without a size cannot be drawn: one in the first share, two in the second
    sizes = [1024] * 12
    for row in (0, 5, 6):
        sizes[row] = None
    store_rows(Path("t.parquet"), make_rows(12, landmarks_xy=points, height=sizes, width=sizes, frame="image"))
    assert "1 rows have no mask" in done(*masks("out", "--shard", "1/2"), code=3).stderr
    told = done(*masks("out", "--shard", "2/2", "--json"), code=3)
    assert json.loads(told.stdout)["failures"] == 3
    assert "2 rows have no mask:" in told.stderr
    assert "1 rows of other shares have no mask" in told.stderr
    assert json.loads(told.stdout)["rows"] == 9
    (first, second) = sorted(Path("cxu-data/runs").glob("*-rasterize.json"))
    assert (len(json.loads(first.read_text())["failed"]), json.loads(second.read_text())["shard"]) == (1, "2/2")


@pytest.mark.parametrize("format_", ["labels", "tar"])
def test_two_shares_of_masks_at_the_same_time(format_):
    store_rows(Path("t.parquet"), some_rows(60), group_rows=20)
    done(*masks("whole", "--format", format_))
    run_at_once(*(masks("out", "--format", format_, "--shard", f"{number}/2") for number in (1, 2)))
    assert tree(Path("out")) == tree(Path("whole"))


def test_more_shares_than_blocks():
    store_rows(Path("t.parquet"), tiny_rows(6))
    done(*masks("whole"))
    for number in range(1, 6):
        done(*masks("out", "--shard", f"{number}/5"))
    assert tree(Path("out")) == tree(Path("whole"))


# --- crop ------------------------------------------------------------------------------------------------------------


def crops(out, *others):
    return ("crop", "rows.parquet", "--images", "images", "--out", out, *others)


@pytest.fixture
def cropped(monkeypatch):
    """Twelve rows: an organ of the fifth is unusable, the last two have no image."""
    monkeypatch.setattr("cxu.cropplan.BLOCK_ROWS", 2)
    names = "abcdefghijkl"
    for seed, name in enumerate(names[:-2]):
        save(Path(f"images/{name}.png"), noise(seed=seed))
    usable = np.ones((12, 3), bool)
    usable[4, 0] = False
    stored_rows(Path(), rows_of(names, usable=usable))


@pytest.mark.parametrize("order", ORDERS)
def test_shares_of_crops_in_any_order_leave_what_one_run_leaves(cropped, order):
    done(*crops("whole"), code=3)
    for number, shard in enumerate(order):
        assert Path("shares/boxes.csv").is_file() == (number == 3)
        done(*crops("shares", "--shard", shard), code=3 if number == 2 or shard == "3/3" else 0)
    assert tree(Path("shares")) == tree(Path("whole"))


def test_a_job_of_crops_says_what_is_left(cropped):
    assert done(*crops("out", "--shard", "1/3")).stdout == (
        "share 1 of 3 done (4 crops); 2 of 6 blocks of the whole are finished; the table of boxes is written by the "
        "last job, or by the same command without --shard\n"
    )
    told = json.loads(done(*crops("out", "--shard", "3/3", "--json"), code=3).stdout)
    assert (told["shard"], told["blocks"], told["blocks_finished"], told["rows"]) == ("3/3", 6, 4, 1)
    assert (told["left_out"], len(told["failures"])) == ({"right_lung unusable": 1}, 2)
    last = done(*crops("out", "--shard", "2/3"), code=3)
    assert "2 rows of other shares without a crop: their jobs list them" in last.stderr
    assert "9 crops, " in last.stdout


def test_a_share_of_crops_cannot_start_afresh(cropped):
    said = done(*crops("out", "--shard", "1/3", "--overwrite"), code=2).stderr
    assert "--overwrite and --shard: each job would remove what the others cut" in said


# --- measure ---------------------------------------------------------------------------------------------------------


def measures(out, *others):
    return ("measure", "t.parquet", "--out", out, *others)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("order", ORDERS)
def test_shares_of_measures_in_any_order_leave_what_one_run_leaves(suffix, order):
    store_rows(Path("t.parquet"), some_rows(40), group_rows=5)
    Path("l.csv").write_text("Image Index,ctr\nimage0001,0.5\nimage0039,0.25\n")
    told = [json.loads(done(*measures(f"whole.{suffix}", "--labels", "chestxray8=l.csv", "--json")).stdout)]
    for number, shard in enumerate(order):
        assert Path(f"out.{suffix}").is_file() == (number == 3)
        arguments = ("--labels", "chestxray8=l.csv", "--shard", shard, "--json")
        told.append(json.loads(done(*measures(f"out.{suffix}", *arguments)).stdout))
    assert Path(f"out.{suffix}").read_bytes() == Path(f"whole.{suffix}").read_bytes()
    assert [(one["rows"], one["blocks_finished"]) for one in told[1:]] == [
        (10 if order[0] == "3/3" else 15, 2 if order[0] == "3/3" else 3),
        (15, 5 if order[0] == "3/3" else 6),
        (40, 8),
    ]
    assert {name: told[3][name] for name in told[0] if name != "out"} == {
        name: value for name, value in told[0].items() if name != "out"
    }
    assert not list(Path().glob("*.parts"))


def test_a_job_of_measures_says_what_is_left_and_the_command_without_does_the_rest():
    store_rows(Path("t.parquet"), some_rows(40), group_rows=5)
    done(*measures("whole.parquet"))
    assert done(*measures("out.parquet", "--shard", "8/8")).stdout == (
        "share 8 of 8 done (5 rows); 1 of 8 blocks of the whole are finished; the file is written by the last job, or "
        "by the same command without --shard\n"
    )
    assert not Path("out.parquet").exists()
    assert done(*measures("out.parquet")).stderr.endswith("40 rows in out.parquet\n")
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path("out.parquet.parts").exists()


def test_a_job_lists_its_own_rows_that_cannot_be_measured():
    points = np.stack([chest()] * 8).astype(np.float32)
    points[1, 4, 0] = np.nan
    store_rows(Path("t.parquet"), make_rows(8, landmarks_xy=points), group_rows=2)
    assert "image0001: a landmark is no finite" in done(*measures("out.csv", "--shard", "1/2"), code=3).stderr
    assert "image0001: a landmark is no finite" in done(*measures("out.csv", "--shard", "2/2"), code=3).stderr


@pytest.mark.slow
def test_two_shares_of_measures_at_the_same_time():
    store_rows(Path("t.parquet"), some_rows(400), group_rows=10)
    done(*measures("whole.parquet"))
    said = run_at_once(*(measures("out.parquet", "--shard", f"{number}/2", "--json") for number in (1, 2)))
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not Path("out.parquet.parts").exists()
    assert max(json.loads(one)["blocks_finished"] for one in said) == 40


def test_a_share_of_measures_needs_a_file():
    store_rows(Path("t.parquet"), some_rows(4))
    assert "--shard needs --out" in done("measure", "t.parquet", "--shard", "1/2", code=2).stderr


# --- predict ---------------------------------------------------------------------------------------------------------


def predict(out, *others):
    return ("predict", "films", "--weights", WEIGHTS, "--samples", 20, "--device", "cpu", "--out", out, *others)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A folder with ten films, weights, and what one run makes of them."""
    folder = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_weights(Path(WEIGHTS))
        for seed in range(10):
            write_film(Path(f"films/{seed}.png"), seed)
        done(*predict("whole"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # sums are rounded otherwise with more threads; and tests run side by side
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def films(predicted):
    shutil.copytree(predicted, ".", dirs_exist_ok=True)


def table_in(out):
    return (Path(out) / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("order", ORDERS)
def test_shares_of_films_in_any_order_leave_what_one_run_leaves(films, order):
    for number, shard in enumerate(order):
        assert Path("out/predictions.parquet").is_file() == (number == 3)
        done(*predict("out", "--shard", shard))
    assert table_in("out") == table_in("whole")
    assert sorted(path.name for path in Path("out/.cxu").iterdir()) == ["files.parquet", "lock"]


@pytest.mark.slow
def test_a_job_of_films_says_what_is_left(films):
    Path("films/2b.png").write_bytes(b"no film")
    Path("films/torn.zip").write_bytes(b"PK")
    first = done(*predict("out", "--shard", "1/3"), code=3)  # films 0, 1, 2 and 2b of four
    assert first.stdout == (
        "share 1 of 3 done (3 images); 4 of 11 images of the whole are finished; the table is written by the last "
        "job, or by the same command without --shard\n"
    )
    assert "2b.png is no PNG" in first.stderr
    assert "torn.zip" not in first.stderr
    told = json.loads(done(*predict("out", "--shard", "3/3", "--json")).stdout)
    assert (told["shard"], told["images"], told["images_finished"], told["predicted"]) == ("3/3", 11, 7, 3)
    last = done(*predict("out", "--shard", "2/3", "--csv", "--overlay", "--masks"), code=3)
    assert "10 images with landmarks, 2 without" in last.stdout
    assert "2b.png is no PNG" in last.stderr
    assert "torn.zip is no readable zip" in last.stderr
    assert len(list(Path("out/overlays/local").iterdir())) == len(list(Path("out/masks/local").iterdir())) == 10
    assert len(Path("out/predictions.csv").read_text().splitlines()) == 11
    again = done(*predict("out", "--shard", "1/3"), code=3)
    assert "10 images with landmarks, 2 without" in again.stdout


def test_the_command_without_a_share_predicts_the_rest(films):
    Path("films/0b.png").write_bytes(b"no film")
    done(*predict("out", "--shard", "1/2"), code=3)
    assert "5 images already predicted" in done(*predict("out"), code=3).stderr
    assert table_in("out") == table_in("whole")
    assert sorted(path.name for path in Path("out/.cxu").iterdir()) == ["files.parquet", "lock"]


def test_a_film_that_is_mended_is_predicted_by_the_job_whose_share_it_is(films):
    whole = Path("films/3.png").read_bytes()
    Path("films/3.png").write_bytes(b"no film")
    done(*predict("out", "--shard", "1/2"), code=3)
    Path("films/3.png").write_bytes(whole)
    # what was noted of it says nothing of the file as it is now
    assert "9 of 10 images of the whole are finished" in done(*predict("out", "--shard", "2/2")).stdout
    done(*predict("out", "--shard", "1/2"))
    assert table_in("out") == table_in("whole")


def test_new_films_come_after_those_that_are_there(films):
    shutil.move("films/4.png", "later.png")
    done(*predict("out"))
    shutil.move("later.png", "films/4.png")
    for number in (2, 1):
        done(*predict("out", "--shard", f"{number}/2"))
    ids = pq.read_table("out/predictions.parquet")["image_id"].to_pylist()
    assert ids == [f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 7, 8, 9, 4)]


@pytest.mark.slow
def test_two_shares_of_films_at_the_same_time(films):
    run_at_once(*(predict("out", "--shard", f"{number}/2") for number in (1, 2)))
    assert table_in("out") == table_in("whole")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["9/8", "x"])
def test_a_share_that_is_none(films, shard):
    store_rows(Path("t.parquet"), tiny_rows(4))
    for arguments in (masks("out"), measures("out.csv"), predict("out")):
        said = done(*arguments, "--shard", shard, code=2).stderr
        assert f"--shard {shard}: expected I/N with 1 ≤ I ≤ N, such as 3/8" in said
    assert not any(Path(name).exists() for name in ("out", "out.csv", "out.csv.parts"))


def test_a_share_cannot_start_afresh(films):
    store_rows(Path("t.parquet"), tiny_rows(4))
    for arguments in (masks("out"), predict("out")):
        done(*arguments)
        before = tree(Path("out"))
        said = done(*arguments, "--overwrite", "--shard", "1/2", code=2).stderr
        assert "--overwrite and --shard: each job would remove" in said
        assert tree(Path("out")) == before
        shutil.rmtree("out")


def test_a_share_of_another_command_is_refused(films):
    store_rows(Path("t.parquet"), tiny_rows(30))
    done(*masks("masks", "--shard", "1/2"))
    assert "was null, now 16" in done(*masks("masks", "--shard", "2/2", "--size", "16"), code=2).stderr
    done(*predict("out", "--shard", "1/2"))
    assert "seed was 0, now 4" in done(*predict("out", "--shard", "2/2", "--seed", 4), code=2).stderr


def test_published_rows_go_through_shares_as_they_do_in_one(tmp_path):
    Path("NIH.csv").write_text(published_csv(published_row(f"{number:03d}.png") for number in range(30)))
    done("import", "NIH.csv", "--source", "chestxray8")
    done("filter", "--max-std", "5")
    done("rasterize", "--out", "whole")
    for shard in ("2/2", "1/2"):
        done("rasterize", "--out", "shares", "--shard", shard)
    assert tree(Path("shares")) == tree(Path("whole"))
