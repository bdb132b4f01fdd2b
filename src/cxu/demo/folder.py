"""A private folder for uploads that does not outlive the server: removed at its end, or by the next start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "cxu-demo-"
KEEP_SECONDS: Final = 120.0  # longer than an upload waits for its turn


@contextlib.contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder that only this user can read; it goes at the end, whatever ends the block.

    A process that is killed outright cannot clean up after itself, so what earlier ones left is removed first.

    Parameters
    ----------
    parent
        Where it is made; None: the system's folder for temporary files.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(where)
    # its own name and no link's: paths of uploads are compared with it
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=where)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(where: Path) -> None:
    """Remove this user's folders of processes that run no more."""
    if os.name != "posix":  # elsewhere a signal 0 would end the process
        return
    for folder in where.glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            is_own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if is_own and process.isdigit() and not _is_running(int(process)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's: the number was given anew
        return True
    return True


def remove_old(folder: Path, keep_seconds: float = KEEP_SECONDS) -> None:
    """Remove files that lie in a folder for longer than that, and the folders that become empty.

    By the time when the file was given its name there: an upload of the same content counts anew.
    """
    before = time.time() - keep_seconds
    for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # gone, or in use by an upload
            if path.is_dir():
                if path.stat().st_mtime < before:
                    path.rmdir()
            elif path.stat().st_ctime < before:
                path.unlink()


def size_of(folder: Path) -> int:
    """Return how many bytes the files in a folder have together."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
