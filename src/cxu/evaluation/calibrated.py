"""Predictions with their radii beside annotated landmarks, for :mod:`cxu.evaluation.coverage`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cxu.criteria import node_radius
from cxu.errors import UsageError
from cxu.evaluation.coverage import Pairs
from cxu.evaluation.groups import groups_of, read_groups
from cxu.evaluation.match import match_ids
from cxu.evaluation.truth import LandmarkTruth, model_rows, open_truth

if TYPE_CHECKING:
    from cxu.store import Home, StoredTable


@dataclass(frozen=True)
class Compared:
    """Pairs, and what has no partner: predictions without truth, truths without prediction, rows left out."""

    pairs: Pairs
    lone_predictions: tuple[str, ...]
    lone_truths: tuple[str, ...]
    left_out: tuple[str, ...]
    model_ids: tuple[str, ...]


def compare(stored: StoredTable, home: Home, truth_name: str, *, by: str | None = None) -> Compared:
    """Pair the rows of a table with annotated landmarks.

    Parameters
    ----------
    stored
        Predictions.
    home, truth_name
        Where the truth lies: a table, or an ``.npz`` file.
    by
        ``FILE:COLUMN`` that says each image's data set; None takes the rows' source.

    Raises
    ------
    UsageError
        If the truth is a folder of masks: a radius is of a node.
    """
    truth = open_truth(home, truth_name)
    if not isinstance(truth, LandmarkTruth):
        raise UsageError(f"{truth_name} holds masks; expected landmarks, since a radius is that of a node")
    table_rows = stored.read()
    rows = model_rows(table_rows, stored.name)
    matches = match_ids(rows.image_id, truth.image_id, names=(stored.name, truth.name))
    found = rows.take(matches.predictions)
    groups = list(found.source)
    if by:
        groups = groups_of(found.image_id, read_groups(by), groups)
    pairs = Pairs(
        error_px=np.linalg.norm(found.landmarks_xy - truth.landmarks_xy[matches.truths], axis=-1),
        sigma_px=found.sigma_px,
        radius_px=_radii(table_rows, found.source, found.image_id),
        groups=groups,
        image_id=list(found.image_id),
    )
    models = tuple(sorted(set(found.model_id)))
    left_out = tuple(str(one) for one in (*rows.left_out, *truth.left_out))
    return Compared(pairs, matches.lone_predictions, matches.lone_truths, left_out, models)


def _radii(rows: pa.Table, sources: tuple[str, ...], image_ids: tuple[str, ...]) -> np.ndarray:
    """Return the radii of some rows [n, 120], px of the 1024 model frame."""
    radius = node_radius(rows, "model").astype(np.float64)
    keys = zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
    position = {key: index for index, key in enumerate(keys)}
    return radius[[position[key] for key in zip(sources, image_ids, strict=True)]]
