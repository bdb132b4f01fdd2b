"""What jobs and workers on several machines share: the blocks of a run, and a file system."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cxu.errors import MissingInputError, UsageError


@dataclass(frozen=True)
class Share:
    """What one job of an array does: the ``number``-th of ``total`` shares of a run's blocks, counted from 1.

    Raises
    ------
    UsageError
        If there is no such share.

    Examples
    --------
    >>> share = Share.parse("3/8")
    >>> str(share), [block for block in range(20) if share.holds(block)]
    ('3/8', [2, 10, 18])
    """

    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise _no_share(str(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the share that is written ``I/N``."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text, re.ASCII)
        if match is None:
            raise _no_share(text)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def holds(self, block: int) -> bool:
        """Tell whether a block, counted from 0, is of this share."""
        return block % self.total == self.number - 1


def _no_share(text: str) -> UsageError:
    return UsageError(f"--shard {text}: expected I/N with 1 ≤ I ≤ N, such as 3/8")


def check_shared(paths: Iterable[Path], what: str) -> None:
    """Refuse to work where a worker of a cluster sees none of the paths that its task names.

    Raises
    ------
    MissingInputError
        Naming the first of them; no path is fine.
    """
    first = None
    for path in paths:
        if path.exists():
            return
        first = first or path
    if first is not None:
        raise MissingInputError(
            f"{first} is not on {platform.node()}: {what} must lie on a file system that all workers share"
        )


def check_arrived(path: Path) -> None:
    """Refuse to go on where a file that a worker of a cluster wrote is not here: its folder is another one.

    Raises
    ------
    MissingInputError
        Naming the file.
    """
    if not path.exists():
        raise MissingInputError(
            f"a worker wrote {path}, which is not on {platform.node()}: its folder must lie on a file system that all "
            "workers share"
        )
