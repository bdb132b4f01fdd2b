"""How masks become files: an encoder or a writer a format, whole files or none, the same bytes every time."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa

from cxu import codec, files, png, raster, store
from cxu.anatomy import ORGAN_NAMES, OrganName
from cxu.codec import Mask
from cxu.masks import MaskFormat, MaskOptions, OrganMask, merge_labels, merge_window
from cxu.window import column_edges, row_edges

Organs = Mapping[OrganName, OrganMask]
# Organ → where below the output folder it is drawn, None where it is not.
Paths = dict[OrganName, str | None]

PARTS_FOLDER: Final = "masks"
_PART_SUFFIXES: Final[dict[MaskFormat, str]] = {"rle": ".parquet", "tar": ".tar"}
_MASKS_TOGETHER: Final = 192  # masks whose runs become text at a time: those of more do not stay in the cache
_MEMBER: Final = "!"  # between the path of a tar and the name of a file in it

RLE_SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("image_id", pa.string()),
        ("organ", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("rle", pa.large_string()),
        ("rle_coco", pa.large_string()),
    ],
    metadata={"rle": "start length …, 1-based, row-major", "rle_coco": "COCO compressed counts, column-major"},
)


@dataclass(frozen=True)
class RowFiles:
    """The files of one row: suffix → content, and for each organ the suffix of the file that it is drawn in."""

    contents: dict[str, bytes]
    suffixes: dict[OrganName, str | None]


def part_path(options: MaskOptions, name: str) -> str | None:
    """Return the path of the file that holds all rows of the block called ``name``; None for files of their own."""
    suffix = _PART_SUFFIXES.get(options.format)
    return f"{PARTS_FOLDER}/{name}{suffix}" if suffix else None


def row_suffixes(options: MaskOptions) -> tuple[str, ...]:
    """Return the suffixes of the files that a row may have of its own."""
    suffixes = {"labels": (".png",), "npz": (".npz",), "organs": tuple(map(_organ_suffix, ORGAN_NAMES))}
    return suffixes.get(options.format, ())


def _organ_suffix(name: OrganName) -> str:
    return f".{name}.png"


def encode_row(organs: Organs, options: MaskOptions) -> RowFiles:
    """Return one row's files in a format of one or several files a row: ``labels``, ``organs`` or ``npz``."""
    encoders: dict[str, Callable[[Organs, MaskOptions], RowFiles]] = {
        "labels": _encode_labels,
        "organs": _encode_organs,
        "npz": _encode_npz,
    }
    return encoders[options.format](organs, options)


def _encode_labels(organs: Organs, options: MaskOptions) -> RowFiles:
    return RowFiles({".png": png.encode_label_window(merge_window(organs, options))}, dict.fromkeys(organs, ".png"))


def _encode_organs(organs: Organs, options: MaskOptions) -> RowFiles:  # noqa: ARG001 - one signature for all
    suffixes = {name: _organ_suffix(name) if mask.usable else None for name, mask in organs.items()}
    return RowFiles({suffix: _encode_plane(organs[name]) for name, suffix in suffixes.items() if suffix}, suffixes)


def _encode_npz(organs: Organs, options: MaskOptions) -> RowFiles:
    arrays: dict[str, Mask] = {name: mask.plane for name, mask in organs.items() if mask.usable}
    if options.policy != "probability":
        arrays["labels"] = merge_labels(organs, options)
    if not arrays:
        return RowFiles({}, dict.fromkeys(organs))
    in_labels = "labels" in arrays
    suffixes = {name: ".npz" if mask.usable or in_labels else None for name, mask in organs.items()}
    return RowFiles({".npz": _pack_npz(arrays)}, suffixes)


def _pack_npz(arrays: Mapping[str, Mask]) -> bytes:
    """Return what np.savez_compressed writes, at the lowest level: a third of its time, and a mask hardly cares."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # named by a ZipInfo, a member has no clock time
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getbuffer(), compresslevel=1)
    return content.getvalue()


def _encode_plane(mask: OrganMask) -> bytes:
    return png.encode_label_window(mask.window) if mask.probability is None else raster.encode_png(mask.probability)


class MaskWriter(Protocol):
    """Writes the masks of one block of rows below an output folder."""

    n_bytes: int

    def write(self, source: str, image_id: str, stem: str, organs: Organs) -> Paths:
        """Write one row's masks; ``stem`` is its path below the output folder, without suffix."""
        ...

    def __enter__(self) -> Self:
        """Open the block's file, where the format has one."""
        ...

    def __exit__(self, *failure: object) -> None:
        """Finish that file, or remove it where the block failed."""
        ...


def open_writer(out: Path, name: str, options: MaskOptions) -> MaskWriter:
    """Return the writer of a format for the block called ``name``."""
    writers: dict[str, type[Any]] = {"rle": _RlePart, "tar": _TarPart}
    writer: MaskWriter = writers.get(options.format, _OwnFiles)(out, name, options)
    return writer


class _OwnFiles:
    """Every row has files of its own."""

    def __init__(self, out: Path, name: str, options: MaskOptions) -> None:  # noqa: ARG002 - one signature for all
        self._out, self._options = str(out), options
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Nothing is open."""

    def write(self, source: str, image_id: str, stem: str, organs: Organs) -> Paths:  # noqa: ARG002
        row = encode_row(organs, self._options)
        for suffix, content in row.contents.items():
            files.write_bytes(Path(f"{self._out}/{stem}{suffix}"), content)
            self.n_bytes += len(content)
        return {name: f"{stem}{suffix}" if suffix else None for name, suffix in row.suffixes.items()}


class _Part:
    """All rows of a block are in one file."""

    def __init__(self, out: Path, name: str, options: MaskOptions) -> None:
        path = part_path(options, name)
        assert path is not None, "a format of parts"
        self._path, self._file, self._options = path, out / path, options
        self.n_bytes = 0


class _RlePart(_Part):
    """A line an organ. Runs become text many masks at a time."""

    def __enter__(self) -> Self:
        self._done: list[pa.Table] = []
        self._begin()
        return self

    def _begin(self) -> None:
        self._lines: list[tuple[str, str, str, int, int]] = []
        self._rows: list[codec.Counts | None] = []
        self._columns: list[codec.Counts | None] = []

    def write(self, source: str, image_id: str, stem: str, organs: Organs) -> Paths:  # noqa: ARG002
        for name, mask in organs.items():
            height, width = mask.shape_hw
            self._lines.append((source, image_id, name, height, width))
            self._rows.append(row_edges(mask.window) if mask.usable else None)
            self._columns.append(codec.coco_counts(column_edges(mask.window), height * width) if mask.usable else None)
        if len(self._lines) >= _MASKS_TOGETHER:
            self._format()
        return {name: self._path if mask.usable else None for name, mask in organs.items()}

    def _format(self) -> None:
        columns = [pa.array(column) for column in zip(*self._lines, strict=True)]
        texts = [codec.format_rle(self._rows), codec.format_coco(self._columns)]
        self._done.append(pa.table([*columns, *texts], schema=RLE_SCHEMA))
        self._begin()

    def __exit__(self, *failure: object) -> None:
        if failure[0] is not None:
            return
        if self._lines:
            self._format()
        # in one piece, so that the file does not depend on how many were formatted together
        store.write_table(pa.concat_tables([RLE_SCHEMA.empty_table(), *self._done]).combine_chunks(), self._file)
        self.n_bytes = self._file.stat().st_size


class _TarPart(_Part):
    """A WebDataset shard: PNG members and a JSON member a row, under one key."""

    def __enter__(self) -> Self:
        self._whole_or_none = files.replacing(self._file)
        self._tar = tarfile.open(self._whole_or_none.__enter__(), "w", format=tarfile.GNU_FORMAT)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._tar.close()
        self._whole_or_none.__exit__(*failure)
        self.n_bytes = self._file.stat().st_size if failure[0] is None else 0

    def write(self, source: str, image_id: str, stem: str, organs: Organs) -> Paths:
        # WebDataset takes everything from the first dot of a file name for the extension
        folder, slash, base = stem.rpartition("/")
        key = f"{folder}{slash}{base.replace('.', '%2E')}"
        if self._options.policy == "probability":
            members = {str(name): _encode_plane(mask) for name, mask in organs.items() if mask.usable}
        else:
            members = {"labels": png.encode_label_window(merge_window(organs, self._options))}
        for name, content in members.items():
            self._add(f"{key}.{name}.png", content)
        facts = {"source": source, "image_id": image_id, "usable": {name: organs[name].usable for name in ORGAN_NAMES}}
        self._add(f"{key}.json", json.dumps(facts, sort_keys=True).encode())
        holders = {name: "labels" if "labels" in members else name for name in organs}
        return {
            name: f"{self._path}{_MEMBER}{key}.{holder}.png" if holder in members else None
            for name, holder in holders.items()
        }

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
