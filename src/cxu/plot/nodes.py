"""Which anatomy is uncertain: the uncertainty of every node, on the mean shape and by stretch of outline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cxu.anatomy import N_NODES, ORGANS
from cxu.canvas import BLANK, sigma_colours
from cxu.frame import MODEL_SIZE
from cxu.plot.figure import new_figure, save_figure
from cxu.plot.groups import COLOURS, MOST_GROUPS, Group, check_number, names_of
from cxu.plot.regions import REGIONS
from cxu.plot.spread import SpreadReport, measure_spread
from cxu.shape import load_shape_model
from cxu.store import StoredTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.floating]

SHARES: Final = (0.5, 0.9)
_MAP_INCH: Final = 3.1
_LONE_MAP_INCH: Final = 4.6
_LEAST_INCH: Final = 4.6
_LIST_INCH: Final = 5.4
_DOT_PT: Final = 3.2  # radius of the dot of a node of no uncertainty, in points
_GROWTH_PT: Final = 6.0  # and how much that of the most uncertain one is larger
_STEPS: Final = 12  # pieces of an edge, each of one colour


@dataclass(frozen=True)
class NodesReport:
    """The uncertainty of every node and every stretch of outline, by source and model."""

    spread: SpreadReport

    def medians(self, group: Group) -> FloatArray:
        """Return the median uncertainty of each node over the rows of a group, px: [120]."""
        return self.spread.groups[group].quantiles[:N_NODES, 0]

    def region_medians(self, group: Group) -> dict[str, float]:
        """Return the median over the nodes of each stretch and the rows of a group, px."""
        medians = self.spread.groups[group].quantiles[N_NODES:, 0].tolist()
        return dict(zip(REGIONS, medians, strict=True))

    def content(self) -> dict[str, Any]:
        """Return the numbers behind the figure as plain JSON values."""
        groups = []
        for group, one in self.spread.groups.items():
            median, high = one.quantiles[:N_NODES].T
            regions = {
                name: {"nodes": list(nodes), "median_px": median_px, "p90_px": p90_px, "mean_px": mean_px}
                for (name, nodes), (median_px, p90_px), mean_px in zip(
                    REGIONS.items(), one.quantiles[N_NODES:].tolist(), one.means[N_NODES:].tolist(), strict=True
                )
            }
            groups.append(
                {
                    "source": group.source,
                    "model_id": group.model_id,
                    "rows": one.rows,
                    "nodes": {
                        "median_px": median.tolist(),
                        "p90_px": high.tolist(),
                        "mean_px": one.means[:N_NODES].tolist(),
                    },
                    "regions": regions,
                }
            )
        return {
            "kind": "nodes",
            "unit": "px of the 1024 frame",
            "rows_without_sigma": self.spread.rows_without,
            "groups": groups,
        }


def measure_nodes(
    tables: Sequence[StoredTable], *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> NodesReport:
    """Measure the uncertainty of every node over the rows of tables, px of the model frame.

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
    stretches = np.empty(N_NODES, np.int64)
    for lane, nodes in enumerate(REGIONS.values()):
        stretches[list(nodes)] = N_NODES + lane
    maps = [np.arange(N_NODES), stretches]
    return NodesReport(measure_spread(tables, maps, SHARES, workers=workers, progress=progress))


def draw_nodes(report: NodesReport, path: Path) -> None:
    """Draw every source's median node uncertainty on the mean shape, and beside it by stretch of outline.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    UsageError
        If there are more sources and models than a figure can show.
    """
    groups = [*report.spread.groups]
    check_number(groups)
    names = names_of(groups)
    columns = next(number for number, most in ((1, 2), (2, 4), (3, MOST_GROUPS)) if len(groups) <= most)
    rows = -(-len(groups) // columns)
    side = _MAP_INCH if len(groups) > 1 else _LONE_MAP_INCH
    figure = new_figure(side * columns + _LIST_INCH + 0.4, max(side * rows, _LEAST_INCH) + 1.2)
    figure.set_layout_engine("constrained", h_pad=0.09, w_pad=0.06)
    halves = figure.add_gridspec(1, 2, width_ratios=[side * columns + 0.4, _LIST_INCH])
    grid = halves[0].subgridspec(rows, columns)
    every = [figure.add_subplot(grid[divmod(index, columns)]) for index in range(len(groups))]
    scale_px = _scale_px([report.medians(group) for group in groups])
    for axes, group in zip(every, groups, strict=True):
        _draw_map(axes, report.medians(group), scale_px)
        n_rows = report.spread.groups[group].rows
        axes.set_title(f"{names[group]}, {n_rows:,} rows", fontsize="medium")
    _add_bar(figure, every, scale_px)
    _draw_ranking(figure.add_subplot(halves[1]), report, names)
    figure.suptitle("Which anatomy is uncertain: median uncertainty of each node, on the mean shape", fontsize="medium")
    save_figure(figure, path)


def _scale_px(medians: Sequence[FloatArray]) -> tuple[float, float]:
    """Return round ends of the colour scale, which few nodes lie beyond."""
    low, high = np.quantile(np.concatenate(medians), [0.005, 0.995])
    step = next(step for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 1000.0) if high - low <= 10 * step)
    first = float(np.floor(low / step) * step)
    return first, max(float(np.ceil(high / step) * step), first + step)


def _colours(values_px: FloatArray, scale_px: tuple[float, float]) -> FloatArray:
    """Return the colours [N, 3], 0 to 1, of values [N] on a scale."""
    low, high = scale_px
    return sigma_colours(np.maximum(values_px - low, 0), vmax_px=high - low) / 255


def _draw_map(axes: Axes, median_px: FloatArray, scale_px: tuple[float, float]) -> None:
    """Draw the outlines of the mean shape: colour and size of a node say how uncertain it is."""
    from matplotlib.collections import LineCollection  # noqa: PLC0415 - an optional extra

    mean_xy = load_shape_model().mean_xy.astype(np.float64)
    low, high = scale_px
    for organ in ORGANS:
        nodes = np.column_stack([mean_xy, median_px])[organ.nodes]
        closed = np.concatenate([nodes, nodes[:1]])
        places = np.arange(organ.n_nodes * _STEPS + 1) / _STEPS
        dense = np.column_stack([np.interp(places, np.arange(len(closed)), column) for column in closed.T])
        pieces = np.stack([dense[:-1, :2], dense[1:, :2]], axis=1)
        colours = _colours((dense[:-1, 2] + dense[1:, 2]) / 2, scale_px)
        axes.add_collection(LineCollection(list(pieces), colors=colours, linewidths=1.6, capstyle="round"))
        radius = _DOT_PT + _GROWTH_PT * np.clip((nodes[:, 2] - low) / (high - low), 0, 1) ** 2
        colours = _colours(nodes[:, 2], scale_px)
        axes.scatter(nodes[:, 0], nodes[:, 1], s=radius**2, color=colours, linewidths=0, zorder=3)
    axes.set(xlim=(0, MODEL_SIZE), ylim=(MODEL_SIZE - 30, 20), xticks=[], yticks=[], aspect="equal")
    axes.set_facecolor("#{:02x}{:02x}{:02x}".format(*BLANK))


def _add_bar(figure: Figure, every: Sequence[Axes], scale_px: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415 - an optional extra
    from matplotlib.colors import ListedColormap, Normalize  # noqa: PLC0415 - the same

    colours = ListedColormap(_colours(np.linspace(*scale_px, 256), scale_px))
    shown = ScalarMappable(Normalize(*scale_px), colours)
    bar = figure.colorbar(shown, ax=list(every), location="bottom", fraction=0.05, aspect=40)
    bar.set_label("median, px of the 1024 frame")


def _draw_ranking(axes: Axes, report: NodesReport, names: dict[Group, str]) -> None:
    """Draw the stretches of outline in the order of their uncertainty, a dot a source."""
    medians = {group: report.region_medians(group) for group in names}
    means = {name: float(np.mean([of_group[name] for of_group in medians.values()])) for name in REGIONS}
    order = sorted(REGIONS, key=means.__getitem__, reverse=True)
    for index, (group, of_group) in enumerate(medians.items()):
        values = [of_group[name] for name in order]
        colour = COLOURS[index % len(COLOURS)]
        marker = "os^Dv"[index // len(COLOURS) % 5] if len(names) > len(COLOURS) else "o"
        axes.plot(values, range(len(order)), marker, color=colour, markersize=6, alpha=0.85, label=names[group])
    axes.set_yticks(range(len(order)), order, fontsize="small")
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="median, px of the 1024 frame")
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("By stretch of outline, most uncertain first", fontsize="medium")
    if len(names) > 1:
        axes.legend(fontsize="x-small", loc="lower right")
