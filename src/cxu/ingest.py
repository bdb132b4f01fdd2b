"""Published CSV files → a source in the home, streaming, whole or not at all.

Source: the published tables, ``docs/datasets.md``; the conversion of rows is :mod:`cxu.published`.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import files, store
from cxu.catalog import FrameName, Source
from cxu.csv_reader import Batch, CsvReader
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError
from cxu.published import NOT_MODEL_FRAME, Provenance, convert_rows


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


def _convert_batch(
    batch: Batch, source: Source, options: ImportOptions, provenance: Provenance, report: ImportReport
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Convert a batch, add its problems and notes to the report, and return the rows with the lines they came from."""
    rows, reasons, notes = convert_rows(batch.texts, source, options.frame, provenance)
    found = [RowProblem(report.file, line, "", reason) for line, reason in batch.broken]
    for index in np.flatnonzero([bool(reason) for reason in reasons]).tolist():
        image_id = (batch.texts["id"][index].as_py() or b"").decode("utf-8", "replace")
        found.append(RowProblem(report.file, int(batch.lines[index]), image_id[:80], reasons[index]))
    found.sort(key=lambda problem: problem.line)
    if options.frame is None:
        _check_frame_may_be_left_out(found)
    if found and options.strict:
        raise FormatError(f"{found[0]} (stopped here because of --strict; nothing was imported)")
    report.problems += found
    report.notes += notes
    report.imported += len(rows)
    return rows, batch.lines[[not reason for reason in reasons]]


def _check_frame_may_be_left_out(problems: list[RowProblem]) -> None:
    for problem in problems:
        if NOT_MODEL_FRAME in problem.reason:
            raise UsageError(
                f"{problem.file}, line {problem.line}: {problem.reason.split(' is ')[0]}: say whether the landmarks "
                "are in the model frame (--frame model) or in the image's own pixels (--frame image)"
            )


class _PartWriter:
    """Cut a stream of rows into parts of :data:`store.SHARD_ROWS` rows in a staging folder."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._waiting: list[pa.Table] = []
        self.parts: list[store.Part] = []

    def add(self, rows: pa.Table, *, last: bool = False) -> None:
        self._waiting.append(rows)
        n_waiting = sum(table.num_rows for table in self._waiting)
        while n_waiting >= store.SHARD_ROWS or (last and n_waiting):
            pending = pa.concat_tables(self._waiting)
            self._write(pending[: store.SHARD_ROWS])
            self._waiting = [pending[store.SHARD_ROWS :]]
            n_waiting = self._waiting[0].num_rows

    def _write(self, rows: pa.Table) -> None:
        name = f"part-{self._key[:12]}-{len(self.parts):05d}.parquet"
        store.write_table(rows, self._folder / name)
        self.parts.append(store.Part(name, len(rows), files.sha256_of(self._folder / name)))


Progress = Callable[[int], None]


def convert_stream(
    stream: BinaryIO,
    folder: Path,
    report: ImportReport,
    source: Source,
    options: ImportOptions,
    provenance: Provenance,
    progress: Progress,
) -> tuple[tuple[store.Part, ...], pa.Table]:
    """Convert a published CSV into parts in ``folder``; memory stays bounded by a batch and a part.

    Returns the parts and a table of ``image_id`` and ``line`` of every row. The report is filled along the way, and
    ``progress`` is called with the rows that each batch held.
    """
    # a name of its own for every way to read a file: parts never overwrite those that still count
    writer = _PartWriter(folder, files.hash_of([asdict(provenance), options.keep_rle, options.limit_rows]))
    seen: list[pa.Table] = []
    limited = options.limit_rows is not None
    reader = CsvReader(stream, report.file, source, keep_rle=options.keep_rle, limited=limited)
    with contextlib.closing(_limited(reader.batches(), options.limit_rows)) as batches:
        for batch in batches:
            rows, lines = _convert_batch(_without_blank_lines(batch, report), source, options, provenance, report)
            writer.add(rows)
            seen.append(pa.table({"image_id": rows["image_id"], "line": lines}))
            progress(len(batch.lines) + len(batch.broken))
    if not report.imported and not report.problems:
        raise FormatError(f"{report.file} holds no rows, only a header")
    if not report.imported:
        n_malformed = len(report.problems)
        raise FormatError(f"{report.file}: no row imported, {n_malformed} malformed; the first: {report.problems[0]}")
    if options.frame is None and report.notes["size_assumed"] == report.imported:
        raise UsageError(f"{report.file} states no image size: say --frame model or --frame image")
    writer.add(rows[:0], last=True)
    return tuple(writer.parts), pa.concat_tables(seen)


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
        Called with the number of rows each batch held.

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
    staged = home.staging(source.name, frame, provenance.sha256 or "stream")
    try:
        parts, seen = convert_stream(stream, staged, report, source, options, provenance, progress)
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
    except BaseException:
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
) -> ImportReport:
    """Import a published CSV (``.csv`` or ``.csv.gz``); the same bytes again are a no-op.

    See :func:`import_stream` for what is raised, and :class:`ImportReport` for what comes back.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist or is no file; expected a published CSV")
    frame: FrameName = options.frame or "model"
    sha256 = files.sha256_of(path)
    with home.lock(source.name, frame):
        home.tidy(source.name, frame)
        if held := _held(home, home.listing(source.name, frame), sha256, options):
            return ImportReport(
                path.name, source.name, frame, held.rows, already_there=True, malformed_before=held.malformed
            )
        with _open(path) as stream:
            return import_stream(stream, path.name, source, home, options, Provenance(sha256), progress=progress)


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
