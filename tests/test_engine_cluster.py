"""The same shard functions on a Dask cluster: a real scheduler, and workers that may die."""

import os
import signal
import time
from pathlib import Path

import pytest

from cxu.engine import Worker, _Cluster, open_pool, run_shards, this_worker
from cxu.errors import ClusterError, ImageError, UsageError, WorkerError
from dask_cluster import running_cluster

pytest.importorskip("distributed", reason="needs the extra cluster")


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as started:
        yield started


def double(number):
    return 2 * number, os.getpid()


def describe_worker(_number):
    return this_worker()


def refuse_odd(number):
    if number % 2:
        raise ImageError(f"image {number} is odd")
    return number


def write_slowly(task):
    folder, number = task
    time.sleep(0.1)
    (Path(folder) / f"{number}").write_text(f"{number}")
    return number


def die(_number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_order_from_other_processes(cluster):
    results = list(run_shards(double, range(9), scheduler=cluster.address))
    assert [value for value, _ in results] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert os.getpid() not in {process for _, process in results}
    assert list(run_shards(double, [], scheduler=cluster.address)) == []


def test_a_worker_knows_its_threads(cluster):
    assert set(run_shards(describe_worker, range(2), scheduler=cluster.address)) == {Worker(0, 1)}
    assert this_worker() == Worker(0, None)


def test_an_exception_comes_through_as_itself(cluster):
    results = run_shards(refuse_odd, [0, 2, 3, 4], scheduler=cluster.address)
    assert [next(results), next(results)] == [0, 2]
    with pytest.raises(ImageError, match=r"^image 3 is odd$"):
        next(results)


def test_tasks_are_drawn_a_few_ahead(cluster):
    drawn = []

    def tasks():
        for number in range(40):
            drawn.append(number)
            yield number

    results = run_shards(double, tasks(), scheduler=cluster.address)
    next(results)
    assert len(drawn) < 20
    assert len(list(results)) == 39


def test_what_a_dead_worker_had_goes_to_another(tmp_path):
    with running_cluster() as started:
        results = run_shards(write_slowly, [(str(tmp_path), n) for n in range(30)], scheduler=started.address)
        done = [next(results) for _ in range(5)]
        started.kill_worker()
        done += results
    assert done == list(range(30))
    assert len(list(tmp_path.iterdir())) == 30


def test_when_all_workers_are_dead_that_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr("cxu.engine._WORKERS_SECONDS", 1.0)
    monkeypatch.setattr("cxu.engine._ASK_SECONDS", 0.1)
    with running_cluster(1) as started, pytest.raises(WorkerError, match="has no workers any more"):
        list(run_shards(die, [1], scheduler=started.address))


def time_out(_number):
    raise TimeoutError("of the function itself")


def test_a_timeout_of_the_function_is_no_timeout_of_the_wait(cluster):
    with pytest.raises(TimeoutError, match="of the function itself"):
        list(run_shards(time_out, [1], scheduler=cluster.address))


def test_a_result_that_comes_as_the_wait_ends_is_taken():
    class Late:
        asked = 0

        def result(self, timeout=None):
            self.asked += 1
            if self.asked == 1:
                raise TimeoutError(f"timed out after {timeout} s")
            return 5

        def done(self):
            return True

    assert _Cluster._result(None, Late()) == 5


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setattr("cxu.engine._CONNECT_SECONDS", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(ClusterError, match="no Dask scheduler answers at"):
            open_pool(scheduler=address)


def test_a_scheduler_without_workers(monkeypatch):
    monkeypatch.setattr("cxu.engine._WORKERS_SECONDS", 0.5)
    with running_cluster(0) as started, pytest.raises(ClusterError, match="has no workers"):
        list(run_shards(double, [1], scheduler=started.address))


def test_workers_and_a_scheduler_are_one_too_many():
    with pytest.raises(UsageError, match="--scheduler and --workers"):
        open_pool(2, "tcp://127.0.0.1:9")
