"""Pictures of landmarks: outlines coloured by uncertainty over an image.

Pillow and numpy only: no display, no plotting library. Pictures are drawn three times larger and reduced, so lines are
smooth and the same input gives the same bytes. Lengths are shares of a picture's size: a picture drawn small and one
made smaller look alike.

Colours: organs as in :mod:`cxu.anatomy`; uncertainty from blue over pink to yellow, ever lighter, so that it keeps
its order in print and for every kind of colour vision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFont

from cxu.anatomy import IGNORE_LABEL, N_NODES, N_ORGANS, ORGANS
from cxu.errors import UsageError
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
Uint8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_Paint = Callable[[FloatArray], Uint8Array]

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
_FRAME: Final[Colour] = (34, 37, 43)  # where there is no image
INK: Final[Colour] = (240, 241, 243)
SOFT_INK: Final[Colour] = (168, 172, 180)
GREY: Final[Colour] = (172, 176, 184)
HALO: Final[Colour] = (14, 15, 18)

SUPERSAMPLE: Final = 3
_TINT: Final = 82  # of 255
_IGNORE_TINT: Final = 46
_HATCH: Final = 105
# shares of a picture's size
_LINE: Final = 0.0095
_RIM: Final = 0.003
_DOT: Final = 0.0088  # radii: of a confident node, a dropped one, and its hole
_RING: Final = 0.0125
_HOLE: Final = 0.0068
_HATCH_PITCH: Final = 0.019
_DASH: Final = 0.036
_DASH_SHARE: Final = 0.4  # of a dash and its gap, less the round ends
_STEPS: Final = 6  # pieces of an edge, each of one colour


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
class _Canvas:
    """A picture in the making, three times as large; ``side`` is its longer side in canvas px."""

    image: Image.Image
    side: int
    frame_hw: tuple[int, int]
    stroke: float = 1.0

    @classmethod
    def blank(cls, size: int, frame_hw: tuple[int, int], stroke: float, colour: Colour = _FRAME) -> _Canvas:
        side = size * SUPERSAMPLE
        return cls(Image.new("RGB", (side, side), colour), side, frame_hw, stroke)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Where the frame lies in the square: left, top, right, bottom."""
        height, width = (round(side * self.side / max(self.frame_hw)) for side in self.frame_hw)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        return left, top, left + width, top + height

    def place(self, points_xy: FloatArray) -> FloatArray:
        """Return points [..., 2] of the frame in canvas px; pixel centres stand at integers in both."""
        scale = self.side / max(self.frame_hw)
        return (np.asarray(points_xy, np.float64) + 0.5) * scale + self.box[:2] - 0.5

    def width(self, share: float) -> int:
        """Return a length in canvas px, never less than one finished pixel."""
        return max(SUPERSAMPLE, round(share * self.side))

    def stroke_width(self, share: float) -> int:
        """Return the width of a line in canvas px, never less than one finished pixel."""
        return self.width(share * self.stroke)

    def finished(self) -> Image.Image:
        return self.image.reduce(SUPERSAMPLE)


def draw_overlay(
    background: Uint8Array | None,
    landmarks_xy: FloatArray,
    sigma_px: FloatArray | None = None,
    *,
    frame_hw: tuple[int, int] = (MODEL_SIZE, MODEL_SIZE),
    confident: BoolArray | None = None,
    usable: BoolArray | None = None,
    labels: Uint8Array | None = None,
    size: int = 320,
    title: str = "",
    subtitle: str = "",
    vmax_px: float = DEFAULT_VMAX_PX,
    stroke: float = 1.0,
) -> Image.Image:
    """Draw one row's outlines over its image.

    Organs are tinted in their colours, ignored pixels hatched. Outlines take the colour of the uncertainty along
    them. Confident nodes are filled dots, dropped ones larger and hollow. The outline of an unusable organ is dashed
    and shows its dropped nodes only.

    Parameters
    ----------
    background
        Image uint8 [H, W] that shows ``frame_hw`` at any resolution; None for a plain dark field.
    landmarks_xy
        [120, 2] (x, y), px of ``frame_hw``. An organ with a NaN is left out.
    sigma_px
        Node uncertainty [120], px of the 1024 model frame; None draws outlines in the organs' colours,
        an unusable one's in grey.
    frame_hw
        Height and width of the pixels that the landmarks are in.
    confident
        bool [120]; None where nothing was filtered: no node is marked as dropped.
    usable
        bool [3] in the order of the organs; None for all.
    labels
        Mask uint8 [h, w] of the label format (255 ignore) over the same frame, at any resolution. None tints the
        outlines' insides, an unusable organ's as ignored.
    size
        Side of the picture in px; the caption comes below it. A frame that is not square is centred.
    title, subtitle
        Caption, shortened in its middle to fit; without both there is no caption.
    vmax_px
        End of the uncertainty scale.
    stroke
        Width of lines and dots relative to those that suit a small picture.

    Returns
    -------
    RGB picture, ``size`` px wide.

    Raises
    ------
    UsageError
        If an array has another shape than stated.
    """
    confident_or_all = np.ones(N_NODES, np.bool_) if confident is None else confident
    usable_or_all = np.ones(N_ORGANS, np.bool_) if usable is None else usable
    sigma = np.full(N_NODES, np.nan) if sigma_px is None else sigma_px
    _check_shapes(landmarks_xy, sigma, confident_or_all, usable_or_all)
    canvas = _Canvas.blank(size, frame_hw, stroke)
    _paint_background(canvas, background)
    _paint_labels(canvas, _label_image(canvas, labels, landmarks_xy, usable_or_all))
    for organ, organ_usable in zip(ORGANS, usable_or_all, strict=True):
        ring = canvas.place(landmarks_xy[organ.nodes])
        if np.isfinite(ring).all():
            nodes = np.column_stack([ring, sigma[organ.nodes]])
            plain = organ.colour_rgb if organ_usable else GREY
            paint = functools.partial(_paint_nodes, plain=None if sigma_px is not None else plain, vmax_px=vmax_px)
            _draw_ring(canvas, nodes, paint, confident_or_all[organ.nodes], dashed=not organ_usable)
    return add_caption(canvas.finished(), title, subtitle)


def _check_shapes(landmarks_xy: FloatArray, sigma_px: FloatArray, confident: BoolArray, usable: BoolArray) -> None:
    wanted = (("landmarks_xy", landmarks_xy, (N_NODES, 2)), ("sigma_px", sigma_px, (N_NODES,)))
    for name, array, shape in (*wanted, ("confident", confident, (N_NODES,)), ("usable", usable, (N_ORGANS,))):
        if np.shape(array) != shape:
            raise UsageError(f"{name} has shape {np.shape(array)}; expected {shape}")


def _paint_background(canvas: _Canvas, background: Uint8Array | None) -> None:
    if background is None:
        return
    left, top, right, bottom = canvas.box
    grey = Image.fromarray(background).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    canvas.image.paste(grey.convert("RGB"), (left, top))


def _label_image(
    canvas: _Canvas, labels: Uint8Array | None, landmarks_xy: FloatArray, usable: BoolArray
) -> Image.Image:
    """Return the mask at the canvas's size, drawn from the outlines where there is none."""
    image = Image.new("L", (canvas.side, canvas.side), 0)
    if labels is not None:
        left, top, right, bottom = canvas.box
        drawn = Image.fromarray(labels).resize((right - left, bottom - top), Image.Resampling.NEAREST)
        image.paste(drawn, (left, top))
        return image
    for organ, organ_usable in zip(ORGANS, usable, strict=True):
        ring = canvas.place(landmarks_xy[organ.nodes])
        if np.isfinite(ring).all():
            value = organ.label if organ_usable else IGNORE_LABEL
            ImageDraw.Draw(image).polygon(_points(ring), fill=value)
    return image


def _paint_labels(canvas: _Canvas, labels: Image.Image) -> None:
    """Tint the organs of a label image, hatch what is ignored."""
    for organ in ORGANS:
        canvas.image.paste(organ.colour_rgb, mask=_where(labels, organ.label, _TINT))
    ignored = _where(labels, IGNORE_LABEL, 255)
    canvas.image.paste(INK, mask=ignored.point(lambda value: value * _IGNORE_TINT // 255))
    hatch = hatch_mask(canvas.side, canvas.width(_HATCH_PITCH))
    canvas.image.paste(INK, mask=ImageChops.darker(ignored, hatch))


def _where(labels: Image.Image, label: int, strength: int) -> Image.Image:
    return labels.point([strength if value == label else 0 for value in range(256)])


@functools.lru_cache(maxsize=8)
def hatch_mask(side: int, pitch: int) -> Image.Image:
    """Return diagonal lines as a mask of ``side`` px."""
    steps = np.arange(side)
    lines = (steps[:, None] + steps) % pitch < max(1, pitch // 4)
    return Image.fromarray(np.where(lines, _HATCH, 0).astype(np.uint8))


def _points(ring: FloatArray) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in ring]


def _paint_nodes(nodes: FloatArray, *, plain: Colour | None, vmax_px: float) -> Uint8Array:
    """Return the colours [N, 3] of nodes [N, 3] (x, y, sigma): ``plain``, or by their uncertainty."""
    if plain is None:
        return sigma_colours(nodes[:, 2], vmax_px=vmax_px)
    return np.full((len(nodes), 3), plain, np.uint8)


def _draw_ring(canvas: _Canvas, nodes: FloatArray, paint: _Paint, confident: BoolArray, *, dashed: bool) -> None:
    """Draw a closed outline of nodes [N, 3] (x, y, sigma) and the nodes on it: dashed, only the dropped ones."""
    line, rim = canvas.stroke_width(_LINE), canvas.stroke_width(_RIM)
    pieces = _dashes(nodes, canvas.width(_DASH)) if dashed else _edge_pieces(nodes)
    filled, hollow = nodes[confident & (not dashed)], nodes[~confident]
    _draw_pieces(canvas, pieces, line + 2 * rim)
    _draw_dots(canvas, filled, canvas.stroke_width(_DOT) + rim)
    _draw_pieces(canvas, pieces, line, paint(pieces[:, pieces.shape[1] // 2]))
    _draw_dots(canvas, filled, canvas.stroke_width(_DOT), paint(filled))
    _draw_dots(canvas, hollow, canvas.stroke_width(_RING) + rim)
    _draw_dots(canvas, hollow, canvas.stroke_width(_RING), paint(hollow))
    _draw_dots(canvas, hollow, canvas.stroke_width(_HOLE))


def _as_colour(rgb: Uint8Array) -> Colour:
    red, green, blue = rgb.tolist()
    return red, green, blue


def disc_box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Return the box of a disc around (x, y): left, top, right, bottom."""
    return x - radius, y - radius, x + radius, y + radius


def _draw_dots(canvas: _Canvas, nodes: FloatArray, radius: float, colours: Uint8Array | None = None) -> None:
    """Draw a disc at each node [N, …] (x, y first) in its colour [N, 3], or dark."""
    draw = ImageDraw.Draw(canvas.image)
    for index, (x, y) in enumerate(nodes[:, :2].tolist()):
        draw.ellipse(disc_box(x, y, radius), fill=HALO if colours is None else _as_colour(colours[index]))


def _draw_pieces(canvas: _Canvas, pieces: FloatArray, width: int, colours: Uint8Array | None = None) -> None:
    """Draw open lines [P, K, …] (x, y first) with round ends in their colours [P, 3], or dark.

    The ends come first: drawn with its line, each would cover the end of the line before.
    """
    ends = pieces[:, [0, -1]].reshape(-1, pieces.shape[2])
    _draw_dots(canvas, ends, width / 2 - 0.5, None if colours is None else np.repeat(colours, 2, axis=0))
    draw = ImageDraw.Draw(canvas.image)
    for index, piece in enumerate(pieces):
        colour = HALO if colours is None else _as_colour(colours[index])
        draw.line(_points(piece[:, :2]), fill=colour, width=width, joint="curve")


def _edge_pieces(ring: FloatArray) -> FloatArray:
    """Cut every edge of a closed ring [N, F] into equal pieces [P, 3, F]: start, middle, stop of each."""
    following = np.roll(ring, -1, axis=0)
    places = (np.arange(_STEPS)[:, None] + (0.0, 0.5, 1.0)) / _STEPS
    pieces = ring[:, None, None] + (following - ring)[:, None, None] * places[..., None]
    return pieces.reshape(-1, 3, ring.shape[1])


def _dashes(ring: FloatArray, pitch: int) -> FloatArray:
    """Cut a closed ring [N, F] (x, y first) into dashes [P, 5, F], each followed by a gap."""
    closed = np.concatenate([ring, ring[:1]])
    steps = np.linalg.norm(np.diff(closed[:, :2], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    count = max(2, round(along[-1] / pitch))
    starts = np.arange(count) * along[-1] / count
    places = starts[:, None] + np.linspace(0, _DASH_SHARE * along[-1] / count, 5)
    return np.stack([np.interp(places, along, feature) for feature in closed.T], axis=-1)


def add_caption(picture: Image.Image, title: str, subtitle: str) -> Image.Image:
    """Return ``picture`` with a title and a smaller subtitle below it; itself where both are empty."""
    if not title and not subtitle:
        return picture
    large, small = load_font(max(10, round(picture.width * 0.056))), load_font(max(9, round(picture.width * 0.048)))
    lines = [(title, large, INK), (subtitle, small, SOFT_INK)]
    lines = [(text, font, colour) for text, font, colour in lines if text]
    heights = [round(1.35 * font.size) for _, font, _ in lines]
    captioned = Image.new("RGB", (picture.width, picture.height + sum(heights) + 4), PAPER)
    captioned.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(captioned), picture.height + 4
    for (text, font, colour), height in zip(lines, heights, strict=True):
        draw.text((1, top + height // 2), shorten_text(text, font, picture.width - 2), colour, font, anchor="lm")
        top += height
    return captioned


@functools.lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own typeface at ``size`` px. It lacks Greek letters and most mathematical signs."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


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
