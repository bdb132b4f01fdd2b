"""What the server remembers of each open page, in memory alone: bounded in number and in time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from cxu.demo.session import LoadedFilm, Stroke

MAX_SESSIONS: Final = 64
IDLE_SECONDS: Final = 3600.0


@dataclass(frozen=True, eq=False)
class Session:
    """A film on a page: what was painted over it, and its last row with the settings that it depends on."""

    film: LoadedFilm
    strokes: tuple[Stroke, ...] = ()
    row: pa.Table | None = None
    row_key: tuple[float, int] | None = None


class Sessions:
    """The films of all open pages. The one used longest ago goes where there are too many, or after an idle hour.

    Parameters
    ----------
    most
        How many are kept.
    clock
        Seconds that only grow.
    """

    def __init__(self, most: int = MAX_SESSIONS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[float, Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str) -> Session | None:
        """Return the session of a page, which is thereby in use; None where there is none."""
        with self._lock:
            held = self._held.get(key)
            return None if held is None else self._keep(key, held[1])

    def put(self, key: str, session: Session) -> None:
        """Keep the session of a page in place of an earlier one."""
        with self._lock:
            self._keep(key, session)
            while len(self._held) > self._most:
                self._held.popitem(last=False)

    def drop(self, key: str) -> None:
        """Forget a page."""
        with self._lock:
            self._held.pop(key, None)

    def expire(self, idle_seconds: float = IDLE_SECONDS) -> list[str]:
        """Forget pages that have not been used for that long; return which."""
        with self._lock:
            before = self._clock() - idle_seconds
            gone = [key for key, (used, _) in self._held.items() if used < before]
            for key in gone:
                del self._held[key]
            return gone

    def _keep(self, key: str, session: Session) -> Session:
        self._held[key] = self._clock(), session
        self._held.move_to_end(key)
        return session
