"""Predict a list of images into a folder: one table, and on request a CSV, pictures and masks.

What is finished stays finished: the same call continues where an earlier one stopped, and adds what is new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa

import cxu
from cxu import files, store, table
from cxu.anatomy import ORGANS
from cxu.errors import CxuError, ImageError
from cxu.model.device import find_device
from cxu.model.hybridgnet import Precision
from cxu.model.reference import reference_of
from cxu.model.sampling import DEFAULT_SAMPLES
from cxu.model.weight_source import load
from cxu.model.weights import BUNDLED, Weights
from cxu.predict import Prediction, PredictOptions, Predictor, Rejected, predict_films, prediction_rows
from cxu.predict_extras import (
    MASKS,
    Advance,
    Extras,
    ProgressBar,
    Written,
    check_masks,
    clear_masks,
    no_progress,
    write_extras,
)
from cxu.predict_folder import Key, PredictFolder, check_paths
from cxu.predict_plan import PlannedImage, PredictPlan, plan_images
from cxu.quality import Quality

# Raised whenever the same image, weights and options come to give other numbers.
PREDICT_VERSION: Final = 2

_PART_SECONDS: Final = 15.0  # what an interruption may cost
_PART_ROWS: Final = 1024
_PART_ROWS_SAMPLES: Final = 64


@dataclass
class PredictReport:
    """What was done.

    Attributes
    ----------
    path, rows
        The table, and how many rows it has now.
    predicted, skipped
        Images predicted by this call, and those that were there already.
    seconds
        Time that predicting took, without loading the weights.
    keys
        Source and id of every image asked for that has a row.
    rejected
        Images without a row, and why.
    turned
        Images predicted by this call whose files hold a negative.
    batch_size
        Images at a time, at the end: smaller than asked for where memory ran out.
    beside
        What was written beside the table.
    """

    path: Path
    rows: int = 0
    predicted: int = 0
    skipped: int = 0
    seconds: float = 0.0
    keys: list[Key] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    batch_size: int = 1
    beside: Written = field(default_factory=Written)


def record_of(weights: Weights, options: PredictOptions) -> dict[str, Any]:
    """Return what ``cxu.json`` says; its ``identity`` is the same for the same numbers."""
    reference = reference_of(weights.model_id)
    made_with = {
        "model_id": weights.model_id,
        "reference": reference and reference.digest,
        **asdict(options),
        "predict_version": PREDICT_VERSION,
        "schema_version": table.SCHEMA_VERSION,
    }
    return {
        "command": "predict",
        "identity": files.hash_of(made_with),
        "made_with": made_with,
        "weights": weights.origin,
        "repo": weights.repo,
        "revision": weights.revision,
        "cxu_version": cxu.__version__,
    }


def predict_into(
    out: Path,
    plan: PredictPlan,
    predictor: Predictor,
    *,
    extras: Extras | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: ProgressBar = no_progress,
) -> PredictReport:
    """Predict the planned images into the folder ``out``.

    Parameters
    ----------
    out
        Created where missing. It holds one table, made with one set of weights and options.
    plan
        From :func:`cxu.predict_plan.plan_images`.
    predictor
        The network on its device, and the options.
    extras
        What to write beside the table.
    overwrite
        Remove what the folder holds first.
    workers
        Processes that draw pictures and masks.
    progress
        Called with a verb and a total; gives a function that takes how many images more are done.

    Raises
    ------
    OutputExistsError
        If the folder holds predictions made otherwise, or something else, and ``overwrite`` is not given.
    UsageError
        If pictures or masks are asked for and two images would have one.
    DeviceMemoryError
        If the device has too little memory for one image.
    """
    extras = extras or Extras()
    folder = PredictFolder(out)
    with folder.lock():
        if overwrite:
            clear_masks(out / MASKS)
        folder.claim(record_of(predictor.weights, predictor.options), overwrite=overwrite)
        if extras.masks or extras.overlays:
            check_paths([*folder.keys, *map(_key, plan.images)])
        if extras.masks:
            check_masks(out / MASKS)
        return _predict_into(folder, plan, predictor, extras, workers, progress)


def _predict_into(
    folder: PredictFolder,
    plan: PredictPlan,
    predictor: Predictor,
    extras: Extras,
    workers: int,
    progress: ProgressBar,
) -> PredictReport:
    report = PredictReport(folder.path, rejected=[Rejected(file.name, reason) for file, reason in plan.unusable])
    new, present = _sort_out(folder, plan, report)
    with progress("predicting", len(new)) as advance:
        present += _predict_new(folder, new, predictor, report, advance)
    # in the order asked for, whichever of them were there already
    order = {image: index for index, image in enumerate(plan.images)}
    present.sort(key=order.__getitem__)
    report.keys = [_key(image) for image in present]
    report.rows = folder.join()
    report.batch_size = predictor.batch_size
    files_of = {_key(image): image.file for image in present}
    try:
        write_extras(folder, files_of, set(map(_key, new)), extras, report.beside, workers=workers, progress=progress)
    except (CxuError, OSError) as error:
        # the table is whole, and what was found must be told
        report.beside.undrawn.append(f"not all of what was asked for beside the table was written: {error}")
    return report


def _key(image: PlannedImage) -> Key:
    return image.source.name, image.image_id


def _sort_out(
    folder: PredictFolder, plan: PredictPlan, report: PredictReport
) -> tuple[list[PlannedImage], list[PlannedImage]]:
    """Return the images to predict, and those that are there; ids that another file has are rejected."""
    new, present = [], []
    for image in plan.images:
        state = folder.state(image)
        if state == "new":
            new.append(image)
        elif state == "done":
            present.append(image)
        else:
            report.rejected.append(
                Rejected(
                    image.file.name,
                    f"{image.file.name}: the folder holds a prediction of another file as {image.image_id!r} of "
                    f"{image.source.name}; choose another --out, or start afresh with --overwrite",
                )
            )
    report.skipped = len(present)
    return new, present


def _predict_new(
    folder: PredictFolder, images: Sequence[PlannedImage], predictor: Predictor, report: PredictReport, advance: Advance
) -> list[PlannedImage]:
    """Predict images into parts of the folder and return those that have a row now."""
    done: list[PlannedImage] = []
    waiting: list[Prediction] = []
    reference = reference_of(predictor.weights.model_id)
    most = _PART_ROWS_SAMPLES if predictor.options.keep_samples else _PART_ROWS
    begun = written = time.monotonic()

    def write_part() -> None:
        if waiting:
            rows = prediction_rows(waiting, predictor.weights, predictor.options, reference)
            folder.add(rows, [one.stamp for one in waiting])
            waiting.clear()

    try:
        for result in predict_films(images, predictor):
            if isinstance(result, Rejected):
                report.rejected.append(result)
            else:
                waiting.append(result)
                done.append(result.image)
                report.turned += [result.image.file.name] if result.film.turned else []
            if len(waiting) >= most or time.monotonic() - written > _PART_SECONDS:
                write_part()
                written = time.monotonic()
            advance(1)
    finally:
        write_part()
    report.predicted, report.seconds = len(done), time.monotonic() - begun
    return done


@dataclass(frozen=True)
class OrganSigma:
    """Uncertainty of one organ of one image: its mean and worst node, px of the 1024 model frame."""

    organ: str
    mean_px: float
    worst_px: float
    worst_node: int


def organ_sigmas(rows: pa.Table, row: int) -> list[OrganSigma]:
    """Return the uncertainty of each organ of a row; empty for a row without standard deviations.

    ``worst_node`` counts from 0 over all 120 nodes.
    """
    sigma = table.list_column(rows.slice(row, 1), "sigma_model_px")[0]
    if np.isnan(sigma).all():
        return []
    found = []
    for organ in ORGANS:
        nodes = sigma[organ.nodes]
        worst = int(nodes.argmax())
        found.append(OrganSigma(organ.name, float(nodes.mean()), float(nodes[worst]), organ.nodes.start + worst))
    return found


@dataclass(frozen=True)
class Doubtful:
    """An image that the gate does not call ok."""

    image_id: str
    quality: str
    score: float
    reason: str


def count_quality(rows: pa.Table) -> dict[str, int]:
    """Return how many rows the gate calls ok, review and reject, in that order; without those it has not judged."""
    found = rows["quality"].to_pylist()
    return {name: found.count(name) for name in get_args(Quality) if name in found}


def doubtful_rows(rows: pa.Table) -> list[Doubtful]:
    """Return the rows that the gate does not call ok, the worst first."""
    columns = ("image_id", "quality", "quality_score", "quality_reason")
    listed = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    found = [Doubtful(*values) for values in listed if values[1] not in (None, "ok")]
    return sorted(found, key=lambda one: -one.score)


def rows_of(path: Path, keys: Sequence[Key], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of images in the table's order: the columns named, or all but kept samples."""
    stored, wanted, found = store.open_table(path), set(keys), []
    names = columns or [name for name in stored.schema.names if name != "samples_xy"]
    for shard in stored.shards():
        ids = shard.read(("source", "image_id"))
        pairs = zip(ids["source"].to_pylist(), ids["image_id"].to_pylist(), strict=True)
        found.append(shard.read(names).filter(pa.array([pair in wanted for pair in pairs], pa.bool_())))
    return pa.concat_tables(found) if found else stored.schema.empty_table().select(names)


def describe_rows(rows: pa.Table) -> dict[str, float]:
    """Return quantiles of the image score, px of the 1024 model frame; empty where no row has one."""
    scores = rows["mean_sigma_model_px"].drop_null().to_numpy()
    if not len(scores):
        return {}
    return {f"{share} %": float(np.quantile(scores, share / 100)) for share in (5, 25, 50, 75, 95)}


def predict_images(
    images: str | Path | Sequence[str | Path],
    *,
    weights: str = BUNDLED,
    n_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    keep_samples: bool = False,
    source: str | None = None,
    batch_size: int | None = None,
) -> pa.Table:
    """Find landmarks and their uncertainty in radiographs, in memory; the arguments are the options of ``cxu predict``.

    Parameters
    ----------
    images
        Files, folders, globs, zips or lists of images; one or several.

    Returns
    -------
    A row an image, in the order listed, in px of each image: the table of ``docs/format.md``.

    Raises
    ------
    ImageError
        If an image cannot be read. ``cxu predict`` lists such images and goes on.
    MissingInputError, UsageError, FormatError, HubError
        If there are no images, weights or device of that name, or the weights are damaged.
    """
    options = PredictOptions(n_samples, seed, precision, keep_samples)
    plan = plan_images([images] if isinstance(images, str | Path) else images, source)
    predictor = Predictor(load(weights), options, find_device(device), batch_size)
    found = []
    for result in predict_films(plan.images, predictor):
        if isinstance(result, Rejected):
            raise ImageError(result.reason)
        found.append(result)
    return prediction_rows(found, predictor.weights, options, reference_of(predictor.weights.model_id))
