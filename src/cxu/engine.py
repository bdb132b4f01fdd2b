"""Shard functions over processes: the same function, here or in workers, results in order.

A shard function is a module-level function of one picklable task. It writes whole files only, so a run that stops
anywhere is continued by running it again.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Final, NoReturn, TypeVar

from cxu.errors import UsageError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

_GRACE_SECONDS: Final = 5.0


def run_shards(function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int = 1) -> Iterator[Result]:
    """Yield ``function(task)`` for each task, in order.

    Parameters
    ----------
    function
        Module-level function, so that a worker can import it.
    tasks
        Its arguments; they and the results travel between processes. No task yields nothing.
    workers
        Processes to use; with 1, or one task, everything happens here. They are spawned, never forked, so that
        threads and devices of this process do no harm. They end with this process, however it ends.

    Raises
    ------
    UsageError
        If ``workers`` is below 1.
    WorkerError
        If a worker was killed. What the function itself raises comes through as it is.

    Examples
    --------
    >>> list(run_shards(abs, [3, -4]))
    [3, 4]
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    if workers == 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    try:
        yield from executor.map(functools.partial(_run_task, function), tasks)
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process ended unexpectedly, most often because memory ran out. What is finished is kept: "
            "run the same command again to continue, with fewer --workers"
        ) from None
    except BaseException:
        _stop(executor)
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _stop(executor: ProcessPoolExecutor) -> None:
    """End the workers now. The executor has no public way to do so before Python 3.14."""
    for process in list((executor._processes or {}).values()):
        process.terminate()


def _prepare_worker() -> None:
    # Ctrl-C reaches the whole process group; only the parent is to act on it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run_task(function: Callable[[Task], Result], task: Task) -> Result:
    try:
        return function(task)
    except SystemExit:
        # the executor would take it for the task's result, and give this worker the next task
        os._exit(128 + signal.SIGTERM)


def _leave(*_: object) -> NoReturn:
    """Unwind instead of stopping dead, so that temporary files go."""
    raise SystemExit


def _end_with_parent() -> None:
    """Wait for the parent to end: a killed one leaves its workers waiting for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in workers only"
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
