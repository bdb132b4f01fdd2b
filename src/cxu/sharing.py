"""What jobs and workers on several machines share: the blocks of a run, and a file system."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cxu.errors import MissingInputError, OutputExistsError, UsageError

if sys.platform != "win32":
    import fcntl


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


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an output folder, made where it is missing, against other runs while the block lasts.

    The lock is on the folder itself: it leaves no file, and ends with the process, however that ends. Where the system
    or the file system has no such locks, nothing is held.

    Parameters
    ----------
    folder
        Where the run writes.
    shared
        Whether it is a job of an array, which holds the folder together with the others.

    Raises
    ------
    OutputExistsError
        If another run holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(handle)
            raise OutputExistsError(
                f"another cxu is writing into {folder}: wait until it has ended, or choose another --out"
            ) from None
    try:
        yield
    finally:
        os.close(handle)


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
