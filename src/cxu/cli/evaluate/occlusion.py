"""``cxu evaluate occlusion``."""

from __future__ import annotations

from cxu.cli._options import JsonOption
from cxu.errors import CxuError

EXAMPLE = "cxu evaluate occlusion --help"


def command(as_json: JsonOption = False) -> None:
    """To be written."""
    raise CxuError("to be written")
