"""Mask images as the truth: what a folder holds, the planes of an image, and where a prediction is drawn in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cxu import files
from cxu.anatomy import IGNORE_LABEL, ORGAN_NAMES, ORGANS, OrganName
from cxu.errors import FormatError, ImageError, MissingInputError, UsageError
from cxu.frame import MODEL_SIZE, ModelFrame

BoolArray = npt.NDArray[np.bool_]
Mask = npt.NDArray[np.uint8]
MaskKind = Literal["labels", "organs"]
ImagePlace = tuple[tuple[int, int], ModelFrame]  # height and width of an image, and where its model frame lies

_INDEX: Final = "index.parquet"
_ORGAN_SUFFIXES: Final = {name: f".{name}.png" for name in ORGAN_NAMES}
_LABELS: Final = {0, IGNORE_LABEL, *(organ.label for organ in ORGANS)}
_ORGAN_VALUES: Final = {0, 1, IGNORE_LABEL}
_READABLE_MODES: Final = ("L", "P")  # one byte a pixel: a grey value, or an index into a palette


class LeftOut(NamedTuple):
    """An image that could not be compared, and why."""

    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image_id}: {self.reason}"


@dataclass(frozen=True)
class MaskTruth:
    """A folder of mask images.

    Attributes
    ----------
    name
        The folder.
    kind
        ``labels``: one image with the labels of all organs; ``organs``: an image an organ.
    image_id
        Texts [n].
    paths
        Of each image, organ → file. With ``labels`` every organ has the same one; with ``organs`` an organ that is not
        annotated has none.
    """

    name: str
    kind: MaskKind
    image_id: tuple[str, ...]
    paths: tuple[Mapping[OrganName, Path], ...]
    left_out: tuple[LeftOut, ...] = ()


def is_mask_folder(path: Path) -> bool:
    """Tell whether a folder holds masks rather than a table: PNG files, and no Parquet beside an index of masks."""
    if not path.is_dir() or any(file.name != _INDEX for file in path.glob("*.parquet")):
        return False
    return (path / _INDEX).is_file() or next(path.rglob("*.png"), None) is not None


def list_masks(folder: Path) -> MaskTruth:
    """List the mask images of a folder: by its index where cxu wrote it, else by file names.

    Without an index the id of an image is its path below the folder; names that end in ``.right_lung.png``,
    ``.left_lung.png`` and ``.heart.png`` are masks of one organ.

    Raises
    ------
    UsageError
        If the folder holds probabilities, another format than PNG, or both kinds of masks.
    MissingInputError
        If there is no mask.
    """
    options = (files.read_record(folder) or {}).get("options") or {}
    if options.get("policy") == "probability":
        raise UsageError(f"{folder} holds probabilities; expected masks of another policy: cxu rasterize --policy full")
    if options.get("format") not in (None, "labels", "organs"):
        raise UsageError(
            f"{folder} holds masks as {options['format']}; expected cxu rasterize --format labels or organs"
        )
    found = _from_index(folder) if (folder / _INDEX).is_file() else _from_names(folder)
    if not found:
        raise MissingInputError(f"{folder} holds no mask in PNG")
    kinds = {_kind_of(paths) for paths in found.values()}
    if len(kinds) > 1:
        raise UsageError(_two_kinds(folder))
    return MaskTruth(str(folder), kinds.pop(), tuple(found), tuple(found.values()))


def _from_index(folder: Path) -> dict[str, dict[OrganName, Path]]:
    path = folder / _INDEX
    try:
        lines = pq.read_table(path, columns=["image_id", "organ", "path"]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is no index of masks: {error}") from None
    found: dict[str, dict[OrganName, Path]] = {}
    for line in lines:
        of_image = found.setdefault(line["image_id"], {})
        if line["path"] is not None:
            of_image[line["organ"]] = folder / line["path"]
    return found


def _from_names(folder: Path) -> dict[str, dict[OrganName, Path]]:
    labels: dict[str, dict[OrganName, Path]] = {}
    organs: dict[str, dict[OrganName, Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        organ = next((organ for organ, suffix in _ORGAN_SUFFIXES.items() if name.endswith(suffix)), None)
        if organ is None:
            labels[name.removesuffix(".png")] = dict.fromkeys(ORGAN_NAMES, path)
        else:
            organs.setdefault(name.removesuffix(_ORGAN_SUFFIXES[organ]), {})[organ] = path
    if labels and organs:
        raise UsageError(_two_kinds(folder))
    return labels or organs


def _two_kinds(folder: Path) -> str:
    return f"{folder} holds label images and masks of single organs: give a folder of one kind"


def _kind_of(paths: Mapping[OrganName, Path]) -> MaskKind:
    return "labels" if len(paths) == len(ORGAN_NAMES) and len(set(paths.values())) == 1 else "organs"


@dataclass(frozen=True, eq=False)
class OrganPlanes:
    """Masks of one image.

    Attributes
    ----------
    shape_hw
        Height and width.
    planes
        Organ → bool [H, W]; an organ that is not annotated is absent.
    ignored
        The same organs → bool [H, W]: where it is not known what belongs to the organ.
    """

    shape_hw: tuple[int, int]
    planes: Mapping[OrganName, BoolArray]
    ignored: Mapping[OrganName, BoolArray]


def read_planes(paths: Mapping[OrganName, Path], kind: MaskKind) -> OrganPlanes:
    """Read the masks of one image.

    A label image cannot tell an organ that is not there from one that nobody drew: without a pixel of its label it is
    not annotated. A mask of one organ can: a file that is zero throughout is an empty organ, no file no annotation.

    Raises
    ------
    ImageError
        If a file cannot be read, has other values than the format, or sizes differ.
    """
    if kind == "labels":
        labels = _read_mask(next(iter(paths.values())), _LABELS)
        planes = {organ.name: labels == organ.label for organ in ORGANS}
        drawn = {name: plane for name, plane in planes.items() if plane.any()}
        return OrganPlanes(_shape(labels), drawn, dict.fromkeys(drawn, labels == IGNORE_LABEL))
    read = {organ: _read_mask(path, _ORGAN_VALUES) for organ, path in paths.items()}
    if not read:
        raise ImageError("no organ has a mask")
    if len({mask.shape for mask in read.values()}) > 1:
        raise ImageError(f"masks of different size: {', '.join(f'{o} {_size(m)}' for o, m in read.items())}")
    for organ, mask in read.items():
        # a binary mask of 0 and 255, as other tools write it, would be taken for an organ that is unknown throughout
        if (mask == IGNORE_LABEL).any() and not (mask == 1).any():
            raise ImageError(f"{paths[organ].name} has 255 but no 1: 255 means to ignore, write the organ as 1")
    return OrganPlanes(
        _shape(next(iter(read.values()))),
        {organ: mask == 1 for organ, mask in read.items()},
        {organ: mask == IGNORE_LABEL for organ, mask in read.items()},
    )


def _read_mask(path: Path, allowed: set[int]) -> Mask:
    try:
        with Image.open(path) as picture:
            if picture.mode not in _READABLE_MODES:
                raise ImageError(f"{path.name} has pixels of kind {picture.mode}; expected 8-bit grey labels")
            mask = np.array(picture, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, ImageError) else ImageError(f"{path.name} cannot be read: {error}") from None
    unknown = sorted(set(np.unique(mask).tolist()) - allowed)
    if unknown:
        raise ImageError(
            f"{path.name} has the value {unknown[0]}; expected {', '.join(str(value) for value in sorted(allowed))}"
        )
    return mask


def _shape(mask: Mask) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def _size(mask: npt.NDArray[Any]) -> str:
    return f"{mask.shape[1]} × {mask.shape[0]}"


def mask_placement(shape_hw: tuple[int, int], image: ImagePlace | None) -> tuple[float, tuple[float, float]]:
    """Return how model-frame points get into a mask: mask px per px of the model frame, and the frame's origin.

    Parameters
    ----------
    shape_hw
        Size of the mask.
    image
        Size of the row's image and where the model frame lies in it; None where that is not known.

    Raises
    ------
    ImageError
        If the mask is neither of the image's own size nor 1024 × 1024, or could be either and they differ.
    """
    model = (1.0, (0.0, 0.0))
    fits_model = shape_hw == (MODEL_SIZE, MODEL_SIZE)
    fits_image = image is not None and shape_hw == image[0]
    if fits_image and image is not None:
        own = (image[1].scale, image[1].offset_xy)
        if fits_model and own != model:
            raise ImageError("the mask is 1024 × 1024, which may be the image's own pixels or the model frame")
        return own
    if fits_model:
        return model
    size = f"the image's {image[0][1]} × {image[0][0]} or 1024 × 1024" if image is not None else "1024 × 1024"
    raise ImageError(f"the mask is {shape_hw[1]} × {shape_hw[0]} px (width × height), expected {size}")
