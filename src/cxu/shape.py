"""Plausible chests out of nothing: a statistical shape model, and made-up uncertainty and quality for it.

The model holds the mean and the principal modes of annotated outlines; it draws new shapes, never a real one. The
generators of standard deviations and of RCA are written to look like a published table's columns, not measured on
one. What they make is synthetic and has to be called so. Everything is vectorised over rows and needs an explicit
generator.

Source: ``scripts/make_shape_model.py`` computes the shipped file; ``docs/format.md`` describes the columns imitated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from cxu.anatomy import LEFT_LUNG, N_NODES, N_ORGANS, ORGANS, RIGHT_LUNG
from cxu.errors import FormatError
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]

SHAPE_MODEL_FILE: Final = "data/shape_model.npz"
COEFFICIENT_LIMIT: Final = 2.5  # standard deviations of a mode
_FRAME_SLACK_PX: Final = 4  # published landmarks leave the frame by a few pixels at most
_MAX_REDRAWS: Final = 200


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Mean shape and principal modes of the 120 landmarks.

    Attributes
    ----------
    mean_xy
        Mean shape float32 [120, 2] (x, y), px of the 1024 model frame.
    modes
        Unit vectors float32 [M, 240] over x, y interleaved, most variable first.
    mode_sd_px
        Standard deviation float32 [M] of a shape's coefficient along each mode, px.
    n_shapes
        Outlines that the model was computed from.
    variance_explained
        Share of their variance that the modes carry, 0 to 1.
    """

    mean_xy: Float32Array
    modes: Float32Array
    mode_sd_px: Float32Array
    n_shapes: int = 0
    variance_explained: float = 1.0

    @property
    def n_modes(self) -> int:
        """Number of modes M."""
        return len(self.mode_sd_px)

    def shapes(self, coefficients: FloatArray) -> FloatArray:
        """Return the shapes float64 [n, 120, 2] (px) of ``coefficients`` [n, M] in standard deviations.

        Examples
        --------
        >>> model = ShapeModel(np.zeros((120, 2), np.float32), np.eye(2, 240, dtype=np.float32), np.float32([3, 2]))
        >>> model.shapes(np.array([[1.0, -1.0]]))[0, 0]
        array([ 3., -2.])
        """
        steps = np.asarray(self.modes, np.float64) * np.asarray(self.mode_sd_px, np.float64)[:, None]
        flat = np.asarray(self.mean_xy, np.float64).ravel() + np.asarray(coefficients, np.float64) @ steps
        return flat.reshape(-1, N_NODES, 2)


@functools.cache
def load_shape_model() -> ShapeModel:
    """Return the shape model that ships with cxu.

    Examples
    --------
    >>> load_shape_model().mean_xy.shape
    (120, 2)
    """
    resource = resources.files("cxu").joinpath(SHAPE_MODEL_FILE)
    with resources.as_file(resource) as path, np.load(path, allow_pickle=False) as stored:
        model = ShapeModel(
            stored["mean_xy"],
            stored["modes"],
            stored["mode_sd_px"],
            int(stored["n_shapes"]),
            float(stored["variance_explained"]),
        )
    if model.mean_xy.shape != (N_NODES, 2) or model.modes.shape != (model.n_modes, 2 * N_NODES):
        raise FormatError(f"{SHAPE_MODEL_FILE} holds a mean of {model.mean_xy.shape}; expected {(N_NODES, 2)}")
    return model


def sample_shapes(model: ShapeModel, n: int, rng: np.random.Generator, scale: float = 1.0) -> Float32Array:
    """Draw ``n`` plausible shapes.

    Coefficients are normal, each within 2.5 standard deviations. Shapes with a self-crossing organ, overlapping
    lungs, or a node more than 4 px outside the model frame are drawn again.

    Parameters
    ----------
    model
        The shape model.
    n
        Number of shapes; 0 gives an empty array.
    rng
        Source of randomness: the same state gives the same shapes.
    scale
        Factor on every mode's standard deviation; 0 gives the mean shape ``n`` times.

    Returns
    -------
    float32 [n, 120, 2] (x, y), px of the 1024 model frame.

    Raises
    ------
    FormatError
        If the model gives no plausible shapes at this scale.
    """
    drawn = np.empty((n, N_NODES, 2), np.float32)
    missing = np.arange(n)
    for _ in range(_MAX_REDRAWS):
        if not missing.size:
            return drawn
        coefficients = scale * _truncated_normal((missing.size, model.n_modes), rng)
        drawn[missing] = model.shapes(coefficients)
        missing = missing[~_is_plausible(drawn[missing])]
    raise FormatError(f"the shape model gives no plausible shapes at scale {scale}; use a scale of 1 or less")


def _truncated_normal(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    values = rng.standard_normal(shape)
    while (beyond := np.abs(values) > COEFFICIENT_LIMIT).any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
    return values


def _is_plausible(shapes_xy: Float32Array) -> BoolArray:
    """Tell which shapes [n, 120, 2] lie in the frame, have simple rings, and lungs apart from each other."""
    low, high = shapes_xy.min(axis=(1, 2)), shapes_xy.max(axis=(1, 2))
    plausible: BoolArray = (low >= -_FRAME_SLACK_PX) & (high <= MODEL_SIZE - 1 + _FRAME_SLACK_PX)
    rings = {organ: shapely.polygons(shapes_xy[:, organ.nodes]) for organ in ORGANS}
    for polygons in rings.values():
        plausible &= shapely.is_valid(polygons)
    plausible[plausible] = shapely.disjoint(rings[RIGHT_LUNG][plausible], rings[LEFT_LUNG][plausible])
    return plausible


class _Peak(NamedTuple):
    """A stretch of contour that readers and networks place less surely: factors on sigma at its centre node."""

    node: int
    half_width: float
    factor_x: float
    factor_y: float


# Where the border is seen edge-on or not at all; the factor is larger across the border than along it.
_PEAKS: Final = (
    _Peak(21, 1.6, 1.35, 1.95),  # right costophrenic angle
    _Peak(25, 3.0, 1.05, 1.25),  # right base
    _Peak(29, 1.5, 1.50, 1.25),  # right cardiophrenic angle
    _Peak(35, 3.0, 1.50, 1.15),  # right hilum
    _Peak(65, 1.6, 1.35, 1.95),  # left costophrenic angle
    _Peak(69, 3.0, 1.05, 1.30),  # left base, over the stomach
    _Peak(73, 1.8, 1.40, 1.40),  # left cardiophrenic angle
    _Peak(84, 3.0, 1.50, 1.20),  # left hilum
    _Peak(102, 3.0, 1.15, 1.55),  # base of the heart, where the great vessels leave
    _Peak(111, 1.5, 1.50, 1.40),  # apex
    _Peak(116, 2.5, 1.10, 1.35),  # border on the diaphragm
)
_TYPICAL_SIGMA_PX: Final = 2.9  # away from the peaks, in a good row
_ROW_SPREAD: Final = 0.16  # of log sigma between rows
_NODE_SPREAD: Final = 0.22  # of log sigma along a ring, shared by x and y
_AXIS_SPREAD: Final = 0.14  # the same, of each axis alone
_SAMPLING_SPREAD: Final = 0.07  # of one value: what 50 draws leave of sampling error
_SMOOTH_NODES: Final = 1.9  # width of the kernel along a ring
_SIGMA_LIMITS_PX: Final = (0.4, 80.0)
_UNCERTAIN_ROW_FACTOR: Final = (2.1, 3.9)
_RUN_LEVEL_PX: Final = (10.0, 22.0)
_RUN_HALF_LENGTH: Final = (3.0, 6.5)  # nodes
_RUN_SHOULDER: Final = 1.5  # nodes over which a run rises


def sample_sigmas(
    n: int, rng: np.random.Generator, *, uncertain_runs: float = 0.2, uncertain_rows: float = 0.12
) -> Float32Array:
    """Draw made-up standard deviations for ``n`` rows.

    Most nodes lie between 2 and 8 px; neighbours along a ring are alike (correlation about 0.85 within a row); the
    costophrenic angles, lung bases, hila and the heart's apex, base and diaphragmatic border are less certain than
    the rest; x and y differ.

    Parameters
    ----------
    n
        Number of rows; 0 gives an empty array.
    rng
        Source of randomness: the same state gives the same values.
    uncertain_runs
        Share of rows, 0 to 1, with a run of about 6 to 15 nodes of one organ at 10 to 25 px.
    uncertain_rows
        Share of rows, 0 to 1, that are uncertain everywhere: mean node uncertainty about 7 to 14 px.

    Returns
    -------
    float32 [n, 120, 2] (sigma_x, sigma_y), px of the 1024 model frame.

    Examples
    --------
    >>> sample_sigmas(2, np.random.default_rng(0)).shape
    (2, 120, 2)
    """
    row_level = np.exp(_ROW_SPREAD * rng.standard_normal(n))
    low, high = _UNCERTAIN_ROW_FACTOR
    row_level *= np.where(rng.random(n) < uncertain_rows, low + (high - low) * rng.random(n), 1.0)
    relief = np.exp(_ring_relief(n, rng))
    sigma_xy = _TYPICAL_SIGMA_PX * row_level[:, None, None] * _anatomical_profile() * relief
    runs = _uncertain_runs(n, rng) * (rng.random(n) < uncertain_runs)[:, None]
    sigma_xy = np.hypot(sigma_xy, runs[:, :, None] * np.sqrt(relief))
    sigma_xy *= np.exp(_SAMPLING_SPREAD * rng.standard_normal(sigma_xy.shape))
    return np.clip(sigma_xy, *_SIGMA_LIMITS_PX).astype(np.float32)


def sample_rca(sigma_px: FloatArray, rng: np.random.Generator) -> Float32Array:
    """Draw made-up RCA Dice scores that fall with the mean node uncertainty.

    Parameters
    ----------
    sigma_px
        Node uncertainty [n, 120], px of the 1024 model frame.
    rng
        Source of randomness.

    Returns
    -------
    float32 [n, 2]: mean and max, each in 0 to 1 and mean < max.
    """
    excess = np.maximum(np.mean(sigma_px, axis=1, dtype=np.float64) - 4.5, 0.0)
    rca_mean = 0.85 - 0.04 * excess + 0.02 * _truncated_normal(excess.shape, rng)
    rca_mean = np.clip(rca_mean, 0.1, 0.93)
    rca_max = rca_mean + 0.02 + 0.04 * rng.random(excess.shape)
    return np.stack([rca_mean, rca_max], axis=1).astype(np.float32)


@functools.cache
def _nodes_apart() -> FloatArray:
    """Return how many steps any two nodes are apart along their ring [120, 120]; inf between two organs."""
    apart = np.full((N_NODES, N_NODES), np.inf)
    for organ in ORGANS:
        steps = np.arange(organ.n_nodes)
        direct = np.abs(steps[:, None] - steps)
        apart[organ.nodes, organ.nodes] = np.minimum(direct, organ.n_nodes - direct)
    return apart


@functools.cache
def _anatomical_profile() -> FloatArray:
    """Return the factor [120, 2] on sigma_x and sigma_y at every node."""
    apart = _nodes_apart()
    log_factor = np.zeros((N_NODES, 2))
    for peak in _PEAKS:
        height = np.exp(-0.5 * (apart[peak.node] / peak.half_width) ** 2)
        log_factor += height[:, None] * np.log([peak.factor_x, peak.factor_y])
    return np.exp(log_factor)


@functools.cache
def _smoothing() -> FloatArray:
    """Return the matrix [120, 120] that smooths white noise along each ring and keeps its variance at 1."""
    apart = _nodes_apart()
    kernel = np.exp(-0.5 * (apart / _SMOOTH_NODES) ** 2)
    normalised: FloatArray = kernel / np.linalg.norm(kernel, axis=0)
    return normalised


def _ring_relief(n: int, rng: np.random.Generator) -> FloatArray:
    """Return the logarithm [n, 120, 2] of the random rise and fall of sigma along the rings."""
    white = rng.standard_normal((3, n, N_NODES))
    shared, along_x, along_y = white @ _smoothing()
    relief: FloatArray = _NODE_SPREAD * shared[..., None] + _AXIS_SPREAD * np.stack([along_x, along_y], axis=-1)
    return relief


def _uncertain_runs(n: int, rng: np.random.Generator) -> FloatArray:
    """Return a run of raised sigma [n, 120] px on one organ of every row, 0 elsewhere."""
    organ, place, level, length = rng.random((4, n))
    first, size = np.array([(chosen.first, chosen.n_nodes) for chosen in ORGANS]).T
    row_organ = (organ * N_ORGANS).astype(np.int64)
    centre = first[row_organ] + (place * size[row_organ]).astype(np.int64)
    half_length = _between(_RUN_HALF_LENGTH, length)
    rise = np.clip((half_length[:, None] + _RUN_SHOULDER - _nodes_apart()[centre]) / _RUN_SHOULDER, 0.0, 1.0)
    runs: FloatArray = _between(_RUN_LEVEL_PX, level)[:, None] * rise
    return runs


def _between(limits: tuple[float, float], share: FloatArray) -> FloatArray:
    return limits[0] + (limits[1] - limits[0]) * share
