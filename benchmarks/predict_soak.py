"""Many films through ``cxu predict``: whether memory and open files stay as they are after the first.

    python benchmarks/predict_soak.py --films 2000

Makes that many films of several sizes, 8 and 16 bits, PNG, JPEG and TIFF, and predicts them with a CSV, looking at the
memory and the open files of the command once a second. Prints both over the run; the last line is the memory of the
last tenth over that of the second one (the first is warm-up), and should be 1.05 at most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_shapes

SIDES = (512, 640, 768, 1024)
KINDS = ("png", "jpg", "tif")
DISTINCT = 60  # films drawn; the others are turned up and down in brightness
MOST = 1.05


def make_films(folder: Path, n_films: int) -> None:
    """Write the films."""
    rng = np.random.default_rng(0)
    shapes = sample_shapes(load_shape_model(), DISTINCT, rng)
    drawn = [synthetic_background(shape, SIDES[index % len(SIDES)], rng) for index, shape in enumerate(shapes)]
    for index in range(n_films):
        grey = np.clip(drawn[index % DISTINCT].astype(np.float32) * rng.uniform(0.8, 1.2), 0, 255).astype(np.uint8)
        kind = KINDS[index % len(KINDS)]
        deep = kind != "jpg" and index % 2
        Image.fromarray(grey.astype(np.uint16) * 257 if deep else grey).save(folder / f"film{index:05}.{kind}")


def watch(command: list[str]) -> np.ndarray:
    """Run a command; return its memory in MB and its open files, once a second [n, 2]."""
    seen = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                seen.append((process.memory_info().rss / 1e6, process.num_fds()))
            except psutil.NoSuchProcess:
                break
            time.sleep(1.0)
        _, err = running.communicate()
        if running.returncode:
            sys.exit(f"{' '.join(command)} ended with {running.returncode}: {err}")
    return np.array(seen)


def main() -> None:
    """Make films, predict them, and print what the command held."""
    parser = argparse.ArgumentParser(description="Watch cxu predict over many films.")
    parser.add_argument("--films", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cxu-soak-") as temporary:
        folder = Path(temporary)
        (folder / "films").mkdir()
        make_films(folder / "films", arguments.films)
        words = [
            "predict",
            str(folder / "films"),
            "--out",
            str(folder / "out"),
            "--csv",
            "--home",
            str(folder / "home"),
        ]
        start = time.monotonic()
        seen = watch([sys.executable, "-m", "cxu", *words])
    seconds = time.monotonic() - start
    tenths = np.array_split(seen, 10)
    for number, tenth in enumerate(tenths, start=1):
        print(
            f"tenth {number:2}   memory {np.median(tenth[:, 0]):6,.0f} MB   open files {int(np.median(tenth[:, 1])):3}"
        )
    print(f"{arguments.films:,} films in {seconds:,.0f} s, at most {seen[:, 0].max():,.0f} MB")
    ratio = float(np.median(tenths[-1][:, 0]) / np.median(tenths[1][:, 0]))
    print(f"memory of the last tenth / of the second (at most {MOST}): {ratio:.3f}")


if __name__ == "__main__":
    main()
