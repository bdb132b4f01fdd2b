"""How fast a published CSV is imported, against pandas and a parse of the landmarks row by row that writes nothing.

    python benchmarks/import_csv.py                        # makes a CSV of 50,000 rows, about 1 GB, first
    python benchmarks/import_csv.py --csv Preprocessed/MIMIC-CXR-JPG.csv

Both read the same file, in turn, each in a process of its own; the import checks every row and writes Parquet besides.
Prints MB/s and peak memory of either, then the ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from fabricate import write_csv
from watched import POLL_SECONDS, Cost, memory_of

from cxu.catalog import find_source
from cxu.files import sha256_of
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.store import Home

ROUNDS: Final = 3
N_NUMBERS: Final = 240


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="a published CSV in the model frame; made up where left out")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--source", default="mimic")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.csv or Path(folder) / "made.csv"
        if given.csv is None:
            write_csv(path, given.rows, source=given.source)
        mb = path.stat().st_size / 1e6
        sha256_of(path)  # so that neither side pays for the disk
        ways: dict[str, Callable[[], object]] = {
            "pandas, then each row": lambda: measure(read_with_pandas, path),
            "cxu import, one process": lambda: measure(import_with_cxu, path, given.source, 1),
            "cxu import": lambda: measure(import_with_cxu, path, given.source, None),
        }
        runs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                runs[name].append(way())  # type: ignore[arg-type]
        print(f"{mb:,.0f} MB, median of {ROUNDS}")
        for name, found in runs.items():
            seconds = statistics.median(run.seconds for run in found)
            print(f"{name:26} {seconds:6.2f} s  {mb / seconds:6.0f} MB/s  {max(run.peak_mb for run in found):6.0f} MB")
    pairs = zip(runs["pandas, then each row"], runs["cxu import"], strict=True)
    print(f"cxu import is {statistics.median(slow.seconds / fast.seconds for slow, fast in pairs):.1f} x as fast")


def read_with_pandas(path: Path) -> None:
    """Read the file as one would: all columns, then the numbers of each row."""
    rows = pd.read_csv(path)
    for column in ("Landmarks (Mean)", "Landmarks (Std)"):
        numbers = np.stack([np.fromstring(text, np.float32, sep=",") for text in rows[column]])
        assert numbers.shape == (len(rows), N_NUMBERS)


def import_with_cxu(path: Path, source: str, workers: int | None) -> None:
    """Import the file into a home of its own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        report = import_file(path, find_source(source), Home(Path(folder)), ImportOptions("model"), workers=workers)
    assert not report.problems


def measure(function: Callable[..., object], *arguments: object) -> Cost:
    """Run a function in a new process; the time is its own, without the start of Python."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_timed, args=(there, function, arguments))
    process.start()
    peak = 0
    while not here.poll(POLL_SECONDS):
        peak = max(peak, memory_of(process.pid or 0))
    seconds = here.recv()
    process.join()
    return Cost(seconds, peak / 1e6)


def _timed(pipe: multiprocessing.connection.Connection, function: Callable[..., object], arguments: tuple) -> None:
    began = time.perf_counter()
    function(*arguments)
    pipe.send(time.perf_counter() - began)


if __name__ == "__main__":
    main()
