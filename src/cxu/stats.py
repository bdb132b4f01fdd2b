"""Statistics that evaluation rests on: correlations, the area under a ROC curve, bootstrap intervals over images.

Everything is pure numpy on plain arrays, without missing values: the caller chooses what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
N_BOOT: Final = 1000


class Interval(NamedTuple):
    """A value and the bounds of its 95 % interval; NaN where it cannot be told."""

    value: float
    low: float
    high: float


def pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Pearson's correlation of two arrays [n]; NaN of fewer than two values, or where one never changes.

    Examples
    --------
    >>> pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    1.0
    >>> pearson([1.0, 1.0], [1.0, 2.0])
    nan
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: npt.ArrayLike) -> FloatArray:
    """Return the ranks from 1 of values [n]; equal values share the mean of their ranks.

    Examples
    --------
    >>> ranks([10.0, 30.0, 10.0])
    array([1.5, 3. , 1.5])
    """
    array = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the correlation of ranks of two arrays [n].

    Examples
    --------
    >>> spearman([1.0, 2.0, 3.0], [1.0, 10.0, 100.0])
    1.0
    """
    return pearson(ranks(first), ranks(second))


def slope(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the slope of the least-squares line through points (x, y), [n] each; NaN where x never changes.

    Examples
    --------
    >>> slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    2.0
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 2 or np.ptp(a) == 0:
        return float("nan")
    centred = a - a.mean()
    return float(centred @ (b - b.mean()) / (centred @ centred))


def roc_auc(inside: npt.ArrayLike, outside: npt.ArrayLike) -> float:
    """Return the area under the ROC curve with ``outside`` as the positive class; NaN where either is empty.

    It is the chance that a score of ``outside`` exceeds one of ``inside``, ties counted half.

    Examples
    --------
    >>> roc_auc([1.0, 2.0], [2.0, 3.0])
    0.875
    """
    low, high = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if not len(low) or not len(high):
        return float("nan")
    order = ranks(np.concatenate([low, high]))
    return float((order[len(low) :].sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def bootstrap(measure: Callable[[IntArray], float], n_images: int, *, n_boot: int = N_BOOT, seed: int = 0) -> Interval:
    """Return what ``measure`` gives for all images, and the middle 95 % of what it gives for resampled ones.

    Images are drawn with replacement, each with all that belongs to it, since the nodes of an image are no independent
    observations. Resamples for which there is no value (NaN) are left out.

    Parameters
    ----------
    measure
        Takes indices of images [n_images], some several times, and returns a number.
    n_images
        How many there are; with none every number is NaN, with one there are no bounds.
    n_boot, seed
        Resamples, and the seed of their drawing.

    Source: Efron, Annals of Statistics 1979; percentile interval.
    """
    if n_images == 0:
        return Interval(*[float("nan")] * 3)
    value = float(measure(np.arange(n_images)))
    if n_images == 1:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = np.array([measure(rng.integers(0, n_images, n_images)) for _ in range(n_boot)], np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def binned(x: npt.ArrayLike, y: npt.ArrayLike, n_bins: int = 10) -> list[dict[str, Any]]:
    """Return the curve of y over x in bins that hold about the same number of points.

    Each bin has the mean of its x, and mean, median and quartiles of its y. Points of the same x share a bin; empty
    input gives no bins.

    Examples
    --------
    >>> [(one["x"], one["y_mean"]) for one in binned([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 7.0], n_bins=2)]
    [(1.5, 2.0), (3.5, 6.0)]
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not len(a):
        return []
    edges = np.quantile(a, np.linspace(0, 1, n_bins + 1)[1:-1])
    of_bin = np.searchsorted(edges, a, side="left")
    curve = []
    for index in np.unique(of_bin):
        inside = of_bin == index
        quartiles = np.quantile(b[inside], [0.25, 0.5, 0.75]).tolist()
        curve.append(
            {
                "n": int(inside.sum()),
                "x": float(a[inside].mean()),
                "y_mean": float(b[inside].mean()),
                "y_q25": quartiles[0],
                "y_median": quartiles[1],
                "y_q75": quartiles[2],
            }
        )
    return curve
