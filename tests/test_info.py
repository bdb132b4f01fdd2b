"""The description of a table, worked out by hand on a tiny one."""

import json

import numpy as np
import pyarrow as pa
import pytest

from builders import make_rows
from cxu import store, table
from cxu.anatomy import HEART, N_NODES
from cxu.criteria import Criteria
from cxu.info import describe_table
from cxu.selection import filter_tables
from cxu.thresholds import Thresholds, parse_max_std


@pytest.fixture
def stored(tmp_path):
    """A table of four rows; the last has no standard deviations, RCA or size."""
    sigma = np.full((4, N_NODES, 2), 2.0, np.float32)
    sigma[1] = 4
    sigma[2, HEART.nodes] = [6, 10]
    sigma[3] = np.nan
    rows = make_rows(
        4,
        **table.sigma_columns(sigma),
        source=pa.array(["mimic", "mimic", "vindr", "vindr"]),
        n_samples=pa.array([50, 50, 50, None], pa.int32()),
        rca_mean=np.array([0.6, 0.8, 0.7, np.nan]),
        rca_swapped=[True, False, None, None],
        height=pa.array([1024, 1024, 1024, None], pa.int32()),
        view=["PA", "AP", "PA", None],
        repo=["a/b", "a/b", None, None],
    )
    store.write_table(rows, tmp_path / "table.parquet")
    return store.open_table(tmp_path / "table.parquet")


def test_numbers_by_hand(stored):
    description = describe_table(stored)
    assert (description["kind"], description["rows"]) == ("file", 4)
    assert description["source"] == {"mimic": 2, "vindr": 2}
    assert description["frame"] == {"model": 4}
    assert description["model_id"] == {"published": 4}
    assert description["n_samples"] == {50: 3, None: 1}
    assert description["repo"] == {"a/b": 2, None: 2}
    assert description["view"] == {"PA": 2, "AP": 1, None: 1}
    assert (description["without_sigma"], description["without_size"], description["rca_swapped"]) == (1, 1, 1)
    # lungs: a third of the nodes at 4 px, the rest at 2; heart: a third each at 2, 4 and 8 px
    assert description["sigma_model_px"]["right_lung"] == [2, 2, 2, 4, 4]
    assert description["sigma_model_px"]["left_lung"] == [2, 2, 2, 4, 4]
    assert description["sigma_model_px"]["heart"] == [2, 2, 4, 8, 8]
    # 120 + 94 nodes at 2 px, 120 at 4, 26 at 8, of 360: the 95th percentile lies at 341.05 of 0 to 359
    assert description["sigma_model_px"]["all"] == [2, 2, 2, 4, 8]
    assert description["rca_mean"] == [0.61, 0.65, 0.7, 0.75, 0.79]
    assert description["rca_max"] is None
    # 2, 4, and (94 · 2 + 26 · 8) / 120 = 3.3
    assert description["mean_sigma_model_px"] == [2.13, 2.65, 3.3, 3.65, 3.93]
    assert "nodes_confident" not in description


def test_a_selection_tells_what_is_confident_and_usable(stored, tmp_path):
    criteria = Criteria(Thresholds(max_std=parse_max_std("5"), min_rca=0.5))
    filter_tables([stored], criteria, tmp_path / "s.parquet")
    description = describe_table(store.open_table(tmp_path / "s.parquet"))
    assert (description["kind"], description["rows"]) == ("selection", 3)
    assert description["nodes_confident"] == {"right_lung": 1, "left_lung": 1, "heart": 0.6667}
    assert description["organs_usable"] == {"right_lung": 1, "left_lung": 1, "heart": 0.6667}
    assert description["facts"]["thresholds"]["min_rca"] == 0.5
    assert description["facts"]["flow"][-1]["rows_out"] == 3


@pytest.mark.parametrize("shard_rows", [1, 3])
def test_the_size_of_a_shard_changes_nothing(stored, monkeypatch, shard_rows):
    expected = describe_table(stored)
    monkeypatch.setattr(store, "SHARD_ROWS", shard_rows)
    store.write_table(stored.read(), stored.paths[0])
    assert len(stored.shards()) > 1
    assert describe_table(stored) == expected


def test_a_table_without_rows(stored, tmp_path):
    store.write_table(stored.read().slice(0, 0), tmp_path / "empty.parquet")
    description = describe_table(store.open_table(tmp_path / "empty.parquet"))
    assert description["rows"] == description["without_sigma"] == description["rca_swapped"] == 0
    assert description["sigma_model_px"] == description["source"] == {}
    assert description["rca_mean"] is None


def test_a_description_is_plain_json(stored):
    text = json.dumps(describe_table(stored), allow_nan=False)
    assert json.loads(text)["view"] == {"PA": 2, "AP": 1, "null": 1}
