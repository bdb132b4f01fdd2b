"""Annotated landmarks by the name of their image, and which images they belong to."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cxu import table
from cxu.anatomy import N_NODES
from cxu.catalog import strip_image_suffix
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError
from cxu.frame import MODEL_SIZE
from cxu.predict_plan import PlannedImage
from cxu.store import StoredTable

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Truth:
    """Landmarks float32 [120, 2] by image name, px of the 1024 model frame; NaN where a node is not annotated."""

    name: str
    landmarks_xy: Mapping[str, FloatArray]


def read_truth(path: Path) -> Truth:
    """Read an ``.npz`` of ``name`` [n] and ``landmarks_xy`` [n, 120, 2], px of the 1024 model frame.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it does not hold these arrays.
    DuplicateIdError
        If a name stands there twice.
    """
    if not path.is_file():
        raise MissingInputError(f"--truth {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, landmarks_xy = [str(name) for name in file["name"]], file["landmarks_xy"].astype(np.float32)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: expected arrays name [n] and landmarks_xy [n, {N_NODES}, 2] ({error})") from None
    if landmarks_xy.shape != (len(names), N_NODES, 2):
        raise FormatError(
            f"{path}: landmarks_xy is {list(landmarks_xy.shape)}, expected {[len(names), N_NODES, 2]}: a row a name"
        )
    return _truth(str(path), names, landmarks_xy)


def truth_of_table(stored: StoredTable) -> Truth:
    """Return the landmarks of a table, brought into the model frame, by image id.

    Raises
    ------
    UsageError
        If rows are in image px and do not know where the model frame lies.
    DuplicateIdError
        If an id stands there twice.
    """
    rows = stored.read(("image_id", "frame", "frame_side", "frame_offset_xy", "landmarks_xy"))
    found = table.landmarks_of(rows)
    in_image = np.array(rows["frame"].to_pylist()) == "image"
    side = np.where(in_image, table.scalar_column(rows, "frame_side"), MODEL_SIZE)
    offset = np.where(in_image[:, None], table.list_column(rows, "frame_offset_xy"), 0)
    if not np.isfinite(side).all() or not np.isfinite(offset).all():
        raise UsageError(
            f"--truth {stored.name}: it has rows in image pixels that do not know where the model frame lies; take "
            "rows in the model frame, or an .npz"
        )
    landmarks_xy = (found - offset[:, None]) * (MODEL_SIZE / side)[:, None, None]
    return _truth(stored.name, rows["image_id"].to_pylist(), landmarks_xy.astype(np.float32))


def _truth(name: str, names: Sequence[str], landmarks_xy: FloatArray) -> Truth:
    twice = [one for one, count in Counter(names).items() if count > 1]
    if twice:
        raise DuplicateIdError(f"{name}: {twice[0]!r} stands there twice; expected one row an image")
    return Truth(name, dict(zip(names, landmarks_xy, strict=True)))


def match_truth(images: Sequence[PlannedImage], truth: Truth) -> dict[PlannedImage, FloatArray]:
    """Return the landmarks of each image that has any, in the order of the images.

    A name is that of an image's id, with or without suffix, or else the end of one: ``x`` is ``films/x.png``. Images
    whose landmarks are NaN throughout have none.

    Raises
    ------
    DuplicateIdError
        If two images have one name.
    """
    found: dict[PlannedImage, FloatArray] = {}
    taken: dict[str, PlannedImage] = {}
    for image in images:
        name = next((name for name in _names(image) if name in truth.landmarks_xy), None)
        if name is None or not np.isfinite(truth.landmarks_xy[name]).all(axis=1).any():
            continue
        if name in taken:
            raise DuplicateIdError(
                f"{truth.name}: {name!r} would be the truth of {taken[name].image_id!r} and of {image.image_id!r}; "
                "name rows by their paths below the folder, or evaluate the images apart"
            )
        taken[name] = image
        found[image] = truth.landmarks_xy[name]
    return found


def _names(image: PlannedImage) -> list[str]:
    """Return what an image may be called, the closest name first."""
    whole = [image.image_id, strip_image_suffix(image.image_id)]
    return [*whole, *(PurePosixPath(name).name for name in whole)]
