"""Rows, patients and origins of a table, counted by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxu.report.tally import Origin, patients_of_flow, tally_table
from cxu.selection import excluded_path
from report_helpers import Desk, rows_of

NIH = ["00000001_000", "00000001_001", "00000002_000", "00000003_000", "00000003_001"]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path / "home")


def flow_of(stored):
    """Return the names of a selection's steps and what each left out."""
    steps = stored.facts["flow"]
    excluded = {
        step["reason"]: {name: counts[0] - counts[1] for name, counts in step["by_source"].items()} for step in steps
    }
    return [step["reason"] for step in steps], excluded


def test_rows_are_counted_by_where_they_came_from(desk):
    published = rows_of("mimic", ["a", "b"], [2, 3], repo="x/y", revision="abc", file_sha256="f" * 64)
    bare = rows_of("vindr", ["c"], [2], n_samples=None)
    predicted = rows_of(
        "vindr", ["d", "e"], [2, 3], model_id="0" * 64, seed=7, precision="bf16", file_sha256=["1" * 64, "2" * 64]
    )
    stored = desk.put(pa.concat_tables([published, bare]), predicted)
    tally = tally_table(stored)
    model = "published"
    assert tally.origins == {
        Origin("mimic", "model", model, 50, None, None, "x/y", "abc", "f" * 64): 2,
        Origin("vindr", "model", model, None, None, None, None, None, None): 1,
        # the hash of a prediction is that of its image
        Origin("vindr", "model", "0" * 64, 50, 7, "bf16", None, None, None): 2,
    }
    assert tally.rows == {"mimic": 2, "vindr": 3}
    assert (tally.total, tally.sources, tally.patients) == (5, ["mimic", "vindr"], {})
    assert [origin.has_sigma for origin, _ in tally.sorted_origins()] == [True, True, False]


def test_nodes_organs_and_verdicts_are_counted(desk):
    desk.put(rows_of("vindr", ["a", "b"], [2, 9], quality=["ok", None], model_id="m" * 64))
    whole = tally_table(desk.home.open("vindr"))
    assert whole.nodes == {"right_lung": 88, "left_lung": 100, "heart": 52}
    assert whole.organs == dict.fromkeys(whole.nodes, 2)
    sigma = np.full((2, 120), 2.0)
    sigma[0, 94:], sigma[1, 0] = 9, 9
    desk.put(rows_of("chestxray8", NIH[:2], sigma))
    kept = tally_table(desk.select(["chestxray8"], max_std="5"))
    assert kept.nodes == {"right_lung": 87, "left_lung": 100, "heart": 26}
    assert kept.organs == {"right_lung": 2, "left_lung": 2, "heart": 1}
    assert kept.as_json()["nodes"]["heart"] == {"confident": 26, "of": 52}
    assert whole.quality == {"ok": 1, None: 1}


def test_no_row_gives_no_count(desk):
    desk.put(rows_of("vindr", ["a"], [9]))
    tally = tally_table(desk.select(["vindr"], max_std="5"))
    assert (tally.total, tally.sources, dict(tally.origins)) == (0, [], {})


def test_patients_are_left_as_long_as_a_row_of_theirs_is(desk):
    # patient 1: rows at rca 0.5 and 0.9; 2: rca 0.5; 3: rca 0.9, too uncertain
    desk.put(
        rows_of("chestxray8", NIH[:2], [2, 2], rca_mean=np.array([0.5, 0.9])),
        rows_of("chestxray8", NIH[2:], [2, 9, 9], rca_mean=np.array([0.5, 0.9, 0.9])),
    )
    desk.put(rows_of("vindr", ["a", "b"], [2, 9]))
    stored = desk.select(["chestxray8", "vindr"], min_rca=0.7, max_std="5")
    reasons, excluded = flow_of(stored)
    assert reasons == ["min_rca", "scale_unknown", "max_std"]
    assert patients_of_flow(stored, reasons, excluded) == {"chestxray8": (3, 2, 2, 1)}
    assert tally_table(stored).patients == {"chestxray8": 1}


def test_patients_are_unknown_without_the_list_or_with_anothers(desk):
    desk.put(rows_of("chestxray8", NIH, [2, 2, 9, 9, 9]))
    stored = desk.select(["chestxray8"], max_std="5")
    reasons, excluded = flow_of(stored)
    path = excluded_path(stored.paths[0])
    whole = pq.read_table(path)
    assert patients_of_flow(stored, reasons, excluded) == {"chestxray8": (3, 3, 1)}
    for other in (whole.slice(1), whole.set_column(2, "reason", pa.array(["ids"] * 3)), whole.drop(["reason"])):
        pq.write_table(other, path)
        assert patients_of_flow(stored, reasons, excluded) is None
    path.write_bytes(b"no Parquet")
    assert patients_of_flow(stored, reasons, excluded) is None
    path.unlink()
    assert patients_of_flow(stored, reasons, excluded) is None
