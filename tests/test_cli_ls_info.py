"""``cxu ls`` and ``cxu info`` as they are typed."""

import hashlib
import json
import os
import re
import time
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from builders import make_rows
from cxu import store, table
from cxu.anatomy import N_NODES
from cxu.cli import app
from cxu.files import TEMP_PREFIX
from cxu.model.weights import bundled_path, bundled_variants, save_weights
from cxu.store import Home, Part, SourceFile, SourceListing
from predict_helpers import tiny_model, write_weights

PAGE = Path(__file__).parents[1] / "docs" / "commands" / "info.md"
SAMPLE = package_files("cxu") / "data" / "sample_synthetic.csv"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def cxu(home):
    """Return a function that runs a command line of cxu in the home and returns its result."""

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--home", str(home.root)])
        assert result.exit_code == exit_code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def rows_of(source, px, **columns):
    sigma = np.repeat(np.asarray(px, np.float32)[:, None, None], N_NODES, axis=1).repeat(2, axis=2)
    own = {"source": source, "n_samples": 50, "rca_mean": np.full(len(px), 0.8)}
    return make_rows(len(px), **{**own, **table.sigma_columns(sigma), **columns})


@pytest.fixture
def put(home):
    """Return a function that puts rows into the home as a source."""

    def publish(rows, frame="model", partial=None):
        source = rows["source"][0].as_py()
        staged = home.staging(source, frame, "test")
        store.write_table(rows, staged / "part-0000.parquet")
        part = Part("part-0000.parquet", len(rows), "0" * 64)
        files = (SourceFile(f"{source}.csv", "0" * 64, len(rows), 0, parts=(part,)),)
        home.publish(SourceListing(source, frame, files, partial), staged)

    return publish


@pytest.fixture
def filled(cxu, put, home):
    """A home with two sources, one of them partial, two selections and a table of predictions."""
    put(rows_of("mimic", [2, 4, 9]), partial=3)
    put(rows_of("vindr", [2, 9], frame="image", frame_side=np.full(2, 1024.0)), frame="image")
    cxu("filter", "--max-std", "p50", "--min-rca", "0.7")
    cxu("filter", "--source", "vindr", "--max-std", "heart=5", "--name", "strict")
    store.write_table(rows_of("mine", [3]), home.root / "predictions" / "predictions.parquet")


def lines_of(result):
    return [line.rstrip() for line in result.stdout.splitlines()]


# --- ls --------------------------------------------------------------------------------------------------------------


def test_an_empty_home_says_how_to_start(cxu, home):
    result = cxu("ls")
    assert result.stdout == "nothing here yet: start with cxu quickstart, cxu fetch or cxu import\n"
    assert result.stderr == f"home {home.root}\n"
    assert json.loads(cxu("ls", "--json").stdout) == {
        "home": str(home.root),
        "sources": [],
        "selections": [],
        "predictions": [],
        "damaged": [],
    }
    assert not home.root.exists()


def test_ls_lists_what_is_there(cxu, filled):
    lines = lines_of(cxu("ls"))
    assert lines[0] == "Sources"
    assert [re.split(r"  +", line) for line in lines if ".csv" in line] == [
        ["mimic", "model", "3 (partial)", lines[2].split("  ")[-2].strip(), "mimic.csv"],
        ["vindr", "image", "2", lines[3].split("  ")[-2].strip(), "vindr.csv"],
    ]
    selections = lines[lines.index("Selections") :]
    assert selections[1].split() == ["name", "rows", "made", "thresholds"]
    assert re.fullmatch(
        r"latest +3 \(partial\) +\d+ seconds ago +max_std p50 \(4.00 to 5.50 px\), min_rca 0.7", selections[2]
    ), selections[2]
    assert re.fullmatch(r"strict +2 +\d+ seconds ago +max_std heart=5 px", selections[3]), selections[3]
    predictions = lines[lines.index("Predictions") :]
    assert predictions[2].split() == ["predictions.parquet", "1"]
    assert max(map(len, lines)) <= 100


def test_ls_as_json(cxu, filled, home):
    os.utime(home.selection_path("strict"), (time.time() - 7200,) * 2)
    content = json.loads(cxu("ls", "--json").stdout)
    assert [(one["source"], one["frame"], one["rows"], one["partial"]) for one in content["sources"]] == [
        ("mimic", "model", 3, 3),
        ("vindr", "image", 2, None),
    ]
    assert content["sources"][0]["files"] == ["mimic.csv"]
    size = (home.source_folder("mimic", "model") / "part-0000.parquet").stat().st_size
    assert content["sources"][0]["bytes"] == size
    latest, strict = content["selections"]
    assert (latest["name"], latest["rows"], latest["partial"]) == ("latest", 3, True)
    assert (strict["name"], strict["rows"], strict["partial"]) == ("strict", 2, False)
    assert strict["thresholds"] == "max_std heart=5 px"
    assert 7200 <= strict["age_s"] < 7300
    assert content["predictions"] == [{"name": "predictions.parquet", "rows": 1}]
    assert content["damaged"] == []


def test_what_is_damaged_does_not_hide_the_rest(cxu, filled, home):
    home.selection_path("latest").write_text("torn")
    (home.source_folder("mimic", "model") / "part-0000.parquet").unlink()
    result = cxu("ls", exit_code=3)
    assert [line.split()[0] for line in lines_of(result) if line[:6] in ("vindr ", "strict")] == ["vindr", "strict"]
    assert "these cannot be read:" in result.stderr
    assert "latest.parquet is no readable Parquet file" in result.stderr
    assert "part-0000.parquet is gone" in result.stderr
    content = json.loads(cxu("ls", "--json", exit_code=3).stdout)
    assert len(content["damaged"]) == 2
    assert [one["name"] for one in content["selections"]] == ["strict"]


def test_a_damaged_listing_does_not_hide_the_rest(cxu, filled, home):
    (home.source_folder("mimic", "model") / "source.json").write_text("{")
    result = cxu("ls", "--json", exit_code=3)
    content = json.loads(result.stdout)
    assert "source.json is damaged" in result.stderr
    assert [one["source"] for one in content["sources"]] == ["vindr"]
    assert len(content["damaged"]) == 1


def test_a_damaged_listing_fails_only_who_asks_for_it(cxu, filled, home):
    (home.source_folder("mimic", "model") / "source.json").write_text("{")
    cxu("filter", "--source", "vindr", "--max-std", "5")
    assert "vindr" in cxu("info", "vindr").stdout
    for arguments in (("--max-std", "5"), ("--source", "mimic")):
        stderr = cxu("filter", *arguments, exit_code=1).stderr
        assert "source.json is damaged" in stderr
        assert "mimic" in stderr


def test_a_table_still_being_written_is_not_listed(cxu, filled, home):
    (home.root / "predictions" / f"{TEMP_PREFIX}1-new.parquet").write_bytes(b"half")
    assert len(json.loads(cxu("ls", "--json").stdout)["predictions"]) == 1


def test_ls_takes_no_argument(cxu):
    assert "unexpected extra argument" in cxu("ls", "mimic", exit_code=2).stderr


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_describes_the_selection_latest(cxu, filled, home):
    result = cxu("info")
    thresholds = "max_std p50 (4.00 to 5.50 px), min_rca 0.7"
    start = f"home {home.root} · selection latest: 3 rows, made "
    assert result.stderr.startswith(start)
    assert f"ago, {thresholds}, partial: of a source fetched with --limit-rows" in result.stderr
    assert lines_of(result) == [
        "rows                      3 (partial: --limit-rows)",
        "source                    mimic (2), vindr (1)",
        "frame                     model (2), image (1)",
        "model                     published (3)",
        "samples of the model      50 (3)",
        "rows without uncertainty  0",
        "rows without image size   0",
        "rows with RCA exchanged   0",
        "",
        "Node uncertainty, px of the 1024 model frame",
        "organ        5 %  25 %  50 %  75 %  95 %",
        "right_lung  2.00  2.00  2.00  4.00  4.00",
        "left_lung   2.00  2.00  2.00  4.00  4.00",
        "heart       2.00  2.00  2.00  4.00  4.00",
        "all         2.00  2.00  2.00  4.00  4.00",
        "",
        "By row",
        "                                  5 %  25 %  50 %  75 %  95 %",
        "RCA mean, Dice                   0.80  0.80  0.80  0.80  0.80",
        "mean node uncertainty, model px  2.00  2.00  2.00  3.00  3.80",
        "",
        "Selection",
        "organ       nodes confident  organs usable",
        "right_lung          100.0 %        100.0 %",
        "left_lung           100.0 %        100.0 %",
        "heart               100.0 %        100.0 %",
    ]


def test_the_page_shows_what_the_sample_gives(cxu):
    cxu("import", SAMPLE, "--source", "synthetic", "--frame", "model")
    cxu("filter", "--max-std", "5")
    shown = PAGE.read_text("utf-8").split("```text\n")[1].split("```")[0]
    assert "".join(f"{line}\n" for line in lines_of(cxu("info"))) == shown


def test_info_describes_sources_and_files(cxu, filled, home):
    assert "source mimic/model: 3 rows" in cxu("info", "mimic").stderr
    assert "file " in cxu("info", home.root / "predictions" / "predictions.parquet").stderr
    assert "selection strict: 2 rows" in cxu("info", "strict").stderr


def test_info_as_json(cxu, filled):
    content = json.loads(cxu("info", "strict", "--json").stdout)
    assert set(content) == {
        *("name", "kind", "rows", "source", "frame", "model_id", "n_samples", "repo", "revision", "view", "quality"),
        *("without_sigma", "without_size", "rca_swapped", "sigma_model_px", "rca_mean", "rca_max"),
        *("mean_sigma_model_px", "nodes_confident", "organs_usable", "facts"),
    }
    assert (content["rows"], content["source"], content["rca_max"]) == (2, {"vindr": 2}, None)
    assert content["sigma_model_px"]["heart"] == [2, 2, 5.5, 9, 9]
    assert content["nodes_confident"] == {"right_lung": 1, "left_lung": 1, "heart": 0.5}


def test_info_of_an_empty_selection(cxu, filled):
    cxu("filter", "--max-std", "1", "--name", "none")
    assert lines_of(cxu("info", "none"))[0].split() == ["rows", "0", "(partial:", "--limit-rows)"]
    assert json.loads(cxu("info", "none", "--json").stdout)["rows"] == 0


def test_a_long_list_of_values_is_cut(cxu, tmp_path):
    views = [f"view{number}" for number in range(12)]
    store.write_table(rows_of("mine", [2] * 12, view=views), tmp_path / "t.parquet")
    described = " ".join(cxu("info", tmp_path / "t.parquet").stdout.split())
    assert (
        "view view0 (1), view1 (1), view2 (1), view3 (1), view4 (1), view5 (1), view6 (1), view7 (1), … rows"
        in described
    )
    assert len(json.loads(cxu("info", tmp_path / "t.parquet", "--json").stdout)["view"]) == 12


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((), 2, "no selection yet in"),
        (("mimic",), 2, "no table, selection or source called 'mimic'"),
        (("broken.parquet",), 1, "is no readable Parquet file"),
        (("none.parquet",), 2, "does not exist"),
    ],
    ids=str,
)
def test_info_of_what_is_not_there(cxu, tmp_path, monkeypatch, arguments, exit_code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.parquet").write_text("torn")
    result = cxu("info", *arguments, exit_code=exit_code)
    assert message in result.stderr
    assert result.stdout == ""


def test_info_asks_for_the_frame(cxu, put):
    put(rows_of("mimic", [2, 4]))
    put(rows_of("mimic", [2], frame="image"), frame="image")
    assert "choose with --frame" in cxu("info", "mimic", exit_code=2).stderr
    assert json.loads(cxu("info", "mimic", "--frame", "image", "--json").stdout)["rows"] == 1


# --- info --model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "arguments", [["--model"], ["--model", "bundled"], ["--model", "bundled:igsc"], ["--model=bundled"]]
)
def test_info_shows_the_bundled_model(cxu, offline, arguments):
    lines = lines_of(cxu("info", *arguments))
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in lines[: lines.index("")])
    digest = hashlib.sha256(bundled_path().read_bytes()).hexdigest()
    assert shown["network"].startswith("igsc: ")
    assert (shown["model_id"], shown["file"]) == (digest, str(bundled_path()))
    assert "research and education only; not a medical device" in shown["terms"]
    assert shown["card"] == "docs/model.md"
    assert "Images of its training data, by split" in lines
    assert any(line.startswith("Measured on the ") for line in lines)


def test_info_shows_every_bundled_model(cxu, offline):
    assert bundled_variants()[0] == "igsc"
    for variant in bundled_variants():
        assert f"network     {variant}: " in cxu("info", "--model", f"bundled:{variant}").stdout


def test_info_of_a_model_as_json(cxu, offline):
    bare = json.loads(cxu("info", "--json", "--model").stdout)
    assert bare == json.loads(cxu("info", "--model", "--json").stdout)
    assert bare == json.loads(cxu("info", "--model", "bundled", "--json").stdout)
    assert bare["metadata"]["recipe"] == bare["recipe"]


def test_info_of_a_model_prefers_the_test_part(cxu, tmp_path):
    scores = {"validation": {"all": {"images": 3, "mse_px2": 1.0}}, "test": {"JSRT": {"images": 2, "pearson": 0.25}}}
    content = {"steps": "1", "recipe": '{"start": "/a/first.safetensors"}', "scores": json.dumps(scores)}
    save_weights(tiny_model(use_skip=False), tmp_path / "net.safetensors", content)
    result = cxu("info", "--model", tmp_path / "net.safetensors")
    assert lines_of(result)[-3:] == [
        "Measured on the test part, px of the 1024 model frame",
        "data set  images  Pearson",
        "JSRT           2     0.25",
    ]
    assert "network     no-skip: HybridGNet without skip connections" in lines_of(result)
    assert "training    1 step, from first.safetensors" in lines_of(result)
    assert "docs/model.md" not in result.stdout


def test_info_of_a_model_leaves_out_what_the_file_does_not_know(cxu, tmp_path):
    lines = lines_of(cxu("info", "--model", write_weights(tmp_path / "net.safetensors")))
    assert [line.split()[0] for line in lines] == [
        *("network", "input", "latents", "parameters", "refinement", "spread", "file", "size", "model_id", "terms")
    ]


def test_info_of_a_model_obeys_no_text_of_a_foreign_file(cxu, tmp_path):
    content = {"terms": "\x1b[31m[red]mine\n", "data": '{"images": {"\\ud800": {"\\u0007": 3}}}'}
    save_weights(tiny_model(), tmp_path / "net.safetensors", content)
    result = cxu("info", "--model", tmp_path / "net.safetensors")
    assert "terms       \N{REPLACEMENT CHARACTER}[31m[red]mine\N{REPLACEMENT CHARACTER}" in lines_of(result)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("mimic", "--model"), 2, "--model bundled describes a network, the table mimic asks for a table"),
        (("--model", "bundled", "mimic"), 2, "the table mimic"),
        (("--model", "--", "mimic"), 2, "the table mimic"),
        (("--model", "--frame", "image"), 2, "--frame image"),
        (("--model", "bundled:foo"), 2, "weights bundled:foo: no such variant ships with cxu; expected one of: "),
        (("--model", "bundled:"), 2, "expected one of: bundled:igsc"),
        (("--model", "nowhere.safetensors"), 2, "no such file or folder"),
        (("--model", "torn.safetensors"), 1, "truncated, damaged"),
    ],
    ids=str,
)
def test_info_of_a_model_that_cannot_be_shown(tmp_path, monkeypatch, offline, arguments, exit_code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(bundled_path().read_bytes()[:3000])
    result = CliRunner().invoke(app, ["info", *arguments])
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr


def test_the_page_shows_what_info_says_of_a_model(cxu, offline):
    shown = PAGE.read_text("utf-8").split("cxu info --model\n\n```text\n")[1].split("```")[0]
    titles = {line.split("  ")[0] for line in lines_of(cxu("info", "--model"))}
    assert {"network", "model_id", "terms"} <= {line.split("  ")[0] for line in shown.splitlines()} & titles
