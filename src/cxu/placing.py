"""Where a row is drawn: in its own frame, resized, or in its own image, and whether that image is the row's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

import pyarrow as pa

from cxu import images, masks
from cxu.catalog import FrameName, Source, source_or_custom
from cxu.errors import FormatError, ImageError, UsageError
from cxu.frame import MODEL_SIZE, crop_box
from cxu.image_listing import ImageFile
from cxu.masks import Placement
from cxu.table import PUBLISHED_MODEL

Layout = Literal["ids", "images"]
KEY_COLUMNS: Final = ("source", "image_id", "frame", "height", "width", "model_id")


@dataclass(frozen=True)
class Target:
    """Where and how large masks are drawn.

    Attributes
    ----------
    images
        Folders, globs, lists or zips of the images; each mask then takes its image's resolution. Empty: the row's
        frame.
    size_hw
        Size of every mask; a single number in ``longest`` instead keeps the aspect.
    longest
        Longer side of every mask.
    layout
        Paths by id, or mirroring the image tree.
    """

    images: tuple[str, ...] = ()
    size_hw: tuple[int, int] | None = None
    longest: int | None = None
    layout: Layout = "ids"

    def __post_init__(self) -> None:
        sizes = [*(self.size_hw or ()), *([] if self.longest is None else [self.longest])]
        if self.images and sizes:
            raise UsageError("--size does not go with --images: each mask takes the resolution of its own image")
        if not all(text.strip() for text in self.images):
            raise UsageError("--images is blank: name a folder, glob, list or zip")
        if self.layout == "images" and not self.images:
            raise UsageError("--layout images mirrors the image tree, and needs --images")
        if sizes and (min(sizes) < 1 or max(sizes) ** 2 > images.MAX_PIXELS):
            most = math.isqrt(images.MAX_PIXELS)
            raise UsageError(f"--size {'x'.join(map(str, sizes))}: expected sides of 1 to {most:,} px")


@dataclass(frozen=True)
class RowKey:
    """What of a row decides where it is drawn. ``shape_hw`` is that of its frame, None where unknown."""

    source: str
    image_id: str
    frame: FrameName
    shape_hw: tuple[int, int] | None
    is_published: bool = True

    @classmethod
    def of(cls, rows: pa.Table, row: int) -> Self:
        """Return the key of one row of a table."""
        return cls.all_of(rows.slice(row, 1))[0]

    @classmethod
    def all_of(cls, rows: pa.Table) -> list[Self]:
        """Return the keys of all rows of a table."""
        columns = (rows[name].to_pylist() for name in KEY_COLUMNS)
        return [
            cls(source, image_id, frame, _shape_of(height, width), model_id == PUBLISHED_MODEL)
            for source, image_id, frame, height, width, model_id in zip(*columns, strict=True)
        ]


def _shape_of(height: int | None, width: int | None) -> tuple[int, int] | None:
    """Return height and width, None where one of them is none that a frame can have."""
    return (height, width) if (height or 0) > 0 and (width or 0) > 0 else None  # type: ignore[return-value]


def place_row(key: RowKey, image: ImageFile | None, target: Target) -> Placement:
    """Return where a row is drawn.

    Without images that is the row's frame, or the size asked for; with images it is the row's own image, the model
    frame undone with it.

    Raises
    ------
    ImageError
        If the image is missing or the mask would be too large, or see :func:`place_in_image`.
    FormatError
        If the row does not know its size.
    """
    placement = _place(key, image, target)
    height, width = placement.shape_hw
    if height * width > images.MAX_PIXELS:
        raise ImageError(f"the mask would be {width} × {height} px; at most {images.MAX_PIXELS:,} pixels are drawn")
    return placement


def _place(key: RowKey, image: ImageFile | None, target: Target) -> Placement:
    if key.frame not in get_args(FrameName):
        raise FormatError(f"the row says that its landmarks are in the frame {key.frame!r}; expected model or image")
    if target.images:
        if image is None:
            raise ImageError("no image of this id among the images given")
        return place_in_image(image, source_or_custom(key.source), key)
    shape_hw = _known_shape(key)
    if target.size_hw:
        return masks.resized(shape_hw, target.size_hw)
    if target.longest:
        scale = target.longest / max(shape_hw)
        return masks.resized(shape_hw, (max(1, round(shape_hw[0] * scale)), max(1, round(shape_hw[1] * scale))))
    return Placement(shape_hw)


def place_in_image(image: ImageFile, source: Source, key: RowKey) -> Placement:
    """Return where a row lies in its own image.

    Raises
    ------
    ImageError
        If the image cannot be read, has another aspect than the row says, or shows that the row's position is off:
        the published original-resolution rows of MIMIC and PadChest forget the crop of a black border.
    FormatError
        If the row does not know the size that its landmarks refer to.
    """
    if key.frame == "model" and source.framing != "native":
        shape_hw, frame = images.image_frame(image, source)
        return masks.in_image(frame, shape_hw)
    row_hw, shape_hw = _known_shape(key), images.image_size(image)
    if not _same_aspect(row_hw, shape_hw):
        raise ImageError(
            f"{image.name} is {shape_hw[0]} × {shape_hw[1]} px (height × width), the row says "
            f"{row_hw[0]} × {row_hw[1]}: not the same image, or a cropped copy"
        )
    if source.framing == "crop_pad" and key.is_published:
        _refuse_border(image, source)
    return masks.resized(row_hw, shape_hw)


def _known_shape(key: RowKey) -> tuple[int, int]:
    if key.shape_hw is None:
        raise FormatError(
            "the row does not know its height and width, blank in the published file; "
            "rows in the model frame (fetch or import with --frame model) always know theirs"
        )
    return key.shape_hw


def _refuse_border(image: ImageFile, source: Source) -> None:
    """Refuse an image with a border of more than a pixel of the model frame on any side.

    Which of the borders the published positions account for is not known for certain.
    """
    grey = images.read_grey(image)
    box, (height, width) = crop_box(grey), grey.shape
    borders = {"left": box.left, "top": box.top, "right": width - box.right, "bottom": height - box.bottom}
    if max(borders.values()) * MODEL_SIZE > max(box.width, box.height):
        found = ", ".join(f"{size} px {side}" for side, size in borders.items() if size)
        raise ImageError(
            f"{image.name} has a black border ({found}), and the published landmarks at original resolution of "
            f"{source.title} do not account for it: fetch or import {source.name} with --frame model, whose place in "
            "the image is exact"
        )


def _same_aspect(row_hw: tuple[int, int], image_hw: tuple[int, int]) -> bool:
    """Tell whether an image is the row's own or a resized copy of it, to a pixel of the coarser one."""
    scale = max(image_hw) / max(row_hw)
    return all(abs(row * scale - side) <= max(1.0, scale) for row, side in zip(row_hw, image_hw, strict=True))
