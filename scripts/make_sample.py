"""Fabricate the sample that ships with cxu: 24 synthetic rows in the published columns of CheXmask-U.

    python scripts/make_sample.py src/cxu/data/sample_synthetic.csv

No row describes a person: outlines come from the shape model, standard deviations and RCA are made up. The kinds of
rows are chosen so that ``cxu filter --max-std 5`` has something to show.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.codec import encode_rle, format_landmarks
from cxu.frame import MODEL_SIZE
from cxu.raster import fill_polygon
from cxu.shape import load_shape_model, sample_rca, sample_shapes, sample_sigmas

SEED = 1246
COLUMNS = (
    "image_id",
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
MASK_ORGANS = (LEFT_LUNG, RIGHT_LUNG, HEART)
OUTSIDE_X = MODEL_SIZE + 2  # published landmarks leave the frame by a few pixels


class Kind(NamedTuple):
    """What a row is to show."""

    uncertain_run: bool = False
    uncertain: bool = False
    rca_exchanged: bool = False
    outside: bool = False


GOOD, RUN, POOR = Kind(), Kind(uncertain_run=True), Kind(uncertain=True)
EXCHANGED, OUTSIDE = Kind(rca_exchanged=True), Kind(outside=True)
KINDS = (
    *(GOOD, GOOD, RUN, GOOD, GOOD, POOR),
    *(GOOD, RUN, GOOD, EXCHANGED, GOOD, GOOD),
    *(RUN, GOOD, POOR, GOOD, OUTSIDE, GOOD),
    *(GOOD, RUN, GOOD, GOOD, POOR, RUN),
)


def main() -> None:
    """Write the sample to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    text = sample_text()
    options.out.write_bytes(text.encode("ascii"))
    print(f"{options.out}: {len(KINDS)} synthetic rows, {len(text)} bytes")


def sample_text(seed: int = SEED) -> str:
    """Return the sample as CSV text: the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    shapes_xy = sample_shapes(load_shape_model(), len(KINDS), rng)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, (kind, landmarks_xy) in enumerate(zip(KINDS, shapes_xy, strict=True), start=1):
        writer.writerow(sample_row(f"synthetic_{number:04d}", kind, landmarks_xy, rng))
    return buffer.getvalue()


def sample_row(image_id: str, kind: Kind, landmarks_xy: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Return one row's values in the order of the columns."""
    sigma_xy = sample_sigmas(1, rng, uncertain_runs=float(kind.uncertain_run), uncertain_rows=float(kind.uncertain))
    rca = sample_rca(sigma_xy.mean(axis=2), rng)[0].tolist()
    if kind.rca_exchanged:
        rca = rca[::-1]
    if kind.outside:
        landmarks_xy = landmarks_xy + np.array([OUTSIDE_X - landmarks_xy[:, 0].max(), 0])
    landmarks_xy = np.rint(landmarks_xy)
    shape_hw = (MODEL_SIZE, MODEL_SIZE)
    return [
        image_id,
        *(f"{value:.6f}" for value in rca),
        format_landmarks(landmarks_xy),
        format_landmarks(sigma_xy[0], decimals=2),
        *(encode_rle(fill_polygon(landmarks_xy[organ.nodes], shape_hw)) for organ in MASK_ORGANS),
        *(str(side) for side in shape_hw),
    ]


if __name__ == "__main__":
    main()
