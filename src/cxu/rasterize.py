"""A table → masks in a folder: draw what was planned, block by block; resumable, whole files only.

``<out>/cxu.json`` says what the folder holds; the same command there continues, another one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cxu import files
from cxu.anatomy import OrganName
from cxu.engine import run_shards
from cxu.errors import CxuError
from cxu.image_listing import ImageFile
from cxu.maskfiles import Paths, encode_row, open_writer, part_path
from cxu.maskfolder import INDEX_SCHEMA, BlockFacts, MaskFolder
from cxu.maskplan import Block, MaskPlan
from cxu.masks import MaskOptions, OrganMask, RowShape, draw_organs
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row

MANY_FILES: Final = 10_000
_DRAWN_COLUMNS: Final = (*KEY_COLUMNS, "landmarks_xy", "sigma_xy", "confident", "usable", "samples_xy")


@dataclass(frozen=True)
class Failure:
    """A row without a mask, and why."""

    source: str
    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.image_id}: {self.reason}"


@dataclass
class MaskReport:
    """What was drawn.

    Attributes
    ----------
    rows, resumed_rows
        Rows with masks, and how many of them an earlier run had drawn.
    files, bytes
        What the folder holds of masks.
    unusable, crossing
        Organs without a mask of their own, and contours that cross themselves, by organ.
    assumed
        Rows whose position in their image is assumed: their source says nothing of how it made the model frame.
    failures
        Rows without a mask, and why.
    """

    rows: int = 0
    files: int = 0
    bytes: int = 0
    resumed_rows: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    crossing: Counter[str] = field(default_factory=Counter)
    assumed: int = 0
    failures: list[Failure] = field(default_factory=list)


def estimate_bytes(plan: MaskPlan) -> int:
    """Return about how much the masks of a plan will take, from the first row that can be drawn; 0 where none can.

    For formats with files of their own for every row.
    """
    for block in plan.blocks[:1]:
        for key, image, shape in _rows_of(block):
            try:
                organs = draw_organs(shape, place_row(key, image, plan.target), plan.options)
            except CxuError:
                continue
            return plan.rows * sum(map(len, encode_row(organs, plan.options).contents.values()))
    return 0


def _rows_of(block: Block) -> Iterator[tuple[RowKey, ImageFile | None, RowShape]]:
    rows = block.read(_DRAWN_COLUMNS)
    yield from zip(RowKey.all_of(rows), block.images or [None] * len(rows), RowShape.all_of(rows), strict=True)


@dataclass(frozen=True)
class _Task:
    block: Block
    out: Path
    options: MaskOptions
    target: Target


@dataclass(frozen=True)
class _BlockResult:
    facts: BlockFacts
    failures: tuple[Failure, ...] = ()
    resumed: bool = False


class _IndexLines:
    """Lines of the index, gathered row by row."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}

    def add(self, key: RowKey, organs: Mapping[OrganName, OrganMask], paths: Paths) -> None:
        for name, mask in organs.items():
            line = (key.source, key.image_id, name, paths[name], mask.usable, mask.area_ratio, mask.crosses_itself)
            for column, value in zip(self._columns.values(), line, strict=True):
                column.append(value)

    def table(self) -> pa.Table:
        return pa.table(self._columns, schema=INDEX_SCHEMA)


def _draw_block(task: _Task) -> _BlockResult:
    """Draw one block, unless an earlier run did."""
    block, folder = task.block, MaskFolder(task.out)
    stamp = _stamp(block)
    done = folder.finished(block.name, stamp)
    if done is not None:
        return _BlockResult(done, resumed=True)
    folder.begin(block.name, list(block.planned(task.options)))
    lines, failures, assumed = _IndexLines(), [], 0
    with open_writer(task.out, block.name, task.options) as writer:
        for (key, image, shape), stem in zip(_rows_of(block), block.stems, strict=True):
            try:
                placement = place_row(key, image, task.target)
                organs = draw_organs(shape, placement, task.options)
            except CxuError as error:
                failures.append(Failure(key.source, key.image_id, str(error)))
                continue
            assumed += not placement.exact
            lines.add(key, organs, writer.write(key.source, key.image_id, stem, organs))
    facts = BlockFacts(
        rows=len(block.rows) - len(failures),
        failures=len(failures),
        assumed=assumed,
        n_bytes=writer.n_bytes,
        part=part_path(task.options, block.name),
        images=stamp,
    )
    folder.finish(block.name, lines.table(), facts)
    return _BlockResult(facts, tuple(failures))


def _stamp(block: Block) -> str | None:
    """Return a hash that changes when an image of the block is replaced; None without images."""
    if block.images is None:
        return None
    return files.hash_of([image and image.stamp() for image in block.images])


def rasterize_table(
    plan: MaskPlan,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> MaskReport:
    """Carry out a plan: draw and write the masks, then ``index.parquet``.

    Parameters
    ----------
    plan
        From :func:`cxu.maskplan.plan_masks`.
    workers
        Processes to use.
    overwrite
        Remove what an earlier command wrote into the folder first, and start afresh.
    progress
        Called with the number of rows done by each block.

    Raises
    ------
    OutputExistsError
        If the folder holds something else and ``overwrite`` is not given.
    WorkerError
        If a worker was killed; the same call continues.
    """
    folder = MaskFolder(plan.out)
    planned = (name for block in plan.blocks for name in block.planned(plan.options))
    folder.claim(plan.record, planned, overwrite=overwrite)
    report = MaskReport()
    tasks = [_Task(block, plan.out, plan.options, plan.target) for block in plan.blocks]
    for result in run_shards(_draw_block, tasks, workers=workers):
        report.rows += result.facts.rows
        report.resumed_rows += result.facts.rows if result.resumed else 0
        report.assumed += result.facts.assumed
        report.failures += result.failures
        progress(result.facts.rows + result.facts.failures)
    contents = folder.write_index(block.name for block in plan.blocks)
    report.files, report.bytes = contents.files, contents.n_bytes
    report.unusable, report.crossing = contents.unusable, contents.crossing
    return report
