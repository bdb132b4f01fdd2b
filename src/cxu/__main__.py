"""``cxu`` and ``python -m cxu``."""

from __future__ import annotations

import io
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        # here, so that Ctrl-C while it loads is Ctrl-C and no traceback
        from cxu.cli import app  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that cannot show a character gets another one, not a traceback
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
