"""The 120 landmarks: organs, node ranges, labels and colours. Pure data; everything else derives from it.

Sides are the patient's: the right lung lies on the left of a frontal image. Each organ is a closed ring of
consecutive nodes. The order of :data:`ORGANS` is the paint order: lungs first, then the heart, which overlaps them.

Source: CheXmask-U (Cosarinsky et al., arXiv 2512.10715), node order of HybridGNet (Gaggion et al., TMI 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

OrganName = Literal["right_lung", "left_lung", "heart"]


@dataclass(frozen=True)
class Organ:
    """One organ: its name, its label value in a mask, and its nodes ``first`` to ``stop - 1``."""

    name: OrganName
    label: int
    first: int
    stop: int
    colour_rgb: tuple[int, int, int]
    published_column: str

    @property
    def n_nodes(self) -> int:
        """Number of landmarks of this organ."""
        return self.stop - self.first

    @property
    def nodes(self) -> slice:
        """The organ's nodes as a slice into 120."""
        return slice(self.first, self.stop)

    @property
    def title(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", " ")


# Okabe and Ito's palette: told apart with every common kind of colour blindness.
RIGHT_LUNG: Final = Organ("right_lung", 1, 0, 44, (86, 180, 233), "Right Lung")
LEFT_LUNG: Final = Organ("left_lung", 2, 44, 94, (0, 158, 115), "Left Lung")
HEART: Final = Organ("heart", 3, 94, 120, (230, 159, 0), "Heart")

ORGANS: Final = (RIGHT_LUNG, LEFT_LUNG, HEART)
ORGAN_NAMES: Final[tuple[OrganName, ...]] = get_args(OrganName)
N_NODES: Final = HEART.stop
N_ORGANS: Final = len(ORGANS)

BACKGROUND_LABEL: Final = 0
IGNORE_LABEL: Final = 255

# Keys that options accept for an organ or a group of them.
ORGAN_GROUPS: Final[dict[str, tuple[OrganName, ...]]] = {
    "right_lung": ("right_lung",),
    "left_lung": ("left_lung",),
    "lungs": ("right_lung", "left_lung"),
    "heart": ("heart",),
}
