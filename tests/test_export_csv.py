"""Tables to CSV files in the published columns, read back by ``cxu import``."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow as pa
import pytest

from builders import chest, make_rows, mimic_csv
from cxu import store, table
from cxu.catalog import source_or_custom
from cxu.errors import OutputExistsError, UsageError
from cxu.export.csv import export_csv
from cxu.export.plan import ExportOptions, plan_export
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.store import Home
from mask_helpers import store_rows

REAL = {"chestxray8": "ChestX-Ray8.csv", "mimic": "MIMIC-CXR-JPG.csv", "padchest": "Padchest.csv"}
# a file of its own has a hash of its own; what was exchanged is written the right way round
OF_THE_FILE = ("file_sha256", "rca_swapped")


def export(stored, out, *, workers=1, overwrite=False, **options):
    return export_csv(plan_export(stored, out, ExportOptions("csv", **options)), workers=workers, overwrite=overwrite)


def read_back(path, source, frame, home):
    """Return the rows that ``cxu import`` makes of a file, none of them malformed."""
    report = import_file(path, source_or_custom(source), Home(home), ImportOptions(frame, strict=True))
    assert not report.problems
    return Home(home).open_source(source, frame).read()


def same_but_of_the_file(rows, others):
    kept = [name for name in rows.column_names if name not in OF_THE_FILE]
    return rows.select(kept).equals(others.select(kept))


def rows_of(n_rows, **columns):
    sigma = columns.pop("sigma", np.full((n_rows, 120, 2), 3.25, np.float32))
    sigmas = {} if sigma is None else table.sigma_columns(sigma, np.full(n_rows, 1024.0))
    # as the import finds them in an image of 1024 px
    frame = {"frame_side": 1024.0, "frame_offset_xy": np.zeros((n_rows, 2), np.float32), "frame_exact": False}
    known = {"source": "mine", "frame": "image", "n_samples": None if sigma is None else 50}
    return make_rows(n_rows, **{**known, **frame, **sigmas, **columns})


def cells(path):
    with path.open(encoding="utf-8", newline="") as stream:
        csv.field_size_limit(1 << 24)
        return list(csv.DictReader(stream))


# --- round trips -----------------------------------------------------------------------------------------------------


def test_published_rows_come_back_equal(tmp_path):
    (tmp_path / "published.csv").write_text(mimic_csv())
    rows = read_back(tmp_path / "published.csv", "mimic", "model", tmp_path / "home")
    report = export(Home(tmp_path / "home").open("mimic"), tmp_path / "mimic.csv")
    assert (report.account.rows, report.files, report.account.failures) == (24, 1, [])
    assert same_but_of_the_file(rows, read_back(tmp_path / "mimic.csv", "mimic", "model", tmp_path / "again"))


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_rows_come_back_equal(name, shared_data, tmp_path):
    rows = read_back(shared_data / "chexmask" / REAL[name], name, "model", tmp_path / "home")
    export(Home(tmp_path / "home").open(name), tmp_path / "x.csv")
    assert same_but_of_the_file(rows, read_back(tmp_path / "x.csv", name, "model", tmp_path / "again"))


def predictions(n_rows=3):
    rng = np.random.default_rng(3)
    points = chest() + rng.normal(0, 3, (n_rows, 120, 2)).astype(np.float32)
    sigma = rng.uniform(1, 9, (n_rows, 120, 2)).astype(np.float32)
    return rows_of(n_rows, landmarks_xy=points, sigma=sigma, model_id="abc", seed=0, precision="float32")


def test_predictions_come_back_to_the_published_rounding(tmp_path):
    rows = predictions()
    export(store_rows(tmp_path / "p.parquet", rows), tmp_path / "p.csv")
    back = read_back(tmp_path / "p.csv", "mine", "image", tmp_path / "home")
    assert np.array_equal(table.landmarks_of(back), np.rint(table.landmarks_of(rows)))
    np.testing.assert_allclose(table.sigmas_of(back), table.sigmas_of(rows), rtol=0, atol=0.00501)
    assert "." not in cells(tmp_path / "p.csv")[0]["Landmarks (Mean)"]


def test_predictions_come_back_exactly_on_request(tmp_path):
    rows = predictions()
    export(store_rows(tmp_path / "p.parquet", rows), tmp_path / "p.csv", exact=True)
    back = read_back(tmp_path / "p.csv", "mine", "image", tmp_path / "home")
    for name in ("image_id", "height", "width", "landmarks_xy", "sigma_xy", "sigma_model_px", "mean_sigma_model_px"):
        assert back[name].combine_chunks().equals(rows[name].combine_chunks()), name


# --- files -----------------------------------------------------------------------------------------------------------


def mixed_rows():
    return pa.concat_tables(
        [
            rows_of(2, image_id=["a", "b"]),
            rows_of(1, image_id=["c"], sigma=None),
            rows_of(1, image_id=["d"], source="yours"),
            rows_of(1, image_id=["e"], frame="model"),
            rows_of(1, image_id=["f"]),
        ]
    )


@pytest.mark.parametrize("group_rows", [None, 2, 1])
def test_a_folder_gets_a_file_for_each_kind_of_rows(tmp_path, group_rows):
    report = export(store_rows(tmp_path / "t.parquet", mixed_rows(), group_rows=group_rows), tmp_path / "out")
    written = {path.name: [row["image_id"] for row in cells(path)] for path in sorted((tmp_path / "out").iterdir())}
    assert written == {
        "mine-image-without-std.csv": ["c"],
        "mine-image.csv": ["a", "b", "f"],
        "mine-model.csv": ["e"],
        "yours-image.csv": ["d"],
    }
    assert (report.account.rows, report.files) == (6, 4)
    assert report.account.organs == {"right_lung": 6, "left_lung": 6, "heart": 6}
    assert "Landmarks (Std)" not in cells(tmp_path / "out/mine-image-without-std.csv")[0]


def test_one_file_holds_one_kind(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", mixed_rows())
    message = (
        r"rows are of 4 kinds \(mine, image frame, with standard deviations; mine, image frame, without .*name a folder"
    )
    with pytest.raises(UsageError, match=message):
        export(stored, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_names_of_sources_cannot_leave_the_folder_nor_meet(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", rows_of(1, source="../evil"))
    export(stored, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.csv")] == [
        "%2E%2E/evil-image.csv"
    ]
    stored = store_rows(tmp_path / "u.parquet", rows_of(2, source=["mine", "Mine"]))
    with pytest.raises(UsageError, match=r"would be written to .* one file on many systems"):
        export(stored, tmp_path / "met")


def test_workers_change_no_byte(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", mixed_rows(), group_rows=1)
    for workers in (1, 2):
        export(stored, tmp_path / str(workers), workers=workers)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "12"]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_a_table_without_rows(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", rows_of(0))
    assert export(stored, tmp_path / "x.csv").files == 1
    assert cells(tmp_path / "x.csv") == []
    assert export(stored, tmp_path / "out").files == 0


def test_a_file_that_is_there_is_kept(tmp_path):
    stored = store_rows(tmp_path / "t.parquet", mixed_rows())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/yours-image.csv").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"yours-image\.csv is there"):
        export(stored, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["yours-image.csv"]
    export(stored, tmp_path / "out", overwrite=True)
    assert cells(tmp_path / "out/yours-image.csv")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_written_are_listed(tmp_path):
    points = np.broadcast_to(chest(), (3, 120, 2)).copy()
    points[1, 7] = np.nan
    sigma = np.full((3, 120, 2), 3.25, np.float32)
    sigma[2, 0, 0] = np.inf
    report = export(
        store_rows(tmp_path / "t.parquet", rows_of(3, landmarks_xy=points, sigma=sigma)), tmp_path / "x.csv"
    )
    assert [row["image_id"] for row in cells(tmp_path / "x.csv")] == ["image0000"]
    assert [str(failure) for failure in report.account.failures] == [
        "mine image0001: landmarks that are no number; expected finite values",
        "mine image0002: standard deviations that are no number; expected finite values",
    ]
    assert (report.account.rows, report.account.seen) == (1, 3)


def test_what_a_selection_says_is_counted_and_not_written(tmp_path):
    usable = pa.array([[True, False, True], [False, False, True]], table.field_of("usable").type)
    selection = rows_of(2).append_column(table.field_of("usable"), usable)
    report = export(store_rows(tmp_path / "t.parquet", selection), tmp_path / "x.csv")
    export(store_rows(tmp_path / "u.parquet", rows_of(2)), tmp_path / "y.csv")
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    assert report.account.unusable == {"right_lung": 1, "left_lung": 2, "heart": 0}


def test_a_stored_table_is_opened_as_any_other(tmp_path):
    store.write_table(rows_of(1), tmp_path / "t.parquet")
    assert export(store.open_table(tmp_path / "t.parquet"), tmp_path / "x.csv").account.rows == 1
