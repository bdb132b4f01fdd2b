"""One row and its image: whether the sizes agree, and how the outlines lie against what a network sees. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cxu.check import geometry
from cxu.check.geometry import UNKNOWN, Fit

FloatArray = npt.NDArray[np.floating]
Size = Literal["same", "resized", "exchanged", "other", "unknown"]
Verdict = Literal[
    "ok", "unreadable", "size", "unplaced", "turned", "unsure", "mirrored", "sides", "unlike", "shifted", "scaled"
]

_SAME_PX: Final = 1.0


@dataclass(frozen=True)
class Sizes:
    """The size that a table records of an image, and the size it has.

    Attributes
    ----------
    kind
        ``same``; ``resized``, of one aspect; ``exchanged``, height for width; ``other``; ``unknown`` where the table
        does not say, as in the model frame.
    recorded_hw, image_hw
        Height and width in px.
    factor
        Side of the image over that recorded, where they have one aspect; else NaN.
    likely
        How an image of another aspect was likely made of the recorded one, where the outlines seen tell: each axis
        ``stretched`` by itself, or ``cut`` or padded, pixel for pixel; else empty.
    """

    kind: Size = "unknown"
    recorded_hw: tuple[int, int] | None = None
    image_hw: tuple[int, int] | None = None
    factor: float = np.nan
    likely: Literal["", "stretched", "cut"] = ""


def compare_sizes(recorded_hw: tuple[int, int] | None, image_hw: tuple[int, int]) -> Sizes:
    """Return how an image's size compares with that recorded, each (height, width) in px.

    Aspects count as one where each side is what the other says to a pixel of the coarser one.

    Examples
    --------
    >>> compare_sizes((2000, 1000), (1000, 500)).kind, compare_sizes((2000, 1000), (1000, 2000)).kind
    ('resized', 'exchanged')
    """
    if recorded_hw is None:
        return Sizes(image_hw=image_hw)
    if recorded_hw == image_hw:
        return Sizes("same", recorded_hw, image_hw, 1.0)
    for kind, row_hw in (("resized", recorded_hw), ("exchanged", recorded_hw[::-1])):
        factor = max(image_hw) / max(row_hw)
        off = max(abs(row * factor - side) for row, side in zip(row_hw, image_hw, strict=True))
        if off <= max(_SAME_PX, factor):
            return Sizes("resized" if kind == "resized" else "exchanged", recorded_hw, image_hw, factor)
    return Sizes("other", recorded_hw, image_hw)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network says of an image.

    Attributes
    ----------
    landmarks_xy
        [120, 2] px of the 1024 model frame of that image; of its mirror image where ``is_mirrored``.
    side_odds
        Log odds that the image is not mirrored.
    is_mirrored
        Whether the network was shown the mirror image, since the film seems to be one: it has learned films the right
        way round alone.
    quality, reason
        Verdict of the gate, and why it is not ok; None for weights that have no gate.
    """

    landmarks_xy: FloatArray
    side_odds: float
    is_mirrored: bool = False
    quality: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a table's outlines lie against those that a network sees, px of the 1024 model frame of the image.

    Attributes
    ----------
    fit
        The table's outlines as they are, onto those seen.
    mirrored
        The table's outlines mirrored, onto those seen.
    names_exchanged
        Whether the table's right lung lies on the image's right.
    side_odds, is_mirrored, quality, reason
        See :class:`Seen`.
    """

    fit: Fit = UNKNOWN
    mirrored: Fit = UNKNOWN
    names_exchanged: bool = False
    side_odds: float = np.nan
    is_mirrored: bool = False
    quality: str | None = None
    reason: str | None = None


def compare(landmarks_xy: FloatArray, seen: Seen) -> Comparison:
    """Compare a table's landmarks [120, 2], px of the 1024 model frame of the image, with what a network sees there."""
    named, exchanged = geometry.named_by_place(landmarks_xy)
    upright = geometry.fit(named, seen.landmarks_xy)
    turned = geometry.fit(geometry.mirrored(named), seen.landmarks_xy)
    as_it_is, mirrored = (_back(turned), _back(upright)) if seen.is_mirrored else (upright, turned)
    return Comparison(as_it_is, mirrored, exchanged, seen.side_odds, seen.is_mirrored, seen.quality, seen.reason)


def _back(fit: Fit) -> Fit:
    """Return a fit in the mirror image as it is in the image."""
    return fit._replace(shift_xy=(-fit.shift_xy[0], fit.shift_xy[1]))


@dataclass(frozen=True)
class Limits:
    """Where a row's doubts begin; px of the 1024 model frame.

    Attributes
    ----------
    shift_px
        A longer shift, along either axis, is one.
    scale
        So is a scale further from 1, along either axis.
    residual_px
        Outlines further apart, once shift and scale are taken out, are those of another film.
    mirror_px
        By so much mirrored outlines have to lie nearer to be taken for mirrored.
    odds
        A film whose log odds not to be mirrored are below this is taken for mirrored.
    """

    shift_px: float = 30.0
    scale: float = 0.08
    residual_px: float = 15.0
    mirror_px: float = 5.0
    odds: float = -1.0


LIMITS: Final = Limits()


@dataclass(frozen=True, eq=False)
class RowCheck:
    """What was found of one row.

    Attributes
    ----------
    source, image_id, file
        The row and its image.
    verdict, reason
        ``ok``, or what is wrong and why, in a sentence.
    sizes
        The table's size and the image's.
    comparison
        The table's outlines against those seen; unknown where no network looked.
    points_xy
        The table's landmarks [120, 2] and those seen, px of the image as stored; None where unknown.
    seen_xy
        See above.
    """

    source: str
    image_id: str
    file: str
    verdict: Verdict
    reason: str = ""
    sizes: Sizes = field(default_factory=Sizes)
    comparison: Comparison = field(default_factory=Comparison)
    points_xy: FloatArray | None = None
    seen_xy: FloatArray | None = None
