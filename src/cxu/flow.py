"""The account of a filter: the flow of rows, what was kept, how sigma is spread, whom it left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import N_NODES, ORGANS, OrganName
from cxu.thresholds import OrganLimits

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
KEEP_SHARES: Final = (0.5, 0.8, 0.95)
FEW_ROWS: Final = 0.2
UNEQUAL: Final = 0.05
BLANK_LEVEL: Final = "(blank)"


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

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The (source, model_id) there are, in order."""
        return sorted(self._keys)

    def add(self, key: tuple[str, str], sigma: FloatArray) -> None:
        """Add sigma [n, 120] of rows of a source and model."""
        rows = slice(self._rows, self._rows + len(sigma))
        self._sigma[rows], self._group[rows] = sigma, self._keys.setdefault(key, len(self._keys))
        self._rows = rows.stop

    def of(self, key: tuple[str, str]) -> FloatArray:
        """Return sigma [n, 120] of the rows of a source and model: a view, where they stand together."""
        rows = np.flatnonzero(self._group[: self._rows] == self._keys[key])
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self._sigma[rows[0] : rows[-1] + 1]
        return self._sigma[rows]

    def drain_quantiles(self, shares: Sequence[float]) -> dict[str, list[float]]:
        """Return quantiles for each organ and for all nodes together; empty without rows. The pool is spent by it."""
        sigma = self._sigma[: self._rows]
        quantiles: dict[str, list[float]] = {
            organ.name: _quantiles(sigma[:, organ.nodes].ravel(), shares) for organ in ORGANS
        }
        return {**quantiles, "all": _quantiles(sigma.reshape(-1), shares)}


def _quantiles(values: FloatArray, shares: Sequence[float]) -> list[float]:
    """Return quantiles of values, which it puts into another order."""
    if not values.size:
        return []
    return [round(float(value), 4) for value in np.quantile(values, shares, overwrite_input=True)]


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
