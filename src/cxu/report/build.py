"""A table → its report: flow, methods, references, and on request what other limits would keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cxu import __version__
from cxu.plot.flow import draw_flow
from cxu.report.bibliography import bibtex, cited
from cxu.report.chain import stage_of_selection
from cxu.report.exclusions import Stage, selections_of, stage_json
from cxu.report.layout import flow_text, kept_lines, sensitivity_sentence, sensitivity_text
from cxu.report.methods import methods_paragraph
from cxu.report.sensitivity import Sensitivity, SensitivityPlan, measure_sensitivity
from cxu.report.tally import Tally, tally_table
from cxu.store import Home, StoredTable

KIND: Final = "report"


@dataclass(frozen=True)
class Report:
    """What there is to say of a table.

    Attributes
    ----------
    stage
        How it was made, with all that it was made from.
    tally
        Its rows, counted.
    notes
        What is not known, and what has to be said beside the numbers.
    sensitivity
        What other limits would keep, where it was asked for.
    """

    stage: Stage
    tally: Tally
    notes: tuple[str, ...]
    sensitivity: Sensitivity | None = None

    @property
    def methods(self) -> str:
        """The methods paragraph."""
        return methods_paragraph(self.stage, self.tally)

    @property
    def keys(self) -> list[str]:
        """Keys of the references that the methods cite."""
        return cited(self.methods)

    def text(self) -> str:
        """Return the report as plain text; paragraphs are lines."""
        parts = [f"Flow of exclusions\n\n{flow_text(self.stage)}", f"Methods\n\n{self.methods}"]
        if self.sensitivity is not None:
            parts.append(sensitivity_text(self.sensitivity))
        parts.append(f"References, as BibTeX keys\n\n{', '.join(self.keys)}")
        if self.notes:
            parts.append("Notes\n\n" + "\n".join(f"- {note}" for note in self.notes))
        return "\n\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        found = self.sensitivity
        return {
            "kind": KIND,
            "cxu_version": __version__,
            "table": self.stage.name,
            "flow": stage_json(self.stage),
            "kept": self.tally.as_json(),
            "methods": self.methods,
            "sensitivity": None if found is None else {**found.as_json(), "sentence": sensitivity_sentence(found)},
            "references": self.keys,
            "bibtex": bibtex(self.keys),
            "notes": list(self.notes),
        }


def report_table(
    stored: StoredTable,
    home: Home,
    *,
    plan: SensitivityPlan | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Report on a stored table. It is read a shard at a time.

    Parameters
    ----------
    stored
        A selection; of any other table it is said that nothing was left out.
    home
        Where the selections that it was made from are looked for.
    plan
        Also measure what other limits would keep: :func:`cxu.report.sensitivity.plan_sensitivity`.
    workers
        Processes for that.
    progress
        Called with the rows read.

    Raises
    ------
    UsageError, FormatError
        See :func:`cxu.report.sensitivity.measure_sensitivity`.
    """
    tally = tally_table(stored, progress)
    stage, notes = stage_of_selection(stored, tally, home)
    sensitivity = None if plan is None else measure_sensitivity(plan, workers=workers, progress=progress)
    return Report(stage, tally, tuple(dict.fromkeys([*notes, *_notes(stage, sensitivity is not None)])), sensitivity)


def draw_report(report: Report, path: Path) -> None:
    """Draw the flow of a report into a PNG, SVG or PDF."""
    draw_flow(report.stage, path, kept=kept_lines(report.stage, report.tally))


def _notes(stage: Stage, has_sensitivity: bool) -> list[str]:
    """Return what else a reader of the numbers has to know."""
    filters = list(selections_of(stage))
    notes = []
    if filters:
        notes.append(f"The version of cxu ({__version__}) is that of this report: a selection does not record its own.")
    if stage.facts.get("partial"):
        notes.append("A source was fetched with --limit-rows: the rows read are not the whole of it.")
    if any(one.facts.get("ids") for one in filters):
        notes.append("A list of ids is known by its hash only: say in words which images it names.")
    if has_sensitivity and len(filters) > 1:
        notes.append(
            f"Sensitivity: limits of the selections that {stage.name} was made from hold in every line of the table."
        )
    return notes
