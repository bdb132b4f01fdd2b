"""Uncertainty against damage: noise over its strength, squares over their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cxu.evaluation.corruption import DamageReport
from cxu.evaluation.corruption_summary import DamageSummary
from cxu.plot.figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]
Draw = Callable[["Axes"], None]

# Okabe and Ito's palette
_BLUE: Final = "#0072B2"
_ORANGE: Final = "#D55E00"
_GREY: Final = "#999999"
_PUBLISHED_MARKS: Final = {"with skip connections": ("^", _ORANGE), "without skip connections": ("v", "#CC79A7")}
_AXIS: Final = {"noise": "sigma of the noise, 8-bit grey levels", "occlusion": "black squares"}
_WIDTH: Final = 4.6
_HEIGHT: Final = 3.9
_MOST_POINTS: Final = 20_000


def draw_damage(report: DamageReport, summary: DamageSummary, path: Path, *, title: str = "") -> None:
    """Draw boxplots of score, latent uncertainty, drift or error over the severities, and score against error.

    Boxes are quartiles over images, whiskers reach 1.5 times their height. Published medians are drawn as points beside
    the scores.

    Parameters
    ----------
    report, summary
        What was measured, and what it comes to.
    path
        PNG, SVG or PDF.
    title
        Above the figure.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    panels = _panels(report, summary)
    columns = 3 if len(panels) > 4 or len(panels) == 3 else 2
    rows = -(-len(panels) // columns)
    figure = new_figure(_WIDTH * columns, _HEIGHT * rows)
    axes = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).flat)
    for axis, (name, draw) in zip(axes, panels.items(), strict=False):
        draw(axis)
        axis.set_title(name, fontsize="medium")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if title:
        figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


def _panels(report: DamageReport, summary: DamageSummary) -> dict[str, Draw]:
    """Return the panels, title → what draws it."""
    severities, damage = report.options.steps, report.options.damage
    values = {
        name: _stacked([getattr(one, name) for one in report.responses], len(severities))
        for name in ("score_px", "latent_sigma", "drift_px", "error_px")
    }

    def boxes(name: str, label: str) -> Draw:
        published = summary.published_px if name == "score_px" else {}
        return lambda axes: _draw_boxes(axes, severities, values[name], damage, label, published)

    panels: dict[str, Draw] = {
        "Predictive uncertainty": boxes("score_px", "image score, px"),
        "Latent uncertainty": boxes("latent_sigma", "mean latent sigma"),
    }
    if report.has_truth:
        panels["Error"] = boxes("error_px", "mean node error, px")
    else:
        panels["Drift from the undamaged prediction (no error)"] = boxes("drift_px", "mean node distance, px")
    if damage == "occlusion":
        panels["Node uncertainty inside and outside squares"] = lambda axes: _draw_nodes(axes, report, "sigma_px")
    if damage == "occlusion" and report.has_truth:
        panels["Node error inside and outside squares"] = lambda axes: _draw_nodes(axes, report, "error_px")
    if report.has_truth:
        panels["Score against error"] = lambda axes: _draw_scatter(
            axes, values["error_px"], values["score_px"], severities, summary
        )
    return panels


def _stacked(rows: Sequence[FloatArray], width: int) -> FloatArray:
    return np.array(rows, np.float64).reshape(len(rows), width)


def _draw_boxes(
    axes: Axes,
    severities: Sequence[float],
    values: FloatArray,
    damage: str,
    label: str,
    published_px: Mapping[str, Mapping[int, float]],
) -> None:
    positions = _positions(severities, damage)
    if len(values):
        width = 0.6 * min(np.diff(positions), default=1)
        drawn = axes.boxplot(values, positions=positions, widths=width, manage_ticks=False, **_box_style(_BLUE))
        _fill(drawn, _BLUE)
        axes.plot(positions, np.median(values, axis=0), color=_BLUE, linewidth=1, label="median here")
    _draw_published(axes, published_px)
    _label(axes, severities, damage)
    axes.set_ylabel(label)
    # latent sigmas change little, and from 0 nothing would be seen of it
    if "latent" not in label:
        _from_zero(axes)


def _from_zero(axes: Axes) -> None:
    axes.set_ylim(0, max(axes.get_ylim()))


def _positions(severities: Sequence[float], damage: str) -> FloatArray:
    """Return where severities stand: noise on its scale, squares side by side."""
    return np.array(severities if damage == "noise" else range(len(severities)), np.float64)


def _label(axes: Axes, severities: Sequence[float], damage: str) -> None:
    axes.set_xlabel(_AXIS[damage])
    if damage == "occlusion":
        axes.set_xticks(range(len(severities)), [f"{step:g}" for step in severities])


def _box_style(colour: str) -> dict[str, Any]:
    line = {"color": colour, "linewidth": 1}
    points = {"marker": ".", "markersize": 3, "markeredgecolor": colour, "alpha": 0.5}
    return {
        "patch_artist": True,
        "boxprops": {**line},
        "whiskerprops": line,
        "capprops": line,
        "medianprops": {"color": "black", "linewidth": 1.2},
        "flierprops": points,
    }


def _fill(drawn: Mapping[str, Any], colour: str) -> None:
    for box in drawn["boxes"]:
        box.set(facecolor=(colour, 0.25))


def _draw_published(axes: Axes, published_px: Mapping[str, Mapping[int, float]]) -> None:
    for variant, scores in published_px.items():
        mark, colour = _PUBLISHED_MARKS[variant]
        label = f"published, {variant}"
        axes.plot([*scores], [*scores.values()], mark, color=colour, markersize=5, label=label, zorder=4)
    if published_px:
        title = "published medians are of\nother films and other weights"
        axes.legend(title=title, fontsize="x-small", title_fontsize="x-small", loc="best")


def _draw_nodes(axes: Axes, report: DamageReport, name: str) -> None:
    severities = report.options.steps[1:]
    for side, (part, colour) in enumerate((("inside", _ORANGE), ("outside", _GREY))):
        values = [
            np.concatenate(
                [getattr(one.nodes, name)[k][getattr(one.nodes, part)[k]] for one in report.responses if one.nodes]
                or [np.empty(0)]
            )
            for k in range(1, len(severities) + 1)
        ]
        positions = np.arange(len(severities)) + 0.2 * (2 * side - 1)
        style = _box_style(colour) | {"showfliers": False}
        _fill(axes.boxplot(values, positions=positions, widths=0.34, manage_ticks=False, **style), colour)
        axes.plot([], [], color=colour, linewidth=6, alpha=0.5, label=part)
    axes.legend(fontsize="x-small", loc="upper left")
    _label(axes, [*severities], "occlusion")
    axes.set_ylabel(f"node {'uncertainty' if name == 'sigma_px' else 'error'}, px")
    _from_zero(axes)


def _draw_scatter(
    axes: Axes, error: FloatArray, score: FloatArray, severities: Sequence[float], summary: DamageSummary
) -> None:
    colour = np.broadcast_to(_positions(severities, summary.damage), score.shape).ravel()
    every = -(-score.size // _MOST_POINTS)
    points = [values.ravel()[:: max(every, 1)] for values in (error, score, colour)]
    drawn = axes.scatter(points[0], points[1], c=points[2], s=8, cmap="viridis", linewidths=0, alpha=0.7)
    bar = axes.figure.colorbar(drawn, ax=axes, label=_AXIS[summary.damage])
    if summary.damage == "occlusion":
        bar.set_ticks(range(len(severities)), labels=[f"{step:g}" for step in severities])
    found = summary.score_with_error
    if found is not None and np.isfinite(found.value):
        axes.text(
            0.97,
            0.03,
            f"Spearman {found.value:.2f} ({found.low:.2f} to {found.high:.2f})",
            transform=axes.transAxes,
            ha="right",
            fontsize="small",
        )
    axes.set(xlabel="mean node error, px", ylabel="image score, px")
