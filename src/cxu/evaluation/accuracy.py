"""How far landmarks are from the truth: squared errors and distances of nodes, overlap and boundaries of masks.

Everything is in px of the 1024 model frame. With landmarks as the truth, both sides are drawn as masks there, each
organ for itself. With mask images as the truth, the prediction is drawn into the pixels of the mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import HEART, ORGAN_GROUPS, ORGAN_NAMES, ORGANS, OrganName
from cxu.engine import run_shards
from cxu.errors import ImageError
from cxu.evaluation.match import Matches, match_ids
from cxu.evaluation.surface import NO_DISTANCES, SurfaceDistances, check_scipy, dice, surface_distances
from cxu.evaluation.truth import FloatArray, LandmarkTruth, ModelRows, Truth
from cxu.evaluation.truth_masks import (
    BoolArray,
    ImagePlace,
    LeftOut,
    MaskKind,
    OrganPlanes,
    mask_placement,
    read_planes,
)
from cxu.frame import MODEL_SIZE
from cxu.raster import fill_polygon, paint_polygon
from cxu.stats import N_BOOT, Interval, bootstrap

# compared: both sides have pixels. missing: not annotated. The others say which side has none.
State = Literal["compared", "missing", "empty_truth", "empty_prediction", "both_empty"]

ALL: Final = "all"
GROUPS: Final[tuple[str, ...]] = (*ORGAN_GROUPS, ALL)
LANDMARK_MEASURES: Final = ("mse_px2", "distance_px")
MASK_MEASURES: Final = ("dice", "hausdorff_px", "hd95_px", "assd_px")
MEASURES: Final = (*LANDMARK_MEASURES, *MASK_MEASURES)
_BLOCK: Final = 16
_FARTHEST_PX: Final = 1e6  # what is farther is no position, and could not be drawn


@dataclass(frozen=True)
class OrganResult:
    """What one image says of one organ or group; NaN where it says nothing.

    Attributes
    ----------
    state
        Whether there are two masks to compare.
    nodes
        Annotated nodes.
    mse_px2, distance_px
        Mean squared difference of the coordinates of these, and their mean distance.
    dice, hausdorff_px, hd95_px, assd_px
        Of the masks; see :mod:`cxu.evaluation.surface`.
    """

    state: State
    nodes: int = 0
    mse_px2: float = float("nan")
    distance_px: float = float("nan")
    dice: float = float("nan")
    hausdorff_px: float = float("nan")
    hd95_px: float = float("nan")
    assd_px: float = float("nan")


ImageResult = Mapping[str, OrganResult]


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """What was measured.

    Attributes
    ----------
    predictions
        The rows that were compared.
    results
        Of each of these, group → what was found.
    truth_kind
        ``landmarks``, ``labels`` or ``organs``.
    matches
        Which ids had no partner.
    left_out
        Rows and images that could not be compared, and why.
    """

    predictions: ModelRows
    results: tuple[ImageResult, ...]
    truth_kind: Literal["landmarks", "labels", "organs"]
    matches: Matches
    left_out: tuple[LeftOut, ...]

    def values(self, group: str, measure: str) -> FloatArray:
        """Return a measure of a group for each image, float64 [n]."""
        return np.array([getattr(one[group], measure) for one in self.results], np.float64)


@dataclass(frozen=True)
class Measured:
    """A mean over images, its interval, and how many images have a value."""

    interval: Interval
    images: int


@dataclass(frozen=True)
class OrganSummary:
    """What all images say of one organ or group: how many are in which state, measure → its mean."""

    states: Mapping[str, int]
    nodes: int
    measures: Mapping[str, Measured]


def evaluate_accuracy(
    predictions: ModelRows, truth: Truth, *, workers: int = 1, progress: Callable[[int], None] = lambda _: None
) -> AccuracyReport:
    """Compare predictions with a truth, image by image.

    Parameters
    ----------
    predictions
        Rows in the model frame.
    truth
        Landmarks or masks.
    workers
        Processes to use.
    progress
        Is told how many more images are done.

    Raises
    ------
    UsageError
        If no image is in both.
    DuplicateIdError
        If an id stands twice on one side.
    MissingExtraError
        If scipy is not installed.
    """
    check_scipy()
    matches = match_ids(predictions.image_id, truth.image_id, names=(predictions.name, truth.name))
    tasks = _tasks(predictions, truth, matches)
    outcomes: list[ImageResult | str] = []
    for done in run_shards(_compare_block, tasks, workers=workers):
        outcomes += done
        progress(len(done))
    compared = [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    failed = [
        LeftOut(predictions.image_id[row], outcome)
        for row, outcome in zip(matches.predictions, outcomes, strict=True)
        if isinstance(outcome, str)
    ]
    return AccuracyReport(
        predictions.take(matches.predictions[compared]),
        tuple(outcome for outcome in outcomes if not isinstance(outcome, str)),
        "landmarks" if isinstance(truth, LandmarkTruth) else truth.kind,
        matches,
        (*predictions.left_out, *truth.left_out, *failed),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """Some images; with landmarks as the truth ``true_xy``, else ``paths`` and ``kind``."""

    found_xy: FloatArray
    images: tuple[ImagePlace | None, ...]
    true_xy: FloatArray | None = None
    paths: tuple[Mapping[OrganName, Path], ...] = ()
    kind: MaskKind = "labels"


def _tasks(predictions: ModelRows, truth: Truth, matches: Matches) -> list[_Task]:
    tasks = []
    for start in range(0, len(matches.predictions), _BLOCK):
        rows, true = matches.predictions[start : start + _BLOCK], matches.truths[start : start + _BLOCK]
        found_xy, images = predictions.landmarks_xy[rows], tuple(predictions.images[row] for row in rows)
        if isinstance(truth, LandmarkTruth):
            tasks.append(_Task(found_xy, images, truth.landmarks_xy[true]))
        else:
            tasks.append(_Task(found_xy, images, paths=tuple(truth.paths[row] for row in true), kind=truth.kind))
    return tasks


def _compare_block(task: _Task) -> list[ImageResult | str]:
    """Return what is found of each image, or why it cannot be compared."""
    outcomes: list[ImageResult | str] = []
    for index, found_xy in enumerate(task.found_xy):
        if not _is_drawable(found_xy).all():
            outcomes.append("predicted landmarks that are no positions")
        elif task.true_xy is not None:
            outcomes.append(compare_landmarks(found_xy, task.true_xy[index]))
        else:
            try:
                planes = read_planes(task.paths[index], task.kind)
                outcomes.append(compare_with_masks(found_xy, planes, task.kind, task.images[index]))
            except ImageError as error:
                outcomes.append(str(error))
    return outcomes


def _is_drawable(landmarks_xy: FloatArray) -> BoolArray:
    """Tell which nodes [n] of landmarks [n, 2] have a position."""
    return np.asarray((np.abs(landmarks_xy) < _FARTHEST_PX).all(axis=-1))


def compare_landmarks(found_xy: FloatArray, true_xy: FloatArray) -> dict[str, OrganResult]:
    """Compare landmarks [120, 2] with annotated ones, NaN where a node is not, px of the 1024 model frame.

    Masks are compared of the organs all of whose nodes are annotated. Returns group → result.
    """
    known = _is_drawable(true_xy)
    whole = [organ for organ in ORGANS if known[organ.nodes].all()]
    shape_hw = (MODEL_SIZE, MODEL_SIZE)
    found, true = (
        {organ.name: fill_polygon(points[organ.nodes], shape_hw) > 0 for organ in whole}
        for points in (found_xy, true_xy)
    )
    nothing = np.zeros(shape_hw, np.bool_)
    of_masks = _compare_planes(found, OrganPlanes(shape_hw, true, dict.fromkeys(true, nothing)), 1.0)
    results = {}
    for name, members in (*ORGAN_GROUPS.items(), (ALL, ORGAN_NAMES)):
        counted = known & np.isin(_ORGAN_OF_NODE, members)
        difference = found_xy[counted] - true_xy[counted]
        numbers = (
            (float(np.square(difference).mean()), float(np.linalg.norm(difference, axis=-1).mean()))
            if len(difference)
            else (float("nan"), float("nan"))
        )
        results[name] = OrganResult(of_masks[name][0], len(difference), *numbers, *of_masks[name][1])
    return results


_ORGAN_OF_NODE: Final = np.repeat([organ.name for organ in ORGANS], [organ.n_nodes for organ in ORGANS])


def compare_with_masks(
    found_xy: FloatArray, true: OrganPlanes, kind: MaskKind, image: ImagePlace | None
) -> dict[str, OrganResult]:
    """Compare landmarks [120, 2], px of the 1024 model frame, with the masks of an image.

    The prediction is drawn in the pixels of the mask. For a label image it is painted as that is, lungs first and then
    the heart, which covers a part of them: provided that the truth has a heart. Returns group → result, without numbers
    of nodes.

    Raises
    ------
    ImageError
        If the size of the mask fits neither the image nor the model frame.
    """
    scale, offset_xy = mask_placement(true.shape_hw, image)
    points = found_xy * scale + np.asarray(offset_xy)
    draw = _painted if kind == "labels" else _filled
    of_masks = _compare_planes(draw(points, true), true, 1 / scale)
    return {name: OrganResult(state, 0, float("nan"), float("nan"), *of) for name, (state, of) in of_masks.items()}


def _filled(points_xy: FloatArray, true: OrganPlanes) -> dict[OrganName, BoolArray]:
    return {
        organ.name: fill_polygon(points_xy[organ.nodes], true.shape_hw) > 0
        for organ in ORGANS
        if organ.name in true.planes
    }


def _painted(points_xy: FloatArray, true: OrganPlanes) -> dict[OrganName, BoolArray]:
    labels = np.zeros(true.shape_hw, np.uint8)
    for organ in ORGANS:
        if organ is not HEART or organ.name in true.planes:
            paint_polygon(labels, points_xy[organ.nodes], organ.label)
    return {organ.name: labels == organ.label for organ in ORGANS}


def _compare_planes(
    found: Mapping[OrganName, BoolArray], true: OrganPlanes, px_scale: float
) -> dict[str, tuple[State, tuple[float, float, float, float]]]:
    """Return group → state and Dice, Hausdorff, 95 % Hausdorff and average distance, in mask px times ``px_scale``.

    ``all`` is the mean over the three organs, where all three have a value.
    """
    results: dict[str, tuple[State, tuple[float, float, float, float]]] = {}
    for name, members in ORGAN_GROUPS.items():
        if all(organ in true.planes for organ in members):
            planes = [
                np.logical_or.reduce([of[organ] for organ in members]) for of in (found, true.planes, true.ignored)
            ]
            state, overlap, distances = compare_planes(*planes)
            results[name] = (state, (overlap, *(px_scale * value for value in distances)))  # type: ignore[assignment]
        else:
            results[name] = ("missing", (float("nan"), *NO_DISTANCES))
    of_organs = [results[name] for name in ORGAN_NAMES]
    states = {state for state, _ in of_organs}
    means = np.mean([values for _, values in of_organs], axis=0).tolist()
    results[ALL] = (_worst(states), tuple(means))
    return results


def _worst(states: set[State]) -> State:
    order: tuple[State, ...] = ("missing", "empty_truth", "empty_prediction", "both_empty", "compared")
    return next(state for state in order if state in states)


def compare_planes(found: BoolArray, true: BoolArray, ignored: BoolArray) -> tuple[State, float, SurfaceDistances]:
    """Return state, Dice and boundary distances (mask px) of two masks [H, W], ignored pixels left out on both sides.

    Empty against empty has Dice 1, empty against any other Dice 0; neither has distances.
    """
    known = ~ignored
    found, true = found & known, true & known
    is_there = bool(found.any()), bool(true.any())
    states: dict[tuple[bool, bool], State] = {
        (True, True): "compared",
        (True, False): "empty_truth",
        (False, True): "empty_prediction",
        (False, False): "both_empty",
    }
    distances = surface_distances(found, true, ignored) if all(is_there) else NO_DISTANCES
    return states[is_there], dice(found, true), distances


def summarise_accuracy(report: AccuracyReport, *, n_boot: int = N_BOOT, seed: int = 0) -> dict[str, OrganSummary]:
    """Return for each group the means over images, with bootstrap intervals, and how many are in which state.

    Squared errors and distances of nodes count each annotated node alike, so an image counts by how many it has. All
    else counts each image alike. A missing organ counts nowhere; an empty one counts for Dice alone.
    """
    return {group: _summary_of(report, group, n_boot, seed) for group in GROUPS}


def _summary_of(report: AccuracyReport, group: str, n_boot: int, seed: int) -> OrganSummary:
    nodes = report.values(group, "nodes")
    names = MEASURES if report.truth_kind == "landmarks" else MASK_MEASURES
    measures = {}
    for name in names:
        values = report.values(group, name)
        known = np.isfinite(values)
        weights = nodes if name in LANDMARK_MEASURES else np.ones(len(values))
        measures[name] = Measured(_mean(values[known], weights[known], n_boot, seed), int(known.sum()))
    states = Counter(one[group].state for one in report.results)
    return OrganSummary(dict(sorted(states.items())), int(nodes.sum()), measures)


def _mean(values: FloatArray, weights: FloatArray, n_boot: int, seed: int) -> Interval:
    def measure(of: npt.NDArray[np.int64]) -> float:
        return float(values[of] @ weights[of] / weights[of].sum())

    return bootstrap(measure, len(values), n_boot=n_boot, seed=seed)


def images_in_state(report: AccuracyReport, organ: str, state: State) -> list[str]:
    """Return the ids of the images in which an organ is in some state."""
    ids = report.predictions.image_id
    return [image_id for image_id, one in zip(ids, report.results, strict=True) if one[organ].state == state]


def accuracy_rows(report: AccuracyReport) -> pa.Table:
    """Return a row for each image and group: source, image_id, model_id, organ, state, nodes and the measures."""
    predictions, n_groups = report.predictions, len(GROUPS)
    columns: dict[str, Any] = {
        name: pa.array(_repeated(getattr(predictions, name), n_groups), pa.string())
        for name in ("source", "image_id", "model_id")
    }
    found = [one[group] for one in report.results for group in GROUPS]
    columns["organ"] = pa.array([*GROUPS] * len(report.results), pa.string())
    columns["state"] = pa.array([one.state for one in found], pa.string())
    columns["nodes"] = pa.array([one.nodes for one in found], pa.int32())
    for name in MEASURES:
        values = np.array([getattr(one, name) for one in found], np.float64)
        columns[name] = pa.array(values, pa.float64(), from_pandas=True)
    return pa.table(columns)


def _repeated(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]
