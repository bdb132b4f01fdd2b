"""How fast ``cxu filter`` is, against DuckDB over the same Parquet.

    pip install duckdb
    python benchmarks/filter.py                               # 657,566 made-up rows, 0.6 GB in a temporary folder
    python benchmarks/filter.py --home FOLDER --max-std 10    # the sources of a home

Three things in turn, several times, on all processors: DuckDB counts the rows that the thresholds keep; cxu decides the
same rows and nodes in threads, writing nothing; the whole command runs as a process, selection and all. All must count
the same rows. DuckDB counts in two ways: by the share of confident nodes alone, which is the least that can be asked of
a list of sigmas, and as cxu does, no long gap around the closed ring. Prints at best the times and the processor time,
which others on the machine disturb less, the peak memory of the command, and last the ratios, to the cheaper query.
Nothing in the home changes: the selection goes to another folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fabricate import write_home

from cxu import engine, store
from cxu.anatomy import ORGANS
from cxu.criteria import Criteria
from cxu.selection_shard import ShardFilter
from cxu.thresholds import MIN_CONFIDENT, OrganLimits, Thresholds, parse_max_std

ROWS = 657_566
MIN_RCA = 0.7
READ = ("source", "model_id", "n_samples", "rca_mean", "quality", "sigma_model_px")


def sql_share(max_std: float) -> list[str]:
    """Return for each organ the condition that enough of its nodes are confident."""
    return [
        f"len(list_filter(sigma_model_px[{organ.first + 1}:{organ.stop}], lambda px: px <= {max_std}::float))"
        f" >= {MIN_CONFIDENT} * {organ.n_nodes}"
        for organ in ORGANS
    ]


def sql_gap(max_std: float, max_gap: int) -> list[str]:
    """Return for each organ the condition that no longer gap goes around its ring: nodes as a text of 0 and 1."""
    conditions = []
    for organ in ORGANS:
        nodes = f"sigma_model_px[{organ.first + 1}:{organ.stop}]"
        text = f"array_to_string(list_transform({nodes}, lambda px: (px <= {max_std}::float)::int), '')"
        conditions.append(f"not contains({text} || {text}[:{max_gap}], '{'0' * (max_gap + 1)}')")
    return conditions


def sql_count(paths: str, organs: list[str]) -> str:
    """Return the query that counts the rows that stay."""
    usable = " or ".join(f"({condition})" for condition in organs)
    return f"select count(*) from read_parquet('{paths}') where rca_mean >= {MIN_RCA}::float and ({usable})"


def count_kept(inputs: list[store.StoredTable], criteria: Criteria, workers: int) -> int:
    """Return how many rows the criteria keep: steps of rows, nodes and organs decided, nothing copied or written."""
    of_shard = ShardFilter(criteria, [inputs[0].schema])
    px = {organ: limit.value for organ, limit in (criteria.thresholds.max_std or {}).items()}
    limits = [OrganLimits(stored.name.split("/")[0], "published", px) for stored in inputs]

    def decide(shard: store.Shard) -> int:
        rows = shard.read(READ)
        for step in of_shard.steps:
            passed = step.test(rows)
            rows = rows if passed.all() else rows.filter(pa.array(passed))
        _, _, stays = of_shard.decide(rows, limits)
        return int(stays.sum())

    with engine.Threads(workers) as pool:
        return sum(pool.run(decide, [shard for stored in inputs for shard in stored.shards()]))


def run_command(home: Path, options: list[str], out: Path) -> int:
    """Run ``cxu filter`` as a process and return how many rows it wrote."""
    words = [sys.executable, "-m", "cxu", "filter", "--home", str(home), "--out", str(out), *options]
    subprocess.run(words, check=True, capture_output=True)
    return store.open_table(out).rows


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it ran."""
    own, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime


def timed(function: Callable[[], int]) -> tuple[float, float, int]:
    """Return the seconds that a count takes, the processor time, and the count."""
    start, spent = time.perf_counter(), processor_seconds()
    count = function()
    return time.perf_counter() - start, processor_seconds() - spent, count


def compare(home: Path, folder: Path, arguments: Any) -> None:
    """Measure everything in turn and print it."""
    import duckdb  # not at the top: the script says so where it is absent

    workers, max_std = engine.available_cpus(), arguments.max_std
    connection = duckdb.connect()
    connection.execute(f"set threads = {workers}")
    here = store.Home(home)
    inputs = [here.open_source(listing.source, listing.frame) for listing in here.listings()]
    paths = f"{home}/sources/*/*/part-*.parquet"
    share = sql_share(max_std)
    both = [f"{enough} and {whole}" for enough, whole in zip(share, sql_gap(max_std, 4), strict=True)]
    limit = parse_max_std(str(max_std))
    options = ["--max-std", str(max_std), "--min-rca", str(MIN_RCA), "--workers", str(workers)]

    def query(organs: list[str]) -> Callable[[], int]:
        return lambda: connection.execute(sql_count(paths, organs)).fetchone()[0]

    def predicate(max_gap: int) -> Callable[[], int]:
        criteria = Criteria(Thresholds(max_std=limit, min_rca=MIN_RCA, max_gap=max_gap))
        return lambda: count_kept(inputs, criteria, workers)

    jobs = {
        "DuckDB, share of the nodes": query(share),
        "cxu,    share of the nodes": predicate(50),
        "DuckDB, share and gaps": query(both),
        "cxu,    share and gaps": predicate(4),
        "cxu filter, the command": lambda: run_command(home, options, folder / "selection.parquet"),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    counts: dict[str, int] = {}
    for _ in range(arguments.times):
        for name, job in jobs.items():
            *seconds, counts[name] = timed(job)
            took[name].append((seconds[0], seconds[1]))
    best = {name: np.min(seconds, axis=0) for name, seconds in took.items()}
    rows = sum(stored.rows for stored in inputs)
    for name, (wall, spent) in best.items():
        print(f"{name:28}{wall:7.2f} s{spent:7.2f} s of processors   {counts[name]:,} of {rows:,} rows stay")
    by_share, by_share_here, by_gaps, by_gaps_here, whole = counts.values()
    assert by_share == by_share_here, "they do not count the same rows"
    assert by_gaps == by_gaps_here == whole, "they do not count the same rows"
    written = (folder / "selection.parquet").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{workers} processors; selection of {written / 1e6:,.0f} MB; peak memory of the command {peak / 1e6:,.0f} MB"
    )
    duck_share, here_share, duck_gaps, here_gaps, command = best.values()
    for name, ratio in {
        "predicate with gaps, cxu / DuckDB": here_gaps / duck_gaps,
        "predicate, cxu / DuckDB (at most 1)": here_share / duck_share,
        "command / DuckDB's predicate (at most 10)": command / duck_share,
    }.items():
        print(f"{name:44}{ratio[0]:6.2f}   of processor time {ratio[1]:6.2f}")


def main() -> None:
    """Make the rows, where no home was given, and compare."""
    parser = argparse.ArgumentParser(description="Compare cxu filter with DuckDB over the same Parquet.")
    parser.add_argument("--home", type=Path, help="home whose sources are read; rows are fabricated without it")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to fabricate")
    parser.add_argument("--max-std", type=float, default=8.0, help="limit of a confident node, px")
    parser.add_argument("--times", type=int, default=3, help="how often everything is measured")
    arguments = parser.parse_args()
    try:
        import duckdb  # noqa: F401 - asked for before anything is made
    except ImportError:
        sys.exit("this compares with DuckDB, which is not installed here: pip install duckdb")
    with tempfile.TemporaryDirectory(prefix="cxu-filter-") as folder:
        home = arguments.home or Path(folder) / "home"
        if arguments.home is None:
            print(f"fabricating {arguments.rows:,} rows", flush=True)
            write_home(home, arguments.rows, workers=os.cpu_count() or 1)
        compare(home, Path(folder), arguments)


if __name__ == "__main__":
    main()
