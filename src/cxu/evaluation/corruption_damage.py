"""Damage done to the network's input: Gaussian noise, and black squares on landmarks. Pure numpy.

Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figures 2 and 3a.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NOISE_SIGMAS: Final = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 130.0, 160.0, 190.0)
SQUARES: Final = (1, 2, 4)
HALF_SIZE_PX: Final = 100.0
_GREY_LEVELS: Final = 255  # noise is stated in 8-bit grey, the input is in [0, 1]


def add_noise(pixels: FloatArray, sigma: float, seed: int) -> FloatArray:
    """Return an input frame [size, size] in [0, 1] with Gaussian noise, clipped to [0, 1] again.

    Parameters
    ----------
    pixels
        The frame.
    sigma
        Standard deviation in 8-bit grey levels, before clipping.
    seed
        The image's. Each sigma draws noise of its own, the same whichever other ones are measured.

    Examples
    --------
    >>> frame = np.full((2, 2), 0.5, np.float32)
    >>> bool((add_noise(frame, 0.0, seed=1) == frame).all())
    True
    """
    rng = np.random.default_rng([seed, *float(sigma).as_integer_ratio()])
    noise = rng.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels + np.float32(sigma / _GREY_LEVELS) * noise, 0, 1)


def choose_nodes(landmarks_xy: npt.NDArray[np.floating], seed: int) -> IntArray:
    """Return the known nodes of landmarks [120, 2] in random order; nodes that are NaN are left out.

    The first k of them are the centres of k squares: more squares cover what fewer cover, and more.
    """
    known = np.flatnonzero(np.isfinite(landmarks_xy).all(axis=1))
    return np.random.default_rng([seed, len(known)]).permutation(known)


def draw_squares(pixels: FloatArray, centres_xy: npt.NDArray[np.floating], half_size_px: float) -> FloatArray:
    """Return an input frame [size, size] with black squares.

    Parameters
    ----------
    pixels
        The frame.
    centres_xy
        [k, 2] in px of the 1024 model frame; squares may stand over the edge.
    half_size_px
        Half a side, in px of the model frame.

    Examples
    --------
    >>> draw_squares(np.ones((4, 4), np.float32), np.array([[256.0, 0.0]]), 256.0)
    array([[0., 0., 1., 1.],
           [1., 1., 1., 1.],
           [1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """
    damaged = pixels.copy()
    scale = len(pixels) / MODEL_SIZE
    for centre in centres_xy:
        edges = np.rint(np.array([centre - half_size_px, centre + half_size_px]) * scale).astype(int)
        (left, top), (right, bottom) = np.maximum(edges, 0)
        damaged[top:bottom, left:right] = 0
    return damaged


def nodes_inside(
    landmarks_xy: npt.NDArray[np.floating], centres_xy: npt.NDArray[np.floating], half_size_px: float
) -> BoolArray:
    """Return which landmarks [120, 2] lie in a square around one of the centres [k, 2], its edge included.

    Nodes that are NaN lie in none.

    Examples
    --------
    >>> nodes_inside(np.array([[0.0, 5.0], [0.0, 6.0]]), np.array([[0.0, 0.0]]), 5.0)
    array([ True, False])
    """
    is_near: BoolArray = np.abs(landmarks_xy[:, None] - centres_xy[None]) <= half_size_px
    return np.any(np.all(is_near, axis=2), axis=1)
