"""The fabricator of full-scale tables: the same bytes from any number of workers, and text that imports as its rows."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cxu
from cxu import table
from cxu.anatomy import ORGANS
from cxu.catalog import SOURCES
from cxu.cli import app
from cxu.codec import decode_rle, encode_rle, parse_landmarks
from cxu.errors import UsageError
from cxu.raster import fill_polygon
from cxu.store import Home

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = 7
N_ROWS = 300
N_FEW = 20


@pytest.fixture(scope="module")
def fabricate():
    with pytest.MonkeyPatch.context() as patch:
        # workers find the module by this path, too
        patch.syspath_prepend(BENCHMARKS)
        import fabricate

        yield fabricate


@pytest.fixture(scope="module")
def one_csv(fabricate, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "mimic.csv"
    fabricate.write_csv(path, N_ROWS, seed=SEED, workers=2)
    return path


def read_rows(path):
    csv.field_size_limit(1 << 24)
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_csv_is_the_same_from_any_number_of_workers(fabricate, one_csv, tmp_path):
    assert N_ROWS > fabricate.BLOCK_ROWS, "the two workers are to have a task each"
    fabricate.write_csv(tmp_path / "again.csv", N_ROWS, seed=SEED, workers=1)
    assert (tmp_path / "again.csv").read_bytes() == one_csv.read_bytes()
    assert list(one_csv.parent.iterdir()) == [one_csv]


def test_a_home_is_the_same_from_any_number_of_workers(fabricate, tmp_path):
    for workers in (1, 2):
        fabricate.write_home(tmp_path / str(workers), N_ROWS, seed=SEED, workers=workers)
    first, second = (contents(tmp_path / name / "sources") for name in "12")
    assert first == second
    assert Home(tmp_path / "1").open("vindr").rows == 8
    assert sum(listing.rows for listing in Home(tmp_path / "1").listings()) == N_ROWS


def test_rows_depend_on_their_number_and_the_seed_alone(fabricate):
    rows = fabricate.fabricate_rows(0, N_ROWS, SEED)
    assert fabricate.fabricate_rows(250, 20, SEED).equals(rows[250:270])
    assert not fabricate.fabricate_rows(0, 20, SEED + 1)["landmarks_xy"].equals(rows[:20]["landmarks_xy"])
    assert len(fabricate.fabricate_rows(256, 0)) == len(fabricate.fabricate_lines(256, 0)) == 0
    assert len(rows["image_id"].unique()) == N_ROWS


@pytest.mark.parametrize(
    ("source", "frame"),
    [
        *[("mimic", "model"), ("chexpert", "image"), ("chestxray8", "image")],
        *[("padchest", "model"), ("padchest", "image"), ("vindr", "model")],
    ],
)
def test_a_csv_imports_as_the_rows_of_the_home(fabricate, source, frame, tmp_path):
    fabricate.write_csv(tmp_path / "rows.csv", N_FEW, source=source, frame=frame, seed=SEED)
    report = cxu.import_csv(tmp_path / "rows.csv", source, home=tmp_path / "imported", frame=frame)
    assert (report.imported, report.malformed) == (N_FEW, 0)
    assert set(report.notes) <= {"rca_swapped", "size_blank", "size_assumed"}
    imported = Home(tmp_path / "imported").open(source).read()
    made = fabricate.write_home(tmp_path / "made", N_FEW, source=source, frame=frame, seed=SEED).open(source).read()
    table.check_table(made, "made")
    assert made.drop("file_sha256").equals(imported.drop("file_sha256"))


def test_masks_are_the_fill_of_the_polygons(one_csv):
    for row in read_rows(one_csv)[:10]:
        landmarks_xy, shape_hw = parse_landmarks(row["Landmarks (Mean)"]), (int(row["Height"]), int(row["Width"]))
        for organ in ORGANS:
            mask = decode_rle(row[organ.published_column], shape_hw)
            assert np.array_equal(mask, fill_polygon(landmarks_xy[organ.nodes], shape_hw))


@pytest.mark.parametrize("shift_xy", [(0, 0), (-40, 0), (40, 0), (0, -30), (0, 70), (-500, -500), (90, 90)])
def test_runs_of_a_polygon_that_leaves_the_frame(fabricate, shift_xy):
    polygon_xy = np.array([(30, 20), (71, 23), (88, 61), (60, 60), (52, 88), (33, 70), (45, 50)]) + shift_xy
    runs = fabricate.polygon_runs(polygon_xy, (95, 100))
    assert " ".join(map(str, runs.tolist())) == encode_rle(fill_polygon(polygon_xy, (95, 100)))


def test_values_look_like_published_ones(fabricate, one_csv):
    row = read_rows(one_csv)[0]
    assert next(iter(row)) == "dicom_id"
    assert all(word.isdecimal() for word in row["Landmarks (Mean)"].split(","))
    assert all(len(word.partition(".")[2]) == 2 for word in row["Landmarks (Std)"].split(","))
    lengths = [sum(len(one[organ.published_column]) for organ in ORGANS) for one in read_rows(one_csv)]
    assert 15_000 < np.mean(lengths) < 21_000, "a published row has about 18 kB of RLE"
    rows = fabricate.fabricate_rows(0, N_ROWS, SEED)
    sigma_px = table.list_column(rows, "sigma_model_px")
    assert 6 < np.median(sigma_px) < 9
    assert np.percentile(sigma_px, 99) > 4 * np.median(sigma_px), "a heavy tail"
    assert 0.8 < np.median(rows["rca_mean"]) < 0.9


def test_a_home_can_be_filtered_and_holds_no_other_rows(fabricate, tmp_path):
    home = fabricate.write_home(tmp_path, 60, seed=SEED)
    assert CliRunner().invoke(app, ["filter", "--home", str(tmp_path), "--max-std", "p80"]).exit_code == 0
    assert 0 < home.open().rows <= 60
    with pytest.raises(UsageError, match="already holds rows of mimic"):
        fabricate.write_home(tmp_path, 60, seed=SEED)
    fabricate.write_home(tmp_path, 60, seed=SEED, frame="image")
    assert len(home.listings(["mimic"])) == 2


def test_rows_are_divided_as_published(fabricate):
    shares = fabricate.rows_by_source(657_566)
    assert sum(shares.values()) == 657_566
    assert all(abs(share - SOURCES[name].rows_expected) < 50 for name, share in shares.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv", "x.csv", "--rows", "0"], "expected a whole number, 1 or more"),
        (["parquet", "x", "--rows", "many"], "expected a whole number, 1 or more"),
        (["csv", "x.csv", "--rows", "5", "--source", "mimc"], "invalid choice: 'mimc'"),
        (["csv", "x.csv", "--rows", "5", "--seed", "-1"], "expected a whole number, 0 or more"),
    ],
)
def test_bad_arguments_are_named(fabricate, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fabricate.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        fabricate.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_as_a_script(tmp_path):
    command = [sys.executable, BENCHMARKS / "fabricate.py", "parquet", "home", "--rows", "9", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("home: 9 synthetic rows")
    assert done.stderr.endswith("9 of 9 rows\n")
    assert Home(tmp_path / "home").open("mimic").rows == 3
