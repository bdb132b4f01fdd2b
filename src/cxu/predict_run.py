"""Predict a list of images into a folder: one table, and on request a CSV, pictures and masks.

What is finished stays finished: the same call continues where an earlier one stopped, and adds what is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa

import cxu
from cxu import files, store, table
from cxu.anatomy import ORGANS
from cxu.engine import available_cpus, check_workers
from cxu.errors import CxuError, ImageError, UsageError
from cxu.model.device import find_device
from cxu.model.hybridgnet import Precision
from cxu.model.reference import reference_of
from cxu.model.sampling import DEFAULT_SAMPLES
from cxu.model.weight_source import load
from cxu.model.weights import BUNDLED, Weights
from cxu.predict import PredictOptions, Predictor, Rejected, predict_films, prediction_rows
from cxu.predict_crew import Crew, Outcome
from cxu.predict_extras import (
    MASKS,
    Drawers,
    Extras,
    ProgressBar,
    Written,
    check_masks,
    clear_masks,
    no_progress,
    write_extras,
)
from cxu.predict_folder import Key, PredictFolder, Stamp, check_paths, stamp_of
from cxu.predict_plan import PlannedImage, PredictPlan, plan_images
from cxu.quality import Quality
from cxu.sharing import Share

# Raised whenever the same image, weights and options come to give other numbers.
PREDICT_VERSION: Final = 2


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
        Time that predicting took.
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
    images, images_finished
        How many images there are, and how many of them were tried by now, by all jobs of an array.
    is_whole
        Whether the table holds them all, and this tells of it; else of the share that was asked for.
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
    images: int = 0
    images_finished: int = 0
    is_whole: bool = True


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
    crew: Crew,
    *,
    extras: Extras | None = None,
    share: Share | None = None,
    overwrite: bool = False,
    progress: ProgressBar = no_progress,
) -> PredictReport:
    """Predict the planned images into the folder ``out``.

    Parameters
    ----------
    out
        Created where missing. It holds one table, made with one set of weights and options.
    plan
        From :func:`cxu.predict_plan.plan_images`.
    crew
        Who predicts, with which network and options.
    extras
        What to write beside the table.
    share
        Predict only these images, as one job of an array. The job that finds all images tried writes the table, and
        what goes beside it.
    overwrite
        Remove what the folder holds first.
    progress
        Called with a verb and a total; gives a function that takes how many images more are done.

    Raises
    ------
    OutputExistsError
        If the folder holds predictions made otherwise, or something else, and ``overwrite`` is not given.
    UsageError
        If pictures or masks are asked for and two images would have one, or a share is to start afresh.
    DeviceMemoryError
        If the device has too little memory for one image.
    WorkerError
        If a worker was killed; the same call continues.
    """
    if overwrite and share is not None:
        raise UsageError("--overwrite and --shard: each job would remove what the others find; choose another --out")
    check_workers(crew.workers, crew.scheduler)
    run = _Run(PredictFolder(out), plan, crew, extras or Extras(), progress)
    with run.folder.lock():
        run.claim(overwrite=overwrite)
        images = run.sort_out(plan.of_share(share))
        if share is None:
            report = run.report(images, run.predict(images))
            run.folder.forget_rejected()
            return run.join(report)
    # jobs of an array predict at the same time, and hold the folder only to look and to join
    outcome = run.predict(images)
    run = replace(run, folder=PredictFolder(out))
    with run.folder.lock():
        run.claim()
        return run.join_shares(images, outcome, share)


@dataclass(frozen=True)
class _SortedOut:
    """Images by their positions in the plan: to predict, there already, and refused: another file has their id."""

    new: Mapping[int, PlannedImage]
    present: Mapping[int, PlannedImage]
    taken: Sequence[Rejected]


@dataclass(frozen=True)
class _Run:
    """The steps of one call; the folder is held where they change more than parts of it."""

    folder: PredictFolder
    plan: PredictPlan
    crew: Crew
    extras: Extras
    progress: ProgressBar

    def claim(self, *, overwrite: bool = False) -> None:
        """Make the folder that of this run, or refuse."""
        folder, masks = self.folder, self.folder.out / MASKS
        if overwrite:
            clear_masks(masks)
        folder.claim(record_of(self.crew.weights, self.crew.options), overwrite=overwrite)
        if self.extras.masks or self.extras.overlays:
            check_paths([*folder.keys, *map(_key, self.plan.images)])
        if self.extras.masks:
            check_masks(masks)

    def sort_out(self, images: Mapping[int, PlannedImage]) -> _SortedOut:
        """Tell which images are to be predicted."""
        states = {place: self.folder.state(image) for place, image in images.items()}
        new = {place: image for place, image in images.items() if states[place] == "new"}
        present = {place: image for place, image in images.items() if states[place] == "done"}
        taken = [_taken(image) for place, image in images.items() if states[place] == "other"]
        return _SortedOut(new, present, taken)

    def predict(self, images: _SortedOut) -> Outcome:
        """Predict what is new into parts of the folder."""
        begun = time.monotonic()
        with self.progress("predicting", len(images.new)) as advance:
            outcome = self.crew.predict(images.new, self.folder, advance)
        outcome.seconds = time.monotonic() - begun
        return outcome

    def report(self, images: _SortedOut, outcome: Outcome) -> PredictReport:
        """Return what was done, before the table is written."""
        plan, predicted = self.plan, set(outcome.predicted)
        return PredictReport(
            self.folder.path,
            predicted=len(predicted),
            skipped=len(images.present.keys() - predicted),
            seconds=outcome.seconds,
            keys=[_key(plan.images[place]) for place in sorted(images.present.keys() | predicted)],
            rejected=[*images.taken, *(outcome.rejected[place] for place in sorted(outcome.rejected))],
            turned=outcome.turned,
            batch_size=outcome.batch_size or 1,
            images=len(plan.images),
            images_finished=len(plan.images),
        )

    def join(self, report: PredictReport) -> PredictReport:
        """Write the table, and what goes beside it."""
        folder = self.folder
        report.rejected[:0] = [Rejected(file.name, reason) for file, reason in self.plan.unusable]
        new, has_row = folder.waiting(), set(report.keys)
        report.rows = folder.join(map(_key, self.plan.images))
        files_of = {_key(image): image.file for image in self.plan.images if _key(image) in has_row}
        scheduler = self.crew.scheduler
        drawers = Drawers(1 if scheduler else available_cpus(), scheduler)
        try:
            write_extras(folder, files_of, new, self.extras, report.beside, drawers=drawers, progress=self.progress)
        except (CxuError, OSError) as error:
            # the table is whole, and what was found must be told
            report.beside.undrawn.append(f"not all of what was asked for beside the table was written: {error}")
        return report

    def join_shares(self, images: _SortedOut, outcome: Outcome, share: Share) -> PredictReport:
        """Write the table where the jobs of an array have tried all images; else tell of this job's share."""
        folder, plan = self.folder, self.plan
        notes = [(one.file, stamp_of(images.new[place].file), one.reason) for place, one in outcome.rejected.items()]
        folder.note_rejected(f"{share.number}-of-{share.total}", notes)
        noted = folder.rejected()
        left = [image for image in plan.images if _key(image) not in folder.keys and not _is_noted(image, noted)]
        if left:
            report = self.report(images, outcome)
            report.images_finished -= len(left)
            report.is_whole = False
            return report
        whole = self.sort_out(plan.of_share(None))
        rejected = {place: Rejected(image.file.name, noted[image.file.name][1]) for place, image in whole.new.items()}
        return self.join(self.report(whole, replace(outcome, rejected=rejected)))


def _key(image: PlannedImage) -> Key:
    return image.source.name, image.image_id


def _is_noted(image: PlannedImage, noted: Mapping[str, tuple[Stamp, str]]) -> bool:
    """Tell whether a job of an array has tried an image as it is now, and could make no row of it."""
    stamp, _ = noted.get(image.file.name, (None, ""))
    return stamp is not None and stamp == stamp_of(image.file)


def _taken(image: PlannedImage) -> Rejected:
    return Rejected(
        image.file.name,
        f"{image.file.name}: the folder holds a prediction of another file as {image.image_id!r} of "
        f"{image.source.name}; choose another --out, or start afresh with --overwrite",
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
