"""Published CSV files → a source in the home, streaming, whole or not at all.

Source: the published tables, ``docs/datasets.md``; the conversion of rows is :mod:`cxu.published`.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import files, store
from cxu.catalog import FrameName, Source
from cxu.csv_reader import Batch, CsvReader
from cxu.engine import Pool, Threads, open_pool
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError, WorkerError
from cxu.ingest_parts import ImportOptions, PartSource, RowProblem, convert_part, part_tasks, parts_key
from cxu.published import Provenance

MOST_THREADS: Final = 4
_LARGE_BYTES: Final = 256 << 20
# After these the finished parts are kept, and the same command goes on with them.
_INTERRUPTIONS: Final = (KeyboardInterrupt, WorkerError, OSError)


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
    limited = options.limit_rows is not None
    reader = CsvReader(stream, report.file, source, keep_rle=options.keep_rle, limited=limited)
    parts: list[store.Part] = []
    seen: list[pa.Table] = []
    of = PartSource(folder.resolve(), report.file, source, options, provenance)
    with contextlib.closing(_limited(reader.batches(), options.limit_rows)) as batches:
        for done in (pool or open_pool()).run(convert_part, part_tasks(batches, of)):
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
    is_unique = pc.count_distinct(seen["image_id"]).as_py() == len(seen)
    counts = pc.value_counts(seen["image_id"].slice(0, 0) if is_unique else seen["image_id"])
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
    staged = home.staging(source.name, frame, parts_key(options, provenance), keep=resumable)
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
        Processes that convert, or a Dask scheduler: see :func:`cxu.engine.open_pool`. Without either, threads of this
        process convert, for a large file up to :data:`MOST_THREADS`: more would wait for the text.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist or is no file; expected a published CSV")
    frame: FrameName = options.frame or "model"
    # workers start while the file is hashed
    with _pool_for(path, workers, scheduler) as pool, home.lock(source.name, frame):
        sha256 = files.sha256_of(path)
        home.tidy(source.name, frame, keep=parts_key(options, Provenance(sha256)))
        if held := _held(home, home.listing(source.name, frame), sha256, options):
            return ImportReport(
                path.name, source.name, frame, held.rows, already_there=True, malformed_before=held.malformed
            )
        with _open(path) as stream:
            provenance = Provenance(sha256)
            return import_stream(stream, path.name, source, home, options, provenance, progress=progress, pool=pool)


def _pool_for(path: Path, workers: int | None, scheduler: str | None) -> Pool:
    if workers is not None or scheduler is not None:
        return open_pool(workers or 1, scheduler)
    # nearly all of a conversion is Arrow's and numpy's, who let other threads go on
    return Threads(min(os.cpu_count() or 1, MOST_THREADS) if path.stat().st_size >= _LARGE_BYTES else 1)


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
