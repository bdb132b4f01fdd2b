"""``cxu report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxu.cli._options import FrameOption, HomeOption, JsonOption, WorkersOption
from cxu.cli._output import Output
from cxu.cli._tables import announce

EXAMPLE = "cxu report --out report/ --sensitivity"
KEPT = "A file that was not finished is not there; the same command writes the others."


def command(
    selection: Annotated[
        str | None,
        typer.Argument(
            help="A selection, or any other table.", metavar="SELECTION", show_default="the selection 'latest'"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write text, JSON, figure and references into this folder."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw the flow of exclusions: .png, .svg or .pdf.")
    ] = None,
    bibtex: Annotated[
        Path | None, typer.Option("--bibtex", metavar="FILE", help="Write the references to this .bib file.")
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Also: what --max-std p60, p80, p95 and no limit would keep, and the heart size there.",
        ),
    ] = False,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a paper has to say of a selection: flow of exclusions, methods paragraph, references.

    All numbers are those of the selection's own file, and of its rows, counted once more.
    What is not recorded is said to be unknown.
    """
    from cxu.plot.figure import check_figure_path
    from cxu.report.bibliography import check_bibtex_path, write_bibtex
    from cxu.report.build import draw_report, report_table
    from cxu.report.folder import check_report_folder, write_report
    from cxu.report.sensitivity import plan_sensitivity
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if figure is not None:
        check_figure_path(figure)
    if bibtex is not None:
        check_bibtex_path(bibtex)
    if out is not None:
        check_report_folder(out)
    stored = store.open(selection, frame=frame)
    announce(output, store, stored)
    plan = plan_sensitivity(stored, store) if sensitivity else None
    with output.progress("reading", stored.rows + (plan.rows if plan else 0)) as advance:
        report = report_table(stored, store, plan=plan, workers=workers, progress=advance)
    written = [] if out is None else write_report(report, out)
    if figure is not None:
        draw_report(report, figure)
        written.append(figure)
    if bibtex is not None:
        write_bibtex(report.keys, bibtex)
        written.append(bibtex)
    output.result({**report.as_json(), "written": [str(path) for path in written]}, report.text().rstrip("\n"))
    if written:
        output.say(f"written: {', '.join(map(str, written))}")
