"""``cxu evaluate accuracy``: what it prints and where, what it writes, its exit codes."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import chest, make_rows
from cxu.cli import app
from mask_helpers import store_rows

pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def accuracy(*arguments):
    return CliRunner().invoke(app, ["evaluate", "accuracy", *map(str, arguments)])


def save_predictions(*ids, **columns):
    store_rows(Path("found/predictions.parquet"), make_rows(len(ids), image_id=list(ids), **columns))


def save_truth(*ids, shift=3.0, name="truth.npz"):
    np.savez(name, name=list(ids), landmarks_xy=np.stack([chest() + shift] * len(ids)))


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_landmarks_are_compared():
    save_predictions("a", "b")
    save_truth("a", "b")
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Landmarks: 2 images, means (95 % intervals over images), px of the 1024 model frame"
    assert lines[6].split() == ["all", "2", "240", "9.0", "(9.0", "to", "9.0)", "4.24", "(4.24", "to", "4.24)"]
    assert [line.split()[0] for line in lines[2:7]] == ["right_lung", "left_lung", "lungs", "heart", "all"]
    assert lines[8].startswith("Masks: 2 images")
    assert "Hausdorff px" in lines[9]
    said = done.stderr.splitlines()
    assert said[0].startswith("home cxu-data · file found: 2 rows")
    assert said[1] == "truth truth.npz: landmarks of 2 images"
    assert len(list(Path("cxu-data/runs").glob("*evaluate-accuracy.json"))) == 1


def test_json_has_all_numbers():
    save_predictions("a", "b")
    save_truth("a", "b")
    done = accuracy("found", "truth.npz", "--json")
    content = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert content["images"] == 2
    assert content["truth_kind"] == "landmarks"
    assert content["organs"]["heart"]["measures"]["mse_px2"] == {
        "interval": {"value": 9, "low": 9, "high": 9},
        "images": 2,
    }
    assert content["organs"]["heart"]["states"] == {"compared": 2}


def test_images_of_the_truth_without_a_prediction_are_named_and_no_failure():
    save_predictions("a")
    save_truth("a", *(f"more{index:02d}" for index in range(25)))
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 0
    assert "25 images of truth.npz without a prediction, not compared:" in done.stderr
    assert "more19" in done.stderr
    assert "more20" not in done.stderr


def test_missing_organs_are_named():
    save_predictions("a", "b")
    points = np.stack([chest()] * 2)
    points[1, 94:] = np.nan
    np.savez("truth.npz", name=["a", "b"], landmarks_xy=points)
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 0
    assert "heart: not annotated, or not in full in 1 image\n  b\n" in done.stderr
    heart = next(line.split() for line in done.stdout.splitlines() if line.startswith("heart"))
    assert heart[:3] == ["heart", "1", "26"]


def test_masks_have_no_squared_error_and_say_so():
    save_predictions("a")
    assert CliRunner().invoke(app, ["rasterize", "found", "--out", "masks", "--policy", "full"]).exit_code == 0
    done = accuracy("found", "masks")
    assert done.exit_code == 0, done.output
    assert "no squared error, no landmark distance" in done.stderr
    assert "predictions are painted alike, lungs first, then the heart" in done.stderr
    assert "Landmarks:" not in done.stdout
    assert "1.000" in done.stdout
    assert "mse_px2" not in json.loads(accuracy("found", "masks", "--json").stdout)["organs"]["all"]["measures"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_written(suffix):
    save_predictions("a", "b")
    save_truth("a", "b")
    done = accuracy("found", "truth.npz", "--out", f"t{suffix}", "--workers", 1)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"table: t{suffix}"
    if suffix == ".csv":
        with Path("t.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    else:
        rows = pq.read_table("t.parquet").to_pylist()
    assert [(row["image_id"], row["organ"]) for row in rows[:2]] == [("a", "right_lung"), ("a", "left_lung")]
    assert float(rows[0]["mse_px2"]) == 9


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_figure_is_written(suffix, start):
    pytest.importorskip("matplotlib")
    save_predictions("a", "b")
    save_truth("a", "b")
    assert accuracy("found", "truth.npz", "--figure", f"f{suffix}").exit_code == 0
    assert Path(f"f{suffix}").read_bytes().startswith(start)


def test_a_figure_shows_organs_that_nobody_annotated_as_none():
    pytest.importorskip("matplotlib")
    save_predictions("a")
    np.savez("truth.npz", name=["a"], landmarks_xy=np.full((1, 120, 2), np.nan))
    done = accuracy("found", "truth.npz", "--figure", "f.png")
    assert done.exit_code == 0, done.output
    assert Path("f.png").is_file()
    assert next(line for line in done.stdout.splitlines() if line.startswith("all")).split()[1:] == ["0", "0", "-", "-"]


def test_mixed_models_are_warned_of():
    save_predictions("a", "b", model_id=["m", "n"])
    save_truth("a", "b")
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 0
    assert "warning: the predictions are of 2 models: m, n; the numbers mix them" in done.stderr


def test_a_table_can_be_the_truth():
    save_predictions(
        "folder/a.png", frame="image", frame_side=512.0, frame_offset_xy=np.array([[7.0, 0.0]], np.float32)
    )
    moved = (chest() - [7, 0]) * 2
    store_rows(Path("truth.parquet"), make_rows(1, image_id=["a"], landmarks_xy=moved.astype(np.float32)[None]))
    done = accuracy("found", "truth.parquet", "--json")
    assert json.loads(done.stdout)["organs"]["all"]["measures"]["mse_px2"]["interval"]["value"] == 0


# --- exit 2 ----------------------------------------------------------------------------------------------------------


def test_nothing_in_common_is_refused():
    save_predictions("a")
    save_truth("b")
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 2
    assert "no image is in both: found has 'a' and truth.npz has 'b'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("none", "truth.npz"), "no table, selection or source called 'none'"),
        (("found", "none.npz"), "none.npz does not exist"),
        (("found", "truth.npz", "--out", "t.txt"), "t.txt"),
        (("found", "truth.npz", "--figure", "f.gif"), "f.gif"),
    ],
)
def test_requests_that_are_wrong(arguments, told):
    save_predictions("a")
    save_truth("a")
    done = accuracy(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not done.stdout


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_predictions_without_a_truth():
    save_predictions("a", "b")
    save_truth("a")
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 3
    assert "1 prediction without a truth, not compared:\n  b\n" in done.stderr
    assert done.stdout.startswith("Landmarks: 1 image,")


def test_rows_that_do_not_know_their_frame():
    rows = {"frame": ["image", "model"], "frame_side": None}
    save_predictions("a", "b", **rows)
    save_truth("a", "b")
    done = accuracy("found", "truth.npz", "--json")
    assert done.exit_code == 3
    assert "1 row left out:\n  a: in image pixels" in done.stderr
    assert json.loads(done.stdout)["left_out"][0][0] == "a"


def test_masks_that_cannot_be_read():
    save_predictions("a", "b")
    Path("masks").mkdir()
    Image.fromarray(np.zeros((7, 9), np.uint8)).save("masks/a.png")
    Image.fromarray(np.full((1024, 1024), 2, np.uint8)).save("masks/b.png")
    done = accuracy("found", "masks")
    assert done.exit_code == 3
    assert "a: the mask is 9 × 7 px (width × height), expected 1024 × 1024" in done.stderr
    assert "right lung: not annotated, or not in full in 1 image\n  b\n" in done.stderr


# --- exit 1 ----------------------------------------------------------------------------------------------------------


def test_a_damaged_truth():
    save_predictions("a")
    Path("truth.npz").write_bytes(b"nothing")
    done = accuracy("found", "truth.npz")
    assert done.exit_code == 1
    assert "expected the arrays name [n] and landmarks_xy" in done.stderr
