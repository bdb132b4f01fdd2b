"""Make docs/reliability.md: what may go wrong, what cxu makes of it, and the command that checks it.

    python scripts/make_reliability.py

writes the page from the catalogue in `tests/reliability`, and from what longer runs found, which
`tests/reliability/recorded.json` keeps: a list of objects with `what`, `how_many`, `found` and `command`, and `date`
where it is known. `tests/test_reliability.py` fails where the page is not what this script makes.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cxu import files

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reliability.md"
RECORDED: Final = ROOT / "tests" / "reliability" / "recorded.json"
KINDS: Final = ("bad_rows", "bad_images", "bad_weights", "bad_parquet", "hub_faults", "hostile_ids")
# tests that are no cases of the catalogue: what they check, and the command
OTHERS: Final = (
    ("Patients' names, ids, dates and institutions in every output", "tests/test_privacy.py -k patient"),
    ("Tokens in every output, with `CXU_DEBUG=1` too", "tests/test_privacy.py -k token"),
    ("Numbers that cannot be, and outlines that cross themselves", "tests/test_numerical_safety.py"),
)
INTRO: Final = """\
# Reliability

Every input may be damaged or hostile, and every run may be interrupted. cxu promises: **no wrong number, no half
file, nothing lost without a word, and no code run from data.** What is wrong is named with its file, line or row;
what is good beside it is processed all the same; what is left out is counted, and shows in the
[exit code](commands/index.md#exit-codes).

This page lists what was tried. Each line of its tables is a test that runs with every change, through the command
line as users type it. It fails on a traceback, on a message that does not say what is wrong, on a good row or image
that is missing, on counts that do not add up, on a file outside the output folder that was touched, and on a file
that is half-written. Rows of the first table with a date are longer runs: their command repeats them.

## What the promise does not cover

- **What is possible but untrue.** Landmarks of another film, or sigmas that are too small, cannot be told from right
  ones by their numbers. [`cxu check`](commands/check.md) compares a table with the images; [limits](limits.md) says
  what is not known.
- **Rows of other programs.** A Parquet table is checked for its schema and for numbers that cannot be. That landmarks
  lie in their image is checked by `cxu import`, not each time a table is read.
- **Outlines that cross themselves** come about where uncertain nodes are left out. They are drawn as they are, by the
  fill rule; `cxu rasterize` warns of them, counted by organ, and its index and every export name each one as
  `crosses_itself`. `cxu filter` does not look at outlines.
- **Other users of the machine.** cxu does not defend a folder against somebody who changes it while a command runs.
- **Memory and time.** Images above 80 million pixels, archives that swell and networks beyond reason are refused by
  what they claim, before they are read. Within these limits a file may still take as long as its size warrants.
- **DICOM segmentations** of `cxu export --format dicomseg` say whose they are, as the standard demands: name, id,
  birth date and sex of the patient, and the study. No other output holds anything of a patient but the ids, which are
  file names or those of the published tables, and the view that the file states.

## In numbers

"""


def page() -> str:
    """Return the page as Markdown."""
    modules = [catalogue(name) for name in KINDS]
    return "\n".join([INTRO, *summary(modules, recorded()), *(line for one in modules for line in section(one))])


def catalogue(name: str) -> ModuleType:
    """Return a module of the catalogue."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module(f"reliability.{name}")


def recorded(path: Path = RECORDED) -> list[dict[str, Any]]:
    """Return what longer runs found; nothing where there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def summary(modules: list[ModuleType], runs: list[dict[str, Any]]) -> list[str]:
    """Return the table of all kinds."""
    lines = ["| what | how many | found | command |", "|---|---|---|---|"]
    for one in modules:
        kind = one.__name__.rpartition(".")[2]
        found = "no loss, no traceback"
        lines.append(f"| {one.TITLE} | {len(one.CASES)} | {found} | `pytest tests/test_reliability.py -k {kind}` |")
    lines += [f"| {what} | | none | `pytest {words}` |" for what, words in OTHERS]
    for run in runs:
        date = f" ({run['date']})" if run.get("date") else ""
        cells = [f"{run['what']}{date}", run["how_many"], run["found"], f"`{run['command']}`"]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    total = sum(len(one.CASES) for one in modules)
    return [*lines, "", f"{total} cases in all.", ""]


def section(module: ModuleType) -> list[str]:
    """Return the table of one kind."""
    lines = [f"## {module.TITLE}", "", module.INTRO, "", "| case | what happens |", "|---|---|"]
    return [*lines, *(f"| {cell(case.name)} | {cell(case.happens)} |" for case in module.CASES), ""]


def cell(text: object) -> str:
    """Return a text as a cell of a table: nothing in it ends the cell or the row, or is taken for HTML."""
    plain = str(text).replace("\\", "\\\\") if "`" not in str(text) else str(text)
    return plain.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").strip()


if __name__ == "__main__":
    files.write_bytes(PAGE, page().encode())
    print(f"{PAGE.relative_to(ROOT)}: {sum(len(catalogue(name).CASES) for name in KINDS)} cases")
