"""A table as bytes of Parquet: how its columns are encoded, and row groups encoded apart, joined to one file.

pyarrow encodes the columns of a file one after the other, in one thread. Here each row group is encoded as a file of
its own in memory, in any thread, and appended in order. Only footers know where pages lie, so joining moves the
positions in them and nothing else: the bytes are those of a file that was written in one go, which a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import thrift
from cxu.thrift import Struct

_MAGIC: Final = b"PAR1"
_LENGTH_BYTES: Final = 4
_ZSTD_LEVEL: Final = 1
_LOOKED_AT: Final = 1 << 16  # values of a column that decide how it is encoded

# fields of parquet.thrift
_FILE_NUM_ROWS, _FILE_ROW_GROUPS = 3, 4
_GROUP_COLUMNS, _GROUP_NUM_ROWS, _GROUP_OFFSET, _GROUP_ORDINAL = 1, 3, 5, 7
_CHUNK_META_DATA = 3
_CHUNK_OFFSETS = (2, 4, 6)  # of the chunk, its offset index, its column index
_META_DATA_OFFSETS = (9, 10, 11, 14)  # of data pages, index pages, dictionary page, Bloom filter


def encoding_options(rows: pa.Table) -> dict[str, Any]:
    """Return pyarrow's options for writing tables like this one.

    Lists of float32 whose values recur, as published ones do (whole pixels, hundredths), go into a dictionary, whose
    packed indices Snappy leaves as they are; those of full precision are split into streams of bytes, for zstd.
    Everything else goes into a dictionary and zstd. What was measured: ``docs/decisions/0014-storage.md``.
    """
    lists = {f"{field.name}.list.element": rows.column(at) for at, field in enumerate(rows.schema) if _is_floats(field)}
    recurring = {path for path, column in lists.items() if _recurs(column)}
    paths = _leaf_paths(rows.schema)
    return {
        "use_dictionary": [path for path in paths if path not in lists or path in recurring],
        "column_encoding": {path: "BYTE_STREAM_SPLIT" for path in lists if path not in recurring} or None,
        "write_statistics": [path for path in paths if path not in lists],
        "compression": {path: "snappy" if path in recurring else "zstd" for path in paths},
        "compression_level": {path: _ZSTD_LEVEL for path in paths if path not in recurring},
    }


def _is_floats(field: pa.Field) -> bool:
    is_list = pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type)
    return is_list and pa.types.is_float32(field.type.value_type)


def _recurs(column: pa.ChunkedArray) -> bool:
    """Tell whether the first values of a list column are there twice or more on average; true where there are none."""
    for chunk in column.chunks:
        values = chunk.flatten().slice(0, _LOOKED_AT)
        if len(values):
            return bool(2 * pc.count_distinct(values, mode="all").as_py() <= len(values))
    return True


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Return Parquet's names of the columns, as pyarrow's options take them."""
    leaves = pq.ParquetFile(pa.BufferReader(encode_file(schema.empty_table(), {}))).schema
    return [leaves.column(index).path for index in range(len(leaves))]


def encode_file(rows: pa.Table, options: Mapping[str, Any], late: Mapping[str, str] | None = None) -> pa.Buffer:
    """Return rows as a whole Parquet file of one row group, or of none where there are no rows.

    Parameters
    ----------
    rows
        As many as a row group holds.
    options
        See :func:`encoding_options`.
    late
        Metadata of the file beside that of the schema.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **options) as writer:
        if len(rows):
            writer.write_table(rows, row_group_size=len(rows))
        if late:
            writer.add_key_value_metadata(dict(late))
    return sink.getvalue()


@dataclass(frozen=True)
class EncodedGroup:
    """A row group that knows its place in a file of its own: the bytes of its pages, and what the footer says of it."""

    pages: memoryview
    facts: Struct


def encode_group(rows: pa.Table, options: Mapping[str, Any]) -> EncodedGroup:
    """Return rows, at least one, as a row group."""
    encoded = memoryview(encode_file(rows, options))
    start, footer = read_footer(encoded)
    (group,) = footer[_FILE_ROW_GROUPS][1][1]
    return EncodedGroup(encoded[len(_MAGIC) : start], group)


def read_footer(content: memoryview) -> tuple[int, Struct]:
    """Return where the footer of a Parquet file begins, and the footer."""
    end = len(content) - len(_MAGIC) - _LENGTH_BYTES
    start = end - int.from_bytes(content[end : end + _LENGTH_BYTES], "little")
    footer, _ = thrift.decode_struct(bytes(content[start:end]), 0)
    return start, footer


class JoinedGroups:
    """A Parquet file of row groups that were encoded apart.

    Parameters
    ----------
    stream
        Stands at the beginning of the file.
    schema
        That of all rows.
    """

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream, self._empty = stream, schema.empty_table()
        self._at = stream.write(_MAGIC)
        self._groups: list[Struct] = []
        self._options: dict[str, Any] | None = None

    def looked_at(self, rows: pa.Table) -> pa.Table:
        """Return the rows of a group as they are; the first that are looked at decide how all are encoded."""
        self._options = self._options or encoding_options(rows)
        return rows

    def encode(self, rows: pa.Table) -> EncodedGroup:
        """Return rows, at least one, that were looked at, as a row group."""
        assert self._options is not None, "the first rows decide"
        return encode_group(rows, self._options)

    def append(self, group: EncodedGroup) -> None:
        """Append a row group."""
        self._groups.append(moved_group(group.facts, self._at - len(_MAGIC), len(self._groups)))
        self._at += self._stream.write(group.pages)

    def finish(self, late: Mapping[str, str]) -> None:
        """Write the footer, with metadata beside that of the schema."""
        empty = encode_file(self._empty, self._options or encoding_options(self._empty), late)
        _, footer = read_footer(memoryview(empty))
        rows = sum(group[_GROUP_NUM_ROWS][1] for group in self._groups)
        groups = (thrift.LIST, (thrift.STRUCT, self._groups))
        content = bytearray()
        thrift.encode_struct({**footer, _FILE_NUM_ROWS: (thrift.I64, rows), _FILE_ROW_GROUPS: groups}, content)
        self._stream.write(bytes(content) + len(content).to_bytes(_LENGTH_BYTES, "little") + _MAGIC)


def moved_group(group: Struct, distance: int, ordinal: int) -> Struct:
    """Return what a footer says of a row group, ``distance`` bytes further on, as group number ``ordinal``."""
    kind, chunks = group[_GROUP_COLUMNS][1]
    moved = _moved(group, (_GROUP_OFFSET,), distance)
    moved[_GROUP_COLUMNS] = (thrift.LIST, (kind, [_moved_chunk(chunk, distance) for chunk in chunks]))
    if _GROUP_ORDINAL in moved:
        moved[_GROUP_ORDINAL] = (thrift.I16, ordinal)
    return moved


def _moved_chunk(chunk: Struct, distance: int) -> Struct:
    moved = _moved(chunk, _CHUNK_OFFSETS, distance)
    moved[_CHUNK_META_DATA] = (thrift.STRUCT, _moved(chunk[_CHUNK_META_DATA][1], _META_DATA_OFFSETS, distance))
    return moved


def _moved(struct: Struct, offsets: Iterable[int], distance: int) -> Struct:
    """Return a struct with these fields moved; 0 is no position, since every file begins with its name."""
    there = {at: struct[at][1] for at in offsets if at in struct and struct[at][1]}
    return {**struct, **{at: (thrift.I64, position + distance) for at, position in there.items()}}
