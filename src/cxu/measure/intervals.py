"""How far measures are to be expected from the truth: from kept samples, or from draws of the errors of all nodes.

The standard deviations of a row say how far each node may be off, not how nodes err together. Neighbours do (their
errors correlate by about 0.9), so a measure of independent nodes would come out far too certain. Where samples of a row
were kept they show it; elsewhere errors are drawn with the correlation of the bundled network's samples, pooled over
films. An interval is the value ± 1.645 times the root mean square of how far the draws are from it.

The draws are one fixed set for all rows. Their first and second moments are exact, so whatever is linear in the nodes
comes out as an infinite number would give it, and no row depends on its place in the table or on the other rows.

Source: ``scripts/make_node_correlation.py`` computes the shipped file.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt

from cxu.anatomy import N_NODES, ORGANS
from cxu.errors import FormatError
from cxu.measure.geometry import MEASURED, measure_nodes

FloatArray = npt.NDArray[np.floating]
Float32Array = npt.NDArray[np.float32]

CORRELATION_FILE: Final = "data/node_correlation.npz"
N_DRAWS: Final = 256
MIN_SAMPLES: Final = 20  # of fewer, a standard deviation is known to no better than a sixth
COVERAGE: Final = 0.9
HALF_WIDTH: Final = 1.645  # standard deviations, of a normal distribution's middle 90 %
_BLOCK_ROWS: Final = 16  # rows whose draws fit the cache of a core together
_SEED: Final = 0


@functools.cache
def correlation_factor() -> Float32Array:
    """Return the factor F float32 [240, K] of the shipped correlation: F Fᵀ with its diagonal completed to 1.

    Raises
    ------
    FormatError
        If the file is of another shape, or a coordinate has more than all of its variance in the factor.
    """
    resource = resources.files("cxu").joinpath(CORRELATION_FILE)
    with resources.as_file(resource) as path, np.load(path, allow_pickle=False) as stored:
        factor = stored["factor"].astype(np.float32)
    if factor.ndim != 2 or len(factor) != 2 * N_NODES or not np.all(np.sum(factor**2, axis=1) <= 1):
        raise FormatError(f"{CORRELATION_FILE} holds no factor of a correlation of {2 * N_NODES} coordinates")
    return factor


def node_correlation() -> FloatArray:
    """Return the correlation float64 [240, 240] of node errors, x and y interleaved; it has no negative eigenvalue.

    Examples
    --------
    >>> bool(node_correlation()[0, 2] > 0.7)  # x of two neighbours
    True
    """
    factor = correlation_factor().astype(np.float64)
    product = factor @ factor.T
    np.fill_diagonal(product, 1.0)
    return product


@functools.cache
def error_draws() -> tuple[Float32Array, Float32Array]:
    """Return the draws of all nodes' errors in standard deviations: x and y, float32 [120, S] each.

    Half of them are the other half with its sign changed, so every mean is 0. Along the leading directions of the
    correlation the draws are orthogonal, so their covariance there is exact; the little that is left is drawn freely.
    Every coordinate has a variance of exactly 1.
    """
    half = N_DRAWS // 2
    factor = correlation_factor().astype(np.float64)
    remainder = np.sqrt(1 - np.sum(factor**2, axis=1))
    rng = np.random.default_rng(_SEED)
    white = rng.standard_normal((half, factor.shape[1]))
    exact = min(half, factor.shape[1])
    white[:, :exact] = np.sqrt(half) * np.linalg.qr(white[:, :exact])[0]
    drawn = white @ factor.T + remainder * rng.standard_normal((half, 2 * N_NODES))
    drawn /= np.sqrt(np.mean(drawn**2, axis=0))
    both = np.concatenate([drawn, -drawn]).astype(np.float32)
    return np.ascontiguousarray(both[:, 0::2].T), np.ascontiguousarray(both[:, 1::2].T)


def simulated_spread(points_xy: FloatArray, sigma_xy: FloatArray) -> dict[str, FloatArray]:
    """Return the root mean square deviation [n] of every measure from its value, over drawn errors.

    Parameters
    ----------
    points_xy
        Means [n, 120, 2] px; finite.
    sigma_xy
        Standard deviations [n, 120, 2] px, calibrated.

    Returns
    -------
    A float64 array for each of :data:`cxu.measure.geometry.MEASURED`, in its unit; of length 0 for no row.
    """
    draws_x, draws_y = error_draws()
    found: dict[str, FloatArray] = {name: np.empty(len(points_xy)) for name in MEASURED}
    for start in range(0, len(points_xy), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        means, sigmas = _centred(points_xy[block]), sigma_xy[block].astype(np.float32).transpose(2, 1, 0)
        x = means[0][:, :, None] + sigmas[0][:, :, None] * draws_x[:, None, :]
        y = means[1][:, :, None] + sigmas[1][:, :, None] * draws_y[:, None, :]
        _spread_into(found, block, x, y, points_xy[block])
    return found


def sampled_spread(points_xy: FloatArray, samples_xy: FloatArray, scale: FloatArray) -> dict[str, FloatArray]:
    """Return the root mean square deviation [n] of every measure from its value, over kept samples.

    Parameters
    ----------
    points_xy
        Means [n, 120, 2] px; finite.
    samples_xy
        Samples [n, S, 120, 2] px, S of 2 or more.
    scale
        Calibration [n, 3]: how far the samples of each organ are moved away from their mean.

    Returns
    -------
    As of :func:`simulated_spread`.
    """
    found: dict[str, FloatArray] = {name: np.empty(len(points_xy)) for name in MEASURED}
    scales = scale_of_nodes(scale)
    for start in range(0, len(points_xy), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        means, samples = _centred(points_xy[block]), samples_xy[block].astype(np.float64)
        errors = (samples - samples.mean(axis=1, keepdims=True)) * scales[block, None, :, None]
        x, y = (errors.transpose(3, 2, 0, 1) + means[..., None]).astype(np.float32)
        _spread_into(found, block, x, y, points_xy[block])
    return found


def _centred(points_xy: FloatArray) -> Float32Array:
    """Return points [n, 120, 2] as [2, 120, n] about their middle: areas lose digits far from the origin."""
    about = points_xy - points_xy.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.ascontiguousarray(about.transpose(2, 1, 0), np.float32)


def _spread_into(
    found: dict[str, FloatArray], block: slice, x: Float32Array, y: Float32Array, points_xy: FloatArray
) -> None:
    # in double precision: the order in which numpy sums depends on how many rows there are
    values = measure_nodes(*points_xy.astype(np.float64).transpose(2, 1, 0))
    for name, drawn in measure_nodes(x, y).items():
        away = drawn - values[name][:, None]
        found[name][block] = np.sqrt(np.mean(away * away, axis=1, dtype=np.float64))


def scale_of_nodes(scale: FloatArray) -> FloatArray:
    """Return the scales [n, 120] of nodes from those of organs [n, 3]."""
    return np.repeat(scale, [organ.n_nodes for organ in ORGANS], axis=1)
