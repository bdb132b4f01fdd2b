"""Predict a list of images into a folder: one table, and on request a CSV, pictures and masks.

What is finished stays finished: the same call continues where an earlier one stopped, and adds what is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

import cxu
from cxu import csv_writer, files, films, maskfolder, sheet, store, table
from cxu.anatomy import ORGANS
from cxu.engine import run_shards
from cxu.errors import CxuError, ImageError, OutputExistsError
from cxu.image_listing import ImageFile
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.model.hybridgnet import Precision
from cxu.model.sampling import DEFAULT_SAMPLES
from cxu.model.weight_source import load
from cxu.model.weights import BUNDLED, Weights
from cxu.overlay import DEFAULT_VMAX_PX, draw_overlay
from cxu.placing import Target
from cxu.predict import (
    Prediction,
    PredictOptions,
    Predictor,
    Rejected,
    find_device,
    predict_films,
    prediction_rows,
)
from cxu.predict_folder import CSV, Key, PredictFolder, check_paths
from cxu.predict_plan import PlannedImage, PredictPlan, plan_images
from cxu.rasterize import rasterize_table

# Raised whenever the same image, weights and options come to give other numbers.
PREDICT_VERSION: Final = 1
MASKS: Final = "masks"
OVERLAY_PX: Final = 900

_MASK_OPTIONS: Final = MaskOptions("full")
_PART_SECONDS: Final = 15.0  # what an interruption may cost
_PART_ROWS: Final = 1024
_PART_ROWS_SAMPLES: Final = 64
_FEW_OVERLAYS: Final = 8  # below, starting processes takes longer than drawing

Advance = Callable[[int], None]
ProgressBar = Callable[[str, int], AbstractContextManager[Advance]]


def _no_progress(verb: str, total: int) -> AbstractContextManager[Advance]:
    del verb, total
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Extras:
    """What is written beside the table: a CSV in the published columns, pictures, masks."""

    csv: bool = False
    overlays: bool = False
    masks: bool = False


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
    undrawn
        Images without a picture or mask that was asked for, and why.
    outdated
        What an earlier call wrote beside the table and this one was not asked to bring up to date.
    batch_size
        Images at a time, at the end: smaller than asked for where memory ran out.
    csv, masks, overlays
        What was written beside the table, where asked for.
    """

    path: Path
    rows: int = 0
    predicted: int = 0
    skipped: int = 0
    seconds: float = 0.0
    keys: list[Key] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    outdated: list[Path] = field(default_factory=list)
    batch_size: int = 1
    csv: list[Path] = field(default_factory=list)
    masks: Path | None = None
    overlays: list[Path] = field(default_factory=list)


def record_of(weights: Weights, options: PredictOptions) -> dict[str, Any]:
    """Return what ``cxu.json`` says; its ``identity`` is the same for the same numbers."""
    made_with = {
        "model_id": weights.model_id,
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
    progress: ProgressBar = _no_progress,
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
            _clear_masks(out / MASKS)
        folder.claim(record_of(predictor.weights, predictor.options), overwrite=overwrite)
        if extras.masks or extras.overlays:
            check_paths([*folder.keys, *map(_key, plan.images)])
        if extras.masks:
            _check_masks(out / MASKS)
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
    try:
        _write_extras(folder, present, {_key(image) for image in new}, extras, workers, report, progress)
    except (CxuError, OSError) as error:
        # the table is whole, and what was found must be told
        report.undrawn.append(f"not all of what was asked for beside the table was written: {error}")
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
    most = _PART_ROWS_SAMPLES if predictor.options.keep_samples else _PART_ROWS
    begun = written = time.monotonic()

    def write_part() -> None:
        if waiting:
            rows = prediction_rows(waiting, predictor.weights, predictor.options)
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


def _write_extras(
    folder: PredictFolder,
    images: Sequence[PlannedImage],
    new: set[Key],
    extras: Extras,
    workers: int,
    report: PredictReport,
    progress: ProgressBar,
) -> None:
    stored = store.open_table(folder.path)
    if extras.csv:
        report.csv = _write_csv(stored, folder)
    elif new:
        report.outdated += folder.csv_paths()
    if new and not extras.masks and (folder.out / MASKS / maskfolder.RECORD).is_file():
        report.outdated.append(folder.out / MASKS)
    if extras.overlays:
        wanted = {
            _key(image): image.file
            for image in images
            if _key(image) in new or not folder.overlay_path(_key(image)).is_file()
        }
        report.overlays = [folder.overlay_path(_key(image)) for image in images]
        tasks = list(_overlay_tasks(folder, stored, wanted))
        with progress("drawing pictures", len(tasks)) as advance:
            for problem in run_shards(_draw_picture, tasks, workers=workers if len(tasks) > _FEW_OVERLAYS else 1):
                report.undrawn += [problem] if problem else []
                advance(1)
    if extras.masks and stored.rows:
        report.masks = folder.out / MASKS
        plan = plan_masks(stored, report.masks, _MASK_OPTIONS, Target())
        held = _read_record(report.masks)
        with progress("drawing masks", plan.rows) as advance:
            # rows were added: what was drawn before them is drawn again, from the same landmarks
            drawn = rasterize_table(
                plan,
                workers=workers,
                overwrite=held is not None and held.get("identity") != plan.record["identity"],
                progress=advance,
            )
        report.undrawn += [str(failure) for failure in drawn.failures]


def _write_csv(stored: store.StoredTable, folder: PredictFolder) -> list[Path]:
    """Write the table in the published columns: one file, or one for each source where there are several."""
    sources = sorted(
        {name for shard in stored.shards() for name in shard.read(["source"])["source"].unique().to_pylist()}
    )
    out = folder.out
    paths = [out / CSV] if len(sources) <= 1 else [out / f"predictions-{source}.csv" for source in sources]
    for path in folder.csv_paths():
        if path not in paths:
            path.unlink()
    for path, source in zip(paths, sources or [""], strict=True):
        batches = (shard.read() for shard in stored.shards())
        csv_writer.write_published((rows.filter(pc.equal(rows["source"], source)) for rows in batches), path)
    return paths


def _read_record(masks: Path) -> dict[str, Any] | None:
    """Return the record of a folder of masks, None where there is none."""
    try:
        held = json.loads((masks / maskfolder.RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _is_ours(held: dict[str, Any]) -> bool:
    """Tell whether masks were drawn as :func:`predict_into` draws them, of whatever state of the table."""
    drawn_as = {"options": asdict(_MASK_OPTIONS), "target": asdict(Target())}
    return all(held.get(part) == json.loads(json.dumps(value)) for part, value in drawn_as.items())


def _check_masks(masks: Path) -> None:
    """Refuse, before the work, a folder whose masks were drawn otherwise: they are the user's."""
    held = _read_record(masks)
    if held is not None and not _is_ours(held):
        raise OutputExistsError(
            f"{masks} holds the masks of another command: move them away, or leave --masks out and draw with "
            "cxu rasterize"
        )


def _clear_masks(masks: Path) -> None:
    """Remove the masks that predict drew; what others drew stays."""
    held = _read_record(masks)
    if held is not None and _is_ours(held):
        maskfolder.MaskFolder(masks).clear()


@dataclass(frozen=True, eq=False)
class _Picture:
    """One picture to draw: travels to a process."""

    path: Path
    file: ImageFile
    title: str
    landmarks_xy: np.ndarray[Any, Any]
    sigma_px: np.ndarray[Any, Any] | None


def _overlay_tasks(
    folder: PredictFolder, stored: store.StoredTable, wanted: dict[Key, ImageFile]
) -> Iterator[_Picture]:
    for shard in stored.shards():
        rows = shard.read(("source", "image_id", "landmarks_xy", "sigma_model_px"))
        keys = list(zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
        if wanted.keys().isdisjoint(keys):
            continue
        landmarks, sigma = table.landmarks_of(rows), table.list_column(rows, "sigma_model_px")
        for row, key in enumerate(keys):
            if key in wanted:
                known = None if np.isnan(sigma[row]).any() else sigma[row]
                yield _Picture(folder.overlay_path(key), wanted[key], key[1], landmarks[row], known)


def _draw_picture(task: _Picture) -> str | None:
    """Draw one picture; return what was wrong with its image, None where nothing was."""
    try:
        film = films.read_film(task.file)
    except CxuError as error:
        return str(error)
    grey = np.rint(films.unit_grey(film.grey) * 255).astype(np.uint8)
    picture = draw_prediction(grey, task.landmarks_xy, task.sigma_px, aspect=film.aspect, title=task.title)
    with files.replacing(task.path) as temporary:
        picture.save(temporary, format="PNG")
    return None


def draw_prediction(
    grey: np.ndarray[Any, Any],
    landmarks_xy: np.ndarray[Any, Any],
    sigma_px: np.ndarray[Any, Any] | None,
    *,
    aspect: float = 1.0,
    title: str = "",
) -> Image.Image:
    """Return an image with its contours coloured by uncertainty, a legend and a scale.

    Parameters
    ----------
    grey
        uint8 [H, W].
    landmarks_xy
        [120, 2] (x, y) in px of the image.
    sigma_px
        Node uncertainty [120] in px of the 1024 model frame; None draws contours in the organs' colours.
    aspect
        Height of an image pixel over its width.
    title
        Stands above.
    """
    height, width = grey.shape
    tile = draw_overlay(
        grey,
        landmarks_xy * (1.0, aspect),
        sigma_px,
        frame_hw=(round(height * aspect), width),
        size=OVERLAY_PX,
    )
    score = "" if sigma_px is None else f"image score {float(np.mean(sigma_px)):.1f} px"
    return sheet.contact_sheet(
        [tile],
        title=title,
        subtitle=score,
        legend=[organ.name for organ in ORGANS],
        vmax_px=None if sigma_px is None else DEFAULT_VMAX_PX,
    )


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
    return prediction_rows(found, predictor.weights, options)
