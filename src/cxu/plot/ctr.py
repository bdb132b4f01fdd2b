"""The cardiothoracic ratio of a table's rows, with intervals: row by row where they are few, else as a distribution."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import table
from cxu.criteria import group_rows
from cxu.engine import run_shards
from cxu.errors import UsageError
from cxu.measure import rows as measures
from cxu.plot.figure import new_figure, save_figure
from cxu.plot.groups import COLOURS, Group, check_number, names_of, shards_of
from cxu.store import Shard, StoredTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

LIMIT: Final = 0.5  # a heart wider than half the thorax is called enlarged on an upright PA film
FEW_ROWS: Final = 60  # so many can be told apart
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_BIN: Final = 0.01
_STRIPS: Final = 100  # pieces of the sorted rows
_LONGEST_NAME: Final = 40
_TAIL: Final = 0.0005  # of many rows is not shown at either end
_KEPT: Final = ("source", "image_id", "model_id", "ctr", "ctr_low", "ctr_high", "ctr_blank")


@dataclass(frozen=True)
class CtrGroup:
    """Ratios of a group's rows.

    Attributes
    ----------
    image_ids
        Of the rows that have a ratio; None where they are many.
    ratio, low, high
        float32 [n]; the ends of the 90 % interval NaN where there is none.
    blank
        How many rows have no ratio, by reason.
    """

    image_ids: list[str] | None
    ratio: FloatArray
    low: FloatArray
    high: FloatArray
    blank: Counter[str]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many intervals lie below the limit, hold it, or lie above; rows without an interval apart."""
        known = np.isfinite(self.low)
        below, above = known & (self.high < LIMIT), known & (self.low > LIMIT)
        return {
            "below": int(np.count_nonzero(below)),
            "undecided": int(np.count_nonzero(known & ~below & ~above)),
            "above": int(np.count_nonzero(above)),
            "without_interval": int(np.count_nonzero(~known)),
        }


@dataclass(frozen=True)
class CtrReport:
    """The ratios by source and model."""

    groups: dict[Group, CtrGroup]

    @property
    def rows(self) -> int:
        """Rows that have a ratio."""
        return sum(len(one.ratio) for one in self.groups.values())

    def content(self) -> dict[str, Any]:
        """Return the numbers behind the figure as plain JSON values."""
        return {
            "kind": "ctr",
            "limit": LIMIT,
            "interval": "90 %",
            "groups": [
                {
                    "source": group.source,
                    "model_id": group.model_id,
                    "rows": len(one.ratio),
                    "blank": dict(one.blank),
                    "ratio_quantiles": _quantiles(one.ratio),
                    "interval_width_quantiles": _quantiles((one.high - one.low)[np.isfinite(one.low)]),
                    "intervals": one.verdicts,
                    "histogram": _histogram(one.ratio),
                    "each": _each(one) if self.rows <= FEW_ROWS else None,
                }
                for group, one in self.groups.items()
            ],
        }


def _quantiles(values: FloatArray) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.quantile(values.astype(np.float64), QUANTILES).tolist()
    return {f"{100 * share:g}": value for share, value in zip(QUANTILES, found, strict=True)}


def _histogram(ratio: FloatArray) -> dict[str, list[float]]:
    places = np.floor(ratio.astype(np.float64) / _BIN + 1e-6).astype(np.int64)
    if not len(places):
        return {"edges": [], "counts": []}
    first, last = int(places.min()), int(places.max())
    counts = np.bincount(places - first, minlength=last - first + 1)
    return {"edges": (np.arange(first, last + 2) * _BIN).round(4).tolist(), "counts": counts.tolist()}


def _each(one: CtrGroup) -> list[dict[str, Any]]:
    values = zip(one.image_ids or [], one.ratio.tolist(), one.low.tolist(), one.high.tolist(), strict=True)
    return [
        {"image_id": image_id, "ratio": ratio, "low": _known(low), "high": _known(high)}
        for image_id, ratio, low, high in values
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def measure_ctr(
    tables: Sequence[StoredTable], *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> CtrReport:
    """Measure the cardiothoracic ratio of every row, as :mod:`cxu.measure` does: three numbers a row are kept.

    Parameters
    ----------
    tables
        Predictions, sources or selections.
    workers
        Processes to use.
    progress
        Called with the rows measured.

    Raises
    ------
    UsageError
        If there is no row, or no ratio.
    """
    shards = shards_of(tables)
    few = sum(shard.rows for shard in shards) <= FEW_ROWS
    parts: dict[Group, list[pa.Table]] = defaultdict(list)
    for shard, measured in zip(shards, run_shards(_measure_shard, shards, workers=workers), strict=True):
        for (source, model_id), of_group in _by_group(measured):
            parts[Group(source, model_id)].append(of_group if few else of_group.drop_columns(["image_id"]))
        progress(shard.rows)
    groups = {group: _group_of(pa.concat_tables(parts[group])) for group in sorted(parts)}
    if not any(len(one.ratio) for one in groups.values()):
        blank = Counter[str]()
        for one in groups.values():
            blank += one.blank
        why = ", ".join(f"{count:,} {reason}" for reason, count in blank.items())
        raise UsageError(f"no row has a cardiothoracic ratio ({why}): there is nothing to plot")
    return CtrReport(groups)


def _measure_shard(shard: Shard) -> pa.Table:
    return measures.measure(shard.read(measures.READ)).rows.select(_KEPT)


def _by_group(rows: pa.Table) -> list[tuple[tuple[str, str], pa.Table]]:
    return [(key, rows.filter(pa.array(where)).drop_columns(["source", "model_id"])) for key, where in group_rows(rows)]


def _group_of(rows: pa.Table) -> CtrGroup:
    known = rows.filter(rows["ctr"].is_valid())
    blank = Counter[str]()
    for entry in pc.value_counts(rows["ctr_blank"].drop_null()).to_pylist():
        blank[entry["values"]] += entry["counts"]
    ids = known["image_id"].to_pylist() if "image_id" in known.column_names else None
    ratio, low, high = (table.scalar_column(known, name).astype(np.float32) for name in ("ctr", "ctr_low", "ctr_high"))
    return CtrGroup(ids, ratio, low, high, blank)


def draw_ctr(report: CtrReport, path: Path) -> None:
    """Draw the ratios: sorted, each with its interval, where there are 60 rows or fewer; else their distribution.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    UsageError
        If there are more sources and models than a figure can show.
    """
    check_number([*report.groups])
    if report.rows <= FEW_ROWS:
        _draw_each(report, path)
    else:
        _draw_many(report, path)


def _draw_each(report: CtrReport, path: Path) -> None:
    names = names_of(report.groups)
    lines = sorted(
        (float(one.ratio[row]), float(one.low[row]), float(one.high[row]), (one.image_ids or [""])[row], index)
        for index, one in enumerate(report.groups.values())
        for row in range(len(one.ratio))
    )
    figure = new_figure(8.5, max(0.22 * len(lines), 1.5) + 1.6)
    axes = figure.subplots()
    told: set[int] = set()
    for place, (ratio, low, high, _, index) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        label = None if index in told else [*names.values()][index]
        axes.plot(ratio, place, "o", color=colour, markersize=4.5, label=label)
        told.add(index)
    axes.set_yticks(range(len(lines)), [_shortened(line[3]) for line in lines], fontsize="x-small")
    axes.set_ylim(-0.8, len(lines) - 0.2)
    _style(axes, report)
    axes.set_xlabel("cardiothoracic ratio; line: 90 % interval")
    if len(names) > 1:
        axes.legend(fontsize="x-small", loc="lower right")
    figure.suptitle(_title(report), fontsize="medium")
    save_figure(figure, path)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:18]}…{text[-18:]}"


def _draw_many(report: CtrReport, path: Path) -> None:
    names = names_of(report.groups)
    figure = new_figure(12, 4.6 + 0.25 * max(len(names) - 3, 0))
    density, ordered, bars = figure.subplots(1, 3)
    for index, (group, one) in enumerate(report.groups.items()):
        colour = COLOURS[index % len(COLOURS)]
        if not len(one.ratio):
            continue
        found = _histogram(one.ratio)
        percent = 100 * np.array(found["counts"]) / len(one.ratio)
        density.stairs(
            percent, found["edges"], color=colour, linewidth=1.6, label=f"{names[group]}, {len(one.ratio):,}"
        )
        _draw_sorted(ordered, one, colour)
    density.set(xlabel="cardiothoracic ratio", ylabel=f"rows in each {_BIN:g}, %")
    density.legend(fontsize="x-small", title="rows with a ratio", title_fontsize="x-small")
    _style(density, report)
    ordered.set(xlabel="cardiothoracic ratio; band: typical 90 % interval", ylabel="rows, sorted, %", ylim=(0, 100))
    _style(ordered, report)
    _draw_verdicts(bars, report, names)
    figure.suptitle(_title(report), fontsize="medium")
    save_figure(figure, path)


def _draw_sorted(axes: Axes, one: CtrGroup, colour: str) -> None:
    """Draw the sorted ratios, in strips of as many rows, and the median ends of their intervals."""
    order = np.argsort(one.ratio, kind="stable")
    strips = [strip for strip in np.array_split(order, _STRIPS) if len(strip)]
    percent = 100 * np.cumsum([len(strip) for strip in strips]) / len(order)
    axes.plot([float(one.ratio[strip].mean()) for strip in strips], percent, color=colour, linewidth=1.6)
    low, high = (
        [float(np.nanmedian(values[strip])) if np.isfinite(values[strip]).any() else np.nan for strip in strips]
        for values in (one.low, one.high)
    )
    axes.fill_betweenx(percent, low, high, color=colour, alpha=0.18, linewidth=0)


def _draw_verdicts(axes: Axes, report: CtrReport, names: dict[Group, str]) -> None:
    parts = {
        "below": (f"interval below {LIMIT:g}", "#56B4E9"),
        "undecided": (f"interval holds {LIMIT:g}", "0.75"),
        "above": (f"interval above {LIMIT:g}", "#D55E00"),
        "without_interval": ("no interval", "white"),
    }
    for place, one in enumerate(report.groups.values()):
        left, rows = 0.0, max(len(one.ratio), 1)
        for name, (label, colour) in parts.items():
            width = 100 * one.verdicts[name] / rows
            text = label if place == 0 else None
            axes.barh(place, width, left=left, color=colour, edgecolor="0.4", linewidth=0.6, height=0.7, label=text)
            if width > 7:
                axes.text(left + width / 2, place, f"{width:.0f} %", ha="center", va="center", fontsize="x-small")
            left += width
    axes.set_yticks(range(len(names)), [*names.values()], fontsize="small")
    axes.set(xlim=(0, 100), ylim=(max(len(names), 3) - 0.4, -1.6), xlabel="rows with a ratio, %")
    axes.legend(fontsize="x-small", loc="upper center", ncols=2)


def _style(axes: Axes, report: CtrReport) -> None:
    """Show where nearly all ratios are, and the limit."""
    ratio = np.concatenate([one.ratio for one in report.groups.values()]).astype(np.float64)
    ends = (
        np.concatenate([[*one.low, *one.high] for one in report.groups.values()]) if len(ratio) <= FEW_ROWS else ratio
    )
    ends = np.concatenate([ratio, ends[np.isfinite(ends)]])
    tail = 0.0 if len(ratio) <= FEW_ROWS else 0.0005
    low, high = np.quantile(ends, [tail, 1 - tail])
    axes.set_xlim(min(low, LIMIT) - 0.02, max(high, LIMIT) + 0.02)
    axes.axvline(LIMIT, color="0.3", linewidth=1, linestyle="--")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _title(report: CtrReport) -> str:
    blank = sum(sum(one.blank.values()) for one in report.groups.values())
    left_out = f", {blank:,} without one" if blank else ""
    return (
        f"Cardiothoracic ratio of {report.rows:,} rows{left_out}; dashed: {LIMIT:g}, the usual limit on upright PA "
        "films\nthe outline of the lungs stands in for the ribs: not a medical device"
    )
