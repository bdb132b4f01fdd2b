"""Published CSV files → a source in the home, streaming, whole or not at all.

Source: the published tables, ``docs/datasets.md``; the conversion of rows is :mod:`cxu.published`.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import __version__, files, store, table
from cxu.catalog import FrameName, Source
from cxu.csv_reader import Batch, CsvReader
from cxu.engine import Pool, open_pool
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError, WorkerError
from cxu.published import NOT_MODEL_FRAME, Provenance, convert_rows

MOST_WORKERS: Final = 4
_LARGE_BYTES: Final = 256 << 20
_PART_TEXT_BYTES: Final = 64 << 20
# After these the finished parts are kept, and the same command goes on with them.
_INTERRUPTIONS: Final = (KeyboardInterrupt, WorkerError, OSError)
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


@dataclass
class ImportReport:
    """What came of one file: rows that became rows, rows that could not, and what was noticed on the way.

    Of a file that was ``already_there``, only ``malformed_before`` tells of such rows: how many its import left out.
    """

    file: str
    source: str
    frame: FrameName
    imported: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    already_there: bool = False
    malformed_before: int = 0

    @property
    def malformed(self) -> int:
        """Rows that could not become rows, now or when the file was imported."""
        return len(self.problems) or self.malformed_before


def _without_blank_lines(batch: Batch, report: ImportReport) -> Batch:
    """Leave out rows in which every column is empty, and count them."""
    lengths = [pc.binary_length(column).to_numpy() for column in batch.texts.values()]
    blank = np.sum(lengths, axis=0) == 0
    if not blank.any():
        return batch
    report.notes["blank_lines"] += int(blank.sum())
    keep = pa.array(~blank)
    return Batch({role: column.filter(keep) for role, column in batch.texts.items()}, batch.lines[~blank], batch.broken)


def _limited(batches: Iterator[Batch], limit: int | None) -> Generator[Batch]:
    """Yield batches up to ``limit`` rows in all."""
    left = limit
    for batch in batches:
        if left is None or len(batch.lines) < left:
            yield batch
            left = None if left is None else left - len(batch.lines)
            continue
        texts = {role: column[:left] for role, column in batch.texts.items()}
        end = batch.lines[left] if left < len(batch.lines) else np.inf
        yield Batch(texts, batch.lines[:left], [row for row in batch.broken if row[0] < end])
        return


def _check_frame_may_be_left_out(problems: list[RowProblem]) -> None:
    for problem in problems:
        if NOT_MODEL_FRAME in problem.reason:
            raise UsageError(
                f"{problem.file}, line {problem.line}: {problem.reason.split(' is ')[0]}: say whether the landmarks "
                "are in the model frame (--frame model) or in the image's own pixels (--frame image)"
            )


@dataclass(frozen=True)
class _PartTask:
    """The text of one part, and what it is to become."""

    texts: dict[str, pa.Array]
    lines: npt.NDArray[np.int64]
    broken: list[tuple[int, str]]
    folder: Path
    name: str
    file: str
    source: Source
    options: ImportOptions
    provenance: Provenance


@dataclass(frozen=True)
class _PartDone:
    """A part that is written, or None where no row of it was good; ``seen`` has image_id and line of its rows."""

    part: store.Part | None
    seen: pa.Table
    problems: list[RowProblem]
    notes: Counter[str]
    n_lines: int


def _part_tasks(batches: Iterator[Batch], report: ImportReport, **what: Any) -> Iterator[_PartTask]:
    """Gather batches into the text of parts: of :data:`store.SHARD_ROWS` rows, or fewer where rows are long."""
    key = what.pop("key")
    waiting: list[Batch] = []
    numbers = itertools.count()

    def task(batch: Batch) -> _PartTask:
        name = f"part-{key[:12]}-{next(numbers):05d}.parquet"
        return _PartTask(dict(batch.texts), batch.lines, batch.broken, name=name, file=report.file, **what)

    for batch in batches:
        waiting.append(_without_blank_lines(batch, report))
        while sum(len(one.lines) for one in waiting) >= store.SHARD_ROWS:
            whole, rest = _cut(_joined(waiting), store.SHARD_ROWS)
            yield task(whole)
            waiting = [rest]
        if sum(column.nbytes for one in waiting for column in one.texts.values()) >= _PART_TEXT_BYTES:
            yield task(_joined(waiting))
            waiting = []
    if any(len(one.lines) or one.broken for one in waiting):
        yield task(_joined(waiting))


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


def _convert_part(task: _PartTask) -> _PartDone:
    """Convert the text of a part and write it, unless an earlier run did."""
    if not task.folder.is_dir():
        raise MissingInputError(
            f"{task.folder} is not on {platform.node()}: the home must lie on a file system that all workers share"
        )
    path = task.folder / task.name
    record = task.folder / f"done-{task.name}"
    if path.is_file() and record.is_file():
        return _read_done(record, task)
    rows, reasons, notes = convert_rows(task.texts, task.source, task.options.frame, task.provenance)
    problems = _problems_of(task, reasons)
    if task.options.frame is None:
        _check_frame_may_be_left_out(problems)
    if problems and task.options.strict:
        raise FormatError(f"{problems[0]} (stopped here because of --strict; nothing was imported)")
    part = None
    if len(rows):
        store.write_table(rows, path)
        part = store.Part(task.name, len(rows), files.sha256_of(path))
    is_good = np.fromiter((not reason for reason in reasons), np.bool_, len(reasons))
    seen = pa.table({"image_id": rows["image_id"], "line": task.lines[is_good]})
    done = _PartDone(part, seen, problems, notes, len(task.lines) + len(task.broken))
    if part is not None:
        _write_done(record, done)
    return done


def _problems_of(task: _PartTask, reasons: list[str]) -> list[RowProblem]:
    found = [RowProblem(task.file, line, "", reason) for line, reason in task.broken]
    for index in (at for at, reason in enumerate(reasons) if reason):
        image_id = (task.texts["id"][index].as_py() or b"").decode("utf-8", "replace")
        found.append(RowProblem(task.file, int(task.lines[index]), image_id[:80], reasons[index]))
    return sorted(found, key=lambda problem: problem.line)


def _write_done(path: Path, done: _PartDone) -> None:
    facts = {
        "part": asdict(done.part) if done.part else None,
        "problems": [asdict(problem) for problem in done.problems],
        "notes": dict(done.notes),
        "n_lines": done.n_lines,
    }
    with files.replacing(path) as temporary:
        pq.write_table(done.seen.replace_schema_metadata({_DONE_KEY: json.dumps(facts)}), temporary)


def _read_done(path: Path, task: _PartTask) -> _PartDone:
    seen = pq.read_table(path)
    facts = json.loads(seen.schema.metadata[_DONE_KEY.encode()])
    # the same bytes in another place: the name to call them by is that of this run
    problems = [RowProblem(**{**problem, "file": task.file}) for problem in facts["problems"]]
    return _PartDone(store.Part(**facts["part"]), seen, problems, Counter(facts["notes"]), facts["n_lines"])


Progress = Callable[[int], None]


def convert_stream(
    stream: BinaryIO,
    folder: Path,
    report: ImportReport,
    source: Source,
    options: ImportOptions,
    provenance: Provenance,
    progress: Progress,
    pool: Pool | None = None,
) -> tuple[tuple[store.Part, ...], pa.Table]:
    """Convert a published CSV into parts in ``folder``; memory stays bounded by some parts.

    The text is split here, in order; parts are converted and written by the pool's workers. Parts that ``folder`` holds
    already, of an earlier run over the same bytes, are taken as they are.

    Returns the parts and a table of ``image_id`` and ``line`` of every row. The report is filled along the way, and
    ``progress`` is called with the rows of each part.
    """
    key = _key_of(options, provenance)
    limited = options.limit_rows is not None
    reader = CsvReader(stream, report.file, source, keep_rle=options.keep_rle, limited=limited)
    parts: list[store.Part] = []
    seen: list[pa.Table] = []
    what = {"folder": folder.resolve(), "source": source, "options": options, "provenance": provenance, "key": key}
    with contextlib.closing(_limited(reader.batches(), options.limit_rows)) as batches:
        for done in (pool or open_pool()).run(_convert_part, _part_tasks(batches, report, **what)):
            parts += [done.part] if done.part else []
            seen.append(done.seen)
            report.problems += done.problems
            report.notes += done.notes
            report.imported += len(done.seen)
            progress(done.n_lines)
    if not report.imported and not report.problems:
        raise FormatError(f"{report.file} holds no rows, only a header")
    if not report.imported:
        n_malformed = len(report.problems)
        raise FormatError(f"{report.file}: no row imported, {n_malformed} malformed; the first: {report.problems[0]}")
    if options.frame is None and report.notes["size_assumed"] == report.imported:
        raise UsageError(f"{report.file} states no image size: say --frame model or --frame image")
    return tuple(parts), pa.concat_tables(seen)


def _key_of(options: ImportOptions, provenance: Provenance) -> str:
    """Return a hash of all that parts depend on: those of one way to read a file never pass for those of another."""
    asked = {**asdict(options), "strict": False}
    return files.hash_of([asdict(provenance), asked, table.SCHEMA_VERSION, __version__])


def check_duplicates(seen: pa.Table, report: ImportReport, known_ids: Mapping[str, pa.Array]) -> None:
    """Check that no id stands twice among the new rows, or in them and among the ids already there.

    Parameters
    ----------
    seen
        ``image_id`` and ``line`` of the new rows.
    report
        Names the file and source.
    known_ids
        Imported file → its ids.

    Raises
    ------
    DuplicateIdError
        Naming how many ids, and for the first three where they stand.
    """
    counts = pc.value_counts(seen["image_id"])
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    clashes = [
        f"{image_id!r} on lines {', '.join(map(str, _lines_of(seen, image_id)))}" for image_id in twice[:3].to_pylist()
    ]
    total = len(twice)
    for file, ids in known_ids.items():
        both = seen["image_id"].filter(pc.is_in(seen["image_id"], value_set=ids)).unique()
        total += len(both)
        clashes += [f"{image_id!r}, already imported from {file}" for image_id in both[:3].to_pylist()]
    if total:
        raise DuplicateIdError(
            f"{report.file}: {total} image ids of {report.source} stand more than once: {'; '.join(clashes[:3])}"
            f"{' …' if total > len(clashes[:3]) else ''}. Nothing was imported; leave one row of each and try again."
        )


def _lines_of(seen: pa.Table, image_id: str) -> list[int]:
    return seen["line"].filter(pc.equal(seen["image_id"], image_id)).to_pylist()


def _known_ids(home: store.Home, listing: store.SourceListing) -> dict[str, pa.Array]:
    folder = home.source_folder(listing.source, listing.frame)
    return {file.name: _ids_of(file, folder) for file in listing.files}


def _ids_of(file: store.SourceFile, folder: Path) -> pa.Array:
    try:
        columns = [pq.read_table(folder / part.name, columns=["image_id"])["image_id"] for part in file.parts]
    except FileNotFoundError as error:
        raise MissingInputError(f"a part of {folder} is gone; import {file.name} again ({error})") from None
    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks])


def import_stream(
    stream: BinaryIO,
    name: str,
    source: Source,
    home: store.Home,
    options: ImportOptions,
    provenance: Provenance,
    *,
    replace: bool = False,
    progress: Progress = lambda _: None,
    pool: Pool | None = None,
) -> ImportReport:
    """Convert an open CSV and publish it in the home, whole or not at all; the caller holds :meth:`store.Home.lock`.

    Parameters
    ----------
    stream, name
        The CSV's bytes and what to call it in messages.
    source, home, options, provenance
        What it is, where it goes, how it is read, where it came from.
    replace
        Take the place of what the source holds in this frame, instead of adding to it.
    progress
        Called with the number of rows each part was made of.
    pool
        Where parts are converted; None does it here. Interrupted, an import of bytes whose hash is known goes on with
        the parts that are done.

    Raises
    ------
    FormatError
        If the file is no published CSV, holds no row that can be imported, or, under ``strict``, one that cannot.
    DuplicateIdError
        If an id stands twice.
    """
    frame: FrameName = options.frame or "model"
    report = ImportReport(name, source.name, frame)
    listing = home.listing(source.name, frame)
    others = tuple(file for file in listing.files if file.sha256 != (provenance.sha256 or ""))
    kept = () if replace or listing.partial is not None else others
    resumable = provenance.sha256 is not None
    staged = home.staging(source.name, frame, _key_of(options, provenance), keep=resumable)
    try:
        parts, seen = convert_stream(stream, staged, report, source, options, provenance, progress, pool)
        check_duplicates(seen, report, _known_ids(home, store.SourceListing(source.name, frame, kept)))
        record = store.SourceFile(
            name,
            provenance.sha256 or "",
            report.imported,
            len(report.problems),
            options.keep_rle,
            provenance.repo,
            provenance.revision,
            parts,
        )
        home.publish(store.SourceListing(source.name, frame, (*kept, record), options.limit_rows), staged)
    except BaseException as error:
        if not (resumable and isinstance(error, _INTERRUPTIONS)):
            _discard(staged)
        raise
    return report


def _discard(staged: Path) -> None:
    """Remove a staging folder, and the folders of its source that hold nothing else."""
    shutil.rmtree(staged, ignore_errors=True)
    with contextlib.suppress(OSError):
        for folder in list(staged.parents)[:3]:
            folder.rmdir()


def import_file(
    path: Path,
    source: Source,
    home: store.Home,
    options: ImportOptions,
    *,
    progress: Progress = lambda _: None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> ImportReport:
    """Import a published CSV (``.csv`` or ``.csv.gz``); the same bytes again are a no-op.

    Parameters
    ----------
    path, source, home, options, progress
        See :func:`import_stream`, and there for what is raised; :class:`ImportReport` for what comes back.
    workers, scheduler
        Processes that convert, or a Dask scheduler: see :func:`cxu.engine.open_pool`. None takes one process for a
        small file and up to :data:`MOST_WORKERS` for a large one; more would wait for the text.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist or is no file; expected a published CSV")
    frame: FrameName = options.frame or "model"
    asked = workers or (1 if scheduler else _workers_for(path))
    # workers start while the file is hashed
    with open_pool(asked, scheduler) as pool, home.lock(source.name, frame):
        sha256 = files.sha256_of(path)
        home.tidy(source.name, frame, keep=_key_of(options, Provenance(sha256)))
        if held := _held(home, home.listing(source.name, frame), sha256, options):
            return ImportReport(
                path.name, source.name, frame, held.rows, already_there=True, malformed_before=held.malformed
            )
        with _open(path) as stream:
            provenance = Provenance(sha256)
            return import_stream(stream, path.name, source, home, options, provenance, progress=progress, pool=pool)


def _workers_for(path: Path) -> int:
    return min(os.cpu_count() or 1, MOST_WORKERS) if path.stat().st_size >= _LARGE_BYTES else 1


def _held(
    home: store.Home, listing: store.SourceListing, sha256: str, options: ImportOptions
) -> store.SourceFile | None:
    """Return the record of a file that is here whole, with all that the options ask for."""
    folder = home.source_folder(listing.source, listing.frame)
    for file in () if listing.partial is not None else listing.files:
        is_whole = all((folder / part.name).is_file() for part in file.parts)
        if file.sha256 == sha256 and file.rle_kept >= options.keep_rle and is_whole:
            return file
    return None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb", buffering=0)  # type: ignore[return-value]
