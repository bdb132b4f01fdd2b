"""How one quantity of nodes goes with their uncertainty: correlations, slope and curve, with intervals over images.

The intervals are those that :func:`cxu.stats.bootstrap` gives when each resample is measured anew. They come here from
sums over each image, and from ranks that are counted instead of sorted: a hundred times faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxu.stats import N_BOOT, Interval, binned, bootstrap

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
_ROUNDING: Final = 1e-12


@dataclass(frozen=True)
class Relation:
    """A quantity of nodes (px of the 1024 model frame) against their uncertainty.

    Attributes
    ----------
    images, nodes
        How many nodes, of how many images.
    mean_px, median_px
        Of the quantity: an error, or a distance between annotators.
    mean_sigma_px, median_sigma_px
        Of the uncertainty of the same nodes.
    ratio
        ``mean_px`` over ``mean_sigma_px``.
    pearson, spearman
        Correlations over all nodes of all images.
    slope
        Of the least-squares line: px of the quantity per px of uncertainty.
    curve
        Means and quartiles over bins of uncertainty, as :func:`cxu.stats.binned` returns them.
    """

    images: int
    nodes: int
    mean_px: Interval
    median_px: float
    mean_sigma_px: Interval
    median_sigma_px: float
    ratio: Interval
    pearson: Interval
    spearman: Interval
    slope: Interval
    curve: tuple[dict[str, Any], ...]


def relate(sigma_px: FloatArray, value_px: FloatArray, *, n_boot: int = N_BOOT, seed: int = 0) -> Relation:
    """Relate a quantity to the uncertainty of the same nodes.

    Parameters
    ----------
    sigma_px, value_px
        [n_images, n_nodes]; NaN in either leaves a node out, and with its last node an image.
    n_boot, seed
        Resamples of images, and the seed of their drawing.
    """
    known = np.isfinite(sigma_px) & np.isfinite(value_px)
    images = known.any(axis=1)
    n_images, known = int(images.sum()), known[images]
    image_of = np.nonzero(known)[0]
    x, y = sigma_px[images][known].astype(np.float64), value_px[images][known].astype(np.float64)
    sums = _ImageSums(x, y, image_of, n_images)
    ranks = _ImageRanks(x, y, image_of, n_images)

    def interval(measure: Any) -> Interval:
        return bootstrap(measure, n_images, n_boot=n_boot, seed=seed)

    return Relation(
        n_images,
        len(x),
        interval(sums.mean_y),
        float(np.median(y)) if len(y) else float("nan"),
        interval(sums.mean_x),
        float(np.median(x)) if len(x) else float("nan"),
        interval(sums.ratio),
        interval(sums.pearson),
        interval(ranks.spearman),
        interval(sums.slope),
        tuple(binned(x, y)),
    )


class _ImageSums:
    """Sums over the nodes of each image, from which moments of any resample of images follow."""

    def __init__(self, x: FloatArray, y: FloatArray, image_of: IntArray, n_images: int) -> None:
        # about the means, so that nothing cancels
        self._x, self._y = (float(values.mean()) if len(values) else 0.0 for values in (x, y))
        dx, dy = x - self._x, y - self._y
        parts = [np.ones(len(x)), dx, dy, dx * dx, dy * dy, dx * dy]
        self._sums = np.stack([np.bincount(image_of, part, n_images) for part in parts], axis=1)
        # what is left of a variance where nothing varies
        self._least = tuple(_ROUNDING * float(part.mean()) if len(part) else 0.0 for part in (dx * dx, dy * dy))

    def _moments(self, of: IntArray) -> tuple[float, float, float, float, float]:
        """Return means of x and y and their variances and covariance."""
        count, dx, dy, dxx, dyy, dxy = self._sums[of].sum(axis=0).tolist()
        mean_x, mean_y = dx / count, dy / count
        return (
            self._x + mean_x,
            self._y + mean_y,
            dxx / count - mean_x**2,
            dyy / count - mean_y**2,
            dxy / count - mean_x * mean_y,
        )

    def mean_x(self, of: IntArray) -> float:
        return self._moments(of)[0]

    def mean_y(self, of: IntArray) -> float:
        return self._moments(of)[1]

    def ratio(self, of: IntArray) -> float:
        mean_x, mean_y, *_ = self._moments(of)
        return mean_y / mean_x if mean_x > 0 else float("nan")

    def slope(self, of: IntArray) -> float:
        _, _, var_x, _, covariance = self._moments(of)
        return covariance / var_x if var_x > self._least[0] else float("nan")

    def pearson(self, of: IntArray) -> float:
        _, _, var_x, var_y, covariance = self._moments(of)
        if var_x <= self._least[0] or var_y <= self._least[1]:
            return float("nan")
        return covariance / (var_x * var_y) ** 0.5


class _ImageRanks:
    """Ranks of all nodes in any resample of images, ties at their mean, counted rather than sorted."""

    def __init__(self, x: FloatArray, y: FloatArray, image_of: IntArray, n_images: int) -> None:
        self._levels = [np.unique(values, return_inverse=True)[1] for values in (x, y)]
        self._image_of, self._n_images = image_of, n_images

    def spearman(self, of: IntArray) -> float:
        weights = np.bincount(of, minlength=self._n_images)[self._image_of].astype(np.float64)
        total = weights.sum()
        first, second = (self._centred_ranks(levels, weights) for levels in self._levels)
        var_first, var_second = (weights @ (ranks * ranks) / total for ranks in (first, second))
        if min(var_first, var_second) <= 0:
            return float("nan")
        return float(weights @ (first * second) / total / (var_first * var_second) ** 0.5)

    @staticmethod
    def _centred_ranks(levels: IntArray, weights: FloatArray) -> FloatArray:
        counts = np.bincount(levels, weights)
        ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2 - (counts.sum() + 1) / 2)[levels]
        return ranks
