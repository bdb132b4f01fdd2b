"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxu.catalog import FrameName

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="CXU_HOME", help="Folder for sources, selections and runs.", show_default="./cxu-data"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
FrameOption = Annotated[
    FrameName | None,
    typer.Option("--frame", help="Pixels of the landmarks: the 1024 model frame, or the image's own."),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes to use.")]
