"""Chest radiographs of any format as the model's input, and the way back from its frame to their own pixels.

What is read
------------
PNG, JPEG and TIFF by :mod:`cxu.images`, DICOM by :mod:`cxu.dicom`. Grey values are those of the file, brighter is
denser (air dark, bone bright); an EXIF orientation and transparency are ignored. Refused, each with a sentence: what is
no image, truncated, of several frames, in colour, above :data:`~cxu.images.MAX_PIXELS`, with a side below
:data:`MIN_SIDE`, with one side above :data:`MAX_ELONGATION` times the other; and without contrast, where not asked for.

Grey scaling
------------
The one scaling, for training and for prediction alike, is :func:`unit_grey`: linear between two limits, clipped. The
limits are the lowest and highest pixel after leaving out 0.5 % at either end, *twice*: first of all pixels, then of
those that lie further than 1/64 of the first range from its ends. The second step drops black padding, white borders,
saturated markers and their JPEG noise, which would else be the limits of many an image: a film's contrast then does not
depend on how it was framed. Where that leaves less than 1 % of the pixels, as in a drawing of two levels, the first
limits stay.

Negatives
---------
A film that is clearly a negative, lungs bright and what lies between them dark, is turned, and says so: DICOM files
with a wrong MONOCHROME tag and copies that lost theirs are common. What counts is :func:`chest_contrast`, the mean of
:func:`unit_grey` between the lungs less that in them, where the mean shape has them. It was 0.08 to 0.52 on 782 films
of six collections, so a value below −0.05 is no matter of chance.

Frames
------
The image is padded to a centred square, as the model frame of :mod:`cxu.frame`. Pixels that are not
square are drawn in their physical proportions; :class:`FilmFrame` has the way back.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt
from PIL.ImageFile import ImageFile as Picture

from cxu.anatomy import ORGANS
from cxu.catalog import Source
from cxu.dicom import modality, pixel_aspect, read_header, read_pixels, spacing_mm_xy, view_position
from cxu.errors import ImageError
from cxu.frame import MODEL_SIZE, FloatArray, ModelFrame, full_frame
from cxu.image_listing import ImageFile
from cxu.images import (
    DrawableArray,
    FileKind,
    GreyArray,
    draw_model_frame,
    file_kind,
    grey_frame,
    grey_values,
    open_image,
    open_picture,
)
from cxu.raster import fill_polygon
from cxu.shape import load_shape_model

MIN_SIDE: Final = 32
MAX_ELONGATION: Final = 4.0
# Of 255 levels. A small coloured annotation gives 1 to 5, dull photographs 15 and more.
MAX_COLOUR: Final = 10.0

_TAIL_PARTS: Final = 200  # 1/200, 0.5 % of the pixels, is left out at either end
_EDGE_PARTS: Final = 64
_MIN_INNER: Final = 0.01
_COLOUR_SAMPLE: Final = 1_000_000
_NEGATIVE: Final = -0.05
_CONTRAST_SIZE: Final = 64
_CONTRAST_SAMPLE: Final = 256  # pixels of the shorter side that are looked at, at least


@dataclass(frozen=True, eq=False)
class Film:
    """A radiograph as read.

    Attributes
    ----------
    grey
        [H, W], uint8, uint16 or float32, finite; brighter is denser.
    kind
        The file's format.
    spacing_mm_xy
        Distance of columns and of rows in mm, where the file says it (DICOM).
    aspect
        Height of a pixel over its width; 1 for square pixels.
    view
        The view as the file says it, such as ``PA``; None where it does not.
    modality
        The kind of device as the file says it, such as ``DX``; None where it does not.
    turned
        Whether the file held a negative.
    """

    grey: DrawableArray
    kind: FileKind
    spacing_mm_xy: tuple[float, float] | None = None
    aspect: float = 1.0
    view: str | None = None
    modality: str | None = None
    turned: bool = False

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.grey.shape
        return height, width

    @property
    def is_flat(self) -> bool:
        """Whether every pixel has the same value: there is nothing to be seen."""
        return bool(self.grey.min() == self.grey.max())


@dataclass(frozen=True)
class FilmFrame:
    """Where the model frame lies in an image whose pixels may not be square.

    Attributes
    ----------
    frame
        The frame in an image of square pixels with the same width: W × (H · aspect).
    aspect
        Height of a pixel over its width. Where it is 1, ``frame`` alone says everything.

    Examples
    --------
    >>> FilmFrame(ModelFrame(2048.0, (0.0, 0.0)), aspect=2.0).to_image(np.array([10.0, 10.0]))
    array([20., 10.])
    """

    frame: ModelFrame
    aspect: float = 1.0

    def to_image(self, points_xy: FloatArray) -> FloatArray:
        """Map points [..., 2] (x, y) from the model frame (1024) to the image's own pixels."""
        return self.frame.to_image(points_xy) / self._pixel_xy

    def to_model(self, points_xy: FloatArray) -> FloatArray:
        """Map points [..., 2] (x, y) from the image's own pixels to the model frame: inverse of :meth:`to_image`."""
        return self.frame.to_model(points_xy * self._pixel_xy)

    def sigma_to_image(self, sigma_xy: FloatArray) -> FloatArray:
        """Scale standard deviations [..., 2] (x, y) from the model frame to the image's own pixels."""
        return sigma_xy * (self.frame.scale / self._pixel_xy)

    def sigma_to_model(self, sigma_xy: FloatArray) -> FloatArray:
        """Scale standard deviations [..., 2] (x, y) from image pixels: the inverse of :meth:`sigma_to_image`."""
        return sigma_xy * (self._pixel_xy / self.frame.scale)

    @property
    def _pixel_xy(self) -> npt.NDArray[np.float64]:
        return np.array([1.0, self.aspect])


def read_film(file: ImageFile, *, even_flat: bool = False, turn: bool = True) -> Film:
    """Return the radiograph in a PNG, JPEG, TIFF or DICOM file.

    Parameters
    ----------
    file
        The image.
    even_flat
        Take an image of one grey value too, for the gate to reject.
    turn
        Turn a negative; else it stays as it is in the file.

    Raises
    ------
    ImageError
        If the file is missing, a folder, empty, no such image, damaged, truncated, too large or too small, too long,
        of several frames, in colour, without contrast, or compressed in a way for which no decoder is installed.
    """
    with open_image(file) as stream:
        kind = file_kind(file, stream)
        film = _dicom_film(file, stream) if kind == "DICOM" else _picture_film(file, stream, kind)
    if film.is_flat:
        if even_flat:
            return film
        raise ImageError(
            f"{file.name} has no contrast: every pixel is {film.grey.flat[0]}"
            f"{', after its window or LUT' if kind == 'DICOM' else ''}; expected a radiograph."
        )
    return _turned(film) if turn and is_negative(film) else film


def is_negative(film: Film) -> bool:
    """Tell whether a film is clearly a negative: the lungs bright, and what lies between them dark."""
    return chest_contrast(film) < _NEGATIVE


def chest_contrast(film: Film) -> float:
    """Return how much brighter a film is between the lungs than in them: −1 to 1, below 0 for a negative.

    The lungs are those of the mean shape, not the film's own.
    """
    step = max(min(film.grey.shape) // _CONTRAST_SAMPLE, 1)
    small = replace(film, grey=film.grey[::step, ::step])
    drawn = model_input(small, film_frame(small), _CONTRAST_SIZE)
    in_lungs, between = _chest_regions()
    return float(drawn[between].mean() - drawn[in_lungs].mean())


@functools.cache
def _chest_regions() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where the mean shape has lungs, and what lies between them, as masks of the model frame made small."""
    landmarks = load_shape_model().mean_xy * (_CONTRAST_SIZE / MODEL_SIZE)
    right, left, heart = (fill_polygon(landmarks[organ.nodes], (_CONTRAST_SIZE,) * 2).astype(bool) for organ in ORGANS)
    lungs = (right | left) & ~heart
    columns = np.arange(_CONTRAST_SIZE)
    inner_right = np.where(right, columns, -1).max(axis=1, keepdims=True)
    inner_left = np.where(left, columns, _CONTRAST_SIZE).min(axis=1, keepdims=True)
    rows = right.any(axis=1, keepdims=True) & left.any(axis=1, keepdims=True)
    return lungs, rows & (columns > inner_right) & (columns < inner_left) & ~lungs


def _turned(film: Film) -> Film:
    """Return the positive of a negative."""
    highest = 0 if film.grey.dtype == np.float32 else (1 << 8 * film.grey.dtype.itemsize) - 1
    return replace(film, grey=highest - film.grey, turned=True)


def grey_range(grey: DrawableArray) -> tuple[float, float]:
    """Return the grey values [H, W] that :func:`unit_grey` maps to 0 and 1; the module's text has the rule.

    Examples
    --------
    >>> grey_range(np.array([[10, 20], [20, 10]], np.uint8))
    (10.0, 20.0)
    """
    levels, counts = _levels(grey)
    low, high = _trimmed(levels, counts)
    if low == high:
        return float(levels[0]), float(levels[-1])
    is_inner = (_EDGE_PARTS * (levels - low) > high - low) & (_EDGE_PARTS * (high - levels) > high - low)
    if counts[is_inner].sum() >= _MIN_INNER * counts.sum():
        inner_low, inner_high = _trimmed(levels[is_inner], counts[is_inner])
        if inner_low < inner_high:
            return inner_low, inner_high
    return low, high


def unit_grey(grey: DrawableArray) -> npt.NDArray[np.float32]:
    """Return grey values [H, W] scaled to [0, 1] by the robust limits of :func:`grey_range`, clipped.

    The result is the same for ``a * grey + b`` with any positive a: bit depth, windows and offsets do not matter. It
    is mirrored for a negative one. An image of one level becomes zeros.

    Examples
    --------
    >>> unit_grey(np.array([[10, 20], [15, 10]], np.uint8))
    array([[0. , 1. ],
           [0.5, 0. ]], dtype=float32)
    """
    clipped, extent = _clipped(grey)
    return clipped.astype(np.float32) / extent


def film_frame(film: Film, source: Source | None = None) -> FilmFrame:
    """Return where the model frame lies in a film: padded to a centred square in physical proportions, not cropped.

    A source whose published frame is that of the cropped image keeps it, so that predictions and published rows have
    one frame; its crop is defined on PNG and JPEG copies, and a DICOM or TIFF is padded only.

    Examples
    --------
    >>> film_frame(Film(np.zeros((100, 300), np.uint8), "PNG"))
    FilmFrame(frame=ModelFrame(side=300.0, offset_xy=(0.0, -100.0), exact=True), aspect=1.0)
    """
    if source is not None and source.framing == "crop_pad" and film.kind in {"PNG", "JPEG"}:
        return FilmFrame(grey_frame(cast(GreyArray, film.grey), source))
    height, width = film.shape_hw
    return FilmFrame(full_frame(max(round(height * film.aspect), 1), width), film.aspect)


def model_input(film: Film, frame: FilmFrame, size: int) -> npt.NDArray[np.float32]:
    """Return a film as the model takes it: :func:`unit_grey` drawn into the model frame, [size, size] in [0, 1].

    Outside the film is 0. Clipping comes before drawing, as in :func:`unit_grey`, and the division after it: that is
    the same up to float32's rounding, since drawing is linear, and works on fewer pixels.

    Raises
    ------
    UsageError
        If ``size`` is not positive.
    """
    clipped, extent = _clipped(film.grey)
    drawn = draw_model_frame(clipped, frame.frame, size, aspect=frame.aspect)
    drawn /= extent
    return np.minimum(drawn, 1, out=drawn)


def _clipped(grey: DrawableArray) -> tuple[DrawableArray, np.float32]:
    """Return grey values clipped to their range and counted from its low end, in their own type, and the range."""
    low, high = grey_range(grey)
    first, last = np.array([low, high]).astype(grey.dtype)  # exact: both are values of the image
    clipped = np.clip(grey, first, last)
    np.subtract(clipped, first, out=clipped)
    return cast(DrawableArray, clipped), np.float32((last - first) or 1)


def _levels(grey: DrawableArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.integer]]:
    """Return the distinct values, ascending, and how often each occurs."""
    if grey.dtype == np.float32:
        values, counts = np.unique(grey, return_counts=True)
        return values.astype(np.float64), counts
    histogram = np.zeros(1 << 8 * grey.dtype.itemsize, np.int64)
    flat = grey.ravel()
    for start in range(0, flat.size, 1 << 18):  # measured: bincount makes 8 bytes a pixel; pieces stay in the cache
        histogram += np.bincount(flat[start : start + (1 << 18)], minlength=len(histogram))
    occurring = np.flatnonzero(histogram)
    return occurring.astype(np.float64), histogram[occurring]


def _trimmed(levels: npt.NDArray[np.float64], counts: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Return the lowest and highest value after leaving out the same number of pixels at either end."""
    ranks = counts.cumsum()
    total = int(ranks[-1])
    tail = (total - 1) // _TAIL_PARTS
    low, high = np.searchsorted(ranks, [tail, total - 1 - tail], side="right")
    return float(levels[low]), float(levels[high])


def _dicom_film(file: ImageFile, stream: BinaryIO) -> Film:
    header = read_header(file, stream)
    aspect = pixel_aspect(header)
    _refuse_shape(file, int(header.Rows), int(header.Columns), aspect)
    return Film(
        read_pixels(file, stream), "DICOM", spacing_mm_xy(header), aspect, view_position(header), modality(header)
    )


def _picture_film(file: ImageFile, stream: BinaryIO, kind: FileKind) -> Film:
    picture = open_picture(file, stream, kind)
    _refuse_shape(file, picture.height, picture.width, 1.0)
    frames = getattr(picture, "n_frames", 1)
    if frames != 1:
        raise ImageError(f"{file.name} has {frames} frames or pages; expected one. Save the one you mean by itself.")
    _refuse_colour(file, picture)
    return Film(grey_values(file, picture), kind)


def _refuse_shape(file: ImageFile, height: int, width: int, aspect: float) -> None:
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{file.name} is too small: {width} × {height} px; expected at least {MIN_SIDE} px a side.")
    elongation = max(width / (height * aspect), height * aspect / width)
    if elongation > MAX_ELONGATION:
        raise ImageError(
            f"{file.name} is no whole radiograph: {width} × {height} px"
            f"{'' if aspect == 1 else f' of aspect {aspect:.3g}'}, one side {elongation:.1f} times the other; "
            f"expected at most {MAX_ELONGATION:g} times."
        )


def _refuse_colour(file: ImageFile, picture: Picture) -> None:
    """Refuse a picture whose channels differ: a photograph, not a film that was saved as RGB."""
    if picture.mode in {"1", "L", "LA", "F"} or picture.mode.startswith("I"):
        return
    step = max(math.isqrt(picture.width * picture.height // _COLOUR_SAMPLE), 1)
    red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"))[::step, ::step], -1, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if spread.mean() > MAX_COLOUR:
        raise ImageError(
            f"{file.name} is a colour image: the channels of a pixel differ by {spread.mean():.0f} of 255 levels on "
            f"average; expected a grey radiograph, at most {MAX_COLOUR:g}. If it is one, save it as grey."
        )
