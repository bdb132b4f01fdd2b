"""Where exceptions become sentences and exit codes."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final, ParamSpec

import typer

from cxu.errors import CxuError

INTERRUPTED = 130
SOME_FAILED = 3

P = ParamSpec("P")


KEPT: Final = "What is finished is kept: the same command continues."
NOTHING_KEPT: Final = "Nothing was written: the numbers are of all images together."


def guarded(command: Callable[P, None], *, kept: str = KEPT) -> Callable[P, None]:
    """Return ``command`` with its errors told in a sentence; ``CXU_DEBUG=1`` shows the traceback.

    ``kept`` says what Ctrl-C leaves behind.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        _take_interrupts()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _tell(f"interrupted. {kept}")
            raise typer.Exit(INTERRUPTED) from None
        except CxuError as error:
            _tell(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            # the reader has gone (| head); what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (OSError, MemoryError) as error:
            full = " The disk is full: make room, then run the same command again" if _is_full(error) else ""
            _tell(f"error: {str(error) or type(error).__name__}{full and '.'}{full}")
            raise typer.Exit(1) from None
        except Exception as error:
            if not _is_of_arrow(error):
                raise
            _tell(f"error: {error}")
            raise typer.Exit(1) from None

    return run


def _take_interrupts() -> None:
    """Let Ctrl-C raise from here on; until now it ended the program. Where it is ignored, it stays so."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quota
    return isinstance(error, OSError) and error.errno in full


def _is_of_arrow(error: Exception) -> bool:
    """Tell whether pyarrow raised it, without an import that every start would wait for."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(error, arrow.ArrowException)


def _tell(sentence: str) -> None:
    if os.environ.get("CXU_DEBUG") == "1":
        from cxu.hub_retry import without_token

        # what a server answered may be anything, and is quoted in the errors of libraries
        typer.echo(without_token(traceback.format_exc()), err=True, nl=False)
    typer.echo(f"cxu: {sentence}", err=True)
