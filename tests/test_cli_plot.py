"""``cxu plot``: the kinds of figures, what is printed, and what is refused."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import make_rows, mimic_csv, published_csv, published_row
from cxu import table
from cxu.cli import app
from mask_helpers import store_rows

KINDS = ("nodes", "sigma", "kept", "rca", "ctr")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path):
    """A home with 24 rows of MIMIC and a selection of them."""
    Path("mimic.csv").write_text(mimic_csv())
    assert cxu("import", "mimic.csv", "--source", "mimic").exit_code == 0
    assert cxu("filter", "--max-std", 5).exit_code == 0
    return tmp_path / "cxu-data"


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_and_told(home, kind):
    done = cxu("plot", kind, "mimic", "--out", "figure.png")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("home cxu-data · source mimic/model: 24 rows")
    assert done.stdout.endswith("\nfigure: figure.png\n")
    assert "mimic" in done.stdout
    with Image.open("figure.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_the_numbers_behind_the_figure(home, kind):
    done = cxu("plot", kind, "mimic", "--out", "figure.svg", "--json")
    content = json.loads(done.stdout)
    assert (content["kind"], content["figure"]) == (kind, "figure.svg")
    assert [group["source"] for group in content["groups"]] == ["mimic"]
    (path,) = (home / "runs").glob(f"*-plot-{kind}.json")
    manifest = json.loads(path.read_text())
    assert manifest["groups"] == content["groups"]
    assert manifest["tables"] == ["mimic/model"]


@pytest.mark.parametrize(("suffix", "mark"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_says_the_format(home, suffix, mark):
    assert cxu("plot", "sigma", "--out", f"figure{suffix}").exit_code == 0
    assert Path(f"figure{suffix}").read_bytes().startswith(mark)


def test_without_a_table_it_is_the_latest_selection_and_for_kept_what_a_filter_reads(home):
    assert " · selection latest: " in cxu("plot", "sigma", "--out", "a.png").stderr
    assert " · source mimic/model: 24 rows" in cxu("plot", "kept", "--out", "a.png").stderr


def test_kept_says_what_the_filter_then_reports(home):
    content = json.loads(cxu("plot", "kept", "--out", "kept.png", "--json").stdout)
    for limit in (2.5, 4.0, 6.25):
        told = json.loads(cxu("filter", "--max-std", limit, "--json").stdout)
        (found,) = [one for one in content["groups"][0]["limits"] if one["max_std"] == limit]
        assert found["rows_kept"] == told["rows_out"]
        assert found["nodes_kept"] == told["nodes_kept"]
        assert found["organs_kept"] == told["organs_kept"]
    shares = content["groups"][0]["max_std_for_percent_of_nodes"]
    keep = dict(zip(("50", "80", "95"), told["keep_thresholds"]["all"], strict=True))
    assert shares == pytest.approx(keep, abs=1e-4)


def test_several_tables_are_drawn_by_source(home):
    rows = [published_row(f"{number:08d}_000.png") for number in range(3)]
    Path("nih.csv").write_text(published_csv(rows))
    assert cxu("import", "nih.csv", "--source", "chestxray8").exit_code == 0
    content = json.loads(cxu("plot", "ctr", "mimic", "chestxray8", "--out", "a.png", "--json").stdout)
    assert [(group["source"], group["rows"]) for group in content["groups"]] == [("chestxray8", 3), ("mimic", 24)]


def test_rows_that_are_left_out_are_counted(tmp_path):
    sigma = table.sigma_columns(np.full((2, 120, 2), 3.0, np.float32))
    rows = [make_rows(2, **sigma), make_rows(1, image_id=["old"])]
    store_rows(tmp_path / "t.parquet", table.concat_rows(rows))
    done = cxu("plot", "nodes", "t.parquet", "--out", "a.png")
    assert done.exit_code == 0
    assert "1 row without standard deviations of known scale left out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sigma", "mimic"], "--out: expected the figure's file, such as --out figure.png"),
        (["sigma", "mimic", "--out", "figure.jpg"], "expected a name that ends in .png, .svg, .pdf"),
        (["areas", "mimic", "--out", "a.png"], "'areas' is not one of 'nodes', 'sigma', 'kept', 'rca', 'ctr'"),
        (["sigma", "nothing", "--out", "a.png"], "no table, selection or source called 'nothing'"),
    ],
)
def test_wrong_requests_draw_nothing(home, arguments, told):
    done = cxu("plot", *arguments)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert not [path for path in Path().iterdir() if path.suffix in (".png", ".jpg")]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nodes", "has standard deviations of known scale (the original CheXmask has none)"),
        ("sigma", "there is no uncertainty to plot"),
        ("kept", "have no standard deviations"),
        ("rca", "has both standard deviations and RCA"),
    ],
)
def test_a_table_without_uncertainty_is_refused(tmp_path, kind, told):
    store_rows(tmp_path / "old.parquet", make_rows(3))
    done = cxu("plot", kind, "old.parquet", "--out", "a.png")
    assert done.exit_code == 2
    assert told in done.stderr
    assert not Path("a.png").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_table_is_refused(tmp_path, kind):
    store_rows(tmp_path / "t.parquet", make_rows(0))
    done = cxu("plot", kind, "t.parquet", "--out", "a.png")
    assert done.exit_code == 2
    assert "no rows to plot: t.parquet is empty" in done.stderr


def test_nothing_to_read_yet():
    assert cxu("plot", "kept", "--out", "a.png").exit_code == 2
    assert "no selection yet" in cxu("plot", "ctr", "--out", "a.png").stderr


def test_without_matplotlib_the_error_says_how_to_get_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = cxu("plot", "sigma", "mimic", "--out", "a.png")
    assert done.exit_code == 1
    assert "pip install 'cxu[plot]'" in done.stderr


def interrupted_while_saving(_figure, path, **_options):
    Path(path).write_bytes(b"half a figure")
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["reading", "saving"])
def test_ctrl_c_leaves_no_half_figure_and_keeps_the_old_one(home, monkeypatch, moment):
    Path("figure.png").write_bytes(b"old")
    if moment == "reading":
        monkeypatch.setattr("cxu.plot.sigma.measure_spread", Mock(side_effect=KeyboardInterrupt))
    else:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted_while_saving)
    done = cxu("plot", "sigma", "--out", "figure.png")
    assert (done.exit_code, done.stdout) == (130, "")
    assert "cxu: interrupted. Nothing was written" in done.stderr
    assert Path("figure.png").read_bytes() == b"old"
    assert not list(Path().glob(".cxu-tmp-*"))
    assert not list((home / "runs").glob("*-plot-*"))
