"""What the responses of many images to damage come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.evaluation.corruption import Damage, DamageReport, NodeResponse
from cxu.stats import Interval, bootstrap, spearman

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]

# Median image score over the noise's sigma, of the authors' films and weights, px of the 1024 model frame.
# Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figure 2.
PUBLISHED_SCORES_PX: Final[Mapping[str, Mapping[int, float]]] = {
    "with skip connections": {0: 7.3, 10: 7.8, 20: 11.0, 30: 16.4, 40: 34.0, 50: 65.9},
    "without skip connections": {0: 17.1, 10: 17.6, 20: 18.8, 30: 20.7, 40: 23.6, 50: 25.9},
}


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile over images; NaN of none."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class NodeStep:
    """Nodes of all images at one number of squares: medians, px of the 1024 model frame.

    Attributes
    ----------
    n_inside, n_outside
        Nodes that lie in a square, and those that do not.
    sigma_inside_px, sigma_outside_px
        Their uncertainty.
    sigma_before_px
        Uncertainty of the nodes inside before the squares were drawn.
    sigma_ratio
        Inside over outside.
    error_inside_px, error_outside_px, error_ratio
        The same of the distance from the truth, over annotated nodes; None without truth.
    """

    n_inside: int
    n_outside: int
    sigma_inside_px: float
    sigma_outside_px: float
    sigma_before_px: float
    sigma_ratio: Interval
    error_inside_px: float | None = None
    error_outside_px: float | None = None
    error_ratio: Interval | None = None


@dataclass(frozen=True)
class Step:
    """All images at one severity; lengths in px of the 1024 model frame.

    Attributes
    ----------
    severity
        The noise's standard deviation in 8-bit grey levels, or the number of squares; 0 is undamaged.
    score_px, latent_sigma
        Image score and mean latent sigma.
    drift_px
        Mean distance of the nodes from the undamaged prediction: no error.
    error_px
        Mean distance of annotated nodes from the truth; None without truth.
    nodes
        Inside against outside the squares; None for noise and where there is none.
    """

    severity: float
    score_px: Quartiles
    latent_sigma: Quartiles
    drift_px: Quartiles
    error_px: Quartiles | None
    nodes: NodeStep | None


@dataclass(frozen=True)
class DamageSummary:
    """What damage does to the uncertainty; intervals are 95 % of a bootstrap over images.

    Attributes
    ----------
    damage, images
        Which damage, and of how many images.
    steps
        By severity.
    score_with_severity, latent_with_severity
        Mean over images of the rank correlation of severity and score (and mean latent sigma): 1 where uncertainty
        rises with every step.
    score_with_error
        Rank correlation of score and error over all images and severities together; None without truth.
    score_with_error_within
        Mean over images of the rank correlation over an image's own severities; None without truth.
    sigma_ratio
        Node uncertainty inside over outside, medians over the nodes of all numbers of squares; None for noise.
    published_px
        The paper's median image scores by variant and sigma, of other films and other weights; empty for squares.
    """

    damage: Damage
    images: int
    steps: tuple[Step, ...]
    score_with_severity: Interval
    latent_with_severity: Interval
    score_with_error: Interval | None
    score_with_error_within: Interval | None
    sigma_ratio: Interval | None
    published_px: Mapping[str, Mapping[int, float]]


def summarize_damage(report: DamageReport, *, seed: int = 0) -> DamageSummary:
    """Return the numbers of a report; ``seed`` is that of the resampling. No image gives NaN."""
    steps = report.options.steps
    n_images = len(report.responses)
    score, latent, drift, error = (
        np.array([getattr(one, name) for one in report.responses], np.float64).reshape(n_images, len(steps))
        for name in ("score_px", "latent_sigma", "drift_px", "error_px")
    )
    nodes = [one.nodes for one in report.responses if one.nodes is not None]

    def within(first: FloatArray, second: FloatArray) -> Interval:
        return _mean_interval(correlations_within(first, second), seed)

    severity = np.broadcast_to(np.array(steps), score.shape)
    of_noise, has_truth = report.options.damage == "noise", report.has_truth
    return DamageSummary(
        damage=report.options.damage,
        images=n_images,
        steps=tuple(
            Step(
                step,
                quartiles(score[:, k]),
                quartiles(latent[:, k]),
                quartiles(drift[:, k]),
                quartiles(error[:, k]) if has_truth else None,
                _node_step(nodes, k, seed, has_truth) if nodes and step else None,
            )
            for k, step in enumerate(steps)
        ),
        score_with_severity=within(severity, score),
        latent_with_severity=within(severity, latent),
        score_with_error=pooled_correlation(score, error, seed) if has_truth else None,
        score_with_error_within=within(score, error) if has_truth else None,
        sigma_ratio=_sigma_ratio(nodes, range(1, len(steps)), seed) if nodes and len(steps) > 1 else None,
        published_px=PUBLISHED_SCORES_PX if of_noise else {},
    )


def quartiles(values: FloatArray) -> Quartiles:
    """Return the quartiles of values [n].

    Examples
    --------
    >>> quartiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    Quartiles(low=2.0, median=3.0, high=4.0)
    """
    if not len(values):
        return Quartiles(*[float("nan")] * 3)
    return Quartiles(*np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def correlations_within(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return for each image the rank correlation over its steps, of two arrays [images, steps]; NaN of no change."""
    return np.array([spearman(*pair) for pair in zip(first, second, strict=True)], np.float64)


def pooled_correlation(first: FloatArray, second: FloatArray, seed: int) -> Interval:
    """Return the rank correlation over all images and steps of two arrays [images, steps], images resampled."""
    return bootstrap(lambda of: spearman(first[of].ravel(), second[of].ravel()), len(first), seed=seed)


def _mean_interval(values: FloatArray, seed: int) -> Interval:
    known = values[np.isfinite(values)]
    return bootstrap(lambda of: float(known[of].mean()), len(known), seed=seed)


def _node_step(nodes: Sequence[NodeResponse], k: int, seed: int, has_truth: bool) -> NodeStep:
    sigma, before, error = (
        np.stack(values)
        for values in zip(*((one.sigma_px[k], one.sigma_px[0], one.error_px[k]) for one in nodes), strict=True)
    )
    inside, outside = np.stack([one.inside[k] for one in nodes]), np.stack([one.outside[k] for one in nodes])
    found = NodeStep(
        n_inside=int(inside.sum()),
        n_outside=int(outside.sum()),
        sigma_inside_px=_median(sigma[inside]),
        sigma_outside_px=_median(sigma[outside]),
        sigma_before_px=_median(before[inside]),
        sigma_ratio=_sigma_ratio(nodes, [k], seed),
    )
    if not has_truth:
        return found
    return replace(
        found,
        error_inside_px=_median(error[inside]),
        error_outside_px=_median(error[outside]),
        error_ratio=bootstrap(_ratio_of(error, inside, outside), len(nodes), seed=seed),
    )


def _sigma_ratio(nodes: Sequence[NodeResponse], steps: Sequence[int], seed: int) -> Interval:
    at = list(steps)
    sigma, inside, outside = (
        np.stack([getattr(one, name)[at] for one in nodes]) for name in ("sigma_px", "inside", "outside")
    )
    return bootstrap(_ratio_of(sigma, inside, outside), len(nodes), seed=seed)


def _ratio_of(
    values: FloatArray, inside: npt.NDArray[np.bool_], outside: npt.NDArray[np.bool_]
) -> Callable[[IntArray], float]:
    """Return a function of images: the median of their values [images, …] inside over that outside."""

    def ratio(of: IntArray) -> float:
        below = _median(values[of][outside[of]])
        return _median(values[of][inside[of]]) / below if below else float("nan")

    return ratio


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
