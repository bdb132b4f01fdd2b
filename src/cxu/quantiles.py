"""Exact quantiles of more float32 values than one wants in memory, in two scans over them.

The first scan counts the values by the upper half of their bits; the counts tell in which narrow ranges the quantiles
lie. The second keeps the values in these ranges, a tenth of them or so, and only these are sorted. What is counted and
kept of parts adds up, so any thread may scan any part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

N_RANGES: Final = 1 << 16  # of numbers with the same upper half: sign, exponent and seven bits of the mantissa
# The ranges in the order of the numbers in them: the negative ones downwards, then the others.
_ASCENDING: Final = np.concatenate([np.arange(N_RANGES - 1, N_RANGES // 2 - 1, -1), np.arange(N_RANGES // 2)])


def count_by_range(values: FloatArray) -> IntArray:
    """Return how many of the values, of any shape and without NaN, lie in each range: int64 [65536]."""
    return np.bincount(_range_of(values).ravel(), minlength=N_RANGES).astype(np.int64)


def ranges_of_quantiles(counts: IntArray, shares: Sequence[float]) -> BoolArray:
    """Return the ranges, bool [65536], that hold what the quantiles of values with these counts are computed from."""
    wanted = np.zeros(N_RANGES, np.bool_)
    n_values = int(counts.sum())
    if n_values:
        ranks, _ = _ranks(n_values, shares)
        wanted[_ASCENDING[np.searchsorted(np.cumsum(counts[_ASCENDING]), ranks, side="right")]] = True
    return wanted


def within_ranges(values: FloatArray, wanted: BoolArray) -> FloatArray:
    """Return the values, of any shape, that lie in wanted ranges: bool [65536]."""
    return values[np.take(wanted, _range_of(values))]


def quantiles_within(
    found: Iterable[FloatArray], wanted: BoolArray, counts: IntArray, shares: Sequence[float]
) -> list[float]:
    """Return quantiles by linear interpolation, the numbers that ``np.quantile`` gives.

    Parameters
    ----------
    found
        The values in the ranges wanted, in any order.
    wanted
        bool [65536]; at least :func:`ranges_of_quantiles`.
    counts
        int64 [65536] of all values.
    shares
        From 0 to 1.

    Returns
    -------
    A quantile for each share; none where there are no values.
    """
    n_values = int(counts.sum())
    if not n_values:
        return []
    ranks, beyond = _ranks(n_values, shares)
    ascending, kept = counts[_ASCENDING], wanted[_ASCENDING]
    # a rank among the values found does not count those that were passed over
    passed = np.cumsum(np.where(kept, 0, ascending))
    at = ranks - passed[np.searchsorted(np.cumsum(ascending), ranks, side="right")]
    low, high = np.sort(np.concatenate(list(found)))[at]
    step = high - low
    # from the nearer end, as numpy rounds
    between = np.where(beyond < 0.5, low + step * beyond, high - step * (1 - beyond))
    return [float(value) for value in between]


def exact_quantiles(blocks: Sequence[FloatArray], shares: Sequence[float]) -> list[float]:
    """Return quantiles of the values of all blocks together: both scans.

    Examples
    --------
    >>> exact_quantiles([np.array([3, 1], np.float32), np.array([[2]], np.float32)], [0.5, 0.75])
    [2.0, 2.5]
    """
    counts = sum((count_by_range(block) for block in blocks), np.zeros(N_RANGES, np.int64))
    wanted = ranges_of_quantiles(counts, shares)
    return quantiles_within((within_ranges(block, wanted) for block in blocks), wanted, counts, shares)


def _range_of(values: FloatArray) -> npt.NDArray[np.uint16]:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def _ranks(n_values: int, shares: Sequence[float]) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Return the ranks, from 0, between which each quantile lies [2, n], and how far beyond the lower one [n]."""
    places = np.asarray(shares, np.float64) * (n_values - 1)
    below = np.floor(places).astype(np.int64)
    return np.stack([below, np.minimum(below + 1, n_values - 1)]), places - below
