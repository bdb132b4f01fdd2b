"""Where a crop lies in its image: margin, edge, square, size. Pure.

The order is fixed: the box of the organs gets its margin, what then lies outside the image is cut off, and only that
becomes a square. A square is moved before it is padded, so black comes in only where the image is smaller than it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from cxu.errors import UsageError
from cxu.frame import Box

Pixels = TypeVar("Pixels", bound=np.generic)

_MOST_PERCENT: Final = 1000.0
_MOST_PX: Final = 100_000
_MOST_SIZE: Final = 8192
_MARGIN: Final = re.compile(r"(\d+(?:\.\d+)?) ?(%|px)?", re.ASCII)


@dataclass(frozen=True)
class Margin:
    """What is added on each side of a box.

    Attributes
    ----------
    percent
        Percent of the box's width at the left and the right, of its height above and below.
    px
        Pixels of the image, on top of that.
    """

    percent: float = 0.0
    px: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.percent <= _MOST_PERCENT and 0 <= self.px <= _MOST_PX):
            raise UsageError(f"--margin {self}: expected 0 to {_MOST_PERCENT:g}%, or 0 to {_MOST_PX:,} px")

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else f"{self.px}px"

    def of(self, length: int) -> int:
        """Return the whole pixels that are added on either side of ``length`` px, halves rounded up.

        Examples
        --------
        >>> Margin(percent=5).of(30), Margin(px=20).of(30)
        (2, 20)
        """
        return math.floor(length * self.percent / 100 + 0.5) + self.px


def parse_margin(text: str) -> Margin:
    """Return the margin that ``5%``, ``20`` or ``20px`` means.

    Raises
    ------
    UsageError
        If it is none of these, or too large.

    Examples
    --------
    >>> parse_margin("5%"), parse_margin("20px")
    (Margin(percent=5.0, px=0), Margin(percent=0.0, px=20))
    """
    match = _MARGIN.fullmatch(text.strip())
    if not match or (match[2] != "%" and "." in match[1]):
        raise UsageError(
            f"--margin {text!r}: expected a percentage of the box such as 5%, or whole pixels of the image such as 20px"
        )
    if match[2] == "%":
        return Margin(percent=float(match[1]))
    return Margin(px=int(match[1]))


@dataclass(frozen=True)
class CropShape:
    """What a crop's box becomes.

    Attributes
    ----------
    margin
        Added on each side.
    square
        Grow the shorter side to the longer one.
    size
        Longer side of the crop as written, px; None leaves the pixels of the image as they are.
    """

    margin: Margin = Margin()
    square: bool = False
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= _MOST_SIZE:
            raise UsageError(f"--size {self.size}: expected 1 to {_MOST_SIZE:,} px, the longer side of a crop")


@dataclass(frozen=True)
class Region:
    """Where a crop lies in its image, and how large it is written.

    Attributes
    ----------
    tight
        The box of the organs, px of the image.
    box
        What is cut out, px of the image; of a padded square, parts lie outside the image.
    shape_hw
        Height and width of the crop as written.
    clipped
        Whether the margin reached over an edge of the image, and was cut off there.
    padded
        Whether the image is smaller than the square: the rest is black.
    """

    tight: Box
    box: Box
    shape_hw: tuple[int, int]
    clipped: bool
    padded: bool

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Pixels of the crop per pixel of the image, on either axis."""
        return self.shape_hw[1] / self.box.width, self.shape_hw[0] / self.box.height


def place_crop(tight: Box, image_hw: tuple[int, int], shape: CropShape) -> Region:
    """Return where a crop lies around what fills ``tight``, a box of at least a pixel within an image of ``image_hw``.

    Examples
    --------
    >>> region = place_crop(Box(2, 10, 42, 30), (60, 50), CropShape(Margin(px=4), square=True))
    >>> region.box, region.clipped, region.shape_hw
    (Box(left=0, top=0, right=46, bottom=46), True, (46, 46))
    """
    wanted = with_margin(tight, shape.margin)
    box = clip_box(wanted, image_hw)
    clipped = box != wanted
    if shape.square:
        box = square_box(box, image_hw)
    return Region(tight, box, _size_of(box, shape.size), clipped, padded=clip_box(box, image_hw) != box)


def with_margin(box: Box, margin: Margin) -> Box:
    """Return a box grown on each side; it may reach out of the image."""
    across, along = margin.of(box.width), margin.of(box.height)
    return Box(box.left - across, box.top - along, box.right + across, box.bottom + along)


def clip_box(box: Box, image_hw: tuple[int, int]) -> Box:
    """Return the part of a box that lies in an image of ``image_hw`` px (height, width)."""
    height, width = image_hw
    return Box(max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))


def square_box(box: Box, image_hw: tuple[int, int]) -> Box:
    """Return the square that holds a box: the box in its middle, the odd pixel at the end, as far as the image goes.

    At an edge the square is moved into the image. Where the image is smaller than the square, the square holds the
    image's whole side and reaches beyond it.

    Examples
    --------
    >>> square_box(Box(0, 10, 10, 30), (40, 40))
    Box(left=0, top=10, right=20, bottom=30)
    >>> square_box(Box(0, 0, 10, 30), (30, 12))
    Box(left=-10, top=0, right=20, bottom=30)
    """
    side = max(box.width, box.height)
    left = _start(box.left, box.width, side, image_hw[1])
    top = _start(box.top, box.height, side, image_hw[0])
    return Box(left, top, left + side, top + side)


def _start(low: int, length: int, side: int, available: int) -> int:
    """Return where a side begins that holds ``length`` px from ``low`` on, within 0 to ``available`` or around it."""
    first, last = sorted((0, available - side))
    return min(max(low - (side - length) // 2, first), last)


def _size_of(box: Box, size: int | None) -> tuple[int, int]:
    if size is None:
        return box.height, box.width
    scale = size / max(box.width, box.height)
    return max(1, round(box.height * scale)), max(1, round(box.width * scale))


def cut_out(image: npt.NDArray[Pixels], box: Box) -> npt.NDArray[Pixels]:
    """Return the pixels [h, w] of an image [H, W] in a box: a copy, 0 where the box lies outside the image."""
    inner = clip_box(box, (image.shape[0], image.shape[1]))
    cut: npt.NDArray[Any] = np.zeros((box.height, box.width), image.dtype)
    if inner.width > 0 and inner.height > 0:
        rows = slice(inner.top - box.top, inner.bottom - box.top)
        columns = slice(inner.left - box.left, inner.right - box.left)
        cut[rows, columns] = image[inner.top : inner.bottom, inner.left : inner.right]
    return cut
