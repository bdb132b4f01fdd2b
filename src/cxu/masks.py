"""One row → its masks: where it is drawn, and what each policy makes of its uncertainty. Pure.

``Placement`` maps the row's pixels to the pixels drawn; ``draw_organs`` draws one plane an organ; ``merge_labels``
paints them into one image.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import contour, raster, table
from cxu.anatomy import IGNORE_LABEL, N_NODES, ORGAN_NAMES, ORGANS, Organ, OrganName
from cxu.codec import Mask
from cxu.errors import FormatError, UsageError
from cxu.frame import Box, ModelFrame
from cxu.window import Window

Policy = Literal["confident", "full", "ignore", "probability"]
MaskFormat = Literal["labels", "organs", "npz", "rle", "tar"]
Unusable = Literal["ignore", "background"]
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
NEEDS_SIGMA: Final = ("ignore", "probability")
_FARTHEST_PX: Final = 1e6  # far beyond any image, and drawn without overflow
_FORMATS_OF: Final[dict[Policy, tuple[MaskFormat, ...]]] = {
    "probability": ("organs", "npz", "tar"),
    "ignore": ("labels", "organs", "npz", "tar"),
}


@dataclass(frozen=True)
class MaskOptions:
    """What is drawn and how it is written.

    Attributes
    ----------
    policy
        ``confident`` draws the polygon through confident nodes, ``full`` through all, ``ignore`` the full one with a
        band of 255 around uncertain edges, ``probability`` the probability of belonging to the organ in 1/255.
    format
        How masks are written: ``labels``, ``organs``, ``npz``, ``rle`` or ``tar``.
    band
        Half-width of the ignore band in standard deviations.
    unusable
        What ``labels`` holds where an organ is unusable: 255 within its full polygon, or background.
    """

    policy: Policy = "confident"
    format: MaskFormat = "labels"
    band: float = raster.BAND_SIGMAS
    unusable: Unusable = "ignore"

    def __post_init__(self) -> None:
        for name, choices in (("policy", POLICIES), ("format", get_args(MaskFormat)), ("unusable", get_args(Unusable))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown; expected {', '.join(choices)}")
        allowed = _FORMATS_OF.get(self.policy, get_args(MaskFormat))
        if self.format not in allowed:
            raise UsageError(f"--policy {self.policy} cannot be written as {self.format}; take {' or '.join(allowed)}")
        if not 0 <= self.band < float("inf"):
            raise UsageError(f"--band {self.band}: expected a number of standard deviations, 0 or more")


@dataclass(frozen=True)
class Placement:
    """Where a row is drawn: the mask's size, and the map from the row's pixels to the mask's.

    Attributes
    ----------
    shape_hw
        Height and width of the mask.
    scale_xy, offset_xy
        Mask pixels per pixel of the row, and where the row's origin lies in the mask.
    exact
        False where the position is assumed rather than known.
    """

    shape_hw: tuple[int, int]
    scale_xy: tuple[float, float] = (1.0, 1.0)
    offset_xy: tuple[float, float] = (0.0, 0.0)
    exact: bool = True

    def points(self, points_xy: FloatArray) -> FloatArray:
        """Map points [..., 2] into the mask's pixels."""
        if self.scale_xy == (1.0, 1.0) and self.offset_xy == (0.0, 0.0):
            return points_xy
        return points_xy.astype(np.float64) * self.scale_xy + self.offset_xy

    def sigmas(self, sigma_xy: FloatArray) -> FloatArray:
        """Map standard deviations [..., 2]: they only scale."""
        return sigma_xy * np.asarray(self.scale_xy)


def resized(shape_hw: tuple[int, int], target_hw: tuple[int, int]) -> Placement:
    """Return the placement of rows of ``shape_hw`` px in a mask of ``target_hw`` px, each axis scaled to fit."""
    scale_xy = (target_hw[1] / shape_hw[1], target_hw[0] / shape_hw[0])
    return Placement(target_hw, scale_xy)


def in_image(frame: ModelFrame, shape_hw: tuple[int, int]) -> Placement:
    """Return the placement of model-frame rows in an image of ``shape_hw`` px with its model frame."""
    return Placement(shape_hw, (frame.scale, frame.scale), frame.offset_xy, frame.exact)


@dataclass(frozen=True)
class RowShape:
    """What of a row is drawn.

    Attributes
    ----------
    landmarks_xy, sigma_xy
        float32 [120, 2] px of the row's frame; sigma NaN where unknown.
    confident, usable
        bool [120], bool [3].
    samples_xy
        Kept samples [S, 120, 2], or None.
    """

    landmarks_xy: FloatArray
    sigma_xy: FloatArray
    confident: BoolArray
    usable: BoolArray
    samples_xy: FloatArray | None = None

    @classmethod
    def all_of(cls, rows: pa.Table) -> list[Self]:
        """Return what is drawn of each row of a table, kept samples included; without its column, sigma is unknown."""
        unknown = np.broadcast_to(np.float32(np.nan), (len(rows), N_NODES, 2))
        columns = (
            table.landmarks_of(rows),
            table.sigmas_of(rows) if "sigma_xy" in rows.column_names else unknown,
            table.confident_of(rows),
            table.usable_of(rows),
            _samples_of(rows),
        )
        return [cls(*values) for values in zip(*columns, strict=True)]


def _samples_of(rows: pa.Table) -> list[FloatArray | None]:
    """Return each row's kept samples [S, 120, 2], None where there are none."""
    if "samples_xy" not in rows.column_names:
        return [None] * len(rows)
    return [
        row.values.to_numpy().reshape(-1, N_NODES, 2) if row.is_valid and len(row.values) else None
        for row in rows["samples_xy"]
    ]


class Band(NamedTuple):
    """Where to ignore: a part of the mask, and which of its pixels."""

    box: Box
    pixels: BoolArray


@dataclass(frozen=True, eq=False)
class OrganMask:
    """The mask of one organ.

    Attributes
    ----------
    polygon_xy
        What is drawn, [N, 2] px of the mask; an unusable organ's full polygon, under every policy.
    shape_hw
        Height and width of the mask.
    usable
        Whether the organ may be used.
    area_ratio
        Area drawn as the organ relative to its full polygon; 0 for an unusable organ.
    band
        Where the policy ``ignore`` is uncertain, else None.
    probability
        uint8 [H, W], round(255 p) under the policy ``probability``, else None.
    """

    polygon_xy: FloatArray
    shape_hw: tuple[int, int]
    usable: bool = True
    area_ratio: float = 1.0
    band: Band | None = None
    probability: Mask | None = None

    @functools.cached_property
    def vertices(self) -> raster.Vertices:
        """The whole pixels int32 [N, 2] that the polygon is drawn through."""
        return raster.to_vertices(self.polygon_xy)

    @functools.cached_property
    def box(self) -> Box:
        """What holds all pixels drawn of polygon and band; it may reach out of the mask."""
        return raster.box_around(self.vertices) if self.band is None else self.band.box

    @functools.cached_property
    def window(self) -> Window:
        """What is drawn of polygon and band: 1, and 255 where ignored."""
        window = Window.blank(self.box, self.shape_hw)
        raster.paint_vertices(window, self.vertices, 1)
        if self.band is not None:
            np.copyto(window.part(self.band.box), IGNORE_LABEL, where=self.band.pixels)
        return window

    @property
    def plane(self) -> Mask:
        """uint8 [H, W]: 0 and 1, 255 where ignored; or the probability."""
        return self.window.image() if self.probability is None else self.probability

    @property
    def crosses_itself(self) -> bool:
        """Whether the polygon of a usable organ is no simple one."""
        return self.usable and bool(contour.crosses_itself([self.polygon_xy])[0])


def draw_organs(
    row: RowShape, placement: Placement, options: MaskOptions, *, names: Collection[OrganName] = ORGAN_NAMES
) -> dict[OrganName, OrganMask]:
    """Draw each organ of a row by the policy, in the order of ORGANS; of some, only those in ``names``.

    Raises
    ------
    UsageError
        If the policy needs standard deviations and the row has none.
    FormatError
        If landmarks of these organs are no finite positions, or standard deviations none that there can be.
    """
    wanted = [(index, organ) for index, organ in enumerate(ORGANS) if organ.name in names]
    _check_drawable(row, options.policy, [organ for _, organ in wanted])
    placed = _place_row(row, placement, options.policy)
    return {organ.name: _draw_organ(placed, organ, index, placement.shape_hw, options) for index, organ in wanted}


def _check_drawable(row: RowShape, policy: Policy, organs: Iterable[Organ]) -> None:
    if not all(np.abs(row.landmarks_xy[organ.nodes]).max() < _FARTHEST_PX for organ in organs):  # nor is NaN
        raise FormatError(f"landmarks that are no number, or beyond {_FARTHEST_PX:,.0f} px")
    if policy in NEEDS_SIGMA and ((row.sigma_xy < 0) | np.isinf(row.sigma_xy)).any():
        raise FormatError("standard deviations that are negative or infinite")
    if policy in NEEDS_SIGMA and not has_uncertainty(policy, row.sigma_xy, row.samples_xy):
        raise UsageError(f"--policy {policy} needs standard deviations, and the row has none")


def with_outline(row: RowShape, policy: Policy) -> RowShape:
    """Return a row whose organs without an outline are unusable: limits may leave a usable one without any node."""
    if policy == "full":
        return row
    return replace(row, usable=row.usable & [row.confident[organ.nodes].any() for organ in ORGANS])


def has_uncertainty(policy: Policy, sigma_xy: FloatArray, samples_xy: FloatArray | None) -> bool:
    """Tell whether a row knows what a policy of :data:`NEEDS_SIGMA` draws: sigma, or for ``probability`` samples."""
    return not np.isnan(sigma_xy).any() or (policy == "probability" and samples_xy is not None)


def _place_row(row: RowShape, placement: Placement, policy: Policy) -> RowShape:
    """Return a row in the pixels of its mask, of its uncertainty what the policy needs."""
    landmarks_xy = placement.points(row.landmarks_xy)
    if policy not in NEEDS_SIGMA:
        return replace(row, landmarks_xy=landmarks_xy)
    samples_xy = None if row.samples_xy is None else placement.points(row.samples_xy)
    sigma_xy = placement.sigmas(row.sigma_xy)
    return replace(row, landmarks_xy=landmarks_xy, sigma_xy=sigma_xy, samples_xy=samples_xy)


def _draw_organ(row: RowShape, organ: Organ, index: int, shape_hw: tuple[int, int], options: MaskOptions) -> OrganMask:
    usable = bool(row.usable[index])
    mask = OrganMask(_drawn_nodes(row, organ, index, options.policy), shape_hw, usable, float(usable))
    return _finish_organ(mask, row, organ, options) if usable else mask


def _drawn_nodes(row: RowShape, organ: Organ, index: int, policy: Policy) -> FloatArray:
    contour_xy, confident = row.landmarks_xy[organ.nodes], row.confident[organ.nodes]
    if policy == "confident" and row.usable[index] and not confident.all():
        return contour_xy[confident]
    return contour_xy


def _finish_organ(mask: OrganMask, row: RowShape, organ: Organ, options: MaskOptions) -> OrganMask:
    """Return the mask of a usable organ with what its policy adds to the polygon, and its area."""
    if options.policy == "probability":
        probability = _draw_probability(row, organ, mask.shape_hw)
        expected, full = (float(plane.sum(dtype=np.int64)) for plane in (probability, mask.plane))
        return replace(mask, probability=probability, area_ratio=_ratio(expected / 255, full))
    if options.policy == "ignore":
        band = _draw_band(mask, row, organ, options.band)
        finished = replace(mask, band=band)
        covered = np.count_nonzero(mask.window.pixels)
        kept = np.count_nonzero(finished.window.pixels == 1)
        return replace(finished, area_ratio=_ratio(float(kept), float(covered)))
    full_xy = row.landmarks_xy[organ.nodes]
    if len(mask.polygon_xy) == len(full_xy):
        return mask
    return replace(mask, area_ratio=_ratio(contour.polygon_area(mask.polygon_xy), contour.polygon_area(full_xy)))


def _draw_probability(row: RowShape, organ: Organ, shape_hw: tuple[int, int]) -> Mask:
    if row.samples_xy is not None:
        return raster.sample_probability_mask(row.samples_xy[:, organ.nodes], shape_hw)
    return raster.probability_mask(row.landmarks_xy[organ.nodes], row.sigma_xy[organ.nodes], shape_hw)


def _draw_band(mask: OrganMask, row: RowShape, organ: Organ, band_sigmas: float) -> Band:
    sigma_xy, confident = row.sigma_xy[organ.nodes], row.confident[organ.nodes]
    uncertain_edges = ~(confident & np.roll(confident, -1))
    band = raster.ignore_band(mask.polygon_xy, sigma_xy, uncertain_edges, mask.shape_hw, band_sigmas=band_sigmas)
    box = _box_around(mask.polygon_xy, band_sigmas * float(sigma_xy.max()), mask.shape_hw)
    return Band(box, band[box.top : box.bottom, box.left : box.right])


def _ratio(area: float, full: float) -> float:
    return area / full if full else 1.0


def _box_around(points_xy: FloatArray, reach: float, shape_hw: tuple[int, int]) -> Box:
    """Return the part of a mask that lies within ``reach`` of the points' extent."""
    size_wh = shape_hw[::-1]
    left, top = np.clip(np.floor(points_xy.min(axis=0) - reach), 0, size_wh).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points_xy.max(axis=0) + reach) + 1, 0, size_wh).astype(int).tolist()
    return Box(left, top, right, bottom)


def merge_labels(organs: Mapping[OrganName, OrganMask], options: MaskOptions) -> Mask:
    """Paint organ planes into one label image uint8 [H, W]: lungs, then heart, then what is to be ignored.

    255 wins over any label: the ignore band of one organ lies on top of the others, and so does the full polygon of an
    unusable organ, unless ``unusable="background"`` leaves it out.
    """
    return merge_window(organs, options).image()


def merge_window(organs: Mapping[OrganName, OrganMask], options: MaskOptions) -> Window:
    """Return the window of :func:`merge_labels` that holds all organs."""
    masks = organs.values()
    window = _window_around(masks)
    for organ in ORGANS:
        if organs[organ.name].usable:
            raster.paint_vertices(window, organs[organ.name].vertices, organ.label)
    for mask in masks:
        if mask.band is not None:
            np.copyto(window.part(mask.band.box), IGNORE_LABEL, where=mask.band.pixels)
        elif not mask.usable and options.unusable == "ignore":
            raster.paint_vertices(window, mask.vertices, IGNORE_LABEL)
    return window


def covered_window(masks: Collection[OrganMask]) -> Window:
    """Return the window that holds some organs, usable or not: 1 where one of their polygons lies, else 0."""
    window = _window_around(masks)
    for mask in masks:
        raster.paint_vertices(window, mask.vertices, 1)
    return window


def _window_around(masks: Collection[OrganMask]) -> Window:
    """Return background that holds all that is drawn of some organs, one at least."""
    lefts, tops, rights, bottoms = zip(*(mask.box for mask in masks), strict=True)
    box = Box(min(lefts), min(tops), max(rights), max(bottoms))
    return Window.blank(box, next(iter(masks)).shape_hw)
