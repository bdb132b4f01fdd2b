"""The folder that crops are written into: their boxes as a table, and what is counted of them.

``boxes.parquet`` and ``boxes.csv`` have the same lines, one a crop; for the rest see :mod:`cxu.blockfolder`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxu import files
from cxu.blockfolder import BlockFolder, Contents, facts_of

CSV: Final = "boxes.csv"
BOX_SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("organs", pa.string()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("organ_left", pa.int32()),
        ("organ_top", pa.int32()),
        ("organ_right", pa.int32()),
        ("organ_bottom", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("scale_x", pa.float64()),
        ("scale_y", pa.float64()),
        ("clipped", pa.bool_()),
        ("padded", pa.bool_()),
        ("negative", pa.bool_()),
    ]
)


@dataclass
class CropContents(Contents):
    """What blocks hold: rows with and without a crop, files, and rows that were left out."""

    clipped: int = 0
    padded: int = 0
    negative: int = 0
    left_out: list[list[str]] = field(default_factory=list)

    def add(self, lines: pa.Table) -> None:
        """Count one more block, given its lines of the table."""
        super().add(lines)
        self.clipped += sum(lines["clipped"].to_pylist())
        self.padded += sum(lines["padded"].to_pylist())
        self.negative += sum(lines["negative"].to_pylist())
        self.left_out += facts_of(lines).left_out


class CropFolder(BlockFolder[CropContents]):
    """A folder of crops."""

    noun = "crops"
    index = "boxes.parquet"
    beside_index = (CSV,)
    schema = BOX_SCHEMA
    contents = CropContents

    def write_index(self, blocks: Iterable[str]) -> CropContents:
        """Write the boxes from the lines of blocks that were cut, and return what they list."""
        names = list(blocks)
        with files.replacing(self.out / CSV) as temporary, pa_csv.CSVWriter(temporary, BOX_SCHEMA) as writer:
            for name in names:
                writer.write_table(pq.read_table(self.lines_path(name)).replace_schema_metadata(None))
        return super().write_index(names)
