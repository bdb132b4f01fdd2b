"""Commands that are killed at random moments, and what must be true of their output after each kill and at the end."""

from __future__ import annotations

import io
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from builders import make_rows, published_csv, published_row
from cxu import store, table
from cxu.files import TEMP_PREFIX
from film_helpers import save_film
from mask_helpers import store_rows, tree
from predict_helpers import write_film, write_weights

N_ROWS, GROUP_ROWS = 300, 20
_LEDGERS = (".cxu/", ".parts/", "staging")  # what only a run under way has


@dataclass(frozen=True)
class Job:
    """A command to kill.

    Attributes
    ----------
    prepare
        Makes its input in a folder.
    arguments
        The words after ``cxu``.
    output
        What it writes, below that folder; several files may begin with it.
    """

    prepare: Callable[[Path], None]
    arguments: tuple[str, ...]
    output: str


def start(folder, arguments):
    """Start ``cxu`` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "cxu", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(running):
    """Wait for a run that nobody disturbs."""
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err.decode()


def written(folder, job):
    """Return every file that counts: no manifests, which hold the time, no locks, and nothing of a temporary name."""
    found = {}
    for name, content in tree(folder).items():
        parts = Path(name).parts
        skipped = "runs" in parts or "cache" in parts or name.endswith(".lock")
        if name.startswith(job.output) and not skipped and not any(part.startswith(TEMP_PREFIX) for part in parts):
            found[name] = _without_times(content) if name.endswith(".dcm") else content
    return found


def _without_times(content):
    """Return what a DICOM segmentation says, less the moment of its making, which the standard wants in it."""
    try:
        film = pydicom.dcmread(io.BytesIO(content))
    except InvalidDicomError:
        return content

    def forget(_, element):
        if element.keyword in ("InstanceCreationTime", "ContentTime", "ContributionDateTime"):
            element.value = ""

    film.walk(forget)
    return film.to_json().encode()


def kill_and_continue(tmp_path, job, kills, seed):
    """Kill a command ``kills`` times at random moments, each time where the last one left it; then let it finish.

    After every kill each file is whole: it is what the undisturbed run writes, or of a ledger that goes in the end.
    """
    folder = tmp_path / "here"
    folder.mkdir()
    job.prepare(folder)
    begun = time.monotonic()
    finish(start(folder, job.arguments))
    seconds = time.monotonic() - begun
    expected = written(folder, job)
    assert expected
    _clear(folder, job)
    rng, killed, tried = random.Random(seed), 0, 0
    while killed < kills:
        tried += 1
        assert tried < 4 * kills, "it ends before it can be killed"
        running = start(folder, job.arguments)
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        killed += running.returncode == -signal.SIGKILL
        there = written(folder, job)
        for name, content in there.items():
            assert content == expected.get(name, content), f"{name} is half-written"
            assert name in expected or any(part in name for part in _LEDGERS), name
        if running.returncode == 0:  # done: nothing is left to kill
            _clear(folder, job)
    # a worker that survived its parent would write on
    time.sleep(0.2)
    if written(folder, job) != expected:  # killed after its last write, or some would refuse to replace what is there
        finish(start(folder, job.arguments))
    assert written(folder, job) == expected
    assert [name for name in tree(folder) if any(part.startswith(TEMP_PREFIX) for part in Path(name).parts)] == []


def _clear(folder, job):
    """Remove what a job wrote: its input stays, with the times that some outputs go by."""
    top = job.output.split("/")[0]
    for path in folder.iterdir():
        if path.name.removeprefix(TEMP_PREFIX).startswith(top) or path.name.startswith(TEMP_PREFIX):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def published_file(n_rows):
    """Return the text of a published file with a row a film."""
    rng = np.random.default_rng(7)
    stds = [",".join(f"{value:.2f}" for value in rng.uniform(1, 8, 240)) for _ in range(40)]
    row = published_row()
    return published_csv(
        {**row, "Image Index": f"{number:08d}_000.png", "Landmarks (Std)": stds[number % 40]}
        for number in range(n_rows)
    )


def _csv(folder):
    (folder / "NIH.csv").write_text(_csv_text())


def _csv_text(found=[]):  # noqa: B006 - made once
    if not found:
        found.append(published_file(9000))
    return found[0]


def _rows(n_rows=N_ROWS):
    rng = np.random.default_rng(3)
    landmarks = make_rows(1)["landmarks_xy"][0].values.to_numpy() + rng.integers(-9, 9, (n_rows, 240))
    sigma_xy = np.round(rng.uniform(1, 8, (n_rows, 120, 2)), 2).astype(np.float32)
    sigmas = table.sigma_columns(sigma_xy, np.full(n_rows, 1024.0))
    return make_rows(n_rows, landmarks_xy=landmarks.astype(np.float32), **sigmas)


def _table(folder):
    store_rows(folder / "t.parquet", _rows(), group_rows=GROUP_ROWS)


def _large_table(folder):
    store_rows(folder / "t.parquet", _rows(20_000), group_rows=1000)


def _films(folder, n_films=12):
    for seed in range(n_films):
        write_film(folder / f"films/{seed:02d}.png", seed)
    write_weights(folder / "tiny.safetensors")


def _table_and_images(folder):
    _table(folder)
    ids = store.open_table(folder / "t.parquet").read()["image_id"].to_pylist()
    first = write_film(folder / f"images/{ids[0]}.png", size=1024)
    for image_id in ids[1:16]:
        shutil.copyfile(first, folder / f"images/{image_id}.png")
    (folder / "ids.txt").write_text("\n".join(ids[:16]))


def _table_and_dicom(folder):
    store_rows(folder / "t.parquet", _rows(30), group_rows=GROUP_ROWS)
    for image_id in store.open_table(folder / "t.parquet").read()["image_id"].to_pylist():
        save_film(folder / f"images/{image_id}.dcm", shape_hw=(1024, 1024))


JOBS = {
    "import": Job(_csv, ("import", "NIH.csv", "--source", "chestxray8"), "cxu-data/sources"),
    "filter": Job(_large_table, ("filter", "t.parquet", "--max-std", "5", "--out", "s.parquet"), "s."),
    "measure": Job(_large_table, ("measure", "t.parquet", "--out", "m.parquet"), "m.parquet"),
    **{
        f"rasterize {format_}": Job(
            _table,
            ("rasterize", "t.parquet", "--out", "o", "--format", format_, "--workers", workers, "--policy", "full"),
            "o/",
        )
        for format_, workers in (("labels", "2"), ("organs", "1"), ("npz", "2"), ("rle", "1"), ("tar", "2"))
    },
    "predict": Job(
        _films,
        (
            "predict",
            "films",
            "--weights",
            "tiny.safetensors",
            "--samples",
            "40",
            "--csv",
            "--overlay",
            "--masks",
            "--out",
            "o",
        ),
        "o/",
    ),
    "overlay": Job(
        _table_and_images, ("overlay", "t.parquet", "--images", "images", "--ids", "ids.txt", "--out", "o"), "o/"
    ),
    "crop": Job(
        _table_and_images,
        ("crop", "t.parquet", "--images", "images", "--ids", "ids.txt", "--organ", "lungs", "--out", "o"),
        "o/",
    ),
    "export coco": Job(_table, ("export", "t.parquet", "--format", "coco", "--out", "o.json"), "o.json"),
    "export csv": Job(_table, ("export", "t.parquet", "--format", "csv", "--out", "o.csv"), "o.csv"),
    "export geojson": Job(_table, ("export", "t.parquet", "--format", "geojson", "--out", "o.geojson"), "o.geojson"),
    "export dicomseg": Job(
        _table_and_dicom, ("export", "t.parquet", "--format", "dicomseg", "--images", "images", "--out", "o"), "o/"
    ),
    "quickstart": Job(lambda _: None, ("quickstart", "q"), "q/"),
}
