"""Does the uncertainty tell images of another kind from those the network knows? Two detectors, on held-out images.

The image score needs no fitting. An Isolation Forest is fitted to the latent sigmas of images inside the distribution;
its settings are chosen on validation images, and what is reported is of test images.

Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figure 3b; Liu et al., Isolation Forest, ICDM 2008.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.errors import UsageError
from cxu.evaluation.ood_fit import choose_forest, forest_score
from cxu.evaluation.ood_rows import SPLITS, OodRows, TextArray, bootstrap_groups, check_models, split_in, split_out
from cxu.stats import Interval, roc_auc

FloatArray = npt.NDArray[np.floating]
DetectorName = Literal["image score", "isolation forest"]

KEPT: Final = (0.90, 0.95, 0.99)
FEW: Final = 20  # images of a split below which its numbers say little
# ROC-AUC of the authors' films and weights, where outside is an RCA-Dice below 0.7.
# Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figure 3b.
PUBLISHED_AUC: Final[Mapping[DetectorName, Mapping[str, float]]] = {
    "image score": {"with skip connections": 0.98, "without skip connections": 0.93},
    "isolation forest": {"with skip connections": 0.93, "without skip connections": 0.89},
}


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold: images above it are taken to be from outside.

    Attributes
    ----------
    kept
        Share of the inside validation images at or below it, as asked for.
    threshold
        The score.
    kept_test
        Share of the inside test images at or below it.
    sensitivity
        Share of the outside test images above it.
    """

    kept: float
    threshold: float
    kept_test: float
    sensitivity: Interval


@dataclass(frozen=True, eq=False)
class Detector:
    """What one score is worth, on test images; intervals are 95 % of a bootstrap over patients or images.

    Attributes
    ----------
    name
        Which score.
    auc
        Area under the ROC curve, outside positive.
    auc_validation
        The same on validation images.
    points
        Thresholds; none where no validation image is inside.
    settings
        Of the forest, as chosen.
    published_auc
        The paper's by variant, of other films and other weights.
    test_in, test_out
        Scores of test images.
    """

    name: DetectorName
    auc: Interval
    auc_validation: float
    points: tuple[OperatingPoint, ...]
    settings: Mapping[str, Any]
    published_auc: Mapping[str, float]
    test_in: FloatArray
    test_out: FloatArray


@dataclass(frozen=True, eq=False)
class OodReport:
    """What was measured.

    Attributes
    ----------
    name_in, name_out
        The tables.
    counts
        Images of ``in`` and ``out`` by split; of ``out``, ``train`` are those that are not used, since their patients
        are in training.
    without_sigma, without_latent
        Rows without any uncertainty, which were left out, and without latent sigmas, which only the score knows.
    detectors
        The image score and, where there are latent sigmas, the Isolation Forest.
    remarks
        What a reader must know: splits of few images, why there is no forest.
    rows
        A row an image: source, image_id, set, split, score_px, forest_score.
    """

    name_in: str
    name_out: str
    counts: Mapping[str, Mapping[str, int]]
    without_sigma: Mapping[str, int]
    without_latent: Mapping[str, int]
    detectors: tuple[Detector, ...]
    remarks: tuple[str, ...]
    rows: pa.Table


@dataclass(frozen=True, eq=False)
class _Side:
    """Rows of one set, their splits, and a score for each of them; NaN for none."""

    rows: OodRows
    split: TextArray
    score: FloatArray

    def of(self, split: str) -> FloatArray:
        return self.score[self._in(split)]

    def groups(self, split: str) -> TextArray:
        return self.rows.group[self._in(split)]

    def _in(self, split: str) -> npt.NDArray[np.bool_]:
        return (self.split == split) & np.isfinite(self.score)


def measure_ood(inside: OodRows, outside: OodRows, *, seed: int = 0, mix_models: bool = False) -> OodReport:
    """Measure how well image score and latent sigmas tell rows of one table from those of another.

    Parameters
    ----------
    inside, outside
        From :func:`cxu.evaluation.ood_rows.read_rows`.
    seed
        Of splits, forest and resampling.
    mix_models
        Compare rows of several models all the same.

    Raises
    ------
    UsageError
        If several models made the rows, an image is in both tables, or one of them has no row with uncertainty.
    MissingExtraError
        If there are latent sigmas and scikit-learn is not installed.
    """
    check_models([inside, outside], mix_models=mix_models)
    _check_sides(inside, outside)
    splits = split_in(inside.group, seed), split_out(outside.group, seed, set(inside.group))
    scored = [_Side(rows, split, rows.score_px) for rows, split in zip((inside, outside), splits, strict=True)]
    detectors = [_detector("image score", scored[0], scored[1], seed, {})]
    remarks = _few(scored, "images")
    forest_scores = [np.full(len(rows), np.nan) for rows in (inside, outside)]
    reason = _no_forest(inside, outside, splits)
    if reason:
        remarks.append(reason)
    else:
        forest_scores, settings = _forest_scores(inside, outside, splits, seed)
        sides = [_Side(one.rows, one.split, score) for one, score in zip(scored, forest_scores, strict=True)]
        detectors.append(_detector("isolation forest", sides[0], sides[1], seed, settings))
        # what all images are too few of was said above
        remarks += [one for one in _few(sides, "images with latent sigmas") if any(map(_lacks_latent, sides))]
    return OodReport(
        inside.name,
        outside.name,
        counts={
            name: {split: int(np.count_nonzero(side.split == split)) for split in SPLITS}
            for name, side in zip(("in", "out"), scored, strict=True)
        },
        without_sigma={"in": inside.without_sigma, "out": outside.without_sigma},
        without_latent={
            name: int(np.count_nonzero(~rows.has_latent)) for name, rows in (("in", inside), ("out", outside))
        },
        detectors=tuple(detectors),
        remarks=tuple(remarks),
        rows=pa.concat_tables(
            _rows_of(name, side, forest)
            for name, side, forest in zip(("in", "out"), scored, forest_scores, strict=True)
        ),
    )


def _check_sides(inside: OodRows, outside: OodRows) -> None:
    for rows in (inside, outside):
        if not len(rows):
            raise UsageError(f"{rows.name} has no row with uncertainty: expected a table of predictions")
    pairs = {*zip(inside.source, inside.image_id, strict=True)}
    both = [pair for pair in zip(outside.source, outside.image_id, strict=True) if pair in pairs]
    if both:
        raise UsageError(
            f"{len(both):,} images are in both {inside.name} and {outside.name}, such as {both[0][1]!r} of "
            f"{both[0][0]}: expected tables without a common image"
        )


def _lacks_latent(side: _Side) -> bool:
    return not side.rows.has_latent.all()


def _few(sides: list[_Side], what: str) -> list[str]:
    wanted = (("in", sides[0], SPLITS), ("out", sides[1], SPLITS[1:]))
    counts = [(name, split, len(side.of(split))) for name, side, splits in wanted for split in splits]
    few = [f"{count} {split} of {name}" for name, split, count in counts if count < FEW]
    return [f"fewer than {FEW} {what} in a split, whose numbers say little: {', '.join(few)}"] if few else []


def _no_forest(inside: OodRows, outside: OodRows, splits: tuple[TextArray, TextArray]) -> str | None:
    """Say why there is no forest, or nothing where there can be one."""
    for rows in (inside, outside):
        if not rows.has_latent.any():
            return f"{rows.name} has no latent sigmas: only the image score is measured"
    wanted = ((inside, splits[0], SPLITS), (outside, splits[1], SPLITS[1:]))
    for rows, split, names in wanted:
        for name in names:
            if not ((split == name) & rows.has_latent).any():
                return f"{rows.name} has no {name} image with latent sigmas: only the image score is measured"
    return None


def _forest_scores(
    inside: OodRows, outside: OodRows, splits: tuple[TextArray, TextArray], seed: int
) -> tuple[list[FloatArray], dict[str, Any]]:
    """Return a score for each row of both sides, NaN without latent sigmas, and the forest's settings."""
    train, choose_in = (inside.latent_sigma[(splits[0] == name) & inside.has_latent] for name in SPLITS[:2])
    choose_out = outside.latent_sigma[(splits[1] == SPLITS[1]) & outside.has_latent]
    forest, settings = choose_forest(train, choose_in, choose_out, seed)
    scores = []
    for rows in (inside, outside):
        score = np.full(len(rows), np.nan)
        score[rows.has_latent] = forest_score(forest, rows.latent_sigma[rows.has_latent])
        scores.append(score)
    return scores, settings


def _detector(name: DetectorName, inside: _Side, outside: _Side, seed: int, settings: Mapping[str, Any]) -> Detector:
    test_in, test_out = inside.of("test"), outside.of("test")
    scores = np.concatenate([test_in, test_out])
    is_out = np.arange(len(scores)) >= len(test_in)
    groups = np.concatenate([inside.groups("test"), outside.groups("test")])
    chosen = inside.of("validation")
    return Detector(
        name,
        auc=bootstrap_groups(lambda of: roc_auc(scores[of][~is_out[of]], scores[of][is_out[of]]), groups, seed),
        auc_validation=roc_auc(chosen, outside.of("validation")),
        points=tuple(
            _operating_point(kept, chosen, test_in, test_out, outside.groups("test"), seed)
            for kept in KEPT
            if len(chosen)
        ),
        settings=settings,
        published_auc=PUBLISHED_AUC[name],
        test_in=test_in,
        test_out=test_out,
    )


def _operating_point(
    kept: float, chosen: FloatArray, test_in: FloatArray, test_out: FloatArray, groups: TextArray, seed: int
) -> OperatingPoint:
    threshold = threshold_of(chosen, kept)
    return OperatingPoint(
        kept,
        threshold,
        float(np.mean(test_in <= threshold)) if len(test_in) else float("nan"),
        bootstrap_groups(lambda of: float(np.mean(test_out[of] > threshold)), groups, seed),
    )


def threshold_of(scores: FloatArray, kept: float) -> float:
    """Return the lowest of the scores [n] at or below which at least that share of them lies.

    Examples
    --------
    >>> threshold_of(np.array([4.0, 1.0, 3.0, 2.0]), 0.5), threshold_of(np.array([4.0, 1.0, 3.0, 2.0]), 0.6)
    (2.0, 3.0)
    """
    return float(np.quantile(scores, kept, method="inverted_cdf"))


def _rows_of(name: str, side: _Side, forest: FloatArray) -> pa.Table:
    return pa.table(
        {
            "source": pa.array(side.rows.source, pa.string()),
            "image_id": pa.array(side.rows.image_id, pa.string()),
            "set": pa.repeat(name, len(side.rows)),
            "split": pa.array(side.split, pa.string()),
            "score_px": pa.array(side.rows.score_px),
            "forest_score": pa.array(forest, from_pandas=True),
        }
    )
