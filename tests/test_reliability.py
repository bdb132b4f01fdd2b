"""What is wrong is said, nothing good beside it is lost, nothing else is touched: the catalogue of `reliability`."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from builders import chest
from cxu import store, table
from hub_server import HubServer
from predict_helpers import write_film, write_weights
from reliability import bad_images, bad_parquet, bad_rows, bad_weights, hostile_ids, hub_faults
from reliability.case import check_only_below, contents, run

ROOT = Path(__file__).parents[1]
MODULES = (bad_rows, bad_images, bad_weights, bad_parquet, hub_faults, hostile_ids)


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a user, beside another one with files that are nobody's business."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "outside/a").mkdir(parents=True)
    for name in ("a.png", "a/b.png", hostile_ids.PRECIOUS):
        (tmp_path / "outside" / name).write_bytes(b"precious")
    monkeypatch.chdir(folder)
    return folder


def do(here, *words):
    """Run a command in a folder; fail where it touches anything but ``out`` and the home."""
    before = contents(here.parent)
    done = run(*words)
    check_only_below(before, contents(here.parent), "here/out", "here/cxu-data/")
    return done


# --- rows ------------------------------------------------------------------------------------------------------------


@named(bad_rows.CASES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_rows(case, here):
    case.make(here)
    done = do(here, "import", case.file, "--source", "chestxray8", *case.options, "--json")
    assert done.exit_code == case.exit_code, done.said
    if case.imported is None:
        assert case.says in done.stderr
        assert f"{case.file}" in done.stderr
        assert store.Home().listings() == []
        return
    (told,) = done.content
    assert (told["imported"], told["malformed"]) == (case.imported, case.malformed)
    assert told["notes"].keys() == set(case.notes)
    (frame,) = case.options[1:2]
    rows = store.Home().open_source("chestxray8", frame).read()
    ids = rows["image_id"].to_pylist()
    assert len(ids) == case.imported
    for image_id in bad_rows.GOOD:
        index = ids.index(image_id)
        np.testing.assert_array_equal(table.landmarks_of(rows)[index], chest())
        np.testing.assert_array_equal(table.sigmas_of(rows)[index], np.full((120, 2), 3.25))
    if case.malformed:
        problems = [line for line in done.stderr.splitlines() if line.startswith(f"  {case.file}, line ")]
        assert len(problems) == case.malformed
        assert case.says in problems[0]
    for note in case.notes:
        assert f"{case.file}: 1 × " in done.stderr, note


# --- images ----------------------------------------------------------------------------------------------------------


def by_code(case):
    return case.exit_code


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Return what predict made of all bad images of an exit code at once, good films among them."""
    root = tmp_path_factory.mktemp("images")
    found = {}
    for exit_code, cases in itertools.groupby(sorted(bad_images.CASES, key=by_code), key=by_code):
        here = root / f"exit-{exit_code}" / "here"
        write_weights(here / "w.safetensors")
        folders = {case.name: f"{number:03}" for number, case in enumerate(cases)}
        for case in (case for case in bad_images.CASES if case.name in folders):
            folder = here / "films" / folders[case.name]
            folder.mkdir(parents=True)
            case.make(folder)
        good = [f"{number:03}/0.png" for number in range(0, len(folders), 8)] + ["999/0.png"]
        for seed, name in enumerate(good):
            write_film(here / "films" / name, seed)
        words = ["--weights", here / "w.safetensors", "--samples", 2, "--device", "cpu", "--batch-size", 16]
        home = ["--home", here / "cxu-data"]
        done = do(here, "predict", here / "films", "--out", here / "out", *words, *home, "--json")
        rows = pq.read_table(here / "out/predictions.parquet", columns=["image_id", "landmarks_xy", "quality"])
        (manifest,) = (here / "cxu-data/runs").iterdir()
        by_id = {row["image_id"]: row for row in rows.to_pylist()}
        found[exit_code] = (done, folders, good, by_id, json.loads(manifest.read_bytes())["failed"])
    return found


@named(bad_images.CASES)
def test_bad_images(case, predicted):
    _, folders, _, rows, failed = predicted[case.exit_code]
    path = f"{folders[case.name]}/{case.file}"
    rejected = [reason for file, reason in failed if f"/films/{path}" in file]
    assert len(rejected) == case.images - case.rows
    for reason in rejected:
        assert case.says in reason
        assert f"/films/{path}" in reason
    assert (path in rows) == bool(case.rows)
    if case.quality:
        assert rows[path]["quality"] == case.quality


def test_no_image_is_lost(predicted):
    for exit_code, (done, folders, good, rows, failed) in predicted.items():
        n_images = len(good) + sum(case.images for case in bad_images.CASES if case.name in folders)
        assert done.exit_code == exit_code
        assert set(good) <= rows.keys()
        assert all(np.isfinite(row["landmarks_xy"]).all() for row in rows.values())
        assert len(rows) == done.content["rows"] == done.content["predicted"]
        assert len(rows) + len(failed) == n_images
        assert failed == done.content["rejected"]


# --- weights ---------------------------------------------------------------------------------------------------------


@named(bad_weights.CASES)
def test_bad_weights(case, here):
    write_film(here / "film.png")
    case.make(here)
    before = contents(here)
    done = do(here, "predict", "film.png", "--weights", case.file, "--samples", 2, "--device", "cpu")
    assert done.exit_code == case.exit_code, done.said
    assert case.says in done.stderr
    assert case.file in done.stderr
    assert contents(here) == before  # and so no code in it was run


# --- tables ----------------------------------------------------------------------------------------------------------


@named(bad_parquet.CASES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_parquet(case, here):
    case.make(here)
    done = do(here, "filter", case.table, "--max-std", 8, "--out", "out.parquet", "--json")
    assert done.exit_code == case.exit_code, done.said
    assert case.says in done.stderr
    if case.excluded is None:
        assert list(here.glob("out*")) == []
        assert case.table in done.stderr
        return
    kept, excluded = pq.read_table("out.parquet"), pq.read_table("out.excluded.parquet")
    assert excluded["reason"].to_pylist() == list(case.excluded)
    assert len(kept) + len(excluded) == done.content["rows_in"]
    assert np.isfinite(table.landmarks_of(kept)).all()
    assert (table.sigmas_of(kept) >= 0).all()
    if case.excluded:
        assert kept["image_id"].to_pylist() == ["image0000", "image0002"]
        (step,) = (step for step in done.content["flow"] if step["reason"] == case.excluded[0])
        assert step["rows_in"] - step["rows_out"] == 1


# --- the Hub ---------------------------------------------------------------------------------------------------------


@named(hub_faults.CASES)
def test_hub_faults(case, here, monkeypatch, caplog):
    monkeypatch.setattr("cxu.hub_retry.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    with HubServer() as server:
        server.add(hub_faults.REPO, {hub_faults.FILE: hub_faults.CSV})
        server.lead_here(monkeypatch, here / "cxu-data/hf")
        case.make(server)
        done = do(here, "fetch", "mimic")
        assert done.exit_code == case.exit_code, done.said
        assert case.says in done.stderr + caplog.text
        if case.exit_code:
            assert store.Home().listings() == []
            server.heal()
            server.add(hub_faults.REPO, {hub_faults.FILE: hub_faults.CSV})
            assert do(here, "fetch", "mimic").exit_code == 0
    assert len(store.Home().open_source("mimic", "model").read()) == hub_faults.N_ROWS


# --- names -----------------------------------------------------------------------------------------------------------


@named(hostile_ids.CASES)
def test_hostile_ids(case, here):
    case.make(here)
    done = do(here, *case.words)
    assert done.exit_code == case.exit_code, done.said
    assert case.says in done.stderr
    if case.files is not None:
        assert len(list((here / "out").rglob("*.png"))) == case.files


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_reliability", ROOT / "scripts" / "make_reliability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script):
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert page == script.page(), "out of date: python scripts/make_reliability.py writes it anew"


def test_the_page_has_every_case_and_every_recorded_run(script, tmp_path):
    page = script.page()
    for module in MODULES:
        assert all(f"| {script.cell(case.name)} | " in page for case in module.CASES)
    assert script.recorded(tmp_path / "none.json") == []
    run = {
        "what": "runs killed",
        "how_many": 500,
        "found": "no half file",
        "command": "pytest -m slow",
        "date": "2026-01-02",
    }
    lines = script.summary([], [run])
    assert "| runs killed (2026-01-02) | 500 | no half file | `pytest -m slow` |" in lines


def test_the_tests_that_the_page_names_exist(script):
    for _, words in script.OTHERS:
        assert (ROOT / words.split()[0]).is_file()


# --- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "least"),
    [(bad_rows, 25), (bad_images, 45), (bad_weights, 18), (bad_parquet, 18), (hub_faults, 12), (hostile_ids, 14)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_catalogue_is_as_large_as_it_says(module, least):
    names = Counter(case.name for case in module.CASES)
    assert max(names.values()) == 1
    assert len(names) >= least
    assert all(case.happens for case in module.CASES)
