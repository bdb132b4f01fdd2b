"""Error of nodes against their uncertainty, for one annotator or several, and how far annotators are from each other.

This is figure 4 of the CheXmask-U paper (Cosarinsky et al., MIDL 2026, arXiv 2512.10715). Everything is in px of the
1024 model frame; a node's error is the Euclidean distance, its uncertainty (sigma_x + sigma_y) / 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import N_NODES, ORGAN_GROUPS, ORGANS
from cxu.errors import UsageError
from cxu.evaluation.match import Matches, match_ids
from cxu.evaluation.relation import Relation, relate
from cxu.evaluation.truth import LandmarkTruth, ModelRows
from cxu.evaluation.truth_masks import LeftOut
from cxu.stats import N_BOOT

FloatArray = npt.NDArray[np.float64]

ALL: Final = "all"
MEAN: Final = "mean of annotators"
# The mean distance of points whose x and y have standard deviation 1: of a calibrated isotropic Gaussian.
GAUSSIAN_SLOPE: Final = math.sqrt(math.pi / 2)
# Published for two annotators of 255 images, over all nodes.
PUBLISHED_PEARSON: Final = (0.58, 0.59)
_NODES_OF: Final = {
    ALL: np.arange(N_NODES),
    **{
        group: np.concatenate([np.arange(organ.first, organ.stop) for organ in ORGANS if organ.name in members])
        for group, members in ORGAN_GROUPS.items()
    },
}
GROUPS: Final = tuple(_NODES_OF)


@dataclass(frozen=True, eq=False)
class ErrorReport:
    """Predictions beside what each annotator says of the same images.

    Attributes
    ----------
    predictions
        Rows [n] that at least one annotator has.
    annotators
        Names [A].
    error_px
        float64 [A, n, 120] distance of each node to that of an annotator; NaN where not annotated.
    mean_error_px
        float64 [n, 120] distance to the mean of the annotators, where at least two of them annotated; else NaN.
    between_px
        float64 [n, 120] distance between two annotators there, the mean over all pairs.
    matches
        Name → which ids had no partner.
    lone_predictions
        Ids that no annotator has.
    left_out
        Rows that could not be compared, and why.
    """

    predictions: ModelRows
    annotators: tuple[str, ...]
    error_px: FloatArray
    mean_error_px: FloatArray
    between_px: FloatArray
    matches: Mapping[str, Matches]
    lone_predictions: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class ErrorSummary:
    """Relations of error and uncertainty.

    Attributes
    ----------
    annotators
        Name → group → relation of error and uncertainty.
    mean_annotator
        Group → the same for the mean of the annotators; None where no node has two.
    between
        Group → relation of the distance between annotators and uncertainty, at these same nodes; None likewise.
    """

    annotators: Mapping[str, Mapping[str, Relation]]
    mean_annotator: Mapping[str, Relation] | None
    between: Mapping[str, Relation] | None


def evaluate_error(predictions: ModelRows, truths: Sequence[LandmarkTruth], *, mix_models: bool = False) -> ErrorReport:
    """Put predictions beside one or several truths.

    Parameters
    ----------
    predictions
        Rows in the model frame. Those without uncertainty are left out and listed.
    truths
        One for each annotator.
    mix_models
        Go on where rows are of different models, whose uncertainties do not compare.

    Raises
    ------
    UsageError
        If models are mixed, a truth is given twice, no row has an uncertainty, or a truth has no image in common with
        the predictions.
    DuplicateIdError
        If an id stands twice on one side.
    """
    names = annotator_names([truth.name for truth in truths])
    rows, left_out = _with_sigma(predictions)
    check_models(rows, mix_models=mix_models)
    matches = {
        name: match_ids(rows.image_id, truth.image_id, names=(rows.name, truth.name))
        for name, truth in zip(names, truths, strict=True)
    }
    true_xy = np.full((len(names), len(rows), N_NODES, 2), np.nan)
    for of_annotator, pairs, truth in zip(true_xy, matches.values(), truths, strict=True):
        of_annotator[pairs.predictions] = truth.landmarks_xy[pairs.truths]
    kept = np.unique(np.concatenate([pairs.predictions for pairs in matches.values()]))
    lone = set.intersection(*(set(pairs.lone_predictions) for pairs in matches.values()))
    rows, true_xy = rows.take(kept), true_xy[:, kept]
    return ErrorReport(
        rows,
        names,
        node_distance(rows.landmarks_xy, true_xy),
        node_distance(rows.landmarks_xy, mean_annotation(true_xy)),
        between_annotators(true_xy),
        matches,
        tuple(sorted(lone)),
        (*predictions.left_out, *left_out, *(one for truth in truths for one in truth.left_out)),
    )


def annotator_names(truths: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each truth: the last part of its path without suffix, where these differ.

    Raises
    ------
    UsageError
        If one is given twice.

    Examples
    --------
    >>> annotator_names(["data/first.npz", "data/second.npz"])
    ('first', 'second')
    """
    repeated = [name for name in truths if truths.count(name) > 1]
    if repeated:
        raise UsageError(f"the truth {repeated[0]} is given twice; expected one for each annotator")
    short = [Path(name).stem if Path(name).suffix in (".npz", ".parquet") else Path(name).name for name in truths]
    return tuple(short if len({*short, MEAN}) > len(short) else truths)


def _with_sigma(rows: ModelRows) -> tuple[ModelRows, list[LeftOut]]:
    known = np.isfinite(rows.sigma_px).any(axis=1)
    if not known.any():
        raise UsageError(f"no row of {rows.name} has standard deviations; expected those of cxu predict or CheXmask-U")
    left_out = [LeftOut(rows.image_id[index], "without standard deviations") for index in np.flatnonzero(~known)]
    return rows.take(np.flatnonzero(known)), left_out


def check_models(rows: ModelRows, *, mix_models: bool) -> None:
    """Check that all rows are of one model.

    Raises
    ------
    UsageError
        If they are not, unless ``mix_models``.
    """
    models = sorted(set(rows.model_id))
    if len(models) > 1 and not mix_models:
        raise UsageError(
            f"{rows.name} has rows of {len(models)} models ({', '.join(models)}), and standard deviations of different "
            "models do not compare: name a table of one, or say --mix-models"
        )


def node_distance(found_xy: FloatArray, true_xy: FloatArray) -> FloatArray:
    """Return the Euclidean distance of points [..., 2]; NaN where one is."""
    distance: FloatArray = np.linalg.norm(found_xy - true_xy, axis=-1)
    return distance


def mean_annotation(true_xy: FloatArray) -> FloatArray:
    """Return the mean [n, 120, 2] of annotations [A, n, 120, 2], where at least two annotated a node; else NaN."""
    known = np.isfinite(true_xy).all(axis=-1, keepdims=True)
    count = known.sum(axis=0)
    total = np.where(known, true_xy, 0.0).sum(axis=0)
    return np.where(count >= 2, total / np.maximum(count, 1), np.nan)


def between_annotators(true_xy: FloatArray) -> FloatArray:
    """Return the mean distance [n, 120] over all pairs of annotations [A, n, 120, 2] of a node; NaN without a pair.

    Examples
    --------
    >>> between_annotators(np.array([[[[0.0, 0.0]]], [[[3.0, 4.0]]]]))
    array([[5.]])
    """
    total, pairs = np.zeros(true_xy.shape[1:3]), np.zeros(true_xy.shape[1:3], np.int64)
    for first, second in itertools.combinations(true_xy, 2):
        distance = node_distance(first, second)
        total += np.nan_to_num(distance)
        pairs += np.isfinite(distance)
    return np.where(pairs > 0, total / np.maximum(pairs, 1), np.nan)


def summarise_error(report: ErrorReport, *, n_boot: int = N_BOOT, seed: int = 0) -> ErrorSummary:
    """Return the relations of error and uncertainty, overall and by organ, with bootstrap intervals over images."""

    def relations(value_px: FloatArray) -> dict[str, Relation]:
        sigma_px = report.predictions.sigma_px
        return {
            group: relate(sigma_px[:, nodes], value_px[:, nodes], n_boot=n_boot, seed=seed)
            for group, nodes in _NODES_OF.items()
        }

    several = bool(np.isfinite(report.between_px).any())
    return ErrorSummary(
        {name: relations(error_px) for name, error_px in zip(report.annotators, report.error_px, strict=True)},
        relations(report.mean_error_px) if several else None,
        relations(report.between_px) if several else None,
    )


def error_rows(report: ErrorReport) -> pa.Table:
    """Return a row for each annotated node of each annotator and, where there are two, of their mean.

    Columns: annotator, source, image_id, model_id, node, organ, sigma_px, error_px, and, for the mean,
    between_annotators_px.
    """
    parts = [
        _rows_of(report, name, error_px) for name, error_px in zip(report.annotators, report.error_px, strict=True)
    ]
    if np.isfinite(report.between_px).any():
        parts.append(_rows_of(report, MEAN, report.mean_error_px, report.between_px))
    return pa.concat_tables(parts)


_ORGAN_OF_NODE: Final = np.repeat([organ.name for organ in ORGANS], [organ.n_nodes for organ in ORGANS])


def _rows_of(report: ErrorReport, name: str, error_px: FloatArray, between_px: FloatArray | None = None) -> pa.Table:
    rows, (image, node) = report.predictions, np.nonzero(np.isfinite(error_px))
    columns: dict[str, Any] = {"annotator": pa.repeat(pa.scalar(name), len(image))}
    for key in ("source", "image_id", "model_id"):
        columns[key] = pa.array(getattr(rows, key), pa.string()).take(pa.array(image))
    columns["node"] = pa.array(node, pa.int32())
    columns["organ"] = pa.array(_ORGAN_OF_NODE[node].tolist(), pa.string())
    columns["sigma_px"] = pa.array(rows.sigma_px[image, node], pa.float64(), from_pandas=True)
    columns["error_px"] = pa.array(error_px[image, node], pa.float64())
    between = None if between_px is None else pa.array(between_px[image, node], pa.float64(), from_pandas=True)
    columns["between_annotators_px"] = pa.nulls(len(image), pa.float64()) if between is None else between
    return pa.table(columns)
