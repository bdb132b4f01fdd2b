"""The text of a part of a source → a Parquet file: what a worker of an import does, and what it is given.

A part is done once its record lies beside it; a run over the same bytes takes it as it is.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import __version__, files, store, table
from cxu.catalog import FrameName, Source
from cxu.csv_reader import Batch
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.published import NOT_MODEL_FRAME, Provenance, convert_rows

_PART_TEXT_BYTES: Final = 64 << 20
_DONE_KEY: Final = "cxu_done"


@dataclass(frozen=True)
class ImportOptions:
    """How to read a published file. ``frame`` None: only where every stated size is 1024."""

    frame: FrameName | None = None
    keep_rle: bool = False
    strict: bool = False
    limit_rows: int | None = None


@dataclass(frozen=True)
class RowProblem:
    """A row that could not become a row of the table."""

    file: str
    line: int
    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}{f' ({self.image_id})' if self.image_id else ''}: {self.reason}"


@dataclass(frozen=True)
class PartSource:
    """What all parts of one file have in common.

    Attributes
    ----------
    folder
        Where parts are written; absolute, since workers may stand elsewhere.
    file
        What to call the file in messages.
    source, options, provenance
        What it is, how it is read, where it came from.
    """

    folder: Path
    file: str
    source: Source
    options: ImportOptions
    provenance: Provenance

    @property
    def key(self) -> str:
        """A hash of all that parts depend on: those of one way to read a file never pass for those of another."""
        return parts_key(self.options, self.provenance)


def parts_key(options: ImportOptions, provenance: Provenance) -> str:
    """Return the key of the parts of a file that is read so."""
    asked = {**asdict(options), "strict": False}
    return files.hash_of([asdict(provenance), asked, table.SCHEMA_VERSION, __version__])


@dataclass(frozen=True)
class PartTask:
    """The text of one part, and the name that its file is to have."""

    of: PartSource
    name: str
    batch: Batch


@dataclass(frozen=True)
class PartDone:
    """A part that is written, or None where no row of it was good; ``seen`` has image_id and line of its rows."""

    part: store.Part | None
    seen: pa.Table
    problems: list[RowProblem]
    notes: Counter[str]
    n_lines: int


def part_tasks(batches: Iterable[Batch], of: PartSource) -> Iterator[PartTask]:
    """Gather batches into the text of parts: of :data:`store.SHARD_ROWS` rows, or fewer where rows are long."""
    names = (f"part-{of.key[:12]}-{number:05d}.parquet" for number in itertools.count())
    waiting: list[Batch] = []
    n_rows = n_bytes = 0
    for batch in batches:
        waiting.append(batch)
        n_rows += len(batch.lines)
        n_bytes += sum(column.nbytes for column in batch.texts.values())
        while n_rows >= store.SHARD_ROWS:
            whole, rest = _cut(_joined(waiting), store.SHARD_ROWS)
            yield PartTask(of, next(names), whole)
            waiting, n_rows = [rest], len(rest.lines)
            n_bytes = sum(column.nbytes for column in rest.texts.values())
        if n_bytes >= _PART_TEXT_BYTES:
            yield PartTask(of, next(names), _joined(waiting))
            waiting, n_rows, n_bytes = [], 0, 0
    if any(len(one.lines) or one.broken for one in waiting):
        yield PartTask(of, next(names), _joined(waiting))


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    texts = {role: pa.concat_arrays([one.texts[role] for one in batches]) for role in batches[0].texts}
    return Batch(texts, np.concatenate([one.lines for one in batches]), [row for one in batches for row in one.broken])


def _cut(batch: Batch, n_rows: int) -> tuple[Batch, Batch]:
    """Return the first rows and the others; a broken row goes with the row before it."""
    end = batch.lines[n_rows] if n_rows < len(batch.lines) else np.inf
    before, after = (
        Batch(
            {role: column[rows] for role, column in batch.texts.items()},
            batch.lines[rows],
            [row for row in batch.broken if (row[0] < end) == first],
        )
        for rows, first in ((slice(0, n_rows), True), (slice(n_rows, None), False))
    )
    return before, after


def convert_part(task: PartTask) -> PartDone:
    """Convert the text of a part and write it, unless an earlier run did.

    Raises
    ------
    FormatError
        If a row is malformed and the options are strict.
    UsageError
        If the frame was left out and a size says that it may not be.
    MissingInputError
        If the folder is not there, on a machine that does not share it.
    """
    of, path = task.of, task.of.folder / task.name
    if not of.folder.is_dir():
        raise MissingInputError(
            f"{of.folder} is not on {platform.node()}: the home must lie on a file system that all workers share"
        )
    record = of.folder / f"done-{task.name}"
    if path.is_file() and record.is_file():
        return _read_done(record, of)
    batch, n_blank = _without_blank_lines(task.batch)
    rows, reasons, notes = convert_rows(batch.texts, of.source, of.options.frame, of.provenance)
    notes += Counter({"blank_lines": n_blank})  # adding leaves out what is zero
    problems = _problems_of(batch, reasons, of)
    part = None
    if len(rows):
        store.write_table(rows, path)
        part = store.Part(task.name, len(rows), files.sha256_of(path))
    is_good = np.fromiter((not reason for reason in reasons), np.bool_, len(reasons))
    seen = pa.table({"image_id": rows["image_id"], "line": batch.lines[is_good]})
    done = PartDone(part, seen, problems, notes, len(task.batch.lines) + len(batch.broken))
    if part is not None:
        _write_done(record, done)
    return done


def _without_blank_lines(batch: Batch) -> tuple[Batch, int]:
    """Leave out rows in which every column is empty, and count them."""
    lengths = [pc.binary_length(column).to_numpy() for column in batch.texts.values()]
    blank = np.sum(lengths, axis=0) == 0
    if not blank.any():
        return batch, 0
    keep = pa.array(~blank)
    texts = {role: column.filter(keep) for role, column in batch.texts.items()}
    return Batch(texts, batch.lines[~blank], batch.broken), int(blank.sum())


def _problems_of(batch: Batch, reasons: list[str], of: PartSource) -> list[RowProblem]:
    found = [RowProblem(of.file, line, "", reason) for line, reason in batch.broken]
    for index in (at for at, reason in enumerate(reasons) if reason):
        image_id = (batch.texts["id"][index].as_py() or b"").decode("utf-8", "replace")
        found.append(RowProblem(of.file, int(batch.lines[index]), image_id[:80], reasons[index]))
    found.sort(key=lambda problem: problem.line)
    if of.options.frame is None:
        _check_frame_may_be_left_out(found)
    if found and of.options.strict:
        raise FormatError(f"{found[0]} (stopped here because of --strict; nothing was imported)")
    return found


def _check_frame_may_be_left_out(problems: list[RowProblem]) -> None:
    for problem in problems:
        if NOT_MODEL_FRAME in problem.reason:
            raise UsageError(
                f"{problem.file}, line {problem.line}: {problem.reason.split(' is ')[0]}: say whether the landmarks "
                "are in the model frame (--frame model) or in the image's own pixels (--frame image)"
            )


def _write_done(path: Path, done: PartDone) -> None:
    facts = {
        "part": done.part and asdict(done.part),
        "problems": [asdict(problem) for problem in done.problems],
        "notes": dict(done.notes),
        "n_lines": done.n_lines,
    }
    with files.replacing(path) as temporary:
        pq.write_table(done.seen.replace_schema_metadata({_DONE_KEY: json.dumps(facts)}), temporary)


def _read_done(path: Path, of: PartSource) -> PartDone:
    seen = pq.read_table(path)
    facts = json.loads(seen.schema.metadata[_DONE_KEY.encode()])
    # the same bytes under another name: messages call them by that of this run
    problems = [RowProblem(**{**problem, "file": of.file}) for problem in facts["problems"]]
    return PartDone(store.Part(**facts["part"]), seen, problems, Counter(facts["notes"]), facts["n_lines"])
