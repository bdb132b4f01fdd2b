"""``--scheduler``: a Dask cluster leaves what one run leaves, also where a worker is killed midway."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from builders import chest, make_rows, published_csv, published_row
from cxu.cli import app
from dask_cluster import running_cluster
from mask_helpers import store_rows, tree
from predict_helpers import write_film, write_weights

pytest.importorskip("distributed", reason="needs the extra cluster")

N_ROWS, GROUP_ROWS, N_FILMS = 120, 5, 12


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as started:
        yield started


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # decided where the command is given
    monkeypatch.setattr("cxu.maskplan.BLOCK_ROWS", 6)
    monkeypatch.setattr("cxu.predict_crew._CHUNK_IMAGES", 1)
    monkeypatch.setattr("cxu.store.SHARD_ROWS", 60)


@pytest.fixture(autouse=True)
def _one_thread():
    # as the workers of this cluster; sums are rounded otherwise with more
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cxu(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def write_table():
    rng = np.random.default_rng(5)
    points = chest() + rng.normal(0, 8, (N_ROWS, 120, 2)).astype(np.float32)
    sigma = np.full((N_ROWS, 120, 2), 4.0, np.float32)
    store_rows(Path("t.parquet"), make_rows(N_ROWS, landmarks_xy=points, sigma_xy=sigma), group_rows=GROUP_ROWS)


def write_films():
    for seed in range(N_FILMS):
        write_film(Path(f"films/{seed:02d}.png"), seed)
    write_weights(Path("tiny.safetensors"))


def write_published():
    rows = (published_row(f"{number:05d}.png", Height=f"{1024 + number}") for number in range(900))
    Path("NIH.csv").write_text(published_csv(rows))


def content(home):
    """Return every file of a home but the manifests, which hold the time, and the locks."""
    found = tree(Path(home))
    return {name: file for name, file in found.items() if not name.startswith(("runs/", "cache/"))}


# what writes input, the command, where its results are, where it leaves a file for each task, and how many there are
RASTERIZE = (write_table, ("rasterize", "t.parquet", "--policy", "full"), "{out}", "{out}/.cxu", "part-*.parquet", 24)
MEASURE = (write_table, ("measure", "t.parquet"), "{out}.parquet", "{out}.parquet.parts", "part-*", 24)
PREDICT = (
    write_films,
    ("predict", "films", "--weights", "tiny.safetensors", "--samples", "50"),
    "{out}/predictions.parquet",
    "{out}/.cxu",
    "part-*",
    N_FILMS,
)
IMPORT = (
    write_published,
    ("import", "NIH.csv", "--source", "chestxray8", "--frame", "image"),
    "{out}",
    "{out}/sources/chestxray8/image/.cxu-tmp-*",
    "part-*.parquet",
    15,
)
JOBS = {"rasterize": RASTERIZE, "measure": MEASURE, "predict": PREDICT, "import": IMPORT}


def run(job, out, *others):
    """Run a command into ``out`` and return the bytes of what it left."""
    _, command, result, *_ = JOBS[job]
    folder = result.format(out=out).removesuffix("/predictions.parquet")
    where = ("--home" if job == "import" else "--out", folder)
    cxu(*command, *where, *others)
    path = Path(result.format(out=out))
    return {"": path.read_bytes()} if path.is_file() else content(path)


@pytest.mark.parametrize("job", JOBS)
def test_a_cluster_leaves_what_one_run_leaves(job, cluster):
    JOBS[job][0]()
    whole = run(job, "whole")
    assert whole
    assert run(job, "out", "--scheduler", cluster.address) == whole
    # what is finished is found again, by whoever did it
    assert run(job, "out") == whole


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_worker_that_is_killed_midway_makes_no_difference(job):
    write, _, _, folder, pattern, n_tasks = JOBS[job]
    write()
    whole = run(job, "whole")
    there = []

    def kill_midway(cluster):
        parent, _, name = folder.format(out="out").rpartition("/")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            there[:] = [path for place in Path(parent).glob(name) for path in place.glob(pattern)]
            if there:
                cluster.kill_worker()
                return
            time.sleep(0.001)

    with running_cluster() as started:
        killer = threading.Thread(target=kill_midway, args=(started,))
        killer.start()
        out = run(job, "out", "--scheduler", started.address)
        killer.join()
    assert 0 < len(there) < n_tasks, f"{len(there)} of {n_tasks} were done when the worker was killed"
    assert out == whole


@pytest.mark.slow
def test_extras_of_predict_are_drawn_on_the_cluster_too(cluster):
    write_films()
    extras = ("--csv", "--overlay", "--masks")
    run("predict", "whole", *extras)
    run("predict", "out", *extras, "--scheduler", cluster.address)
    whole, out = tree(Path("whole")), tree(Path("out"))
    assert len(whole) > 2 * N_FILMS
    # that of the masks has the path of the table
    assert {name for name in {*whole, *out} if whole.get(name) != out.get(name)} == {"masks/cxu.json"}


@pytest.mark.slow
def test_shares_go_to_a_cluster_as_well(cluster):
    write_table()
    whole = run("rasterize", "whole")
    for number in (2, 1):
        run("rasterize", "out", "--shard", f"{number}/2", "--scheduler", cluster.address)
    assert tree(Path("out")) == whole
    measures = run("measure", "whole")
    for number in (1, 2):
        cxu("measure", "t.parquet", "--out", "out.parquet", "--shard", f"{number}/2", "--scheduler", cluster.address)
    assert Path("out.parquet").read_bytes() == measures[""]


def test_measuring_without_a_file(cluster):
    write_table()
    here = json.loads(cxu("measure", "t.parquet", "--json").stdout)
    there = json.loads(cxu("measure", "t.parquet", "--json", "--scheduler", cluster.address).stdout)
    assert here == there


@pytest.mark.slow
def test_images_that_cannot_be_read_are_listed_as_they_are_here(cluster):
    write_films()
    Path("films/05b.png").write_bytes(b"no film")
    said = [
        cxu(*PREDICT[1], "--out", out, *others, "--json", code=3)
        for out, others in (("whole", ()), ("out", ("--scheduler", cluster.address)))
    ]
    rejected = [json.loads(one.stdout)["rejected"] for one in said]
    assert rejected[0] == rejected[1]
    assert len(rejected[0]) == 1


def test_an_error_of_a_worker_is_told_as_it_is(cluster):
    write_films()
    arguments = (*PREDICT[1], "--out", "out", "--scheduler", cluster.address, "--device", "cuda:7")
    assert "--device cuda:7: torch" in cxu(*arguments, code=2).stderr


def test_workers_and_a_scheduler_are_refused_before_anything_is_written():
    write_table()
    write_films()
    both = ("--workers", 2, "--scheduler", "tcp://127.0.0.1:9")
    for command, out in ((RASTERIZE[1], "out"), (MEASURE[1], "out.csv"), (PREDICT[1], "out")):
        assert "--scheduler and --workers: give one" in cxu(*command, "--out", out, *both, code=2).stderr
    assert not any(Path(name).exists() for name in ("out", "out.csv", "out.csv.parts"))


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("cxu.engine._CONNECT_SECONDS", 0.5)
    write_table()
    for arguments in ((*RASTERIZE[1], "--out", "out"), (*MEASURE[1], "--out", "out.csv")):
        said = cxu(*arguments, "--scheduler", "tcp://127.0.0.1:9", code=1).stderr
        assert "no Dask scheduler answers at tcp://127.0.0.1:9" in said
    assert not Path("out.csv.parts").exists()
