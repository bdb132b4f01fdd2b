"""Thresholds over tables → a selection: the rows that stay, which of their nodes are confident, which organs usable.

Two passes over the shards, so that memory stays bounded by a few of them: the first applies what needs no limit in px
and counts the node uncertainties of the rows that are left; the second holds them against the limits and writes. Limits
that are percentiles take a pass in between. Any thread may do any shard: everything is added up in order of the shards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import engine, store, table
from cxu.anatomy import N_ORGANS, ORGANS
from cxu.criteria import IMPOSSIBLE, Criteria, check_keys, check_models, selection_facts
from cxu.errors import FormatError, OutputExistsError, UsageError
from cxu.flow import (
    KEEP_SHARES,
    QUANTILES,
    FilterReport,
    LabelMatch,
    LevelCounter,
    SigmaSpread,
    Step,
    by_organ,
    flow_facts,
    named_by_organ,
)
from cxu.selection_shard import EXCLUDED_SCHEMA, KEYS, CountArray, InMemory, IntArray, Key, Rows, ShardFilter, Split
from cxu.thresholds import OrganLimits, Percentile, Thresholds, limits_for, percentiles_asked, resolve_limits

Result = TypeVar("Result")

_ASKED_NOTHING: Final = "nothing asked"
_MOST_WORKERS: Final = 4  # unless told: each takes about 0.1 GB


class _Filter:
    """The two passes over shards, and what is counted on the way."""

    def __init__(self, criteria: Criteria, schemas: Sequence[pa.Schema]) -> None:
        self.criteria, self.thresholds = criteria, criteria.thresholds
        self.of_shard = ShardFilter(criteria, schemas)
        self.report = FilterReport([Step(name) for name in self.of_shard.reasons or [_ASKED_NOTHING]])
        self._failed_at: list[IntArray] = []
        self._spread = SigmaSpread(by_organ((*QUANTILES, *KEEP_SHARES)))
        self._levels = LevelCounter()
        self._labelled = np.zeros((len(criteria.labels), 2), np.int64)
        self._nodes_kept = np.zeros(N_ORGANS, np.int64)
        self._organs_kept = np.zeros(N_ORGANS, np.int64)

    def look(self, shards: Sequence[Rows], pool: engine.Pool) -> None:
        """First pass: check that keys are unique, count the sigmas of the rows left, resolve the limits."""
        keys = [self.of_shard.schema.empty_table().select(list(KEYS))]
        counts: dict[Key, CountArray] = {}
        compared: set[Key] = set()
        for look in pool.run(self.of_shard.look, shards):
            keys.append(look.keys)
            compared |= look.compared
            self._failed_at.append(look.failed_at)
            for key, of_key in look.counts:
                counts[key] = counts.get(key, 0) + of_key
                self._spread.count(of_key)
        check_keys(pa.concat_tables(keys), self.criteria, each=pool.run)
        check_models(compared, self.thresholds)
        self.report.limits = self._resolve(shards, dict(sorted(counts.items())), pool)

    def _resolve(
        self, shards: Sequence[Rows], counts: Mapping[Key, CountArray], pool: engine.Pool
    ) -> tuple[OrganLimits, ...]:
        if not self.thresholds.max_std:
            return ()
        if self.criteria.resolved is not None:
            mix = self.thresholds.mix_models
            return tuple(limits_for(self.criteria.resolved, *key, mix_models=mix) for key in counts)
        return resolve_limits(self.thresholds, self._percentiles(shards, counts, pool))

    def _percentiles(
        self, shards: Sequence[Rows], counts: Mapping[Key, CountArray], pool: engine.Pool
    ) -> dict[Key, dict[Percentile, float]]:
        """Return what the percentiles that are asked come to, in a pass over the shards of its own."""
        asked = percentiles_asked(self.thresholds)
        if not asked:
            return {key: {} for key in counts}
        spreads = {key: SigmaSpread([(organs, [percent / 100]) for percent, organs in asked]) for key in counts}
        for key, spread in spreads.items():
            spread.count(counts[key])
        wanted = {key: spread.wanted for key, spread in spreads.items()}
        for found in self._each(shards, functools.partial(self.of_shard.within, wanted=wanted), pool):
            for key, values in found:
                spreads[key].keep(values)
        # without rows, no limit is needed
        return {
            key: {one: next(iter(values), 0.0) for one, values in zip(asked, spread.quantiles(pool), strict=True)}
            for key, spread in spreads.items()
        }

    def split(self, shards: Sequence[Rows], pool: engine.Pool) -> Iterator[Split]:
        """Second pass: yield what becomes of each shard that the first pass saw, in order."""
        of_shard = functools.partial(self.of_shard.split, limits=self.report.limits, wanted=self._spread.wanted)
        for split in self._each(shards, of_shard, pool):
            self._count(split)
            yield split

    def _each(
        self, shards: Sequence[Rows], function: Callable[[Rows, IntArray], Result], pool: engine.Pool
    ) -> Iterator[Result]:
        """Yield what a function gives for each shard and what the first pass found of it."""
        return pool.run(lambda task: function(*task), list(zip(shards, self._failed_at, strict=True)))

    def _count(self, split: Split) -> None:
        steps, failed_at, kept = self.report.steps, split.failed_at, split.kept
        if split.within:
            self._spread.keep(split.within)
        sources = split.told["source"]
        for index, step in enumerate(steps):
            step.count(sources, failed_at >= index, kept if index == len(steps) - 1 else failed_at > index)
        self._nodes_kept += [np.count_nonzero(split.confident[:, organ.nodes]) for organ in ORGANS]
        self._organs_kept += split.usable.sum(axis=0)
        # rows that were not chosen in the first place say nothing about whom the thresholds leave out
        asked = failed_at >= sum(step.asks == "choice" for step in self.of_shard.steps)
        counted: set[Key] = set()
        for index, (labels, matched) in enumerate(zip(self.criteria.labels, split.has_line, strict=True)):
            of_source = pc.equal(sources, labels.source.name).to_numpy()
            self._labelled[index] += [of_source.sum(), (of_source & ~matched).sum()]
            for name in labels.level_columns:
                if (labels.source.name, name) not in counted:
                    self._levels.add(name, split.told[name], asked & matched, kept)
                    counted.add((labels.source.name, name))

    def _asked_steps(self) -> list[Step]:
        """Return the steps without those that nobody asked for, where they left nothing out."""
        steps = self.report.steps
        silent = {IMPOSSIBLE, "quality"} if self.thresholds.quality == Thresholds.quality else {IMPOSSIBLE}
        told = [step for step in steps if step.reason not in silent or step.rows_in != step.rows_out]
        return told or [Step(_ASKED_NOTHING, steps[0].rows_in, steps[0].rows_out)]

    def finish(self, pool: engine.Pool) -> FilterReport:
        """Return the report with its shares and quantiles."""
        quantiles = named_by_organ(self._spread.quantiles(pool))
        self.report.sigma_quantiles = {name: values[: len(QUANTILES)] for name, values in quantiles.items() if values}
        self.report.keep_thresholds = {name: values[len(QUANTILES) :] for name, values in quantiles.items() if values}
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
    with _pool(1) as pool:
        run.look([InMemory(rows)], pool)
        (split,) = run.split([InMemory(rows)], pool)
        report = run.finish(pool)
    # no digest: it would not tell these rows from others
    facts = {**selection_facts(criteria, report.limits), **flow_facts(report)}
    del facts["digest"]
    return table.with_facts(split.selected.combine_chunks(), facts), split.excluded, report


def filter_tables(
    inputs: Sequence[store.StoredTable],
    criteria: Criteria,
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> FilterReport:
    """Filter stored tables into the selection ``out`` and, beside it, ``<name>.excluded.parquet``.

    Memory is bounded by a few shards a worker and the node uncertainties. An ``out`` that is there is replaced once
    everything is done, if it is a selection.

    Parameters
    ----------
    inputs
        Tables on disk.
    criteria
        What their rows are asked.
    out
        A ``.parquet`` file.
    workers
        Threads to use; None takes one for each processor, at most 4. The result is the same.
    progress
        Called with the rows done.

    Raises
    ------
    UsageError, DuplicateIdError
        See :func:`filter_rows`; if ``workers`` is below 1.
    OutputExistsError
        If ``out`` is there and no selection, or the file beside it is no list of excluded rows.
    """
    if not inputs:
        raise UsageError("nothing to filter: fetch or import a source first, or name a table")
    _check_replaceable(out)
    _check_excluded_replaceable(excluded_path(out))
    shards = [shard for stored in inputs for shard in stored.shards()]
    run = _Filter(criteria, [store.Shard(path, 0, 0).schema() for stored in inputs for path in stored.paths])
    with _pool(workers) as pool:
        run.look(shards, pool)
        facts = selection_facts(criteria, run.report.limits, inputs)
        schema = run.of_shard.schema.with_metadata(table.encode_metadata(facts))
        with (
            store.table_joiner(out, schema, pool) as selection,
            store.table_writer(excluded_path(out), EXCLUDED_SCHEMA) as excluded,
        ):
            selection.write_shards(_full_shards(_each_selected(run.split(shards, pool), excluded, progress)))
            report = run.finish(pool)
            selection.add_facts(flow_facts(report))
    return report


def _pool(workers: int | None) -> engine.Pool:
    """Return threads, or with one worker nothing but this one: shards in memory cost more than what they share."""
    wanted = min(engine.available_cpus(), _MOST_WORKERS) if workers is None else workers
    return engine.Threads(wanted) if wanted > 1 else engine.open_pool(wanted)


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
        replaceable = pq.read_schema(path).equals(EXCLUDED_SCHEMA)
    except (pa.ArrowException, OSError):
        replaceable = False
    if not replaceable:
        raise OutputExistsError(f"{path} is there and lists no excluded rows: choose another name, or remove it first")


def _each_selected(
    splits: Iterable[Split], excluded: store.TableWriter, progress: Callable[[int], None]
) -> Iterator[pa.Table]:
    """Yield the rows of each shard that stay; write the others."""
    for split in splits:
        excluded.write(split.excluded)
        progress(len(split.kept))
        yield split.selected


def _full_shards(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in full shards, but for the last: a strict filter would leave splinters of slow shards."""
    waiting: list[pa.Table] = []
    for rows in tables:
        waiting.append(rows)
        while sum(map(len, waiting)) >= store.SHARD_ROWS:
            together = pa.concat_tables(waiting)
            yield together.slice(0, store.SHARD_ROWS)
            waiting = [together.slice(store.SHARD_ROWS)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def excluded_path(selection_path: Path) -> Path:
    """Return where the rows that a selection leaves out are listed."""
    return selection_path.with_name(f"{selection_path.stem}.excluded.parquet")
