"""One row of a table → its picture: the film it belongs to, its outlines there, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from cxu import criteria, films, images, table
from cxu.anatomy import N_NODES, N_ORGANS
from cxu.films import Film
from cxu.image_listing import ImageFile
from cxu.masks import Placement
from cxu.overlay import TINT, draw_overlay
from cxu.pictureplan import TILE_PX, PictureOptions
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
Uint8Array = npt.NDArray[np.uint8]

COLUMNS: Final = (
    *KEY_COLUMNS,
    "frame_side",
    "landmarks_xy",
    "sigma_xy",
    "sigma_model_px",
    "mean_sigma_model_px",
    "radius90_px",
    "confident",
    "usable",
    "quality",
    "quality_reason",
)
_STROKE: Final = 0.75  # thin enough for the band to be seen
_STROKE_PX: Final = 450.0  # a larger picture is looked at for where the contour lies: its lines grow no further


@dataclass(frozen=True, eq=False)
class RowPicture:
    """What of a row is drawn.

    Attributes
    ----------
    key
        Its id and frame.
    landmarks_xy, sigma_xy
        float32 [120, 2] px of the frame; sigma NaN where unknown.
    radius_px
        Calibrated radius [120], px of the frame; NaN where unknown.
    sigma_model_px, radius_model_px
        Node uncertainty and calibrated radius [120], px of the model frame; NaN where unknown.
    confident, usable
        bool [120], bool [3].
    score_px
        Image score; NaN where unknown.
    verdict
        What the gate says, where it is not ``ok``, and why.
    """

    key: RowKey
    landmarks_xy: FloatArray
    sigma_xy: FloatArray
    radius_px: FloatArray
    sigma_model_px: FloatArray
    radius_model_px: FloatArray
    confident: BoolArray
    usable: BoolArray
    score_px: float
    verdict: tuple[str, ...]

    @classmethod
    def all_of(cls, rows: pa.Table) -> list[Self]:
        """Return what is drawn of each row of a table with the columns :data:`COLUMNS`."""
        verdicts = [
            () if quality in (None, "ok") else (quality, *([reason] if reason else []))
            for quality, reason in zip(rows["quality"].to_pylist(), rows["quality_reason"].to_pylist(), strict=True)
        ]
        columns = (
            RowKey.all_of(rows),
            table.landmarks_of(rows),
            table.sigmas_of(rows),
            table.list_column(rows, "radius90_px"),
            table.list_column(rows, "sigma_model_px"),
            criteria.node_radius(rows, "model"),
            table.confident_of(rows),
            table.usable_of(rows),
            table.scalar_column(rows, "mean_sigma_model_px"),
            verdicts,
        )
        return [cls(*values) for values in zip(*columns, strict=True)]

    def facts(self, *, drops: bool, short: bool = False) -> str:
        """Return the row in a line: score, what a filter left of it, verdict of the gate."""
        confident, usable = self.confident.sum(), self.usable.sum()
        score = [] if np.isnan(self.score_px) else [f"{self.score_px:.1f} px"]
        if short:
            parts = [f"score {text}" for text in score]
            parts += [f"{confident}/{N_NODES} nodes", f"{usable}/{N_ORGANS} organs"] if drops else []
            return " · ".join([*parts, *self.verdict[:1]])
        parts = [f"image score (mean uncertainty) {text}" for text in score]
        parts += [f"{confident} of {N_NODES} nodes confident, {usable} of {N_ORGANS} organs usable"] if drops else []
        return " · ".join([*parts, *([": ".join(self.verdict)] if self.verdict else [])])


def draw_row(
    row: RowPicture,
    image: ImageFile | None,
    options: PictureOptions,
    target: Target,
    *,
    title: str = "",
    subtitle: str = "",
    trim: bool = False,
) -> tuple[Image.Image, bool]:
    """Draw a row over its image, or, where no images were given, on a blank frame.

    Parameters
    ----------
    row, image
        The row and its image.
    options, target
        How, and in whose pixels.
    title, subtitle, trim
        See :func:`cxu.overlay.draw_overlay`.

    Returns
    -------
    picture, exact
        The picture; and False where the row's position in its image is assumed.

    Raises
    ------
    ImageError, FormatError
        As :func:`cxu.placing.place_row` and :func:`cxu.films.read_film`.
    """
    placement = place_row(row.key, image, target)
    film = None if image is None else films.read_film(image, even_flat=True)
    # pixels that are not square are drawn in their proportions
    aspect = 1.0 if film is None else film.aspect
    height, width = placement.shape_hw
    size = options.side_px
    picture = draw_overlay(
        None if film is None else grey_levels(film),
        placement.points(row.landmarks_xy) * (1.0, aspect),
        colour_values(row, options),
        frame_hw=(max(round(height * aspect), 1), width),
        confident=row.confident,
        usable=row.usable,
        band_px=_half_widths(row, options, placement, aspect),
        size=size,
        title=title,
        subtitle=subtitle,
        vmax_px=options.scale_px,
        stroke=min(_STROKE, _STROKE_PX / size),
        tint=min(TINT, TINT * (TILE_PX / size) ** 0.75),
        trim=trim,
    )
    return picture, placement.exact


def colour_values(row: RowPicture, options: PictureOptions) -> FloatArray | None:
    """Return what the outlines are coloured by [120]; None for the organs' colours."""
    values = {"sigma": row.sigma_model_px, "radius": row.radius_model_px, "organ": None}[options.colour]
    return None if values is None or np.isnan(values).any() else values


def _half_widths(row: RowPicture, options: PictureOptions, placement: Placement, aspect: float) -> FloatArray:
    """Return the half-width [120] of the band, px of what is drawn; NaN where unknown."""
    if options.colour == "radius":
        return options.band * row.radius_px * float(np.mean(np.multiply(placement.scale_xy, (1.0, aspect))))
    return options.band * table.node_uncertainty(placement.sigmas(row.sigma_xy) * (1.0, aspect))


def grey_levels(film: Film) -> Uint8Array:
    """Return a film's grey values uint8 [H, W], scaled as the network sees them (:func:`cxu.films.unit_grey`)."""
    if film.grey.dtype == np.float32:
        return np.rint(films.unit_grey(film.grey) * 255).astype(np.uint8)
    # through a table of all levels: a film may have 80 million pixels
    low, high = films.grey_range(film.grey)
    levels = np.arange(1 << 8 * film.grey.dtype.itemsize, dtype=np.float64)
    grey = np.rint(np.clip((levels - low) / ((high - low) or 1.0), 0.0, 1.0) * 255).astype(np.uint8)
    return np.take(grey, cast(images.GreyArray, film.grey))
