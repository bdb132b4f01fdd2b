"""A table → CSV files in the published columns, which ``cxu import`` reads back: :mod:`cxu.csv_writer`, in blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from cxu import files, table
from cxu.anatomy import ORGAN_NAMES
from cxu.catalog import FrameName
from cxu.csv_writer import Precision, csv_header, csv_lines
from cxu.errors import FormatError, UsageError
from cxu.export.blocks import ExportReport, Progress, block_tasks, join_blocks, open_whole
from cxu.export.drawing import Account, BlockTask
from cxu.export.parts import Rendered
from cxu.export.plan import ExportPlan, check_free
from cxu.rasterize import Failure

_KIND_COLUMNS: Final = ("source", "frame", "sigma_xy")
_COLUMNS: Final = (
    *_KIND_COLUMNS,
    "image_id",
    "model_id",
    "rca_mean",
    "rca_max",
    "landmarks_xy",
    "height",
    "width",
    "usable",
)


class Kind(NamedTuple):
    """What all rows of one file share: it has no column that tells them apart."""

    source: str
    frame: FrameName
    has_sigma: bool

    @property
    def file_name(self) -> str:
        """The name of the kind's file in a folder of several."""
        return f"{self.source}-{self.frame}{'' if self.has_sigma else '-without-std'}.csv"

    def __str__(self) -> str:
        return f"{self.source}, {self.frame} frame, {'with' if self.has_sigma else 'without'} standard deviations"


@dataclass(frozen=True)
class _Settings:
    kind: Kind
    precision: Precision


def export_csv(
    plan: ExportPlan, *, workers: int = 1, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Write one file, or in a folder one for each source, frame and either with or without standard deviations.

    Raises
    ------
    UsageError
        If one file is to hold rows of several kinds, or the files of two would have one name.
    OutputExistsError
        If a file is there and ``overwrite`` is not given.
    """
    kinds = _kinds_of(plan)
    paths = _paths(plan, list(kinds))
    for path in paths.values():
        check_free(path, overwrite=overwrite)
    precision: Precision = "exact" if plan.options.exact else "published"
    report = ExportReport()
    for kind, path in paths.items():
        tasks = [task for task in block_tasks(plan, _Settings(kind, precision)) if task.first in kinds.get(kind, ())]
        with open_whole(plan, path, *map(str, kind)) as (stream, parts):
            stream.write(csv_header(has_sigma=kind.has_sigma).encode())
            join_blocks(_render, tasks, [stream], report, parts=parts, between=b"", workers=workers, progress=progress)
        report.add_file(path)
    return report


def _kinds_of(plan: ExportPlan) -> dict[Kind, set[int]]:
    """Return the kinds of rows in the order of the table, each with the first rows of the blocks that hold it."""
    kinds: dict[Kind, set[int]] = {}
    for _, numbered in itertools.groupby(plan.numbered(), key=lambda pair: pair[1].shard):
        blocks = list(numbered)
        whole = blocks[0][1].shard.read(_KIND_COLUMNS)
        for first, block in blocks:
            for kind in _row_kinds(whole.take(pa.array(block.rows, pa.int64()))):
                kinds.setdefault(kind, set()).add(first)
    return kinds


def _row_kinds(rows: pa.Table) -> Iterator[Kind]:
    has_sigma = rows["sigma_xy"].is_valid().to_pylist()
    yield from map(Kind, rows["source"].to_pylist(), rows["frame"].to_pylist(), has_sigma)


def _paths(plan: ExportPlan, kinds: list[Kind]) -> dict[Kind, Path]:
    if not plan.is_folder:
        if len(kinds) > 1:
            listed = "; ".join(map(str, kinds[:3])) + (" …" if len(kinds) > 3 else "")
            raise UsageError(
                f"--out {plan.out}: the rows are of {len(kinds)} kinds ({listed}), and the published columns do not "
                "tell them apart: name a folder, and each gets a file of its own"
            )
        return dict.fromkeys(kinds or [Kind("", "model", has_sigma=True)], plan.out)
    paths = {kind: plan.out / files.safe_relative(kind.file_name) for kind in kinds}
    taken: dict[str, Kind] = {}
    for kind, path in paths.items():
        other = taken.setdefault(str(path).casefold(), kind)
        if other != kind:
            raise UsageError(
                f"{kind} and {other} would be written to {path}, one file on many systems: export them apart"
            )
    return paths


def _render(task: BlockTask) -> Rendered:
    """Return the lines of those rows of a block that are of the task's kind."""
    rows = task.block.read(_COLUMNS)
    rows = rows.filter(pa.array([kind == task.settings.kind for kind in _row_kinds(rows)], pa.bool_()))
    account, precision = Account(), task.settings.precision
    try:
        lines = csv_lines(rows, precision=precision)
        _count_organs(rows, account)
    except FormatError:
        lines = _lines_of_the_good(rows, precision, account)
    account.rows = len(lines)
    return Rendered(("".join(lines).encode(),), account)


def _lines_of_the_good(rows: pa.Table, precision: Precision, account: Account) -> list[str]:
    """Return the lines of rows that can be written; the others are counted as failures."""
    lines = []
    for index in range(len(rows)):
        row = rows.slice(index, 1)
        try:
            lines += csv_lines(row, precision=precision)
            _count_organs(row, account)
        except FormatError as error:
            source, image_id = row["source"][0].as_py(), row["image_id"][0].as_py()
            account.failures.append(Failure(source, image_id, str(error).removeprefix(f"{image_id}: ")))
    return lines


def _count_organs(rows: pa.Table, account: Account) -> None:
    """Count organs by what a selection says of them: in the file they are all alike."""
    for name, n_usable in zip(ORGAN_NAMES, table.usable_of(rows).sum(axis=0).tolist(), strict=True):
        account.organs[name] += n_usable
        account.unusable[name] += len(rows) - n_usable
