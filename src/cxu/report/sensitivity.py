"""What other limits of uncertainty would keep: the inputs of a selection held against p60, p80, p95 and no limit.

Which rows came as far as the limits is known from the list of excluded rows, so neither id lists nor label files are
needed again. The inputs are read a shard at a time: their keys; their uncertainties, which are counted; the few of them
around each percentile; and in the end all that is filtered and measured.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cxu import store, table
from cxu.anatomy import ORGAN_NAMES, ORGANS, OrganName
from cxu.criteria import Criteria
from cxu.engine import Pool, open_pool
from cxu.errors import MissingInputError
from cxu.report.chain import locate_input
from cxu.report.population import Part, rows_that_came
from cxu.report.ratios import Ratios, RatioSummary, ratios_of
from cxu.report.spread import READ, limited_to, resolve_percentiles
from cxu.report.tally import excluded_list
from cxu.selection import filter_rows
from cxu.thresholds import OrganLimits, Thresholds

PERCENTILES: Final = (60.0, 80.0, 95.0)
UNFILTERED: Final = "unfiltered"
AS_SELECTED: Final = "as selected"
_CAME: Final = "came"
_PASSES: Final = 4  # over the inputs
_ALSO_READ: Final = (
    "image_id",
    "landmarks_xy",
    "mean_sigma_model_px",
    "rca_mean",
    "rca_max",
    "quality",
    "confident",
    "usable",
)
_OF_SELECTION: Final = ("source", "landmarks_xy", "confident", "usable")


@dataclass(frozen=True)
class SensitivityPlan:
    """What is to be read, decided before anything is.

    Attributes
    ----------
    selection
        The table itself.
    inputs
        The tables that it was made from, as they were; of a table that is no selection that table.
    excluded
        The list of the rows that it leaves out; None where it is no selection.
    """

    selection: store.StoredTable
    inputs: tuple[store.StoredTable, ...]
    excluded: Path | None

    @property
    def rows(self) -> int:
        """Rows to read, in all passes together."""
        return _PASSES * sum(stored.rows for stored in self.inputs) + (self.selection.rows if self.excluded else 0)

    @property
    def thresholds(self) -> Thresholds:
        """What is asked beside the limits that vary: other limits of nodes, and which organs decide."""
        asked, default = self.selection.facts.get("thresholds") or {}, Thresholds()
        return Thresholds(
            unit=asked.get("unit", default.unit),
            min_confident=asked.get("min_confident", default.min_confident),
            max_gap=asked.get("max_gap", default.max_gap),
            max_radius90=asked.get("max_radius90") or None,
            quality="any",  # what the gate left out never came to the limits
            organs=tuple(asked.get("organs", default.organs)),
        )


@dataclass(frozen=True)
class Kept:
    """What a limit keeps.

    Attributes
    ----------
    name
        ``p60`` and so on, ``unfiltered``, or ``as selected``.
    limits
        The px that it came to, for each source and model.
    rows
        By source.
    nodes, organs
        Confident nodes and usable organs of these rows, by organ.
    ratio, ratio_by_source
        Their cardiothoracic ratio.
    """

    name: str
    limits: tuple[OrganLimits, ...]
    rows: Mapping[str, int]
    nodes: Mapping[OrganName, int]
    organs: Mapping[OrganName, int]
    ratio: RatioSummary
    ratio_by_source: Mapping[str, RatioSummary]

    @property
    def total(self) -> int:
        """Rows kept."""
        return sum(self.rows.values())

    def as_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "max_std": self.name,
            "limits_px": [asdict(one) for one in self.limits],
            "rows": self.total,
            "rows_by_source": dict(self.rows),
            "nodes": sum(self.nodes.values()),
            "nodes_by_organ": dict(self.nodes),
            "organs": sum(self.organs.values()),
            "organs_by_organ": dict(self.organs),
            "ctr": self.ratio.as_json(),
            "ctr_by_source": {source: ratio.as_json() for source, ratio in self.ratio_by_source.items()},
        }


@dataclass(frozen=True)
class Sensitivity:
    """What each limit keeps of the rows that came to the limits.

    Attributes
    ----------
    came
        Rows that came to the limits, by source.
    levels
        What each limit keeps; the selection itself first, where the table is one.
    """

    came: Mapping[str, int]
    levels: tuple[Kept, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "rows_in": sum(self.came.values()),
            "rows_in_by_source": dict(self.came),
            "levels": [level.as_json() for level in self.levels],
        }


def plan_sensitivity(stored: store.StoredTable, home: store.Home) -> SensitivityPlan:
    """Find the tables that a selection was made from.

    Raises
    ------
    MissingInputError
        If one is gone or has changed, or the list of excluded rows is gone.
    """
    if "thresholds" not in stored.facts:
        return SensitivityPlan(stored, (stored,), None)
    records = stored.facts.get("inputs") or []
    if not records:
        raise MissingInputError(
            f"--sensitivity: {stored.name} does not say which tables it was made from; make it with cxu filter"
        )
    located = [(record["name"], locate_input(record, home, stored.paths[0].parent)) for record in records]
    lost = [f"{name} {found.trouble}" for name, found in located if found.stored is None]
    if lost:
        raise MissingInputError(
            f"--sensitivity filters the tables that {stored.name} was made from once more: {', '.join(lost)}. "
            "Bring that back as it was, or make the selection anew with cxu filter"
        )
    excluded = excluded_list(stored)
    if excluded is None:
        raise MissingInputError(
            f"--sensitivity needs the list of rows that {stored.name} leaves out, which cxu filter wrote beside it as "
            ".excluded.parquet: bring it back, or make the selection anew"
        )
    return SensitivityPlan(stored, tuple(found.stored for _, found in located if found.stored is not None), excluded)


def measure_sensitivity(
    plan: SensitivityPlan, *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> Sensitivity:
    """Hold the rows against each limit, and measure those that it keeps.

    Memory is bounded by a shard or two a worker, and the ratios themselves for their quartiles.

    Raises
    ------
    UsageError
        If the rows have no standard deviations; if ``workers`` is below 1.
    FormatError
        If the list of excluded rows is not of this selection.
    """
    parts = _parts(plan, progress)
    with open_pool(workers) as pool:
        found = resolve_percentiles(parts, plan.thresholds, PERCENTILES, pool, progress)
        limits = {f"p{percentile:g}": of_percentile for percentile, of_percentile in found.items()}
        criteria = {
            f"p{percentile:g}": Criteria(limited_to(plan.thresholds, percentile), resolved=of_percentile)
            for percentile, of_percentile in found.items()
        }
        criteria[UNFILTERED] = Criteria(plan.thresholds)
        counted = _totals(pool, functools.partial(_filter_part, criteria), parts, progress)
        levels = [counted[name].finish(name, limits.get(name, ())) for name in criteria]
        if plan.excluded is not None:
            own = _totals(pool, _count_part, [Part(shard) for shard in plan.selection.shards()], progress)
            resolved = plan.selection.facts.get("limits_px") or ()
            levels.insert(0, own[AS_SELECTED].finish(AS_SELECTED, tuple(OrganLimits(**one) for one in resolved)))
    return Sensitivity(dict(sorted(counted[_CAME].rows.items())), tuple(levels))


def _parts(plan: SensitivityPlan, progress: Callable[[int], None]) -> list[Part]:
    if plan.excluded is not None:
        facts = plan.selection.facts
        return rows_that_came(plan.inputs, plan.excluded, facts, plan.selection.rows, progress)
    parts = [Part(shard) for stored in plan.inputs for shard in stored.shards()]
    progress(sum(part.shard.rows for part in parts))
    return parts


@dataclass
class _Counts:
    """What is counted of one limit, shard by shard."""

    rows: Counter[str] = field(default_factory=Counter)
    nodes: Counter[OrganName] = field(default_factory=Counter)
    organs: Counter[OrganName] = field(default_factory=Counter)
    ratios: dict[str, list[Ratios]] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: pa.Table) -> _Counts:
        """Count the rows of a shard that a limit keeps."""
        confident, usable = table.confident_of(kept), table.usable_of(kept)
        ratios, sources = ratios_of(kept), np.array(kept["source"].to_pylist(), object)
        return cls(
            Counter(kept["source"].to_pylist()),
            Counter({organ.name: int(confident[:, organ.nodes].sum()) for organ in ORGANS}),
            Counter({organ.name: int(usable[:, index].sum()) for index, organ in enumerate(ORGANS)}),
            {source: [ratios.of(sources == source)] for source in kept["source"].unique().to_pylist()},
        )

    def merge(self, other: _Counts) -> None:
        """Add the counts of another shard."""
        self.rows.update(other.rows)
        self.nodes.update(other.nodes)
        self.organs.update(other.organs)
        for source, parts in other.ratios.items():
            self.ratios.setdefault(source, []).extend(parts)

    def finish(self, name: str, limits: tuple[OrganLimits, ...]) -> Kept:
        """Return what they come to."""
        return Kept(
            name,
            limits,
            dict(sorted(self.rows.items())),
            {organ: self.nodes[organ] for organ in ORGAN_NAMES},
            {organ: self.organs[organ] for organ in ORGAN_NAMES},
            RatioSummary.of([part for parts in self.ratios.values() for part in parts]),
            {source: RatioSummary.of(parts) for source, parts in sorted(self.ratios.items())},
        )


def _totals(
    pool: Pool, count: Callable[[Part], dict[str, _Counts]], parts: list[Part], progress: Callable[[int], None]
) -> defaultdict[str, _Counts]:
    totals: defaultdict[str, _Counts] = defaultdict(_Counts)
    for part, found in zip(parts, pool.run(count, parts), strict=True):
        for name, counts in found.items():
            totals[name].merge(counts)
        progress(part.shard.rows)
    return totals


def _filter_part(criteria: Mapping[str, Criteria], part: Part) -> dict[str, _Counts]:
    """Count what each limit keeps of the rows of a shard that came: a shard function."""
    rows = part.read([*READ, *_ALSO_READ])
    found = {_CAME: _Counts(Counter(rows["source"].to_pylist()))}
    if not len(rows):
        return found
    return found | {name: _Counts.of(filter_rows(rows, asked)[0]) for name, asked in criteria.items()}


def _count_part(part: Part) -> dict[str, _Counts]:
    """Count the rows of a shard of the selection as they are: a shard function."""
    return {AS_SELECTED: _Counts.of(part.read(_OF_SELECTION))}
