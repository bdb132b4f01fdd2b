"""Blocks rendered as text, here or in processes, and joined to one file in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cxu import files
from cxu.engine import run_shards
from cxu.export.drawing import Account, BlockTask
from cxu.export.parts import Parts, Rendered, read_part, write_part
from cxu.export.plan import ExportPlan
from cxu.maskplan import Block

Progress = Callable[[int], None]


@dataclass
class ExportReport:
    """What was exported.

    Attributes
    ----------
    account
        What became of rows and organs.
    paths
        The files written; of a folder of many, the folder.
    files, bytes
        How many files there are, and their size.
    resumed_rows
        Rows that an earlier run had exported.
    """

    account: Account = field(default_factory=Account)
    paths: list[Path] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    resumed_rows: int = 0

    def add_file(self, path: Path) -> None:
        """Count a file that is written."""
        self.paths.append(path)
        self.files += 1
        self.bytes += path.stat().st_size


def block_tasks(plan: ExportPlan, settings: Any = None) -> list[BlockTask]:
    """Return a task for each block of a plan."""
    masks = plan.masks
    return [BlockTask(first, block, masks.options, masks.target, settings) for first, block in plan.numbered()]


@dataclass(frozen=True)
class _PartTask:
    """A block to render, how, and where its part goes: travels to a process."""

    render: Callable[[BlockTask], Rendered]
    task: BlockTask
    path: Path


def _render_part(part: _PartTask) -> bool:
    """Render one block, unless an earlier run did; tell whether one did.

    Texts go through a file: of a worker that is ended amid a long result, the other half would be waited for for ever.
    """
    if part.path.is_file():
        return True
    write_part(part.path, part.render(part.task))
    return False


def join_blocks(
    render: Callable[[BlockTask], Rendered],
    tasks: Sequence[BlockTask],
    streams: Sequence[BinaryIO],
    report: ExportReport,
    *,
    parts: Parts,
    between: bytes,
    workers: int,
    progress: Progress,
) -> None:
    """Render blocks and append their texts to the streams, one for each list.

    Parameters
    ----------
    render
        Module-level function, so that a process can import it.
    report
        Gets the account of the blocks.
    parts
        Where what is finished lies; an interruption leaves it there.
    between
        What stands between the texts of two blocks.
    workers, progress
        Processes to use; called with the rows done by each block.
    """
    is_begun = [False] * len(streams)
    waiting = [_PartTask(render, task, parts.path(task.block.name, image_stamp(task.block))) for task in tasks]
    with closing(run_shards(_render_part, waiting, workers=workers)) as results:
        for part, resumed in zip(waiting, results, strict=True):
            rendered = read_part(part.path)
            for index, (stream, text) in enumerate(zip(streams, rendered.texts, strict=True)):
                if text:
                    stream.write(between + text if is_begun[index] else text)
                    is_begun[index] = True
            report.account.add(rendered.account)
            report.resumed_rows += rendered.account.rows if resumed else 0
            progress(rendered.account.seen)


def image_stamp(block: Block) -> str:
    """Return a hash that changes when an image of the block comes, goes or is replaced."""
    return files.hash_of([image and image.stamp() for image in block.images or ()])


@contextmanager
def open_whole(plan: ExportPlan, path: Path, *about: str) -> Iterator[tuple[BinaryIO, Parts]]:
    """Give a stream for a file that appears whole at the end or not at all, and its parts, which then go.

    ``about`` is what the file holds of the plan, where that is not all of it.
    """
    if path.parent.is_dir():
        files.remove_leftovers(path.parent, {path.name})
    parts = Parts.beside(path, files.hash_of([plan.masks.record["identity"], asdict(plan.options), *about]))
    parts.begin()
    try:
        with files.replacing(path) as temporary, temporary.open("wb") as stream:
            yield stream, parts
    finally:
        parts.remove_if_empty()
    parts.remove()
