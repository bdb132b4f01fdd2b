"""A published CSV as batches of text columns, each row with the line it stands on.

Arrow splits the file. What it does not do stands here: telling lines, keeping a damaged row from spoiling others,
and stopping early.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from cxu.catalog import Source
from cxu.errors import FormatError
from cxu.published import Texts, resolve_columns

_BLOCK_BYTES: Final = 4 << 20
# Arrow reads up to 32 blocks ahead, which a download of the beginning only would pay for.
_BLOCK_BYTES_LIMITED: Final = 1 << 20
_MAX_HEADER_BYTES: Final = 1 << 20
_NEWLINE: Final = ord("\n")
_UNREADABLE: Final = (pa.ArrowInvalid, EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Batch:
    """Rows of text in file order: role → binary array, the line each row starts on, and rows of a wrong length."""

    texts: Texts
    lines: npt.NDArray[np.int64]
    broken: list[tuple[int, str]]


class _Utf8Stream(io.RawIOBase):
    """The bytes of a stream, what is no UTF-8 replaced by U+FFFD.

    Such a byte then spoils its own row only; Arrow would give up on the file where that row has a wrong length too.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._stream.read(_MAX_HEADER_BYTES)
            is_plain = chunk.isascii() and not self._decoder.getstate()[0]
            self._ready = chunk if is_plain else self._decoder.decode(chunk, final=not chunk).encode()
            if not chunk:
                break
        taken, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


class CsvReader:
    """Stream a published CSV in batches of text columns, knowing on which line each row stands.

    Arrow tells the numbers of rows it leaves out but not their lines: a row may hold newlines between quotes. So the
    newlines are counted along, in every column but the masks where these are skipped, which hold none.
    """

    def __init__(self, stream: BinaryIO, name: str, source: Source, *, keep_rle: bool, limited: bool = False) -> None:
        self.name = name
        self._block_bytes = min(_BLOCK_BYTES, _BLOCK_BYTES_LIMITED) if limited else _BLOCK_BYTES
        self._stream = io.BufferedReader(_Utf8Stream(stream), _MAX_HEADER_BYTES)
        self._broken: dict[int, pa_csv.InvalidRow] = {}
        self._next_row = self._next_line = 1
        with self._reading():
            self.header = self._read_header()
            self.roles = self._find_roles(source)
        masks = [role for role in self.roles if role.startswith("rle_") and not keep_rle]
        skipped = {self.roles.pop(role) for role in masks}
        self._read = [index for index in range(len(self.header)) if index not in skipped]

    def _read_header(self) -> list[str]:
        line = self._stream.readline(_MAX_HEADER_BYTES).decode("utf-8-sig", "replace")
        try:
            header = next(csv.reader([line.rstrip("\r\n")]), [])
        except csv.Error:
            header = []
        if len(header) < 2:
            raise FormatError(f"{self.name} is no published CSV: its first line is {line[:60]!r}")
        self._next_line += 1
        return header

    def _find_roles(self, source: Source) -> dict[str, int]:
        try:
            return resolve_columns(self.header, self._peek_row(), source)
        except FormatError as error:
            raise FormatError(f"{self.name}: {error}") from None

    def _peek_row(self) -> list[str]:
        text = self._stream.peek(_MAX_HEADER_BYTES).decode("utf-8", "replace")
        try:
            return next(csv.reader(io.StringIO(text, newline="")), [])
        except csv.Error:
            return []  # a field beyond the limit of the csv module: the columns are found by their names alone

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the file.

        Raises
        ------
        FormatError
            If the file cannot be split into rows: an unclosed quote, or a damaged archive.
        """
        names = [f"c{index}" for index in range(len(self.header))]
        wanted = [names[index] for index in self._read]
        with self._reading():
            if not self._stream.peek(1):
                return
            with pa_csv.open_csv(
                pa.PythonFile(self._stream, mode="r"),
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=self._block_bytes, column_names=names),
                parse_options=pa_csv.ParseOptions(
                    newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=self._on_broken_row
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.binary()), include_columns=wanted, strings_can_be_null=False
                ),
            ) as reader:
                yield from (self._numbered(batch) for batch in reader if len(batch))
                # the broken rows behind the last good one
                yield self._numbered(pa.RecordBatch.from_pylist([], schema=reader.schema))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what a damaged file makes the readers raise into one error of ours."""
        try:
            yield
        except _UNREADABLE as error:
            raise FormatError(
                f"{self.name}: cannot be read past line {self._next_line} ({error}); "
                "an unclosed quote or a damaged file: check that line, or download the file again"
            ) from None

    def _on_broken_row(self, row: pa_csv.InvalidRow) -> str:
        self._broken[row.number] = row
        return "skip"

    def _numbered(self, batch: pa.RecordBatch) -> Batch:
        texts = {role: batch.column(f"c{index}") for role, index in self.roles.items()}
        broken = sorted(self._broken)
        numbers = np.arange(self._next_row, self._next_row + len(batch) + len(broken))
        is_broken = np.isin(numbers, broken)
        if len(batch):
            last = numbers[~is_broken][len(batch) - 1]
            numbers, is_broken = numbers[numbers <= last], is_broken[numbers <= last]
        newlines = np.zeros(len(numbers), np.int64)
        newlines[~is_broken] = sum(_count_newlines(column) for column in batch.columns)
        rows = [self._broken.pop(number) for number in numbers[is_broken].tolist()]
        newlines[is_broken] = [row.text.count("\n") for row in rows]
        ends = self._next_line + np.cumsum(newlines + 1)
        starts = ends - newlines - 1
        self._next_row += len(numbers)
        self._next_line = int(ends[-1]) if len(ends) else self._next_line
        reasons = [_explain_fields(row) for row in rows]
        return Batch(texts, starts[~is_broken], list(zip(starts[is_broken].tolist(), reasons, strict=True)))


def _count_newlines(column: pa.Array) -> npt.NDArray[np.int64] | int:
    """Return how many newlines each text of a binary column holds."""
    text = column.buffers()[2]
    # nearly always there is none at all, which costs a fraction of counting them
    if text is None or _NEWLINE not in np.frombuffer(text, np.uint8):
        return 0
    counts: npt.NDArray[np.int64] = pc.count_substring(column, "\n").to_numpy()
    return counts


def _explain_fields(row: pa_csv.InvalidRow) -> str:
    n_lines = row.text.count("\n") + 1
    over = f" on {n_lines} lines" if n_lines > 1 else ""
    quote = ": a quote is left open" if row.text.count('"') % 2 else ""
    return f"{row.actual_columns} fields{over}, expected {row.expected_columns}{quote}"
