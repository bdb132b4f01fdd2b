"""Stretches of the outlines by the names that readers of films use. Pure data: which nodes each has.

Where a stretch ends is a convention of cxu, read off the mean shape that ships with it.
"""

from __future__ import annotations

from typing import Final

REGIONS: Final[dict[str, tuple[int, ...]]] = {
    "right lung, apex": (41, 42, 43, 0, 1, 2, 3),
    "right lung, lateral wall": tuple(range(4, 19)),
    "right costophrenic angle": tuple(range(19, 24)),
    "right lung, base": tuple(range(24, 28)),
    "right cardiophrenic angle": tuple(range(28, 31)),
    "right lung, border to the heart": tuple(range(31, 35)),
    "right lung, mediastinal border": tuple(range(35, 41)),
    "left lung, apex": (91, 92, 93, 44, 45, 46, 47),
    "left lung, lateral wall": tuple(range(48, 63)),
    "left costophrenic angle": tuple(range(63, 68)),
    "left lung, base": tuple(range(68, 71)),
    "left cardiophrenic angle": tuple(range(71, 74)),
    "left lung, border to the heart": tuple(range(74, 81)),
    "left lung, mediastinal border": tuple(range(81, 91)),
    "heart, right border": tuple(range(94, 100)),
    "heart, base (great vessels)": tuple(range(100, 107)),
    "heart, left border": tuple(range(107, 111)),
    "heart, apex": tuple(range(111, 114)),
    "heart, diaphragmatic border": tuple(range(114, 120)),
}
