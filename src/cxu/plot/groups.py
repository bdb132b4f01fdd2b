"""Rows by source and model: what every figure of a table is drawn by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cxu.errors import UsageError
from cxu.store import Shard, StoredTable

# Okabe and Ito's palette, less its yellow, which is lost on white
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MOST_GROUPS: Final = 12  # more cannot be told apart in one figure
_SHORT_ID: Final = 8


@dataclass(frozen=True, order=True)
class Group:
    """Rows of one source that one model made: uncertainties of different models do not compare."""

    source: str
    model_id: str


def names_of(groups: Iterable[Group]) -> dict[Group, str]:
    """Return what each group is called: its source, and its model where the source has several.

    Examples
    --------
    >>> names_of([Group("mimic", "published"), Group("local", "a1"), Group("local", "b2")])[Group("local", "b2")]
    'local (model b2)'
    """
    listed = sorted(groups)
    models = Counter(group.source for group in listed)
    return {
        group: group.source if models[group.source] == 1 else f"{group.source} (model {group.model_id[:_SHORT_ID]})"
        for group in listed
    }


def check_number(groups: Sequence[Group]) -> None:
    """Refuse more groups than a figure can show.

    Raises
    ------
    UsageError
        Where there are.
    """
    if len(groups) > MOST_GROUPS:
        raise UsageError(
            f"{len(groups)} sources and models, {groups[0].source} to {groups[-1].source}: a figure shows up to "
            f"{MOST_GROUPS}; name fewer tables"
        )


def shards_of(tables: Sequence[StoredTable]) -> list[Shard]:
    """Return the shards of tables, each the same in a process with another working folder.

    Raises
    ------
    UsageError
        If there is no row at all.
    """
    shards = [replace(shard, path=shard.path.absolute()) for stored in tables for shard in stored.shards()]
    if not any(shard.rows for shard in shards):
        names = ", ".join(stored.name for stored in tables) or "nothing"
        raise UsageError(f"no rows to plot: {names} is empty")
    return shards
