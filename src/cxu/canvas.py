"""What pictures are drawn with: colours, a canvas, lines, dots and type. Pillow and numpy only, no display.

Pictures are drawn three times larger and reduced, so lines are smooth and the same input gives the same bytes. Lengths
are shares of a picture's size: a picture drawn small and one made smaller look alike.

Uncertainty goes from blue over pink to yellow, ever lighter, so that it keeps its order in print and for every kind of
colour vision.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

FloatArray = npt.NDArray[np.floating]
Uint8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# twice the median uncertainty of the bundled weights, and of the most uncertain films of the published ones
DEFAULT_VMAX_PX: Final = 24.0

# Evenly rising lightness (48 to 93 of 100), hues from blue over pink to yellow.
_SIGMA_STOPS: Final = (
    (36, 114, 204),
    (122, 117, 214),
    (180, 117, 214),
    (230, 119, 192),
    (255, 132, 168),
    (255, 150, 141),
    (255, 178, 117),
    (255, 206, 110),
    (255, 236, 118),
)
PAPER: Final[Colour] = (22, 24, 28)
BLANK: Final[Colour] = (34, 37, 43)  # where there is no image
INK: Final[Colour] = (240, 241, 243)
SOFT_INK: Final[Colour] = (168, 172, 180)
GREY: Final[Colour] = (172, 176, 184)
HALO: Final[Colour] = (14, 15, 18)

SUPERSAMPLE: Final = 3
_TITLE: Final = 0.056  # shares of a picture's width
_SUBTITLE: Final = 0.048
_LEAST_TITLE_PX: Final = 11  # smaller type is not read: a text that is still too long is shortened


def sigma_colours(sigma_px: FloatArray, *, vmax_px: float = DEFAULT_VMAX_PX) -> Uint8Array:
    """Return the colour uint8 [..., 3] (RGB) of standard deviations [...], px, on a scale from 0 to ``vmax_px``.

    Values beyond the scale take the colour of its end; those that are not finite are grey.

    Examples
    --------
    >>> sigma_colours(np.array([0.0, 99.0]), vmax_px=15).tolist()
    [[36, 114, 204], [255, 236, 118]]
    """
    sigma = np.asarray(sigma_px, np.float64)
    stops = np.array(_SIGMA_STOPS, np.float64)
    known = np.isfinite(sigma)
    position = np.clip(np.where(known, sigma, 0.0) / vmax_px, 0.0, 1.0) * (len(stops) - 1)
    channels = [np.interp(position, np.arange(len(stops)), channel) for channel in stops.T]
    rgb = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return np.where(known[..., None], rgb, np.array(GREY, np.uint8))


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture in the making, three times as large; ``side`` is its longer side in canvas px."""

    image: Image.Image
    side: int
    frame_hw: tuple[int, int]
    stroke: float = 1.0

    @classmethod
    def blank(cls, size: int, frame_hw: tuple[int, int], stroke: float, colour: Colour = BLANK) -> Canvas:
        """Return an empty canvas for a square picture of ``size`` px that shows a frame of ``frame_hw`` px."""
        side = size * SUPERSAMPLE
        return cls(Image.new("RGB", (side, side), colour), side, frame_hw, stroke)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Where the frame lies in the square: left, top, right, bottom."""
        height, width = (round(side * self.side / max(self.frame_hw)) for side in self.frame_hw)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        return left, top, left + width, top + height

    @property
    def scale(self) -> float:
        """Canvas px of a pixel of the frame."""
        return self.side / max(self.frame_hw)

    def place(self, points_xy: FloatArray) -> FloatArray:
        """Return points [..., 2] of the frame in canvas px; pixel centres stand at integers in both."""
        return (np.asarray(points_xy, np.float64) + 0.5) * self.scale + self.box[:2] - 0.5

    def width(self, share: float) -> int:
        """Return a length in canvas px, never less than one finished pixel."""
        return max(SUPERSAMPLE, round(share * self.side))

    def stroke_width(self, share: float) -> int:
        """Return the width of a line in canvas px, never less than one finished pixel."""
        return self.width(share * self.stroke)

    def finished(self, *, trim: bool = False) -> Image.Image:
        """Return the picture, square, or with ``trim`` only the part that shows the frame."""
        picture = self.image.reduce(SUPERSAMPLE)
        if not trim:
            return picture
        left, top, right, bottom = (round(edge / SUPERSAMPLE) for edge in self.box)
        return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def as_points(ring: FloatArray) -> list[tuple[float, float]]:
    """Return points [N, 2] as Pillow takes them."""
    return [(float(x), float(y)) for x, y in ring]


def as_colour(rgb: Uint8Array) -> Colour:
    """Return a colour [3] as Pillow takes it."""
    red, green, blue = rgb.tolist()
    return red, green, blue


def disc_box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Return the box of a disc around (x, y): left, top, right, bottom."""
    return x - radius, y - radius, x + radius, y + radius


def draw_dots(image: Image.Image, nodes: FloatArray, radius: float, colours: Uint8Array | None = None) -> None:
    """Draw a disc at each node [N, …] (x, y first) in its colour [N, 3], or dark."""
    draw = ImageDraw.Draw(image)
    for index, (x, y) in enumerate(nodes[:, :2].tolist()):
        draw.ellipse(disc_box(x, y, radius), fill=HALO if colours is None else as_colour(colours[index]))


def draw_pieces(image: Image.Image, pieces: FloatArray, width: int, colours: Uint8Array | None = None) -> None:
    """Draw open lines [P, K, …] (x, y first) with round ends in their colours [P, 3], or dark.

    The ends come first: drawn with its line, each would cover the end of the line before.
    """
    ends = pieces[:, [0, -1]].reshape(-1, pieces.shape[2])
    draw_dots(image, ends, width / 2 - 0.5, None if colours is None else np.repeat(colours, 2, axis=0))
    draw = ImageDraw.Draw(image)
    for index, piece in enumerate(pieces):
        colour = HALO if colours is None else as_colour(colours[index])
        draw.line(as_points(piece[:, :2]), fill=colour, width=width, joint="curve")


@functools.lru_cache(maxsize=8)
def hatch_mask(side: int, pitch: int, shift: int = 0) -> Image.Image:
    """Return diagonal lines as a mask of ``side`` px, ``shift`` px further on."""
    steps = np.arange(side)
    lines = (steps[:, None] + steps - shift) % pitch < max(1, pitch // 4)
    return Image.fromarray(np.where(lines, 255, 0).astype(np.uint8))


def add_caption(picture: Image.Image, title: str, subtitle: str) -> Image.Image:
    """Return ``picture`` with a title and a smaller subtitle below it; itself where both are empty."""
    if not title and not subtitle:
        return picture
    width = picture.width - 2
    large = fitting_font(title, max(_LEAST_TITLE_PX, round(picture.width * _TITLE)), width)
    small = fitting_font(subtitle, max(_LEAST_TITLE_PX, round(picture.width * _SUBTITLE)), width)
    lines = [(title, large, INK), (subtitle, small, SOFT_INK)]
    lines = [(text, font, colour) for text, font, colour in lines if text]
    # of the size that a short text has: captions side by side stand on one line
    heights = [round(1.35 * picture.width * share) for text, share in ((title, _TITLE), (subtitle, _SUBTITLE)) if text]
    captioned = Image.new("RGB", (picture.width, picture.height + sum(heights) + 4), PAPER)
    captioned.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(captioned), picture.height + 4
    for (text, font, colour), height in zip(lines, heights, strict=True):
        draw.text((1, top + height // 2), shorten_text(text, font, width), colour, font, anchor="lm")
        top += height
    return captioned


@functools.lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own typeface at ``size`` px. It lacks Greek letters and most mathematical signs."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


def fitting_font(text: str, size: int, width: float) -> ImageFont.FreeTypeFont:
    """Return the typeface at ``size`` px, or smaller where ``text`` would not fit, down to what can be read."""
    while size > _LEAST_TITLE_PX and load_font(size).getlength(text) > width:
        size -= 1
    return load_font(size)


def shorten_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return ``text`` with as much of its middle replaced by an ellipsis as it takes to fit."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = math.ceil(kept / 2)
        shorter = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "…"
