"""Dice and 95 % Hausdorff distance of each organ, over images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cxu.evaluation.accuracy import AccuracyReport
from cxu.plot.figure import ORGAN_COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUPS: Final = ("right_lung", "left_lung", "lungs", "heart")
_GREY: Final = "#777777"
_PANELS: Final = {"dice": "Dice", "hd95_px": "95 % Hausdorff distance, px of the 1024 frame"}
_JITTER: Final = 0.16
_MOST_POINTS: Final = 2000


def draw_accuracy(report: AccuracyReport, path: Path, *, title: str = "") -> None:
    """Draw box plots of Dice and of the 95 % Hausdorff distance by organ, each image a point, into PNG, SVG or PDF.

    Boxes are quartiles, whiskers reach 1.5 times their height.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    figure = new_figure(10, 4.4)
    for axes, (measure, name) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        _draw_boxes(axes, report, measure)
        axes.set_title(name, fontsize="medium")
    if title:
        figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


def _draw_boxes(axes: Axes, report: AccuracyReport, measure: str) -> None:
    rng = np.random.default_rng(0)
    found = {group: report.values(group, measure) for group in _GROUPS}
    found = {group: values[np.isfinite(values)] for group, values in found.items()}
    for place, (group, values) in enumerate(found.items()):
        colour = ORGAN_COLOURS.get(group, _GREY)
        shown = values if len(values) <= _MOST_POINTS else rng.choice(values, _MOST_POINTS, replace=False)
        spread = rng.uniform(-_JITTER, _JITTER, len(shown))
        axes.scatter(place + spread, shown, s=8, color=colour, alpha=0.35, linewidths=0)
        if len(values):
            line = {"color": "black", "linewidth": 1}
            axes.boxplot(
                [values],
                positions=[place],
                widths=0.5,
                showfliers=False,
                medianprops=line,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
            )
    names = [f"{group.replace('_', ' ')}\nn = {len(values):,}" for group, values in found.items()]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
