"""Rows of the one table → a CSV in the published columns, which ``cxu import`` and other readers of such files take.

Source: the published tables, ``docs/datasets.md``; the way back is :mod:`cxu.ingest`. The page ``docs/format.md`` says
what such a file cannot hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import codec, files, table
from cxu.anatomy import ORGANS
from cxu.catalog import strip_image_suffix
from cxu.errors import FormatError, UsageError
from cxu.masks import MaskOptions, Placement, RowShape, draw_organs

ID_COLUMN: Final = "image_id"
SIGMA_COLUMN: Final = "Landmarks (Std)"
ORGAN_COLUMNS: Final = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
COLUMNS: Final = (
    ID_COLUMN,
    "Dice RCA (Mean)",
    "Dice RCA (Max)",
    "Landmarks (Mean)",
    SIGMA_COLUMN,
    *ORGAN_COLUMNS.values(),
    "Height",
    "Width",
)
_DECIMALS: Final = 2
_NEEDLESS_ZEROS: Final = re.compile(r"\.00(?=,|$)|(?<=\.\d)0(?=,|$)")
_NEEDS_QUOTES: Final = re.compile('[",\r\n]')
_SUFFIX: Final = ".png"
_FULL: Final = MaskOptions(policy="full", format="rle")

FloatArray = npt.NDArray[np.floating]


def write_published(batches: Iterable[pa.Table], path: Path) -> int:
    """Write rows as a CSV in the published columns, a batch at a time, a whole file or none.

    Landmarks, standard deviations, height and width are those of the rows' own frame; the masks are all nodes' polygons
    of the landmarks as written, rounded to whole pixels. What is unknown is left blank: RCA, the size, and with the
    size the masks. Rows without standard deviations get a file without that column, as in the original CheXmask.

    Parameters
    ----------
    batches
        Tables in the schema, all rows of one source and one frame. Without rows only the header is written.
    path
        The file; one that is there is replaced.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    UsageError
        If rows are of several sources or frames, or only some of them have standard deviations: one such file could
        not be read back.
    FormatError
        If landmarks are no finite positions.
    """
    n_rows = 0
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        kind: dict[str, Any] = {}
        for rows in batches:
            if not len(rows):
                continue
            is_first, kind = not kind, _check_kind(rows, kind)
            if is_first:
                stream.write(_line(_header(kind["standard deviations"])))
            stream.writelines(map(_line, _values(rows)))
            n_rows += len(rows)
        if not n_rows:
            stream.write(_line(COLUMNS))
    return n_rows


def _line(values: Iterable[str]) -> str:
    # Python's csv writer leaves a carriage return without quotes (3.11), and readers then end the line there
    quoted = ('"{}"'.format(text.replace('"', '""')) if _NEEDS_QUOTES.search(text) else text for text in values)
    return ",".join(quoted) + "\n"


def _header(has_sigma: bool) -> list[str]:
    return [column for column in COLUMNS if has_sigma or column != SIGMA_COLUMN]


def _check_kind(rows: pa.Table, kind: dict[str, Any]) -> dict[str, Any]:
    """Return what all rows of a file share: that of ``kind``, or, where it is empty, of ``rows``."""
    columns = {
        "source": rows["source"],
        "frame": rows["frame"],
        "standard deviations": rows["sigma_xy"].is_valid(),
    }
    for name, column in columns.items():
        found = set(column.unique().to_pylist()) | ({kind[name]} if kind else set())
        if len(found) > 1:
            shown = "some rows with and some without" if name == "standard deviations" else ", ".join(sorted(found))
            raise UsageError(
                f"rows of more than one kind for one CSV ({name}: {shown}): it has no column that tells them apart; "
                "write a file for each"
            )
    return {name: column[0].as_py() for name, column in columns.items()}


def _values(rows: pa.Table) -> Iterator[list[str]]:
    """Yield the values of each row as text, in the order of the header."""
    landmarks, sigmas = table.landmarks_of(rows).astype(np.float64), table.sigmas_of(rows)
    names = ("image_id", "rca_mean", "rca_max", "height", "width")
    scalars = [rows[name].combine_chunks().to_pylist() for name in names]
    has_sigma = rows["sigma_xy"].null_count < len(rows)
    for points, sigma, image_id, *numbers in zip(landmarks, sigmas, *scalars, strict=True):
        rca_mean, rca_max, height, width = numbers
        # adding zero turns -0.0 into 0.0
        written_xy = np.round(points, _DECIMALS) + 0.0
        yield [
            _published_id(image_id),
            _shortest(rca_mean),
            _shortest(rca_max),
            _format_points(written_xy, image_id),
            *([codec.format_landmarks(sigma, decimals=_DECIMALS)] if has_sigma else []),
            *_format_masks(written_xy, height, width),
            "" if height is None else str(height),
            "" if width is None else str(width),
        ]


def _published_id(image_id: str) -> str:
    """Return an id as reading gives it back: an image suffix is taken off there, so one that belongs gets another."""
    return image_id if strip_image_suffix(image_id) == image_id else image_id + _SUFFIX


def _shortest(value: float | None) -> str:
    """Return the shortest text that float32 reads back, blank for null."""
    return "" if value is None else str(np.float32(value))


def _format_points(written_xy: FloatArray, image_id: str) -> str:
    if not np.isfinite(written_xy).all():
        raise FormatError(f"{image_id}: landmarks that are no number; expected finite positions")
    return _NEEDLESS_ZEROS.sub("", codec.format_landmarks(written_xy, decimals=_DECIMALS))


def _format_masks(written_xy: FloatArray, height: int | None, width: int | None) -> list[str]:
    """Return the published RLE of each organ's full polygon; blank where the image's size is unknown."""
    if height is None or width is None:
        return [""] * len(ORGAN_COLUMNS)
    n_nodes, n_organs = len(written_xy), len(ORGANS)
    nothing = np.full_like(written_xy, np.nan)
    row = RowShape(written_xy, nothing, np.ones(n_nodes, np.bool_), np.ones(n_organs, np.bool_))
    masks = draw_organs(row, Placement((height, width)), _FULL)
    return [codec.encode_rle(mask.plane) for mask in (masks[name] for name in ORGAN_COLUMNS)]  # type: ignore[index]
