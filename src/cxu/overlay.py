"""Pictures of landmarks: outlines coloured by uncertainty over an image.

A confident stretch is a strong line with filled nodes; what a filter dropped is a faint line with hollow ones; an
unusable organ is dashed and hatched. A band around the outline is as wide as it is uncertain. Organs have the colours
of :mod:`cxu.anatomy`, uncertainty those of :mod:`cxu.canvas`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from cxu.anatomy import IGNORE_LABEL, N_NODES, N_ORGANS, ORGANS
from cxu.canvas import (
    DEFAULT_VMAX_PX,
    GREY,
    HALO,
    INK,
    SUPERSAMPLE,
    Canvas,
    Colour,
    add_caption,
    as_colour,
    as_points,
    disc_box,
    draw_dots,
    draw_pieces,
    hatch_mask,
    sigma_colours,
)
from cxu.errors import UsageError
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
Uint8Array = npt.NDArray[np.uint8]
_Paint = Callable[[FloatArray], Uint8Array]

TINT: Final = 0.32  # how strongly organs are tinted in a small picture
_IGNORE_TINT: Final = 0.56  # of that
_HATCH_TINT: Final = 1.29
_BAND_TINT: Final = 120  # of 255
# shares of a picture's size
_LINE: Final = 0.0095
_FAINT: Final = 0.4  # of a line
_RIM: Final = 0.003
_DOT: Final = 0.0088  # radii: of a confident node, a dropped one, and its hole
_RING: Final = 0.0125
_HOLE: Final = 0.0068
_HATCH_PITCH: Final = 0.019
_DASH: Final = 0.036
_DASH_SHARE: Final = 0.4  # of a dash and its gap, less the round ends
_STEPS: Final = 6  # pieces of an edge, each of one colour
_X, _Y, _VALUE, _BAND = range(4)  # what is known of a node, in this order


@dataclass(frozen=True, eq=False)
class _Ring:
    """An organ's outline: nodes [N, 4] (x, y, value, half-width of the band in canvas px), and how they are drawn."""

    nodes: FloatArray
    paint: _Paint
    confident: BoolArray
    dashed: bool


def draw_overlay(
    background: Uint8Array | None,
    landmarks_xy: FloatArray,
    sigma_px: FloatArray | None = None,
    *,
    frame_hw: tuple[int, int] = (MODEL_SIZE, MODEL_SIZE),
    confident: BoolArray | None = None,
    usable: BoolArray | None = None,
    labels: Uint8Array | None = None,
    band_px: FloatArray | None = None,
    size: int = 320,
    title: str = "",
    subtitle: str = "",
    vmax_px: float = DEFAULT_VMAX_PX,
    stroke: float = 1.0,
    tint: float = TINT,
    trim: bool = False,
) -> Image.Image:
    """Draw one row's outlines over its image.

    Organs are tinted in their colours, ignored pixels hatched. Outlines take the colour of the uncertainty along
    them. Confident nodes are filled dots, dropped ones larger and hollow, and the line is faint beside them. The
    outline of an unusable organ is dashed and shows its dropped nodes only.

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
    band_px
        Half-width [120] of a band around the outline, px of ``frame_hw``; nodes that have none are 0 or NaN.
    size
        Side of the picture in px; the caption comes below it. A frame that is not square is centred.
    title, subtitle
        Caption, made smaller or shortened in its middle to fit; without both there is no caption.
    vmax_px
        End of the uncertainty scale.
    stroke
        Width of lines and dots relative to those that suit a small picture.
    tint
        How strongly organs are tinted, 0 to 1.
    trim
        Cut the picture to its frame where that is not square.

    Returns
    -------
    RGB picture, ``size`` px wide unless trimmed.

    Raises
    ------
    UsageError
        If an array has another shape than stated.
    """
    confident = np.ones(N_NODES, np.bool_) if confident is None else confident
    usable = np.ones(N_ORGANS, np.bool_) if usable is None else usable
    sigma = np.full(N_NODES, np.nan) if sigma_px is None else sigma_px
    band = np.zeros(N_NODES) if band_px is None else band_px
    _check_shapes(landmarks_xy, usable, sigma_px=sigma, confident=confident, band_px=band)
    canvas = Canvas.blank(size, frame_hw, stroke)
    _paint_background(canvas, background)
    _paint_labels(canvas, _label_image(canvas, labels, landmarks_xy, usable), tint)
    rings = []
    for organ, organ_usable in zip(ORGANS, usable, strict=True):
        ring = canvas.place(landmarks_xy[organ.nodes])
        if np.isfinite(ring).all():
            half_width = np.nan_to_num(band[organ.nodes] * canvas.scale)
            nodes = np.column_stack([ring, sigma[organ.nodes], half_width])
            plain = organ.colour_rgb if organ_usable else GREY
            paint = functools.partial(_paint_nodes, plain=None if sigma_px is not None else plain, vmax_px=vmax_px)
            rings.append(_Ring(nodes, paint, confident[organ.nodes], dashed=not organ_usable))
    _paint_bands(canvas, rings)
    for one in rings:
        _draw_ring(canvas, one)
    return add_caption(canvas.finished(trim=trim), title, subtitle)


def _check_shapes(landmarks_xy: FloatArray, usable: BoolArray, **of_nodes: npt.NDArray[np.generic]) -> None:
    wanted: list[tuple[str, npt.NDArray[np.generic], tuple[int, ...]]] = [
        ("landmarks_xy", landmarks_xy, (N_NODES, 2)),
        ("usable", usable, (N_ORGANS,)),
        *((name, array, (N_NODES,)) for name, array in of_nodes.items()),
    ]
    for name, array, shape in wanted:
        if np.shape(array) != shape:
            raise UsageError(f"{name} has shape {np.shape(array)}; expected {shape}")


def _paint_background(canvas: Canvas, background: Uint8Array | None) -> None:
    if background is None:
        return
    left, top, right, bottom = canvas.box
    size = (max(right - left, 1), max(bottom - top, 1))
    grey = Image.fromarray(background).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas.image.paste(grey.convert("RGB"), (left, top))


def _label_image(canvas: Canvas, labels: Uint8Array | None, landmarks_xy: FloatArray, usable: BoolArray) -> Image.Image:
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
            ImageDraw.Draw(image).polygon(as_points(ring), fill=value)
    return image


def _paint_labels(canvas: Canvas, labels: Image.Image, tint: float) -> None:
    """Tint the organs of a label image, hatch what is ignored."""
    for organ in ORGANS:
        canvas.image.paste(organ.colour_rgb, mask=_where(labels, organ.label, round(255 * tint)))
    ignored = _where(labels, IGNORE_LABEL, 255)
    canvas.image.paste(GREY, mask=_times(ignored, _IGNORE_TINT * tint))
    pitch = canvas.width(_HATCH_PITCH)
    # light lines are seen on a dark lung, dark ones on a bright heart
    for colour, shift in ((HALO, pitch // 2), (INK, 0)):
        lines = ImageChops.darker(ignored, hatch_mask(canvas.side, pitch, shift))
        canvas.image.paste(colour, mask=_times(lines, _HATCH_TINT * tint))


def _times(mask: Image.Image, factor: float) -> Image.Image:
    return mask.point([min(round(value * factor), 255) for value in range(256)])


def _where(labels: Image.Image, label: int, strength: int) -> Image.Image:
    return labels.point([strength if value == label else 0 for value in range(256)])


def _paint_nodes(nodes: FloatArray, *, plain: Colour | None, vmax_px: float) -> Uint8Array:
    """Return the colours [N, 3] of nodes [N, 4]: ``plain``, or by their uncertainty."""
    if plain is None:
        return sigma_colours(nodes[:, _VALUE], vmax_px=vmax_px)
    return np.full((len(nodes), 3), plain, np.uint8)


def _paint_bands(canvas: Canvas, rings: Sequence[_Ring]) -> None:
    """Lay a band over the picture, as wide at each node as the node says; where two meet, the wider one shows."""
    pieces, colours = [], []
    for ring in rings:
        of_ring = _edge_pieces(ring.nodes)
        pieces.append(of_ring)
        colours.append(ring.paint(of_ring[:, 1]))
    if not pieces or not any(np.any(one[..., _BAND] > 0) for one in pieces):
        return
    every, painted = np.concatenate(pieces), np.concatenate(colours)
    layer, mask = Image.new("RGB", canvas.image.size), Image.new("L", canvas.image.size, 0)
    draw_layer, draw_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
    for index in np.argsort(every[:, 1, _BAND], kind="stable"):
        start, middle, stop = every[index]
        width = max(round(2 * float(middle[_BAND])), 1)
        for draw, colour in ((draw_layer, as_colour(painted[index])), (draw_mask, _BAND_TINT)):
            draw.line(as_points(every[index, [0, 2], :2]), fill=colour, width=width)
            for x, y, _, half_width in (start.tolist(), stop.tolist()):
                draw.ellipse(disc_box(x, y, half_width), fill=colour)
    canvas.image.paste(layer, mask=mask)


def _draw_ring(canvas: Canvas, ring: _Ring) -> None:
    """Draw a closed outline and the nodes on it: dashed, only the dropped ones."""
    image, rim, line = canvas.image, canvas.stroke_width(_RIM), canvas.stroke_width(_LINE)
    nodes, paint = ring.nodes, ring.paint
    faint_line = max(round(_FAINT * line), SUPERSAMPLE)
    if ring.dashed:
        strokes = [(_dashes(nodes, canvas.width(_DASH)), line)]
    else:
        is_firm = np.repeat(ring.confident & np.roll(ring.confident, -1), _STEPS)
        pieces = _edge_pieces(nodes)
        strokes = [(pieces[~is_firm], faint_line), (pieces[is_firm], line)]
    filled, hollow = nodes[ring.confident & (not ring.dashed)], nodes[~ring.confident]
    for some, width in strokes:
        draw_pieces(image, some, width + 2 * rim)
    draw_dots(image, filled, canvas.stroke_width(_DOT) + rim)
    for some, width in strokes:
        draw_pieces(image, some, width, paint(some[:, some.shape[1] // 2]))
    draw_dots(image, filled, canvas.stroke_width(_DOT), paint(filled))
    draw_dots(image, hollow, canvas.stroke_width(_RING) + rim)
    draw_dots(image, hollow, canvas.stroke_width(_RING), paint(hollow))
    draw_dots(image, hollow, canvas.stroke_width(_HOLE))


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
