"""Shard functions over processes or a Dask cluster: the same function, here or in workers, results in order.

A shard function is a module-level function of one picklable task. It writes whole files only, so a run that stops
anywhere is continued by running it again, and a task that is done twice has done no harm.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Final, NoReturn, Protocol, Self, TypeVar

from cxu.errors import ClusterError, MissingExtraError, UsageError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

_GRACE_SECONDS: Final = 5.0
_AHEAD: Final = 2  # tasks that wait for each worker, beside those that it works on
_CONNECT_SECONDS: Final = 10.0
_WORKERS_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 2.0
_RESUME: Final = "What is finished is kept: run the same command again to continue"


@dataclass(frozen=True)
class Worker:
    """Where a shard function runs.

    Attributes
    ----------
    number
        Which of a machine's worker processes, counted from 0; 0 in a cluster.
    threads
        How many threads it may use; None where it is the process that asked.
    """

    number: int = 0
    threads: int | None = None


def this_worker() -> Worker:
    """Return what the shard function that calls it needs to know of its worker."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        with contextlib.suppress(ValueError):  # no task of a cluster
            return Worker(threads=distributed.get_worker().state.nthreads)
    return _this_process


def available_cpus() -> int:
    """Return how many processors this process may use: a job of a cluster has some of its machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool(Protocol):
    """Somewhere to run shard functions; a context manager."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for each task, in order; tasks are drawn a bounded number ahead."""
        ...

    def __enter__(self) -> Self:
        """Return the pool, its workers on their way."""
        ...

    def __exit__(self, *failure: object) -> None:
        """End the workers, now where something failed."""
        ...


def open_pool(workers: int = 1, scheduler: str | None = None) -> Pool:
    """Return a pool of processes on this machine, or of a Dask cluster.

    Parameters
    ----------
    workers
        Processes to use; with 1 everything happens here. They are spawned, never forked, so that threads and devices
        of this process do no harm. They start at once, and end with this process, however it ends.
    scheduler
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, in place of processes.

    Raises
    ------
    UsageError
        If ``workers`` is below 1, or both are asked for.
    MissingExtraError, ClusterError
        If Dask is not installed; if no scheduler answers at that address.
    """
    check_workers(workers, scheduler)
    if scheduler is not None:
        return _Cluster(scheduler)
    return _Processes(workers) if workers > 1 else _Here()


def check_workers(workers: int, scheduler: str | None) -> None:
    """Refuse what :func:`open_pool` would, before anything is written.

    Raises
    ------
    UsageError
        If ``workers`` is below 1, or both are asked for.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    if scheduler is not None and workers > 1:
        raise UsageError("--scheduler and --workers: give one; a cluster has workers of its own")


def run_shards(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int = 1, scheduler: str | None = None
) -> Generator[Result]:
    """Yield ``function(task)`` for each task, in order; closing it ends the workers.

    Parameters
    ----------
    function
        Module-level function, so that a worker can import it.
    tasks
        Its arguments; they and the results travel between processes. No task yields nothing; one is done here.
    workers, scheduler
        See :func:`open_pool`, which says what is raised too.

    Raises
    ------
    WorkerError
        If a worker was killed. What the function itself raises comes through as it is.

    Examples
    --------
    >>> list(run_shards(abs, [3, -4]))
    [3, 4]
    """
    waiting = iter(tasks)
    first = list(itertools.islice(waiting, 2))
    alone = len(first) < 2 and scheduler is None and workers > 1
    with open_pool(1 if alone else workers, scheduler) as pool:
        yield from pool.run(function, itertools.chain(first, waiting))


class _Here:
    """No workers: everything happens in the process that asks."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        yield from map(function, tasks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Nothing was started."""


class Threads:
    """Threads of this process, for functions that leave Python's lock to others most of the time."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="cxu-shard")

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for each task, in order; see :class:`Pool`."""
        yield from _in_order(lambda one: self._executor.submit(function, one), tasks, self._workers + 1)

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Wait for what has begun: a thread cannot be ended."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class _Processes:
    """Spawned processes."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_prepare_worker,
            initargs=(context.Value("i", 0), _threads_for_each(workers)),
        )

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        try:
            task = functools.partial(_run_task, function)
            yield from _in_order(lambda one: self._executor.submit(task, one), tasks, self._workers * (1 + _AHEAD))
        except BrokenProcessPool:
            raise WorkerError(
                f"a worker process ended unexpectedly, most often because memory ran out. {_RESUME}, with fewer "
                "--workers"
            ) from None

    def __enter__(self) -> Self:
        for _ in range(self._workers):  # a process starts with its first task
            self._executor.submit(os.getpid)
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is not None:
            # the executor has no public way to end its workers now before Python 3.14
            for process in list((self._executor._processes or {}).values()):
                process.terminate()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _in_order(
    submit: Callable[[Task], Future[Result]],
    tasks: Iterable[Task],
    ahead: int,
    result: Callable[[Future[Result]], Result] = Future.result,
) -> Iterator[Result]:
    """Yield the results of tasks in order, at most ``ahead`` of which are under way."""
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) >= ahead:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


_this_process = Worker()


def _threads_for_each(workers: int) -> int:
    """Return how many threads each of some processes may use: a fair part, or fewer where the user said so."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    fair = max(1, available_cpus() // workers)
    return min(fair, int(said)) if said.isdigit() and int(said) else fair


def _prepare_worker(started: Any, threads: int) -> None:
    """Make a new process a worker; ``started`` counts them, shared by all."""
    global _this_process  # noqa: PLW0603 - set once, before the first task
    with started.get_lock():
        _this_process = Worker(started.value, threads)
        started.value += 1
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


class _Cluster:
    """The workers of a Dask scheduler. Tasks of a worker that dies go to another one."""

    def __init__(self, address: str) -> None:
        try:
            import distributed  # noqa: PLC0415 - an extra, and slow to import
        except ImportError:
            raise MissingExtraError("--scheduler needs Dask: pip install 'cxu[cluster]'") from None
        self._address = address
        connect: Any = distributed.Client
        try:
            self._client: Any = connect(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`, and give the "
                "address that it prints, such as tcp://10.0.0.1:8786"
            ) from None

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        from distributed import KilledWorker  # noqa: PLC0415 - as above
        from distributed.comm.core import CommClosedError  # noqa: PLC0415 - as above

        threads = sum(self._client.nthreads().values())
        submit = functools.partial(self._client.submit, function, pure=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph")  # a shard of text is meant to travel
                yield from _in_order(submit, tasks, threads * (1 + _AHEAD), self._result)
        except KilledWorker as error:
            raise WorkerError(
                f"workers of the cluster died one after the other, most often because memory ran out: {error}. "
                f"{_RESUME}, with more memory for each worker"
            ) from None
        except (CommClosedError, CancelledError) as error:
            raise WorkerError(f"the cluster at {self._address} is gone ({error}). {_RESUME}") from None

    def _result(self, future: Future[Result]) -> Result:
        """Wait for a result, as long as there are workers or some come back."""
        last_seen = time.monotonic()
        while True:
            try:
                return future.result(timeout=_ASK_SECONDS)
            except TimeoutError:
                if future.done():  # meanwhile, or the function's own error is of that kind
                    return future.result()
                if self._client.nthreads():
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > _WORKERS_SECONDS:
                    raise WorkerError(f"the cluster at {self._address} has no workers any more. {_RESUME}") from None

    def __enter__(self) -> Self:
        try:
            self._client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
            self._check_versions()
        except TimeoutError:
            self._client.close()
            raise ClusterError(
                f"the scheduler at {self._address} has no workers: start some with `dask worker {self._address}`"
            ) from None
        except BaseException:
            self._client.close()
            raise
        return self

    def _check_versions(self) -> None:
        from cxu import __version__  # noqa: PLC0415 - the package imports this module

        found = self._client.run(_installed_version)
        others = {worker: version for worker, version in found.items() if version != __version__}
        if others:
            worker, version = next(iter(others.items()))
            raise ClusterError(
                f"the worker {worker} of {self._address} has cxu {version or 'not installed'}, here is {__version__}: "
                "install the same version on every worker"
            )

    def __exit__(self, *failure: object) -> None:
        # with the client go its futures: what nobody waits for is not begun
        self._client.close()


def _installed_version() -> str | None:
    try:
        from cxu import __version__  # noqa: PLC0415 - on the worker
    except ImportError:
        return None
    return __version__
