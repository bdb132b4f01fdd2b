"""Measures of shards that wait to be joined: ``<out>.parts/`` beside the file, one whole file a shard.

What is finished is found there by the same command after an interruption, and by the other jobs of an array. Parts are
Arrow files, not Parquet: they come back exactly as they were.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pyarrow as pa
from pyarrow import ipc

from cxu import files
from cxu.measure.rows import Measured

_KEY_HEX: Final = 12
# the columns of a part; a table of the user's may have columns of the same names
_ROWS, _EXTRAS, _REASONS = "rows.", "extras.", "reasons."


@dataclass(frozen=True)
class Parts:
    """The parts of one file of measures; a plain value that travels to workers.

    Attributes
    ----------
    folder
        Absolute.
    key
        Hash of all that the measures depend on: parts of another table never pass for those of this one.
    """

    folder: Path
    key: str

    @classmethod
    def beside(cls, out: Path, key: str) -> Self:
        """Return the parts of the file ``out``."""
        return cls(out.with_name(f"{out.name}.parts").absolute(), key[:_KEY_HEX])

    def path(self, index: int) -> Path:
        """Return where the measures of a shard are once it is measured."""
        return self.folder / f"part-{self.key}-{index:05d}.arrow"

    def begin(self) -> None:
        """Make the folder, and clear what an interrupted run left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.folder)
        for removed in self.folder.parent.glob(f"{files.TEMP_PREFIX}*-{self.folder.name}"):
            shutil.rmtree(removed, ignore_errors=True)

    def write(self, index: int, measured: Measured) -> None:
        """Write the measures of a shard, a whole file or none."""
        reasons = pa.table({name: pa.array(codes) for name, codes in measured.reasons.items()})
        tables = {_ROWS: measured.rows, _EXTRAS: measured.extras, _REASONS: reasons}
        columns = [column for one in tables.values() for column in one.columns]
        fields = [field.with_name(prefix + field.name) for prefix, one in tables.items() for field in one.schema]
        part = pa.table(columns, schema=pa.schema(fields)).combine_chunks()
        options = ipc.IpcWriteOptions(compression="zstd")
        with (
            files.replacing(self.path(index)) as temporary,
            ipc.new_file(str(temporary), part.schema, options=options) as written,
        ):
            written.write_table(part)

    def read(self, index: int) -> Measured:
        """Return the measures of a shard.

        Raises
        ------
        FileNotFoundError
            If they are not there, or no longer.
        """
        with pa.OSFile(str(self.path(index))) as stream:
            part = ipc.open_file(stream).read_all()
        rows, extras, reasons = (_without(part, prefix) for prefix in (_ROWS, _EXTRAS, _REASONS))
        codes = {name: column.to_numpy() for name, column in zip(reasons.column_names, reasons.columns, strict=True)}
        return Measured(rows, extras, codes)

    def remove(self) -> None:
        """Remove the parts, at once for whoever looks, and with them those of a table that has changed since."""
        doomed = files.temporary_name(self.folder)
        with suppress(FileNotFoundError):  # another job did
            self.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Remove the folder where no job has left anything in it."""
        with suppress(OSError):
            self.folder.rmdir()


def _without(part: pa.Table, prefix: str) -> pa.Table:
    """Return the columns whose names begin with ``prefix``, under the rest of their names."""
    fields = [field for field in part.schema if field.name.startswith(prefix)]
    schema = pa.schema([field.with_name(field.name.removeprefix(prefix)) for field in fields])
    return pa.table([part[field.name] for field in fields], schema=schema)
