"""``cxu evaluate error``: what it prints and where, what it writes, its exit codes."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import chest, make_rows
from cxu import table
from cxu.cli import app
from mask_helpers import store_rows

NUMBERS = ("pearson", "spearman", "slope", "ratio", "mean_px", "mean_sigma_px")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error(*arguments):
    return CliRunner().invoke(app, ["evaluate", "error", *map(str, arguments)])


def save_predictions(*ids, sigma=None, **columns):
    n_rows = len(ids)
    values = np.arange(1.0, 1 + n_rows) if sigma is None else np.array(sigma)
    sigma_xy = np.broadcast_to(values[:, None, None], (n_rows, 120, 2)).astype(np.float32)
    columns = {**table.sigma_columns(sigma_xy), **columns}
    store_rows(Path("found/predictions.parquet"), make_rows(n_rows, image_id=list(ids), **columns))


def save_truth(name, **shifts):
    """Write annotations moved to the right by so many px, by id."""
    points = np.stack([chest() + np.array([shift, 0]) for shift in shifts.values()])
    np.savez(name, name=list(shifts), landmarks_xy=points)


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_one_annotator():
    save_predictions("a", "b", "c")
    save_truth("t.npz", a=2, b=4, c=6)
    done = error("found", "t.npz")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Error against t: 3 images, px of the 1024 model frame"
    # of resamples with one image alone there is no correlation
    assert lines[2].split()[:4] == ["all", "360", "4.00", "2.00"]
    assert lines[2].split()[4] == "1.00"
    assert [line.split()[0] for line in lines[2:7]] == ["all", "right_lung", "left_lung", "lungs", "heart"]
    assert "error / std 1.25; published Pearson of all nodes: 0.58 and 0.59" in lines[-1]
    assert "between annotators" not in done.stdout
    assert done.stderr.splitlines()[1] == "annotator t.npz: landmarks of 3 images"
    assert len(list(Path("cxu-data/runs").glob("*evaluate-error.json"))) == 1


@pytest.mark.slow
def test_two_annotators_are_compared_with_each_other():
    save_predictions("a", "b", "c")
    save_truth("first.npz", a=2, b=4, c=6)
    save_truth("second.npz", a=-3, b=-1, c=1)
    done = error("found", "first.npz", "second.npz", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert list(content["annotators"]) == ["first", "second"]
    relation = content["annotators"]["first"]["all"]
    assert all(set(relation[name]) == {"value", "low", "high"} for name in NUMBERS)
    assert (relation["slope"]["value"], relation["pearson"]["value"]) == pytest.approx((2, 1))
    assert [one["n"] for one in relation["curve"]] == [120, 120, 120]
    assert content["between"]["heart"]["median_px"] == 5
    assert content["between"]["all"]["pearson"] == {"value": None, "low": None, "high": None}
    assert content["mean_annotator"]["all"]["mean_px"]["value"] == pytest.approx((0.5 + 1.5 + 3.5) / 3)
    told = error("found", "first.npz", "second.npz").stdout
    assert "Error against the mean of annotators, nodes that two or more annotated: 3 images" in told
    assert "Distance between annotators, the same nodes: 3 images" in told


def test_organs_that_nobody_annotated_have_no_numbers():
    save_predictions("a", "b")
    points = np.stack([chest()] * 2) + 1
    points[:, 94:] = np.nan
    np.savez("t.npz", name=["a", "b"], landmarks_xy=points)
    heart = next(line for line in error("found", "t.npz").stdout.splitlines() if line.startswith("heart"))
    assert heart.split() == ["heart", "0", *["-"] * 6]


def test_a_table_and_a_figure_are_written():
    pytest.importorskip("matplotlib")
    save_predictions("a", "b")
    save_truth("t.npz", a=2, b=4)
    save_truth("u.npz", a=1, b=4)
    done = error("found", "t.npz", "u.npz", "--out", "e.parquet", "--figure", "e.png")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == ["table: e.parquet", "figure: e.png"]
    rows = pq.read_table("e.parquet")
    assert len(rows) == 3 * 240
    assert set(rows["annotator"].to_pylist()) == {"t", "u", "mean of annotators"}
    with Image.open("e.png") as image:
        assert image.width > 800
    assert error("found", "t.npz", "--out", "e.csv").exit_code == 0
    assert len(pyarrow.csv.read_csv("e.csv")) == 240


def test_a_figure_of_one_annotator_with_constant_uncertainty():
    pytest.importorskip("matplotlib")
    save_predictions("a", sigma=[0.0])
    save_truth("t.npz", a=0)
    assert error("found", "t.npz", "--figure", "e.svg").exit_code == 0
    assert Path("e.svg").read_text("utf-8").startswith("<?xml")


# --- exit 2 ----------------------------------------------------------------------------------------------------------


def test_mixed_models_are_refused_unless_asked_for():
    save_predictions("a", "b", model_id=["m", "n"])
    save_truth("t.npz", a=1, b=2)
    done = error("found", "t.npz")
    assert done.exit_code == 2
    assert "--mix-models" in done.stderr
    done = error("found", "t.npz", "--mix-models")
    assert done.exit_code == 0
    assert "warning: standard deviations of 2 models are mixed: m, n" in done.stderr


def test_masks_are_no_annotators():
    save_predictions("a")
    Path("masks").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("masks/a.png")
    done = error("found", "masks")
    assert done.exit_code == 2
    assert "masks holds masks, which have no nodes" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("found", "t.npz", "t.npz"), "given twice"),
        (("found", "other.npz"), "no image is in both: found has 'a' and other.npz has 'z'"),
        (("found", "none.npz"), "does not exist"),
        (("found", "t.npz", "--out", "e.xlsx"), "e.xlsx"),
        (("found", "t.npz", "--figure", "e.bmp"), "e.bmp"),
    ],
)
def test_requests_that_are_wrong(arguments, told):
    save_predictions("a")
    save_truth("t.npz", a=1)
    save_truth("other.npz", z=1)
    done = error(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr


def test_no_uncertainty_at_all_is_refused():
    save_predictions("a", sigma=[np.nan])
    save_truth("t.npz", a=1)
    done = error("found", "t.npz")
    assert done.exit_code == 2
    assert "no row of found has standard deviations" in done.stderr


# --- exit 3 ----------------------------------------------------------------------------------------------------------


def test_predictions_that_no_annotator_has():
    save_predictions("a", "b", "c")
    save_truth("t.npz", a=1, b=2)
    save_truth("u.npz", a=1, x=4)
    done = error("found", "t.npz", "u.npz")
    assert done.exit_code == 3
    assert "1 prediction without a truth, not compared:\n  c\n" in done.stderr
    assert "1 prediction that u has no truth of, but others do:\n  b\n" in done.stderr
    assert "1 image of u without a prediction, not compared:\n  x\n" in done.stderr


def test_rows_without_uncertainty():
    save_predictions("a", "b", sigma=[np.nan, 2.0])
    save_truth("t.npz", a=1, b=2)
    done = error("found", "t.npz")
    assert done.exit_code == 3
    assert "1 row left out:\n  a: without standard deviations" in done.stderr


# --- exit 1 ----------------------------------------------------------------------------------------------------------


def test_a_damaged_truth():
    save_predictions("a")
    np.savez("t.npz", name=["a"], landmarks_xy=np.zeros((1, 3, 2)))
    done = error("found", "t.npz")
    assert done.exit_code == 1
    assert "landmarks_xy is [1, 3, 2], expected [1, 120, 2]" in done.stderr
