"""Compute how the errors of nodes go together, for intervals of measures where no samples were kept.

    python scripts/make_node_correlation.py DATA src/cxu/data/node_correlation.npz

DATA is a folder with ``images/`` and ``index.csv`` (``name``, ``dataset``, ``split``), or the folder above it. Some
films of each data set, never one of JSRT's test split, are predicted by the bundled network with samples kept. The
correlation [240, 240] (x, y interleaved) is the mean over films of those within each film. Written is a factor F of it,
its leading eigenvectors scaled by the roots of their eigenvalues: correlation = F Fᵀ, with the diagonal completed to 1.

Run it again whenever the bundled weights change. It takes a minute or two on two cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

import numpy as np

from cxu.model.weight_source import load
from cxu.model.weights import BUNDLED
from cxu.predict_run import predict_images

FILMS_OF_EACH = 20
HELD_OUT = "test"
N_SAMPLES = 200
SHARE_WANTED = 0.995  # of the variance, by the factor; the rest is independent from node to node
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip file can say


def main() -> None:
    """Predict the films, write the factor, print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--films", type=int, default=FILMS_OF_EACH, metavar="N", help="films of each data set")
    options = parser.parse_args()
    films = choose_films(options.data, options.films)
    rows = predict_images(films, n_samples=N_SAMPLES, keep_samples=True)
    samples = rows["samples_xy"].combine_chunks().flatten().to_numpy().reshape(len(rows), N_SAMPLES, -1)
    correlation = pooled_correlation(samples)
    factor = leading_factor(correlation)
    options.out.write_bytes(
        npz_bytes(
            {
                "factor": factor,
                "model_id": np.array(load(BUNDLED).model_id),
                "n_images": np.int64(len(rows)),
                "n_samples": np.int64(N_SAMPLES),
            }
        )
    )
    report(correlation, factor.astype(np.float64), options.out)


def choose_films(folder: Path, n_films: int) -> list[Path]:
    """Return ``n_films`` of each data set, spread evenly over its names, none of the held-out split."""
    if not (folder / "index.csv").exists():
        folder = folder / "train"
    names: dict[str, list[str]] = {}
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] != HELD_OUT:
                names.setdefault(row["dataset"], []).append(row["name"])
    chosen = [
        sorted(of_set)[int(position)]
        for _, of_set in sorted(names.items())
        for position in np.linspace(0, len(of_set) - 1, min(n_films, len(of_set)))
    ]
    files = {path.stem: path for path in (folder / "images").iterdir()}
    return [files[name] for name in chosen]


def pooled_correlation(samples: np.ndarray) -> np.ndarray:
    """Return the mean over films of the correlations [240, 240] of samples [n, S, 240]."""
    pooled = np.zeros((samples.shape[2], samples.shape[2]))
    for of_film in samples.astype(np.float64):
        pooled += np.corrcoef(of_film, rowvar=False)
    return pooled / len(samples)


def leading_factor(correlation: np.ndarray) -> np.ndarray:
    """Return the factor float16 [240, K], K as small as :data:`SHARE_WANTED` allows, no row of it longer than 1.

    Vectors are signed so that the linear algebra library leaves little trace.
    """
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int(np.searchsorted(np.cumsum(values) / values.sum(), SHARE_WANTED)) + 1
    vectors = vectors[:, :rank]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    factor = vectors * np.sign(largest) * np.sqrt(values[:rank])
    # rounding may lengthen a row that is already 1
    return (factor / np.maximum(np.linalg.norm(factor, axis=1, keepdims=True), 1) * (1 - 1e-4)).astype(np.float16)


def report(correlation: np.ndarray, factor: np.ndarray, out: Path) -> None:
    """Print what was written and how far it is from what was measured."""
    explained = np.sum(factor**2, axis=1)
    restored = factor @ factor.T + np.diag(1 - explained)
    neighbours = [correlation[2 * node, 2 * node + 2] for node in range(43)]
    print(f"{out}: rank {factor.shape[1]}, {out.stat().st_size:,} bytes")
    print(f"largest difference from the measured correlation: {np.abs(restored - correlation).max():.4f}")
    print(f"least share of a coordinate's variance in the factor: {explained.min():.4f}")
    print(f"least eigenvalue restored: {np.linalg.eigvalsh(restored).min():.5f}")
    print(f"correlation of neighbours of the right lung, x: {min(neighbours):.2f} to {max(neighbours):.2f}")


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Return an npz file, stored with fixed times, so that the same arrays give the same bytes everywhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", FIXED_TIME)
            entry.create_system = 3
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


if __name__ == "__main__":
    main()
