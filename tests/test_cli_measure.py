"""``cxu measure``: what it prints and where, its files, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders import chest, make_rows, published_csv, published_row
from cxu import store
from cxu.cli import app
from cxu.measure.rows import SCHEMA


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path):
    """A home with three rows of ChestX-ray8 and the selection ``latest``; the heart of b is uncertain."""
    std = ",".join(["1.00"] * 188 + ["9.00"] * 52)
    rows = [published_row("a.png"), published_row("b.png", **{"Landmarks (Std)": std}), published_row("c.png")]
    Path("NIH.csv").write_text(published_csv(rows))
    assert cxu("import", "NIH.csv", "--source", "chestxray8").exit_code == 0
    assert cxu("filter", "--max-std", 5).exit_code == 0
    return tmp_path / "cxu-data"


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines_from(text, title):
    """Return the lines below a title, up to the next empty line, with single spaces."""
    below = text.split(f"{title}\n")[1].split("\n\n")[0]
    return [" ".join(line.split()) for line in below.splitlines()]


# --- exit 0 ----------------------------------------------------------------------------------------------------------


def test_the_latest_selection_is_measured(home):
    done = cxu("measure")
    assert done.exit_code == 0
    assert done.stderr.startswith("home cxu-data · selection latest: 3 rows, made ")
    # (720 - 400) / (870 - 150)
    assert "ctr 2 0.444 0.444 0.444 0.444 0.444" in lines_from(done.stdout, "Measures of chestxray8")
    blank = lines_from(done.stdout, "Blank, and why")
    assert blank[0] == "measure nodes unconfident organ unusable"
    assert {"ctr 1 0", "heart_area_px2 0 1"} <= {*blank}
    assert "_mm" not in done.stdout
    assert "Nothing in mm: no row is in image pixels of known spacing." in done.stdout
    intervals = lines_from(done.stdout, "90 % intervals")
    assert intervals[1:] == ["simulated 3", "standard deviations times an assumed factor 3"]
    rows = lines_from(done.stdout, "Cardiothoracic ratio")
    assert rows[1].startswith("chestxray8 a 0.444 (0.")
    assert rows[2] == "chestxray8 b blank: nodes unconfident"
    assert not list((home / "runs").glob("*-measure.json"))


def test_a_source_is_measured_without_any_selection(home):
    Path("cxu-data/selections/latest.parquet").unlink()
    done = cxu("measure", "chestxray8", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["rows"] == found["quantiles"]["chestxray8"]["ctr"]["n"] == 3
    assert found["quantiles"]["chestxray8"]["ctr"]["quantiles"][2] == pytest.approx(320 / 720, abs=1e-6)
    assert found["interval_method"] == {"simulated": 3}
    assert found["sigma_scale_source"] == {"assumed": 3}
    assert found["flags"] == {"touches_border": 0, "lungs_swapped": 0, "heart_on_image_left": 0}
    assert [row["image_id"] for row in found["first_rows"]] == ["a", "b", "c"]
    assert found["out"] is None


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_out_writes_a_file_and_a_manifest_and_replaces_its_own(home, suffix):
    for _ in range(2):
        done = cxu("measure", "--out", f"out/measures.{suffix}")
        assert done.exit_code == 0
        assert done.stderr.endswith(f"3 rows in out/measures.{suffix}\n")
    path = f"out/measures.{suffix}"
    found = pq.read_table(path) if suffix == "parquet" else pa_csv.read_csv(path)
    assert found.column_names == SCHEMA.names
    assert found["ctr"].is_valid().to_pylist() == [True, False, True]
    runs = sorted((home / "runs").glob("*-measure.json"))
    assert len(runs) == 2
    assert json.loads(runs[0].read_text())["out"] == path


def test_labels_are_joined_and_counted(home):
    Path("labels.csv").write_text("Image Index,Finding\nb.png,none\nz.png,none\n")
    done = cxu("measure", "--labels", "labels.csv", "--out", "m.parquet")
    assert done.exit_code == 0
    assert "labels labels.csv: 2 of 3 chestxray8 rows have no line, 1 of 2 lines have no row" in done.stderr
    assert pq.read_table("m.parquet")["Finding"].to_pylist() == [None, "none", None]


def test_labels_of_another_source_are_warned_of(home):
    Path("labels.csv").write_text("Image Index,Finding\nz.png,none\n")
    done = cxu("measure", "--labels", "labels.csv")
    assert "warning: no line of labels.csv has a row: does it label chestxray8?" in done.stderr


def test_mm_are_shown_where_the_spacing_is_known():
    spacing = np.array([[0.5, 0.5], [0.1, 0.1]], np.float32)
    store.write_table(make_rows(2, frame="image", spacing_mm_xy=spacing), Path("films.parquet"))
    done = cxu("measure", "films.parquet")
    assert done.exit_code == 0
    measures = lines_from(done.stdout, "Measures of chestxray8")
    # 72 and 360 mm
    assert "thorax_width_mm 2 86.4 144.0 216.0 288.0 345.6" in measures
    assert "none: no standard deviations 2" in lines_from(done.stdout, "90 % intervals")
    assert "warning: by the pixel spacing of the file, the thorax is narrower than 15 cm or wider" in done.stderr
    assert "in 1 of 2 rows" in done.stderr


# --- exit 1, 2 and 3 -------------------------------------------------------------------------------------------------


def test_exit_1_where_an_image_stands_twice():
    store.write_table(make_rows(2, image_id=["a", "a"]), Path("films.parquet"))
    done = cxu("measure", "films.parquet")
    assert done.exit_code == 1
    assert "stand more than once (chestxray8 a first)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no selection yet in cxu-data"),
        (("nothing",), "no table, selection or source called 'nothing'"),
        (("films.parquet", "--out", "m.xlsx"), "--out m.xlsx: expected a file .parquet or .csv"),
        (("films.parquet", "--out", "films.parquet"), "films.parquet is there and holds no measures"),
        (("films.parquet", "--labels", "absent.csv"), "--labels absent.csv: no such file"),
    ],
)
def test_exit_2_where_the_request_is_wrong(arguments, said):
    store.write_table(make_rows(2), Path("films.parquet"))
    done = cxu("measure", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not Path("cxu-data").exists()


def test_exit_3_where_a_row_cannot_be_measured():
    points = np.stack([chest()] * 3)
    points[1, 4, 0] = np.nan
    store.write_table(make_rows(3, landmarks_xy=points), Path("films.parquet"))
    done = cxu("measure", "films.parquet", "--out", "m.csv")
    assert done.exit_code == 3
    assert "1 rows could not be measured:" in done.stderr
    assert "  chestxray8 image0001: a landmark is no finite number" in done.stderr
    assert pa_csv.read_csv("m.csv")["ctr_blank"].to_pylist() == ["", "not_finite", ""]
    assert "blank: landmarks not finite" in done.stdout


def test_measures_are_no_table_to_measure():
    store.write_table(make_rows(1), Path("films.parquet"))
    assert cxu("measure", "films.parquet", "--out", "m.parquet").exit_code == 0
    done = cxu("measure", "m.parquet")
    assert done.exit_code == 1
    assert "m.parquet is no cxu table" in done.stderr
