"""The flow of exclusions, from what a selection's file says: stages, steps, rows by source. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cxu.report.words import UNASKED, exclusion_words

Counts = Mapping[str, int]  # by source


@dataclass(frozen=True)
class Exclusion:
    """One step of a filter: rows that came to it and that went on, by source.

    Attributes
    ----------
    reason
        The step's name, as in the list of excluded rows.
    said, brief
        Why rows were left out, in words; with the limits of nodes and without.
    rows_in, rows_out
        By source.
    """

    reason: str
    said: str
    brief: str
    rows_in: Counts
    rows_out: Counts

    @property
    def excluded(self) -> dict[str, int]:
        """Rows that were left out here, by source."""
        return {name: count - self.rows_out.get(name, 0) for name, count in self.rows_in.items()}


@dataclass(frozen=True)
class Input:
    """A table that rows were taken from; ``stage`` tells how it was made where it is a selection itself."""

    name: str
    rows: int
    stage: Stage | None = None


@dataclass(frozen=True)
class Stage:
    """One filter, or a table that nothing was filtered from.

    Attributes
    ----------
    name
        Of the table that it made.
    facts
        What the table's file says of it.
    inputs
        The tables it read; empty where they are not recorded.
    rows_in, rows_out
        Rows read and kept, by source; None where only their number is known, or nothing.
    total_in, total_out
        Their numbers; None where unknown.
    steps
        What was left out, in order; None where it is unknown, for the reason ``unknown``.
    patients
        By source that names patients: how many there are among the rows read and after each step; None where unknown.
    """

    name: str
    facts: Mapping[str, Any]
    inputs: tuple[Input, ...]
    rows_in: Counts | None
    rows_out: Counts | None
    total_in: int | None
    total_out: int | None
    steps: tuple[Exclusion, ...] | None
    unknown: str = ""
    patients: Mapping[str, tuple[int, ...]] | None = None

    @property
    def thresholds(self) -> Mapping[str, Any]:
        """What rows were asked."""
        return self.facts.get("thresholds") or {}

    @property
    def is_filter(self) -> bool:
        """Whether rows were asked anything; else the table is what was fetched, imported or predicted."""
        return "thresholds" in self.facts

    def patients_at(self, step: int) -> int | None:
        """Return how many patients are left after so many steps, of the sources that name patients."""
        if not self.patients:
            return None
        return sum(of_source[step] for of_source in self.patients.values())


@dataclass
class _Told:
    """What can be read of a flow table."""

    steps: list[Exclusion] = field(default_factory=list)
    unknown: str = ""


def stage_of(
    name: str, facts: Mapping[str, Any], inputs: Sequence[Input], rows_out: Counts | None, total_out: int | None
) -> Stage:
    """Return the stage that the facts of a selection tell of.

    Parameters
    ----------
    name
        Of the selection.
    facts
        Its file's own.
    inputs
        The tables it was made from.
    rows_out, total_out
        The rows that are there, by source and in all, where they were counted.
    """
    told = _read_flow(facts)
    if told.unknown:
        total_in = sum(one.rows for one in inputs) if inputs else None
        return Stage(name, facts, tuple(inputs), None, rows_out, total_in, total_out, None, told.unknown)
    first, last = told.steps[0], told.steps[-1]
    shown = [step for step in told.steps if step.reason not in UNASKED or any(step.excluded.values())]
    return Stage(
        name,
        facts,
        tuple(inputs),
        first.rows_in,
        last.rows_out,
        sum(first.rows_in.values()),
        sum(last.rows_out.values()),
        tuple(shown),
    )


def unfiltered_stage(name: str, facts: Mapping[str, Any], rows: Counts, patients: Counts) -> Stage:
    """Return the stage of a table that is no selection: nothing is left out of it."""
    total = sum(rows.values())
    named = {source: (count,) for source, count in patients.items()}
    return Stage(name, facts, (), rows, rows, total, total, (), patients=named)


def _read_flow(facts: Mapping[str, Any]) -> _Told:
    """Return the steps of a selection's flow table, or why they are unknown."""
    flow = facts.get("flow")
    if not flow:
        return _Told(unknown="its file has no flow table: an earlier version made it, or another program rewrote it")
    try:
        steps = [
            Exclusion(
                str(step["reason"]),
                exclusion_words(str(step["reason"]), facts),
                exclusion_words(str(step["reason"]), facts, brief=True),
                {name: int(counts[0]) for name, counts in step["by_source"].items()},
                {name: int(counts[1]) for name, counts in step["by_source"].items()},
            )
            for step in flow
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        return _Told(unknown="its flow table cannot be read")
    return _Told(steps) if _adds_up(steps) else _Told(unknown="its flow table does not add up")


def _adds_up(steps: Sequence[Exclusion]) -> bool:
    """Tell whether each step begins with the rows that the one before it left, and none leaves more than it got."""
    # a source without rows at a step may stand there as 0 or not at all
    follows = all(_present(one.rows_out) == _present(after.rows_in) for one, after in itertools.pairwise(steps))
    return follows and all(count >= 0 for step in steps for count in step.excluded.values())


def _present(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def with_patients(stage: Stage, patients: Mapping[str, tuple[int, ...]] | None) -> Stage:
    """Return a stage that knows its patients."""
    return replace(stage, patients=patients)


def stages_of(stage: Stage) -> Iterator[Stage]:
    """Yield a stage behind all those that it was made from."""
    for one in stage.inputs:
        if one.stage is not None:
            yield from stages_of(one.stage)
    yield stage


def selections_of(stage: Stage) -> Iterator[Stage]:
    """Yield the filters among the stages, in order."""
    return (one for one in stages_of(stage) if one.is_filter)


def limits_nodes(stage: Stage) -> bool:
    """Tell whether a filter asked anything of nodes."""
    return bool(stage.thresholds.get("max_std") or stage.thresholds.get("max_radius90"))


def stage_json(stage: Stage) -> dict[str, Any]:
    """Return a stage as plain JSON values; the stages it was made from stand within its inputs."""
    content: dict[str, Any] = {
        "name": stage.name,
        "inputs": [
            {"name": one.name, "rows": one.rows, "made": None if one.stage is None else stage_json(one.stage)}
            for one in stage.inputs
        ],
        "rows_in": stage.total_in,
        "rows_in_by_source": stage.rows_in,
        "steps": None if stage.steps is None else [_step_json(stage, index) for index in range(len(stage.steps))],
        "rows_out": stage.total_out,
        "rows_out_by_source": stage.rows_out,
        "patients_in": stage.patients_at(0),
        "patients_out": stage.patients_at(-1),
        "patients_by_source": stage.patients and {name: list(counts) for name, counts in stage.patients.items()},
        "unknown": stage.unknown,
    }
    kept = ("thresholds", "limits_px", "sources", "frame", "where", "ids", "labels", "levels", "partial", "digest")
    return {**content, **{name: stage.facts.get(name) for name in kept}}


def _step_json(stage: Stage, index: int) -> dict[str, Any]:
    assert stage.steps is not None, "asked of known steps only"
    step = stage.steps[index]
    before, after = stage.patients_at(index), stage.patients_at(index + 1)
    return {
        "reason": step.reason,
        "said": step.said,
        "rows_in": sum(step.rows_in.values()),
        "excluded": sum(step.excluded.values()),
        "rows_out": sum(step.rows_out.values()),
        "by_source": {name: [step.rows_in[name], step.rows_out.get(name, 0)] for name in sorted(step.rows_in)},
        "patients_in": before,
        "patients_out": after,
    }
