"""Masks of which only a window is drawn: where their values change, without a look at the background around it.

An organ covers some tenths of the frame, and what is written of a mask are its runs. So pixels are drawn and searched
in a :class:`Window` only; its changes are given as places in the whole image, row by row or column by column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from cxu.codec import Counts, Mask
from cxu.frame import Box


@dataclass(frozen=True, eq=False)
class Window:
    """An image that is background (0) outside of a rectangle.

    Attributes
    ----------
    guarded
        uint8 [h + 2, w + 1]: the rectangle's pixels, with a line of background above and below and a column of it in
        front, so that what begins in a line or column of the rectangle ends there too.
    top, left
        Where the rectangle lies in the image.
    shape_hw
        Size of the image, px.
    """

    guarded: Mask
    top: int
    left: int
    shape_hw: tuple[int, int]

    @classmethod
    def blank(cls, box: Box, shape_hw: tuple[int, int]) -> Self:
        """Return background, to be drawn into within ``box``; of that only what lies in the image counts."""
        height, width = shape_hw
        left, top = min(max(box.left, 0), width), min(max(box.top, 0), height)
        right, bottom = max(min(box.right, width), left), max(min(box.bottom, height), top)
        return cls(np.zeros((bottom - top + 2, right - left + 1), np.uint8), top, left, shape_hw)

    @classmethod
    def of(cls, image: Mask) -> Self:
        """Return a whole image uint8 [H, W] as a window."""
        height, width = image.shape
        window = cls.blank(Box(0, 0, width, height), (height, width))
        window.pixels[:] = image
        return window

    @property
    def pixels(self) -> Mask:
        """The rectangle's pixels uint8 [h, w], to be drawn into."""
        return self.guarded[1:-1, 1:]

    def part(self, box: Box) -> Mask:
        """Return the pixels of ``box``, which lies within the rectangle, to be drawn into."""
        top, left = box.top - self.top, box.left - self.left
        return self.pixels[top : top + box.height, left : left + box.width]

    def drawn_box(self) -> Box | None:
        """Return the smallest box of the image that holds all foreground; None where there is none."""
        rows, columns = (np.flatnonzero(self.pixels.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return None
        left, top = self.left + int(columns[0]), self.top + int(rows[0])
        return Box(left, top, self.left + int(columns[-1]) + 1, self.top + int(rows[-1]) + 1)

    def image(self) -> Mask:
        """Return the whole image uint8 [H, W]."""
        image = np.zeros(self.shape_hw, np.uint8)
        height, width = self.pixels.shape
        image[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return image


def line_changes(window: Window, *, lead: int = 0) -> tuple[Counts, Mask]:
    """Return where the values of a window change from pixel to pixel, lines one after the other.

    Parameters
    ----------
    window
        Of an image of any values.
    lead
        Bytes of background that stand before each line, such as the filter type in a PNG.

    Returns
    -------
    places, values
        int64 [n], ascending, counted in lines of ``lead`` + W; the values uint8 [n] from there on. Behind the last
        pixel of a line the background begins, also where the next line goes on with the same value: with a ``lead``
        of 0 two changes are then at one place.
    """
    found = _changes(window.guarded, 1)
    return _places_in_lines(window, found, lead), window.guarded.ravel()[found]


def row_edges(window: Window) -> Counts:
    """Return the places at which foreground begins and ends in turn, row by row, of a window of one foreground value.

    int64 [2 R] for R runs: each ends before the next one begins, and may go on from one line to the next.
    """
    edges = _places_in_lines(window, _changes(window.guarded, 1), 0)
    return edges if window.pixels.shape[1] < window.shape_hw[1] else _joined(edges)


def column_edges(window: Window) -> Counts:
    """Return the same as :func:`row_edges`, column by column."""
    step, height = window.guarded.shape[1], window.shape_hw[0]
    found = _changes(window.guarded, step)
    line = found // step
    edges = (found - line * step) * height + line + ((window.left - 1) * height + window.top - 1)
    edges.sort()
    return edges if window.pixels.shape[0] < height else _joined(edges)


def _places_in_lines(window: Window, found: Counts, lead: int) -> Counts:
    """Return places of the guarded pixels as places in the image's lines of ``lead`` + W."""
    step, length = window.guarded.shape[1], lead + window.shape_hw[1]
    before = found - 1  # so that the end of a line is counted in that line
    before += before // step * (length - step)
    before += (window.top - 1) * length + lead + window.left
    return before


def _changes(pixels: Mask, step: int) -> Counts:
    """Return the places of a contiguous array that differ from the one ``step`` before."""
    flat = pixels.ravel()
    differs = np.zeros(-(-flat.size // 8) * 8, np.bool_)
    np.not_equal(flat[step:], flat[:-step], out=differs[step : flat.size])
    # eight at a time first: most places are no change
    eights = differs.view(np.uint64)
    groups = np.flatnonzero(eights != 0)
    inner = np.flatnonzero(eights[groups].view(np.bool_))
    places: Counts = groups[inner >> 3] * 8 + (inner & 7)
    return places


def _joined(edges: Counts) -> Counts:
    """Leave out where a run ends and the next begins at the same place."""
    between = edges[1:-1].reshape(-1, 2)
    apart = between[:, 0] != between[:, 1]
    if apart.all():
        return edges
    return np.concatenate([edges[:1], between[apart].ravel(), edges[-1:]])
