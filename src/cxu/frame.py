"""Image pixels ⇄ model frame.

The model frame is a square of 1024 px. An image gets there by an optional crop to its content (MIMIC and PadChest), a
centred zero pad to a square (the odd pixel at the end) and a resize. Per axis, for published landmarks,

    x_image = x_model * side / 1024 - pad_left + crop_left

and standard deviations only scale. Pixel centres stand at integers in both frames; there is no half-pixel term.

Source: CheXmask-U's preprocessing as described in the paper's section on data; see ``docs/format.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

MODEL_SIZE: Final = 1024
CROP_THRESHOLD: Final = 1  # a pixel counts as content when its 8-bit grey is above this


class Box(NamedTuple):
    """A rectangle in image pixels: ``left``, ``top`` included, ``right``, ``bottom`` excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns covered."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows covered."""
        return self.bottom - self.top


@dataclass(frozen=True)
class ModelFrame:
    """Where the model frame lies in an image.

    Attributes
    ----------
    side
        Side of the padded square, in image pixels.
    offset_xy
        Position of the square's origin in the image, in pixels (negative where the image was padded).
    exact
        False where the position is assumed rather than known.
    """

    side: float
    offset_xy: tuple[float, float]
    exact: bool = True

    @property
    def scale(self) -> float:
        """Image pixels per model-frame pixel."""
        return self.side / MODEL_SIZE

    def to_image(self, points_xy: FloatArray) -> FloatArray:
        """Map points [..., 2] (x, y) from the model frame to image pixels.

        Examples
        --------
        >>> ModelFrame(2048.0, (-100.0, 0.0)).to_image(np.array([[50.0, 10.0]]))
        array([[ 0., 20.]])
        """
        return points_xy * self.scale + np.asarray(self.offset_xy)

    def to_model(self, points_xy: FloatArray) -> FloatArray:
        """Map points [..., 2] (x, y) from image pixels to the model frame: the inverse of :meth:`to_image`."""
        return (points_xy - np.asarray(self.offset_xy)) / self.scale


def crop_box(grey: npt.NDArray[np.integer]) -> Box:
    """Return the bounding box of the content of a grey image [H, W]: 8-bit pixels above 1.

    A 16-bit image counts as ``value >> 8``. An image without content keeps its full box.

    Examples
    --------
    >>> image = np.zeros((4, 5), np.uint8); image[1:3, 2] = 9
    >>> crop_box(image)
    Box(left=2, top=1, right=3, bottom=3)
    """
    content = grey > (CROP_THRESHOLD if grey.dtype.itemsize == 1 else (CROP_THRESHOLD << 8) | 0xFF)
    rows, columns = np.flatnonzero(content.any(axis=1)), np.flatnonzero(content.any(axis=0))
    height, width = grey.shape
    if rows.size == 0:
        return Box(0, 0, width, height)
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def padded_frame(box: Box, *, exact: bool = True) -> ModelFrame:
    """Return the model frame of the image part ``box``: the centred square around it, odd pixel at the end.

    Examples
    --------
    >>> padded_frame(Box(0, 0, 3, 6))
    ModelFrame(side=6.0, offset_xy=(-1.0, 0.0), exact=True)
    """
    side = max(box.width, box.height)
    pad_left, pad_top = (side - box.width) // 2, (side - box.height) // 2
    return ModelFrame(float(side), (float(box.left - pad_left), float(box.top - pad_top)), exact)


def full_frame(height: int, width: int, *, exact: bool = True) -> ModelFrame:
    """Return the model frame of a whole image of ``height`` × ``width`` px, padded but not cropped."""
    return padded_frame(Box(0, 0, width, height), exact=exact)
