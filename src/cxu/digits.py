"""Plain decimal numbers out of text, eight characters at a time: no Python for a value, and no library call either.

The published tables hold 480 numbers a row, as ``397,142`` or ``8.14,7.29``: digits, one point at most, a minus sign,
eight characters or fewer. Those are read here; whatever is written otherwise is left to :mod:`cxu.codec`.

A token becomes one 64-bit word, its last character in the highest byte and zeros before the first. Its point is taken
out by moving what stands before it up by a byte. Three multiplications then add up neighbouring digits, pairs, fours.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

_WIDTH: Final = 8  # characters of a token
_COMMA, _POINT, _MINUS = (ord(character) for character in ",.-")
_BLOCK: Final = 1 << 15  # tokens at a time: what is made of them stays in the cache
_TENS: Final = 10.0 ** np.arange(_WIDTH)
# how many decimals a token may have, the likeliest first
_DECIMALS: Final = (2, 1, 0, 3, 4, 5, 6, 7)
_LAST: Final = ord("9") - _COMMA
_SLASH: Final = ord("/")  # the one character among ,-./0123456789 that is in no number


def parse_plain(text: Bytes, starts: Positions, stops: Positions, count: int) -> npt.NDArray[np.float64] | None:
    """Return the numbers of many texts, or None where any of them is not plain.

    Parameters
    ----------
    text
        The characters of all texts.
    starts, stops
        Where each of n texts begins and ends in them; ascending, so that one follows the other.
    count
        Numbers in each, divided by commas.

    Returns
    -------
    values
        [n, count], what Python's ``float`` makes of each token; None if a text holds another number of tokens, another
        character, a token without digits or one that is longer than eight characters.

    Examples
    --------
    >>> parse_plain(np.frombuffer(b"1,-2.5|30,4", np.uint8), np.array([0, 7]), np.array([6, 11]), 2)
    array([[ 1. , -2.5],
           [30. ,  4. ]])
    """
    values = np.empty((len(starts), count))
    for at in range(0, len(starts), max(1, _BLOCK // count)):
        texts = slice(at, at + max(1, _BLOCK // count))
        if not _parse_texts(text, starts[texts], stops[texts], values[texts]):
            return None
    return values


def _parse_texts(text: Bytes, starts: Positions, stops: Positions, values: npt.NDArray[np.float64]) -> bool:
    """Write the numbers of some texts into ``values``; False where one is not plain."""
    n_texts, count = values.shape
    padded = np.concatenate([text[starts[0] : stops[-1]], np.zeros(_WIDTH, np.uint8)])
    offset = starts[0]
    inner = np.flatnonzero(padded == _COMMA)
    if len(inner) != n_texts * (count - 1):
        return False
    begins, ends = np.empty((n_texts, count), np.int64), np.empty((n_texts, count), np.int64)
    begins[:, 0], ends[:, -1] = starts - offset, stops - offset
    ends[:, :-1] = inner.reshape(n_texts, count - 1)
    begins[:, 1:] = ends[:, :-1] + 1
    # the commas are where they ought to be only if no text has some of another's
    if (ends[:, 0] < begins[:, 0]).any() or (begins[:, -1] > ends[:, -1]).any():
        return False
    foreign = np.flatnonzero((padded[:-_WIDTH] - _COMMA > _LAST) | (padded[:-_WIDTH] == _SLASH))
    if len(foreign) and not _between(foreign, begins[:, 0], ends[:, -1]):
        return False
    return _parse_tokens(padded, begins.ravel(), ends.ravel(), values.reshape(-1))


def _between(places: Positions, starts: Positions, stops: Positions) -> bool:
    """Tell whether all places lie between the texts, where they do not matter."""
    text = np.searchsorted(starts, places, side="right") - 1
    return bool((places >= stops[text]).all())


def _parse_tokens(padded: Bytes, begins: Positions, ends: Positions, values: npt.NDArray[np.float64]) -> bool:
    """Write the numbers of tokens into ``values``; False where one is not plain."""
    is_negative = padded[begins] == _MINUS
    begins = begins + is_negative
    lengths = ends - begins
    if (lengths < 1).any() or (lengths > _WIDTH).any():
        return False
    words = np.ndarray(len(padded) - _WIDTH + 1, "<u8", padded, strides=(1,))[begins]
    words <<= (8 * (_WIDTH - lengths)).astype(np.uint64)
    decimals, is_pointed = np.zeros(len(words), np.int64), np.zeros(len(words), np.bool_)
    n_points = _count(words, _POINT)
    if n_points:
        found = 0
        for n_decimals in _DECIMALS:
            has_point = (words >> np.uint64(8 * (_WIDTH - 1 - n_decimals))) & np.uint64(0xFF) == _POINT
            here = int(np.count_nonzero(has_point))
            if not here:
                continue
            found += here
            if is_pointed[has_point].any():
                return False
            is_pointed |= has_point
            after = np.uint64((0xFFFFFFFFFFFFFFFF << 8 * (_WIDTH - n_decimals)) & 0xFFFFFFFFFFFFFFFF)
            moved = (words & after) | ((words << np.uint64(8)) & ~after)
            words = np.where(has_point, moved, words)
            decimals[has_point] = n_decimals
            lengths = lengths - has_point
            if found == n_points:
                break
        if (lengths < 1).any() or _count(words, _POINT):
            return False
    if _count(words, _MINUS):
        return False
    whole = _add_digits(words)
    np.divide(whole, _TENS[decimals], out=values)
    np.negative(values, out=values, where=is_negative)
    return True


def _count(words: npt.NDArray[np.uint64], character: int) -> int:
    return int(np.count_nonzero(words.view(np.uint8) == character))


def _add_digits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the whole numbers of eight digits, the first in the lowest byte; zero bytes count as the digit 0."""
    words = words & np.uint64(0x0F0F0F0F0F0F0F0F)
    words = (words * np.uint64(10 * 2**8 + 1)) >> np.uint64(8)
    words &= np.uint64(0x00FF00FF00FF00FF)
    words = (words * np.uint64(100 * 2**16 + 1)) >> np.uint64(16)
    words &= np.uint64(0x0000FFFF0000FFFF)
    return (words * np.uint64(10_000 * 2**32 + 1)) >> np.uint64(32)
