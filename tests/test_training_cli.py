"""``cxu train``: its result, its table, and an exit code for each cause."""

import json

import pytest
import torch
from typer.testing import CliRunner

from cxu.cli import app
from cxu.model.weights import load_weights
from training_helpers import make_folder

TINY = ["--size", 64, "--latents", 8, "--batch-size", 2, "--samples", 3, "--validations", 2, "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make_folder(path)
    return path


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_ends_with_its_scores(folder, tmp_path):
    done = cxu("train", folder, "--out", tmp_path / "run", *TINY, "--steps", 2)
    assert done.exit_code == 0, done.output
    head, *rows, empty, last = done.stdout.splitlines()
    assert head.split() == [
        "part",
        "data",
        "set",
        "images",
        "MSE",
        "px²",
        "error",
        "px",
        "Dice",
        "lungs",
        "Dice",
        "heart",
        "Pearson",
        "sigma",
        "px",
    ]
    assert [row.split()[:3] for row in rows] == [
        ["validation", "all", "2"],
        ["validation", "JSRT", "1"],
        ["validation", "Shenzhen", "1"],
    ]
    assert empty == ""
    assert last.startswith("2 steps in 0.")
    assert last.endswith("weights.safetensors")
    said = done.stderr.splitlines()
    assert said[0] == "reading 5 images"
    assert [line.split(" · ")[:2] for line in said[1:]] == [["step 1", "50%"], ["step 2", "100%"]]


def test_the_result_as_json_has_no_nan(folder, tmp_path):
    done = cxu("train", folder, "--out", tmp_path, *TINY, "--steps", 1, "--report-test", "--json")
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert result["steps"] == 1
    assert result["validation"]["Shenzhen"]["dice_heart"] is None
    assert result["test"]["all"]["images"] == 2


@pytest.mark.slow
def test_the_same_command_continues(folder, tmp_path):
    for _ in range(2):
        done = cxu("train", folder, "--out", tmp_path, *TINY, "--steps", 2)
        assert done.exit_code == 0
    assert "continued at step 2" in done.stderr


def test_every_option_reaches_the_recipe(folder, tmp_path):
    start = cxu("train", folder, "--out", tmp_path / "a", *TINY, "--steps", 1, "--variant", "no-skip")
    assert start.exit_code == 0
    words = (
        "--variant no-skip --across 0.4 --spread --share JSRT=0.3 --lr 0.01 --schedule step --warmup 0.1 "
        "--weight-decay 0.2 --kl 0.3 --kl-start 0.04 --kl-ramp 0.5 --energy 0.6 --train-samples 2 --mse-on samples "
        "--ema 0.7 --augmentation off --augmentation noise=0.08 --precision float32 --seed 9 --checkpoint-minutes 1 "
        "--augmentation corrupt=0.5 --corrupt-teaches uncertainty"
    )
    weights = tmp_path / "a" / "weights.safetensors"
    done = cxu("train", folder, "--out", tmp_path / "b", *TINY, "--budget", 0.001, "--start", weights, *words.split())
    assert done.exit_code == 0, done.output
    recipe = json.loads((tmp_path / "b" / "training.json").read_text())["recipe"]
    assert {name: value for name, value in recipe["augment"].items() if value} == {"noise": 0.08, "corrupt": 0.5}
    assert {name: value for name, value in recipe.items() if name != "augment"} == {
        "variant": "no-skip",
        "size": 64,
        "latents": 8,
        "refine": False,
        "steps": None,
        "budget_minutes": 0.001,
        "batch_size": 2,
        "shares": {"JSRT": 0.3},
        "lr": 0.01,
        "warmup": 0.1,
        "schedule": "step",
        "weight_decay": 0.2,
        "clip": 1.0,
        "kl_start": 0.04,
        "kl": 0.3,
        "kl_ramp": 0.5,
        "train_samples": 2,
        "energy": 0.6,
        "mse_on": "samples",
        "across": 0.4,
        "spread": True,
        "corrupt_teaches": "uncertainty",
        "ema": 0.7,
        "precision": "float32",
        "validations": 2,
        "samples": 3,
        "start": str(weights),
        "seed": 9,
    }


def test_refinement_reaches_the_network(folder, tmp_path):
    done = cxu("train", folder, "--out", tmp_path / "run", *TINY, "--steps", 1, "--refine", "--spread")
    assert done.exit_code == 0, done.output
    config = load_weights(tmp_path / "run" / "weights.safetensors").model.config
    assert (config.refine, config.spread) == (True, True)
    assert (
        cxu(
            "train", folder, "--out", tmp_path / "no", *TINY, "--steps", 1, "--refine", "--variant", "no-skip"
        ).exit_code
        == 2
    )


def test_a_damaged_image_is_a_failure(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "images" / "film01.png").write_bytes(b"no image")
    done = cxu("train", tmp_path, "--out", tmp_path / "run", *TINY, "--steps", 1)
    assert done.exit_code == 1
    assert "film01.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a number of steps or a budget of minutes"),
        (["--steps", 1, "--augmentation", "fog=1"], "augmentation 'fog' is unknown; expected one of: rotation, "),
        (["--steps", 1, "--share", "VinDr=0.5"], "share of 'VinDr': no training image is of that data set"),
        (["--steps", 1, "--start", "none.safetensors"], "none.safetensors"),
        (["--steps", 1, "--lr", "fast"], "--lr"),
    ],
)
def test_a_wrong_request_exits_2(folder, tmp_path, arguments, message):
    done = cxu("train", folder, "--out", tmp_path / "run", *TINY, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_there_exits_2(tmp_path):
    done = cxu("train", tmp_path / "none", "--out", tmp_path / "run", "--steps", 1)
    assert done.exit_code == 2
    assert "landmarks.npz is missing" in done.stderr
