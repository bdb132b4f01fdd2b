"""A table → masks in a folder: draw what was planned, block by block; resumable, whole files only.

``<out>/cxu.json`` says what the folder holds; the same command there continues, another one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from cxu import files
from cxu.anatomy import OrganName
from cxu.blockfolder import BlockFacts
from cxu.contour import FloatArray, crosses_itself
from cxu.engine import check_workers, run_shards
from cxu.errors import CxuError, UsageError
from cxu.image_listing import ImageFile
from cxu.maskfiles import Paths, encode_row, open_writer, part_path
from cxu.maskfolder import INDEX_SCHEMA, MaskFolder
from cxu.maskplan import Block, MaskPlan
from cxu.masks import NEEDS_SIGMA, MaskOptions, OrganMask, Policy, RowShape, draw_organs
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row
from cxu.sharing import Share, check_arrived, check_shared, held

MANY_FILES: Final = 10_000
_DRAWN_COLUMNS: Final = (*KEY_COLUMNS, "landmarks_xy", "confident", "usable")
_UNCERTAINTY: Final = ("sigma_xy", "samples_xy")


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
    failed_elsewhere
        How many more rows have no mask: other jobs of the array tell why.
    blocks, blocks_finished
        Of how many blocks the whole consists, and how many of them were drawn by now, by all jobs of an array. Once
        they all are, this tells of the whole; else of the share that was asked for.
    """

    rows: int = 0
    files: int = 0
    bytes: int = 0
    resumed_rows: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    crossing: Counter[str] = field(default_factory=Counter)
    assumed: int = 0
    failures: list[Failure] = field(default_factory=list)
    failed_elsewhere: int = 0
    blocks: int = 0
    blocks_finished: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all is drawn and the index written."""
        return self.blocks_finished == self.blocks


def estimate_bytes(plan: MaskPlan) -> int:
    """Return about how much the masks of a plan will take, from the first row that can be drawn; 0 where none can.

    For formats with files of their own for every row.
    """
    for block in plan.blocks[:1]:
        for key, image, shape in _rows_of(block, plan.options.policy):
            try:
                organs = draw_organs(shape, place_row(key, image, plan.target), plan.options)
            except CxuError:
                continue
            return plan.rows * sum(map(len, encode_row(organs, plan.options).contents.values()))
    return 0


def _rows_of(block: Block, policy: Policy) -> Iterator[tuple[RowKey, ImageFile | None, RowShape]]:
    rows = block.read((*_DRAWN_COLUMNS, *(_UNCERTAINTY if policy in NEEDS_SIGMA else ())))
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
        self._lines: list[tuple[str, str, OrganName, str | None, bool, float]] = []
        self._polygons: list[FloatArray] = []

    def add(self, key: RowKey, organs: Mapping[OrganName, OrganMask], paths: Paths) -> None:
        for name, mask in organs.items():
            self._lines.append((key.source, key.image_id, name, paths[name], mask.usable, mask.area_ratio))
            self._polygons.append(mask.polygon_xy)

    def table(self) -> pa.Table:
        columns = [list(column) for column in zip(*self._lines, strict=True)] or [[]] * (len(INDEX_SCHEMA) - 1)
        usable = np.array(columns[4], np.bool_)
        return pa.table([*columns, pa.array(usable & crosses_itself(self._polygons))], schema=INDEX_SCHEMA)


def _draw_block(task: _Task) -> _BlockResult:
    """Draw one block, unless an earlier run did."""
    block, folder = task.block, MaskFolder(task.out)
    stamp = block.stamp()
    done = folder.finished(block.name, stamp)
    if done is not None:
        return _BlockResult(done, resumed=True)
    folder.begin(block.name, list(block.planned(task.options)))
    lines, failures, assumed = _IndexLines(), [], 0
    with open_writer(task.out, block.name, task.options) as writer:
        for (key, image, shape), stem in zip(_rows_of(block, task.options.policy), block.stems, strict=True):
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


def _draw_block_there(task: _Task) -> _BlockResult:
    """Draw one block in a worker of a cluster."""
    check_shared([task.out / files.RECORD], "the output folder")
    check_shared([task.block.shard.path], "the table")
    check_shared((image.path for image in task.block.images or () if image), "the images")
    return _draw_block(task)


def rasterize_table(
    plan: MaskPlan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    share: Share | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> MaskReport:
    """Carry out a plan: draw and write the masks, then ``index.parquet``.

    Parameters
    ----------
    plan
        From :func:`cxu.maskplan.plan_masks`.
    workers, scheduler
        Processes to use, or a Dask cluster: see :func:`cxu.engine.open_pool`.
    share
        Draw only these blocks, as one job of an array. The index is written by the job that finds all blocks drawn.
    overwrite
        Remove what an earlier command wrote into the folder first, and start afresh.
    progress
        Called with the number of rows done by each block.

    Raises
    ------
    OutputExistsError
        If the folder holds something else and ``overwrite`` is not given.
    UsageError
        If a share is to start afresh.
    WorkerError
        If a worker was killed; the same call continues.
    """
    if overwrite and share is not None:
        raise UsageError("--overwrite and --shard: each job would remove what the others draw; choose another --out")
    check_workers(workers, scheduler)
    folder = MaskFolder(plan.out)
    planned = (name for block in plan.blocks for name in block.planned(plan.options))
    with held(plan.out, shared=share is not None):
        folder.claim(plan.record, planned, overwrite=overwrite)
        report = MaskReport(blocks=len(plan.blocks))
        blocks = plan.of_share(share)
        draw, tasks = _draw_block, [_Task(block, plan.out, plan.options, plan.target) for block in blocks]
        if scheduler is not None:
            draw, tasks = _draw_block_there, [_anywhere(task) for task in tasks]
        with closing(run_shards(draw, tasks, workers=workers, scheduler=scheduler)) as results:
            for block, result in zip(blocks, results, strict=True):
                check_arrived(folder.lines_path(block.name))
                report.resumed_rows += result.facts.rows if result.resumed else 0
                report.failures += result.failures
                progress(result.facts.rows + result.facts.failures)
        return _finish(folder, plan, blocks, report)


def _anywhere(task: _Task) -> _Task:
    """Return a task that means the same in a process with another working folder."""
    shard = replace(task.block.shard, path=task.block.shard.path.absolute())
    return replace(task, block=replace(task.block, shard=shard), out=task.out.absolute())


def _finish(folder: MaskFolder, plan: MaskPlan, done: Sequence[Block], report: MaskReport) -> MaskReport:
    """Write the index where all blocks are drawn, and complete the report of those that this run has ``done``."""
    names, mine = ([block.name for block in blocks] for blocks in (plan.blocks, done))
    contents, report.blocks_finished = folder.gather(names, mine)
    report.rows, report.assumed = contents.rows, contents.assumed
    report.failed_elsewhere = contents.failures - len(report.failures)
    report.files, report.bytes = contents.files, contents.n_bytes
    report.unusable, report.crossing = contents.unusable, contents.crossing
    return report
