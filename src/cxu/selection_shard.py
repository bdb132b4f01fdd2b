"""What a filter does to one shard, in two passes: which rows are left, then which of them stay.

Nothing here is counted or written, so any thread may do any shard; ids and label lines that were met are remembered by
their lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import table
from cxu.anatomy import ORGAN_NAMES
from cxu.criteria import (
    IMPOSSIBLE,
    BoolArray,
    Criteria,
    FloatArray,
    first_failures,
    group_rows,
    has_sigma,
    node_radius,
    node_sigma,
    possible_landmarks,
    possible_sigmas,
    row_steps,
)
from cxu.flow import count_sigma, sigma_within
from cxu.labels import Labels, check_condition, common_type
from cxu.thresholds import OrganLimits, Unit, confident_nodes, has_usable, limits_for, usable_organs

Key = tuple[str, str]  # source, model_id
IntArray = npt.NDArray[np.int16]
CountArray = npt.NDArray[np.int64]

NODE_LIMITS: Final = ("max_std", "max_radius90")
KEYS: Final = ("source", "image_id", "frame")
EXCLUDED_SCHEMA: Final = pa.schema([(name, pa.string()) for name in ("source", "image_id", "reason")])
_FRAMES: Final = ("frame", "frame_side")
_SCALARS: Final = (
    *KEYS,
    "frame_side",
    "model_id",
    "n_samples",
    "rca_mean",
    "rca_max",
    "mean_sigma_model_px",
    "quality",
)
_TOLD: Final = ("source", "image_id", "model_id", *_FRAMES, "confident", "usable")
_OWN: Final = frozenset({*table.SCHEMA.names, *table.OPTIONAL.names})


class Rows(Protocol):
    """Anything that gives rows by column: a shard on disk, or :class:`InMemory`."""

    def read(self, columns: Sequence[str] | None = None, *, blank: bool = True) -> pa.Table:
        """Return the rows with all columns, or with those of ``columns`` that exist.

        Where ``blank`` is false, columns that are null in every row may be missing.
        """
        ...


@dataclass(frozen=True)
class InMemory:
    """A table in memory as rows."""

    content: pa.Table

    def read(self, columns: Sequence[str] | None = None, *, blank: bool = True) -> pa.Table:  # noqa: ARG002 - all is read
        """Return the rows with all columns, or with those of ``columns`` that exist."""
        names = self.content.column_names
        return self.content if columns is None else self.content.select([name for name in columns if name in names])


@dataclass(frozen=True, eq=False)
class Look:
    """What the first pass finds in n rows.

    Attributes
    ----------
    keys
        Their ``source``, ``image_id`` and ``frame``.
    failed_at
        int16 [n]: the first step that each row fails, or the number of steps.
    compared
        Of the rows that came to a limit of uncertainty: source and model.
    counts
        For each source and model of the rows left, :func:`cxu.flow.count_sigma` of the uncertainties that are known.
    """

    keys: pa.Table
    failed_at: IntArray
    compared: frozenset[Key]
    counts: list[tuple[Key, CountArray]]


@dataclass(frozen=True, eq=False)
class Split:
    """What the second pass makes of n rows, of which m stay.

    Attributes
    ----------
    selected
        Those that stay, as rows of a selection.
    excluded
        ``source``, ``image_id`` and ``reason`` of the others.
    told
        What is counted of all n rows: ``source``, and the columns of label files.
    failed_at, kept
        [n]: the first step that each row fails, or the number of steps; whether it stays.
    has_line
        For each label file, bool [n]: whether the row has a line there.
    confident, usable
        bool [m, 120] and [m, 3] of the rows that stay.
    within
        :func:`cxu.flow.sigma_within` of the rows that reached the limits, for the ranges that were asked for.
    """

    selected: pa.Table
    excluded: pa.Table
    told: pa.Table
    failed_at: IntArray
    kept: BoolArray
    has_line: list[BoolArray]
    confident: BoolArray
    usable: BoolArray
    within: list[FloatArray]


class ShardFilter:
    """Criteria, held against shards.

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
        self.steps = row_steps(criteria)
        self.last_step = _last_step(criteria)
        self._unit: Unit = self.thresholds.unit if self.thresholds.max_std else "model"  # of the sigmas gathered
        radii = ["radius90_px"] if self.thresholds.max_radius90 else []
        self._scalars = list(dict.fromkeys([*_SCALARS, *sorted(conditions)]))
        self._lists = ["sigma_model_px", *(["sigma_xy"] if self._unit == "image" else []), *radii]
        self._joins_first = any(conditions & set(labels.columns.column_names) for labels in criteria.labels)

    @property
    def reasons(self) -> list[str]:
        """The names of all steps, in order."""
        return [*(step.name for step in self.steps), *self.last_step]

    def look(self, shard: Rows) -> Look:
        """First pass: apply what needs no limit in px of nodes. Lists are read only where a row is left for them."""
        first_sigma = next((at for at, step in enumerate(self.steps) if step.asks == "sigma"), len(self.steps))
        rows = self._completed(shard.read(self._scalars))
        if self._joins_first:
            rows, _ = self._join(rows)
        failed_at = first_failures(rows, self.steps[:first_sigma])
        came, keys, compared, counts = failed_at == first_sigma, rows.select(list(KEYS)), frozenset[Key](), []
        if came.any():
            rows = _those(_beside(rows, shard.read(self._lists)), came)
            compared = frozenset(key for key, _ in group_rows(rows))
            failed_at[came] += first_failures(rows, self.steps[first_sigma:])
            left = _those(rows, failed_at[came] == len(self.steps))
            counts = [(key, count_sigma(sigma)) for key, sigma in self._known(left)]
        return Look(keys, failed_at.astype(np.int16), compared, counts)

    def _known(self, rows: pa.Table) -> Iterator[tuple[Key, FloatArray]]:
        """Yield each source and model with the uncertainties of its rows, where they are known."""
        sigma = node_sigma(rows, self._unit)
        known = has_sigma(sigma)
        for key, where in group_rows(rows):
            yield key, _picked(sigma, where & known)

    def within(
        self, shard: Rows, failed_at: IntArray, wanted: Mapping[Key, BoolArray]
    ) -> list[tuple[Key, list[FloatArray]]]:
        """Return for each source and model the uncertainties, by organ, in the ranges that are wanted of it."""
        left = failed_at == len(self.steps)
        if not left.any():
            return []
        rows = _those(shard.read(["source", "model_id", *_FRAMES, *self._lists]), left)
        return [(key, sigma_within(sigma, wanted[key])) for key, sigma in self._known(rows)]

    def split(self, shard: Rows, failed_at: IntArray, limits: Sequence[OrganLimits], wanted: BoolArray) -> Split:
        """Second pass: tell the rows that stay from the others. Where none is left or stays, little is read."""
        left = failed_at == len(self.steps)
        read = [*_TOLD, *self.kinds, *(self._lists if left.any() else [])]
        rows, has_line = self._join(self._completed(shard.read(read)))
        those, within = _those(rows, left), []
        if left.any():
            sigma = node_sigma(those, self._unit)
            within = sigma_within(_picked(sigma, has_sigma(sigma)), wanted)
        confident, usable, stays = self.decide(those, limits)
        kept = left.copy()
        kept[left] = stays
        others = _those(self._others(shard, rows), kept) if kept.any() else None
        if others is not None:
            possible = self._possible(others)
            if not possible.all():
                failed_at = failed_at.copy()
                failed_at[np.flatnonzero(kept)[~possible]] = self.reasons.index(IMPOSSIBLE)
                kept[kept] = possible
                others, stays = _those(others, possible), kept[left]
        confident, usable = confident[stays], usable[stays]
        labelled = [name for labels in self.criteria.labels for name in labels.columns.column_names]
        return Split(
            self._selected(others, rows, kept, {"confident": confident, "usable": usable}),
            self._excluded(rows, failed_at, kept),
            rows.select(list(dict.fromkeys(["source", *labelled]))),
            failed_at,
            kept,
            has_line,
            confident,
            usable,
            within,
        )

    def decide(self, rows: pa.Table, limits: Sequence[OrganLimits]) -> tuple[BoolArray, BoolArray, BoolArray]:
        """Return which nodes [n, 120] are confident, which organs [n, 3] usable and which rows [n] stay.

        The rows are those that passed all steps.
        """
        confident, usable = table.confident_of(rows), table.usable_of(rows)
        if not len(rows):
            return confident, usable, np.zeros(0, np.bool_)
        if self.thresholds.max_radius90:
            confident &= confident_nodes(node_radius(rows, self.thresholds.unit), self.thresholds.radius_limits())
        if self.thresholds.max_std:
            confident &= self._within_limits(rows, limits)
        if self.thresholds.limits_nodes:
            min_confident, max_gap = self.thresholds.min_confident, self.thresholds.max_gap
            usable &= usable_organs(confident, min_confident=min_confident, max_gap=max_gap)
        stays = has_usable(usable, self.thresholds.organs) if self.last_step else np.ones(len(rows), np.bool_)
        return confident, usable, stays

    def _within_limits(self, rows: pa.Table, limits: Sequence[OrganLimits]) -> BoolArray:
        sigma, groups = node_sigma(rows, self._unit), list(group_rows(rows))
        by_node = [limits_for(limits, *key).by_node() for key, _ in groups]
        if len(groups) == 1:
            return confident_nodes(sigma, by_node[0])
        within = np.empty(sigma.shape, np.bool_)
        for (_, where), of_group in zip(groups, by_node, strict=True):
            within[where] = confident_nodes(sigma[where], of_group)
        return within

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

    def _others(self, shard: Rows, told: pa.Table) -> pa.Table:
        """Return the columns of a selection that are neither made nor there already."""
        known = {"confident", "usable", *told.column_names}
        return shard.read([name for name in self.schema.names if name not in known], blank=False)

    def _possible(self, others: pa.Table) -> BoolArray:
        """Return which rows have numbers that landmarks and sigmas can have; only those that stay are asked."""
        possible = possible_landmarks(others)
        if "sigma_xy" in others.column_names:
            possible &= possible_sigmas(others, "sigma_xy")
        return possible

    def _selected(
        self, others: pa.Table | None, told: pa.Table, kept: BoolArray, made: Mapping[str, npt.NDArray[Any]]
    ) -> pa.Table:
        """Return the rows that stay: columns that were made, those that are there already, and the others."""
        if others is None or not kept.any():
            return self.schema.empty_table()
        told = _those(told, kept)
        columns = [
            table.lists_from_numpy(made[field.name], field.type)
            if field.name in made
            else told[field.name]
            if field.name in told.column_names
            else others[field.name]
            if field.name in others.column_names
            else pa.nulls(len(told), field.type)
            for field in self.schema
        ]
        return pa.table(columns, schema=self.schema)

    def _excluded(self, rows: pa.Table, failed_at: IntArray, kept: BoolArray) -> pa.Table:
        reasons = pa.DictionaryArray.from_arrays(pa.array(failed_at[~kept]), pa.array(self.reasons, pa.string()))
        excluded = _those(rows.select(["source", "image_id"]), ~kept).append_column("reason", reasons)
        return excluded.cast(EXCLUDED_SCHEMA)


def _those(rows: pa.Table, mask: BoolArray) -> pa.Table:
    """Return the rows of a mask; all of them are not copied."""
    return rows if mask.all() else rows.filter(pa.array(mask))


def _picked(values: FloatArray, mask: BoolArray) -> FloatArray:
    return values if mask.all() else values[mask]


def _beside(rows: pa.Table, more: pa.Table) -> pa.Table:
    """Return the rows with the columns of ``more``, which has the same rows."""
    for name in more.column_names:
        rows = rows.append_column(more.schema.field(name), more[name])
    return rows


def _last_step(criteria: Criteria) -> list[str]:
    """Return the name of the step that asks for a usable organ, where anything can make one unusable."""
    asked = [name for name in NODE_LIMITS if getattr(criteria.thresholds, name)]
    if asked:
        return [" or ".join(asked)]
    return ["organ"] if criteria.thresholds.organs != ORGAN_NAMES else []


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
