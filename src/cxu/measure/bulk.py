"""A stored table → a file of measures and an account of them, shard by shard."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxu import __version__, files, store, table
from cxu.criteria import Criteria, check_keys
from cxu.engine import check_workers, run_shards
from cxu.errors import OutputExistsError, UsageError
from cxu.labels import Labels, common_type
from cxu.measure import intervals, rows
from cxu.measure.account import Gathered, MeasureReport
from cxu.measure.parts import Parts
from cxu.measure.rows import SCHEMA, Measured
from cxu.sharing import Share, check_arrived, check_shared

OUT_SUFFIXES: Final = (".parquet", ".csv")
KIND: Final = "measures"
_KEYS: Final = ("source", "image_id", "frame")


def measure_table(
    stored: store.StoredTable,
    out: Path | None = None,
    *,
    labels: Sequence[Labels] = (),
    workers: int = 1,
    scheduler: str | None = None,
    share: Share | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> MeasureReport:
    """Measure a stored table, into a file where one is named.

    Memory is bounded by a shard, and the values themselves for their quantiles. The same table gives the same bytes,
    however many workers or jobs. A file of measures that is there is replaced once everything is done. Until then what
    is finished lies beside it, and the same call goes on with it.

    Parameters
    ----------
    stored
        Predictions, a source or a selection.
    out
        A ``.parquet`` or ``.csv`` file; None only counts.
    labels
        Their columns are joined by image id.
    workers, scheduler
        Processes to use, or a Dask cluster: see :func:`cxu.engine.open_pool`.
    share
        Measure only these shards, as one job of an array. The file is written by the job that finds all measured.
    progress
        Called with the rows done.

    Raises
    ------
    UsageError
        If ``out`` has another suffix, lists are to go into a CSV, an image is there in both frames, or a share has no
        file to go to.
    OutputExistsError
        If ``out`` is there and holds no measures.
    DuplicateIdError
        If an image stands twice.
    """
    check_workers(workers, scheduler)
    if out is not None:
        _check_out(out)
    elif share is not None:
        raise UsageError("--shard needs --out: the jobs of an array leave their measures beside that file")
    shards = stored.shards()
    check_keys(_keys_of(shards), Criteria())
    kinds = _extra_kinds([store.Shard(path, 0, 0).schema() for path in stored.paths], labels)
    names = rows.free_names(list(kinds))
    extras = [pa.field(name, kind) for name, kind in zip(names, kinds.values(), strict=True)]
    facts = _facts(stored, labels) if out else {}
    layout = _Layout(pa.schema([*SCHEMA, *extras], metadata=_metadata(facts)), labels, kinds)
    tasks = [_Task(_anywhere(shard), tuple(kinds), index) for index, shard in enumerate(shards)]
    if out is None:
        return layout.join(_measured(tasks, workers, scheduler, progress), None)
    _check_lists(out, layout.schema)
    parts = Parts.beside(out, files.hash_of([facts["input"], facts["intervals"], SCHEMA.names, __version__]))
    tasks = [replace(task, parts=parts) for task in tasks]
    parts.begin()
    try:
        if share is not None:
            mine = [task for task in tasks if share.holds(task.index)]
            report = layout.join(_measured(mine, workers, scheduler, progress), None)
            return _join_shares(layout, parts, tasks, report, out)
        report = layout.join(_measured(tasks, workers, scheduler, progress), out)
        parts.remove()
    finally:
        parts.remove_if_empty()
    return report


def _join_shares(
    layout: _Layout, parts: Parts, tasks: Sequence[_Task], report: MeasureReport, out: Path
) -> MeasureReport:
    """Join the measures of all jobs of an array where they are there; ``report`` tells of this job's.

    Another job may do so at the same time: both write the same file, and the first that is done removes the parts.
    """
    finished = [parts.path(task.index).is_file() for task in tasks]
    is_joined = not parts.folder.is_dir()
    if all(finished):
        try:
            whole = layout.join((parts.read(task.index) for task in tasks), out)
        except FileNotFoundError:
            is_joined = True
        else:
            whole.shards = whole.shards_finished = len(tasks)
            parts.remove()
            return whole
    report.is_whole = False
    report.shards, report.shards_finished = len(tasks), len(tasks) if is_joined else sum(finished)
    return report


def rows_of_share(stored: store.StoredTable, share: Share | None) -> int:
    """Return how many rows one job of an array measures; all without a share."""
    return sum(shard.rows for index, shard in enumerate(stored.shards()) if share is None or share.holds(index))


def sources_of(stored: store.StoredTable) -> list[str]:
    """Return the sources of a table's rows, in order of name."""
    return sorted({name for shard in stored.shards() for name in shard.read(["source"])["source"].unique().to_pylist()})


@dataclass(frozen=True)
class _Task:
    """A shard to measure, and where its measures go; without parts they are the result."""

    shard: store.Shard
    extras: tuple[str, ...]
    index: int
    parts: Parts | None = None

    def measure(self) -> Measured:
        return rows.measure(self.shard.read([*rows.READ, *self.extras]))


def _anywhere(shard: store.Shard) -> store.Shard:
    """Return a shard that is the same in a process with another working folder."""
    return replace(shard, path=shard.path.absolute())


def _measure_there(task: _Task) -> Measured | None:
    """Measure one shard in a worker of a cluster."""
    check_shared([task.shard.path], "the table")
    check_shared([task.parts.folder] if task.parts else [], "the folder of --out")
    return _measure_shard(task)


def _measure_shard(task: _Task) -> Measured | None:
    """Measure one shard, unless an earlier run did."""
    if task.parts is None:
        return task.measure()
    if not task.parts.path(task.index).is_file():
        task.parts.write(task.index, task.measure())
    return None


def _measured(
    tasks: Sequence[_Task], workers: int, scheduler: str | None, progress: Callable[[int], None]
) -> Generator[Measured]:
    """Measure shards, and yield their measures in order."""
    measure = _measure_there if scheduler else _measure_shard
    with closing(run_shards(measure, tasks, workers=workers, scheduler=scheduler)) as results:
        for task, result in zip(tasks, results, strict=True):
            progress(task.shard.rows)
            yield _read(task) if result is None else result


def _read(task: _Task) -> Measured:
    assert task.parts is not None, "the measures went there"
    try:
        return task.parts.read(task.index)
    except FileNotFoundError:
        if not task.parts.folder.is_dir():  # another job of the array has joined all parts
            return task.measure()
        check_arrived(task.parts.path(task.index))
        raise


def _keys_of(shards: Sequence[store.Shard]) -> pa.Table:
    empty = table.SCHEMA.empty_table().select(_KEYS)
    return pa.concat_tables([empty, *(shard.read(_KEYS) for shard in shards)], promote_options="permissive")


def _extra_kinds(schemas: Sequence[pa.Schema], labels: Sequence[Labels]) -> dict[str, pa.DataType]:
    """Return the columns beyond the table's own that the files or the labels have, each in one type for all."""
    kinds: dict[str, pa.DataType] = {}
    for schema in (*schemas, *(one.columns.schema for one in labels)):
        for name in rows.extra_columns(schema):
            kind = schema.field(name).type
            kinds[name] = common_type(kinds.get(name, kind), kind)
    return kinds


@dataclass(frozen=True)
class _Layout:
    """The columns of the file: ``kinds`` are those beyond the measures, of the table and of the labels."""

    schema: pa.Schema
    labels: Sequence[Labels]
    kinds: Mapping[str, pa.DataType]

    def join(self, measured: Generator[Measured], out: Path | None) -> MeasureReport:
        """Count the measures of shards, and write them to ``out`` where it is given."""
        gathered = Gathered(self.labels)
        with closing(measured), _writer(out, self.schema) as write:
            for one in measured:
                columns = gathered.add(one, self.kinds)
                write(pa.table([*one.rows.columns, *columns], schema=self.schema))
        return gathered.finish()


def _facts(stored: store.StoredTable, labels: Sequence[Labels]) -> dict[str, Any]:
    """Return what the file says of how it was made; no names of files, no clock times."""
    return {
        "kind": KIND,
        "input": {"rows": stored.rows, "digest": stored.digest},
        "labels": [{"source": one.source.name, "sha256": files.sha256_of(one.path)} for one in labels],
        "intervals": {"coverage": intervals.COVERAGE, "draws": intervals.N_DRAWS, "min_samples": intervals.MIN_SAMPLES},
    }


def _metadata(facts: Mapping[str, Any]) -> dict[bytes, bytes] | None:
    return {table.METADATA_KEY: json.dumps(facts, sort_keys=True).encode()} if facts else None


@contextmanager
def _writer(out: Path | None, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that appends rows to the file, which appears whole at the end or not at all."""
    if out is None:
        yield lambda _: None
    elif out.suffix == ".parquet":
        with store.table_writer(out, schema) as writer:
            yield writer.write
    else:
        with files.replacing_output(out) as temporary, pa_csv.CSVWriter(temporary, schema) as lines:
            yield lines.write


def _check_lists(out: Path, schema: pa.Schema) -> None:
    lists = [field.name for field in schema if pa.types.is_nested(field.type)]
    if lists and out.suffix == ".csv":
        raise UsageError(f"--out {out}: a CSV cannot hold the lists of {', '.join(lists)}; write a .parquet file")


def _check_out(out: Path) -> None:
    """Refuse a file that is no table of measures: it may be anything, and would be lost."""
    if out.suffix not in OUT_SUFFIXES:
        raise UsageError(f"--out {out}: expected a file {' or '.join(OUT_SUFFIXES)}")
    if out.is_dir() or (out.exists() and not _holds_measures(out)):
        raise OutputExistsError(f"{out} is there and holds no measures: choose another name, or remove it first")


def _holds_measures(path: Path) -> bool:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace") as lines:
            names = next(csv.reader(lines), [])
        return names[: len(SCHEMA)] == SCHEMA.names
    try:
        return table.decode_metadata(pq.read_schema(path)).get("kind") == KIND
    except (pa.ArrowException, OSError):
        return False
