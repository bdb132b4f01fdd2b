"""The account of a filter: the flow of rows, what was kept, how sigma is spread, whom it left out."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import N_NODES, N_ORGANS, ORGAN_NAMES, ORGANS, OrganName
from cxu.engine import Pool
from cxu.quantiles import N_RANGES, count_by_range, quantiles_within, ranges_of_quantiles, within_ranges
from cxu.thresholds import OrganLimits

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
KEEP_SHARES: Final = (0.5, 0.8, 0.95)
FEW_ROWS: Final = 0.2
UNEQUAL: Final = 0.05
BLANK_LEVEL: Final = "(blank)"
_BLOCK_ROWS: Final = 4096


@dataclass
class Step:
    """One line of the flow table: how many rows came to this step and how many went on, by source."""

    reason: str
    rows_in: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rows_out: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def count(self, sources: pa.ChunkedArray, reached: BoolArray, stays: BoolArray) -> None:
        """Add the rows [n] of the sources [n] that reached this step and that went on."""
        encoded = sources.combine_chunks().dictionary_encode()
        codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        for counts, where in ((self.rows_in, reached), (self.rows_out, stays)):
            for name, count in zip(names, np.bincount(codes[where], minlength=len(names)), strict=True):
                counts[name] += int(count)


@dataclass
class LevelCount:
    """Rows of one level of a label column that were held against the thresholds, and how many stayed."""

    column: str
    level: str
    rows_in: int
    rows_out: int

    @property
    def excluded(self) -> float:
        """Share of the rows that were left out."""
        return 1 - self.rows_out / self.rows_in


class LevelCounter:
    """Counts rows by the levels of label columns."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, column: str, values: pa.ChunkedArray, asked: BoolArray, kept: BoolArray) -> None:
        """Add the values [n] of a label column: which rows were held against the thresholds, which of them stayed."""
        encoded = values.cast(pa.string()).fill_null(BLANK_LEVEL).combine_chunks().dictionary_encode()
        codes, levels = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        rows_in = np.bincount(codes[asked], minlength=len(levels))
        rows_out = np.bincount(codes[asked & kept], minlength=len(levels))
        for level, *counts in zip(levels, rows_in.tolist(), rows_out.tolist(), strict=True):
            total = self._counts[column, level]
            total[0], total[1] = total[0] + counts[0], total[1] + counts[1]

    def levels(self) -> list[LevelCount]:
        """Return the levels that any row has, by column and level."""
        return [LevelCount(*key, *counts) for key, counts in sorted(self._counts.items()) if counts[0]]


@dataclass(frozen=True)
class LabelMatch:
    """How a label file met the rows of its source: lines that no row has, rows that have no line."""

    file: str
    source: str
    lines: int
    lines_unmatched: int
    rows: int
    rows_unmatched: int


class SigmaPool:
    """Node uncertainty of rows by source and model, in one array, so that memory is bounded by what goes in.

    Parameters
    ----------
    capacity
        Most rows there can be.
    """

    def __init__(self, capacity: int) -> None:
        self._sigma = np.empty((capacity, N_NODES), np.float32)
        self._group = np.empty(capacity, np.int32)
        self._keys: dict[tuple[str, str], int] = {}
        self._rows = 0

    def add(self, key: tuple[str, str], sigma: FloatArray) -> None:
        """Add sigma [n, 120] of rows of a source and model."""
        rows = slice(self._rows, self._rows + len(sigma))
        self._sigma[rows], self._group[rows] = sigma, self._keys.setdefault(key, len(self._keys))
        self._rows = rows.stop

    def drain_quantiles(self, shares: Sequence[float]) -> dict[str, list[float]]:
        """Return quantiles for each organ and for all nodes together; empty without rows. The pool is spent by it."""
        spread, sigma, self._sigma = SigmaSpread(by_organ(shares)), self._sigma[: self._rows], self._sigma[:0]
        blocks = [sigma[at : at + _BLOCK_ROWS] for at in range(0, len(sigma), _BLOCK_ROWS)]
        for block in blocks:
            spread.count(count_sigma(block))
        for block in blocks:
            spread.keep(sigma_within(block, spread.wanted))
        return named_by_organ(spread.quantiles())


def by_organ(shares: Sequence[float]) -> list[tuple[tuple[OrganName, ...], Sequence[float]]]:
    """Return what to ask a :class:`SigmaSpread` for: these quantiles for each organ, and of all nodes together."""
    return [*(((name,), shares) for name in ORGAN_NAMES), (ORGAN_NAMES, shares)]


def named_by_organ(quantiles: Sequence[list[float]]) -> dict[str, list[float]]:
    """Return the answer to :func:`by_organ` by name, to four decimals."""
    return {
        name: [round(value, 4) for value in values]
        for name, values in zip((*ORGAN_NAMES, "all"), quantiles, strict=True)
    }


def count_sigma(sigma: FloatArray) -> IntArray:
    """Return how many node uncertainties of rows [n, 120] lie in each range, by organ: int64 [3, 65536]."""
    return np.stack([count_by_range(sigma[:, organ.nodes]) for organ in ORGANS])


def sigma_within(sigma: FloatArray, wanted: BoolArray) -> list[FloatArray]:
    """Return the node uncertainties of rows [n, 120] that lie in ranges wanted, bool [3, 65536], by organ."""
    return [within_ranges(sigma[:, organ.nodes], of_organ) for organ, of_organ in zip(ORGANS, wanted, strict=True)]


class SigmaSpread:
    """Quantiles of node uncertainties over groups of organs, without holding the uncertainties.

    All rows are counted first and then shown again, from which little is kept: see :mod:`cxu.quantiles`.

    Parameters
    ----------
    asked
        Groups of organs, and the shares, 0 to 1, that are asked of the nodes of each.
    """

    def __init__(self, asked: Sequence[tuple[tuple[OrganName, ...], Sequence[float]]]) -> None:
        self._groups = [[ORGAN_NAMES.index(name) for name in organs] for organs, _ in asked]
        self._shares = [shares for _, shares in asked]
        self._counts = np.zeros((N_ORGANS, N_RANGES), np.int64)
        self._kept: list[list[FloatArray]] = [[] for _ in ORGANS]

    def count(self, counts: IntArray) -> None:
        """Add what :func:`count_sigma` gives for some of the rows."""
        self._counts += counts

    @functools.cached_property
    def _ranges(self) -> list[BoolArray]:
        """The ranges that hold the quantiles of each group."""
        counts = [self._counts[group].sum(axis=0) for group in self._groups]
        return [ranges_of_quantiles(*of_group) for of_group in zip(counts, self._shares, strict=True)]

    @functools.cached_property
    def wanted(self) -> BoolArray:
        """What to keep of all rows, once they have been counted: for :func:`sigma_within`."""
        wanted = np.zeros((N_ORGANS, N_RANGES), np.bool_)
        for group, ranges in zip(self._groups, self._ranges, strict=True):
            wanted[group] |= ranges
        return wanted

    def keep(self, found: Sequence[FloatArray]) -> None:
        """Add what :func:`sigma_within` gives for some of the rows."""
        for kept, values in zip(self._kept, found, strict=True):
            kept.append(values)

    def quantiles(self, pool: Pool | None = None) -> list[list[float]]:
        """Return the quantiles of each group; empty without rows. ``pool`` is where to sort, if not here."""
        run = map if pool is None else pool.run
        return list(run(self._of_group, range(len(self._groups))))

    def _of_group(self, index: int) -> list[float]:
        group, ranges = self._groups[index], self._ranges[index]
        among = [within_ranges(values, ranges) for organ in group for values in self._kept[organ]]
        return quantiles_within(among, ranges, self._counts[group].sum(axis=0), self._shares[index])


@dataclass
class FilterReport:
    """What a filter did: the flow of rows, nodes and organs kept, sigma quantiles, resolved limits."""

    steps: list[Step]
    limits: tuple[OrganLimits, ...] = ()
    sigma_quantiles: dict[str, list[float]] = field(default_factory=dict)
    keep_thresholds: dict[str, list[float]] = field(default_factory=dict)
    nodes_kept: dict[OrganName, float] = field(default_factory=dict)
    organs_kept: dict[OrganName, float] = field(default_factory=dict)
    levels: list[LevelCount] = field(default_factory=list)
    labels: list[LabelMatch] = field(default_factory=list)
    ids_unmatched: list[str] = field(default_factory=list)

    @property
    def rows_in(self) -> int:
        """Rows looked at."""
        return sum(self.steps[0].rows_in.values())

    @property
    def rows_out(self) -> int:
        """Rows that stayed."""
        return sum(self.steps[-1].rows_out.values())

    @property
    def few_rows_left(self) -> bool:
        """Whether fewer than 20 % of the rows stayed."""
        return self.rows_out < FEW_ROWS * self.rows_in

    @property
    def unequal_levels(self) -> list[list[LevelCount]]:
        """Levels of the label columns whose levels are left out at rates 5 points or more apart, widest first."""
        columns: dict[str, list[LevelCount]] = defaultdict(list)
        for level in self.levels:
            columns[level.column].append(level)
        unequal = [levels for levels in columns.values() if _spread(levels) >= UNEQUAL]
        return sorted(unequal, key=_spread, reverse=True)


def _spread(levels: Sequence[LevelCount]) -> float:
    shares = [level.excluded for level in levels]
    return round(max(shares) - min(shares), 12)


def flow_facts(report: FilterReport) -> dict[str, Any]:
    """Return the flow table and what was kept as plain JSON values."""
    return {
        "flow": [
            {
                "reason": step.reason,
                "rows_in": sum(step.rows_in.values()),
                "rows_out": sum(step.rows_out.values()),
                "by_source": {name: [step.rows_in[name], step.rows_out[name]] for name in sorted(step.rows_in)},
            }
            for step in report.steps
        ],
        "nodes_kept": report.nodes_kept,
        "organs_kept": report.organs_kept,
        "sigma_quantiles": report.sigma_quantiles,
        "keep_thresholds": report.keep_thresholds,
        "levels": [{**asdict(level), "excluded": round(level.excluded, 4)} for level in report.levels],
        "label_files": [asdict(match) for match in report.labels],
    }
