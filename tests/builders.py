"""Made-up landmarks, published files and tables, and plain readers to compare with."""

from __future__ import annotations

import csv
import io

import numpy as np
import pyarrow as pa

from cxu import table
from cxu.shape import load_shape_model, sample_rca, sample_shapes, sample_sigmas

N_MIMIC_ROWS = 24

PUBLISHED_COLUMNS = (
    "Image Index",
    "Dice RCA (Mean)",
    "Dice RCA (Max)",
    "Landmarks (Mean)",
    "Landmarks (Std)",
    "Left Lung",
    "Right Lung",
    "Heart",
    "Height",
    "Width",
)


def ellipse(centre_xy, radii_xy, n_nodes):
    """Return whole-pixel nodes [n_nodes, 2] on an ellipse."""
    angle = 2 * np.pi * np.arange(n_nodes) / n_nodes
    points = np.asarray(centre_xy) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii_xy
    return np.rint(points).astype(np.float32)


def chest(width=1024, height=1024):
    """Return landmarks [120, 2] of two lungs and a heart, within an image of that size."""
    scale = np.array([width, height]) / 1024
    organs = [((300, 500), (150, 300), 44), ((720, 500), (150, 300), 50), ((560, 650), (160, 120), 26)]
    return np.concatenate([ellipse(centre * scale, radii * scale, n) for centre, radii, n in organs])


def join_numbers(values, decimals=0):
    """Return numbers as the published files write them."""
    return ",".join(f"{value:.{decimals}f}" for value in np.ravel(values))


def published_row(image_id="00000001_000.png", **fields):
    """Return one published row, column name to text; ``fields`` replace or add columns, None leaves one blank."""
    row = {
        "Image Index": image_id,
        "Dice RCA (Mean)": "0.8",
        "Dice RCA (Max)": "0.9",
        "Landmarks (Mean)": join_numbers(chest()),
        "Landmarks (Std)": join_numbers(np.full(240, 3.25), 2),
        "Left Lung": "5 2",
        "Right Lung": "1 3 9 4",
        "Heart": "20 1",
        "Height": "1024",
        "Width": "1024",
    }
    return {**row, **{name.replace("_", " "): text for name, text in fields.items()}}


def published_csv(rows, columns=PUBLISHED_COLUMNS, *, newline="\n", rename=None):
    """Return rows as the text of a published CSV.

    ``rename`` maps column names to how the header spells them. A row that is a string is written as it stands.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=newline)
    writer.writerow([(rename or {}).get(name, name) for name in columns])
    for row in rows:
        if isinstance(row, str):
            stream.write(row + newline)
        else:
            writer.writerow([row[name] for name in columns])
    return stream.getvalue()


def make_rows(n_rows, **columns):
    """Return a table of ``n_rows`` rows in the schema; ``columns`` replace or add columns."""
    defaults = {
        "source": "chestxray8",
        "image_id": [f"image{index:04d}" for index in range(n_rows)],
        "height": 1024,
        "width": 1024,
        "frame": "model",
        "landmarks_xy": np.broadcast_to(chest(), (n_rows, 120, 2)),
        "model_id": table.PUBLISHED_MODEL,
    }
    return table.build_table({**defaults, **columns}, n_rows)


def make_texts(**columns):
    """Return role → binary array from lists of str, bytes or None."""
    return {
        role: pa.array([text.encode() if isinstance(text, str) else text for text in texts], pa.binary())
        for role, texts in columns.items()
    }


def plain_decode_rle(text, shape_hw):
    """Decode published RLE as its description reads, run by run."""
    numbers = [int(word) for word in text.split()]
    pixels = np.zeros(shape_hw[0] * shape_hw[1], np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        pixels[start - 1 : start - 1 + length] = 1
    return pixels.reshape(shape_hw)


def dicom_id(index):
    digits = f"{index + 0x2A2277A9:08x}"
    return "-".join([digits, digits[::-1], *[f"{index * 7919 + part:08x}" for part in range(3)]])


def mimic_csv(seed=4):
    """Return a table as MIMIC's is published in Preprocessed: made up, and like a real one in what is certain."""
    rng = np.random.default_rng(seed)
    shapes = np.rint(sample_shapes(load_shape_model(), N_MIMIC_ROWS, rng))
    sigmas = sample_sigmas(N_MIMIC_ROWS, rng)
    rca = sample_rca(sigmas.mean(axis=2), rng)
    rows = [
        published_row(
            dicom_id(index),
            **{
                "Landmarks (Mean)": join_numbers(shapes[index]),
                "Landmarks (Std)": join_numbers(sigmas[index], 2),
                "Dice RCA (Mean)": f"{rca[index, 0]:.4f}",
                "Dice RCA (Max)": f"{rca[index, 1]:.4f}",
            },
        )
        for index in range(N_MIMIC_ROWS)
    ]
    return published_csv(rows, rename={"Image Index": "dicom_id"})
