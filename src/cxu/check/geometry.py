"""Two sets of the 120 landmarks on one film: how far one lies from the other, and whether it would fit mirrored. Pure.

Shift and scale are of the lungs alone, which every network knows best; how well outlines agree once both are taken out
is told of every organ, for the heart is what tells a chest from its mirror image.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGANS, RIGHT_LUNG, Organ
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]

_LUNGS: Final = slice(RIGHT_LUNG.nodes.start, LEFT_LUNG.nodes.stop)
_LEAST_NODES: Final = 20
_ROUNDS: Final = 20
_HUBER: Final = 1.345  # standard deviations: 95 % as sharp as least squares where errors are normal
_TO_SD: Final = 1.4826  # of a median absolute deviation
_TINY: Final = 1e-9
_POINTS: Final = 100  # of an outline, whose distances to another are measured


class Fit(NamedTuple):
    """How landmarks have to be moved and scaled to lie on others.

    Attributes
    ----------
    shift_xy
        How far the centre of the lungs has to move, px: positive to the right and downwards.
    scale_xy
        How many times as wide and as high the lungs have to be.
    residual_px
        How far outlines then lie apart, a mean over nodes and organs.
    """

    shift_xy: tuple[float, float]
    scale_xy: tuple[float, float]
    residual_px: float


UNKNOWN: Final = Fit((np.nan, np.nan), (np.nan, np.nan), np.nan)


def fit(landmarks_xy: FloatArray, onto_xy: FloatArray) -> Fit:
    """Return how landmarks have to be moved and scaled to lie on others.

    Each axis has a shift and a scale of its own. Nodes far from the rest count less (Huber), so that a lung base drawn
    elsewhere moves nothing.

    Parameters
    ----------
    landmarks_xy, onto_xy
        [120, 2] (x, y), px of one frame; a node that is NaN in either does not count.

    Returns
    -------
    All NaN where fewer than 20 nodes of the lungs are known, or the landmarks have no extent.

    Source: Huber, Annals of Mathematical Statistics 1964, by reweighted least squares.

    Examples
    --------
    >>> from cxu.shape import load_shape_model
    >>> chest = load_shape_model().mean_xy.astype(np.float64)
    >>> found = fit(chest, chest + (8.0, -3.0))
    >>> [round(value, 6) for value in (*found.shift_xy, *found.scale_xy)]
    [8.0, -3.0, 1.0, 1.0]
    """
    ours, theirs = (np.asarray(points, np.float64).reshape(N_NODES, 2) for points in (landmarks_xy, onto_xy))
    known = np.isfinite(ours[_LUNGS]).all(axis=1) & np.isfinite(theirs[_LUNGS]).all(axis=1)
    if np.count_nonzero(known) < _LEAST_NODES:
        return UNKNOWN
    before, after = ours[_LUNGS][known], theirs[_LUNGS][known]
    if np.ptp(before, axis=0).min() < _TINY:
        return UNKNOWN
    centre = before.mean(axis=0)
    lines = [_robust_line(before[:, axis] - centre[axis], after[:, axis] - centre[axis]) for axis in (0, 1)]
    shift_xy, scale_xy = (lines[0][0], lines[1][0]), (lines[0][1], lines[1][1])
    moved = (ours - centre) * scale_xy + centre + shift_xy
    return Fit(shift_xy, scale_xy, outline_distance(moved, theirs))


def _robust_line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Return offset and slope of a line through points [n] of which some lie far off."""
    design, weights = np.column_stack([np.ones_like(x), x]), np.ones_like(x)
    found = np.zeros(2)
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        found, before = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0], found
        off = np.abs(y - design @ found)
        spread = _TO_SD * float(np.median(off))
        if spread < _TINY or np.abs(found - before).max() < _TINY:
            break
        weights = np.minimum(1.0, _HUBER * spread / np.maximum(off, _TINY))
    return float(found[0]), float(found[1])


def outline_distance(first_xy: FloatArray, second_xy: FloatArray) -> float:
    """Return how far the outlines of two sets of landmarks lie apart, px.

    It is the mean distance of points evenly spread along one outline to the other, both ways, over the organs that both
    have, each counted by its nodes. Where an outline begins does not matter.

    Parameters
    ----------
    first_xy, second_xy
        [120, 2], px of one frame. An organ with a NaN is left out; NaN where none is left.
    """
    distances, counts = [], []
    for organ in ORGANS:
        first, second = first_xy[organ.nodes], second_xy[organ.nodes]
        if np.isfinite(first).all() and np.isfinite(second).all():
            distances.append((_mean_distance(first, second) + _mean_distance(second, first)) / 2)
            counts.append(organ.n_nodes)
    return float(np.average(distances, weights=counts)) if counts else float("nan")


def _mean_distance(ring_xy: FloatArray, other_xy: FloatArray) -> float:
    """Return the mean distance of points along one closed ring to the edges of another."""
    points = resample_ring(ring_xy, _POINTS)[:, None]
    starts = np.asarray(other_xy, np.float64)[None]
    edges = np.roll(starts, -1, axis=1) - starts
    along = ((points - starts) * edges).sum(axis=-1) / np.maximum(np.square(edges).sum(axis=-1), _TINY)
    nearest = starts + np.clip(along, 0.0, 1.0)[..., None] * edges
    return float(np.linalg.norm(points - nearest, axis=-1).min(axis=1).mean())


def resample_ring(ring_xy: FloatArray, n: int) -> npt.NDArray[np.float64]:
    """Return a closed ring [m, 2] as n nodes evenly spread along its order, from the same first one: [n, 2].

    Examples
    --------
    >>> resample_ring(np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]]), 8)[:3].tolist()
    [[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]
    """
    closed = np.concatenate([ring_xy, ring_xy[:1]]).astype(np.float64)
    places = np.arange(n) * (len(ring_xy) / n)
    known = np.arange(len(closed))
    return np.stack([np.interp(places, known, closed[:, axis]) for axis in (0, 1)], axis=-1)


def mirrored(landmarks_xy: FloatArray, size: float = MODEL_SIZE) -> npt.NDArray[np.float64]:
    """Return landmarks [120, 2] of a film as they lie in its mirror image, named as in any film.

    The lung on the image's left is the right one again, with as many nodes as a right lung has. Rings keep beginning
    near the apex and their direction. Done twice it gives the same outlines, with other nodes on them.

    Parameters
    ----------
    landmarks_xy
        [120, 2] (x, y), px of a frame; NaN stays NaN.
    size
        Width of that frame: x becomes ``size − 1 − x``.
    """
    flipped = np.asarray(landmarks_xy, np.float64) * (-1.0, 1.0) + (size - 1.0, 0.0)
    return np.concatenate(
        [
            resample_ring(flipped[LEFT_LUNG.nodes], RIGHT_LUNG.n_nodes),
            resample_ring(flipped[RIGHT_LUNG.nodes], LEFT_LUNG.n_nodes),
            _reversed_ring(flipped[HEART.nodes]),
        ]
    )


def named_by_place(landmarks_xy: FloatArray) -> tuple[npt.NDArray[np.float64], bool]:
    """Return landmarks [120, 2] with the lung on the image's left as the right one, and whether it was the other.

    On a film as it hangs, the patient's right is on the image's left. Where a table has it the other way round, the
    outlines stay where they are and the lungs change their names.
    """
    points = np.asarray(landmarks_xy, np.float64)
    right, left = (points[organ.nodes, 0] for organ in (RIGHT_LUNG, LEFT_LUNG))
    if not np.isfinite([right.mean(), left.mean()]).all() or right.mean() <= left.mean():
        return points, False
    return np.concatenate(
        [
            _as_ring_of(RIGHT_LUNG, points[LEFT_LUNG.nodes]),
            _as_ring_of(LEFT_LUNG, points[RIGHT_LUNG.nodes]),
            points[HEART.nodes],
        ]
    ), True


def _as_ring_of(organ: Organ, ring_xy: FloatArray) -> npt.NDArray[np.float64]:
    """Return a lung's ring with as many nodes and in the direction that the other lung has, from the same first node.

    Rings of a table that was flipped run the other way round already.
    """
    is_clockwise = organ is LEFT_LUNG  # on the screen, where y points down
    ring = ring_xy if (_signed_area(ring_xy) > 0) == is_clockwise else _reversed_ring(ring_xy)
    return resample_ring(ring, organ.n_nodes)


def _signed_area(ring_xy: FloatArray) -> float:
    """Return the area of a ring, px², above 0 where it runs clockwise on the screen."""
    x, y = ring_xy.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _reversed_ring(ring_xy: FloatArray) -> FloatArray:
    """Return a ring the other way round, from the same first node."""
    return np.roll(ring_xy[::-1], 1, axis=0)
