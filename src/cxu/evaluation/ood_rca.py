"""How the image score agrees with reverse classification accuracy (RCA), the other automatic score of published rows.

RCA estimates a segmentation's Dice without any annotation. It is no truth: what is measured here is agreement of two
automatic scores, not accuracy.

Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figure 3c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cxu.errors import UsageError
from cxu.evaluation.ood import FEW, KEPT, OperatingPoint, threshold_of
from cxu.evaluation.ood_rows import BoolArray, FloatArray, OodRows, TextArray, bootstrap_groups, check_models
from cxu.stats import Interval, binned, roc_auc, spearman

ALL_SOURCES: Final = "all"


@dataclass(frozen=True)
class RcaAgreement:
    """Image score and RCA of one source; intervals are 95 % of a bootstrap over patients or images.

    Attributes
    ----------
    source
        Its name; ``all`` for all of several.
    n_in, n_out
        Rows with an RCA from the limit up, and below it.
    auc
        Chance that the score of a row below the limit exceeds that of one above: the area under the ROC curve.
    spearman
        Rank correlation of score and RCA: negative where they agree.
    points
        Scores that keep a share of the rows above the limit, and the share below it that exceeds them.
    curve
        Quartiles of the RCA over ten bins of the score.
    """

    source: str
    n_in: int
    n_out: int
    auc: Interval
    spearman: Interval
    points: tuple[OperatingPoint, ...]
    curve: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, eq=False)
class RcaReport:
    """What was measured: agreement with another automatic score.

    Attributes
    ----------
    name, below
        The table, and the RCA-Dice below which a row is out.
    agreements
        One for each source, then of all where there are several.
    without_sigma, without_rca
        Rows that were left out.
    remarks
        What a reader must know.
    rows
        A row an image: source, image_id, set, score_px, rca_max.
    """

    name: str
    below: float
    agreements: tuple[RcaAgreement, ...]
    without_sigma: int
    without_rca: int
    remarks: tuple[str, ...]
    rows: pa.Table


def measure_rca(rows: OodRows, below: float, *, seed: int = 0, mix_models: bool = False) -> RcaReport:
    """Measure how image score and RCA go together; nothing is fitted, so all rows count.

    Parameters
    ----------
    rows
        From :func:`cxu.evaluation.ood_rows.read_rows`.
    below
        Rows are out whose ``rca_max`` is below.
    seed
        Of the resampling.
    mix_models
        Take rows of several models all the same.

    Raises
    ------
    UsageError
        If several models made the rows, none has both scores, or the limit is no Dice.
    """
    if not 0 < below <= 1:
        raise UsageError(f"--rca-below {below:g}: expected a Dice above 0, up to 1, such as 0.7")
    check_models([rows], mix_models=mix_models)
    known = np.isfinite(rows.rca_max)
    if not known.any():
        raise UsageError(f"{rows.name} has no row with both uncertainty and RCA: expected published rows")
    found = rows.part(known)
    # float32 as in the table: 0.7 there is not below 0.7
    is_out = found.rca_max.astype(np.float32) < np.float32(below)
    sources = sorted(set(found.source))
    agreements = [_agreement(name, found, found.source == name, is_out, seed) for name in sources]
    if len(sources) > 1:
        agreements.append(_agreement(ALL_SOURCES, found, np.ones(len(found), bool), is_out, seed))
    few = [f"{one.source} ({one.n_out} below, {one.n_in} not)" for one in agreements if min(one.n_in, one.n_out) < FEW]
    remarks = (
        [f"fewer than {FEW} rows on a side of {below:g}, whose numbers say little: {', '.join(few)}"] if few else []
    )
    return RcaReport(
        rows.name,
        below,
        tuple(agreements),
        rows.without_sigma,
        int(np.count_nonzero(~known)),
        tuple(remarks),
        _table(found, is_out),
    )


def _agreement(name: str, rows: OodRows, which: BoolArray, is_out: BoolArray, seed: int) -> RcaAgreement:
    score, rca, out, groups = rows.score_px[which], rows.rca_max[which], is_out[which], rows.group[which]
    return RcaAgreement(
        name,
        n_in=int(np.count_nonzero(~out)),
        n_out=int(np.count_nonzero(out)),
        auc=bootstrap_groups(lambda of: roc_auc(score[of][~out[of]], score[of][out[of]]), groups, seed),
        spearman=bootstrap_groups(lambda of: spearman(score[of], rca[of]), groups, seed),
        points=tuple(_point(kept, score, out, groups, seed) for kept in KEPT if not out.all()),
        curve=tuple(binned(score, rca)),
    )


def _point(kept: float, score: FloatArray, out: BoolArray, groups: TextArray, seed: int) -> OperatingPoint:
    threshold = threshold_of(score[~out], kept)
    return OperatingPoint(
        kept,
        threshold,
        float(np.mean(score[~out] <= threshold)),
        bootstrap_groups(lambda of: float(np.mean(score[out][of] > threshold)), groups[out], seed),
    )


def _table(rows: OodRows, is_out: BoolArray) -> pa.Table:
    return pa.table(
        {
            "source": pa.array(rows.source, pa.string()),
            "image_id": pa.array(rows.image_id, pa.string()),
            "set": pa.array(np.where(is_out, "out", "in").tolist(), pa.string()),
            "score_px": pa.array(rows.score_px),
            "rca_max": pa.array(rows.rca_max),
        }
    )
