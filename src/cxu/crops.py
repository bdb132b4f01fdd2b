"""A table → crops of its images in a folder: cut what :mod:`cxu.cropplan` planned; resumable, whole files only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa

from cxu import cropping, files, films, raster
from cxu.anatomy import ORGANS
from cxu.blockfolder import BlockFacts
from cxu.cropfolder import BOX_SCHEMA, CropFolder
from cxu.cropping import Region
from cxu.cropplan import SUFFIX, CropOptions, CropPlan, crop_paths
from cxu.engine import check_workers, run_shards
from cxu.errors import CxuError, ImageError, UsageError
from cxu.image_listing import ImageFile
from cxu.images import GreyArray, resize_grey
from cxu.maskplan import Block
from cxu.masks import MaskOptions, Placement, RowShape, covered_window, draw_organs, with_outline
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row
from cxu.rasterize import Failure
from cxu.sharing import Share, held
from cxu.window import Window

MANY_FILES: Final = 10_000
_COLUMNS: Final = (*KEY_COLUMNS, "landmarks_xy", "confident", "usable")


@dataclass(frozen=True, eq=False)
class Crop:
    """A crop: its grey values uint8 or uint16 [h, w], and where it lies in its image."""

    grey: GreyArray
    region: Region


@dataclass(frozen=True, eq=False)
class _RowCrop:
    """The crop of a row: where the row lies in its image, and whether that is a negative."""

    crop: Crop
    placement: Placement
    negative: bool


@dataclass
class CropReport:
    """What was cut.

    Attributes
    ----------
    rows, resumed_rows
        Rows with a crop, and how many of them an earlier run had cut.
    files, bytes
        What the folder holds of crops.
    clipped, padded
        Crops whose margin reached over an edge of the image; squares larger than their image.
    negative
        Crops of images that are clearly negatives.
    assumed
        Rows whose position in their image is assumed: their source says nothing of how it made the model frame.
    left_out
        Rows that were left out because an organ is unusable, and why.
    failures
        Rows without a crop, and why.
    failed_elsewhere
        How many more rows have no crop: other jobs of the array tell why.
    blocks, blocks_finished
        Of how many blocks the whole consists, and how many of them were cut by now, by all jobs of an array. Once they
        all are, this tells of the whole; else of the share that was asked for.
    """

    rows: int = 0
    resumed_rows: int = 0
    files: int = 0
    bytes: int = 0
    clipped: int = 0
    padded: int = 0
    negative: int = 0
    assumed: int = 0
    left_out: list[Failure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failed_elsewhere: int = 0
    blocks: int = 0
    blocks_finished: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all is cut and the boxes written."""
        return self.blocks_finished == self.blocks

    def reasons(self) -> Counter[str]:
        """Return how many rows were left out for each reason, the most frequent first."""
        return Counter(dict(Counter(one.reason for one in self.left_out).most_common()))


def why_left_out(shape: RowShape, options: CropOptions) -> str | None:
    """Return why a row has no crop, such as ``heart unusable``; None where it has one."""
    drawn = with_outline(shape, options.policy)
    found: dict[str, list[str]] = {}
    for index, organ in enumerate(ORGANS):
        if organ.name not in options.organs:
            continue
        if not np.isfinite(shape.landmarks_xy[organ.nodes]).all():
            found.setdefault("without landmarks", []).append(organ.name)
        elif options.unusable == "skip" and not shape.usable[index]:
            found.setdefault("unusable", []).append(organ.name)
        elif options.unusable == "skip" and not drawn.usable[index]:
            found.setdefault("without a confident node", []).append(organ.name)
    return "; ".join(f"{', '.join(names)} {what}" for what, names in found.items()) or None


def cut_crop(shape: RowShape, placement: Placement, grey: GreyArray, options: CropOptions) -> Crop:
    """Cut one row's crop.

    Parameters
    ----------
    shape, placement
        The row, and where it lies in its image.
    grey
        The image, uint8 or uint16 [H, W] of ``placement.shape_hw``.
    options
        What is cut out. An unusable organ has its full polygon.

    Raises
    ------
    ImageError
        If the image has another size, or one of the organs does not lie in it.
    FormatError
        If landmarks of these organs are no finite positions.
    """
    if grey.shape != placement.shape_hw:
        height, width = placement.shape_hw
        raise ImageError(f"the image is {grey.shape[1]} × {grey.shape[0]} px, its row is placed in {width} × {height}")
    window = _drawn_window(shape, placement, options)
    tight = window.drawn_box()
    assert tight is not None, "each of the organs lies in the image"
    region = cropping.place_crop(tight, placement.shape_hw, options.shape)
    cut = cast(GreyArray, cropping.cut_out(grey, region.box))
    if options.blank:
        np.multiply(cut, cropping.cut_out(window.image(), region.box), out=cut)
    return Crop(cut if cut.shape == region.shape_hw else resize_grey(cut, region.shape_hw), region)


def _drawn_window(shape: RowShape, placement: Placement, options: CropOptions) -> Window:
    """Return where the organs of a row lie in its image, 1 on the inside."""
    drawn = with_outline(shape, options.policy)
    masks = draw_organs(drawn, placement, MaskOptions(options.policy), names=options.organs)
    outside = [name for name, mask in masks.items() if not mask.window.pixels.any()]
    if outside:
        height, width = placement.shape_hw
        raise ImageError(f"no pixel of {', '.join(outside)} lies in the image of {width} × {height} px")
    return covered_window(list(masks.values()))


def estimate_bytes(plan: CropPlan) -> int:
    """Return about how much the crops of a plan will take, from the first row that has one; 0 where none of few has."""
    for block in plan.blocks[:1]:
        for key, image, shape in _rows_of(block):
            if why_left_out(shape, plan.options):
                continue
            try:
                made = _crop_of(key, image, shape, plan.options, plan.target)
            except CxuError:
                continue
            return plan.rows * len(raster.encode_png(made.crop.grey))
    return 0


def _rows_of(block: Block) -> Iterator[tuple[RowKey, ImageFile | None, RowShape]]:
    rows = block.read(_COLUMNS)
    yield from zip(RowKey.all_of(rows), block.images or [None] * len(rows), RowShape.all_of(rows), strict=True)


def _crop_of(key: RowKey, image: ImageFile | None, shape: RowShape, options: CropOptions, target: Target) -> _RowCrop:
    placement = place_row(key, image, target)
    assert image is not None, "a row without an image has no place"
    film = films.read_film(image, even_flat=True, turn=False)
    crop = cut_crop(shape, placement, cast(GreyArray, film.grey), options)
    return _RowCrop(crop, placement, films.is_negative(film))


@dataclass(frozen=True)
class _Task:
    block: Block
    out: Path
    options: CropOptions
    target: Target


@dataclass(frozen=True)
class _BlockResult:
    facts: BlockFacts
    failures: tuple[Failure, ...] = ()
    resumed: bool = False


def crop_table(
    plan: CropPlan,
    *,
    workers: int = 1,
    share: Share | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> CropReport:
    """Carry out a plan: cut and write the crops, then ``boxes.csv`` and ``boxes.parquet``.

    Parameters
    ----------
    plan
        From :func:`cxu.cropplan.plan_crops`.
    workers
        Processes to use; the result is the same.
    share
        Cut only these blocks, as one job of an array. The boxes are written by the job that finds all blocks cut.
    overwrite
        Remove the crops of an earlier command first, and start afresh.
    progress
        Called with the number of rows done.

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
        raise UsageError("--overwrite and --shard: each job would remove what the others cut; choose another --out")
    check_workers(workers, None)
    folder = CropFolder(plan.out)
    with held(plan.out, shared=share is not None):
        folder.claim(plan.record, plan.planned(), overwrite=overwrite)
        report, blocks = CropReport(blocks=len(plan.blocks)), plan.of_share(share)
        tasks = [_Task(block, plan.out, plan.options, plan.target) for block in blocks]
        with closing(run_shards(_cut_block, tasks, workers=workers)) as results:
            for result in results:
                facts = result.facts
                report.resumed_rows += facts.rows if result.resumed else 0
                report.failures += result.failures
                progress(facts.rows + facts.failures + len(facts.left_out))
        names, mine = ([block.name for block in some] for some in (plan.blocks, blocks))
        contents, report.blocks_finished = folder.gather(names, mine)
        report.rows, report.files, report.bytes = contents.rows, contents.files, contents.n_bytes
        report.clipped, report.padded, report.negative = contents.clipped, contents.padded, contents.negative
        report.assumed, report.failed_elsewhere = contents.assumed, contents.failures - len(report.failures)
        report.left_out = [Failure(*one) for one in contents.left_out]
        return report


def _cut_block(task: _Task) -> _BlockResult:
    """Cut one block, unless an earlier run did."""
    block, folder, options = task.block, CropFolder(task.out), task.options
    stamp = block.stamp()
    done = folder.finished(block.name, stamp)
    if done is not None:
        return _BlockResult(done, resumed=True)
    folder.begin(block.name, crop_paths(block))
    lines: list[tuple[Any, ...]] = []
    left_out, failures, assumed, n_bytes = [], [], 0, 0
    for (key, image, shape), stem in zip(_rows_of(block), block.stems, strict=True):
        reason = why_left_out(shape, options)
        if reason:
            left_out.append([key.source, key.image_id, reason])
            continue
        try:
            made = _crop_of(key, image, shape, options, task.target)
        except CxuError as error:
            failures.append(Failure(key.source, key.image_id, str(error)))
            continue
        content, path = raster.encode_png(made.crop.grey), f"{stem}{SUFFIX}"
        files.write_bytes(task.out / path, content)
        n_bytes += len(content)
        assumed += not made.placement.exact
        lines.append(_line(key, path, made, options))
    facts = BlockFacts(len(lines), len(failures), assumed=assumed, n_bytes=n_bytes, images=stamp, left_out=left_out)
    folder.finish(block.name, _as_table(lines), facts)
    return _BlockResult(facts, tuple(failures))


def _line(key: RowKey, path: str, made: _RowCrop, options: CropOptions) -> tuple[Any, ...]:
    """Return a line of the boxes, in the order of their columns."""
    region = made.crop.region
    keys = (key.source, key.image_id, path, ",".join(options.organs))
    sizes = (*made.placement.shape_hw[::-1], *region.shape_hw[::-1])
    flags = (region.clipped, region.padded, made.negative)
    return (*keys, *region.box, *region.tight, *sizes, *region.scale_xy, *flags)


def _as_table(lines: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = [list(column) for column in zip(*lines, strict=True)] or [[]] * len(BOX_SCHEMA)
    return pa.table(columns, schema=BOX_SCHEMA)
