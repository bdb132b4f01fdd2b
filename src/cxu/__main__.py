"""``cxu`` and ``python -m cxu``."""

from __future__ import annotations

import io
import sys

from cxu.cli import app


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that cannot show a character gets another one, not a traceback
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
