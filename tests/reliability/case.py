"""What all cases have in common, and how a command is run on one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cxu import files
from cxu.cli import app


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is wrong, and what must come of it.

    Attributes
    ----------
    name
        What is wrong, as a phrase for the table.
    make
        Makes the input in an empty folder.
    exit_code
        What the command must exit with.
    says
        What it must say, in its own words.
    """

    name: str
    make: Callable[[Path], Any]
    exit_code: int
    says: str

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        return f"exit {self.exit_code}: “…{self.says}…”" if self.says else f"exit {self.exit_code}"


@dataclass(frozen=True)
class Done:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """All that was printed."""
        return self.stdout + self.stderr

    @property
    def content(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.stdout)


def run(*words: object) -> Done:
    """Run ``cxu`` in this process; fail where an exception of any other kind than an exit leaves it."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    return Done(done.exit_code, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder: its path there and its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def check_only_below(before: dict[str, bytes], after: dict[str, bytes], *allowed: str) -> None:
    """Fail where a file that is not below ``allowed`` was added, changed or removed, or any is half-written."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(allowed)} == set()
    unfinished = {name for name in after if Path(name).name.startswith(files.TEMP_PREFIX)}
    assert unfinished == set()
