"""A stored table → a file of measures and an account of them, shard by shard."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxu import files, store, table
from cxu.criteria import Criteria, check_keys
from cxu.engine import run_shards
from cxu.errors import OutputExistsError, UsageError
from cxu.flow import QUANTILES, LabelMatch
from cxu.labels import Labels, common_type
from cxu.measure import intervals, rows
from cxu.measure.rows import FLAGS, MEASURES, REASONS, SCHEMA

OUT_SUFFIXES: Final = (".parquet", ".csv")
KIND: Final = "measures"
PLAUSIBLE_THORAX_MM: Final = (150.0, 450.0)  # beyond: a small child, or the spacing of another file
FEW_ROWS: Final = 20  # so many can be shown one by one
_SHOWN: Final = ("source", "image_id", "ctr", "ctr_low", "ctr_high", "ctr_blank", "interval_method", *FLAGS)
_KEYS: Final = ("source", "image_id", "frame")

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Failure:
    """A row that cannot be measured, and why."""

    source: str
    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.image_id}: {self.reason}"


@dataclass
class MeasureReport:
    """What was measured.

    Attributes
    ----------
    rows
        How many rows there are.
    failures
        Those of which nothing can be measured, and why.
    quantiles
        By source and measure: 5, 25, 50, 75 and 95 % of the values there are, and how many.
    blank
        By measure and reason, how many values are blank.
    methods, scale_sources
        How intervals were found, and whence the calibration; None for rows without.
    flags
        How many rows have each flag.
    implausible_mm
        Rows whose thorax is too narrow or too wide for a chest by the spacing that their file states.
    views
        How many rows there are of each view; None where unknown.
    labels
        How the label files met the rows.
    first_rows
        The rows themselves where they are few, the ratio and its flags only.
    """

    rows: int = 0
    failures: list[Failure] = field(default_factory=list)
    quantiles: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    blank: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in MEASURES})
    methods: Counter[str | None] = field(default_factory=Counter)
    scale_sources: Counter[str | None] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FLAGS, 0)))
    implausible_mm: int = 0
    views: Counter[str | None] = field(default_factory=Counter)
    labels: list[LabelMatch] = field(default_factory=list)
    first_rows: list[dict[str, Any]] = field(default_factory=list)


def measure_table(
    stored: store.StoredTable,
    out: Path | None = None,
    *,
    labels: Sequence[Labels] = (),
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> MeasureReport:
    """Measure a stored table, into a file where one is named.

    Memory is bounded by a shard, and the values themselves for their quantiles. The same table gives the same bytes,
    however many workers. A file of measures that is there is replaced once everything is done.

    Parameters
    ----------
    stored
        Predictions, a source or a selection.
    out
        A ``.parquet`` or ``.csv`` file; None only counts.
    labels
        Their columns are joined by image id.
    workers
        Processes to use.
    progress
        Called with the rows done.

    Raises
    ------
    UsageError
        If ``out`` has another suffix, lists are to go into a CSV, or an image is there in both frames.
    OutputExistsError
        If ``out`` is there and holds no measures.
    DuplicateIdError
        If an image stands twice.
    """
    if out is not None:
        _check_out(out)
    shards = stored.shards()
    check_keys(_keys_of(shards), Criteria())
    kinds = _extra_kinds([store.Shard(path, 0, 0).schema() for path in stored.paths], labels)
    names = rows.free_names(list(kinds))
    extras = [pa.field(name, kind) for name, kind in zip(names, kinds.values(), strict=True)]
    schema = pa.schema([*SCHEMA, *extras], metadata=_metadata(stored, labels) if out else None)
    gathered = _Gathered(labels)
    with _writer(out, schema) as write:
        tasks = [_Task(shard, tuple(kinds)) for shard in shards]
        for measured in run_shards(_measure_shard, tasks, workers=workers):
            columns = gathered.add(measured, kinds)
            write(pa.table([*measured.rows.columns, *columns], schema=schema))
            progress(len(measured.rows))
    return gathered.finish()


def sources_of(stored: store.StoredTable) -> list[str]:
    """Return the sources of a table's rows, in order of name."""
    return sorted({name for shard in stored.shards() for name in shard.read(["source"])["source"].unique().to_pylist()})


@dataclass(frozen=True)
class _Task:
    shard: store.Shard
    extras: tuple[str, ...]


def _measure_shard(task: _Task) -> rows.Measured:
    return rows.measure(task.shard.read([*rows.READ, *task.extras]))


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


class _Gathered:
    """What is counted shard by shard."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self._labels = labels
        self._labelled = np.zeros((len(labels), 2), np.int64)
        self._values: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = defaultdict(list)
        self.report = MeasureReport()

    def add(self, measured: rows.Measured, kinds: Mapping[str, pa.DataType]) -> list[pa.ChunkedArray]:
        """Count the rows of a shard and return their columns beyond the measures, in the types ``kinds``."""
        made, report = measured.rows, self.report
        report.rows += len(made)
        for name, codes in measured.reasons.items():
            report.blank[name].update(_counts(codes))
        lost = made.filter(pa.array(measured.reasons["ctr"] == REASONS.index("not_finite")))
        report.failures += [
            Failure(source, image_id, "a landmark is no finite number; predict or import this image again")
            for source, image_id in zip(lost["source"].to_pylist(), lost["image_id"].to_pylist(), strict=True)
        ]
        for counter, name in (
            (report.methods, "interval_method"),
            (report.scale_sources, "sigma_scale_source"),
            (report.views, "view"),
        ):
            for entry in pc.value_counts(made[name]).to_pylist():
                counter[entry["values"]] += entry["counts"]
        for name in FLAGS:
            report.flags[name] += pc.sum(made[name]).as_py() or 0
        report.implausible_mm += _beyond(made["thorax_width_mm"], PLAUSIBLE_THORAX_MM)
        if len(report.first_rows) <= FEW_ROWS:
            report.first_rows += made.select(_SHOWN).slice(0, FEW_ROWS + 1).to_pylist()
        self._keep_values(made)
        return self._join(measured, kinds)

    def _keep_values(self, made: pa.Table) -> None:
        for source in made["source"].unique().to_pylist():
            of_source = made.filter(pc.equal(made["source"], source))
            for name in MEASURES:
                self._values[source, name].append(of_source[name].drop_null().to_numpy())

    def _join(self, measured: rows.Measured, kinds: Mapping[str, pa.DataType]) -> list[pa.ChunkedArray]:
        """Return the columns that the rows brought, over which labels are laid: null where neither says anything."""
        brought, n_rows = measured.extras, len(measured.rows)
        columns = {
            name: brought[name].cast(kind)
            if name in brought.column_names
            else pa.chunked_array([pa.nulls(n_rows, kind)])
            for name, kind in kinds.items()
        }
        for index, labels in enumerate(self._labels):
            lines, matched = labels.take(measured.rows)
            of_source = pc.equal(measured.rows["source"], labels.source.name).to_numpy()
            self._labelled[index] += [of_source.sum(), (of_source & ~matched).sum()]
            for name in lines.column_names:
                columns[name] = pc.coalesce(lines[name].cast(kinds[name]), columns[name])
        return list(columns.values())

    def finish(self) -> MeasureReport:
        """Return the report with its quantiles."""
        report = self.report
        if report.rows > FEW_ROWS:
            report.first_rows = []
        for (source, name), parts in sorted(self._values.items(), key=lambda item: item[0][0]):
            values = np.concatenate(parts)
            if len(values):
                quantiles = [round(float(value), 6) for value in np.quantile(values, QUANTILES)]
                report.quantiles.setdefault(source, {})[name] = {"n": len(values), "quantiles": quantiles}
        report.labels = [
            LabelMatch(one.path.name, one.source.name, one.n_lines, one.n_unmatched, int(of_source), int(without))
            for one, (of_source, without) in zip(self._labels, self._labelled, strict=True)
        ]
        return report


def _beyond(column: pa.ChunkedArray, limits: tuple[float, float]) -> int:
    values = column.drop_null().to_numpy()
    return int(np.count_nonzero((values < limits[0]) | (values > limits[1])))


def _counts(codes: CodeArray) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(REASONS))
    return {reason: int(count) for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}


def _metadata(stored: store.StoredTable, labels: Sequence[Labels]) -> dict[bytes, bytes]:
    """Return what the file says of how it was made; no names of files, no clock times."""
    facts = {
        "kind": KIND,
        "input": {"rows": stored.rows, "digest": stored.digest},
        "labels": [{"source": one.source.name, "sha256": files.sha256_of(one.path)} for one in labels],
        "intervals": {"coverage": intervals.COVERAGE, "draws": intervals.N_DRAWS, "min_samples": intervals.MIN_SAMPLES},
    }
    return {table.METADATA_KEY: json.dumps(facts, sort_keys=True).encode()}


@contextmanager
def _writer(out: Path | None, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that appends rows to the file, which appears whole at the end or not at all."""
    if out is None:
        yield lambda _: None
    elif out.suffix == ".parquet":
        with store.table_writer(out, schema) as writer:
            yield writer.write
    else:
        lists = [field.name for field in schema if pa.types.is_nested(field.type)]
        if lists:
            raise UsageError(f"--out {out}: a CSV cannot hold the lists of {', '.join(lists)}; write a .parquet file")
        with files.replacing(out) as temporary, pa_csv.CSVWriter(temporary, schema) as lines:
            yield lines.write


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
