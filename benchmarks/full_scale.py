"""The whole data set on one machine: makes a table of as many rows, then filters, measures and draws all of it.

    python benchmarks/full_scale.py --rows 657566
    python benchmarks/full_scale.py --rows 1000,10000,100000,657566 --figure full-scale.png    # how it grows

Rows are made up (benchmarks/fabricate.py), divided among the five sources as the published ones. Every step is the
command that a user types, in a process of its own. Prints seconds, rows a second and peak memory of each, and last how
much more memory the largest run of each step took than the smallest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from watched import Cost, run_watched

STEPS: Final = ("make", "filter", "measure", "rasterize")
TITLES: Final = {
    "make": "make the table",
    "filter": "cxu filter --max-std p80",
    "measure": "cxu measure",
    "rasterize": "cxu rasterize --format rle",
}


def main() -> None:
    """Run every step at every size, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="657566", help="how many, or several numbers with commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where tables go and stay; a temporary one where left out")
    parser.add_argument("--figure", type=Path, help="draw time and memory over rows")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sizes = [int(number) for number in given.rows.split(",")]
    costs: dict[str, dict[int, Cost]] = {step: {} for step in STEPS}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for rows in sizes:
            place = Path(folder) / f"{rows}"
            for step, command in commands(place, rows, given.workers).items():
                costs[step][rows] = cost = run_watched(command)
                print(line_of(TITLES[step], rows, cost), flush=True)
            shutil.rmtree(place)
    if given.json:
        given.json.write_text(json.dumps(costs, indent=1) + "\n")
    if given.figure:
        draw(costs, given.figure, given.workers)
    for step in STEPS[1:]:
        peaks = [costs[step][rows].peak_mb for rows in (min(sizes), max(sizes))]
        print(f"{TITLES[step]}: memory at {max(sizes):,} rows / at {min(sizes):,}: {peaks[1] / peaks[0]:.1f}")


def commands(place: Path, rows: int, workers: int) -> dict[str, Sequence[str]]:
    """Return step → command."""
    home = ["--home", str(place / "home")]
    cxu = [sys.executable, "-m", "cxu"]
    several = ["--workers", str(workers)]
    fabricate = str(Path(__file__).with_name("fabricate.py"))
    return {
        "make": [sys.executable, fabricate, "parquet", str(place / "home"), "--rows", str(rows), *several],
        "filter": [*cxu, "filter", "--max-std", "p80", "--name", "strict", *home],
        "measure": [*cxu, "measure", "strict", "--out", str(place / "measures.parquet"), *several, *home],
        "rasterize": [*cxu, "rasterize", "strict", "--out", str(place / "masks"), "--format", "rle", *several, *home],
    }


def line_of(title: str, rows: int, cost: Cost) -> str:
    """Return a line for people."""
    return (
        f"{rows:9,} rows  {title:28} {cost.seconds:8.1f} s {rows / cost.seconds:10,.0f} rows/s {cost.peak_mb:6.0f} MB"
    )


def draw(costs: dict[str, dict[int, Cost]], path: Path, workers: int) -> None:
    """Draw seconds and memory over rows, a line a step."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for step in STEPS[1:]:
        rows = sorted(costs[step])
        left.loglog(rows, [costs[step][n].seconds for n in rows], "o-", label=TITLES[step])
        right.semilogx(rows, [costs[step][n].peak_mb for n in rows], "o-", label=TITLES[step])
    left.set(xlabel="rows", ylabel="seconds, start of Python included", title=f"Time, {workers} workers")
    right.set(xlabel="rows", ylabel="peak memory of all processes, MB", title="Memory", ylim=(0, None))
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
