"""A Dask scheduler and its workers as processes of their own, as a user would start them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Cluster:
    """Its address, and its workers' processes."""

    address: str
    workers: list[subprocess.Popen[bytes]]

    def kill_worker(self) -> None:
        """Kill a worker as the system would: no farewell."""
        self.workers[0].kill()
        self.workers[0].wait()


@contextlib.contextmanager
def running_cluster(n_workers: int = 2) -> Iterator[Cluster]:
    """Start a scheduler and workers on this machine, and end them."""
    environment = {**os.environ, "PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "scheduler.json"

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
            return subprocess.Popen(
                command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

        quiet = ("--no-dashboard", "--scheduler-file", str(described))
        try:
            processes.append(start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", *quiet))
            workers = [
                start("dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", *quiet)
                for _ in range(n_workers)
            ]
            processes += workers
            yield Cluster(_address(described), workers)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def _address(described: Path) -> str:
    import json

    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(described.read_text())["address"])
        time.sleep(0.05)
    raise AssertionError("the scheduler did not start")
