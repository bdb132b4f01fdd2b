"""Seconds and peak memory of a process with all its children; what the other scripts share."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import psutil

POLL_SECONDS: Final = 0.02


class Cost(NamedTuple):
    """Seconds of the wall, and the most memory that a process and its children held together, MB.

    Pages that several processes share count for each of them, so the sum is an upper bound.
    """

    seconds: float
    peak_mb: float


def run_watched(command: Sequence[str]) -> Cost:
    """Run a command to its end and return what it cost; its output goes nowhere.

    Raises
    ------
    RuntimeError
        If it fails, with what it said on stderr.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {process.stderr.read()}")  # type: ignore[union-attr]
    return Cost(seconds, peak / 1e6)


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process and its children hold; 0 where it has ended."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total
