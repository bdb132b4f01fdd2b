"""Contour ⇄ mask: the published fill rule, and what uncertainty makes of it.

Masks are uint8 [H, W]; contours float [N, 2] (x, y) in the pixels of the mask, pixel centres at integers.

The fill rule is OpenCV's polygon fill of the vertices rounded to whole pixels, border included: it redraws the
published masks bit for bit. OpenCV 4.8 to 4.10 fill differently, so the first fill checks a known polygon.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from cxu.codec import Mask, encode_rle
from cxu.contour import FloatArray, normal_sigma
from cxu.errors import CxuError
from cxu.frame import Box
from cxu.window import Window

BoolArray = npt.NDArray[np.bool_]
Vertices = npt.NDArray[np.int32]

BAND_SIGMAS: Final = 2.8
_REACH_SIGMAS: Final = 3.2  # Φ(3.2) rounds to 255 of 255, so beyond it a probability is certain
# chosen because OpenCV 4.10 adds pixels to it
_KNOWN_POLYGON: Final = ((3, 1), (17, 4), (14, 18), (9, 8), (2, 16))
_KNOWN_SHAPE_HW: Final = (20, 20)
_KNOWN_RLE: Final = (
    "24 3 44 8 64 12 84 15 104 15 124 15 144 14 164 14 183 15 203 6 211 7 223 5 231 6 243 4 252 5 263 4 272 5 "
    "283 3 293 4 303 2 313 4 323 1 334 2 354 2 375 1"
)


@functools.cache
def check_fill_rule() -> None:
    """Draw one known polygon and compare it with the published rule; done once a process, before the first fill.

    Raises
    ------
    CxuError
        If the installed OpenCV fills differently.
    """
    mask = np.zeros(_KNOWN_SHAPE_HW, np.uint8)
    cv2.fillPoly(mask, [np.array(_KNOWN_POLYGON, np.int32)], 1)
    if encode_rle(mask) != _KNOWN_RLE:
        raise CxuError(
            f"OpenCV {cv2.__version__} does not fill polygons as the published masks were filled; "
            "install another version, for example: pip install 'opencv-python-headless>=4.11'"
        )


def fill_polygon(contour_xy: FloatArray, shape_hw: tuple[int, int]) -> Mask:
    """Fill one closed contour [N, 2] by the published rule into a new mask uint8 [H, W] of 0 and 1.

    Vertices are rounded to the nearest pixel (half to even); parts outside the image are cut off. Without nodes the
    mask stays empty.

    Examples
    --------
    >>> int(fill_polygon(np.array([[1, 1], [3, 1], [3, 2], [1, 2]]), (4, 5)).sum())
    6
    """
    mask = np.zeros(shape_hw, np.uint8)
    paint_polygon(mask, contour_xy, 1)
    return mask


def paint_polygon(mask: Mask, contour_xy: FloatArray, value: int) -> None:
    """Write ``value`` into the pixels of a mask that :func:`fill_polygon` fills; the others stay."""
    check_fill_rule()
    if len(contour_xy):
        cv2.fillPoly(mask, [to_vertices(contour_xy)], value)


def to_vertices(contour_xy: FloatArray) -> Vertices:
    """Return the whole pixels int32 [N, 2] that a contour [N, 2] is drawn through, rounded half to even."""
    return np.rint(contour_xy).astype(np.int32)


def box_around(vertices: Vertices) -> Box:
    """Return the smallest box that holds vertices [N, 2], and so all that is drawn of them; an empty one for none."""
    if not len(vertices):
        return Box(0, 0, 0, 0)
    left, top = vertices.min(axis=0).tolist()
    right, bottom = vertices.max(axis=0).tolist()
    return Box(left, top, right + 1, bottom + 1)


def paint_vertices(window: Window, vertices: Vertices, value: int) -> None:
    """Write ``value`` into the pixels of a window that :func:`paint_polygon` would fill in its image; others stay.

    The window has to hold the vertices' box, as far as that lies in the image: OpenCV cuts polygons off at the border,
    and only there may the two have one.
    """
    check_fill_rule()
    if len(vertices) and window.pixels.size:
        cv2.fillPoly(window.pixels, [vertices], value, offset=(-window.left, -window.top))


def ignore_band(
    contour_xy: FloatArray,
    sigma_xy: FloatArray,
    uncertain_edges: BoolArray,
    shape_hw: tuple[int, int],
    *,
    band_sigmas: float = BAND_SIGMAS,
) -> BoolArray:
    """Return where a contour is too uncertain to say which side a pixel lies on.

    A pixel belongs to the band when its distance to an uncertain edge is at most ``band_sigmas`` times the standard
    deviation along the contour's normal at the nearest point of that edge, linear between the edge's two nodes. Where
    that is 0 the contour is certain and nothing is ignored.

    Parameters
    ----------
    contour_xy, sigma_xy
        [N, 2] px of the mask.
    uncertain_edges
        bool [N]; edge i runs from node i to node i + 1 (the last one back to node 0).
    shape_hw
        Size of the mask.
    band_sigmas
        Half-width of the band in standard deviations.

    Returns
    -------
    bool [H, W], True within the band.
    """
    band = np.zeros(shape_hw, np.bool_)
    reach = band_sigmas * normal_sigma(contour_xy, sigma_xy)
    for edge in np.flatnonzero(uncertain_edges):
        window, distance, limit = _near_edge(contour_xy, reach, int(edge), shape_hw)
        band[window] |= (distance <= limit) & (limit > 0)
    return band


def probability_mask(contour_xy: FloatArray, sigma_xy: FloatArray, shape_hw: tuple[int, int]) -> Mask:
    """Return the probability that each pixel lies inside a contour, as uint8 [H, W] = round(255 p).

    ``p = Φ(d / sigma_n)``: d is the distance in px from the pixel to the nearest point of the mean contour, positive
    where the full mask covers the pixel; sigma_n is the standard deviation along the normal at that point, linear
    between nodes. So p ≥ 0.5 is exactly the full mask.

    Parameters
    ----------
    contour_xy, sigma_xy
        [N, 2] px of the mask.
    shape_hw
        Size of the mask.
    """
    inside = fill_polygon(contour_xy, shape_hw)
    sigma = normal_sigma(contour_xy, sigma_xy)
    nearest = np.full(shape_hw, np.inf, np.float32)
    sigma_there = np.zeros(shape_hw, np.float32)
    for edge in range(len(contour_xy)):
        window, distance, local_sigma = _near_edge(contour_xy, sigma, edge, shape_hw, margin=_reach_px(sigma))
        closer = distance < nearest[window]
        nearest[window][closer] = distance[closer]
        sigma_there[window][closer] = local_sigma[closer]
    touched = np.isfinite(nearest)
    covered = inside[touched] > 0
    signed = np.where(covered, nearest[touched], -nearest[touched])
    levels = np.rint(255 * _normal_cdf(signed, sigma_there[touched]))
    probability = inside * np.uint8(255)
    # a pixel on the contour is at one half from either side: the fill decides
    probability[touched] = np.where(covered, np.maximum(levels, 128), np.minimum(levels, 127))
    return probability


def sample_probability_mask(samples_xy: FloatArray, shape_hw: tuple[int, int]) -> Mask:
    """Return the share of sampled contours [S, N, 2] that cover each pixel, as uint8 [H, W] = round(255 p)."""
    covered = np.zeros(shape_hw, np.uint32)
    for contour_xy in samples_xy:
        covered += fill_polygon(contour_xy, shape_hw)
    return np.rint(covered * (255 / len(samples_xy))).astype(np.uint8)


def _reach_px(sigma: FloatArray) -> float:
    """Return how far from the contour a probability may differ from 0 and 1, with a pixel to spare."""
    return _REACH_SIGMAS * float(sigma.max(initial=0.0)) + 1


def _normal_cdf(distance: FloatArray, sigma: FloatArray) -> FloatArray:
    """Return Φ(distance / sigma), to 1e-6; where sigma is 0, 1 from distance +0 up and 0 from -0 down."""
    ratio = np.divide(distance, sigma, out=np.zeros(distance.shape), where=sigma > 0, dtype=np.float64)
    return np.where(sigma > 0, np.interp(ratio, *_cdf_table()), ~np.signbit(distance))


@functools.cache
def _cdf_table() -> tuple[FloatArray, FloatArray]:
    """Return z and Φ(z) on a fine grid: numpy has no error function, and scipy is only an extra."""
    z = np.linspace(-4, 4, 4097)
    return z, np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])


def _near_edge(
    contour_xy: FloatArray,
    width: FloatArray,
    edge: int,
    shape_hw: tuple[int, int],
    *,
    margin: float | None = None,
) -> tuple[tuple[slice, slice], FloatArray, FloatArray]:
    """Measure the pixels around one edge.

    Returns the window that holds every pixel within ``margin`` (or the edge's own ``width``) of the edge, and for its
    pixels the distance to the edge and ``width`` interpolated at the nearest point of the edge.
    """
    ends = [edge, (edge + 1) % len(contour_xy)]
    (start, stop), (width_start, width_stop) = contour_xy[ends], width[ends]
    reach = max(width_start, width_stop) if margin is None else margin
    low = np.floor(np.minimum(start, stop) - reach).astype(int)
    high = np.ceil(np.maximum(start, stop) + reach).astype(int) + 1
    (left, top), (right, bottom) = np.clip(low, 0, shape_hw[::-1]), np.clip(high, 0, shape_hw[::-1])
    x = np.arange(left, right, dtype=np.float32) - start[0]
    y = (np.arange(top, bottom, dtype=np.float32) - start[1])[:, None]
    dx, dy = stop - start
    length2 = float(dx * dx + dy * dy)
    along = np.clip((x * dx + y * dy) / length2, 0, 1) if length2 else np.zeros((y.size, x.size), np.float32)
    distance = np.hypot(x - along * dx, y - along * dy)
    return (slice(top, bottom), slice(left, right)), distance, width_start + along * (width_stop - width_start)


def encode_png(image: Mask | npt.NDArray[np.uint16]) -> bytes:
    """Return a grey PNG of an image [H, W], of 8 bits for uint8 and 16 for uint16; one image always gives one file."""
    done, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done, "an image of 8 or 16 bits always encodes"
    return buffer.tobytes()


def decode_png(content: bytes) -> Mask:
    """Return the pixels uint8 [H, W] of an 8-bit grey PNG: the inverse of :func:`encode_png` for masks."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise CxuError("not a readable PNG")
    return image.astype(np.uint8)
