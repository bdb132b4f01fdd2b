"""Which rows of its inputs came as far as the limits of a selection, told from the rows that it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import store
from cxu.errors import FormatError
from cxu.report.tally import excluded_batches
from cxu.report.words import LAST_STEPS

BoolArray = npt.NDArray[np.bool_]

# steps that belong to the limits: who fails there came as far as them
AT_LIMITS: Final = (*LAST_STEPS, "scale_unknown", "radius_scale_unknown")
# what these two ask is asked here again, so that no id stands twice in what is left
_CHOSEN_BY: Final = ("source", "frame")
_KEYS: Final = ("source", "image_id", "frame")


@dataclass(frozen=True)
class Part:
    """A shard, and which of its rows came: packed bits, None for all of them."""

    shard: store.Shard
    came: bytes | None = None

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows that came, all columns or those named."""
        rows = self.shard.read(columns)
        if self.came is None:
            return rows
        taken = np.unpackbits(np.frombuffer(self.came, np.uint8), count=len(rows)).astype(np.bool_)
        return rows if taken.all() else rows.filter(pa.array(taken))


def rows_that_came(
    inputs: Sequence[store.StoredTable],
    excluded: Path,
    facts: Mapping[str, Any],
    n_kept: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Part]:
    """Return the shards of the inputs, and which of their rows came to the limits of uncertainty.

    A filter lists the rows that it leaves out in the order in which it read them, so both are read once, side by side.

    Parameters
    ----------
    inputs
        The tables that were filtered, in the same order.
    excluded
        The list of the rows that were left out.
    facts
        Of the selection: its ``sources`` and ``frame``.
    n_kept
        Rows of the selection.
    progress
        Called with the rows read.

    Raises
    ------
    FormatError
        If list, inputs and selection do not belong together.
    """
    left_out, parts, n_chosen = _LeftOut(excluded), [], 0
    for shard in (shard for stored in inputs for shard in stored.shards()):
        keys = shard.read(_KEYS)
        chosen = _chosen(keys, facts)
        came = np.zeros(len(keys), np.bool_)
        came[chosen] = ~left_out.before_limits(_joined(keys.filter(pa.array(chosen))))
        parts.append(Part(shard, np.packbits(came).tobytes()))
        n_chosen += int(chosen.sum())
        progress(len(keys))
    if left_out.unread() or n_chosen - left_out.taken != n_kept:
        raise FormatError(
            f"{excluded} does not list what the selection beside it leaves out of its inputs; filter again"
        )
    return parts


def _chosen(keys: pa.Table, facts: Mapping[str, Any]) -> BoolArray:
    chosen = np.ones(len(keys), np.bool_)
    wanted = {"source": facts.get("sources"), "frame": [facts["frame"]] if facts.get("frame") else None}
    for name in _CHOSEN_BY:
        if wanted[name]:
            chosen &= pc.is_in(keys[name], value_set=pa.array(wanted[name])).to_numpy()
    return chosen


def _joined(keys: pa.Table) -> pa.Array:
    """Return source and image id [n] as one text each."""
    joined = pc.binary_join_element_wise(keys["source"], keys["image_id"], "\n")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


class _LeftOut:
    """The rows that a selection leaves out, read in order, without those of other sources or frames."""

    def __init__(self, path: Path) -> None:
        self._batches = self._read(path)
        self._keys, self._early = pa.array([], pa.string()), np.zeros(0, np.bool_)
        self.taken = 0

    def _read(self, path: Path) -> Iterator[pa.Table]:
        for batch in excluded_batches(path):
            yield batch.filter(pc.invert(pc.is_in(batch["reason"], value_set=pa.array(_CHOSEN_BY))))

    def before_limits(self, keys: pa.Array) -> BoolArray:
        """Return which of the next rows [n], by key, were left out before they came to the limits."""
        self._fill(len(keys))
        here = pc.is_in(self._keys.slice(0, len(keys)), value_set=keys).to_numpy(zero_copy_only=False)
        # the rows of this shard that were left out are the next ones on the list, up to the first of another shard
        count = len(here) if here.all() else int(here.argmin())
        early = self._keys.slice(0, count).filter(pa.array(self._early[:count]))
        self._keys, self._early = self._keys.slice(count), self._early[count:]
        self.taken += count
        return pc.is_in(keys, value_set=early).to_numpy(zero_copy_only=False)

    def _fill(self, n_rows: int) -> None:
        while len(self._keys) < n_rows:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._keys = pa.concat_arrays([self._keys, _joined(batch)])
            early = pc.invert(pc.is_in(batch["reason"], value_set=pa.array(AT_LIMITS))).to_numpy()
            self._early = np.concatenate([self._early, early])

    def unread(self) -> bool:
        """Tell whether rows are left over."""
        self._fill(1)
        return len(self._keys) > 0
