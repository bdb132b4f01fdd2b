"""Rows of the one table → a CSV in the published columns, which ``cxu import`` and other readers of such files take.

Source: the published tables, ``docs/datasets.md``; the way back is :mod:`cxu.ingest`. The page ``docs/format.md`` says
what such a file cannot hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import codec, files, table
from cxu.anatomy import ORGANS, OrganName
from cxu.catalog import strip_image_suffix
from cxu.codec import Counts
from cxu.errors import FormatError, UsageError
from cxu.masks import MaskOptions, Placement, RowShape, draw_organs
from cxu.table import PUBLISHED_MODEL
from cxu.window import row_edges

# How many digits are written, see `csv_lines`.
Precision = Literal["hundredths", "published", "exact"]

ID_COLUMN: Final = "image_id"
SIGMA_COLUMN: Final = "Landmarks (Std)"
ORGAN_COLUMNS: Final[dict[OrganName, str]] = {
    "left_lung": "Left Lung",
    "right_lung": "Right Lung",
    "heart": "Heart",
}
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
_SIGMA_DECIMALS: Final = 2
_LANDMARK_DECIMALS: Final = {"hundredths": 2, "published": 0}
_NEEDS_QUOTES: Final = re.compile('[",\r\n]')
_SUFFIX: Final = ".png"
_FULL: Final = MaskOptions(policy="full", format="rle")

FloatArray = npt.NDArray[np.floating]


def write_published(batches: Iterable[pa.Table], path: Path, *, precision: Precision = "hundredths") -> int:
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
    precision
        See :func:`csv_lines`.

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
        If landmarks or standard deviations are no finite numbers.
    """
    n_rows = 0
    with files.replacing_output(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        kind: dict[str, Any] = {}
        for rows in batches:
            if not len(rows):
                continue
            is_first, kind = not kind, _check_kind(rows, kind)
            if is_first:
                stream.write(csv_header(has_sigma=kind["standard deviations"]))
            stream.writelines(csv_lines(rows, precision=precision))
            n_rows += len(rows)
        if not n_rows:
            stream.write(csv_header())
    return n_rows


def csv_header(*, has_sigma: bool = True) -> str:
    """Return the first line of a file, with its end."""
    return _line(column for column in COLUMNS if has_sigma or column != SIGMA_COLUMN)


def csv_lines(rows: pa.Table, *, precision: Precision = "hundredths") -> list[str]:
    """Return a line a row, with its end, in the columns of :func:`csv_header`.

    Parameters
    ----------
    rows
        All with or all without standard deviations.
    precision
        ``hundredths``: two decimals of landmarks and standard deviations. ``published``: rows that were published as
        they are; of others landmarks rounded to whole pixels and two decimals of standard deviations, as published
        ones have. ``exact``: every number in the shortest text that float32 reads back.

    Raises
    ------
    FormatError
        If landmarks or standard deviations are no finite numbers.
    """
    is_exact = np.full(len(rows), precision == "exact")
    if precision == "published":
        is_exact = np.array([model_id == PUBLISHED_MODEL for model_id in rows["model_id"].to_pylist()], np.bool_)
    ids = rows["image_id"].to_pylist()
    landmarks = table.landmarks_of(rows)
    _check_finite(landmarks, ids, "landmarks")
    if precision != "exact":
        decimals = _LANDMARK_DECIMALS[precision]
        landmarks = np.where(is_exact[:, None, None], landmarks, np.round(landmarks.astype(np.float64), decimals))
    columns = [
        [_published_id(image_id) for image_id in ids],
        *(_shortest(rows[name]) for name in ("rca_mean", "rca_max")),
        _joined(_number_texts(landmarks), len(rows)),
    ]
    if rows["sigma_xy"].null_count < len(rows):
        columns.append(_sigma_texts(rows, is_exact, ids))
    columns += _mask_texts(landmarks, rows["height"].to_pylist(), rows["width"].to_pylist())
    columns += [_shortest(rows[name]) for name in ("height", "width")]
    return [_line(values) for values in zip(*columns, strict=True)]


def _line(values: Iterable[str]) -> str:
    # Python's csv writer leaves a carriage return without quotes (3.11), and readers then end the line there
    quoted = ('"{}"'.format(text.replace('"', '""')) if _NEEDS_QUOTES.search(text) else text for text in values)
    return ",".join(quoted) + "\n"


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


def _published_id(image_id: str) -> str:
    """Return an id as reading gives it back: an image suffix is taken off there, so one that belongs gets another."""
    return image_id if strip_image_suffix(image_id) == image_id else image_id + _SUFFIX


def _check_finite(values: FloatArray, ids: Sequence[str], what: str) -> None:
    damaged = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if damaged.size:
        raise FormatError(f"{ids[damaged[0]]}: {what} that are no number; expected finite values")


def _shortest(column: pa.ChunkedArray) -> list[str]:
    """Return the shortest text that reads back the same number, blank for null."""
    texts: list[str] = column.cast(pa.string()).fill_null("").to_pylist()
    return texts


def _number_texts(values: FloatArray) -> pa.Array:
    """Return numbers in the shortest text that float32 reads back."""
    # adding zero turns -0.0 into 0.0
    return pa.array(values.ravel().astype(np.float32) + np.float32(0)).cast(pa.string())


def _joined(texts: pa.Array, n_rows: int) -> list[str]:
    """Return as many texts of the same number of values each, separated by commas."""
    ends = np.linspace(0, len(texts), n_rows + 1).astype(np.int32)
    joined: list[str] = pc.binary_join(pa.ListArray.from_arrays(ends, texts), ",").to_pylist()
    return joined


def _sigma_texts(rows: pa.Table, is_exact: npt.NDArray[np.bool_], ids: Sequence[str]) -> list[str]:
    """Return the standard deviations of rows, with two decimals at least; exact ones with as many as they have."""
    sigmas = table.sigmas_of(rows)
    _check_finite(sigmas, ids, "standard deviations")
    rounded = [codec.format_landmarks(sigma, decimals=_SIGMA_DECIMALS) for sigma in sigmas]
    if not is_exact.any():
        return rounded
    # what two decimals already say is written with two, as published
    is_whole = np.round(sigmas.astype(np.float64), _SIGMA_DECIMALS).astype(np.float32) == sigmas
    exact = _joined(_number_texts(sigmas), len(rows))
    needs_more = is_exact & ~is_whole.all(axis=(1, 2))
    return [more if needed else text for more, needed, text in zip(exact, needs_more.tolist(), rounded, strict=True)]


def _mask_texts(
    landmarks_xy: FloatArray, heights: Sequence[int | None], widths: Sequence[int | None]
) -> list[list[str]]:
    """Return by organ the published RLE of each row's full polygon; blank where the image's size is unknown."""
    shapes = [(height, width) if height and width else None for height, width in zip(heights, widths, strict=True)]
    known = [index for index, shape in enumerate(shapes) if shape]
    drawn = [_mask_edges(landmarks_xy[index], shape) for index, shape in enumerate(shapes) if shape]
    columns = []
    for organ in ORGAN_COLUMNS:
        texts = [""] * len(shapes)
        for index, text in zip(known, codec.format_rle([edges[organ] for edges in drawn]).to_pylist(), strict=True):
            texts[index] = text
        columns.append(texts)
    return columns


def _mask_edges(landmarks_xy: FloatArray, shape_hw: tuple[int, int]) -> dict[OrganName, Counts]:
    n_nodes, n_organs = len(landmarks_xy), len(ORGANS)
    nothing = np.full_like(landmarks_xy, np.nan)
    row = RowShape(landmarks_xy, nothing, np.ones(n_nodes, np.bool_), np.ones(n_organs, np.bool_))
    return {name: row_edges(mask.window) for name, mask in draw_organs(row, Placement(shape_hw), _FULL).items()}
