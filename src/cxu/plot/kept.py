"""What a limit of uncertainty keeps: nodes, organs and rows, for every limit at once, as ``cxu filter`` counts them.

Raising the limit only ever adds confident nodes, so each organ of a row has a least limit from which on it is usable,
and each row one from which on it stays. Counting these least limits gives the numbers of every limit in one scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cxu import table
from cxu.anatomy import N_ORGANS, ORGANS
from cxu.criteria import group_rows
from cxu.engine import run_shards
from cxu.flow import KEEP_SHARES
from cxu.plot.figure import ORGAN_COLOURS, new_figure, save_figure
from cxu.plot.groups import Group, check_number, names_of, shards_of
from cxu.plot.spread import ALL_NODES, BY_ORGAN, COLUMNS, measure_spread, rows_of_filter
from cxu.store import Shard, StoredTable
from cxu.thresholds import MAX_GAP, MIN_CONFIDENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

STEPS_PER_PX: Final = 20
MOST_PX: Final = 100
LIMITS_PX: Final = np.arange(MOST_PX * STEPS_PER_PX + 1) / STEPS_PER_PX  # the limits that are counted, all exactly
_TOLD_EVERY: Final = 5  # of these limits, the numbers are given of every fifth: 0.25 px
_SHOWN_SHARE: Final = 0.98
_FEW_ROWS: Final = 20  # a share of fewer is not drawn
_HEIGHT: Final = 2.8
_PANELS: Final = ("nodes within the limit, %", "of all rows, %", "of rows kept: confident nodes, %")


@dataclass
class Kept:
    """What every limit of :data:`LIMITS_PX` keeps of a group's rows.

    Attributes
    ----------
    rows
        Rows that reach the limit.
    nodes_within
        Nodes within the limit, of all rows: int64 [3, G], by organ.
    nodes_kept
        Nodes within the limit, of the rows that stay: int64 [3, G].
    organs_usable
        Usable organs: int64 [3, G].
    rows_kept
        Rows that stay: int64 [G].
    limit_for_px
        Least limit that keeps 50, 80 and 95 % of the nodes: what ``--max-std p50`` and so on come to.
    """

    rows: int
    nodes_within: IntArray
    nodes_kept: IntArray
    organs_usable: IntArray
    rows_kept: IntArray
    limit_for_px: tuple[float, ...] = ()

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.rows + other.rows,
            self.nodes_within + other.nodes_within,
            self.nodes_kept + other.nodes_kept,
            self.organs_usable + other.organs_usable,
            self.rows_kept + other.rows_kept,
        )

    def shares_within(self) -> FloatArray:
        """Return the share of nodes within each limit, of all rows: [4, G], by organ and of all nodes."""
        nodes = np.array([organ.n_nodes for organ in ORGANS])
        counts = np.concatenate([self.nodes_within, self.nodes_within.sum(axis=0, keepdims=True)])
        totals = self.rows * np.append(nodes, nodes.sum())
        return counts / np.maximum(totals, 1)[:, None]

    def shares_confident(self) -> FloatArray:
        """Return the share of confident nodes of the rows that stay: [3, G], NaN where none does."""
        nodes = np.array([organ.n_nodes for organ in ORGANS])[:, None]
        return _share(self.nodes_kept, self.rows_kept * nodes)

    def shares_usable(self) -> FloatArray:
        """Return the share of usable organs of the rows that stay: [3, G], NaN where none does."""
        return _share(self.organs_usable, np.broadcast_to(self.rows_kept, self.organs_usable.shape))


def _share(part: IntArray, whole: IntArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


@dataclass(frozen=True)
class KeptReport:
    """What limits keep, by source and model."""

    groups: dict[Group, Kept]

    def content(self) -> dict[str, Any]:
        """Return the numbers behind the figure as plain JSON values."""
        found = []
        for group, kept in self.groups.items():
            limits = {f"{100 * share:g}": limit for share, limit in zip(KEEP_SHARES, kept.limit_for_px, strict=True)}
            found.append(
                {
                    "source": group.source,
                    "model_id": group.model_id,
                    "rows": kept.rows,
                    "max_std_for_percent_of_nodes": limits,
                    "limits": [self.at(kept, index) for index in range(_TOLD_EVERY, _end(kept) + 1, _TOLD_EVERY)],
                }
            )
        return {"kind": "kept", "min_confident": MIN_CONFIDENT, "max_gap": MAX_GAP, "groups": found}

    @staticmethod
    def at(kept: Kept, index: int) -> dict[str, Any]:
        """Return what one limit keeps; as the filter has it, shares of rows that stay are 0 where none does."""
        within, confident, usable = kept.shares_within(), kept.shares_confident(), kept.shares_usable()
        names = [organ.name for organ in ORGANS]
        return {
            "max_std": float(LIMITS_PX[index]),
            "rows_kept": int(kept.rows_kept[index]),
            "nodes_within": dict(zip([*names, "all"], within[:, index].tolist(), strict=True)),
            "nodes_kept": dict(zip(names, np.nan_to_num(confident[:, index]).tolist(), strict=True)),
            "organs_kept": dict(zip(names, np.nan_to_num(usable[:, index]).tolist(), strict=True)),
        }


def _end(kept: Kept) -> int:
    """Return the first limit, on a whole px, within which nearly all nodes are."""
    first = int(np.argmax(kept.shares_within()[-1] >= _SHOWN_SHARE)) or len(LIMITS_PX) - 1
    return min(-(-first // STEPS_PER_PX) * STEPS_PER_PX, len(LIMITS_PX) - 1)


def measure_kept(
    tables: Sequence[StoredTable], *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> KeptReport:
    """Count what every limit keeps of tables.

    Parameters
    ----------
    tables
        What ``cxu filter`` would be given.
    workers
        Processes to use.
    progress
        Called with the rows scanned: every row three times.

    Raises
    ------
    UsageError
        If there is no row, or rows have no standard deviations.
    """
    spread = measure_spread(tables, [ALL_NODES], KEEP_SHARES, as_filter=True, workers=workers, progress=progress)
    found: dict[Group, Kept] = {}
    shards = shards_of(tables)
    for shard, of_shard in zip(shards, run_shards(_count_shard, shards, workers=workers), strict=True):
        for group, kept in of_shard.items():
            found[group] = found[group] + kept if group in found else kept
        progress(shard.rows)
    for group, kept in found.items():
        kept.limit_for_px = tuple(spread.groups[group].quantiles[0].tolist())
    return KeptReport(dict(sorted(found.items())))


def _count_shard(shard: Shard) -> dict[Group, Kept]:
    rows = rows_of_filter(shard.read((*COLUMNS, "confident", "usable")))
    sigma = table.list_column(rows, "sigma_model_px")
    # of a selection, what is not confident or not usable stays so whatever the limit
    sigma[~table.confident_of(rows)] = np.inf
    usable = table.usable_of(rows)
    return {
        Group(source, model_id): count_kept(sigma[where], usable[where])
        for (source, model_id), where in group_rows(rows)
    }


def count_kept(sigma_px: FloatArray, usable: BoolArray) -> Kept:
    """Count what every limit keeps.

    Parameters
    ----------
    sigma_px
        Node uncertainty float32 [n, 120]; infinite for nodes that no limit makes confident.
    usable
        bool [n, 3]: organs that a limit may make usable.
    """
    organ_limits = np.where(usable, least_limits(sigma_px), np.inf)
    # as the filter compares: in float32, the limit included
    of_nodes, of_organs = (np.searchsorted(LIMITS_PX.astype(np.float32), v) for v in (sigma_px, organ_limits))
    of_rows = of_organs.min(axis=1)
    lanes = np.broadcast_to(BY_ORGAN, of_nodes.shape)
    return Kept(
        len(sigma_px),
        _cumulated(lanes, of_nodes),
        _cumulated(lanes, np.maximum(of_nodes, of_rows[:, None])),
        _cumulated(np.broadcast_to(np.arange(N_ORGANS), of_organs.shape), of_organs),
        _cumulated(np.zeros(len(of_rows), np.int64), of_rows, 1)[0],
    )


def _cumulated(lanes: IntArray, places: IntArray, n_lanes: int = N_ORGANS) -> IntArray:
    """Return how many of each lane stand at each limit or before it: int64 [L, G]; those behind the last never do."""
    width = len(LIMITS_PX) + 1
    counts = np.bincount((lanes * width + places).ravel(), minlength=n_lanes * width)
    cumulated: IntArray = counts.reshape(n_lanes, width).cumsum(axis=1)[:, :-1]
    return cumulated


def least_limits(sigma_px: FloatArray, *, min_confident: float = MIN_CONFIDENT, max_gap: int = MAX_GAP) -> FloatArray:
    """Return the least limit from which on each organ is usable: [n, 3], in the order of ORGANS.

    An organ is usable once enough of its nodes are within the limit and no run of more than ``max_gap`` neighbours is
    not: that is, once each run of ``max_gap + 1`` has one.

    Examples
    --------
    >>> sigma = np.ones((1, 120), np.float32); sigma[0, 94:107] = 7; sigma[0, :5] = 3
    >>> least_limits(sigma).tolist()
    [[3.0, 1.0, 7.0]]
    """
    limits = np.empty((len(sigma_px), N_ORGANS), sigma_px.dtype)
    for index, organ in enumerate(ORGANS):
        nodes = sigma_px[:, organ.nodes]
        n_nodes = organ.n_nodes
        # as thresholds.usable_organs has it: a share of the nodes, at least
        needed = int(np.argmax(np.arange(n_nodes + 1) / n_nodes >= min_confident))
        enough = np.partition(nodes, needed - 1, axis=1)[:, needed - 1] if needed else np.full(len(nodes), -np.inf)
        limits[:, index] = enough if max_gap >= n_nodes else np.maximum(enough, _worst_run(nodes, max_gap + 1))
    return limits


def _worst_run(nodes: FloatArray, length: int) -> FloatArray:
    """Return the largest of the least values of all runs of ``length`` neighbours on closed rings [n, N]."""
    least = nodes.copy()
    for step in range(1, length):
        np.minimum(least, np.roll(nodes, -step, axis=1), out=least)
    worst: FloatArray = least.max(axis=1)
    return worst


def draw_kept(report: KeptReport, path: Path) -> None:
    """Draw for each source how many nodes are within a limit, and what a filter with that limit keeps.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    UsageError
        If there are more sources and models than a figure can show.
    """
    check_number([*report.groups])
    names = names_of(report.groups)
    figure = new_figure(12, _HEIGHT * len(report.groups) + 1.2)
    rows = figure.subplots(len(report.groups), 3, squeeze=False, sharex=True)
    for (group, kept), (within, filtered, confident) in zip(report.groups.items(), rows, strict=True):
        _draw_within(within, kept)
        _draw_filtered(filtered, kept)
        enough = kept.rows_kept >= min(_FEW_ROWS, kept.rows)
        _draw_organs(confident, np.where(enough, 100 * kept.shares_confident(), np.nan), "{}: nodes", "-")
        within.set_title(f"{names[group]}, {kept.rows:,} rows", fontsize="medium", loc="left")
        for axes, title in zip((within, filtered, confident), _PANELS, strict=True):
            axes.set(ylim=(0, 102), ylabel=title)
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
    rows[0][0].set_xlim(0, LIMITS_PX[max(_end(kept) for kept in report.groups.values())])
    for axes in rows[-1]:
        axes.set_xlabel("--max-std, px of the 1024 frame")
    labelled = {
        label: handle for axes in rows[0][:2] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=4, fontsize="small")
    rule = f"usable organ: {100 * MIN_CONFIDENT:g} % of its nodes within the limit, no gap above {MAX_GAP} nodes"
    figure.suptitle(f"What a limit of uncertainty keeps ({rule}; a row stays with one usable organ)", fontsize="medium")
    save_figure(figure, path)


def _draw_organs(axes: Axes, percent: FloatArray, label: str, style: str) -> None:
    """Draw a curve for each organ: percentages [3, G]."""
    for organ, values in zip(ORGANS, percent, strict=True):
        colour = ORGAN_COLOURS[organ.name]
        axes.plot(LIMITS_PX, values, style, color=colour, linewidth=1.4, label=label.format(organ.title))


def _draw_within(axes: Axes, kept: Kept) -> None:
    percent = 100 * kept.shares_within()
    _draw_organs(axes, percent[:-1], "{}: nodes", "-")
    axes.plot(LIMITS_PX, percent[-1], color="black", linewidth=2, label="all nodes")
    for share, limit in zip(KEEP_SHARES, kept.limit_for_px, strict=True):
        axes.plot([limit, limit, 0], [0, 100 * share, 100 * share], color="0.4", linewidth=0.8, linestyle=":")
        text = f"p{100 * share:g}: {limit:.2f}"
        axes.annotate(text, (limit, 100 * share), (5, -9), textcoords="offset points", fontsize="x-small")


def _draw_filtered(axes: Axes, kept: Kept) -> None:
    rows = max(kept.rows, 1)
    axes.plot(LIMITS_PX, 100 * kept.rows_kept / rows, "--", color="black", linewidth=2, label="rows kept")
    _draw_organs(axes, 100 * kept.organs_usable / rows, "{} usable", "--")
