"""How node uncertainties are spread: exact counts, means and quantiles of any sets of nodes, in two scans of a table.

The first scan counts the values in narrow ranges (the upper half of their bits: seven bits of mantissa, so a range is
less than 1 % wide); the second keeps those in the ranges that the quantiles lie in, and only these are sorted. Memory
is bounded by a shard, the counts, and a few per cent of the values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import criteria, table
from cxu.anatomy import N_NODES, N_ORGANS, ORGANS
from cxu.criteria import Criteria, group_rows, has_sigma
from cxu.engine import run_shards
from cxu.errors import UsageError
from cxu.plot.groups import Group, shards_of
from cxu.store import Shard, StoredTable
from cxu.thresholds import Thresholds, parse_max_std

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

COLUMNS: Final = ("source", "model_id", "frame", "quality", "n_samples", "sigma_model_px")
N_RANGES: Final = 2560  # from 1/128 to 8192 px; what lies beyond counts in the first or the last
_FIRST_RANGE: Final = 0x3C00  # upper half of the bits of float32 1/128
# which lane each node counts in; -1: none
ALL_NODES: Final = np.zeros(N_NODES, np.int64)
BY_ORGAN: Final = np.repeat(np.arange(N_ORGANS), [organ.n_nodes for organ in ORGANS])


@dataclass
class Spread:
    """The node uncertainties of a group's rows, by lane: a set of nodes.

    Attributes
    ----------
    rows
        Rows that have standard deviations.
    counts
        Values in each range: int64 [L, N_RANGES].
    sums
        Sums of the values, px: float64 [L].
    quantiles
        Quantiles of the values, px: float64 [L, S].
    """

    rows: int
    counts: IntArray
    sums: npt.NDArray[np.float64]
    quantiles: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Mean of each lane, px [L]."""
        means: npt.NDArray[np.float64] = self.sums / np.maximum(self.counts.sum(axis=1), 1)
        return means


@dataclass(frozen=True)
class SpreadReport:
    """The spread of each group, and how many rows have no standard deviations."""

    groups: dict[Group, Spread]
    rows_without: int


@dataclass(frozen=True, eq=False)
class _Task:
    """A shard to scan; with ``wanted`` bool [L, N_RANGES] of each group the second time."""

    shard: Shard
    maps: tuple[IntArray, ...]
    as_filter: bool
    wanted: Mapping[Group, BoolArray] | None = None


def measure_spread(
    tables: Sequence[StoredTable],
    maps: Sequence[IntArray],
    shares: Sequence[float],
    *,
    as_filter: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> SpreadReport:
    """Count node uncertainties by group and lane.

    Parameters
    ----------
    tables
        With rows of any source and model.
    maps
        Each [120], which lane a node counts in; the lanes of all maps are 0 to L - 1.
    shares
        The quantiles wanted, 0 to 1, by linear interpolation as numpy has it.
    as_filter
        Only the rows that reach ``--max-std`` of ``cxu filter``: those that the gate rejects are left out, and rows
        without standard deviations are refused.
    workers
        Processes to use.
    progress
        Called with the rows scanned: every row twice.

    Raises
    ------
    UsageError
        If there is no row, or none has standard deviations.
    """
    shards = shards_of(tables)
    found, without = _first_scan(shards, tuple(maps), as_filter, workers, progress)
    if not found:
        names = ", ".join(stored.name for stored in tables)
        raise UsageError(
            f"no row of {names} has standard deviations of known scale (the original CheXmask has none): there is no "
            "uncertainty to plot"
        )
    wanted = {group: np.stack([_wanted(lane, shares) for lane in one.counts]) for group, one in found.items()}
    kept = _second_scan(shards, tuple(maps), as_filter, wanted, workers, progress)
    for group, one in found.items():
        lanes = [
            _quantiles(np.concatenate(kept[group, lane]), wanted[group][lane], counts, shares)
            for lane, counts in enumerate(one.counts)
        ]
        one.quantiles = np.array(lanes, np.float64)
    return SpreadReport(dict(sorted(found.items())), without)


def _first_scan(
    shards: Sequence[Shard],
    maps: tuple[IntArray, ...],
    as_filter: bool,
    workers: int,
    progress: Callable[[int], None],
) -> tuple[dict[Group, Spread], int]:
    found: dict[Group, Spread] = {}
    without = 0
    tasks = [_Task(shard, maps, as_filter) for shard in shards]
    for task, (of_shard, missing) in zip(tasks, run_shards(_count_shard, tasks, workers=workers), strict=True):
        without += missing
        for group, one in of_shard.items():
            known = found.setdefault(group, Spread(0, np.zeros_like(one.counts), np.zeros_like(one.sums)))
            known.rows += one.rows
            known.counts += one.counts
            known.sums += one.sums
        progress(task.shard.rows)
    return found, without


def _second_scan(
    shards: Sequence[Shard],
    maps: tuple[IntArray, ...],
    as_filter: bool,
    wanted: Mapping[Group, BoolArray],
    workers: int,
    progress: Callable[[int], None],
) -> dict[tuple[Group, int], list[FloatArray]]:
    kept: dict[tuple[Group, int], list[FloatArray]] = defaultdict(lambda: [np.empty(0, np.float32)])
    tasks = [_Task(shard, maps, as_filter, wanted) for shard in shards]
    for task, of_shard in zip(tasks, run_shards(_keep_shard, tasks, workers=workers), strict=True):
        for key, values in of_shard.items():
            kept[key].append(values)
        progress(task.shard.rows)
    return kept


def rows_of_filter(rows: pa.Table) -> pa.Table:
    """Return the rows that reach ``--max-std`` of ``cxu filter`` with nothing else asked.

    Raises
    ------
    UsageError
        If rows have no standard deviations.
    """
    steps = criteria.row_steps(Criteria(Thresholds(max_std=parse_max_std("1"))))
    return rows.filter(pa.array(criteria.first_failures(rows, steps) == len(steps)))


def _read(task: _Task) -> tuple[pa.Table, FloatArray, int]:
    """Return the rows of a shard that count, their node uncertainty [n, 120], and how many rows have none."""
    rows = task.shard.read(COLUMNS)
    if task.as_filter:
        rows = rows_of_filter(rows)
    sigma = table.list_column(rows, "sigma_model_px")
    known = has_sigma(sigma)
    if known.all():
        return rows, sigma, 0
    return rows.filter(pa.array(known)), sigma[known], int(np.count_nonzero(~known))


def _count_shard(task: _Task) -> tuple[dict[Group, Spread], int]:
    """Return the counts and sums of a shard by group, and how many rows have no standard deviations."""
    rows, sigma, without = _read(task)
    found = {}
    n_lanes = 1 + max(int(lanes.max()) for lanes in task.maps)
    for (source, model_id), where in group_rows(rows):
        of_group = sigma[where]
        ranges = _range_of(of_group)
        counts, sums = np.zeros(n_lanes * N_RANGES, np.int64), np.zeros(n_lanes)
        for lanes in task.maps:
            used = lanes >= 0
            offset = (lanes[used] * N_RANGES).astype(np.int32)
            counts += np.bincount((ranges[:, used] + offset).ravel(), minlength=n_lanes * N_RANGES)
            of_nodes = of_group[:, used].sum(axis=0, dtype=np.float64)
            sums += np.bincount(lanes[used], weights=of_nodes, minlength=n_lanes)
        found[Group(source, model_id)] = Spread(len(of_group), counts.reshape(n_lanes, N_RANGES), sums)
    return found, without


def _keep_shard(task: _Task) -> dict[tuple[Group, int], FloatArray]:
    """Return the values of a shard that lie in wanted ranges, by group and lane."""
    assert task.wanted is not None, "the second scan is told"
    rows, sigma, _ = _read(task)
    found: dict[tuple[Group, int], FloatArray] = {}
    for (source, model_id), where in group_rows(rows):
        group, of_group = Group(source, model_id), sigma[where]
        ranges, wanted = _range_of(of_group), task.wanted[Group(source, model_id)].ravel()
        for lanes in task.maps:
            offset = (np.maximum(lanes, 0) * N_RANGES).astype(np.int32)
            kept = np.take(wanted, ranges + offset) & (lanes >= 0)
            values, in_lane = of_group[kept], np.broadcast_to(lanes, of_group.shape)[kept]
            found |= {(group, int(lane)): values[in_lane == lane] for lane in np.unique(in_lane)}
    return found


def _range_of(values: FloatArray) -> npt.NDArray[np.int32]:
    """Return the range of each value; int32 takes half the time of int64."""
    ranges = np.ascontiguousarray(values, np.float32).view(np.int32) >> 16
    ranges -= _FIRST_RANGE
    return np.clip(ranges, 0, N_RANGES - 1, out=ranges)


def range_edges() -> FloatArray:
    """Return the values at which the ranges begin, and behind them that at which the last one ends: [N_RANGES + 1]."""
    upper = (np.arange(N_RANGES + 1, dtype=np.uint32) + _FIRST_RANGE) << 16
    edges = upper.view(np.float32).copy()
    edges[0] = 0.0
    return edges


def _ranks(n_values: int, shares: Sequence[float]) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Return the ranks, from 0, between which each quantile lies [2, S], and how far beyond the lower one [S]."""
    places = np.asarray(shares, np.float64) * (n_values - 1)
    below = np.floor(places).astype(np.int64)
    return np.stack([below, np.minimum(below + 1, n_values - 1)]), places - below


def _wanted(counts: IntArray, shares: Sequence[float]) -> BoolArray:
    wanted = np.zeros(N_RANGES, np.bool_)
    if counts.any() and len(shares):
        ranks, _ = _ranks(int(counts.sum()), shares)
        wanted[np.searchsorted(np.cumsum(counts), ranks, side="right")] = True
    return wanted


def _quantiles(values: FloatArray, wanted: BoolArray, counts: IntArray, shares: Sequence[float]) -> list[float]:
    """Return the quantiles, given the values in the ranges wanted and the counts of all."""
    n_values = int(counts.sum())
    if not n_values:
        return [float("nan")] * len(shares)
    ranks, beyond = _ranks(n_values, shares)
    # a rank among the values kept does not count those that were passed over
    passed = np.cumsum(np.where(wanted, 0, counts))
    low, high = np.sort(values)[ranks - passed[np.searchsorted(np.cumsum(counts), ranks, side="right")]]
    step = high - low
    # from the nearer end, as numpy rounds
    return [float(value) for value in np.where(beyond < 0.5, low + step * beyond, high - step * (1 - beyond))]
