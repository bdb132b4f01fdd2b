"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cxu.catalog import FrameName

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="CXU_HOME", help="Folder for sources, selections and runs.", show_default="./cxu-data"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
FrameOption = Annotated[
    FrameName | None,
    typer.Option("--frame", help="Pixels of the landmarks: the 1024 model frame, or the image's own."),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes to use.")]


def with_default(words: Sequence[str], option: str, default: str) -> list[str]:
    """Return a command's words in which an option that stands without a value has its default: typer has no such kind.

    Examples
    --------
    >>> with_default(["--model", "--json"], "--model", "bundled")
    ['--model', 'bundled', '--json']
    >>> with_default(["--model", "x.pt"], "--model", "bundled")
    ['--model', 'x.pt']
    """
    end = words.index("--") if "--" in words else len(words)
    given: list[str] = []
    for index, word in enumerate(words):
        given.append(word)
        if word == option and index < end and (index + 1 == len(words) or words[index + 1].startswith("-")):
            given.append(default)
    return given
