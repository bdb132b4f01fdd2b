"""Damage images step by step, and record how prediction and uncertainty answer.

The damage is done to the network's own input, after reading, scaling and drawing: every image is damaged alike. An
image's numbers depend on its pixels, the weights and the options, not on order, batch or neighbours. Every step of an
image samples with the seed of its undamaged prediction, which is that of ``cxu predict``: what differs is due to the
damage.

Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), figures 2 and 3a.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cxu import films
from cxu.anatomy import N_NODES
from cxu.errors import ImageError, UsageError
from cxu.evaluation.corruption_damage import (
    HALF_SIZE_PX,
    NOISE_SIGMAS,
    SQUARES,
    BoolArray,
    FloatArray,
    add_noise,
    choose_nodes,
    draw_squares,
    nodes_inside,
)
from cxu.frame import MODEL_SIZE
from cxu.model.device import freed_memory_kept
from cxu.model.sampling import image_seed
from cxu.predict import Predictor, Rejected
from cxu.predict_plan import PlannedImage, PredictPlan

Damage = Literal["noise", "occlusion"]
Truths = Mapping[PlannedImage, FloatArray]
UNDAMAGED: Final = 0.0
_DEFAULTS: Final[dict[Damage, tuple[float, ...]]] = {"noise": NOISE_SIGMAS, "occlusion": SQUARES}


@dataclass(frozen=True)
class DamageOptions:
    """What is done to every image.

    Attributes
    ----------
    damage
        Noise, or black squares.
    severities
        Standard deviations of the noise in 8-bit grey levels, or numbers of squares; 0, the undamaged image, is
        always the first. None takes the usual ones.
    half_size_px
        Half a side of a square, px of the 1024 model frame.
    """

    damage: Damage
    severities: tuple[float, ...] | None = None
    half_size_px: float = HALF_SIZE_PX

    def __post_init__(self) -> None:
        if not 0 < self.half_size_px <= MODEL_SIZE:
            raise UsageError(f"--half-size {self.half_size_px:g}: expected px of the model frame, 1 to {MODEL_SIZE}")
        for severity in self.steps:
            _check_severity(self.damage, severity)

    @property
    def steps(self) -> tuple[float, ...]:
        """The severities in ascending order, each once, beginning with 0."""
        given = _DEFAULTS[self.damage] if self.severities is None else self.severities
        return tuple(sorted({UNDAMAGED, *map(float, given)}))


def _check_severity(damage: Damage, severity: float) -> None:
    if damage == "noise" and not (math.isfinite(severity) and severity >= 0):
        raise UsageError(f"--sigmas {severity:g}: expected 8-bit grey levels from 0, such as 0,10,50")
    if damage == "occlusion" and (severity not in range(N_NODES + 1)):
        raise UsageError(f"--squares {severity:g}: expected whole numbers from 1 to {N_NODES}, such as 1,2,4")


@dataclass(frozen=True, eq=False)
class NodeResponse:
    """The nodes of one image at each of K steps, [K, 120].

    Attributes
    ----------
    sigma_px, error_px
        Node uncertainty and distance from the truth, px of the model frame; the latter NaN where not annotated.
    inside, outside
        Which nodes lie in a square; a node without a true position, where there is truth, is in neither.
    """

    sigma_px: FloatArray
    error_px: FloatArray
    inside: BoolArray
    outside: BoolArray


@dataclass(frozen=True, eq=False)
class Response:
    """How the prediction of one image answers to damage: arrays [K], a value a step, px of the 1024 model frame.

    Attributes
    ----------
    image
        The image.
    score_px
        Image score: mean node uncertainty.
    latent_sigma
        Mean standard deviation of the latent code.
    drift_px
        Mean distance of the 120 nodes from where they were in the undamaged image. No error: that one may be wrong.
    error_px
        Mean distance of annotated nodes from the truth; NaN without truth.
    nodes
        The nodes; None for noise, which is everywhere.
    """

    image: PlannedImage
    score_px: FloatArray
    latent_sigma: FloatArray
    drift_px: FloatArray
    error_px: FloatArray
    nodes: NodeResponse | None = None


@dataclass(frozen=True, eq=False)
class DamageReport:
    """What was measured.

    Attributes
    ----------
    options
        What was done.
    responses
        One for each image, in order.
    rejected
        Images that could not be read, and why.
    has_truth
        Whether errors are known.
    """

    options: DamageOptions
    responses: tuple[Response, ...]
    rejected: tuple[Rejected, ...] = field(default=())
    has_truth: bool = False


def draw_images(images: Sequence[PlannedImage], limit: int | None, seed: int) -> list[PlannedImage]:
    """Return at most ``limit`` of the images, drawn at random, in their order.

    The draw goes by hashes of the ids: the same images whatever their order, and a smaller limit draws some of them.
    """
    if limit is None or limit >= len(images):
        return list(images)
    drawn = set(sorted(images, key=lambda image: _lot(image, seed))[:limit])
    return [image for image in images if image in drawn]


def _lot(image: PlannedImage, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{image.source.name}\0{image.image_id}".encode()).digest()


def measure_damage(
    plan: PredictPlan,
    predictor: Predictor,
    options: DamageOptions,
    *,
    images: Sequence[PlannedImage] | None = None,
    truths: Truths | None = None,
    advance: Callable[[int], None] = lambda _more: None,
) -> DamageReport:
    """Damage images and predict them at every step; one image is in memory at a time.

    Parameters
    ----------
    plan
        From :func:`cxu.predict_plan.plan_images`.
    predictor
        The network on its device.
    options
        What is done to every image.
    images
        Those of the plan to take; None takes all.
    truths
        Landmarks [120, 2] of every image taken, px of the model frame, NaN where not annotated. Squares then stand on
        true landmarks, otherwise on those of the undamaged prediction.
    advance
        Called with how many images more are done.

    Raises
    ------
    UsageError
        If the predictor draws a single sample, which has no standard deviation.
    DeviceMemoryError
        If the device has too little memory for one image.
    """
    if predictor.options.n_samples < 2:
        raise UsageError("--samples 1: uncertainty needs 2 samples or more; the published tables have 50")
    responses: list[Response] = []
    rejected = [Rejected(file.name, reason) for file, reason in plan.unusable]
    with freed_memory_kept() if predictor.device.type == "cpu" else contextlib.nullcontext():
        for image in plan.images if images is None else images:
            truth = None if truths is None else truths[image]
            try:
                responses.append(_measure_image(image, truth, predictor, options))
            except ImageError as error:
                rejected.append(Rejected(image.file.name, str(error)))
            advance(1)
    return DamageReport(options, tuple(responses), tuple(rejected), truths is not None)


def _measure_image(
    image: PlannedImage, truth_xy: FloatArray | None, predictor: Predictor, options: DamageOptions
) -> Response:
    film = films.read_film(image.file)
    seed = image_seed(predictor.options.seed, film.grey)
    pixels = films.model_input(film, films.film_frame(film, image.source), predictor.size)
    return respond(image, pixels, seed, truth_xy, predictor, options)


def respond(
    image: PlannedImage,
    pixels: FloatArray,
    seed: int,
    truth_xy: FloatArray | None,
    predictor: Predictor,
    options: DamageOptions,
) -> Response:
    """Predict one input frame [size, size] in [0, 1], damaged more and more.

    Parameters
    ----------
    image
        What the frame is of.
    pixels
        The undamaged frame.
    seed
        Of the samples and of the damage, from :func:`cxu.model.sampling.image_seed`.
    truth_xy
        [120, 2] px of the model frame, NaN where not annotated; None without truth.
    predictor
        The network on its device.
    options
        What is done to the frame.
    """
    clean = _predict([pixels], seed, predictor)
    base_xy = clean.mean_px[0] if truth_xy is None else truth_xy
    order = choose_nodes(base_xy, seed)
    damaged = [_damaged(pixels, step, seed, base_xy[order], options) for step in options.steps[1:]]
    found = _joined(clean, _predict(damaged, seed, predictor)) if damaged else clean
    error_px = np.full(found.sigma_px.shape, np.nan, np.float32)
    if truth_xy is not None:
        error_px = np.linalg.norm(found.mean_px - truth_xy, axis=2)
    return Response(
        image,
        score_px=found.sigma_px.mean(axis=1),
        latent_sigma=found.latent_sigma,
        drift_px=np.linalg.norm(found.mean_px - clean.mean_px, axis=2).mean(axis=1),
        error_px=error_px[:, order].mean(axis=1),
        nodes=_node_response(found.sigma_px, error_px, base_xy, order, options),
    )


def _damaged(
    pixels: FloatArray, step: float, seed: int, centres_xy: npt.NDArray[np.floating], options: DamageOptions
) -> FloatArray:
    if options.damage == "noise":
        return add_noise(pixels, step, seed)
    return draw_squares(pixels, centres_xy[: int(step)], options.half_size_px)


def _node_response(
    sigma_px: FloatArray,
    error_px: FloatArray,
    base_xy: FloatArray,
    order: npt.NDArray[np.int64],
    options: DamageOptions,
) -> NodeResponse | None:
    if options.damage == "noise":
        return None
    inside = np.stack([nodes_inside(base_xy, base_xy[order[: int(k)]], options.half_size_px) for k in options.steps])
    known = np.isfinite(base_xy).all(axis=1)
    return NodeResponse(sigma_px, error_px, inside, ~inside & known)


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found in some frames, px of the model frame: [K, 120, 2], [K, 120], [K]."""

    mean_px: FloatArray
    sigma_px: FloatArray
    latent_sigma: FloatArray


def _predict(pixels: Sequence[FloatArray], seed: int, predictor: Predictor) -> _Found:
    parts = predictor.run(pixels, [seed] * len(pixels))
    mean, std, latent = (
        np.concatenate([getattr(part, name).cpu().numpy() for part in parts])
        for name in ("mean", "std", "latent_sigma")
    )
    return _Found(mean * MODEL_SIZE, std.mean(axis=2) * MODEL_SIZE, latent.mean(axis=1))


def _joined(first: _Found, second: _Found) -> _Found:
    names = ("mean_px", "sigma_px", "latent_sigma")
    return _Found(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))
