"""Compute the shape model that ships with cxu: mean and principal modes of annotated outlines.

    python scripts/make_shape_model.py DATA src/cxu/data/shape_model.npz

DATA is a folder with ``landmarks.npz`` (``name``, ``landmarks_xy`` [n, 120, 2] in the 1024 frame) and ``index.csv``
(``name``, ``dataset``, ``split``), or the folder above it. Only the train and val rows of JSRT enter: they have a
heart, and the test images are kept for reporting.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

import numpy as np

DATASET = "JSRT"
SPLITS = ("train", "val")
VARIANCE_WANTED = 0.98
MAX_MODES = 24
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip file can say


def main() -> None:
    """Read the outlines, write the model, print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    model = principal_modes(read_outlines(options.data))
    options.out.write_bytes(npz_bytes(model))
    print(
        f"{options.out}: {len(model['mode_sd_px'])} modes of {model['n_shapes']} shapes, "
        f"{model['variance_explained']:.4f} of their variance, {options.out.stat().st_size} bytes"
    )


def read_outlines(folder: Path) -> np.ndarray:
    """Return the outlines float64 [n, 120, 2] of the wanted rows, all fully annotated."""
    if not (folder / "landmarks.npz").exists():
        folder = folder / "train"
    with (folder / "index.csv").open(newline="") as file:
        wanted = {row["name"] for row in csv.DictReader(file) if row["dataset"] == DATASET and row["split"] in SPLITS}
    with np.load(folder / "landmarks.npz", allow_pickle=False) as stored:
        chosen = np.isin(stored["name"], sorted(wanted))
        outlines = stored["landmarks_xy"][chosen].astype(np.float64)
    assert len(outlines) == len(wanted)
    assert np.isfinite(outlines).all()
    return outlines


def principal_modes(outlines: np.ndarray) -> dict[str, np.ndarray]:
    """Return the model's arrays; modes are rounded and signed so that the linear algebra library leaves no trace."""
    flat = outlines.reshape(len(outlines), -1)
    mean = flat.mean(axis=0)
    _, singular, modes = np.linalg.svd(flat - mean, full_matrices=False)
    explained = np.cumsum(singular**2) / np.sum(singular**2)
    n_modes = min(int(np.searchsorted(explained, VARIANCE_WANTED)) + 1, MAX_MODES)
    modes = modes[:n_modes]
    largest = np.take_along_axis(modes, np.abs(modes).argmax(axis=1)[:, None], axis=1)
    return {
        "mean_xy": np.round(mean.reshape(-1, 2), 3).astype(np.float32),
        "modes": np.round(modes * np.sign(largest), 5).astype(np.float32),
        "mode_sd_px": np.round(singular[:n_modes] / np.sqrt(len(flat)), 3).astype(np.float32),
        "n_shapes": np.int64(len(flat)),
        "variance_explained": np.float64(round(float(explained[n_modes - 1]), 6)),
    }


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
