"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cxu.catalog import FrameName
from cxu.sharing import Share

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
SHARD_HELP: Final = "Do the I-th of N shares: one job of an array."
SCHEDULER_HELP: Final = "Work on a Dask cluster: its scheduler's address."
ShardOption = Annotated[str | None, typer.Option("--shard", metavar="I/N", help=SHARD_HELP)]
SchedulerOption = Annotated[str | None, typer.Option("--scheduler", metavar="ADDRESS", help=SCHEDULER_HELP)]


def share_of(text: str | None) -> Share | None:
    """Return the share that ``--shard`` names; None where it is not given.

    Raises
    ------
    UsageError
        If it names none.
    """
    return None if text is None else Share.parse(text)


def told_share(share: Share, done: str, finished: int, total: int, unit: str, what: str) -> str:
    """Return what a job of an array says where the others are not done.

    Examples
    --------
    >>> told_share(Share(2, 8), "1,234 rows", 5, 8, "blocks", "index")  # doctest: +NORMALIZE_WHITESPACE
    'share 2 of 8 done (1,234 rows); 5 of 8 blocks of the whole are finished; the index is written by the last job,
     or by the same command without --shard'
    """
    return (
        f"share {share.number} of {share.total} done ({done}); {finished:,} of {total:,} {unit} of the whole are "
        f"finished; the {what} is written by the last job, or by the same command without --shard"
    )


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
