"""Disks that are full, outputs that cannot be written, readers that leave: an error that says so, and nothing half."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cxu.files import TEMP_PREFIX
from kill_jobs import JOBS, finish, start, written
from mask_helpers import tree

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits, pipes and locales of POSIX")
QUICK = ("filter", "export coco")
NEEDS = {"export dicomseg": "highdicom"}
jobs = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in JOBS]
)


def run(folder, arguments, *, environment=None, before=None):
    """Run ``cxu`` as a process; what it says on both streams, and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "cxu", *arguments],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
    )


def prepared(tmp_path, name):
    """Return a folder with a job's input, and the job."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    folder = tmp_path / "here"
    folder.mkdir()
    JOBS[name].prepare(folder)
    return folder, JOBS[name]


def limit_files(n_bytes):
    """Return a function that lets a process write no file beyond ``n_bytes``: its disk is full at once."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def check_refused(done, folder, job, expected):
    """Check that a run said what was wrong in a sentence, and that what it left is whole or has a temporary name."""
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    for path, content in written(folder, job).items():
        assert content == expected.get(path, content), f"{path} is half-written"


@jobs
def test_a_full_disk_is_said_and_the_next_run_completes(tmp_path, name):
    folder, job = prepared(tmp_path, name)
    finish(start(folder, job.arguments))
    expected = written(folder, job)
    _remove(folder, job)
    limit = max(len(content) for content in expected.values()) // 2
    done = run(folder, job.arguments, before=limit_files(limit))
    check_refused(done, folder, job, expected)
    assert "too large" in done.stderr or "ended with exit code" in done.stderr, done.stderr
    finish(start(folder, job.arguments))
    assert written(folder, job) == expected
    assert not [path for path in tree(folder) if any(part.startswith(TEMP_PREFIX) for part in Path(path).parts)]


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of 400 kB, and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("only root may make a small file system")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["filter", "measure", "rasterize labels", "rasterize rle", "export coco", "export csv"]
)
def test_a_small_disk_that_is_made_larger(tmp_path, small_disk, name):
    folder, job = prepared(tmp_path, name)
    disk, enlarge = small_disk
    finish(start(folder, job.arguments))
    expected = written(folder, job)
    _remove(folder, job)
    at = job.arguments.index("--out") + 1
    arguments = [*job.arguments[:at], str(disk / job.arguments[at]), *job.arguments[at + 1 :]]
    done = run(folder, arguments)
    check_refused(done, disk, job, expected)
    assert "No space left on device" in done.stderr
    assert "disk is full: make room" in done.stderr
    enlarge()
    finish(start(folder, arguments))
    assert written(disk, job) == expected


def _remove(folder, job):
    top = folder / job.output.split("/")[0]
    for path in folder.glob(f"{top.name}*") if job.output.endswith(".") else [top]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", ["filter", "measure", "rasterize labels", "export csv", "export geojson"])
def test_an_output_that_cannot_be_made_is_an_error_of_one_sentence(tmp_path, name):
    folder, job = prepared(tmp_path, name)
    (folder / "file").write_text("mine")
    at = job.arguments.index("--out") + 1
    out = f"file/{job.arguments[at]}"
    done = run(folder, [*job.arguments[:at], out, *job.arguments[at + 1 :]])
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "file" in done.stderr.splitlines()[-1]
    assert (folder / "file").read_text() == "mine"


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", ["filter", "rasterize labels", "export csv"])
def test_a_read_only_folder_is_an_error_of_one_sentence(tmp_path, name):
    folder, job = prepared(tmp_path, name)
    folder.chmod(0o555)
    try:
        done = run(folder, job.arguments)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["filter", "--help"], ["info", "t.parquet"], ["ls", "--json"]])
def test_a_reader_that_leaves_is_no_traceback(tmp_path, arguments):
    folder, _ = prepared(tmp_path, "rasterize labels")
    words = " ".join([sys.executable, "-m", "cxu", *arguments])
    done = subprocess.run(f"{words} | true", shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
        {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/proc/none", "HF_HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none"},
        {"TMPDIR": "/nonexistent", "TERM": "dumb", "COLUMNS": "1"},
    ],
    ids=["a locale of C", "no home and no cache", "no folder for temporary files"],
)
@pytest.mark.parametrize(
    "name", ["rasterize tar", *(pytest.param(name, marks=pytest.mark.slow) for name in ("filter", "overlay"))]
)
def test_surroundings_make_no_difference(tmp_path, name, environment):
    folder, job = prepared(tmp_path, name)
    finish(start(folder, job.arguments))
    expected = written(folder, job)
    _remove(folder, job)
    done = run(folder, job.arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    assert written(folder, job) == expected


def test_an_image_that_vanishes_midway_is_named_and_no_other_lost(tmp_path):
    """The list of images is made, then one of them goes before it is read."""
    folder, _ = prepared(tmp_path, "predict")
    (folder / "sitecustomize.py").write_text(
        "import pathlib\n"
        "import cxu.predict_folder as folder\n"
        "claim = folder.PredictFolder.claim\n"
        "def vanish(self, *args, **kwargs):\n"
        "    pathlib.Path('films/03.png').unlink(missing_ok=True)\n"
        "    return claim(self, *args, **kwargs)\n"
        "folder.PredictFolder.claim = vanish\n"
    )
    words = ["predict", "films", "--weights", "tiny.safetensors", "--samples", "2", "--out", "o", "--json"]
    done = run(folder, words, environment={"PYTHONPATH": str(folder)})
    assert done.returncode == 3, done.stderr
    assert "03.png" in done.stderr
    assert "does not exist" in done.stderr
    from cxu import store

    assert store.open_table(folder / "o/predictions.parquet").rows == 11
