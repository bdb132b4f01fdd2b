"""How node uncertainty is distributed, by organ and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cxu.anatomy import N_ORGANS, ORGANS
from cxu.flow import QUANTILES
from cxu.plot.figure import ORGAN_COLOURS, new_figure, plain_log_ticks, save_figure
from cxu.plot.groups import check_number, names_of
from cxu.plot.spread import ALL_NODES, BY_ORGAN, Spread, SpreadReport, measure_spread, range_edges
from cxu.store import StoredTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

LANES: Final = (*(organ.name for organ in ORGANS), "all")
_HALF_HEIGHT: Final = 0.42  # of a violin, where the lanes of violins are 1 apart
_BINS: Final = 90
_TAIL: Final = 0.0005  # of the values is not shown at either end
_ROW_INCH: Final = 0.42


@dataclass(frozen=True)
class SigmaReport:
    """The distribution of node uncertainty by source, model and organ."""

    spread: SpreadReport

    def content(self) -> dict[str, Any]:
        """Return the numbers behind the figure as plain JSON values."""
        groups = [
            {
                "source": group.source,
                "model_id": group.model_id,
                "rows": one.rows,
                "organs": {name: _numbers(one, lane) for lane, name in enumerate(LANES)},
            }
            for group, one in self.spread.groups.items()
        ]
        return {
            "kind": "sigma",
            "unit": "px of the 1024 frame",
            "rows_without_sigma": self.spread.rows_without,
            "groups": groups,
        }


def _numbers(one: Spread, lane: int) -> dict[str, Any]:
    counts, edges = histogram(one, lane)
    quantiles = {f"{100 * share:g}": value for share, value in zip(QUANTILES, one.quantiles[lane], strict=True)}
    return {
        "nodes": int(one.counts[lane].sum()),
        "mean_px": float(one.means[lane]),
        "quantiles_px": quantiles,
        "histogram": {"edges_px": edges.tolist(), "counts": counts.tolist()},
    }


def histogram(one: Spread, lane: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Return exact counts [B] of a lane's values in bins that widen by an eighth of an octave, and their edges [B + 1].

    Bins before the first value and behind the last are left out.
    """
    per_bin = 16  # ranges of 1/128 of a power of two
    counts = one.counts[lane].reshape(-1, per_bin).sum(axis=1)
    edges = range_edges()[::per_bin].astype(np.float64)
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    return counts[first:last], edges[first : last + 1]


def measure_sigma(
    tables: Sequence[StoredTable], *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> SigmaReport:
    """Measure how node uncertainty is distributed, px of the model frame.

    Parameters
    ----------
    tables
        Rows without standard deviations are counted and left out.
    workers
        Processes to use.
    progress
        Called with the rows scanned: every row twice.

    Raises
    ------
    UsageError
        If there is no row, or none has standard deviations.
    """
    maps = [BY_ORGAN, ALL_NODES + N_ORGANS]
    return SigmaReport(measure_spread(tables, maps, QUANTILES, workers=workers, progress=progress))


def draw_sigma(report: SigmaReport, path: Path) -> None:
    """Draw the distribution of each organ of each source, with its quantiles, over a logarithmic scale.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    UsageError
        If there are more sources and models than a figure can show.
    """
    groups = report.spread.groups
    check_number([*groups])
    names = names_of(groups)
    n_rows = len(groups) * (len(LANES) + 1)
    figure = new_figure(9.5, _ROW_INCH * n_rows + 1.3)
    axes = figure.subplots()
    low, high = _shown_px([*groups.values()])
    ticks, labels = [], []
    for number, (group, one) in enumerate(groups.items()):
        top = number * (len(LANES) + 1)
        for lane, name in enumerate(LANES):
            _draw_violin(axes, one, lane, top + lane, (low, high))
            ticks.append(top + lane)
            labels.append(name.replace("_", " ") if name != "all" else "all nodes")
        text = f"{names[group]}, {one.rows:,} rows"
        axes.annotate(text, (low, top - 0.6), (2, 0), textcoords="offset points", va="center", weight="bold")
    axes.set_yticks(ticks, labels)
    axes.set(ylim=(n_rows - 1.2, -1.0), xlim=(low, high), xscale="log")
    axes.set_xlabel("uncertainty of a node, (sigma x + sigma y) / 2, px of the 1024 frame (logarithmic)")
    plain_log_ticks(axes)
    axes.grid(axis="x", color="0.9", which="both")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle("Node uncertainty by organ: density, 5 to 95 % (line), quartiles (bar), median", fontsize="medium")
    save_figure(figure, path)


def _shown_px(groups: Sequence[Spread]) -> tuple[float, float]:
    """Return the values between which nearly all of every group lie."""
    edges = range_edges()
    found = []
    for one in groups:
        cumulated = np.cumsum(one.counts[-1]) / max(one.counts[-1].sum(), 1)
        first, last = np.searchsorted(cumulated, [_TAIL, 1 - _TAIL])
        found.append((edges[first], edges[min(last + 1, len(edges) - 1)]))
    low, high = min(pair[0] for pair in found), max(pair[1] for pair in found)
    return float(max(low, 0.05)), float(high)


def _draw_violin(axes: Axes, one: Spread, lane: int, place: float, shown_px: tuple[float, float]) -> None:
    colour = ORGAN_COLOURS.get(LANES[lane], "0.35")
    bins = np.geomspace(*shown_px, _BINS + 1)
    cumulated = np.concatenate([[0], np.cumsum(one.counts[lane])])
    # the counts within each bin, ranges that it cuts by their share
    density = np.diff(np.interp(bins, range_edges(), cumulated))
    middle = np.sqrt(bins[:-1] * bins[1:])
    height = _HALF_HEIGHT * density / max(density.max(), 1e-9)
    axes.fill_between(middle, place - height, place + height, color=colour, alpha=0.35, linewidth=0)
    low, first, median, third, high = one.quantiles[lane]
    axes.plot([low, high], [place, place], color=colour, linewidth=1.2)
    axes.plot([first, third], [place, place], color=colour, linewidth=5, solid_capstyle="butt")
    axes.plot(median, place, "o", color="white", markeredgecolor=colour, markeredgewidth=1.4, markersize=5)
    axes.annotate(f"{median:.1f}", (median, place), (0, 7), textcoords="offset points", ha="center", fontsize="x-small")
