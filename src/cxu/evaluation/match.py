"""Which prediction belongs to which truth: by image id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxu.catalog import strip_image_suffix
from cxu.errors import DuplicateIdError, UsageError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of prediction and truth, in the order of the predictions.

    Attributes
    ----------
    predictions, truths
        Indices [m] into the ids of either side.
    lone_predictions, lone_truths
        Ids without a partner.
    """

    predictions: IntArray
    truths: IntArray
    lone_predictions: tuple[str, ...]
    lone_truths: tuple[str, ...]


def match_ids(predictions: Sequence[str], truths: Sequence[str], *, names: tuple[str, str]) -> Matches:
    """Pair ids of predictions with ids of a truth.

    Ids are compared without image suffix. What is left then pairs by its last part (``a/b/film`` and ``film``), where
    no other id of either side ends so.

    Parameters
    ----------
    predictions, truths
        Ids, as their files spell them.
    names
        What the two sides are called in messages.

    Raises
    ------
    DuplicateIdError
        If an id stands twice on one side.
    UsageError
        If nothing pairs.

    Examples
    --------
    >>> match_ids(["b/1.png", "2"], ["2.jpg", "1"], names=("first", "second")).truths
    array([1, 0])
    """
    found, true = (_positions(ids, name) for ids, name in zip((predictions, truths), names, strict=True))
    partner = {key: key for key in found if key in true}
    found_stems, true_stems = _unique_stems(found), _unique_stems(true)
    taken = set(partner.values())
    for stem, key in found_stems.items():
        other = true_stems.get(stem)
        if other is not None and key not in partner and other not in taken:
            partner[key] = other
    if not partner:
        raise UsageError(_nothing_in_common(predictions, truths, names))
    pairs = [(found[key], true[partner[key]]) for key in found if key in partner]
    matched_truths = set(partner.values())
    return Matches(
        np.array([pair[0] for pair in pairs], np.int64),
        np.array([pair[1] for pair in pairs], np.int64),
        tuple(key for key in found if key not in partner),
        tuple(key for key in true if key not in matched_truths),
    )


def _positions(ids: Sequence[str], name: str) -> dict[str, int]:
    """Return id without suffix → position."""
    keys = [strip_image_suffix(text) for text in ids]
    positions = {key: index for index, key in enumerate(keys)}
    if len(positions) < len(keys):
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        raise DuplicateIdError(
            f"{name}: {len(repeated)} ids stand there more than once, {repeated[0]!r} first; expected one an image: "
            "name one source, frame or table"
        )
    return positions


def _unique_stems(keys: dict[str, int]) -> dict[str, str]:
    """Return last part → id, for the ids that alone end so."""
    stems = [key.replace("\\", "/").rsplit("/", 1)[-1] for key in keys]
    counts = Counter(stems)
    return {stem: key for stem, key in zip(stems, keys, strict=True) if counts[stem] == 1}


def _nothing_in_common(predictions: Sequence[str], truths: Sequence[str], names: tuple[str, str]) -> str:
    examples = [
        f"{name} has {f'{ids[0]!r}' if ids else 'no row'}"
        for name, ids in zip(names, (predictions, truths), strict=True)
    ]
    return f"no image is in both: {' and '.join(examples)}; ids must be the same, or their last parts"
