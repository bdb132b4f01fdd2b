"""A film and settings → what was found: the same steps as ``cxu predict``, with damage in between. Pure, no gradio.

Damage is done to the network's own input, as in :mod:`cxu.evaluation.corruption`: noise first, then what was painted
over in black. Without damage the rows are those of ``cxu predict`` for the same file, samples and seed.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageDraw

from cxu import films, table
from cxu.catalog import source_or_custom
from cxu.errors import UsageError
from cxu.evaluation.corruption_damage import NOISE_SIGMAS, add_noise
from cxu.films import FilmFrame
from cxu.frame import MODEL_SIZE
from cxu.image_listing import ImageFile
from cxu.model.reference import reference_of
from cxu.model.sampling import DEFAULT_SAMPLES, image_seed
from cxu.model.sides import side_odds
from cxu.model.weights import Weights
from cxu.phantom import synthetic_background
from cxu.predict import FilmFacts, Prediction, PredictOptions, Predictor, prediction_rows
from cxu.predict_plan import LOCAL_SOURCE, PlannedImage
from cxu.quality import contour_contrast
from cxu.shape import load_shape_model, sample_shapes
from cxu.thresholds import confident_nodes, usable_organs

FloatArray = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

SEED: Final = 0
PICTURE_PX: Final = 720
EXAMPLE_NAME: Final = "synthetic-example.png"
MAX_NOISE: Final = NOISE_SIGMAS[-1]
MIN_SAMPLES: Final = 2
MAX_SAMPLES: Final = 200
MAX_STD_RANGE_PX: Final = (1.0, 60.0)
DEFAULT_MAX_STD_PX: Final = 20.0
BRUSH_RANGE_PX: Final = (10.0, 150.0)
DEFAULT_BRUSH_PX: Final = 60.0
MAX_STROKES: Final = 200
MAX_STROKE_POINTS: Final = 2_000
_EXAMPLE_PX: Final = 1024
_EXAMPLE_SEED: Final = 0


@dataclass(frozen=True, eq=False)
class Stroke:
    """A line painted over the film in black: points [K, 2] (x, y) and half its width, px of the 1024 model frame."""

    points_xy: FloatArray
    radius_px: float

    @classmethod
    def parse(cls, points: object, radius_px: object) -> Self:
        """Return the stroke that a browser sent.

        Parameters
        ----------
        points
            A list of pairs of numbers, px of the model frame.
        radius_px
            A number; taken into the range of the brush.

        Raises
        ------
        UsageError
            If it is no such list, or too long.
        """
        try:
            made = np.array(points, np.float32)
            radius = float(radius_px)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UsageError("a stroke is no list of points with a radius: reload the page") from None
        if made.ndim != 2 or made.shape[1:] != (2,) or not 1 <= len(made) <= MAX_STROKE_POINTS:
            raise UsageError(f"a stroke of shape {made.shape}; expected 1 to {MAX_STROKE_POINTS} points: paint it anew")
        if not (np.isfinite(made).all() and math.isfinite(radius)):
            raise UsageError("a stroke with positions that are no numbers: reload the page")
        return cls(np.clip(made, -MODEL_SIZE, 2 * MODEL_SIZE), float(np.clip(radius, *BRUSH_RANGE_PX)))

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"radius_px": self.radius_px, "points_xy": np.round(self.points_xy, 1).tolist()}


@dataclass(frozen=True)
class Settings:
    """What the sliders say.

    Attributes
    ----------
    noise_sigma
        Of Gaussian noise on the network's input, 8-bit grey levels; 0 for none.
    n_samples
        Samples behind mean and standard deviation.
    max_std_px
        Limit of node uncertainty, px of the 1024 model frame.
    """

    noise_sigma: float = 0.0
    n_samples: int = DEFAULT_SAMPLES
    max_std_px: float = DEFAULT_MAX_STD_PX

    @classmethod
    def parse(cls, noise_sigma: float, n_samples: float, max_std_px: float) -> Self:
        """Return settings from what a browser sent.

        Raises
        ------
        UsageError
            If a number is missing or out of range.
        """
        ranges = {
            "noise sigma": (noise_sigma, 0.0, MAX_NOISE),
            "samples": (n_samples, MIN_SAMPLES, MAX_SAMPLES),
            "max-std": (max_std_px, *MAX_STD_RANGE_PX),
        }
        for name, (value, low, high) in ranges.items():
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}")
        return cls(float(noise_sigma), round(n_samples), float(max_std_px))


@dataclass(frozen=True, eq=False)
class LoadedFilm:
    """What is kept of an upload: enough to predict and show it, not the film at its own resolution.

    Attributes
    ----------
    image
        Its file and id; the file need not be there any more.
    facts, frame
        What it is beside its pixels, and where its model frame lies.
    sha256, stamp
        Of the file.
    seed
        Of its samples and noise.
    pixels
        [S, S] float32 in [0, 1]: the network's input.
    preview
        uint8 [P, P]: the model frame as it is shown.
    """

    image: PlannedImage
    facts: FilmFacts
    frame: FilmFrame
    sha256: str
    stamp: tuple[int, int]
    seed: int
    pixels: FloatArray
    preview: Uint8Array


def load_film(path: Path, size: int) -> LoadedFilm:
    """Read an image file as ``cxu predict`` does.

    Parameters
    ----------
    path
        PNG, JPEG, TIFF or DICOM. Its name becomes the image id; no list or zip is followed.
    size
        Side of the network's input, px.

    Raises
    ------
    ImageError
        If it is none; see :func:`cxu.films.read_film`.
    """
    file = ImageFile.at(path)
    film = films.read_film(file, even_flat=True)
    frame = films.film_frame(film)
    shown = films.model_input(film, frame, PICTURE_PX)
    return LoadedFilm(
        PlannedImage(source_or_custom(LOCAL_SOURCE), file.file, file),
        FilmFacts(film.shape_hw, film.spacing_mm_xy, film.view, film.turned, film.modality, film.is_flat),
        frame,
        file.sha256(),
        file.stamp()[1:],
        image_seed(SEED, film.grey),
        films.model_input(film, frame, size),
        np.rint(shown * 255).astype(np.uint8),
    )


@functools.cache
def example_png() -> bytes:
    """Return the synthetic example: a drawn chest, the same bytes every time. It is no radiograph."""
    rng = np.random.default_rng(_EXAMPLE_SEED)
    landmarks = sample_shapes(load_shape_model(), 1, rng)[0]
    written = io.BytesIO()
    Image.fromarray(synthetic_background(landmarks, _EXAMPLE_PX, rng)).save(written, format="PNG")
    return written.getvalue()


def painted(strokes: Sequence[Stroke], size: int) -> BoolArray:
    """Return which pixels [size, size] of the model frame strokes cover: round lines, their edge included."""
    image = Image.new("1", (size, size), 0)
    draw, scale = ImageDraw.Draw(image), size / MODEL_SIZE
    for stroke in strokes:
        radius = stroke.radius_px * scale
        points = [(float(x), float(y)) for x, y in stroke.points_xy * scale]
        draw.line(points, fill=1, width=max(1, round(2 * radius)))
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(image, np.bool_)


def damaged_input(film: LoadedFilm, settings: Settings, strokes: Sequence[Stroke]) -> FloatArray:
    """Return the network's input [S, S] with noise, then black where it was painted over; itself without either."""
    noisy = add_noise(film.pixels, settings.noise_sigma, film.seed) if settings.noise_sigma else film.pixels
    if not strokes:
        return noisy
    return np.where(painted(strokes, len(noisy)), np.float32(0), noisy)


def damaged_preview(film: LoadedFilm, settings: Settings, strokes: Sequence[Stroke]) -> Uint8Array:
    """Return the film as it is shown, uint8 [P, P]: with the noise that the network sees, and black where painted."""
    shown = film.preview
    if settings.noise_sigma:
        noise = 255 * (add_noise(film.pixels, settings.noise_sigma, film.seed) - film.pixels)
        enlarged = Image.fromarray(noise).resize(shown.shape[::-1], Image.Resampling.BILINEAR)
        shown = np.clip(np.rint(shown + np.asarray(enlarged)), 0, 255).astype(np.uint8)
    return np.where(painted(strokes, len(shown)), np.uint8(0), shown) if strokes else shown


def predict_film(
    film: LoadedFilm, settings: Settings, strokes: Sequence[Stroke], weights: Weights, device: torch.device
) -> pa.Table:
    """Return the row of a film with its damage: one row of the one table, in the film's own pixels.

    Raises
    ------
    DeviceMemoryError
        If the device has too little memory.
    """
    options = PredictOptions(settings.n_samples, SEED)
    pixels = damaged_input(film, settings, strokes)
    (samples,) = Predictor(weights, options, device).run([pixels], [film.seed])
    mean, std, mu, latent_sigma, features = (
        tensor[0].cpu().numpy()
        for tensor in (samples.mean, samples.std, samples.mu, samples.latent_sigma, samples.features)
    )
    prediction = Prediction(
        film.image,
        film.facts,
        film.frame,
        film.sha256,
        film.stamp,
        mean=mean,
        std=std,
        mu=mu,
        latent_sigma=latent_sigma,
        features=features,
        contrast=contour_contrast(pixels, mean),
        side_odds=side_odds(pixels),
    )
    return prediction_rows([prediction], weights, options, reference_of(weights.model_id))


def select_nodes(row: pa.Table, max_std_px: float) -> pa.Table:
    """Return a row with ``confident`` and ``usable``, as ``cxu filter --max-std`` adds them; it is never dropped."""
    sigma = table.list_column(row, "sigma_model_px")
    confident = confident_nodes(sigma, np.full(sigma.shape[1], max_std_px))
    chosen: Mapping[str, BoolArray] = {"confident": confident, "usable": usable_organs(confident)}
    for name, values in chosen.items():
        field = table.field_of(name)
        row = row.append_column(field, table.lists_from_numpy(values, field.type))
    return row
