"""A folder of training data → landmarks and images in memory, and which of them are for what.

The folder's form is described in ``docs/commands/train.md``.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxu.anatomy import HEART, N_NODES
from cxu.errors import FormatError, MissingInputError
from cxu.films import film_frame, model_input, read_film
from cxu.image_listing import ImageFile

Split = Literal["train", "val", "test"]
SPLITS: Final = get_args(Split)
MIN_AGREEMENT: Final = 0.95
_VALIDATION_SHARE: Final = 0.15
_TEST_SHARE: Final = 0.15


class Row(NamedTuple):
    """One image: its name, its data set, and what it is for."""

    name: str
    dataset: str
    split: Split


@dataclass(frozen=True)
class TrainingFolder:
    """The rows of a folder that may be used, with their landmarks.

    Attributes
    ----------
    root
        The folder.
    rows
        n rows.
    landmarks_xy
        float32 [n, 120, 2] in the 1024 frame, NaN where not annotated.
    disagreeing
        Names that were left out because their landmarks disagree with an independent mask.
    """

    root: Path
    rows: tuple[Row, ...]
    landmarks_xy: npt.NDArray[np.float32]
    disagreeing: tuple[str, ...]

    def part(self, split: Split) -> TrainingFolder:
        """Return the rows of one split."""
        chosen = [index for index, row in enumerate(self.rows) if row.split == split]
        return TrainingFolder(self.root, tuple(self.rows[i] for i in chosen), self.landmarks_xy[chosen], ())

    @property
    def has_heart(self) -> npt.NDArray[np.bool_]:
        """Bool [n]: whether the heart is annotated."""
        known = np.isfinite(self.landmarks_xy[:, HEART.nodes])
        return np.asarray(known.all(axis=(1, 2)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many rows each data set has in each split."""
        found = Counter((row.dataset, row.split) for row in self.rows)
        datasets = sorted({row.dataset for row in self.rows})
        return {name: {split: found[name, split] for split in SPLITS} for name in datasets}


def held_out_split(name: str) -> Split:
    """Return what an image without a given split is for: by the hash of its name, so always the same.

    Examples
    --------
    >>> held_out_split("CHNCXR_0001_0") == held_out_split("CHNCXR_0001_0")
    True
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "val" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def read_folder(root: Path) -> TrainingFolder:
    """Read ``landmarks.npz`` and ``index.csv``; no image is opened.

    Raises
    ------
    MissingInputError
        If one of the files is not there.
    FormatError
        If they do not have the documented form.
    """
    names, landmarks_xy = _read_landmarks(root / "landmarks.npz")
    index = _read_index(root / "index.csv")
    unknown = [name for name in names if name not in index]
    if unknown:
        raise FormatError(f"{root / 'index.csv'} has no row for {unknown[0]!r}, which has landmarks")
    kept = [i for i, name in enumerate(names) if index[name][1] > MIN_AGREEMENT]
    disagreeing = tuple(name for name in names if index[name][1] <= MIN_AGREEMENT)
    return TrainingFolder(root, tuple(index[names[i]][0] for i in kept), landmarks_xy[kept], disagreeing)


def _read_landmarks(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    if not path.is_file():
        raise MissingInputError(f"{path} is missing: training data is a folder with landmarks.npz, index.csv, images/")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, landmarks_xy = [str(name) for name in file["name"]], file["landmarks_xy"].astype(np.float32)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: expected arrays name [n] and landmarks_xy [n, {N_NODES}, 2] ({error})") from None
    if landmarks_xy.shape != (len(names), N_NODES, 2):
        raise FormatError(
            f"{path}: landmarks_xy is {list(landmarks_xy.shape)}, expected {[len(names), N_NODES, 2]}: a row a name"
        )
    if len(set(names)) < len(names):
        raise FormatError(f"{path}: {Counter(names).most_common(1)[0][0]!r} stands there twice")
    return names, landmarks_xy


def _read_index(path: Path) -> dict[str, tuple[Row, float]]:
    """Return name → row and label agreement; where none is given the landmarks are trusted."""
    if not path.is_file():
        raise MissingInputError(f"{path} is missing: a line for each image with name, dataset and split")
    found: dict[str, tuple[Row, float]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = {"name", "dataset"} - set(reader.fieldnames or ())
        if missing:
            raise FormatError(f"{path} has no column {sorted(missing)[0]!r}")
        for line in reader:
            try:
                row, agreement = _index_row(line)
            except ValueError as error:
                raise FormatError(f"{path} line {reader.line_num}: {error}") from None
            if row.name in found:
                raise FormatError(f"{path} line {reader.line_num}: {row.name!r} stands there twice")
            found[row.name] = row, agreement
    return found


def _index_row(line: Mapping[str, str | None]) -> tuple[Row, float]:
    """Return a line's row and label agreement; ValueError says what is wrong with it."""
    name, dataset, split = (line.get(column) or "" for column in ("name", "dataset", "split"))
    agreement = line.get("label_agreement") or "1"
    if split not in (*SPLITS, ""):
        raise ValueError(f"split {split!r}; expected train, val, test or none")
    if not 0 <= float(agreement) <= 1:
        raise ValueError(f"label_agreement {agreement!r}; expected 0 to 1 or none")
    return Row(name, dataset, cast(Split, split) if split else held_out_split(name)), float(agreement)


def load_images(root: Path, names: Sequence[str], size: int) -> Tensor:
    """Return images as prediction takes them, in 255 steps of grey: uint8 [n, 1, size, size].

    Raises
    ------
    MissingInputError
        If a name has no file, or several.
    ImageError
        If a file cannot be read.
    """
    files = _image_files(root / "images", names)
    drawn = torch.empty(len(names), 1, size, size, dtype=torch.uint8)
    for index, name in enumerate(names):
        film = read_film(ImageFile.at(files[name]))
        picture = model_input(film, film_frame(film), size)
        drawn[index, 0] = torch.from_numpy(np.rint(picture * 255).astype(np.uint8))
    return drawn


def _image_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    wanted, found = set(names), dict[str, Path]()
    if not folder.is_dir():
        raise MissingInputError(f"{folder} is missing: it holds a file for each name")
    for path in sorted(folder.iterdir()):
        if path.stem in wanted:
            if path.stem in found:
                both = f"{found[path.stem].name} and {path.name}"
                raise MissingInputError(f"{folder} has two files for {path.stem!r}: {both}")
            found[path.stem] = path
    for name in names:
        if name not in found:
            raise MissingInputError(f"{folder} has no file for {name!r}")
    return found
