"""What is asked of workers: order, the same results as without, and an end that is quick whoever ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cxu.engine import Worker, _threads_for_each, available_cpus, check_workers, run_shards, this_worker
from cxu.errors import CxuError, ImageError, UsageError, WorkerError


def double(number):
    return 2 * number, os.getpid()


def describe_worker(_number):
    time.sleep(0.2)
    return os.getpid(), this_worker()


def first_is_slow(number):
    if number == 0:
        time.sleep(0.3)
    return number


def refuse_odd(number):
    if number % 2:
        raise ImageError(f"image {number} is odd")
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_oneself(number):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return number


def wait_until_stopped(path):
    """Say that the task runs, then wait; leave a mark where it was unwound rather than stopped dead."""
    path = Path(path)
    path.write_text(str(os.getpid()))
    try:
        while True:
            time.sleep(0.01)
    finally:
        path.with_suffix(".unwound").touch()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and that nobody has asked for is no running one
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    results = list(run_shards(double, range(7), workers=workers))
    assert [value for value, _ in results] == [0, 2, 4, 6, 8, 10, 12]
    elsewhere = {pid for _, pid in results} - {os.getpid()}
    assert bool(elsewhere) == (workers > 1)
    assert len(elsewhere) <= workers


def test_a_slow_first_task_keeps_its_place():
    assert list(run_shards(first_is_slow, range(4), workers=2)) == [0, 1, 2, 3]


def test_workers_are_numbered_and_share_the_processors(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = dict(run_shards(describe_worker, range(6), workers=3))
    assert sorted(worker.number for worker in found.values()) == [*range(len(found))]
    assert {worker.threads for worker in found.values()} == {max(1, available_cpus() // 3)}
    assert this_worker() == Worker(0, None)


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("1000", 4), ("", 4), ("all", 4)])
def test_fewer_threads_where_the_user_says_so(monkeypatch, said, threads):
    monkeypatch.setattr("cxu.engine.available_cpus", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert _threads_for_each(2) == threads
    assert _threads_for_each(100) == 1


def test_workers_and_a_scheduler_are_refused_before_anything_starts():
    check_workers(3, None)
    check_workers(1, "tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match="--scheduler and --workers: give one"):
        check_workers(2, "tcp://127.0.0.1:9")


@pytest.mark.parametrize("workers", [1, 2])
def test_one_task_is_done_here_and_none_is_fine(workers):
    assert list(run_shards(double, [5], workers=workers)) == [(10, os.getpid())]
    assert list(run_shards(double, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_below_one_are_refused(workers):
    with pytest.raises(UsageError, match=f"--workers {workers}: expected 1 or more"):
        list(run_shards(double, [1, 2], workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_comes_through_as_itself(workers):
    results = run_shards(refuse_odd, [0, 2, 3, 4], workers=workers)
    assert [next(results), next(results)] == [0, 2]
    with pytest.raises(ImageError, match=r"^image 3 is odd$"):
        next(results)


def test_a_killed_worker_is_an_error_at_once_and_not_a_hang():
    start = time.monotonic()
    with pytest.raises(WorkerError, match="run the same command again to continue, with fewer --workers"):
        list(run_shards(die, range(4), workers=2))
    assert time.monotonic() - start < 15
    assert issubclass(WorkerError, CxuError)
    assert WorkerError.exit_code == 1


def test_ctrl_c_in_a_terminal_is_left_to_the_parent():
    assert list(run_shards(interrupt_oneself, range(4), workers=2)) == [0, 1, 2, 3]


def test_leaving_early_ends_the_workers(tmp_path):
    marks, later = [tmp_path / "a", tmp_path / "b"], [tmp_path / "c", tmp_path / "d"]

    class Enough(Exception):
        pass

    def interrupt():
        for mark in marks:
            wait_for(lambda mark=mark: mark.exists() and mark.read_text())
        os.kill(os.getpid(), signal.SIGUSR1)

    def stop(*_):
        raise Enough

    previous = signal.signal(signal.SIGUSR1, stop)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(Enough):
            list(run_shards(wait_until_stopped, [*marks, *later], workers=2))
    finally:
        signal.signal(signal.SIGUSR1, previous)
    for mark in marks:
        pid = int(mark.read_text())
        wait_for(lambda pid=pid: not is_running(pid), 5)
        assert mark.with_suffix(".unwound").exists()
    assert not any(mark.exists() for mark in later)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_engine import wait_until_stopped\n"
        "from cxu.engine import run_shards\n"
        "if __name__ == '__main__': list(run_shards(wait_until_stopped, sys.argv[2:], workers=2))\n"
    )
    script, marks = tmp_path / "parent.py", [tmp_path / "a", tmp_path / "b"]
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), *map(str, marks)], stderr=subprocess.DEVNULL
    )
    try:
        pids = [int(wait_for(lambda mark=mark: mark.exists() and mark.read_text())) for mark in marks]
    finally:
        parent.kill()
        parent.wait()
    for pid, mark in zip(pids, marks, strict=True):
        wait_for(lambda pid=pid: not is_running(pid), 5)
        assert mark.with_suffix(".unwound").exists()
