"""What a run leaves beside its weights: which image was for what, the table of metrics, its curve, the recipe."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

import cxu
from cxu import files
from cxu.model.hybridgnet import HybridGNet
from cxu.model.weights import save_weights
from cxu.plot.training import draw_curves
from cxu.training.data import TrainingFolder
from cxu.training.metrics import Scores
from cxu.training.options import TrainOptions

WEIGHTS_NAME: Final = "weights.safetensors"
TABLE_NAME: Final = "metrics.csv"
CURVE_NAME: Final = "metrics.png"
RECORD_NAME: Final = "training.json"
SPLITS_NAME: Final = "splits.csv"

Line = Mapping[str, float | int | None]


def landmarks_digest(folder: TrainingFolder) -> str:
    """Return the SHA-256 of what is trained on: names, data sets, splits and landmarks."""
    digest = hashlib.sha256(json.dumps(folder.rows).encode())
    digest.update(folder.landmarks_xy.tobytes())
    return digest.hexdigest()


def images_digest(images: torch.Tensor) -> str:
    """Return the SHA-256 of images as they are trained on, uint8 [n, 1, S, S] on the CPU."""
    return hashlib.sha256(images.numpy().data).hexdigest()


def flat_scores(scores: Mapping[str, Scores]) -> dict[str, float | int | None]:
    """Return scores as columns of the table: ``val_mse_px2`` of all images, ``val_mse_px2_JSRT`` of a data set."""
    columns: dict[str, float | int | None] = {}
    for dataset, one in scores.items():
        for name, value in asdict(one).items():
            if name != "images":
                columns[f"val_{name}" + ("" if dataset == "all" else f"_{dataset}")] = finite_or_none(value)
    return columns


def finite_or_none(value: float) -> float | None:
    """Return None for NaN, which JSON and CSV have no word for."""
    return value if math.isfinite(value) else None


def begin(out: Path, folder: TrainingFolder, options: TrainOptions) -> None:
    """Write which image is for what, and the recipe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "dataset", "split"])
    writer.writerows(folder.rows)
    writer.writerows((name, "", "left out") for name in folder.disagreeing)
    files.write_bytes(out / SPLITS_NAME, text.getvalue().encode())
    files.write_json(out / RECORD_NAME, facts(folder, options, 0, 0.0, {}))


def facts(
    folder: TrainingFolder,
    options: TrainOptions,
    steps: int,
    seconds: float,
    scores: Mapping[str, Mapping[str, Scores]],
) -> dict[str, Any]:
    """Return what the weight file and ``training.json`` say of the run."""
    rows = {
        part: {
            dataset: {name: finite_or_none(value) for name, value in asdict(one).items()}
            for dataset, one in by_dataset.items()
        }
        for part, by_dataset in scores.items()
    }
    return {
        "cxu": cxu.__version__,
        "torch": torch.__version__,
        "recipe": options.recipe(),
        "steps": steps,
        "seconds": round(seconds, 1),
        "data": {
            "sha256": landmarks_digest(folder),
            "images": folder.counts(),
            "left_out": len(folder.disagreeing),
        },
        "scores": rows,
    }


def write_table(out: Path, lines: Sequence[Line]) -> None:
    """Write the table of metrics so far, and its curve where matplotlib is installed."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_bytes(out / TABLE_NAME, text.getvalue().encode())


def end(out: Path, model: HybridGNet, facts: Mapping[str, Any], lines: Sequence[Line]) -> Path:
    """Write weights, record and curve; the weights last, so that where they are the run is finished."""
    if lines and importlib.util.find_spec("matplotlib"):
        draw_curves(lines, out / CURVE_NAME)
    files.write_json(out / RECORD_NAME, facts)
    # in sorted order, so that the same run gives the same bytes
    metadata = {name: json.dumps(facts[name], sort_keys=True) for name in sorted(facts)}
    save_weights(model, out / WEIGHTS_NAME, metadata)
    return out / WEIGHTS_NAME
