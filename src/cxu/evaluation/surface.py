"""How far two masks are apart: Dice, and distances between their boundaries.

The boundary of a mask is its pixels with a neighbour, above, below, left or right, that is not of it; beyond the image
nothing is. Distances are Euclidean, between pixel centres, exact. Each boundary pixel of one mask has a distance to the
nearest boundary pixel of the other; the two directions differ.

Sources: Huttenlocher et al., IEEE TPAMI 1993 (Hausdorff); Heimann et al., IEEE TMI 2009 (average symmetric surface
distance); Taha and Hanbury, BMC Medical Imaging 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.errors import MissingExtraError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class SurfaceDistances(NamedTuple):
    """Distances between two boundaries; NaN where one of them has no pixel.

    Attributes
    ----------
    hausdorff
        The larger of the two directed maxima.
    hd95
        The larger of the two directed 95th percentiles, as in MONAI and DeepMind's surface-distance. medpy takes the
        percentile of both directions pooled, which is smaller.
    assd
        The mean over the pixels of both boundaries pooled (MONAI); medpy takes the mean of the two directed means.
    """

    hausdorff: float
    hd95: float
    assd: float


NO_DISTANCES = SurfaceDistances(float("nan"), float("nan"), float("nan"))


def check_scipy() -> None:
    """Check that what the distances need is there.

    Raises
    ------
    MissingExtraError
        If scipy is not installed.
    """
    try:
        import scipy.spatial  # type: ignore[import-untyped, unused-ignore]  # noqa: F401, PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("surface distances need scipy: pip install 'cxu[science]'") from None


def dice(first: BoolArray, second: BoolArray) -> float:
    """Return the Dice coefficient of two masks [H, W]: twice the common pixels over the pixels of both.

    Two empty masks agree: 1. An empty one against any other: 0.

    Source: Dice, Ecology 1945.

    Examples
    --------
    >>> dice(np.array([[True, True, False]]), np.array([[False, True, False]]))
    0.6666666666666666
    """
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else 1.0


def boundary(mask: BoolArray, ignored: BoolArray | None = None) -> BoolArray:
    """Return the boundary pixels of a mask, bool [H, W].

    Pixels that touch what is ignored are no boundary: the edge there is that of the knowledge, not of the organ.

    Examples
    --------
    >>> boundary(np.ones((3, 3), bool)).astype(int)
    array([[1, 1, 1],
           [1, 0, 1],
           [1, 1, 1]])
    """
    edge = mask & ~_all_around(mask)
    if ignored is None or not ignored.any():
        return edge
    known = ~ignored
    return edge & known & _all_around(known, beyond=True)


def _all_around(mask: BoolArray, *, beyond: bool = False) -> BoolArray:
    """Tell for each pixel whether all four neighbours are of the mask; ``beyond`` says what lies beyond the image."""
    padded = np.pad(mask, 1, constant_values=beyond)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def surface_distances(first: BoolArray, second: BoolArray, ignored: BoolArray | None = None) -> SurfaceDistances:
    """Return the distances between the boundaries of two masks, in px of the masks.

    Parameters
    ----------
    first, second
        bool [H, W].
    ignored
        bool [H, W] pixels that count on neither side, or None.

    Raises
    ------
    MissingExtraError
        If scipy is not installed.
    """
    check_scipy()
    from scipy.spatial import KDTree  # noqa: PLC0415 - an optional extra

    window = _window(first | second)
    cut = None if ignored is None else ignored[window]
    points = [np.argwhere(boundary(mask[window], cut)) for mask in (first, second)]
    if not all(map(len, points)):
        return NO_DISTANCES
    # exact, and faster than a distance transform of all pixels: a boundary has some thousands
    there = KDTree(points[1]).query(points[0])[0]
    back = KDTree(points[0]).query(points[1])[0]
    return SurfaceDistances(
        float(max(there.max(), back.max())),
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
        float(np.concatenate([there, back]).mean()),
    )


def _window(mask: BoolArray) -> tuple[slice, slice]:
    """Return the part of an image that holds a mask, a pixel wider: what touches it counts."""
    slices = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        low, high = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
        slices.append(slice(max(low - 1, 0), high + 2))
    return slices[0], slices[1]
