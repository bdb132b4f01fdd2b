"""``cxu evaluate ood`` as users type it."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders import make_rows, mimic_csv
from cxu import store, table
from cxu.cli import app
from cxu.evaluation import ood_fit


def write_rows(path, n_rows, *, score=10.0, latent=0.5, seed=0, **columns):
    rng = np.random.default_rng(seed)
    sigma = np.abs(rng.normal(score, 1, (n_rows, 1, 1))).repeat(120, axis=1).repeat(2, axis=2).astype(np.float32)
    if latent is not None:
        columns["latent_sigma"] = (latent + 0.05 * rng.standard_normal((n_rows, 64))).astype(np.float32)
    columns.setdefault("image_id", [f"image{seed}-{index:04d}" for index in range(n_rows)])
    store.write_table(make_rows(n_rows, **table.sigma_columns(sigma), **columns), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ood_fit, "_TREES", (10, 30))
    write_rows(tmp_path / "in.parquet", 120)
    write_rows(tmp_path / "out.parquet", 60, score=11, latent=0.6, seed=1)
    return tmp_path


def ood(*arguments):
    return CliRunner().invoke(app, ["evaluate", "ood", *[str(argument) for argument in arguments]])


def test_two_tables(here):
    done = ood("in.parquet", "out.parquet", "--out", "t.csv", "--figure", "f.png")
    assert done.exit_code == 0, done.stderr
    assert "image score" in done.stdout
    assert "isolation forest" in done.stdout
    assert "forest: n_estimators" in done.stdout
    assert "published numbers are of other films and other weights" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["table: t.csv", "figure: f.png"]
    assert "in.parquet: 120 rows" in done.stderr
    rows = pyarrow.csv.read_csv("t.csv")
    assert len(rows) == 180
    assert set(rows["split"].to_pylist()) == {"train", "validation", "test"}
    assert Path("f.png").stat().st_size > 1000
    assert len(list(Path("cxu-data/runs").glob("*-evaluate-ood.json"))) == 1


def test_json_has_every_number(here):
    done = ood("in.parquet", "out.parquet", "--json")
    found = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [one["name"] for one in found["detectors"]] == ["image score", "isolation forest"]
    assert [point["kept"] for point in found["detectors"][0]["points"]] == [0.9, 0.95, 0.99]
    assert set(found["detectors"][1]["auc"]) == {"value", "low", "high"}
    assert found["detectors"][0]["published_auc"] == {"with skip connections": 0.98, "without skip connections": 0.93}
    assert found["counts"]["out"]["train"] == 0
    assert "rows" not in found
    assert "test_in" not in found["detectors"][0]


def test_a_seed_makes_the_splits(here):
    first, again, other = (ood("in.parquet", "out.parquet", "--json", "--seed", seed).stdout for seed in (0, 0, 1))
    assert first == again != other


def test_what_is_left_out_is_said(here):
    sigma = np.full((40, 120, 2), 9.0, np.float32)
    sigma[:3] = np.nan
    rows = make_rows(40, **table.sigma_columns(sigma), source="mimic")
    store.write_table(rows, here / "some.parquet")
    done = ood("in.parquet", "some.parquet")
    assert done.exit_code == 0
    assert "3 rows of some.parquet without uncertainty left out" in done.stderr
    assert "some.parquet has no latent sigmas: only the image score is measured" in done.stderr
    assert "fewer than 20 images in a split" in done.stderr
    assert "isolation forest" not in done.stdout


def test_rca_of_a_published_table(here):
    (here / "m.csv").write_text(mimic_csv())
    assert CliRunner().invoke(app, ["import", "m.csv", "--source", "mimic", "--frame", "model"]).exit_code == 0
    done = ood("mimic", "--rca-below", "0.85", "--out", "t.parquet", "--figure", "f.svg")
    assert done.exit_code == 0, done.stderr
    assert "Agreement of image score and RCA (max)" in done.stdout
    assert "this is agreement, not accuracy" in done.stdout
    assert "mimic/model: 24 rows" in done.stderr
    rows = pq.read_table("t.parquet")
    assert len(rows) == 24
    assert set(rows["set"].to_pylist()) == {"in", "out"}
    found = json.loads(ood("mimic", "--rca-below", "0.85", "--json").stdout)
    assert [one["source"] for one in found["agreements"]] == ["mimic"]
    assert found["agreements"][0]["n_in"] + found["agreements"][0]["n_out"] == 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.parquet"], "--rca-below 0.7"),
        (
            ["in.parquet", "out.parquet", "--rca-below", "0.7"],
            "expected two tables, IN and OUT, or one with --rca-below",
        ),
        (["in.parquet", "nowhere"], "nowhere"),
        (["in.parquet", "in.parquet"], "120 images are in both"),
        (["in.parquet", "other.parquet"], "--mix-models"),
        (["in.parquet", "--rca-below", "7"], "--rca-below 7"),
        (["in.parquet", "--rca-below", "0.7"], "no row with both uncertainty and RCA"),
        (["in.parquet", "out.parquet", "--out", "t.txt"], "--out t.txt"),
        (["in.parquet", "out.parquet", "--figure", "f.jpg"], "f.jpg"),
    ],
)
def test_wrong_requests_are_usage_errors(here, arguments, said):
    write_rows(here / "other.parquet", 30, seed=2, model_id="c" * 64)
    done = ood(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert not Path("t.txt").exists()


def test_models_may_be_mixed(here):
    write_rows(here / "other.parquet", 60, seed=2, model_id="c" * 64, latent=None)
    assert ood("in.parquet", "other.parquet", "--mix-models").exit_code == 0


def test_no_table_at_all_fails(here):
    (here / "bad.parquet").write_bytes(b"no")
    assert ood("in.parquet", "bad.parquet").exit_code == 1


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("sklearn.ensemble", "science", []),
        ("scipy.stats", "science", ["--figure", "f.png"]),
        ("matplotlib.figure", "plot", ["--figure", "f.png"]),
    ],
)
def test_a_missing_extra_is_said(here, monkeypatch, module, extra, arguments):
    monkeypatch.setitem(sys.modules, module, None)
    done = ood("in.parquet", "out.parquet", *arguments)
    assert done.exit_code == 1
    assert f"pip install 'cxu[{extra}]'" in done.stderr
    assert done.stdout == ""


def test_an_interruption_leaves_nothing(here, monkeypatch):
    from cxu.evaluation import ood as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure_ood", interrupted)
    done = ood("in.parquet", "out.parquet", "--out", "t.csv")
    assert done.exit_code == 130
    assert not Path("t.csv").exists()


@pytest.mark.shared
def test_published_rows_without_uncertainty_are_refused(here, shared_data):
    name = "ChestX-Ray8.csv"
    done = CliRunner().invoke(
        app, ["import", str(shared_data / "chexmask" / name), "--source", "chestxray8", "--frame", "model"]
    )
    assert done.exit_code == 0, done.output
    refused = ood("chestxray8", "--rca-below", "0.7")
    assert refused.exit_code == 2
    assert "no row with both uncertainty and RCA" in refused.stderr
