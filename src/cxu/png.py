"""Label images → PNG, run by run: several times faster than a general compressor, and the same bytes everywhere.

A label image is a few thousand runs of one value. A general compressor looks for them byte by byte; here each run
becomes a literal and matches at distance 1, in one deflate block whose Huffman code is made for masks and never
changes. Sources: RFC 1951 (deflate), RFC 1950 (zlib), the PNG specification.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.anatomy import BACKGROUND_LABEL, IGNORE_LABEL, ORGANS
from cxu.codec import Mask
from cxu.window import Window, line_changes

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

LABEL_VALUES: Final = (BACKGROUND_LABEL, *(organ.label for organ in ORGANS), IGNORE_LABEL)
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEADER: Final = b"\x78\x01"
_ADLER_MODULUS: Final = 65521
_END: Final = 256  # symbol that ends a block
_FIRST_LENGTH: Final = 257  # symbol of the shortest match
_LONGEST: Final = 258
_LONGEST_SYMBOL: Final = 285
_WORD: Final = 32
_WORD_MASK: Final = (1 << _WORD) - 1
# RFC 1951, 3.2.5: the shortest match of each length symbol, and its extra bits
_LENGTH_BASES: Final = (
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258
)  # fmt: skip
_EXTRA_BITS: Final = (0,) * 8 + tuple(bits for bits in range(1, 6) for _ in range(4)) + (0,)
# How often symbols occur in label images of 1024 px, roughly: they decide how small a file is, not whether it is right.
_VALUE_COUNTS: Final = (1300, 450, 420, 200, 500)
_LENGTH_COUNTS: Final = (30,) * 8 + (45,) * 4 + (95,) * 4 + (115,) * 4 + (160,) * 4 + (320, 330, 370, 490) + (2500,)


def encode_label_png(labels: Mask) -> bytes:
    """Return an 8-bit grey PNG of a label image uint8 [H, W]; :func:`cxu.raster.decode_png` reads it back.

    The values are those of :data:`LABEL_VALUES`: 0, 1, 2, 3 and 255.
    """
    return encode_label_window(Window.of(labels))


def encode_label_window(window: Window) -> bytes:
    """Return the PNG of a label image of which only a window is drawn: the bytes that the whole image would give."""
    height, width = window.shape_hw
    size = height * (width + 1)  # each scanline begins with its filter type: 0, none
    values, starts, lengths = _runs(window, size)
    checksum = _adler32(values, starts, lengths, size)
    content = _ZLIB_HEADER + _deflate(values, lengths) + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _runs(window: Window, size: int) -> tuple[Mask, Ints, Ints]:
    """Return value, start and length of every run of one value in scanlines of ``size`` bytes together."""
    places, values = line_changes(window, lead=1)
    if places.size and places[-1] == size:  # the last pixel is no background, which begins behind it
        places, values = places[:-1], values[:-1]
    edges = np.concatenate([[0], places, [size]])
    return np.concatenate([np.zeros(1, np.uint8), values]), edges[:-1], edges[1:] - edges[:-1]


def _adler32(values: Mask, starts: Ints, lengths: Ints, size: int) -> int:
    """Return the Adler-32 checksum of ``size`` bytes, from their runs instead of byte by byte."""
    total = int(np.dot(values.astype(np.int64), lengths))
    # byte i is counted in all size - i sums from it on
    weights = lengths * (size - starts) - lengths * (lengths - 1) // 2
    sums = size + int(np.dot(values.astype(np.int64), weights))
    return (sums % _ADLER_MODULUS) << 16 | (1 + total) % _ADLER_MODULUS


@dataclass(frozen=True)
class _Bits:
    """Bits to write, first bit lowest, and how many."""

    pattern: int
    size: int

    def then(self, *others: _Bits) -> _Bits:
        """Return these bits and the others behind them."""
        pattern, size = self.pattern, self.size
        for other in others:
            pattern, size = pattern | other.pattern << size, size + other.size
        return _Bits(pattern, size)


class _Table(NamedTuple):
    """Bits to look up: their patterns and sizes as arrays."""

    patterns: Words
    sizes: Ints


@dataclass(frozen=True)
class _Code:
    """The Huffman code of label images.

    ``header`` begins the block and ``end`` ends it. ``literals`` [256] begin a run of a value; ``longest`` is the size
    of a match of 258, all zero bits; ``tails`` [256, 258] are what is left of a run after such matches.
    """

    header: _Bits
    end: _Bits
    literals: _Table
    longest: int
    tails: _Table


def _deflate(values: Mask, lengths: Ints) -> bytes:
    """Return the runs as one deflate block."""
    code = _code()
    n_longest, left = np.divmod(lengths - 1, _LONGEST)
    literal_sizes = code.literals.sizes[values]
    assert literal_sizes.all(), "label values only"
    # a match of 258 is all zero bits: to write it is to leave room
    before_tail = literal_sizes + n_longest * code.longest
    sizes = before_tail + code.tails.sizes[values, left]
    stops = code.header.size + np.cumsum(sizes)
    starts = stops - sizes
    positions = np.arange(0, code.header.size, _WORD)
    header = [code.header.pattern >> position & _WORD_MASK for position in positions.tolist()]
    positions = np.concatenate([positions, starts, starts + before_tail, stops[-1:]])
    patterns = np.concatenate(
        [
            np.array(header, np.uint64),
            code.literals.patterns[values],
            code.tails.patterns[values, left],
            np.array([code.end.pattern], np.uint64),
        ]
    )
    return _packed(positions, patterns)[: -(-(int(stops[-1]) + code.end.size) // 8)]


def _packed(positions: Ints, pieces: Words) -> bytes:
    """Return bytes with each piece, of at most 32 bits, at its bit position; no two share a bit."""
    shifted = pieces << (positions % _WORD).astype(np.uint64)
    words = positions // _WORD
    n_words = int(words[-1]) + 2
    # sums of disjoint bits, below 2**32, are exact in the floats that bincount gives
    low = np.bincount(words, shifted & np.uint64(_WORD_MASK), n_words)
    high = np.bincount(words + 1, shifted >> np.uint64(_WORD), n_words)
    return (low + high).astype("<u4").tobytes()


@functools.cache
def _code() -> _Code:
    counts = {**dict(zip(LABEL_VALUES, _VALUE_COUNTS, strict=True)), _END: 1}
    counts |= {_FIRST_LENGTH + index: count for index, count in enumerate(_LENGTH_COUNTS)}
    sizes = _huffman_sizes(counts)
    code = _canonical(sizes)
    assert code[_LONGEST_SYMBOL].pattern == 0, "the commonest symbol has the first code"
    distance = _Bits(0, 1)
    tails: dict[tuple[int, ...], _Bits] = {}
    for value in LABEL_VALUES:
        tails[value, 1] = code[value]
        tails[value, 2] = code[value].then(code[value])
        for index, base in enumerate(_LENGTH_BASES[:-1]):
            for extra in range(min(1 << _EXTRA_BITS[index], _LONGEST - base)):
                match = code[_FIRST_LENGTH + index].then(_Bits(extra, _EXTRA_BITS[index]), distance)
                tails[value, base + extra] = match
    return _Code(
        header=_block_header(sizes),
        end=code[_END],
        literals=_table({(value,): code[value] for value in LABEL_VALUES}, (256,)),
        longest=code[_LONGEST_SYMBOL].size + distance.size,
        tails=_table(tails, (256, _LONGEST)),
    )


def _table(entries: Mapping[tuple[int, ...], _Bits], shape: tuple[int, ...]) -> _Table:
    patterns, sizes = np.zeros(shape, np.uint64), np.zeros(shape, np.int64)
    for place, bits in entries.items():
        patterns[place], sizes[place] = bits.pattern, bits.size
    return _Table(patterns, sizes)


def _huffman_sizes(counts: Mapping[int, int]) -> dict[int, int]:
    """Return the code size in bits of every symbol, by Huffman's method."""
    order = itertools.count()
    heap: list[tuple[int, int, tuple[int, ...]]] = [(count, next(order), (symbol,)) for symbol, count in counts.items()]
    heapq.heapify(heap)
    sizes = dict.fromkeys(counts, 0)
    while len(heap) > 1:
        (count, _, symbols), (other_count, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in symbols + other:
            sizes[symbol] += 1
        heapq.heappush(heap, (count + other_count, next(order), symbols + other))
    return sizes


def _canonical(sizes: Mapping[int, int]) -> dict[int, _Bits]:
    """Return the code of every symbol that RFC 1951, 3.2.2, derives from the sizes."""
    codes: dict[int, _Bits] = {}
    code = size = 0
    for symbol in sorted(sizes, key=lambda symbol: (sizes[symbol], symbol)):
        code <<= sizes[symbol] - size
        size = sizes[symbol]
        # Huffman codes stand highest bit first
        codes[symbol] = _Bits(int(f"{code:0{size}b}"[::-1], 2), size)
        code += 1
    return codes


def _block_header(sizes: Mapping[int, int]) -> _Bits:
    """Return the bits that announce the code, RFC 1951, 3.2.7.

    Sizes are themselves coded with four bits each: 1 to 15, and 18 for a run of zeros.
    """
    size_code = _canonical(dict.fromkeys((*range(1, 16), 18), 4))
    # the last block, of its own code: 286 literals and lengths, 1 distance, 19 sizes of sizes
    header = _Bits(1, 1).then(_Bits(2, 2), _Bits(286 - 257, 5), _Bits(1 - 1, 5), _Bits(19 - 4, 4))
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        header = header.then(_Bits(4 if symbol in size_code else 0, 3))
    previous = -1
    for symbol in sorted(sizes):
        n_zeros = symbol - previous - 1
        while n_zeros:
            run = min(n_zeros, 138)
            header = header.then(size_code[18], _Bits(run - 11, 7))
            n_zeros -= run
        header = header.then(size_code[sizes[symbol]])
        previous = symbol
    return header.then(size_code[1])
