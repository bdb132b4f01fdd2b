"""Thrift's compact protocol, as far as the footers of Parquet files use it: structs to Python and back.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any, Final

# The number of each field → its type and value. An integer is an int, a list the type and values of its items, a struct
# another such dictionary; what need not be understood stays bytes.
Struct = dict[int, tuple[int, Any]]

TRUE: Final = 1
FALSE: Final = 2
BYTE: Final = 3
I16: Final = 4
I32: Final = 5
I64: Final = 6
DOUBLE: Final = 7
BINARY: Final = 8
LIST: Final = 9
SET: Final = 10
STRUCT: Final = 12

_LONG_LIST: Final = 15  # a list of this length or more says so apart
_LONG_STEP: Final = 15  # a field that is further from the one before has its number written out
_MORE: Final = 0x80  # the bit of a byte that says that the number goes on in the next


def decode_struct(data: bytes, at: int) -> tuple[Struct, int]:
    """Return the struct that begins at byte ``at``, and where it ends."""
    fields: Struct = {}
    number = 0
    while data[at]:
        step, kind = divmod(data[at], 16)
        at += 1
        if step:
            number += step
        else:
            number, at = _decode_integer(data, at)
        value, at = _decode_value(data, at, kind)
        fields[number] = (kind, value)
    return fields, at + 1


def encode_struct(fields: Struct, out: bytearray) -> None:
    """Append the bytes of a struct: the inverse of :func:`decode_struct`."""
    last = 0
    for number, (kind, value) in sorted(fields.items()):
        step = number - last
        if 0 < step <= _LONG_STEP:
            out.append(step * 16 + kind)
        else:
            out.append(kind)
            _encode_integer(number, out)
        last = number
        _encode_value(value, kind, out)
    out.append(0)


def _decode_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        return _decode_integer(data, at)
    if kind == BINARY:
        length, at = _decode_varint(data, at)
        return data[at : at + length], at + length
    if kind == STRUCT:
        return decode_struct(data, at)
    if kind in (LIST, SET):
        return _decode_list(data, at)
    if kind in (TRUE, FALSE):  # the type is the value
        return None, at
    if kind in (BYTE, DOUBLE):
        length = 1 if kind == BYTE else 8
        return data[at : at + length], at + length
    raise AssertionError(f"type {kind} of Thrift is in no footer")


def _encode_value(value: Any, kind: int, out: bytearray) -> None:
    if kind in (I16, I32, I64):
        _encode_integer(value, out)
    elif kind == BINARY:
        _encode_varint(len(value), out)
        out += value
    elif kind == STRUCT:
        encode_struct(value, out)
    elif kind in (LIST, SET):
        _encode_list(value, out)
    elif kind in (BYTE, DOUBLE):
        out += value


def _decode_list(data: bytes, at: int) -> tuple[tuple[int, list[Any]], int]:
    """Return the type of a list's items and the items."""
    length, kind = divmod(data[at], 16)
    at += 1
    if length == _LONG_LIST:
        length, at = _decode_varint(data, at)
    of_item = BYTE if kind in (TRUE, FALSE) else kind  # in a list a truth is a byte
    items = []
    for _ in range(length):
        item, at = _decode_value(data, at, of_item)
        items.append(item)
    return (kind, items), at


def _encode_list(value: tuple[int, list[Any]], out: bytearray) -> None:
    kind, items = value
    if len(items) < _LONG_LIST:
        out.append(len(items) * 16 + kind)
    else:
        out.append(_LONG_LIST * 16 + kind)
        _encode_varint(len(items), out)
    of_item = BYTE if kind in (TRUE, FALSE) else kind
    for item in items:
        _encode_value(item, of_item, out)


def _decode_integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _decode_varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _encode_integer(number: int, out: bytearray) -> None:
    _encode_varint(2 * number if number >= 0 else -2 * number - 1, out)


def _decode_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & ~_MORE) << shift
        if byte < _MORE:
            return number, at
        shift += 7


def _encode_varint(number: int, out: bytearray) -> None:
    while number >= _MORE:
        out.append(number & 0x7F | _MORE)
        number >>= 7
    out.append(number)
