"""Which data set an image belongs to, as a table of the user's says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cxu.catalog import strip_image_suffix
from cxu.errors import FormatError, MissingInputError, UsageError


def read_groups(text: str) -> dict[str, str]:
    """Return image id → group, from ``FILE:COLUMN``: a CSV or Parquet file whose first column has the ids.

    Raises
    ------
    UsageError
        If there is no column of that name, or none is named.
    MissingInputError, FormatError
        If there is no such file, or it is no table.
    """
    name, separator, column = text.rpartition(":")
    if not separator or not name or not column:
        raise UsageError(f"--by {text}: expected FILE:COLUMN, such as index.csv:dataset")
    path = Path(name)
    if not path.is_file():
        raise MissingInputError(f"--by {text}: {path} does not exist")
    rows = _read(path)
    if column not in rows.column_names:
        raise UsageError(f"--by {text}: no column {column!r}; {path} has {', '.join(rows.column_names)}")
    ids, groups = (rows[name].cast(pa.string()).to_pylist() for name in (rows.column_names[0], column))
    return {strip_image_suffix(one): group for one, group in zip(ids, groups, strict=True) if one and group}


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        # an id of digits is a text
        header = pyarrow.csv.open_csv(path).schema.names
        texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
        return pyarrow.csv.read_csv(path, convert_options=texts)
    except pa.ArrowException as error:
        raise FormatError(f"{path} is no table: {error}") from None


def groups_of(image_ids: Sequence[str], groups: Mapping[str, str], otherwise: Sequence[str]) -> list[str]:
    """Return the group of each image, found by its id or the id's last part, else what stands in ``otherwise``."""
    keys = [strip_image_suffix(one) for one in image_ids]
    return [
        groups.get(key) or groups.get(key.rsplit("/", 1)[-1]) or other
        for key, other in zip(keys, otherwise, strict=True)
    ]
