"""Image score against RCA: two automatic scores of the same rows. Neither is the truth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cxu import table
from cxu.criteria import group_rows
from cxu.engine import run_shards
from cxu.errors import UsageError
from cxu.plot.figure import new_figure, plain_log_ticks, save_figure
from cxu.plot.groups import Group, check_number, names_of, shards_of
from cxu.stats import spearman
from cxu.store import Shard, StoredTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

RCA: Final = {"rca_mean": "RCA, mean Dice", "rca_max": "RCA, best Dice"}
_SCORE: Final = "mean_sigma_model_px"
_COLUMNS: Final = ("source", "model_id", _SCORE, *RCA)
_ROWS_A_BIN: Final = 20  # of fewer, a median says little
_BINS_AN_OCTAVE: Final = 6
_CELLS: Final = 70
_TAIL: Final = 0.0005  # of the rows is not shown at either end
_HEIGHT: Final = 2.9


@dataclass(frozen=True)
class RcaAgreement:
    """How the image score and one RCA of a group's rows go together.

    Attributes
    ----------
    score_px, rca
        Of the rows that have both: float32 [n].
    spearman
        Correlation of their ranks; NaN where there is none.
    curve
        RCA in bins of the score, six to a doubling, that hold 20 rows or more; or one bin of all.
    """

    score_px: FloatArray
    rca: FloatArray
    spearman: float
    curve: list[dict[str, Any]]


@dataclass(frozen=True)
class RcaReport:
    """The agreement by group and column of RCA, and how many rows lack a score or RCA."""

    groups: dict[Group, dict[str, RcaAgreement]]
    rows_without: int

    def content(self) -> dict[str, Any]:
        """Return the numbers behind the figure as plain JSON values."""
        groups = [
            {
                "source": group.source,
                "model_id": group.model_id,
                **{
                    name: {
                        "rows": len(one.rca),
                        "spearman": None if math.isnan(one.spearman) else one.spearman,
                        "bins": one.curve,
                    }
                    for name, one in of_group.items()
                },
            }
            for group, of_group in self.groups.items()
        ]
        return {
            "kind": "rca",
            "note": "RCA is an automatic score of the published rows, not the truth",
            "rows_without_score_or_rca": self.rows_without,
            "groups": groups,
        }


def measure_rca(
    tables: Sequence[StoredTable], *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> RcaReport:
    """Gather image score and RCA of rows: three numbers a row are kept.

    Parameters
    ----------
    tables
        Published rows; predictions have no RCA.
    workers
        Processes to use.
    progress
        Called with the rows read.

    Raises
    ------
    UsageError
        If there is no row, or none has both.
    """
    shards = shards_of(tables)
    parts: dict[Group, list[FloatArray]] = defaultdict(list)
    for shard, of_shard in zip(shards, run_shards(_read_shard, shards, workers=workers), strict=True):
        for group, values in of_shard.items():
            parts[group].append(values)
        progress(shard.rows)
    groups: dict[Group, dict[str, RcaAgreement]] = {}
    without = 0
    for group in sorted(parts):
        score, *every = np.concatenate(parts[group], axis=1)
        known = np.isfinite(score) & np.any(np.isfinite(every), axis=0)
        without += int(np.count_nonzero(~known))
        if known.any():
            groups[group] = {name: _agreement(score, rca) for name, rca in zip(RCA, every, strict=True)}
    if not groups:
        names = ", ".join(stored.name for stored in tables)
        raise UsageError(
            f"no row of {names} has both standard deviations and RCA: published rows of CheXmask-U have, predictions "
            "and the original CheXmask have not"
        )
    return RcaReport(groups, without)


def _read_shard(shard: Shard) -> dict[Group, FloatArray]:
    """Return image score and RCA of a shard's rows by group: float32 [3, n], NaN where unknown."""
    rows = shard.read(_COLUMNS)
    values = np.stack([table.scalar_column(rows, name) for name in (_SCORE, *RCA)]).astype(np.float32)
    return {Group(source, model_id): values[:, where] for (source, model_id), where in group_rows(rows)}


def _agreement(score: FloatArray, rca: FloatArray) -> RcaAgreement:
    known = np.isfinite(score) & np.isfinite(rca)
    score, rca = score[known], rca[known]
    return RcaAgreement(score, rca, spearman(score, rca), binned_by_octave(score, rca))


def binned_by_octave(score: FloatArray, rca: FloatArray) -> list[dict[str, Any]]:
    """Return median and quartiles of ``rca`` [n] in bins of ``score`` [n], six to each doubling of the score.

    Bins of fewer than 20 rows are left out, unless all are: then there is one bin, of all rows.

    Examples
    --------
    >>> [one["rca_median"] for one in binned_by_octave(np.full(20, 8.0), np.linspace(0.5, 0.7, 20))]
    [0.6]
    """
    of_bin = np.floor(np.log2(np.maximum(score, 1e-3)) * _BINS_AN_OCTAVE).astype(np.int64)
    members = [np.flatnonzero(of_bin == index) for index in np.unique(of_bin)]
    members = [rows for rows in members if len(rows) >= _ROWS_A_BIN] or ([np.arange(len(rca))] if len(rca) else [])
    curve = []
    for rows in members:
        low, median, high = np.quantile(rca[rows].astype(np.float64), [0.25, 0.5, 0.75]).tolist()
        score_px = float(np.median(score[rows]))
        curve.append({"rows": len(rows), "score_px": score_px, "rca_q25": low, "rca_median": median, "rca_q75": high})
    return curve


def draw_rca(report: RcaReport, path: Path) -> None:
    """Draw for each source how many rows have which score and RCA, with median and quartiles of RCA over the score.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    UsageError
        If there are more sources and models than a figure can show.
    """
    check_number([*report.groups])
    names = names_of(report.groups)
    figure = new_figure(10, _HEIGHT * len(report.groups) + 0.9)
    rows = figure.subplots(len(report.groups), len(RCA), squeeze=False, sharex=True)
    for (group, of_group), all_axes in zip(report.groups.items(), rows, strict=True):
        for axes, (column, one) in zip(all_axes, of_group.items(), strict=True):
            _draw_panel(axes, one)
            told = "" if math.isnan(one.spearman) else f", Spearman {one.spearman:.2f}"
            axes.set_title(f"{names[group]}, {len(one.rca):,} rows{told}", fontsize="medium")
            axes.set_ylabel(RCA[column])
    for axes in rows[-1]:
        axes.set_xlabel("image score, px of the 1024 frame (logarithmic)")
    for axes in rows[0]:
        plain_log_ticks(axes)
    labelled = rows[0][0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle("Image score against RCA, an automatic score too: neither is the truth", fontsize="medium")
    save_figure(figure, path)


def _draw_panel(axes: Axes, one: RcaAgreement) -> None:
    from matplotlib.colors import LogNorm  # noqa: PLC0415 - an optional extra

    axes.set_xscale("log")
    if not len(one.rca):
        return
    low, high = np.quantile(one.score_px, [_TAIL, 1 - _TAIL])
    bottom = float(np.quantile(one.rca, _TAIL))
    columns = np.geomspace(max(low, 0.05) / 1.05, max(high, 0.05) * 1.05, _CELLS + 1)
    lines = np.linspace(max(bottom - 0.02, 0), max(float(one.rca.max()) + 0.02, bottom + 0.04), _CELLS + 1)
    counts, _, _ = np.histogram2d(one.score_px, one.rca, bins=[columns, lines])
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = axes.pcolormesh(columns, lines, shown, norm=LogNorm(1, max(counts.max(), 10)), cmap="Greys", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label="rows", pad=0.01, aspect=30)
    x, low, median, high = (
        [step[name] for step in one.curve] for name in ("score_px", "rca_q25", "rca_median", "rca_q75")
    )
    axes.fill_between(x, low, high, color="#E69F00", alpha=0.3, linewidth=0, label="quartiles")
    axes.plot(x, median, "o-", color="#D55E00", markersize=3.5, linewidth=1.6, label="median RCA in bins of the score")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
