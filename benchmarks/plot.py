"""What the numbers behind a figure cost, against reading the uncertainties from disk and nothing else.

    python benchmarks/plot.py HOME [--kinds nodes sigma kept rca ctr]

Reads every source of a home (``benchmarks/fabricate.py parquet`` makes one as large as the published tables), first
plainly and then for each kind of figure, in this process. Prints rows a second of processor time, the most memory so
far, and, last on each line, the ratio to the plain reading.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

from cxu import store, table
from cxu.plot.ctr import measure_ctr
from cxu.plot.kept import measure_kept
from cxu.plot.nodes import measure_nodes
from cxu.plot.rca import measure_rca
from cxu.plot.sigma import measure_sigma

KINDS: dict[str, Callable[..., object]] = {
    "nodes": measure_nodes,
    "sigma": measure_sigma,
    "kept": measure_kept,
    "rca": measure_rca,
    "ctr": measure_ctr,
}


def main() -> None:
    """Measure every kind that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, metavar="HOME")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["nodes", "sigma", "kept", "rca"])
    options = parser.parse_args()
    home = store.Home(options.home)
    tables = [home.open_source(listing.source, listing.frame) for listing in home.listings()]
    rows = sum(stored.rows for stored in tables)
    plain = seconds_of(lambda: read_plainly(tables))
    print(f"{rows:,} rows")
    tell("reading", rows, plain, plain)
    for kind in options.kinds:
        tell(kind, rows, seconds_of(lambda kind=kind: KINDS[kind](tables)), plain)


def read_plainly(tables: list[store.StoredTable]) -> None:
    """Read the uncertainty of every node."""
    for stored in tables:
        for shard in stored.shards():
            table.list_column(shard.read(["sigma_model_px"]), "sigma_model_px")


def seconds_of(work: Callable[[], object]) -> float:
    """Return the processor time of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def tell(name: str, rows: int, seconds: float, plain: float) -> None:
    """Print a line of results."""
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:8} {seconds:7.1f} s  {rows / seconds:10,.0f} rows/s  {megabytes:5,.0f} MB  {seconds / plain:5.1f} ×")


if __name__ == "__main__":
    main()
