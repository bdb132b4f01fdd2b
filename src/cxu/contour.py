"""Closed contours: areas, normals, validity, and runs of nodes along a ring.

A contour is float [N, 2], x then y, in pixels, closed from its last node to its first; it may wind either way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

MIN_POLYGON_NODES = 3


def polygon_area(contour_xy: FloatArray) -> float:
    """Return the area in px² that a contour [N, 2] encloses by the shoelace formula; 0 below three nodes.

    Examples
    --------
    >>> polygon_area(np.array([[0, 0], [4, 0], [4, 3], [0, 3]], float))
    12.0
    """
    if len(contour_xy) < MIN_POLYGON_NODES:
        return 0.0
    x, y = np.asarray(contour_xy, np.float64).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y))) / 2


def outward_normals(contour_xy: FloatArray) -> FloatArray:
    """Return unit normals [N, 2] at the nodes of a contour [N, 2], perpendicular to the line between the neighbours.

    They point outwards for either winding. Where both neighbours coincide the normal is (0, 0).

    Examples
    --------
    >>> outward_normals(np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float))[0].round(3)
    array([-0.707, -0.707])
    """
    points = np.asarray(contour_xy, np.float64)
    following = np.roll(points, -1, axis=0)
    tangents = following - np.roll(points, 1, axis=0)
    winding = np.sign(np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1])) or 1.0
    normals = winding * np.stack([tangents[:, 1], -tangents[:, 0]], axis=1)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)


def normal_sigma(contour_xy: FloatArray, sigma_xy: FloatArray) -> FloatArray:
    """Return the standard deviation [N] of each node along the contour's normal, in px.

    ``sqrt((n_x sigma_x)² + (n_y sigma_y)²)`` for contour and sigma [N, 2] in the same pixels. Where a node has no
    normal (its neighbours coincide) the larger of the two is taken.
    """
    normals = outward_normals(contour_xy)
    along = np.sqrt(np.sum((normals * sigma_xy) ** 2, axis=1))
    return np.where(np.any(normals, axis=1), along, np.max(sigma_xy, axis=1))


def longest_gap(confident: BoolArray) -> npt.NDArray[np.int64]:
    """Return the longest run of False along each closed ring.

    Parameters
    ----------
    confident
        [..., N] bool, nodes in ring order; the ring closes, so a run may pass from the end to the start.

    Returns
    -------
    Longest run [...], int64; N where no node is True.

    Examples
    --------
    >>> int(longest_gap(np.array([False, True, True, False, False])))
    3
    """
    n_nodes = confident.shape[-1]
    doubled = np.concatenate([confident, confident], axis=-1)
    position = np.arange(2 * n_nodes)
    last_true = np.maximum.accumulate(np.where(doubled, position, -1), axis=-1)
    runs = np.where(last_true >= 0, position - last_true, position + 1)
    longest: npt.NDArray[np.int64] = np.minimum(runs.max(axis=-1), n_nodes)
    return longest


def crosses_itself(contours_xy: list[FloatArray]) -> BoolArray:
    """Tell for each contour [N, 2] whether it is no simple polygon (it crosses or touches itself).

    A contour with fewer than three nodes encloses nothing and counts as not crossing.
    """
    crossing = np.zeros(len(contours_xy), np.bool_)
    closed = [index for index, contour in enumerate(contours_xy) if len(contour) >= MIN_POLYGON_NODES]
    if closed:
        points = np.concatenate([contours_xy[index] for index in closed])
        ring_of = np.repeat(np.arange(len(closed)), [len(contours_xy[index]) for index in closed])
        rings = shapely.linearrings(points, indices=ring_of)
        crossing[closed] = ~shapely.is_valid(shapely.polygons(rings))
    return crossing
