"""Selections of selections: found by name and digest, by the record of a run, or not at all."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from cxu import store
from cxu.cli import app
from cxu.report.chain import locate_input
from cxu.report.exclusions import selections_of
from cxu.selection import excluded_path
from report_helpers import Desk, rewritten, rows_of

NIH = ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Desk(tmp_path / "home")
    made.put(rows_of("chestxray8", NIH, [2, 4, 6, 8], rca_mean=np.array([0.9, 0.9, 0.9, 0.5])))
    return made


def flows(report):
    return [
        (stage.name, stage.total_in, [sum(step.excluded.values()) for step in stage.steps or ()], stage.total_out)
        for stage in selections_of(report.stage)
    ]


def test_the_whole_chain_is_told(desk):
    desk.select(["chestxray8"], "wide", min_rca=0.7)
    desk.select(["wide"], "middle", max_std="5")
    desk.select(["middle"], "strict", max_std="3")
    report = desk.report("strict")
    assert flows(report) == [("wide", 4, [1], 3), ("middle", 3, [1], 2), ("strict", 2, [1], 1)]
    assert [stage.patients for stage in selections_of(report.stage)] == [
        {"chestxray8": (3, 2)},
        {"chestxray8": (2, 1)},
        {"chestxray8": (1, 1)},
    ]
    assert not [note for note in report.notes if "unknown" in note]


def test_several_selections_may_be_joined(desk):
    desk.put(rows_of("vindr", ["a", "b"], [2, 9]))
    desk.select(["chestxray8"], "one", min_rca=0.7)
    desk.select(["vindr"], "two", max_std="5")
    desk.select(["one", "two"], "both", max_mean_std=3)
    assert flows(desk.report("both")) == [("one", 4, [1], 3), ("two", 2, [1], 1), ("both", 4, [2], 2)]


def test_a_selection_of_a_file_elsewhere_is_found(desk, tmp_path):
    desk.select(["chestxray8"], out=tmp_path / "a.parquet", min_rca=0.7)
    desk.select([store.open_table("a.parquet")], "strict", max_std="5")
    assert flows(desk.report("strict"))[0] == ("a.parquet", 4, [1], 3)
    other = tmp_path / "moved"
    other.mkdir()
    for path in (desk.home.selection_path("strict"), tmp_path / "a.parquet"):
        shutil.move(path, other / path.name)
        shutil.move(excluded_path(path), other / excluded_path(path).name)
    assert flows(desk.report(store.open_table(other / "strict.parquet")))[0] == ("a.parquet", 4, [1], 3)


def test_a_selection_that_is_gone_leaves_its_flow_unknown(desk):
    desk.select(["chestxray8"], "wide", min_rca=0.7)
    desk.select(["wide"], "strict", max_std="5")
    desk.home.selection_path("wide").unlink()
    report = desk.report("strict")
    wide, strict = selections_of(report.stage)
    assert (wide.steps, wide.total_in, wide.total_out) == (None, 4, 3)
    assert strict.steps is not None
    assert report.notes[0].startswith("How many rows wide left out, and why, is unknown: that selection is gone")
    assert "Of 4 radiographs, 3 (75.0 %) were kept; why the others were left out is not recorded." in report.methods


def test_a_selection_that_was_replaced_is_told_by_the_record_of_its_run(desk):
    def cxu(*words):
        done = CliRunner().invoke(app, [*words, "--home", str(desk.home.root)])
        assert done.exit_code == 0, done.output

    cxu("filter", "--min-rca", "0.7")
    cxu("filter", "latest", "--max-std", "5")
    report = desk.report()
    assert flows(report) == [("latest", 4, [1], 3), ("latest", 3, [1], 2)]
    assert report.notes[0].startswith(
        "Patients that came to latest are unknown: that selection is not what it was then; its flow is that of the "
    )
    assert [stage.patients for stage in selections_of(report.stage)] == [None, {"chestxray8": (2, 1)}]
    # a record of another filter is none of this one's
    shutil.rmtree(desk.home.root / "runs")
    cxu("filter", "chestxray8", "--max-std", "7", "--name", "other")
    assert flows(desk.report())[0] == ("latest", 4, [], 3)


def test_damaged_records_of_runs_are_passed_over(desk):
    desk.select(["chestxray8"], "latest", min_rca=0.7)
    desk.select(["latest"], "latest", max_std="5")
    runs = desk.home.root / "runs"
    runs.mkdir()
    (runs / "a-filter.json").write_text("no JSON")
    (runs / "b-filter.json").write_text("[]")
    assert flows(desk.report())[0] == ("latest", 4, [], 3)


def test_what_happened_to_a_source_is_said(desk):
    desk.put(rows_of("vindr", ["a", "b"], [2, 9]), malformed=3)
    desk.select(["chestxray8", "vindr"], max_std="5")
    assert "VinDr-CXR (model frame): 3 rows of its published file could not be read when it was imported." in (
        desk.report().notes
    )
    assert desk.report("vindr").notes == (
        "VinDr-CXR (model frame): 3 rows of its published file could not be read when it was imported.",
    )
    desk.put(rows_of("vindr", ["a"], [2]))
    shutil.rmtree(desk.home.source_folder("chestxray8", "model"))
    notes = desk.report().notes
    assert "VinDr-CXR (model frame) is not what it was then: numbers are those of its rows then." in notes
    assert "ChestX-ray8 (model frame) is gone: numbers are those of its rows then." in notes
    assert flows(desk.report()) == [("latest", 6, [3], 3)]


def test_rows_that_another_program_took_out_are_noticed(desk):
    stored = desk.select(["chestxray8"], max_std="7")
    stored = rewritten(stored, stored.facts, stored.read().slice(1))
    assert "latest has 2 rows, and 3 by its flow table: another program changed it." in desk.report(stored).notes


def test_facts_of_an_old_selection_may_be_missing(desk):
    stored = desk.select(["chestxray8"], max_std="7")
    kept = ("kind", "thresholds", "inputs")
    stored = rewritten(stored, {name: stored.facts[name] for name in kept})
    report = desk.report(stored)
    assert (report.stage.steps, report.stage.total_in, report.stage.total_out) == (None, 4, 3)
    assert report.notes[0] == (
        "Why rows were left out of latest is unknown: its file has no flow table: an earlier version made it, or "
        "another program rewrote it."
    )
    assert "Of 4 radiographs, 3 (75.0 %) were kept; why the others were left out is not recorded." in report.methods
    assert "left out, unknown why     1" in report.text()
    bare = desk.report(rewritten(stored, {"kind": "selection", "thresholds": {}}))
    assert bare.stage.total_in is None
    assert "How many radiographs were left out is not known." in bare.methods


def test_inputs_are_known_by_their_digest(desk):
    stored = desk.home.open("chestxray8")
    record = {"name": "chestxray8/model", "digest": stored.digest}
    assert locate_input(record, desk.home, desk.home.root).stored == stored
    assert locate_input({**record, "digest": "0"}, desk.home, desk.home.root).trouble == "is not what it was then"
    for name in ("vindr/model", "no such", "../x.parquet", ""):
        assert locate_input({"name": name, "digest": "0"}, desk.home, desk.home.root).trouble == "is gone"
