"""A report as files: a folder of its own, each file whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from cxu import files
from cxu.errors import OutputExistsError
from cxu.plot.figure import check_figure_path
from cxu.report.bibliography import write_bibtex
from cxu.report.build import KIND, Report, draw_report

TEXT: Final = "report.txt"
JSON: Final = "report.json"
FIGURES: Final = ("flow.svg", "flow.png")
BIBTEX: Final = "references.bib"


def check_report_folder(out: Path) -> None:
    """Check that a report can be written into a folder, before there is one.

    Raises
    ------
    OutputExistsError
        If it is a file, or holds a file of such a name that is not of a report.
    MissingExtraError
        If matplotlib is not installed.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"--out {out} is a file; expected a folder")
    names = [name for name in (TEXT, JSON, *FIGURES, BIBTEX) if (out / name).exists()]
    if names and not _is_report(out / JSON):
        raise OutputExistsError(
            f"--out {out} holds {', '.join(names)}, which cxu report did not write: choose another folder"
        )
    for name in FIGURES:
        check_figure_path(out / name)


def _is_report(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def write_report(report: Report, out: Path) -> list[Path]:
    """Write text, JSON, figures and references into a folder, and return the files. A report that is there goes."""
    # first what tells whose folder it is: the same command may then replace what an interrupted one left
    files.write_json(out / JSON, report.as_json())
    files.write_bytes(out / TEXT, report.text().encode())
    for name in FIGURES:
        draw_report(report, out / name)
    write_bibtex(report.keys, out / BIBTEX)
    return [out / name for name in (TEXT, JSON, *FIGURES, BIBTEX)]
