"""Scores inside and outside the distribution: densities, ROC curves, and image score against RCA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cxu.evaluation.ood import Detector, OodReport
from cxu.evaluation.ood_fit import density
from cxu.evaluation.ood_rca import ALL_SOURCES, RcaAgreement, RcaReport
from cxu.plot.figure import new_figure, plain_log_ticks, save_figure
from cxu.table import scalar_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

# Okabe and Ito's palette
_IN: Final = "#0072B2"
_OUT: Final = "#D55E00"
_COLOURS: Final = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#000000")
_SIZE: Final = (4.6, 3.9)
_GRID: Final = 400
_MOST_POINTS: Final = 5_000
_WIDE: Final = 5
_LABELS: Final = {"image score": "image score, px", "isolation forest": "Isolation Forest score"}


def draw_ood(report: OodReport, path: Path) -> None:
    """Draw the ROC curve of each detector, and the density of its scores inside and outside; test images.

    Parameters
    ----------
    report
        What was measured.
    path
        PNG, SVG or PDF.

    Raises
    ------
    MissingExtraError
        If matplotlib or scipy is not installed.
    """
    panels = 1 + len(report.detectors)
    figure = new_figure(_SIZE[0] * panels, _SIZE[1])
    roc, *densities = figure.subplots(1, panels)
    for detector, colour in zip(report.detectors, (_IN, _COLOURS[1]), strict=False):
        _draw_roc(roc, detector, colour)
    roc.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
    roc.set(xlabel="share of IN above the threshold", ylabel="share of OUT above it", aspect="equal")
    roc.set_title("ROC, test images", fontsize="medium")
    if roc.get_legend_handles_labels()[0]:
        roc.legend(fontsize="x-small", loc="lower right")
    for axes, detector in zip(densities, report.detectors, strict=True):
        is_score = detector.name == "image score"
        _draw_densities(axes, detector.test_in, detector.test_out, _LABELS[detector.name], logarithmic=is_score)
        for point in detector.points:
            axes.axvline(point.threshold, color="0.5", linewidth=0.8, linestyle="--")
        kept = ", ".join(f"{100 * point.kept:g}" for point in detector.points)
        axes.set_title(f"{kept} % of IN kept (dashed)" if kept else "", fontsize="medium")
    figure.suptitle(f"IN {report.name_in}, OUT {report.name_out}", fontsize="medium")
    save_figure(figure, path)


def _draw_roc(axes: Axes, detector: Detector, colour: str) -> None:
    if not len(detector.test_in) or not len(detector.test_out):
        return
    scores = np.unique(np.concatenate([detector.test_in, detector.test_out]))[::-1]
    x, y = (
        np.concatenate([[0], 1 - np.searchsorted(np.sort(values), scores, side="left") / len(values)])
        for values in (detector.test_in, detector.test_out)
    )
    auc = detector.auc
    label = f"{detector.name}: {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"
    axes.plot(x, y, color=colour, label=label)


def draw_rca(report: RcaReport, path: Path) -> None:
    """Draw RCA against image score, with the median in bins by source, and the score's density on both sides.

    Parameters
    ----------
    report
        What was measured. Of many rows 5,000 are drawn, evenly over the table; curves are of all.
    path
        PNG, SVG or PDF.

    Raises
    ------
    MissingExtraError
        If matplotlib or scipy is not installed.
    """
    figure = new_figure(2.2 * _SIZE[0], 1.1 * _SIZE[1])
    points, densities = figure.subplots(1, 2)
    score, rca = (scalar_column(report.rows, name) for name in ("score_px", "rca_max"))
    every = max(-(-len(score) // _MOST_POINTS), 1)
    source = np.array(report.rows["source"].to_pylist(), object)
    sources = [one for one in report.agreements if one.source != ALL_SOURCES or len(report.agreements) == 1]
    for index, one in enumerate(sources):
        colour = _COLOURS[index % len(_COLOURS)]
        shown = np.flatnonzero(source == one.source)[::every]
        points.scatter(score[shown], rca[shown], s=5, color=colour, linewidths=0, alpha=0.35)
        _draw_curve(points, one, colour)
    points.axhline(report.below, color="0.5", linewidth=0.8, linestyle="--")
    points.set(xlabel="image score, px", ylabel="RCA, Dice (max)", xscale="log")
    plain_log_ticks(points)
    points.set_title("Agreement with another automatic score", fontsize="medium")
    points.legend(title="median in bins; Spearman", fontsize="x-small", title_fontsize="x-small", loc="lower left")
    is_out = np.array(report.rows["set"].to_pylist(), object) == "out"
    names = (f"RCA from {report.below:g} up", f"RCA below {report.below:g}")
    _draw_densities(densities, score[~is_out], score[is_out], _LABELS["image score"], logarithmic=True, names=names)
    densities.set_title("All sources" if len(sources) > 1 else report.agreements[0].source, fontsize="medium")
    save_figure(figure, path)


def _draw_curve(axes: Axes, one: RcaAgreement, colour: str) -> None:
    x, medians = ([step[name] for step in one.curve] for name in ("x", "y_median"))
    found = one.spearman
    label = f"{one.source}: {found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    axes.plot(x, medians, "o-", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6, label=label)


def _draw_densities(
    axes: Axes,
    inside: FloatArray,
    outside: FloatArray,
    label: str,
    *,
    logarithmic: bool,
    names: Sequence[str] = ("IN", "OUT"),
) -> None:
    """Draw the densities of two sets of scores; of a logarithm where the axis is one."""
    both = np.concatenate([inside, outside])
    # over a small range a logarithmic axis has hardly a number on it
    logarithmic = logarithmic and len(both) > 0 and 0 < _WIDE * both.min() < both.max()
    for values, colour, name in zip((inside, outside), (_IN, _OUT), names, strict=True):
        text = f"{name} ({len(values):,})"
        scale = np.log10(values) if logarithmic else values
        at = _grid(np.log10(both) if logarithmic else both)
        curve = density(scale, at)
        if curve is None:
            # a single value has no density
            axes.plot(values, np.zeros(len(values)), "|", color=colour, markersize=14, label=text)
            continue
        x = 10**at if logarithmic else at
        axes.plot(x, curve, color=colour, label=text)
        axes.fill_between(x, curve, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel=label, ylabel="density", yticks=[], xscale="log" if logarithmic else "linear")
    axes.set_ylim(bottom=0)
    if logarithmic:
        plain_log_ticks(axes)
    axes.legend(fontsize="x-small", loc="upper right")


def _grid(values: FloatArray) -> FloatArray:
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = 0.2 * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, _GRID)
