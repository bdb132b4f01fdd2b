"""What is measured of three rings of nodes, and which nodes that rests on. Pure functions over arrays, rows last.

Everywhere below ``x`` and ``y`` are [120, ...]: nodes first, so that one pass over them serves many rows, or many
samples of many rows, at once. Units are pixels, x to the right and y down.

Source: the cardiothoracic ratio of Danzer, American Journal of the Medical Sciences 1919, with the outline of the lungs
in place of the inner border of the ribs; areas by the shoelace formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import shapely

from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG, Organ

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Axis = Literal["x", "y"]

LUNGS: Final = (RIGHT_LUNG, LEFT_LUNG)
LUNG_NODES: Final = slice(RIGHT_LUNG.first, LEFT_LUNG.stop)

# The tips of the lungs and the costophrenic angles, right then left. Fixed nodes turn with the film, extremal ones do
# not, and over 774 annotated films this axis varied least of those tried (standard deviation 1.6 degrees).
APICES: Final = (RIGHT_LUNG.first, LEFT_LUNG.first)
BASES: Final = (RIGHT_LUNG.first + 21, LEFT_LUNG.first + 21)

LENGTHS: Final = (
    "heart_width",
    "thorax_width",
    "right_lung_width",
    "left_lung_width",
    "heart_height",
    "right_lung_height",
    "left_lung_height",
)
AREAS: Final = tuple(f"{organ.name}_area" for organ in ORGANS)
THORAX_FRACTIONS: Final = tuple(f"{organ.name}_thorax_fraction" for organ in ORGANS)
# in the order of measure_nodes
MEASURED: Final = ("ctr", *LENGTHS, *AREAS, *THORAX_FRACTIONS, "lung_area_ratio", "tilt_deg")
OVERLAP: Final = "heart_lung_overlap"


def measure_nodes(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    """Return every measure of :data:`MEASURED`, each [...]; they do not depend on where the origin lies.

    Parameters
    ----------
    x, y
        [120, ...] px.

    Returns
    -------
    ``ctr``; widths and heights in px; areas in px²; shares of the three areas' sum; area of the right lung over that of
    the left; tilt in degrees. NaN or infinite where a divisor is 0.

    Examples
    --------
    >>> x, y = np.zeros(120), np.zeros(120)
    >>> x[60], x[100] = 8.0, 4.0
    >>> float(measure_nodes(x, y)["ctr"])
    0.5
    """
    lengths = {
        "heart_width": _extent(x[HEART.nodes]),
        "thorax_width": _extent(x[LUNG_NODES]),
        "right_lung_width": _extent(x[RIGHT_LUNG.nodes]),
        "left_lung_width": _extent(x[LEFT_LUNG.nodes]),
        "heart_height": _extent(y[HEART.nodes]),
        "right_lung_height": _extent(y[RIGHT_LUNG.nodes]),
        "left_lung_height": _extent(y[LEFT_LUNG.nodes]),
    }
    areas = [ring_area(x[organ.nodes], y[organ.nodes]) for organ in ORGANS]
    total = areas[0] + areas[1] + areas[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ctr": lengths["heart_width"] / lengths["thorax_width"],
            **lengths,
            **dict(zip(AREAS, areas, strict=True)),
            **{name: area / total for name, area in zip(THORAX_FRACTIONS, areas, strict=True)},
            "lung_area_ratio": areas[0] / areas[1],
            "tilt_deg": tilt(x, y),
        }


def _extent(values: FloatArray) -> FloatArray:
    return values.max(axis=0) - values.min(axis=0)


def ring_area(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the areas [...] px² of closed rings [N, ...] by the shoelace formula, whichever way they wind.

    Examples
    --------
    >>> float(ring_area(np.array([0.0, 4.0, 4.0, 0.0]), np.array([0.0, 0.0, 3.0, 3.0])))
    12.0
    """
    twice = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum(axis=0) + (x[-1] * y[0] - x[0] * y[-1])
    area: FloatArray = np.abs(twice) / 2
    return area


def tilt(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return by how many degrees the chest is turned clockwise, as displayed: 0 is upright.

    The angle between the vertical of the image and the line from the middle of the two apices to the middle of the two
    costophrenic angles, for x, y [120, ...]. Positive: the upper end leans to the right of the image.

    Examples
    --------
    >>> x, y = np.zeros(120), np.zeros(120)
    >>> x[[0, 44]], y[[21, 65]] = 5.0, 5.0
    >>> float(tilt(x, y))
    45.0
    """
    across = x[APICES[0]] + x[APICES[1]] - x[BASES[0]] - x[BASES[1]]
    down = y[BASES[0]] + y[BASES[1]] - y[APICES[0]] - y[APICES[1]]
    return np.degrees(np.arctan2(across, down))


def overlap_fraction(points_xy: FloatArray) -> FloatArray:
    """Return the share [n] of the heart's area that lies within a lung, of finite points [n, 120, 2].

    A ring that crosses itself counts by the even-odd rule. NaN where the heart has no area.
    """
    rings = {organ: _polygons(points_xy[:, organ.nodes]) for organ in ORGANS}
    within = [shapely.intersection(rings[HEART], rings[lung]) for lung in LUNGS]
    both = shapely.area(within[0]) + shapely.area(within[1])
    # the lungs of a chest lie apart; then nothing of the heart is in both
    meeting = (shapely.area(within[0]) > 0) & (shapely.area(within[1]) > 0)
    both[meeting] -= shapely.area(shapely.intersection(within[0][meeting], within[1][meeting]))
    area = shapely.area(rings[HEART])
    return np.divide(both, area, out=np.full(len(area), np.nan), where=area > 0)


def _polygons(rings_xy: FloatArray) -> npt.NDArray[np.object_]:
    """Return a valid polygon for each ring [n, N, 2]."""
    found: npt.NDArray[np.object_] = shapely.polygons(rings_xy)
    for index in np.flatnonzero(~shapely.is_valid(found)):
        # what was mended may hold lines too, with which polygons cannot be intersected
        parts = shapely.get_parts(shapely.make_valid(found[index]))
        areal = parts[shapely.area(parts) > 0]
        found[index] = shapely.union_all(areal) if len(areal) else shapely.Polygon()
    return found


def extremal_nodes(x: FloatArray) -> dict[str, IntArray]:
    """Return which nodes [n] the ratio rests on, of x [120, n]; the first where several are as far out."""
    return {
        "heart_min_x_node": HEART.first + x[HEART.nodes].argmin(axis=0),
        "heart_max_x_node": HEART.first + x[HEART.nodes].argmax(axis=0),
        "thorax_min_x_node": LUNG_NODES.start + x[LUNG_NODES].argmin(axis=0),
        "thorax_max_x_node": LUNG_NODES.start + x[LUNG_NODES].argmax(axis=0),
    }


def well_founded(x: FloatArray, y: FloatArray, confident: BoolArray, usable: BoolArray) -> dict[str, BoolArray]:
    """Return for each measure, the overlap included, which rows [n] have what it rests on.

    A length needs its outermost nodes and their neighbours to be confident, all of them where several are as far out;
    the tilt its four nodes and their neighbours; an area its organ to be usable.

    Parameters
    ----------
    x, y
        [120, n] px.
    confident, usable
        [120, n] and [3, n].
    """
    firm = with_neighbours(confident)
    along: dict[Axis, FloatArray] = {"x": x, "y": y}

    def reaches(axis: Axis, organs: Sequence[Organ]) -> BoolArray:
        nodes = slice(organs[0].first, organs[-1].stop)
        values = along[axis][nodes]
        outermost = (values == values.min(axis=0)) | (values == values.max(axis=0))
        return np.all(firm[nodes] | ~outermost, axis=0)

    lengths = {
        "heart_width": reaches("x", [HEART]),
        "thorax_width": reaches("x", LUNGS),
        "right_lung_width": reaches("x", [RIGHT_LUNG]),
        "left_lung_width": reaches("x", [LEFT_LUNG]),
        "heart_height": reaches("y", [HEART]),
        "right_lung_height": reaches("y", [RIGHT_LUNG]),
        "left_lung_height": reaches("y", [LEFT_LUNG]),
    }
    all_usable = usable.all(axis=0)
    return {
        "ctr": lengths["heart_width"] & lengths["thorax_width"],
        **lengths,
        **dict(zip(AREAS, usable, strict=True)),
        **dict.fromkeys(THORAX_FRACTIONS, all_usable),
        "lung_area_ratio": usable[: len(LUNGS)].all(axis=0),
        "tilt_deg": firm[[*APICES, *BASES]].all(axis=0),
        OVERLAP: all_usable,
    }


def with_neighbours(confident: BoolArray) -> BoolArray:
    """Return which nodes [120, n] are confident and have confident neighbours on both sides of their ring."""
    firm = np.empty_like(confident)
    for organ in ORGANS:
        ring = confident[organ.nodes]
        firm[organ.nodes] = ring & np.roll(ring, 1, axis=0) & np.roll(ring, -1, axis=0)
    return firm


def touches_border(x: FloatArray, y: FloatArray, shape_hw: FloatArray) -> BoolArray:
    """Return which rows [n] have a node outside the outermost pixels of the frame or within 1 px of them.

    Parameters
    ----------
    x, y
        [120, n] px.
    shape_hw
        Height and width [2, n] px; False where they are NaN.
    """
    low, height, width = np.minimum(x.min(axis=0), y.min(axis=0)), *shape_hw
    outside: BoolArray = (low <= 1) | (x.max(axis=0) >= width - 2) | (y.max(axis=0) >= height - 2)
    return outside & np.isfinite(height) & np.isfinite(width)


def side_flags(x: FloatArray) -> Mapping[str, BoolArray]:
    """Return what speaks for exchanged sides, for x [120, n].

    ``lungs_swapped``: the nodes of the right lung lie, on average, to the right of those of the left.
    ``heart_on_image_left``: those of the heart lie to the left of the middle of the thorax, as on a mirrored film.
    """
    right, left, heart = (x[organ.nodes].mean(axis=0) for organ in ORGANS)
    middle = (x[LUNG_NODES].min(axis=0) + x[LUNG_NODES].max(axis=0)) / 2
    return {"lungs_swapped": right >= left, "heart_on_image_left": heart < middle}
