"""``cxu evaluate noise`` and ``cxu evaluate occlusion`` as users type them."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders import chest
from cxu.cli import app
from cxu.evaluation import corruption
from predict_helpers import write_film, write_weights

KINDS = {"noise": ("--sigmas", "10,90"), "occlusion": ("--squares", "1,2")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "tiny.safetensors")
    for seed, name in enumerate("ab"):
        write_film(tmp_path / f"films/{name}.png", seed, size=64)
    return tmp_path


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def evaluate(kind, *arguments):
    fixed = ("--weights", "tiny.safetensors", "--samples", 4, "--device", "cpu", *KINDS[kind])
    return cxu("evaluate", kind, *fixed, *arguments)


def write_truth(path, names):
    np.savez(path, name=np.array(names), landmarks_xy=np.stack([chest()] * len(names)))
    return path


def test_noise_prints_a_line_for_each_sigma(here):
    done = evaluate("noise", "films", "--out", "noise.csv", "--figure", "noise.png")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Median (quartiles) over 2 images, px of the 1024 model frame"
    assert [line.split()[0] for line in lines[2:5]] == ["0", "10", "90"]
    assert "no error" in done.stdout
    assert "Published median scores by sigma, of other films and other weights" in done.stdout
    assert "Spearman of score and error" not in done.stdout
    assert lines[-2:] == ["table: noise.csv", "figure: noise.png"]
    assert "2 images, 3 predictions each · weights tiny.safetensors" in done.stderr
    assert len(pyarrow.csv.read_csv("noise.csv")) == 6
    assert Path("noise.png").stat().st_size > 1000
    assert len(list(Path("cxu-data/runs").glob("*-evaluate-noise.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("table", ["noise.csv", "noise.parquet"])
def test_occlusion_is_pooled_with_noise(here, table):
    truth = write_truth(here / "truth.npz", ["a", "b"])
    assert evaluate("noise", "films", "--truth", truth, "--out", table).exit_code == 0
    done = evaluate("occlusion", "films", "--truth", truth, "--pool", table)
    assert done.exit_code == 0, done.stderr
    assert "Spearman of score and error, noise and occlusion pooled, 2 images: " in done.stdout
    refused = evaluate("occlusion", "films", "--truth", truth, "--pool", table, "--seed", 5)
    assert refused.exit_code == 2
    assert "was measured with another seed: 0, here 5" in refused.stderr
    assert "needs --truth" in evaluate("occlusion", "films", "--pool", table).stderr


def test_occlusion_tells_inside_from_outside(here):
    done = evaluate("occlusion", "films", "--half-size", 150, "--out", "o.parquet", "--figure", "o.pdf")
    assert done.exit_code == 0, done.stderr
    assert "Nodes inside and outside the squares" in done.stdout
    assert "node uncertainty inside / outside, all squares: " in done.stdout
    assert "Published" not in done.stdout
    rows = pq.read_table("o.parquet")
    assert rows["severity"].to_pylist() == [0, 1, 2] * 2
    assert Path("o.pdf").is_file()


def test_json_has_every_number(here):
    truth = write_truth(here / "t.npz", ["a", "b"])
    done = evaluate("occlusion", "films", "--truth", truth, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["damage"], found["images"], found["half_size_px"]) == ("occlusion", 2, 100)
    assert [step["severity"] for step in found["steps"]] == [0, 1, 2]
    assert set(found["steps"][1]["score_px"]) == {"low", "median", "high"}
    assert set(found["score_with_error"]) == {"value", "low", "high"}
    assert found["steps"][0]["nodes"] is None
    assert found["steps"][1]["nodes"]["error_ratio"]["value"] > 0
    assert found["rejected"] == found["without_truth"] == []


def test_json_without_truth_has_null_errors(here):
    done = evaluate("noise", "films/a.png", "--json")
    found = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found["score_with_error"] is None
    assert found["steps"][0]["error_px"] is None
    # of one image there are no bounds
    assert found["score_with_severity"]["low"] is None
    assert found["published_px"]["with skip connections"]["50"] == 65.9


@pytest.mark.slow
def test_the_same_command_gives_the_same_file(here):
    for name, batch in (("a.parquet", "1"), ("b.parquet", "1")):
        assert evaluate("noise", "films", "--out", name, "--batch-size", batch).exit_code == 0
    assert Path("a.parquet").read_bytes() == Path("b.parquet").read_bytes()


def test_truth_adds_errors_and_leaves_out_images_without(here):
    write_film(here / "films/c.png", 5, size=64)
    done = evaluate("noise", "films", "--truth", write_truth(here / "t.npz", ["a", "b", "other"]))
    assert done.exit_code == 3
    assert "1 image without truth left out:\n  c.png" in done.stderr
    assert "over 2 images" in done.stdout
    assert "Spearman of score and error, all images and severities: " in done.stdout
    assert "Spearman of score and error, within images: " in done.stdout


def test_truth_may_be_a_table(here):
    assert cxu("predict", "films", "--weights", "tiny.safetensors", "--samples", 4, "--device", "cpu").exit_code == 0
    done = evaluate("noise", "films", "--truth", "predictions", "--json")
    assert done.exit_code == 0, done.stderr
    # the same samples: the prediction is its own truth
    assert json.loads(done.stdout)["steps"][0]["error_px"]["high"] < 0.1


def test_limit_draws_by_the_seed(here):
    for seed in range(2, 8):
        write_film(here / f"films/{seed}.png", seed, size=64)
    drawn = []
    for seed in (0, 0, 1):
        assert evaluate("noise", "films", "--limit", 3, "--seed", seed, "--out", "t.csv").exit_code == 0
        drawn.append(sorted(set(pyarrow.csv.read_csv("t.csv")["image_id"].to_pylist())))
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images_are_listed(here, kind):
    (here / "films/torn.png").write_bytes(b"\x89PNG no")
    done = evaluate(kind, "films", "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert found["images"] == 2
    assert found["rejected"][0][0].endswith("torn.png")
    assert "1 file not measured:" in done.stderr


def test_no_readable_image_at_all(here):
    (here / "bad.png").write_bytes(b"no")
    done = evaluate("noise", "bad.png", "--figure", "n.png", "--out", "n.csv")
    assert done.exit_code == 3
    assert "over 0 images" in done.stdout


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("noise", ["nowhere"], "nowhere"),
        ("noise", ["films", "--figure", "n.jpg"], "n.jpg"),
        ("noise", ["films", "--out", "n.txt"], "--out n.txt"),
        ("noise", ["films", "--sigmas", "1,x"], "--sigmas 1,x"),
        ("noise", ["films", "--sigmas", "-3"], "--sigmas -3"),
        ("occlusion", ["films", "--squares", "1.5"], "--squares 1.5"),
        ("occlusion", ["films", "--half-size", "0"], "--half-size 0"),
        ("noise", ["films", "--truth", "none.npz"], "none.npz"),
        ("noise", ["films", "--truth", "other.npz"], "no image is in both"),
        ("noise", ["films", "--batch-size", "x"], "--batch-size x"),
        ("noise", ["films", "--device", "cuda:99"], "cuda"),
    ],
)
def test_wrong_requests_are_usage_errors(here, kind, arguments, said, monkeypatch):
    write_truth(here / "other.npz", ["z"])
    monkeypatch.setattr(corruption, "measure_damage", lambda *_, **__: pytest.fail("should be refused before"))
    done = evaluate(kind, *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_a_damaged_truth_fails(here):
    (here / "t.npz").write_bytes(b"PK no")
    assert evaluate("noise", "films", "--truth", "t.npz").exit_code == 1


def test_a_missing_extra_is_said_before_the_work(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(corruption, "measure_damage", lambda *_, **__: pytest.fail("should be refused before"))
    done = evaluate("noise", "films", "--figure", "n.png")
    assert done.exit_code == 1
    assert "pip install 'cxu[plot]'" in done.stderr


def test_an_interruption_leaves_nothing(here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(corruption, "_measure_image", interrupted)
    done = evaluate("noise", "films", "--out", "n.csv", "--figure", "n.png")
    assert done.exit_code == 130
    assert "interrupted. Nothing was written" in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in here.iterdir()) == ["films", "tiny.safetensors"]
