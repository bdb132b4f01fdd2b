"""Thresholds over tables → a selection: the rows that stay, which of their nodes are confident, which organs usable.

Two passes over the shards, so that memory stays bounded by one: the first applies what needs no limit in px and gathers
the node uncertainties of the rows that are left; the second resolves the limits and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import store, table
from cxu.anatomy import N_NODES, N_ORGANS, ORGAN_NAMES, ORGANS
from cxu.criteria import (
    BoolArray,
    Criteria,
    check_keys,
    check_models,
    first_failures,
    group_rows,
    has_sigma,
    node_radius,
    node_sigma,
    row_steps,
    selection_facts,
)
from cxu.errors import FormatError, OutputExistsError, UsageError
from cxu.flow import KEEP_SHARES, QUANTILES, FilterReport, LabelMatch, LevelCounter, SigmaPool, Step, flow_facts
from cxu.labels import Labels, check_condition, common_type
from cxu.thresholds import (
    OrganLimits,
    Thresholds,
    Unit,
    confident_nodes,
    has_usable,
    limits_for,
    resolve_limits,
    usable_organs,
)

NODE_LIMITS: Final = ("max_std", "max_radius90")
_ASKED_NOTHING: Final = "nothing asked"
_KEYS: Final = ["source", "image_id", "frame"]
_FIRST_PASS: Final = (
    *_KEYS,
    "model_id",
    "n_samples",
    "rca_mean",
    "rca_max",
    "mean_sigma_model_px",
    "sigma_model_px",
    "quality",
)
_RADII: Final = ("frame_side", "radius90_px")
_IMAGE_PX: Final = ("frame_side", "sigma_xy")
_EXCLUDED_SCHEMA: Final = pa.schema([(name, pa.string()) for name in ("source", "image_id", "reason")])
_OWN: Final = frozenset({*table.SCHEMA.names, *table.OPTIONAL.names})


class Rows(Protocol):
    """Anything that gives rows by column: a shard on disk, or :class:`InMemory`."""

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with all columns, or with those of ``columns`` that exist."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A table in memory as rows."""

    content: pa.Table

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with all columns, or with those of ``columns`` that exist."""
        names = self.content.column_names
        return self.content if columns is None else self.content.select([name for name in columns if name in names])


class _Filter:
    """The two passes over shards, and what is counted on the way.

    Parameters
    ----------
    criteria
        What rows are asked.
    schemas
        The columns of every file that rows come from.
    """

    def __init__(self, criteria: Criteria, schemas: Sequence[pa.Schema]) -> None:
        self.criteria, self.thresholds = criteria, criteria.thresholds
        self.kinds = _extra_columns(schemas, criteria.labels)
        self.schema = _selection_schema(schemas, self.kinds)
        conditions = {condition.column for condition in criteria.where}
        for condition in criteria.where:
            check_condition(self.schema, condition)
        of_image, of_radii = self._unit == "image", bool(self.thresholds.max_radius90)
        wanted = (*_FIRST_PASS, *(_IMAGE_PX if of_image else ()), *(_RADII if of_radii else ()), *sorted(conditions))
        self._columns = list(dict.fromkeys(wanted))
        self._joins_first = any(conditions & set(labels.columns.column_names) for labels in criteria.labels)
        self._steps = row_steps(criteria)
        self._first_sigma = next((at for at, step in enumerate(self._steps) if step.asks == "sigma"), len(self._steps))
        names = [step.name for step in self._steps] + self._last_step()
        self.report = FilterReport([Step(name) for name in names or [_ASKED_NOTHING]])
        self._levels = LevelCounter()
        self._labelled = np.zeros((len(criteria.labels), 2), np.int64)
        self._nodes_kept = np.zeros(N_ORGANS, np.int64)
        self._organs_kept = np.zeros(N_ORGANS, np.int64)

    @property
    def _unit(self) -> Unit:
        return self.thresholds.unit if self.thresholds.max_std else "model"  # of the sigmas that are gathered

    def _last_step(self) -> list[str]:
        """Return the name of the step that asks for a usable organ, where anything can make one unusable."""
        asked = [name for name in NODE_LIMITS if getattr(self.thresholds, name)]
        if asked:
            return [" or ".join(asked)]
        return ["organ"] if self.thresholds.organs != ORGAN_NAMES else []

    def look(self, shards: Sequence[Rows], n_rows: int) -> None:
        """First pass: check that keys are unique, gather the sigmas of the rows left, resolve the limits."""
        pool, keys = SigmaPool(n_rows), [self.schema.empty_table().select(_KEYS)]
        compared: set[tuple[str, str]] = set()
        for shard in shards:
            rows = self._completed(shard.read(self._columns))
            if self._joins_first:
                rows, _ = self._join(rows)
            keys.append(rows.select(_KEYS))
            failed_at = first_failures(rows, self._steps)
            compared |= {key for key, _ in group_rows(rows.filter(pa.array(failed_at >= self._first_sigma)))}
            left = rows.filter(pa.array(failed_at == len(self._steps)))
            sigma = node_sigma(left, self._unit)
            for key, where in group_rows(left):
                of_group = sigma[where]
                pool.add(key, of_group[has_sigma(of_group)])
        check_keys(pa.concat_tables(keys), self.criteria)
        check_models(compared, self.thresholds)
        self.report.limits = self._resolve(pool)
        quantiles = pool.drain_quantiles((*QUANTILES, *KEEP_SHARES))
        self.report.sigma_quantiles = {name: values[: len(QUANTILES)] for name, values in quantiles.items() if values}
        self.report.keep_thresholds = {name: values[len(QUANTILES) :] for name, values in quantiles.items() if values}

    def _resolve(self, pool: SigmaPool) -> tuple[OrganLimits, ...]:
        if not self.thresholds.max_std:
            return ()
        if self.criteria.resolved is not None:
            mix = self.thresholds.mix_models
            return tuple(limits_for(self.criteria.resolved, *key, mix_models=mix) for key in pool.keys)
        # one group at a time: their copies need not be in memory together
        return tuple(limits for key in pool.keys for limits in resolve_limits(self.thresholds, {key: pool.of(key)}))

    def split(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Second pass: return the rows that stay, as rows of a selection, and source, id and reason of the others."""
        rows, has_line = self._join(self._completed(rows))
        failed_at = first_failures(rows, self._steps)
        confident, usable = table.confident_of(rows), table.usable_of(rows)
        left = failed_at == len(self._steps)
        if self.thresholds.limits_nodes and left.any():
            confident[left] &= self._confident(rows.filter(pa.array(left)))
            min_confident, max_gap = self.thresholds.min_confident, self.thresholds.max_gap
            usable &= usable_organs(confident, min_confident=min_confident, max_gap=max_gap)
        kept = left & has_usable(usable, self.thresholds.organs) if self._last_step() else left
        self._count(rows, failed_at, kept, has_line)
        self._nodes_kept += [int(confident[kept][:, organ.nodes].sum()) for organ in ORGANS]
        self._organs_kept += usable[kept].sum(axis=0)
        return self._selected(rows, kept, confident, usable), self._excluded(rows, failed_at, kept)

    def _confident(self, rows: pa.Table) -> BoolArray:
        confident = np.ones((len(rows), N_NODES), np.bool_)
        if self.thresholds.max_radius90:
            confident &= confident_nodes(node_radius(rows, self.thresholds.unit), self.thresholds.radius_limits())
        if not self.thresholds.max_std:
            return confident
        sigma = node_sigma(rows, self._unit)
        for (source, model_id), where in group_rows(rows):
            limits = limits_for(self.report.limits, source, model_id).by_node()
            confident[where] &= confident_nodes(sigma[where], limits)
        return confident

    def _completed(self, rows: pa.Table) -> pa.Table:
        """Return the rows with all columns of their own beyond the schema that any file has, in the common type."""
        for name, kind in self.kinds.items():
            if name in rows.column_names:
                rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(kind))
            else:
                rows = rows.append_column(name, pa.nulls(len(rows), kind))
        return rows

    def _join(self, rows: pa.Table) -> tuple[pa.Table, list[BoolArray]]:
        """Return the rows with their labels, and for each label file which rows have a line there."""
        has_line = []
        for labels in self.criteria.labels:
            columns, matched = labels.take(rows)
            has_line.append(matched)
            for name in columns.column_names:
                column = columns[name].cast(self.kinds[name])
                # a new label replaces an old one; of another source's file it is null
                rows = rows.set_column(rows.column_names.index(name), name, pc.coalesce(column, rows[name]))
        return rows, has_line

    def _count(
        self, rows: pa.Table, failed_at: npt.NDArray[np.int64], kept: BoolArray, has_line: list[BoolArray]
    ) -> None:
        steps = self.report.steps
        for index, step in enumerate(steps):
            step.count(rows["source"], failed_at >= index, kept if index == len(steps) - 1 else failed_at > index)
        # rows that were not chosen in the first place say nothing about whom the thresholds leave out
        asked = failed_at >= sum(step.asks == "choice" for step in self._steps)
        counted: set[tuple[str, str]] = set()
        for index, (labels, matched) in enumerate(zip(self.criteria.labels, has_line, strict=True)):
            of_source = pc.equal(rows["source"], labels.source.name).to_numpy()
            self._labelled[index] += [of_source.sum(), (of_source & ~matched).sum()]
            for name in labels.level_columns:
                if (labels.source.name, name) not in counted:
                    self._levels.add(name, rows[name], asked & matched, kept)
                    counted.add((labels.source.name, name))

    def _selected(self, rows: pa.Table, kept: BoolArray, confident: BoolArray, usable: BoolArray) -> pa.Table:
        made = {"confident": confident, "usable": usable}
        columns = [
            table.lists_from_numpy(made[field.name], field.type)
            if field.name in made
            else rows[field.name]
            if field.name in rows.column_names
            else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        return pa.table(columns, schema=self.schema).filter(pa.array(kept))

    def _excluded(self, rows: pa.Table, failed_at: npt.NDArray[np.int64], kept: BoolArray) -> pa.Table:
        reasons = np.array([step.reason for step in self.report.steps], dtype=object)
        reason = pa.array(reasons[failed_at[~kept]], pa.string())
        excluded = rows.select(["source", "image_id"]).filter(pa.array(~kept)).append_column("reason", reason)
        return excluded.cast(_EXCLUDED_SCHEMA)

    def _asked_steps(self) -> list[Step]:
        """Return the steps without the gate's, where nobody asked for it and it left nothing out."""
        steps = self.report.steps
        silent = self.thresholds.quality == Thresholds.quality
        told = [step for step in steps if not (silent and step.reason == "quality" and step.rows_in == step.rows_out)]
        return told or [Step(_ASKED_NOTHING, steps[0].rows_in, steps[0].rows_out)]

    def finish(self) -> FilterReport:
        """Return the report with its shares."""
        report, rows_out = self.report, max(self.report.rows_out, 1)
        report.steps = self._asked_steps()
        for index, organ in enumerate(ORGANS):
            report.nodes_kept[organ.name] = int(self._nodes_kept[index]) / (rows_out * organ.n_nodes)
            report.organs_kept[organ.name] = int(self._organs_kept[index]) / rows_out
        report.levels = self._levels.levels()
        report.ids_unmatched = self.criteria.ids.unmatched() if self.criteria.ids else []
        report.labels = [
            LabelMatch(
                labels.path.name, labels.source.name, labels.n_lines, labels.n_unmatched, int(rows), int(without)
            )
            for labels, (rows, without) in zip(self.criteria.labels, self._labelled, strict=True)
        ]
        return report


def _extra_columns(schemas: Sequence[pa.Schema], labels: Sequence[Labels]) -> dict[str, pa.DataType]:
    """Return the columns beyond the table's own that the files or the labels have, each in one type for all."""
    kinds: dict[str, pa.DataType] = {}
    for schema in (*schemas, *(one.columns.schema for one in labels)):
        for field in schema:
            if field.name not in _OWN:
                kinds[field.name] = common_type(kinds.get(field.name, field.type), field.type)
    return kinds


def _selection_schema(schemas: Sequence[pa.Schema], kinds: dict[str, pa.DataType]) -> pa.Schema:
    """Return the columns of the selection: the table's, those beyond it, confident and usable; no shipped RLE."""
    samples = [table.field_of("samples_xy")] if any("samples_xy" in schema.names for schema in schemas) else []
    extras = [pa.field(name, kind) for name, kind in kinds.items()]
    return pa.schema([*table.SCHEMA, *samples, *extras, table.field_of("confident"), table.field_of("usable")])


def filter_rows(rows: pa.Table, criteria: Criteria) -> tuple[pa.Table, pa.Table, FilterReport]:
    """Filter a table in memory.

    Parameters
    ----------
    rows
        Rows of the one table. Of a selection, nodes and organs stay unconfident and unusable that are so already.
    criteria
        What they are asked.

    Returns
    -------
    selection, excluded, report
        The rows that stay, with ``confident`` [120] and ``usable`` [3]; ``source``, ``image_id`` and first failing
        ``reason`` of the others; and the account.

    Raises
    ------
    UsageError
        If a limit cannot be asked of these rows (no standard deviations, several models, unknown scale), or an image
        is there in two frames and none is chosen.
    DuplicateIdError
        If an image stands twice.
    """
    run = _Filter(criteria, [rows.schema])
    run.look([InMemory(rows)], len(rows))
    selected, excluded = run.split(rows)
    report = run.finish()
    # no digest: it would not tell these rows from others
    facts = {**selection_facts(criteria, report.limits), **flow_facts(report)}
    del facts["digest"]
    return table.with_facts(selected.combine_chunks(), facts), excluded, report


def filter_tables(
    inputs: Sequence[store.StoredTable],
    criteria: Criteria,
    out: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> FilterReport:
    """Filter stored tables into the selection ``out`` and, beside it, ``<name>.excluded.parquet``.

    Memory is bounded by a shard and the node uncertainties. ``progress`` is called with the rows done. An ``out`` that
    is there is replaced once everything is done, if it is a selection.

    Raises
    ------
    UsageError, DuplicateIdError
        See :func:`filter_rows`.
    OutputExistsError
        If ``out`` is there and no selection, or the file beside it is no list of excluded rows.
    """
    if not inputs:
        raise UsageError("nothing to filter: fetch or import a source first, or name a table")
    _check_replaceable(out)
    _check_excluded_replaceable(excluded_path(out))
    shards = [shard for stored in inputs for shard in stored.shards()]
    run = _Filter(criteria, [store.Shard(path, 0, 0).schema() for stored in inputs for path in stored.paths])
    run.look(shards, sum(shard.rows for shard in shards))
    facts = selection_facts(criteria, run.report.limits, inputs)
    with (
        store.table_writer(out, run.schema.with_metadata(table.encode_metadata(facts))) as selection,
        store.table_writer(excluded_path(out), _EXCLUDED_SCHEMA) as excluded,
    ):
        for rows in _full_shards(_each_split(run, shards, excluded, progress)):
            selection.write(rows)
        report = run.finish()
        selection.add_facts(flow_facts(report))
    return report


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    try:
        replaceable = store.open_table(out).kind == "selection"
    except FormatError:
        replaceable = False
    if not replaceable:
        raise OutputExistsError(f"{out} is there and is no selection: choose another name, or remove it first")


def _check_excluded_replaceable(path: Path) -> None:
    if not path.exists():
        return
    try:
        replaceable = pq.read_schema(path).equals(_EXCLUDED_SCHEMA)
    except (pa.ArrowException, OSError):
        replaceable = False
    if not replaceable:
        raise OutputExistsError(f"{path} is there and lists no excluded rows: choose another name, or remove it first")


def _each_split(
    run: _Filter, shards: Sequence[store.Shard], excluded: store.TableWriter, progress: Callable[[int], None]
) -> Iterator[pa.Table]:
    """Yield the rows of each shard that stay; write the others."""
    for shard in shards:
        rows = shard.read(run.schema.names)
        selected, left_out = run.split(rows)
        excluded.write(left_out)
        progress(len(rows))
        yield selected


def _full_shards(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in tables of the size of a shard: a strict filter would leave splinters of slow shards."""
    waiting: list[pa.Table] = []
    for rows in tables:
        waiting.append(rows)
        if sum(map(len, waiting)) >= store.SHARD_ROWS:
            together = table.concat_rows(waiting)
            whole = len(together) - len(together) % store.SHARD_ROWS
            yield together.slice(0, whole)
            waiting = [together.slice(whole)]
    if waiting:
        yield table.concat_rows(waiting)


def excluded_path(selection_path: Path) -> Path:
    """Return where the rows that a selection leaves out are listed."""
    return selection_path.with_name(f"{selection_path.stem}.excluded.parquet")
