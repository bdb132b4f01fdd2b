"""A grey phantom of a chest, drawn around landmarks: something to lay outlines on where no image may be shown.

It is soft and schematic on purpose. It is no radiograph, teaches a network nothing, and has to be called synthetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]

# grey levels
_AROUND: Final = 9.0
_FLESH: Final = 132.0
_AIR: Final = 50.0
_HEART: Final = 150.0
_GRAIN: Final = 2.2
_RIBS: Final = 9


@dataclass(frozen=True)
class _Chest:
    """Where a chest lies in a picture of ``size`` px: the body's axis, half the lungs' width, their top and bottom."""

    size: int
    axis: float
    half_width: float
    top: float
    bottom: float

    def at(self, across: FloatArray | float, down: FloatArray | float) -> FloatArray:
        """Return points [..., 2] px; ``across`` runs from -1 to 1 over the lungs' width, ``down`` from 0 to 1."""
        x = self.axis + self.half_width * np.asarray(across)
        y = self.top + (self.bottom - self.top) * np.asarray(down)
        return np.stack(np.broadcast_arrays(x, y), axis=-1)

    def grid(self) -> tuple[FloatArray, FloatArray]:
        """Return ``across`` [1, size] and ``down`` [size, 1] of the pixels: the inverse of :meth:`at`."""
        steps = np.arange(self.size, dtype=np.float64)
        across = (steps - self.axis) / self.half_width
        return across[None], ((steps - self.top) / (self.bottom - self.top))[:, None]


def synthetic_background(landmarks_xy: FloatArray, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a phantom that fits the landmarks: dark lungs, a brighter heart and spine, faint ribs, a body around them.

    Parameters
    ----------
    landmarks_xy
        [120, 2] (x, y), px of the 1024 model frame.
    size
        Side of the picture in px.
    rng
        Source of the grain and of small differences between chests; the same state gives the same picture.

    Returns
    -------
    uint8 [size, size], the whole model frame.

    Examples
    --------
    >>> from cxu.shape import load_shape_model
    >>> synthetic_background(load_shape_model().mean_xy, 64, np.random.default_rng(0)).shape
    (64, 64)
    """
    nodes = (np.asarray(landmarks_xy, np.float64) + 0.5) * (size / MODEL_SIZE) - 0.5
    chest = _locate(nodes, size)
    across, down = chest.grid()
    lungs = _soft_areas([nodes[RIGHT_LUNG.nodes], nodes[LEFT_LUNG.nodes]], size, blur=0.006)
    heart = _soft_areas([nodes[HEART.nodes]], size, blur=0.012)
    ribs = _soft_lines(_rib_lines(chest, rng), size, width=0.017, blur=0.005)
    collar = _soft_lines(_collar_bones(chest), size, width=0.02, blur=0.006)
    spine = _bump(across, 0.0, 0.12) * (1 + 0.05 * np.sin(46 * down + 6 * rng.random()))
    spine = spine * (1 - 0.5 * np.clip((down - 0.75) / 0.4, 0, 1))
    hilum = _bump(np.abs(across), 0.26, 0.14) * _bump(down, 0.47, 0.17)
    flesh = _FLESH - 30 * across**2 + 40 * spine + 26 * np.clip((down - 0.7) / 0.4, 0, 1)
    flesh -= 40 * _bump(across, 0.0, 0.05) * np.clip((0.34 - down) / 0.1, 0, 1)  # the windpipe
    air = _AIR + 34 * hilum + 12 * ribs - 8 * np.clip(0.5 - down, 0, 1)
    grey = flesh + (air - flesh) * lungs
    grey += (_HEART + 22 * spine - grey).clip(0) * 0.85 * heart
    grey += (5 * ribs + 16 * collar) * (1 - heart)
    grey = _AROUND + (grey - _AROUND) * _soft_areas([_torso(chest)], size, blur=0.016)
    picture: npt.NDArray[np.uint8] = np.clip(np.rint(grey + _grain(size, rng)), 0, 255).astype(np.uint8)
    return picture


def _locate(nodes: FloatArray, size: int) -> _Chest:
    (left, top), (right, bottom) = nodes[: LEFT_LUNG.stop].min(axis=0), nodes[: LEFT_LUNG.stop].max(axis=0)
    axis = (nodes[RIGHT_LUNG.nodes, 0].max() + nodes[LEFT_LUNG.nodes, 0].min()) / 2
    return _Chest(size, float(axis), float(right - left) / 2, float(top), float(bottom))


def _bump(position: FloatArray, centre: float, width: float) -> FloatArray:
    height: FloatArray = np.exp(-0.5 * ((position - centre) / width) ** 2)
    return height


def _torso(chest: _Chest) -> FloatArray:
    """Return the outline of neck, shoulders and trunk, down to the edge of the picture."""
    half = [(0.30, -0.6), (0.30, -0.14), (0.42, -0.07), (0.80, -0.01), (1.06, 0.09), (1.17, 0.24), (1.16, 0.5)]
    half += [(1.16, 0.9), (1.2, 2.0)]
    across, down = np.array(half).T
    return np.concatenate([chest.at(across, down), chest.at(-across, down)[::-1]])


def _rib_lines(chest: _Chest, rng: np.random.Generator) -> list[FloatArray]:
    """Return the ribs of both sides: arcs that leave the spine, rise a little, and fall towards the side."""
    outwards = np.linspace(0.08, 1.04, 24)
    lines = []
    for rib in range(_RIBS):
        start = 0.04 + 0.098 * rib + 0.008 * rng.standard_normal()
        reach = min(1.0, 0.62 + 0.12 * rib)
        down = start - 0.05 * np.sin(np.pi * outwards) + (0.07 + 0.012 * rib) * outwards**2
        lines += [chest.at(side * reach * outwards, down) for side in (-1, 1)]
    return lines


def _collar_bones(chest: _Chest) -> list[FloatArray]:
    outwards = np.linspace(0.1, 0.95, 16)
    down = 0.13 - 0.13 * outwards + 0.02 * np.sin(2 * np.pi * outwards)
    return [chest.at(side * outwards, down) for side in (-1, 1)]


def _soft_areas(outlines: Sequence[FloatArray], size: int, *, blur: float) -> FloatArray:
    """Return 1 inside the outlines [N, 2], 0 outside, with a soft edge: [size, size]."""
    image = Image.new("L", (size, size), 0)
    for outline in outlines:
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in outline], fill=255)
    return _blurred(image, blur)


def _soft_lines(lines: Sequence[FloatArray], size: int, *, width: float, blur: float) -> FloatArray:
    """Return 1 on the lines [N, 2], 0 elsewhere, with a soft edge: [size, size]."""
    image = Image.new("L", (size, size), 0)
    for line in lines:
        points = [(float(x), float(y)) for x, y in line]
        ImageDraw.Draw(image).line(points, fill=255, width=max(1, round(width * size)), joint="curve")
    return _blurred(image, blur)


def _blurred(image: Image.Image, blur: float) -> FloatArray:
    soft = image.filter(ImageFilter.GaussianBlur(blur * image.width))
    return np.asarray(soft, np.float64) / 255


def _grain(size: int, rng: np.random.Generator) -> FloatArray:
    """Return slightly soft noise [size, size] of mean 0."""
    noise = rng.standard_normal((size, size))
    soft = (noise + np.roll(noise, 1, axis=0) + np.roll(noise, 1, axis=1) + np.roll(noise, (1, 1), axis=(0, 1))) / 2
    return _GRAIN * soft
