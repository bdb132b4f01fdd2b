"""What is said of one row: a verdict and why, from sizes, fits and limits. Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from cxu.check.rows import LIMITS, Comparison, Limits, Sizes, Verdict
from cxu.quality import ORIENTATIONS

# from the most certain to the least: the first that holds is the verdict, and the worst come first on contact sheets
VERDICTS: Final[tuple[Verdict, ...]] = (
    "unreadable",
    "size",
    "unplaced",
    "turned",
    "mirrored",
    "sides",
    "unlike",
    "shifted",
    "scaled",
    "unsure",
    "ok",
)
MEANING: Final[dict[Verdict, str]] = {
    "unreadable": "the image cannot be read",
    "size": "the image has another aspect than the table records",
    "unplaced": "cxu draws no mask there",
    "turned": "the film seems turned",
    "mirrored": "image and table are mirrored against each other",
    "sides": "right and left are exchanged",
    "unlike": "the outlines are those of another film",
    "shifted": "the outlines lie elsewhere",
    "scaled": "the outlines are larger or smaller",
    "unsure": "the network is not to be asked about this image",
    "ok": "nothing speaks against it",
}
_TURNED: Final = tuple(name for name in ORIENTATIONS if "turned" in name or "upside" in name)


def judge(
    sizes: Sizes, compared: Comparison, *, problem: str = "", unreadable: str = "", limits: Limits = LIMITS
) -> tuple[Verdict, str]:
    """Return the verdict on a row, and why, in a sentence.

    Parameters
    ----------
    sizes, compared
        What was found; a comparison of NaN alone where no network looked.
    problem
        Why cxu would draw no mask in this image, where it would not.
    unreadable
        Why the image cannot be read, where it cannot.
    limits
        Where doubts begin.
    """
    if unreadable:
        return "unreadable", unreadable
    if sizes.kind in ("exchanged", "other"):
        return "size", _size_reason(sizes)
    if problem:
        return "unplaced", problem
    return _judge_seen(compared, limits)


def _judge_seen(compared: Comparison, limits: Limits) -> tuple[Verdict, str]:
    if math.isnan(compared.side_odds):
        return "ok", ""
    turned = [name for name in _TURNED if f"seems {name}" in (compared.reason or "")]
    if compared.quality == "reject" and turned:
        return "turned", f"the film seems {max(turned, key=len)}"
    if is_unsure(compared, limits):
        return "unsure", f"not judged: {compared.reason}"
    return _sides(compared, limits) or _place(compared, limits)


def is_unsure(compared: Comparison, limits: Limits = LIMITS) -> bool:
    """Tell whether the network is not to be asked about the image.

    The gate rejects it, and what the network sees is like the table's outlines in no way: where the two agree, the
    network cannot be far wrong.
    """
    nearest = np.fmin(compared.fit.residual_px, compared.mirrored.residual_px)
    return bool(np.isnan(nearest) or (compared.quality == "reject" and nearest > limits.residual_px))


def _size_reason(sizes: Sizes) -> str:
    assert sizes.recorded_hw is not None
    assert sizes.image_hw is not None
    (image_height, image_width), (height, width) = sizes.image_hw, sizes.recorded_hw
    said = f"the image is {image_height} × {image_width} px (height × width), the table says {height} × {width}"
    if sizes.kind == "exchanged":
        return f"{said}: height and width are exchanged"
    how = {"stretched": "each axis scaled by itself", "cut": "cut or padded", "": "cropped, padded, or another image"}
    return f"{said}: {how[sizes.likely]}"


def _sides(compared: Comparison, limits: Limits) -> tuple[Verdict, str] | None:
    lies_mirrored = compared.fit.residual_px - compared.mirrored.residual_px > limits.mirror_px
    if lies_mirrored and compared.is_mirrored:
        return "mirrored", "the image is the mirror image of the one that the table is of"
    if lies_mirrored:
        return "mirrored", "the table's outlines are mirrored"
    if compared.names_exchanged and not compared.is_mirrored:
        return "sides", "the table's right lung is the left one"
    if compared.is_mirrored and not compared.names_exchanged:
        return "sides", "the film seems mirrored, and the table's right lung is the left one"
    return None


def _place(compared: Comparison, limits: Limits) -> tuple[Verdict, str]:
    fit = compared.fit
    if fit.residual_px > limits.residual_px:
        return "unlike", f"outlines {fit.residual_px:.0f} px apart, shift and scale taken out: another film?"
    if max(map(abs, fit.shift_xy)) > limits.shift_px:
        return "shifted", f"the chest lies {told_shift(fit.shift_xy)} than the table says"
    if max(abs(scale - 1) for scale in fit.scale_xy) > limits.scale:
        return "scaled", f"the chest is {told_scale(fit.scale_xy)} the table's outlines"
    return "ok", ""


def told_shift(shift_xy: tuple[float, float]) -> str:
    """Return a shift in words, px rounded.

    Examples
    --------
    >>> told_shift((12.3, -40.0)), told_shift((0.2, 7.0))
    ('12 px further right and 40 px further up', '7 px further down')
    """
    x, y = (round(value) for value in shift_xy)
    parts = [f"{abs(x)} px further {'right' if x > 0 else 'left'}"] if x else []
    parts += [f"{abs(y)} px further {'down' if y > 0 else 'up'}"] if y else []
    return " and ".join(parts) or "0 px further"


def told_scale(scale_xy: tuple[float, float]) -> str:
    """Return a scale in words.

    Examples
    --------
    >>> told_scale((1.1, 0.9))
    '1.10 times as wide and 0.90 times as high as'
    """
    return f"{scale_xy[0]:.2f} times as wide and {scale_xy[1]:.2f} times as high as"
