"""Predictions and truth as arrays in the 1024 model frame: rows of tables, and ``.npz`` landmarks."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import table
from cxu.anatomy import N_NODES
from cxu.catalog import FrameName
from cxu.errors import FormatError, MissingInputError
from cxu.evaluation.truth_masks import ImagePlace, LeftOut, MaskTruth, is_mask_folder, list_masks
from cxu.frame import ModelFrame

if TYPE_CHECKING:
    from cxu.store import Home, StoredTable

FloatArray = npt.NDArray[np.float64]

_COLUMNS: Final = (
    "source",
    "image_id",
    "height",
    "width",
    "frame",
    "frame_side",
    "frame_offset_xy",
    "landmarks_xy",
    "sigma_model_px",
    "model_id",
)


@dataclass(frozen=True, eq=False)
class ModelRows:
    """Rows of a table brought into the 1024 model frame.

    Attributes
    ----------
    name
        What the table is called.
    source, image_id, model_id
        Texts [n].
    landmarks_xy
        float64 [n, 120, 2], px of the 1024 model frame; NaN where a node has no position.
    sigma_px
        float64 [n, 120] node uncertainty, px of the 1024 model frame; NaN for rows without.
    images
        Of rows in their image's own pixels: its height and width, and where the model frame lies in it; else None.
    left_out
        Rows that are in none of these, and why.
    """

    name: str
    source: tuple[str, ...]
    image_id: tuple[str, ...]
    model_id: tuple[str, ...]
    landmarks_xy: FloatArray
    sigma_px: FloatArray
    images: tuple[ImagePlace | None, ...]
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Self:
        """Return the rows at some indices."""
        texts = {
            name: tuple(getattr(self, name)[index] for index in indices)
            for name in ("source", "image_id", "model_id", "images")
        }
        return type(self)(
            self.name,
            **texts,
            landmarks_xy=self.landmarks_xy[indices],
            sigma_px=self.sigma_px[indices],
            left_out=self.left_out,
        )


def read_rows(stored: StoredTable) -> ModelRows:
    """Read a table's rows into the 1024 model frame; see :func:`model_rows`."""
    return model_rows(stored.read(_COLUMNS), stored.name)


def model_rows(rows: pa.Table, name: str) -> ModelRows:
    """Bring rows of the one table into the 1024 model frame, by side and origin of their frame.

    Rows in image pixels that do not know where their model frame lies are left out and listed.
    """
    sides = table.scalar_column(rows, "frame_side")
    offsets = table.list_column(rows, "frame_offset_xy").astype(np.float64)
    sizes = [table.scalar_column(rows, column) for column in ("height", "width")]
    frames = rows["frame"].to_pylist()
    landmarks_xy = table.landmarks_of(rows).astype(np.float64)
    kept, images, left_out = [], [], []
    for index, (frame, image_id) in enumerate(zip(frames, rows["image_id"].to_pylist(), strict=True)):
        place = None
        if frame == "image":
            if not (sides[index] > 0 and np.isfinite(offsets[index]).all()):
                left_out.append(LeftOut(image_id, "in image pixels, and where its model frame lies is not known"))
                continue
            model_frame = ModelFrame(float(sides[index]), (float(offsets[index, 0]), float(offsets[index, 1])))
            landmarks_xy[index] = model_frame.to_model(landmarks_xy[index])
            if all(np.isfinite(size[index]) for size in sizes):
                place = ((int(sizes[0][index]), int(sizes[1][index])), model_frame)
        kept.append(index)
        images.append(place)
    kept_rows = rows.take(pa.array(kept, pa.int64()))
    return ModelRows(
        name,
        tuple(kept_rows["source"].to_pylist()),
        tuple(kept_rows["image_id"].to_pylist()),
        tuple(kept_rows["model_id"].to_pylist()),
        landmarks_xy[kept],
        table.list_column(rows, "sigma_model_px").astype(np.float64)[kept],
        tuple(images),
        tuple(left_out),
    )


@dataclass(frozen=True, eq=False)
class LandmarkTruth:
    """Annotated landmarks.

    Attributes
    ----------
    name
        Where they come from.
    image_id
        Texts [n].
    landmarks_xy
        float64 [n, 120, 2], px of the 1024 model frame; NaN where a node is not annotated.
    left_out
        Rows that are in none of these, and why.
    """

    name: str
    image_id: tuple[str, ...]
    landmarks_xy: FloatArray
    left_out: tuple[LeftOut, ...] = ()


Truth = LandmarkTruth | MaskTruth


def open_truth(home: Home, name: str, *, frame: FrameName | None = None) -> Truth:
    """Return the truth that ``name`` means: an ``.npz`` file, a folder of mask images, or a table as of a home.

    Raises
    ------
    MissingInputError
        If there is none.
    FormatError, UsageError
        If it is none of these.
    """
    path = Path(name)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    if is_mask_folder(path):
        return list_masks(path)
    rows = read_rows(home.open(name, frame=frame))
    return LandmarkTruth(name, rows.image_id, rows.landmarks_xy, rows.left_out)


def read_npz(path: Path) -> LandmarkTruth:
    """Read an ``.npz`` of ``name`` [n] and ``landmarks_xy`` [n, 120, 2], px of the 1024 model frame.

    NaN marks what is not annotated. Other arrays in the file are ignored.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it does not hold these arrays.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, landmarks_xy = [str(name) for name in file["name"]], file["landmarks_xy"].astype(np.float64)
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"{path}: expected the arrays name [n] and landmarks_xy [n, {N_NODES}, 2], px of the 1024 frame ({error})"
        ) from None
    if landmarks_xy.shape != (len(names), N_NODES, 2):
        raise FormatError(
            f"{path}: landmarks_xy is {list(landmarks_xy.shape)}, expected {[len(names), N_NODES, 2]}: one a name"
        )
    return LandmarkTruth(str(path), tuple(names), landmarks_xy)
