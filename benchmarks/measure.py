"""How fast rows are measured, with simulated intervals and without.

    python benchmarks/measure.py

Measures 4,096 synthetic rows in memory, first without standard deviations and then with, on one core, interleaved three
times. Prints rows a second of processor time at best and, last, the ratio of the two.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

from cxu import table
from cxu.measure.intervals import error_draws
from cxu.measure.rows import measure_rows
from cxu.shape import load_shape_model, sample_shapes, sample_sigmas

N_ROWS = 4096
N_TIMES = 3


def main() -> None:
    """Measure the same rows with and without standard deviations in turn."""
    rng = np.random.default_rng(0)
    columns = {
        "source": "synthetic",
        "image_id": [f"{index:05}" for index in range(N_ROWS)],
        "height": 1024,
        "width": 1024,
        "frame": "model",
        "model_id": table.PUBLISHED_MODEL,
        "landmarks_xy": np.rint(sample_shapes(load_shape_model(), N_ROWS, rng)),
    }
    without = table.build_table(columns, N_ROWS)
    simulated = table.build_table({**columns, "sigma_xy": sample_sigmas(N_ROWS, rng)}, N_ROWS)
    error_draws()
    seconds = {"without": float("inf"), "simulated": float("inf")}
    for _ in range(N_TIMES):
        for name, rows in (("without", without), ("simulated", simulated)):
            start = time.process_time()
            measure_rows(rows)
            seconds[name] = min(seconds[name], time.process_time() - start)
    print(f"without intervals    {N_ROWS / seconds['without']:8,.0f} rows/s")
    print(f"simulated intervals  {N_ROWS / seconds['simulated']:8,.0f} rows/s")
    print(f"ratio with / without: {seconds['simulated'] / seconds['without']:.1f}")


if __name__ == "__main__":
    main()
