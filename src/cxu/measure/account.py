"""What is counted of measures, shard by shard: quantiles, blanks, flags, failures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu.flow import QUANTILES, LabelMatch
from cxu.labels import Labels
from cxu.measure.rows import FLAGS, MEASURES, REASONS, Measured

PLAUSIBLE_THORAX_MM: Final = (150.0, 450.0)  # beyond: a small child, or the spacing of another file
FEW_ROWS: Final = 20  # so many can be shown one by one
_SHOWN: Final = ("source", "image_id", "ctr", "ctr_low", "ctr_high", "ctr_blank", "interval_method", *FLAGS)

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Failure:
    """A row that cannot be measured, and why."""

    source: str
    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.image_id}: {self.reason}"


@dataclass
class MeasureReport:
    """What was measured.

    Attributes
    ----------
    rows
        How many rows there are.
    failures
        Those of which nothing can be measured, and why.
    quantiles
        By source and measure: 5, 25, 50, 75 and 95 % of the values there are, and how many.
    blank
        By measure and reason, how many values are blank.
    methods, scale_sources
        How intervals were found, and whence the calibration; None for rows without.
    flags
        How many rows have each flag.
    implausible_mm
        Rows whose thorax is too narrow or too wide for a chest by the spacing that their file states.
    views
        How many rows there are of each view; None where unknown.
    labels
        How the label files met the rows.
    first_rows
        The rows themselves where they are few, the ratio and its flags only.
    shards, shards_finished
        Of how many shards the table consists, and how many of them are measured by now, by all jobs of an array.
    is_whole
        Whether this tells of the whole table, and the file is written; else of the share that was asked for.
    """

    rows: int = 0
    failures: list[Failure] = field(default_factory=list)
    quantiles: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    blank: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in MEASURES})
    methods: Counter[str | None] = field(default_factory=Counter)
    scale_sources: Counter[str | None] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FLAGS, 0)))
    implausible_mm: int = 0
    views: Counter[str | None] = field(default_factory=Counter)
    labels: list[LabelMatch] = field(default_factory=list)
    first_rows: list[dict[str, Any]] = field(default_factory=list)
    shards: int = 0
    shards_finished: int = 0
    is_whole: bool = True


class Gathered:
    """What is counted shard by shard."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self._labels = labels
        self._labelled = np.zeros((len(labels), 2), np.int64)
        self._values: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = defaultdict(list)
        self.report = MeasureReport()

    def add(self, measured: Measured, kinds: Mapping[str, pa.DataType]) -> list[pa.ChunkedArray]:
        """Count the rows of a shard and return their columns beyond the measures, in the types ``kinds``."""
        made, report = measured.rows, self.report
        report.rows += len(made)
        for name, codes in measured.reasons.items():
            report.blank[name].update(_counts(codes))
        lost = made.filter(pa.array(measured.reasons["ctr"] == REASONS.index("not_finite")))
        report.failures += [
            Failure(source, image_id, "a landmark is no finite number; predict or import this image again")
            for source, image_id in zip(lost["source"].to_pylist(), lost["image_id"].to_pylist(), strict=True)
        ]
        for counter, name in (
            (report.methods, "interval_method"),
            (report.scale_sources, "sigma_scale_source"),
            (report.views, "view"),
        ):
            for entry in pc.value_counts(made[name]).to_pylist():
                counter[entry["values"]] += entry["counts"]
        for name in FLAGS:
            report.flags[name] += pc.sum(made[name]).as_py() or 0
        report.implausible_mm += _beyond(made["thorax_width_mm"], PLAUSIBLE_THORAX_MM)
        if len(report.first_rows) <= FEW_ROWS:
            report.first_rows += made.select(_SHOWN).slice(0, FEW_ROWS + 1).to_pylist()
        self._keep_values(made)
        return self._join(measured, kinds)

    def _keep_values(self, made: pa.Table) -> None:
        for source in made["source"].unique().to_pylist():
            of_source = made.filter(pc.equal(made["source"], source))
            for name in MEASURES:
                self._values[source, name].append(of_source[name].drop_null().to_numpy())

    def _join(self, measured: Measured, kinds: Mapping[str, pa.DataType]) -> list[pa.ChunkedArray]:
        """Return the columns that the rows brought, over which labels are laid: null where neither says anything."""
        brought, n_rows = measured.extras, len(measured.rows)
        columns = {
            name: brought[name].cast(kind)
            if name in brought.column_names
            else pa.chunked_array([pa.nulls(n_rows, kind)])
            for name, kind in kinds.items()
        }
        for index, labels in enumerate(self._labels):
            lines, matched = labels.take(measured.rows)
            of_source = pc.equal(measured.rows["source"], labels.source.name).to_numpy()
            self._labelled[index] += [of_source.sum(), (of_source & ~matched).sum()]
            for name in lines.column_names:
                columns[name] = pc.coalesce(lines[name].cast(kinds[name]), columns[name])
        return list(columns.values())

    def finish(self) -> MeasureReport:
        """Return the report with its quantiles."""
        report = self.report
        if report.rows > FEW_ROWS:
            report.first_rows = []
        for (source, name), parts in sorted(self._values.items(), key=lambda item: item[0][0]):
            values = np.concatenate(parts)
            if len(values):
                quantiles = [round(float(value), 6) for value in np.quantile(values, QUANTILES)]
                report.quantiles.setdefault(source, {})[name] = {"n": len(values), "quantiles": quantiles}
        report.labels = [
            LabelMatch(one.path.name, one.source.name, one.n_lines, one.n_unmatched, int(of_source), int(without))
            for one, (of_source, without) in zip(self._labels, self._labelled, strict=True)
        ]
        return report


def _beyond(column: pa.ChunkedArray, limits: tuple[float, float]) -> int:
    values = column.drop_null().to_numpy()
    return int(np.count_nonzero((values < limits[0]) | (values > limits[1])))


def _counts(codes: CodeArray) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(REASONS))
    return {reason: int(count) for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}
