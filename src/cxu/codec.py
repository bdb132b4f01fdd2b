"""Text ⇄ arrays: the two run-length dialects and the landmark text of the published tables.

Published RLE
    ``start length start length …``; start is 1-based, runs are foreground only, pixels counted row by row (C order).
COCO RLE
    Counts of alternating background and foreground runs, background first, pixels counted column by column (Fortran
    order); in its compressed form five bits a character.

The dialects are never mixed: every function names its own. Masks are uint8 [H, W], foreground 1.
Source: the published tables (``docs/format.md``); the COCO annotation format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu.digits import parse_plain
from cxu.errors import CodecError

Mask = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

# spelled out: what \s means differs between Python's expressions and Arrow's
_SEPARATORS = r"[\[\](){},; \t\r\n\f\v]+"
_NEEDS_SPLITTING = r"[^0-9,.\-]|,,"
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def _run_edges(flat: npt.NDArray[np.uint8]) -> Counts:
    """Return the positions where a flat 0/1 array changes, starting from an imagined 0 before and after it."""
    padded = np.empty(flat.size + 2, np.bool_)
    padded[0] = padded[-1] = False
    np.not_equal(flat, 0, out=padded[1:-1])
    edges: Counts = np.flatnonzero(padded[1:] != padded[:-1])
    return edges


def encode_rle(mask: Mask) -> str:
    """Encode a mask [H, W] in the published dialect; a mask without foreground gives the empty string.

    Examples
    --------
    >>> encode_rle(np.array([[0, 1, 1], [1, 0, 0]], np.uint8))
    '2 3'
    """
    return " ".join(map(str, _published_runs(_run_edges(mask.ravel())).tolist()))


def format_rle(masks: Sequence[Counts | None]) -> pa.Array:
    """Return the published RLE of many masks as an array of large strings, null where there is none.

    Parameters
    ----------
    masks
        For each the places at which foreground begins and ends in turn, row by row, counted from 0: int64 [2 R].

    Examples
    --------
    >>> format_rle([np.array([1, 4]), None]).to_pylist()
    ['2 3', None]
    """
    edges, ends = _concatenated(masks)
    # every mask has a stop for each start, so starts stand at even places of the whole too
    numbers = pa.array(_published_runs(edges)).cast(pa.string())
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), numbers), " ")
    return _with_nulls(texts.cast(pa.large_string()), masks)


def _published_runs(edges: Counts) -> Counts:
    """Return starts, from 1, and lengths in turn."""
    runs = np.empty(edges.size, np.int64)
    runs[::2], runs[1::2] = edges[::2] + 1, edges[1::2] - edges[::2]
    return runs


def _concatenated(parts: Sequence[Counts | None]) -> tuple[Counts, Counts]:
    """Return the numbers of all parts, and where each part ends among them, from 0 on."""
    ends = np.cumsum([0, *(0 if part is None else part.size for part in parts)])
    return np.concatenate([np.empty(0, np.int64), *(part for part in parts if part is not None)]), ends


def _with_nulls(texts: pa.Array, parts: Sequence[Counts | None]) -> pa.Array:
    """Return texts with null for each part that is None."""
    missing = pa.array([part is None for part in parts], pa.bool_())
    return pc.if_else(missing, pa.scalar(None, texts.type), texts)


def decode_rle(text: str, shape_hw: tuple[int, int]) -> Mask:
    """Decode published RLE into a mask uint8 [H, W]; the empty string is a mask without foreground.

    Raises
    ------
    CodecError
        If the text holds anything but pairs of whole numbers, or runs that overlap, go backwards or leave the image.

    Examples
    --------
    >>> decode_rle("2 3", (2, 3)).tolist()
    [[0, 1, 1], [1, 0, 0]]
    """
    try:
        # Python reads 1_000 as a number, files don't mean it
        numbers = np.array(text.replace("_", " _ ").split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise CodecError(f"RLE holds something that is no whole number: {error}") from None
    if numbers.size % 2:
        raise CodecError(f"RLE has {numbers.size} numbers; expected pairs of start and length")
    n_pixels = shape_hw[0] * shape_hw[1]
    # compared first of all: a start or length far outside would overflow in the sums below
    if numbers.size and numbers.max() > n_pixels:
        raise CodecError(f"RLE holds {numbers.max()}, beyond the {n_pixels} pixels of {shape_hw[0]} × {shape_hw[1]}")
    if (numbers < 1).any():
        raise CodecError(f"RLE holds {numbers.min()}: runs start at 1 or later and are at least 1 long")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    stops = starts + lengths
    if (starts[1:] < stops[:-1]).any():
        raise CodecError("RLE runs overlap or go backwards")
    if numbers.size and stops[-1] > n_pixels:
        raise CodecError(f"RLE ends at {stops[-1]}, beyond the {n_pixels} pixels of {shape_hw[0]} × {shape_hw[1]}")
    edges = np.concatenate([[0], np.column_stack([starts, stops]).ravel(), [n_pixels]])
    return _alternate(np.diff(edges)).reshape(shape_hw)


def _alternate(counts: Counts) -> Mask:
    """Return a flat mask of alternating runs of 0 and 1, background first."""
    return np.repeat((np.arange(counts.size) % 2).astype(np.uint8), counts)


def encode_coco_counts(mask: Mask) -> Counts:
    """Return COCO's uncompressed counts int64 of a mask [H, W]: column-major, background first.

    Examples
    --------
    >>> encode_coco_counts(np.array([[0, 1, 1], [1, 0, 0]], np.uint8)).tolist()
    [1, 2, 1, 1, 1]
    """
    return coco_counts(_run_edges(mask.ravel(order="F")), mask.size)


def coco_counts(edges: Counts, n_pixels: int) -> Counts:
    """Return COCO's uncompressed counts int64 of a mask of ``n_pixels``.

    ``edges`` int64 [2 R] are the places at which foreground begins and ends in turn, column by column, from 0.

    Examples
    --------
    >>> coco_counts(np.array([1, 3, 4, 5]), 6).tolist()
    [1, 2, 1, 1, 1]
    """
    if edges.size and edges[-1] == n_pixels:
        edges = edges[:-1]
    counts = np.empty(edges.size + 1, np.int64)
    counts[:-1], counts[-1] = edges, n_pixels
    counts[1:] -= edges
    return counts


def decode_coco_counts(counts: Counts, shape_hw: tuple[int, int]) -> Mask:
    """Return the mask uint8 [H, W] of COCO's uncompressed counts: the inverse of :func:`encode_coco_counts`.

    Raises
    ------
    CodecError
        If a count is negative or they do not add up to H × W.
    """
    n_pixels = shape_hw[0] * shape_hw[1]
    total = sum(counts.tolist())  # whole numbers of any size: a sum in int64 could wrap around
    if (counts < 0).any() or total != n_pixels:
        raise CodecError(f"COCO counts add up to {total}; expected {n_pixels}, none negative")
    return _alternate(counts).reshape(shape_hw, order="F")


def compress_coco_counts(counts: Counts) -> str:
    """Return COCO's compressed text of uncompressed counts: differences to the count before last, base 32.

    Examples
    --------
    >>> compress_coco_counts(np.array([1, 2, 1, 1, 1]))
    '121O0'
    """
    text: str = format_coco([counts])[0].as_py()
    return text


def format_coco(masks: Sequence[Counts | None]) -> pa.Array:
    """Return COCO's compressed text of the uncompressed counts of many masks; large strings, null where there are none.

    Examples
    --------
    >>> format_coco([np.array([1, 2, 1, 1, 1]), np.array([6]), None]).to_pylist()
    ['121O0', '6', None]
    """
    counts, ends = _concatenated(masks)
    values = counts.copy()
    values[2:] -= counts[:-2]
    # the first three of each mask stand for themselves
    begins, sizes = ends[:-1, None], np.diff(ends)[:, None]
    first = (begins + np.arange(3))[np.arange(3) < sizes]
    values[first] = counts[first]
    characters, widths = _base_32(values)
    offsets = np.concatenate([[0], np.cumsum(widths)])[ends]
    texts = pa.LargeStringArray.from_buffers(len(masks), pa.py_buffer(offsets), pa.py_buffer(characters))
    return _with_nulls(texts, masks)


def _base_32(values: Counts) -> tuple[Mask, Counts]:
    """Return the characters uint8 of whole numbers, five bits each from the lowest on, and how many each takes."""
    levels = []
    sizes = np.ones(len(values), np.int64)
    which, rest = np.arange(len(values)), values
    while which.size:
        # the sign is the highest of the five bits of the last character
        more = (rest + 16) >> 5 != 0
        levels.append((which, ((rest & 31) + 32 * more + 48).astype(np.uint8)))
        which, rest = which[more], rest[more] >> 5
        sizes[which] += 1
    begins = np.cumsum(sizes) - sizes
    characters = np.empty(int(sizes.sum()), np.uint8)
    for level, (which, found) in enumerate(levels):
        characters[begins[which] + level] = found
    return characters, sizes


def expand_coco_text(text: str) -> Counts:
    """Return the counts int64 of COCO's compressed text: the inverse of :func:`compress_coco_counts`.

    Raises
    ------
    CodecError
        If the text holds a foreign character or ends within a count.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise CodecError(f"COCO RLE holds the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        if abs(counts[-1]) >= 1 << 62:
            raise CodecError(f"COCO RLE holds a count of {counts[-1]}")
        value = shift = 0
    if shift:
        raise CodecError("COCO RLE ends within a count")
    return np.array(counts, np.int64)


def format_landmarks(landmarks_xy: npt.NDArray[np.floating], *, decimals: int = 0) -> str:
    """Return landmarks [N, 2] as published text ``x,y,x,y,…``, rounded half to even to ``decimals``.

    Examples
    --------
    >>> format_landmarks(np.array([[1.4, 2.6], [3.0, 4.0]]))
    '1,3,3,4'
    """
    rounded = np.round(np.asarray(landmarks_xy, np.float64).ravel(), decimals)
    if decimals == 0:
        return ",".join(map(str, rounded.astype(np.int64).tolist()))
    return ",".join(f"{value:.{decimals}f}" for value in rounded.tolist())


def parse_landmarks(text: str) -> FloatArray:
    r"""Return the landmarks float32 [N, 2] of published text in any of its spellings.

    The inverse of :func:`format_landmarks`.

    Commas, spaces, newlines and brackets all separate, so ``1,2,3,4``, ``[[1 2]\n [3 4]]`` and JSON lists read alike.

    Raises
    ------
    CodecError
        If a value is no finite number or their count is odd.

    Examples
    --------
    >>> parse_landmarks("[[1. 2.] [3. 4.]]").tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    tokens = [token for token in re.split(_SEPARATORS, text) if token]
    problem = _explain_tokens(tokens)
    if problem or len(tokens) % 2:
        raise CodecError(problem or f"{len(tokens)} numbers; expected pairs of x and y")
    return np.array(tokens, np.float64).astype(np.float32).reshape(-1, 2)


def parse_number_rows(column: pa.Array, count: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Parse many landmark texts at once, with no Python per value.

    Parameters
    ----------
    column
        Binary or string array of n texts, in any spelling :func:`parse_landmarks` accepts.
    count
        Numbers expected in each (240 for 120 landmarks).

    Returns
    -------
    values, valid
        float32 [n, count] and bool [n]; an invalid row (other count, no number, not finite) holds NaN.
        :func:`explain_numbers` says why a text is invalid.
    """
    plain = _parse_plain(column, count)
    if plain is not None:
        return plain, np.ones(len(column), np.bool_)
    values = np.full((len(column), count), np.nan, np.float32)
    valid = np.zeros(len(column), np.bool_)
    try:
        parts = _split(column.cast(pa.string()).fill_null(""))
        valid = pc.equal(pc.list_value_length(parts), count).to_numpy(zero_copy_only=False)
        good = parts.filter(pa.array(valid))
        values[valid] = pc.cast(good.flatten(), pa.float32()).to_numpy().reshape(-1, count)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return _parse_one_by_one(column, count)
    finite = np.isfinite(values).all(axis=1)
    values[~finite] = np.nan
    return values, np.logical_and(valid, finite)


def _parse_plain(column: pa.Array, count: int) -> FloatArray | None:
    """Return the numbers of a column in which every text is as the published ones are, else None."""
    if column.null_count or not (pa.types.is_binary(column.type) or pa.types.is_string(column.type)) or not len(column):
        return None
    _, offsets, text = column.buffers()
    if text is None:
        return None
    edges = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    values = parse_plain(np.frombuffer(text, np.uint8), edges[:-1], edges[1:], count)
    return None if values is None else values.astype(np.float32)


def _split(texts: pa.Array) -> pa.Array:
    """Split texts at any separator into lists of tokens."""
    if pc.any(pc.match_substring_regex(texts, _NEEDS_SPLITTING)).as_py():
        texts = pc.replace_substring_regex(texts, _SEPARATORS, ",")
    return pc.split_pattern(pc.utf8_trim(texts, ","), ",")


def _parse_one_by_one(column: pa.Array, count: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Parse row by row, so that one bad text does not spoil the batch it came in."""
    values = np.full((len(column), count), np.nan, np.float32)
    for index, text in enumerate(column.cast(pa.binary()).to_pylist()):
        if not explain_numbers(text, count):
            values[index] = parse_landmarks(text.decode()).ravel()
    return values, np.all(np.isfinite(values), axis=1)


def explain_numbers(text: bytes | None, count: int) -> str:
    """Say why a text does not hold ``count`` finite numbers; the empty string where it does."""
    if not text or not text.strip():
        return "is blank"
    try:
        tokens = [token for token in re.split(_SEPARATORS, text.decode()) if token]
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    problem = _explain_tokens(tokens)
    if not problem and len(tokens) != count:
        problem = f"{len(tokens)} numbers, expected {count}"
    return problem


def _explain_tokens(tokens: list[str]) -> str:
    for position, word in enumerate(tokens, start=1):
        if word == "...":
            return "was abbreviated with '...' when it was written: the values are lost"
        try:
            value = float(word.replace("_", "?"))  # Python reads 1_000 as a number, files don't mean it
        except ValueError:
            return f"value {position} is {word[:20]!r}, not a number"
        if not abs(value) <= _MAX_FLOAT32:
            return f"value {position} is {word[:20]}, not a finite number"
    return ""
