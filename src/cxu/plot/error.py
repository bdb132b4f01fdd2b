"""Error of nodes against their uncertainty: figure 4 of the CheXmask-U paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.evaluation.error import GAUSSIAN_SLOPE, MEAN, PUBLISHED_PEARSON, ErrorReport, ErrorSummary
from cxu.evaluation.relation import Relation
from cxu.plot.figure import ORGAN_COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_SHARE: Final = 0.995  # of the nodes; a few that are far off would press all others into a corner
_COLUMNS: Final = 3
_PANEL_INCH: Final = (4.6, 4.2)
_GRID: Final = 45


class _Panel(NamedTuple):
    title: str
    label: str
    value_px: npt.NDArray[np.floating]
    relations: Mapping[str, Relation]
    is_error: bool


def draw_error(report: ErrorReport, summary: ErrorSummary, path: Path, *, title: str = "") -> None:
    """Draw a panel for each annotator, their mean and the distance between them, into PNG, SVG or PDF.

    A panel has the density of nodes, the means over bins of uncertainty, of all nodes and of each organ, and, for
    errors, the line that a calibrated isotropic Gaussian would follow. The 0.5 % of the nodes that are farthest out on
    either axis are not shown; all count in the numbers.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    panels = _panels(report, summary)
    columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(_PANEL_INCH[0] * columns, _PANEL_INCH[1] * rows + 1.1)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(all_axes, panels, strict=False):
        _draw_panel(axes, panel, report.predictions.sigma_px)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    published = " and ".join(f"{value:g}" for value in PUBLISHED_PEARSON)
    told = f"published Pearson, two annotators: {published}\n(Cosarinsky et al. 2026; other films and weights)"
    figure.suptitle(f"{title}\n{told}" if title else told, fontsize="small")
    if all_axes[0].lines:
        figure.legend(handles=all_axes[0].lines, loc="outside lower center", fontsize="x-small", ncols=columns)
    save_figure(figure, path)


def _panels(report: ErrorReport, summary: ErrorSummary) -> list[_Panel]:
    panels = [
        _Panel(f"against {name}", "error of a node, px", error_px, summary.annotators[name], True)
        for name, error_px in zip(report.annotators, report.error_px, strict=True)
    ]
    if summary.mean_annotator is not None:
        panels.append(
            _Panel(f"against the {MEAN}", "error of a node, px", report.mean_error_px, summary.mean_annotator, True)
        )
    if summary.between is not None:
        label = "distance between annotators, px"
        panels.append(_Panel("annotators against each other", label, report.between_px, summary.between, False))
    return panels


def _draw_panel(axes: Axes, panel: _Panel, sigma_px: npt.NDArray[np.floating]) -> None:
    known = np.isfinite(sigma_px) & np.isfinite(panel.value_px)
    x, y = sigma_px[known], panel.value_px[known]
    if len(x):
        right, top = (1.02 * float(np.quantile(values, _SHOWN_SHARE)) or 1.0 for values in (x, y))
        axes.hexbin(
            x, y, gridsize=_GRID, extent=(0, right, 0, top), bins="log", mincnt=1, cmap="Greys", linewidths=0, alpha=0.8
        )
        axes.set(xlim=(0, right), ylim=(0, top))
        if panel.is_error:
            told = f"calibrated Gaussian: {GAUSSIAN_SLOPE:.2f} px of error per px"
            axes.plot([0, right], [0, GAUSSIAN_SLOPE * right], color="black", linestyle="--", linewidth=1, label=told)
    for group, colour in {**ORGAN_COLOURS, "all": "black"}.items():
        curve = panel.relations[group].curve
        wide = 2.2 if group == "all" else 1.4
        points = [(one["x"], one["y_mean"]) for one in curve]
        if points:
            name = group.replace("_", " ") if group != "all" else "all nodes, mean in bins"
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=wide, marker="o", markersize=3, label=name)
    whole = panel.relations["all"]
    numbers = f"Pearson {whole.pearson.value:.2f}, Spearman {whole.spearman.value:.2f}, slope {whole.slope.value:.2f}"
    axes.set_title(f"{panel.title}\n{numbers}", fontsize="medium")
    axes.set(xlabel="uncertainty of a node, px", ylabel=panel.label)
