"""``cxu quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxu.cli._options import JsonOption
from cxu.cli._output import Output

EXAMPLE = "cxu quickstart my-first-masks/"


def command(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to work in.", show_default="a new temporary folder")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job offline on 24 embedded synthetic rows: import, filter, rasterize, and a contact sheet.

    Prints each command as you would type it. No row describes a person.
    """
    import tempfile

    from cxu.quickstart import STEPS, Step, run_quickstart

    output = Output(as_json=as_json)
    target = folder or Path(tempfile.mkdtemp(prefix="cxu-quickstart-"))
    output.say(f"cd {target}")

    def announce(step: Step) -> None:
        output.say(f"\n# {step.title}\n$ {step.command_line}")

    path = run_quickstart(target, announce, quiet=as_json)
    content = {"folder": str(target), "commands": [step.command_line for step in STEPS], "sheet": str(path)}
    output.result(content, f"\nLook at {path}: synthetic rows, with their uncertainty and their masks.")
    output.say("Next, with your own data: cxu fetch --list · cxu import --help · cxu filter --help")
