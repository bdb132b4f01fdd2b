"""A small folder of training data: phantoms drawn from plausible shapes, some without an annotated heart."""

import csv

import numpy as np
from PIL import Image

from cxu.anatomy import HEART
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_shapes

SIDE = 64
# name → data set, split, label agreement
ROWS = {
    "film01": ("JSRT", "train", ""),
    "film02": ("JSRT", "train", ""),
    "film03": ("JSRT", "val", ""),
    "film04": ("JSRT", "test", ""),
    "digital01": ("Shenzhen", "train", "0.99"),
    "digital02": ("Shenzhen", "train", "0.98"),
    "digital03": ("Shenzhen", "train", "0.97"),
    "digital04": ("Shenzhen", "val", "0.96"),
    "digital05": ("Shenzhen", "train", "0.95"),
    "digital06": ("Shenzhen", "test", "0.99"),
}


def write_index(folder, rows=None, columns=("name", "dataset", "split", "label_agreement")):
    with (folder / "index.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows((name, *rest)[: len(columns)] for name, rest in (rows or ROWS).items())


def write_landmarks(folder, names, landmarks_xy):
    np.savez(folder / "landmarks.npz", name=np.array(names), landmarks_xy=landmarks_xy)


def make_folder(folder):
    """Write the folder and return its landmarks [10, 120, 2]."""
    rng = np.random.default_rng(0)
    landmarks_xy = sample_shapes(load_shape_model(), len(ROWS), rng)
    (folder / "images").mkdir(parents=True)
    for index, (name, (dataset, *_)) in enumerate(ROWS.items()):
        picture = synthetic_background(landmarks_xy[index], SIDE, rng)
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        if dataset != "JSRT":
            landmarks_xy[index, HEART.nodes] = np.nan
    write_landmarks(folder, list(ROWS), landmarks_xy)
    write_index(folder)
    return landmarks_xy
