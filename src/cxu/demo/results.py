"""A row → what is shown of it and what can be downloaded: numbers by organ, ratio, verdict; CSV, mask, JSON. Pure."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

import cxu
from cxu import csv_writer, table
from cxu.anatomy import ORGANS, Organ
from cxu.api import rasterize_row
from cxu.demo.session import LoadedFilm, Settings, Stroke
from cxu.measure.intervals import COVERAGE
from cxu.measure.rows import measure_rows
from cxu.model.card import terms_of
from cxu.model.weights import Weights
from cxu.png import encode_label_png

NOTE: Final = "Research and education only; not a medical device."
_DECIMALS: Final = 3


@dataclass(frozen=True)
class Measure:
    """A measured value with its 90 % interval; None where it is blank, and why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    blank: str | None = None


@dataclass(frozen=True)
class OrganResult:
    """One organ: uncertainty of its nodes in px of the 1024 model frame, which of them count, and its area.

    ``area_px2`` is in pixels of the film, ``area_mm2`` known where the film says its spacing.
    """

    organ: str
    mean_sigma_px: float
    median_sigma_px: float
    confident: int
    nodes: int
    usable: bool
    area_px2: Measure
    area_mm2: Measure


@dataclass(frozen=True)
class Result:
    """What was found in a film at some settings.

    Attributes
    ----------
    quality, quality_score, quality_reason
        The verdict of the gate; None for weights without one.
    image_score_px
        Mean node uncertainty, px of the 1024 model frame.
    cardiothoracic_ratio
        With the interval that ``cxu measure`` gives.
    interval_method
        How intervals were found.
    organs
        In the order of :data:`cxu.anatomy.ORGANS`.
    """

    quality: str | None
    quality_score: float | None
    quality_reason: str | None
    image_score_px: float
    cardiothoracic_ratio: Measure
    interval_method: str | None
    organs: tuple[OrganResult, ...]


def describe(row: pa.Table) -> Result:
    """Return the numbers of a row with ``confident`` and ``usable``, from :func:`cxu.demo.session.select_nodes`."""
    (measured,) = measure_rows(row).to_pylist()
    quality, score, reason = (row[name][0].as_py() for name in ("quality", "quality_score", "quality_reason"))
    return Result(
        quality,
        score,
        reason,
        row["mean_sigma_model_px"][0].as_py(),
        _measure(measured, "ctr", measured["ctr_blank"]),
        measured["interval_method"],
        tuple(_organ_result(row, measured, organ, index) for index, organ in enumerate(ORGANS)),
    )


def _measure(measured: dict[str, Any], name: str, blank: str | None = None) -> Measure:
    return Measure(measured[name], measured[f"{name}_low"], measured[f"{name}_high"], blank)


def _organ_result(row: pa.Table, measured: dict[str, Any], organ: Organ, index: int) -> OrganResult:
    sigma = table.list_column(row, "sigma_model_px")[0, organ.nodes]
    usable = bool(table.usable_of(row)[0, index])
    blank = None if usable else "unusable"
    return OrganResult(
        organ.title,
        float(sigma.mean()),
        float(np.median(sigma)),
        int(table.confident_of(row)[0, organ.nodes].sum()),
        organ.n_nodes,
        usable,
        _measure(measured, f"{organ.name}_area_px2", blank),
        _measure(measured, f"{organ.name}_area_mm2", blank or "no_spacing"),
    )


def download_stem(image_id: str) -> str:
    """Return the name of a film without its suffix, for the files made of it.

    Examples
    --------
    >>> download_stem("chest.1.dcm")
    'chest.1'
    """
    return PurePosixPath(image_id).stem or "film"


def as_csv(row: pa.Table, folder: Path | None = None) -> bytes:
    """Return a row as a CSV in the published columns; ``folder`` holds it for a moment."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "row.csv"
        csv_writer.write_published([row], path)
        return path.read_bytes()


def as_label_png(row: pa.Table) -> bytes:
    """Return the label mask of the confident nodes at the film's own resolution; 255 where an organ is unusable."""
    labels = rasterize_row(row, policy="confident").labels
    assert labels is not None, "this policy has labels"
    return encode_label_png(labels)


def as_json(
    film: LoadedFilm,
    settings: Settings,
    strokes: Sequence[Stroke],
    row: pa.Table,
    result: Result,
    weights: Weights,
    device: torch.device,
) -> bytes:
    """Return all numbers of a result, what they were made of and with, as JSON."""
    facts = asdict(film.facts)
    height, width = facts.pop("shape_hw")
    content = {
        "note": NOTE,
        "film": {"name": film.image.image_id, "sha256": film.sha256, "height": height, "width": width, **facts},
        "settings": {
            **asdict(settings),
            "seed": row["seed"][0].as_py(),
            "occlusions": [stroke.as_json() for stroke in strokes],
        },
        "model": {
            "model_id": weights.model_id,
            "weights": weights.origin,
            "terms": terms_of(weights),
            "device": str(device),
            "precision": row["precision"][0].as_py(),
        },
        "versions": {"cxu": cxu.__version__, "torch": torch.__version__, "schema": table.SCHEMA_VERSION},
        "result": {**asdict(result), "interval_coverage": COVERAGE},
        "nodes": {
            "landmarks_xy": _rounded(table.landmarks_of(row)[0]),
            "sigma_xy": _rounded(table.sigmas_of(row)[0]),
            "sigma_model_px": _rounded(table.list_column(row, "sigma_model_px")[0]),
            "confident": table.confident_of(row)[0].tolist(),
        },
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _rounded(values: np.ndarray[Any, Any]) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(np.float64), _DECIMALS).tolist()
    return rounded
