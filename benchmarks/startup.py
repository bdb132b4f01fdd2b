"""How long `cxu --help` takes, against a bare interpreter and against importing what the commands use.

    python benchmarks/startup.py

Prints the median of interleaved runs and, last, the ratio of `cxu --help` to the bare interpreter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "import cxu": [sys.executable, "-c", "import cxu"],
    "cxu --help": [sys.executable, "-m", "cxu", "--help"],
    "import pyarrow, cv2, torch": [sys.executable, "-c", "import pyarrow, cv2, torch"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time each command RUNS times, in turns, so that a slow moment hits all alike."""
    for command in COMMANDS.values():
        seconds(command)
    runs = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(RUNS)]
    medians = {name: statistics.median(run[name] for run in runs) for name in COMMANDS}
    for name, median in medians.items():
        print(f"{name:28} {1000 * median:7.0f} ms")
    print(f"ratio cxu --help / python -c pass: {medians['cxu --help'] / medians['python -c pass']:.1f}")


if __name__ == "__main__":
    main()
