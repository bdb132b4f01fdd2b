"""``cxu report`` as it is typed: what it prints and writes, and its exit codes."""

import json
import re
import shutil
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cxu import store
from cxu.cli import app
from cxu.selection import excluded_path
from report_helpers import Desk, rows_of
from test_report_bibliography import parse_bibtex

PAGE = Path(__file__).parents[1] / "docs" / "commands" / "report.md"
SAMPLE = package_files("cxu") / "data" / "sample_synthetic.csv"
NIH = ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]
WRITTEN = ["flow.png", "flow.svg", "references.bib", "report.json", "report.txt"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def desk(tmp_path):
    """A home with two sources and the selection ``latest``: 3 of 6 rows."""
    made = Desk(tmp_path / "cxu-data")
    made.put(rows_of("chestxray8", NIH, [2, 4, 6, 8], rca_mean=np.array([0.5, 0.9, 0.9, 0.9])))
    made.put(rows_of("vindr", ["a", "b"], [2, 9]))
    made.select(["chestxray8", "vindr"], min_rca=0.7, max_std="7")
    return made


def cxu(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result


def listing(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_the_latest_selection_is_reported_on(desk):
    done = cxu("report")
    assert done.stderr.startswith("home cxu-data · selection latest: 3 rows, made ")
    flow, methods, references, notes = done.stdout.split("\n\n\n")
    assert flow.splitlines() == [
        "Flow of exclusions",
        "",
        "Selection latest, of ChestX-ray8 (model frame): 4 rows and VinDr-CXR (model frame): 2 rows",
        "                                          rows  ChestX-ray8  VinDr-CXR  patients",
        "read                                         6            4          2         3",
        "left out: mean RCA below 0.7, or unknown     1            1          0         0",
        "left out: no usable organ (limit: node       2            1          1         1",
        "  uncertainty 7 px)",
        "kept                                         3            2          1         2",
        "Patients: of ChestX-ray8; the ids of the others name none.",
    ]
    assert methods.startswith("Methods\n\nLandmarks of right lung (44 nodes)")
    assert len(methods.splitlines()) == 3  # ready to paste: a paragraph is a line
    assert references.splitlines()[2:] == [
        "cosarinsky2026chexmasku, gaggion2024chexmask, gaggion2022hybridgnet, wang2017chestxray8, nguyen2022vindr, cxu"
    ]
    assert "a selection does not record its own" in notes
    assert listing("cxu-data") == ["selections", "sources"]


def test_json_says_what_the_text_says(desk):
    text = cxu("report", "--sensitivity").stdout
    content = json.loads(cxu("report", "--sensitivity", "--json").stdout)
    assert (content["table"], content["written"]) == ("latest", [])
    assert content["methods"] in text
    assert content["sensitivity"]["sentence"] in text
    assert ", ".join(content["references"]) in text
    assert all(f"- {note}" in text for note in content["notes"])
    flow = content["flow"]
    rows = [
        [flow["rows_in"], *flow["rows_in_by_source"].values(), flow["patients_in"]],
        *(
            [out["excluded"], *(a - b for a, b in out["by_source"].values()), out["patients_in"] - out["patients_out"]]
            for out in flow["steps"]
        ),
        [flow["rows_out"], *flow["rows_out_by_source"].values(), flow["patients_out"]],
    ]
    told = re.findall(r"^(?:read|left out.*?|kept) +(\d+) +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE)
    assert [[int(number) for number in row] for row in told] == rows
    kept = content["kept"]
    assert (kept["rows"], kept["patients_by_source"]) == (3, {"chestxray8": 2})
    levels = content["sensitivity"]["levels"]
    pattern = r"^(as selected|p60|p80|p95|unfiltered)(?: \(.*?\))? +(\d+) +[\d.]+ % +([\d,]+) +(\d+) +(\d+) +(\d+) "
    table = re.findall(pattern, text, re.MULTILINE)
    assert [(name, *(int(number.replace(",", "")) for number in numbers)) for name, *numbers in table] == [
        (
            level["max_std"],
            level["rows"],
            level["nodes"],
            level["organs"],
            level["ctr"]["n"],
            sum(level["ctr"]["blank"].values()),
        )
        for level in levels
    ]
    assert sum(content["sensitivity"]["rows_in_by_source"].values()) == content["sensitivity"]["rows_in"] == 5
    assert list(parse_bibtex(content["bibtex"])) == content["references"]


def test_the_text_of_the_page_is_what_it_prints(tmp_path):
    cxu("import", SAMPLE, "--source", "synthetic", "--frame", "model")
    cxu("filter", "--max-std", "5")
    shown = PAGE.read_text("utf-8").split("```text\n")[1].split("```")[0]
    assert cxu("report").stdout == shown


def test_out_writes_the_whole_report_and_replaces_its_own(desk):
    for _ in range(2):
        done = cxu("report", "--out", "paper/report")
        assert listing("paper/report") == WRITTEN
        assert "written: paper/report/report.txt, paper/report/report.json, " in done.stderr
    first = {name: Path("paper/report", name).read_bytes() for name in WRITTEN}
    cxu("report", "--out", "again")
    assert {name: Path("again", name).read_bytes() for name in WRITTEN} == first
    assert Path("paper/report/report.txt").read_text("utf-8") == cxu("report").stdout
    content = json.loads(cxu("report", "--json").stdout)
    del content["written"]
    assert json.loads(first["report.json"]) == content
    assert list(parse_bibtex(first["references.bib"].decode())) == content["references"]


@pytest.mark.parametrize("name", ["flow.png", "flow.svg", "flow.pdf"])
def test_figure_and_references_go_where_they_are_asked(desk, name):
    content = json.loads(cxu("report", "--figure", name, "--bibtex", "refs.bib", "--json").stdout)
    assert content["written"] == [name, "refs.bib"]
    assert Path(name).stat().st_size > 1000
    assert list(parse_bibtex(Path("refs.bib").read_text("utf-8"))) == content["references"]
    cxu("report", "--bibtex", "refs.bib")


@pytest.mark.parametrize("name", ["chestxray8", "films.parquet"])
def test_a_table_that_is_no_selection_leaves_nothing_out(desk, name):
    store.write_table(desk.home.open("chestxray8").read(), Path("films.parquet"))
    done = cxu("report", name, "--figure", "flow.png")
    assert "read     4         3" in done.stdout
    assert "kept     4         3" in done.stdout
    assert "Nothing was left out: the table is no selection" in done.stdout
    assert "[wang2017chestxray8] (4)" in done.stdout


def test_a_selection_may_be_a_file_elsewhere(desk):
    shutil.copy(desk.home.selection_path("latest"), "mine.parquet")
    done = cxu("report", "mine.parquet")
    assert "Patients that came to mine.parquet are unknown" in done.stdout
    assert "Selection mine.parquet, of ChestX-ray8" in done.stdout


def test_workers_give_the_same_report(desk):
    assert cxu("report", "--sensitivity", "--workers", 2).stdout == cxu("report", "--sensitivity").stdout


def test_a_frame_is_chosen(desk):
    desk.put(rows_of("vindr", ["a", "b"], [2, 9], frame="image"), frame="image")
    assert "choose with --frame" in cxu("report", "vindr", exit_code=2).stderr
    assert "Positions were in px of the image." in cxu("report", "vindr", "--frame", "image").stdout


# --- exit 1 and 2 ----------------------------------------------------------------------------------------------------


def test_exit_1_where_the_list_of_excluded_rows_is_another_selections(desk):
    desk.select(["vindr"], "other", max_std="5")
    paths = [excluded_path(desk.home.selection_path(name)) for name in ("other", "latest")]
    shutil.copy(*paths)
    assert "does not list what the selection beside it leaves out" in cxu("report", "--sensitivity", exit_code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "no table, selection or source called 'nothing'"),
        (("--figure", "flow.jpg"), "figure flow.jpg: expected a name that ends in .png, .svg, .pdf"),
        (("--bibtex", "refs.txt"), "--bibtex refs.txt: expected a name that ends in .bib"),
        (("--bibtex", "mine.bib"), "mine.bib is there and was not written by cxu report"),
        (("--out", "mine.bib"), "--out mine.bib is a file; expected a folder"),
        (("--out", "mine"), "--out mine holds report.txt, which cxu report did not write"),
    ],
)
def test_exit_2_where_the_request_is_wrong(desk, arguments, said):
    Path("mine.bib").write_text("@book{mine}")
    Path("mine").mkdir()
    Path("mine/report.txt").write_text("mine")
    before = listing(".")
    assert said in cxu("report", *arguments, exit_code=2).stderr
    assert listing(".") == before
    assert listing("mine") == ["report.txt"]


def test_exit_2_where_an_input_is_gone(desk):
    shutil.rmtree(desk.home.source_folder("vindr", "model"))
    done = cxu("report", "--sensitivity", "--out", "report", exit_code=2)
    assert "vindr/model is gone" in done.stderr
    assert not Path("report").exists()
    assert "VinDr-CXR (model frame) is gone: numbers are those of its rows then." in cxu("report").stdout


def test_exit_2_without_any_selection():
    assert "no selection yet in cxu-data" in cxu("report", exit_code=2).stderr
