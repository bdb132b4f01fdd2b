"""Images → landmarks and uncertainty: reading, device work and handing on overlap, in the order given.

An image's numbers depend on its pixels, the weights, the options and nothing else: not on order, batch or neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cxu import films, table
from cxu.calibration import radius_px
from cxu.errors import DeviceMemoryError, ImageError, UsageError
from cxu.films import FilmFrame
from cxu.frame import MODEL_SIZE
from cxu.model.device import freed_memory_kept
from cxu.model.hybridgnet import Precision
from cxu.model.reference import Reference
from cxu.model.sampling import DEFAULT_SAMPLES, Samples, image_seed, sample_landmarks
from cxu.model.sides import side_odds
from cxu.model.weights import Weights
from cxu.predict_plan import PlannedImage
from cxu.quality import REJECT, Evidence, Verdict, contour_contrast, reason_of_film

FloatArray = npt.NDArray[np.float32]
Task = TypeVar("Task")
Result = TypeVar("Result")

READERS: Final = max(1, min(8, (os.cpu_count() or 1)))
_GPU_BATCH: Final = 32
_FARTHEST: Final = 1000.0  # sides of the model frame: beyond it a landmark is no position
_MAX_SEED: Final = 2**63


@dataclass(frozen=True)
class PredictOptions:
    """What is asked of every image.

    Attributes
    ----------
    n_samples
        Samples behind mean and standard deviation: decodes, widened by a learned spread where the weights have one.
        With one sample there is no standard deviation.
    seed
        Of the samples; each image's own is made from it and the image's pixels.
    precision
        Arithmetic of the encoder's convolutions.
    keep_samples
        Keep every sample, as the column ``samples_xy``.
    """

    n_samples: int = DEFAULT_SAMPLES
    seed: int = 0
    precision: Precision = "float32"
    keep_samples: bool = False

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise UsageError(f"--samples {self.n_samples}: expected 1 or more; the published tables have 50")
        if not 0 <= self.seed < _MAX_SEED:
            raise UsageError(f"--seed {self.seed}: expected a number from 0 to {_MAX_SEED - 1}")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one image.

    Attributes
    ----------
    image
        The image.
    film
        What its file says, without the pixels.
    frame
        Where the model frame lies in the image.
    sha256, stamp
        Hash of the file, and its size and time of change when it was read.
    mean, std
        [120, 2] float32 (x, y) in [0, 1] of the model frame.
    mu, latent_sigma
        [Z] float32.
    features
        [F] float32, of the encoder.
    contrast
        Of the image across the contours of the lungs.
    side_odds
        Log odds that the image is not mirrored.
    samples
        [S, 120, 2] as ``mean``, where kept.
    """

    image: PlannedImage
    film: FilmFacts
    frame: FilmFrame
    sha256: str
    stamp: tuple[int, int]
    mean: FloatArray
    std: FloatArray
    mu: FloatArray
    latent_sigma: FloatArray
    features: FloatArray
    contrast: float
    side_odds: float
    samples: FloatArray | None = None


@dataclass(frozen=True)
class FilmFacts:
    """What a film is beside its pixels; ``turned`` where its file held a negative."""

    shape_hw: tuple[int, int]
    spacing_mm_xy: tuple[float, float] | None
    view: str | None
    turned: bool = False
    modality: str | None = None
    is_flat: bool = False


@dataclass(frozen=True)
class Rejected:
    """A file without a row, by its name for people, and why."""

    file: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An image that is ready for the device: ``pixels`` float32 [size, size] in [0, 1]."""

    image: PlannedImage
    film: FilmFacts
    frame: FilmFrame
    sha256: str
    stamp: tuple[int, int]
    seed: int
    pixels: FloatArray


class Predictor:
    """A network on a device, ready for batches.

    Parameters
    ----------
    weights
        The network; it moves to the device.
    options
        What is asked of every image.
    device
        From :func:`find_device`.
    batch_size
        Images at a time; None chooses: one on a CPU, as many as fit, up to 32, on a GPU. Halved whenever memory runs
        out. Always one for weights that sample feature maps as the published kernel does.
    """

    def __init__(
        self, weights: Weights, options: PredictOptions, device: torch.device, batch_size: int | None = None
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"--batch-size {batch_size}: expected 1 or more, or auto")
        self.weights, self.options, self.device = weights, options, device
        # the published way to sample maps makes pixels of a rounding error, and rounding differs between batches
        is_alone = weights.model.config.map_sampling == "adaptive"
        self.batch_size = 1 if is_alone else batch_size or _batch_size(device, weights.model.config.size)
        self._model = weights.model.to(device).eval()

    @property
    def size(self) -> int:
        """Side of the network's input, px."""
        return self.weights.model.config.size

    def run(self, pixels: Sequence[FloatArray], seeds: Sequence[int]) -> list[Samples]:
        """Predict a batch, in smaller ones where memory runs out.

        On a GPU this returns before the work is done.

        Raises
        ------
        DeviceMemoryError
            If there is not enough for one image.
        """
        while True:
            starts = range(0, len(pixels), self.batch_size)
            try:
                return [
                    self._sample(pixels[at : at + self.batch_size], seeds[at : at + self.batch_size]) for at in starts
                ]
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise DeviceMemoryError(
                        f"{self.device} has too little memory for one image of {self.size} px with "
                        f"{self.options.n_samples} samples: give fewer --samples, or another --device"
                    ) from None
            # outside the handler: the error keeps the tensors of its frames alive
            self.batch_size = max(1, min(self.batch_size, len(pixels)) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _sample(self, pixels: Sequence[FloatArray], seeds: Sequence[int]) -> Samples:
        batch = torch.from_numpy(np.stack(pixels))[:, None]
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        options = self.options
        return sample_landmarks(
            self._model,
            batch.to(self.device, non_blocking=True),
            seeds,
            n_samples=options.n_samples,
            keep=options.keep_samples,
            precision=options.precision,
        )


def _batch_size(device: torch.device, size: int) -> int:
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    # the encoder's widest maps, several at a time: 8 channels of float32 at full size
    per_image = 8 * 8 * 4 * size**2
    return int(np.clip(free // (2 * per_image), 1, _GPU_BATCH))


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error)  # torch has no class for it on a CPU, and on a GPU only from 2.5
    return isinstance(error, MemoryError) or "out of memory" in said.lower() or "DefaultCPUAllocator" in said


def predict_films(
    images: Iterable[PlannedImage], predictor: Predictor, *, readers: int = READERS
) -> Iterator[Prediction | Rejected]:
    """Yield what is found in each image, in order; a file that cannot be read is a :class:`Rejected`.

    Files are read by threads a bounded number of images ahead; the next batch is on the device while the last one is
    handed on. Whatever else goes wrong in a thread is raised here.

    Parameters
    ----------
    images
        From :func:`cxu.predict_plan.plan_images`.
    predictor
        The network on its device.
    readers
        Threads that read files.
    """
    prepare = functools.partial(_prepare, predictor=predictor)
    ahead = readers + 2 * predictor.batch_size
    with freed_memory_kept() if predictor.device.type == "cpu" else contextlib.nullcontext():
        prepared = _map_ahead(prepare, images, readers, ahead)
        yield from _run_batches(_batches(prepared, lambda: predictor.batch_size), predictor)


def _run_batches(
    batches: Iterable[list[_Prepared | Rejected]], predictor: Predictor
) -> Iterator[Prediction | Rejected]:
    """Yield the results of each batch while the next one is on the device."""
    running: tuple[list[_Prepared | Rejected], list[Samples]] | None = None
    for batch in batches:
        ready = [one for one in batch if isinstance(one, _Prepared)]
        samples = predictor.run([one.pixels for one in ready], [one.seed for one in ready]) if ready else []
        if running is not None:
            yield from _finish(*running)
        running = batch, samples
    if running is not None:
        yield from _finish(*running)


def _map_ahead(function: Callable[[Task], Result], tasks: Iterable[Task], threads: int, ahead: int) -> Iterator[Result]:
    """Yield ``function(task)`` in order, worked out by threads for at most ``ahead`` tasks in advance."""
    pool, waiting = ThreadPoolExecutor(threads, thread_name_prefix="cxu-read"), deque[Future[Result]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(results: Iterable[_Prepared | Rejected], size: Callable[[], int]) -> Iterator[list[_Prepared | Rejected]]:
    """Yield lists with ``size()`` readable images each, and the rejected ones among them; the last may be short."""
    batch: list[_Prepared | Rejected] = []
    n_ready = 0
    for one in results:
        batch.append(one)
        n_ready += isinstance(one, _Prepared)
        if n_ready >= size():
            yield batch
            batch, n_ready = [], 0
    if batch:
        yield batch


def _prepare(image: PlannedImage, predictor: Predictor) -> _Prepared | Rejected:
    try:
        before = image.file.stamp()
        sha256 = image.file.sha256()
        film = films.read_film(image.file, even_flat=True)
        frame = films.film_frame(film, image.source)
        prepared = _Prepared(
            image,
            FilmFacts(film.grey.shape, film.spacing_mm_xy, film.view, film.turned, film.modality, film.is_flat),
            frame,
            sha256,
            before[1:],
            image_seed(predictor.options.seed, film.grey),
            films.model_input(film, frame, predictor.size),
        )
        if image.file.stamp() != before:
            return Rejected(
                image.file.name, f"{image.file.name} changed while it was read; run the same command again."
            )
        return prepared
    except ImageError as error:
        return Rejected(image.file.name, str(error))


def _finish(batch: Sequence[_Prepared | Rejected], samples: Sequence[Samples]) -> Iterator[Prediction | Rejected]:
    """Bring the numbers of a batch from the device, and yield one result an image."""
    numbers = _rows_of(samples)
    for one in batch:
        if isinstance(one, Rejected):
            yield one
            continue
        found = next(numbers)
        if not _is_possible(found):
            name = one.image.file.name
            yield Rejected(name, f"{name}: the network gives landmarks or uncertainties that are no possible numbers.")
            continue
        contrast, odds = contour_contrast(one.pixels, found["mean"]), side_odds(one.pixels)
        yield Prediction(
            one.image,
            one.film,
            one.frame,
            one.sha256,
            one.stamp,
            contrast=contrast,
            side_odds=odds,
            **found,
        )


def _is_possible(found: dict[str, FloatArray]) -> bool:
    """Tell whether a network's numbers of an image are finite, and its landmarks not far beyond any image."""
    finite = all(np.isfinite(found[name]).all() for name in ("mean", "std", "latent_sigma"))
    return finite and bool(np.abs(found["mean"]).max() < _FARTHEST)


def _rows_of(samples: Sequence[Samples]) -> Iterator[dict[str, FloatArray]]:
    """Yield the numbers of each image, by the names that a prediction has for them."""
    names = {"mean": "mean", "std": "std", "mu": "mu", "latent_sigma": "latent_sigma", "features": "features"}
    for part in samples:
        kept = names if part.points is None else {**names, "samples": "points"}
        arrays = {name: getattr(part, tensor).cpu().numpy() for name, tensor in kept.items()}
        for row in range(len(arrays["mean"])):
            yield {name: values[row] for name, values in arrays.items()}


def prediction_rows(
    predictions: Sequence[Prediction], weights: Weights, options: PredictOptions, reference: Reference | None = None
) -> pa.Table:
    """Return predictions as rows of the one table, in the pixels of each image.

    The place of the model frame is null for images whose pixels are not square: there it is no square in pixels.
    Without a reference of the weights radii are null, and so is the verdict, but for files that say themselves what
    they are.
    """
    frames = [one.frame for one in predictions]
    # the spread of a single sample is 0, which would read as certain
    known = 1.0 if options.n_samples > 1 else np.nan
    sigma_model = np.stack([one.std * (MODEL_SIZE * known) for one in predictions], dtype=np.float32)
    sigma_image = [frame.sigma_to_image(sigma) for frame, sigma in zip(frames, sigma_model, strict=True)]
    columns: dict[str, object] = {
        "source": [one.image.source.name for one in predictions],
        "image_id": [one.image.image_id for one in predictions],
        "patient_id": [one.image.source.patient_id(one.image.image_id) for one in predictions],
        "height": [one.film.shape_hw[0] for one in predictions],
        "width": [one.film.shape_hw[1] for one in predictions],
        "frame": "image",
        "frame_side": [frame.frame.side if frame.aspect == 1 else None for frame in frames],
        "frame_offset_xy": [list(frame.frame.offset_xy) if frame.aspect == 1 else None for frame in frames],
        "frame_exact": [frame.frame.exact if frame.aspect == 1 else None for frame in frames],
        "landmarks_xy": np.stack([one.frame.to_image(one.mean * MODEL_SIZE) for one in predictions], dtype=np.float32),
        **table.sigma_columns(sigma_model),
        "sigma_xy": np.stack(sigma_image, dtype=np.float32),
        "latent_sigma": _latents_of(predictions),
        "model_id": weights.model_id,
        "n_samples": options.n_samples,
        "seed": options.seed,
        "precision": options.precision,
        "repo": weights.repo,
        "revision": weights.revision,
        "file_sha256": [one.sha256 for one in predictions],
        "spacing_mm_xy": [one.film.spacing_mm_xy and list(one.film.spacing_mm_xy) for one in predictions],
        "view": [one.film.view for one in predictions],
    }
    if options.keep_samples:
        columns["samples_xy"] = [_samples_of(one) for one in predictions]
    columns |= _judged(predictions, sigma_model, reference)
    return table.build_table(columns, len(predictions))


def _judged(
    predictions: Sequence[Prediction], sigma_model: FloatArray, reference: Reference | None
) -> dict[str, object]:
    """Return the columns of the gate and the calibration; ``sigma_model`` [n, 120, 2] in px of the 1024 frame."""
    said = [reason_of_film(one.film.view, one.film.modality, is_flat=one.film.is_flat) for one in predictions]
    if reference is None:
        return _verdict_columns([Verdict("reject", REJECT, reason) if reason else None for reason in said])
    sigma_px = table.node_uncertainty(sigma_model)
    # one by one: sums over matrices of several rows are rounded otherwise, and neighbours are to change nothing
    verdicts = [
        reference.gate.judge(_evidence(one, sigma_px[row : row + 1]), said[row : row + 1])[0]
        for row, one in enumerate(predictions)
    ]
    radii = radius_px(reference.calibration, sigma_px)[..., None].repeat(2, axis=-1)
    # where pixels are not square the circle is an ellipse in them: the longer half axis holds no less
    in_image = [one.frame.sigma_to_image(radius).max(axis=-1) for one, radius in zip(predictions, radii, strict=True)]
    return {
        **_verdict_columns(verdicts),
        "radius90_px": np.stack(in_image).astype(np.float32),
    }


def _evidence(one: Prediction, sigma_px: FloatArray) -> Evidence:
    """Return what the gate looks at in one image; ``sigma_px`` [1, 120]."""
    return Evidence(
        one.mean[None],
        sigma_px,
        one.mu[None],
        one.latent_sigma[None],
        one.features[None],
        np.array([one.contrast]),
        np.array([one.side_odds]),
    )


def _verdict_columns(verdicts: Sequence[Verdict | None]) -> dict[str, object]:
    return {
        "quality": [one and one.quality for one in verdicts],
        "quality_score": [one and one.score for one in verdicts],
        "quality_reason": [one and one.reason for one in verdicts],
    }


def _latents_of(predictions: Sequence[Prediction]) -> FloatArray | None:
    """Return the latent sigmas [n, Z] where they have the width of the column, else None."""
    latents = np.stack([one.latent_sigma for one in predictions])
    return latents if latents.shape[1] == table.N_LATENT else None


def _samples_of(prediction: Prediction) -> FloatArray:
    assert prediction.samples is not None, "kept because the options say so"
    points = prediction.frame.to_image(prediction.samples * MODEL_SIZE)
    return points.astype(np.float32).ravel()
