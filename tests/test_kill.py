"""``kill -9`` at any moment, then the same command again: the same bytes as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from builders import make_rows, published_csv, published_row
from cxu.files import TEMP_PREFIX
from mask_helpers import store_rows, tree

N_ROWS, GROUP_ROWS = 300, 20

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")


def start(folder, arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cxu", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(running):
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err.decode()


def contents(folder):
    """Return every file that counts: not the manifests, which hold the time, nor what has a temporary name."""
    found = {}
    for name, content in tree(folder).items():
        parts = Path(name).parts
        if "runs" not in parts and not any(part.startswith(TEMP_PREFIX) for part in parts):
            found[name] = content
    return found


def wait_until_it_writes(running, folder):
    while running.poll() is None and not (folder.exists() and any(folder.rglob("*"))):
        time.sleep(0.002)
    assert running.poll() is None, running.stderr.read()


def time_of_writing(folder, arguments, output):
    """Run undisturbed; return for how many seconds it wrote."""
    running = start(folder, arguments)
    wait_until_it_writes(running, folder / output)
    begun = time.monotonic()
    finish(running)
    return time.monotonic() - begun


def kill_and_continue(tmp_path, prepare, arguments, output, moments):
    """Kill a command at each of ``moments``, shares of the time it writes, all in one folder; then let it finish."""
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    for folder in (whole, hurt):
        folder.mkdir()
        prepare(folder)
    seconds = time_of_writing(whole, arguments, output)
    expected = contents(whole / output)
    killed = 0
    for moment in moments:
        running = start(hurt, arguments)
        # from the second on there is something there from the start
        if not killed:
            wait_until_it_writes(running, hurt / output)
            time.sleep(moment * seconds)
        else:
            time.sleep(0.5 + moment * seconds)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        killed += running.returncode == -signal.SIGKILL
        for name, content in contents(hurt / output).items():
            assert content == expected.get(name, content), f"{name} is half-written"
            # what only a block under way has
            assert name in expected or name.startswith(".cxu/part-"), name
    assert killed
    # a worker that survived its parent would write on
    time.sleep(0.2)
    finish(start(hurt, arguments))
    assert tree_without_runs(hurt / output) == expected
    return expected


def tree_without_runs(folder):
    return {name: content for name, content in tree(folder).items() if "runs" not in Path(name).parts}


def moments(seed, number):
    return [random.Random(seed + index).uniform(0, 0.9) for index in range(number)]


@pytest.fixture(scope="module")
def published():
    """A published file of two parts, the second of them short."""
    rng = np.random.default_rng(7)
    stds = [",".join(f"{value:.2f}" for value in rng.uniform(1, 8, 240)) for _ in range(40)]
    row = published_row()
    return published_csv(
        {**row, "Image Index": f"{number:08d}_000.png", "Landmarks (Std)": stds[number % 40]} for number in range(9000)
    )


def check_import(tmp_path, published, seed, number):
    def prepare(folder):
        (folder / "NIH.csv").write_text(published)

    arguments = ["import", "NIH.csv", "--source", "chestxray8"]
    expected = kill_and_continue(tmp_path, prepare, arguments, "cxu-data", moments(seed, number))
    # two parts and their listing; the lock stays
    assert len([name for name in expected if not name.endswith(".lock")]) == 3


def check_rasterize(tmp_path, seed, number, *, workers, format_):
    rng = np.random.default_rng(3)
    landmarks = make_rows(1)["landmarks_xy"][0].values.to_numpy() + rng.integers(-9, 9, (N_ROWS, 240))

    def prepare(folder):
        rows = make_rows(N_ROWS, landmarks_xy=landmarks.astype(np.float32))
        store_rows(folder / "t.parquet", rows, group_rows=GROUP_ROWS)

    arguments = ["rasterize", "t.parquet", "--out", "masks", "--format", format_, "--workers", str(workers)]
    arguments += ["--policy", "full", "--size", "768"]
    expected = kill_and_continue(tmp_path, prepare, arguments, "masks", moments(seed, number))
    masks = [name for name in expected if name.startswith(("masks/", "chestxray8/"))]
    assert len(masks) == {"labels": N_ROWS, "organs": 3 * N_ROWS, "npz": N_ROWS}.get(format_, N_ROWS // GROUP_ROWS)
    assert {"cxu.json", "index.parquet"} < set(expected)


def test_import_killed_and_continued(tmp_path, published):
    check_import(tmp_path, published, 1, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_rasterize_killed_and_continued(tmp_path, workers):
    check_rasterize(tmp_path, workers, 2, workers=workers, format_="labels")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 200, 300])
def test_import_killed_often_and_continued(tmp_path, published, seed):
    check_import(tmp_path, published, seed, 6)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("format_", ["labels", "organs", "npz", "rle", "tar"])
def test_rasterize_killed_often_and_continued(tmp_path, workers, format_):
    check_rasterize(tmp_path, 100 * workers, 5, workers=workers, format_=format_)
