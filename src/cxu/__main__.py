"""``cxu`` and ``python -m cxu``."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130


def _leave(*_: object) -> NoReturn:
    os._exit(_INTERRUPTED)


def main() -> None:
    """Run the command line."""
    # until a command begins nothing is written: Ctrl-C ends it there and then, without a traceback
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from cxu.cli import app  # noqa: PLC0415 - after the above

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that cannot show a character gets another one, not a traceback
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
