"""The folder that masks are written into: what is said of each organ, and what is counted of them.

``index.parquet`` has a line an organ; for the rest see :mod:`cxu.blockfolder`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxu.anatomy import ORGAN_NAMES
from cxu.blockfolder import BlockFolder, Contents

INDEX_SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("image_id", pa.string()),
        ("organ", pa.string()),
        ("path", pa.string()),
        ("usable", pa.bool_()),
        ("area_ratio", pa.float32()),
        ("crosses_itself", pa.bool_()),
    ]
)


@dataclass
class MaskContents(Contents):
    """What blocks hold: rows with and without masks, files, and by organ what is unusable and what crosses itself."""

    unusable: Counter[str] = field(default_factory=Counter)
    crossing: Counter[str] = field(default_factory=Counter)

    def add(self, lines: pa.Table) -> None:
        """Count one more block, given its lines of the index."""
        super().add(lines)
        for organ in ORGAN_NAMES:
            of_organ = lines.filter(pc.equal(lines["organ"], organ))
            self.unusable[organ] += int(np.count_nonzero(~of_organ["usable"].to_numpy()))
            self.crossing[organ] += int(np.count_nonzero(of_organ["crosses_itself"].to_numpy()))


class MaskFolder(BlockFolder[MaskContents]):
    """A folder of masks."""

    noun = "masks"
    index = "index.parquet"
    schema = INDEX_SCHEMA
    contents = MaskContents
