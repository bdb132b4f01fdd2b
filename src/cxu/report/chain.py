"""Whose selection a selection was made from, and theirs: looked for by name in the home, known by their digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cxu.errors import CxuError
from cxu.report.exclusions import Input, Stage, stage_of, unfiltered_stage, with_patients
from cxu.report.tally import Tally, patients_of_flow
from cxu.report.words import source_and_frame, table_words
from cxu.store import PREDICTIONS, Home, StoredTable, open_table

_CHANGED = "is not what it was then"
_GONE = "is gone"
_FILTER_RUNS = "*-filter.json"
# what the record of an input says of a selection, and the manifest of its filter too
_RECORDED = ("thresholds", "limits_px", "where", "inputs")


class Located(NamedTuple):
    """A table that a selection was made from, or why it cannot be had."""

    stored: StoredTable | None
    trouble: str = ""


def locate_input(record: Mapping[str, Any], home: Home, beside: Path) -> Located:
    """Look for a table that a selection was made from.

    Parameters
    ----------
    record
        What the selection says of it: ``name``, ``digest``.
    home
        Where sources, selections and predictions are looked for by name.
    beside
        A folder: files are looked for there too, as their names are recorded without one.
    """
    name, trouble = str(record["name"]), _GONE
    for candidate in _candidates(name, home, beside):
        if candidate.digest == record.get("digest"):
            return Located(candidate)
        trouble = _CHANGED
    return Located(None, trouble)


def _candidates(name: str, home: Home, beside: Path) -> list[StoredTable]:
    found = []
    for path in _paths(name, home, beside):
        try:
            if path.exists():
                found.append(open_table(path, name=name))
        except CxuError:
            continue
    return [*found, *_source_called(name, home)]


def _source_called(name: str, home: Home) -> list[StoredTable]:
    known = source_and_frame(name)
    try:
        return [home.open_source(*known)] if known and home.listing(*known).files else []
    except CxuError:  # damaged, or a part is gone
        return []


def _paths(name: str, home: Home, beside: Path) -> list[Path]:
    paths = [Path(name), beside / Path(name).name, beside / f"{Path(name).name}.parquet"]
    if name == PREDICTIONS:
        return [home.predictions_folder, *paths]
    try:
        return [home.selection_path(name), *paths]
    except CxuError:  # no name that a selection of the home could have
        return paths


def stage_of_selection(stored: StoredTable, tally: Tally, home: Home) -> tuple[Stage, list[str]]:
    """Return how a table was made, with all that it was made from, and remarks on what is not known.

    Parameters
    ----------
    stored
        A selection; any other table is one that nothing was left out of.
    tally
        Its rows as they were counted.
    home
        Where earlier selections and records of runs are looked for.
    """
    if "thresholds" not in stored.facts:
        notes = _source_notes({"name": stored.name, "digest": stored.digest}, home) if stored.kind == "source" else []
        return unfiltered_stage(stored.name, stored.facts, tally.rows, tally.patients), notes
    notes = []
    stage = _made(stored, home, notes, {name: tally.rows[name] for name in tally.sources}, tally.total)
    if stage.total_out != tally.total:
        notes.append(
            f"{stored.name} has {tally.total:,} rows, and {stage.total_out:,} by its flow table: "
            "another program changed it."
        )
    return stage, notes


def _made(
    stored: StoredTable, home: Home, notes: list[str], rows_out: Mapping[str, int] | None, total_out: int | None
) -> Stage:
    """Return the stage of a selection that is at hand."""
    inputs = _inputs(stored.facts, home, stored.paths[0].parent, notes)
    stage = stage_of(stored.name, stored.facts, inputs, rows_out, total_out)
    if stage.steps is None:
        notes.append(f"Why rows were left out of {stored.name} is unknown: {stage.unknown}.")
        return stage
    patients = patients_of_flow(
        stored, [step.reason for step in stage.steps], {step.reason: step.excluded for step in stage.steps}
    )
    if patients is None:
        notes.append(
            f"Patients that came to {stored.name} are unknown: the list of its excluded rows is gone or another's."
        )
    return with_patients(stage, patients)


def _inputs(facts: Mapping[str, Any], home: Home, beside: Path, notes: list[str]) -> list[Input]:
    return [_input(record, home, beside, notes) for record in facts.get("inputs") or ()]


def _input(record: Mapping[str, Any], home: Home, beside: Path, notes: list[str]) -> Input:
    name, rows = str(record["name"]), int(record["rows"])
    if "thresholds" not in record:
        notes += _source_notes(record, home)
        return Input(name, rows)
    located = locate_input(record, home, beside)
    if located.stored is not None:
        return Input(name, rows, _made(located.stored, home, notes, None, rows))
    facts = _recorded_run(record, home)
    inputs = _inputs(record, home, beside, notes)
    if facts is None:
        stage = stage_of(name, record, inputs, None, rows)
        notes.append(
            f"How many rows {name} left out, and why, is unknown: that selection {located.trouble}, "
            f"and no one record of a run in {home.root / 'runs'} tells of it."
        )
        return Input(name, rows, stage)
    notes.append(
        f"Patients that came to {name} are unknown: that selection {located.trouble}; its flow is that of the "
        "record of its run."
    )
    return Input(name, rows, stage_of(name, facts, inputs, None, rows))


def _source_notes(record: Mapping[str, Any], home: Home) -> list[str]:
    """Return what is to be said of a source that was read: whether it is there still, and what it lacks."""
    name = str(record["name"])
    known = source_and_frame(name)
    if known is None:
        return []
    found = _source_called(name, home)
    if not found or found[0].digest != record.get("digest"):
        return [f"{table_words(name)} {_CHANGED if found else _GONE}: numbers are those of its rows then."]
    malformed = sum(file.malformed for file in home.listing(*known).files)
    lines = f"{malformed:,} row{'s' * (malformed != 1)} of its published file"
    return [f"{table_words(name)}: {lines} could not be read when it was imported."] if malformed else []


def _recorded_run(record: Mapping[str, Any], home: Home) -> dict[str, Any] | None:
    """Return the manifest of the filter that made a selection, by all that its record says of it.

    None where there is none, or several that tell of different flows.
    """
    found = []
    for path in sorted((home.root / "runs").glob(_FILTER_RUNS)):
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(manifest, dict) or manifest.get("rows_out") != record.get("rows"):
            continue
        if all(manifest.get(name) == record.get(name) for name in _RECORDED):
            found.append(manifest)
    flows = [manifest.get("flow") for manifest in found]
    return found[0] if found and all(flow == flows[0] for flow in flows) else None
