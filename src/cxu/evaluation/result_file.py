"""What an experiment measured, as a file: Parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cxu import files
from cxu.errors import UsageError

FORMATS: Final = (".parquet", ".csv")


def check_table_path(path: Path, option: str = "--out") -> None:
    """Check that a table can be written under that name, before there is one.

    Raises
    ------
    UsageError
        If the suffix is neither Parquet's nor that of CSV.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{option} {path}: expected a name that ends in {' or '.join(FORMATS)}")


def write_rows(rows: pa.Table, path: Path) -> None:
    """Write rows, whole or not at all; the suffix says the format. What is null is empty in CSV."""
    check_table_path(path)
    with files.replacing_output(path) as temporary:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(rows, temporary)
        else:
            pq.write_table(rows, temporary, compression="zstd")
