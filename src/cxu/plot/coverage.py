"""What calibrated radii and sigmas hold: coverage by part and by size of sigma, and shares expected and observed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxu.plot.figure import new_figure, save_figure

if TYPE_CHECKING:
    from cxu.evaluation.coverage import Coverage, CoverageReport

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def draw_coverage(report: CoverageReport, nominal: float, path: Path) -> None:
    """Draw a report into a PNG, SVG or PDF: by part, by decile of sigma, and sigma as a Gaussian says it."""
    figure = new_figure(13, 4.4)
    by_part, by_decile, of_sigma = figure.subplots(1, 3)
    deciles = [one for one in report.radii if one.name.startswith("sigma decile")]
    _draw_shares(by_part, [one for one in report.radii if one not in deciles], nominal)
    by_part.set_title("by organ and data set")
    _draw_shares(by_decile, deciles, nominal)
    by_decile.set(title="by uncertainty", xlabel="median sigma of the decile, px of the 1024 frame")
    by_decile.set_xticks(range(len(deciles)), [f"{one.sigma_px:.1f}" for one in deciles], rotation=0)
    _draw_sigma(of_sigma, report)
    save_figure(figure, path)


def _draw_shares(axes: Any, parts: list[Coverage], nominal: float) -> None:
    values = np.array([one.share for one in parts]).reshape(-1, 3)
    axes.axhline(nominal, color="0.4", linestyle="--", linewidth=1, label=f"promised, {nominal:.0%}")
    axes.errorbar(
        range(len(parts)),
        values[:, 0],
        yerr=np.abs(values[:, 1:] - values[:, :1]).T,
        fmt="o",
        color=_BLUE,
        capsize=3,
        label="observed, 95 % over images",
    )
    axes.set_xticks(range(len(parts)), [one.name.replace("_", " ") for one in parts], rotation=35, ha="right")
    axes.set(ylabel="true nodes within their radius", ylim=(0.6, 1.0))
    axes.legend(fontsize="small", loc="lower left")


def _draw_sigma(axes: Any, report: CoverageReport) -> None:
    expected = [one.expected for one in report.shares]
    observed = np.array([one.observed for one in report.shares])
    axes.plot([0.4, 1], [0.4, 1], color="0.4", linestyle="--", linewidth=1, label="a Gaussian of that sigma")
    axes.errorbar(
        expected,
        observed[:, 0],
        yerr=np.abs(observed[:, 1:] - observed[:, :1]).T,
        fmt="o-",
        color=_ORANGE,
        capsize=3,
        label="observed",
    )
    axes.set(
        title="sigma by itself",
        xlabel="share expected within a distance",
        ylabel="share observed",
        xlim=(0.45, 1),
        ylim=(0.3, 1),
    )
    axes.legend(fontsize="small", loc="upper left")
