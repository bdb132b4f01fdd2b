"""Which annotated landmarks belong to which image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxu.errors import UsageError
from cxu.evaluation.match import match_ids
from cxu.evaluation.truth import LandmarkTruth, Truth
from cxu.predict_plan import PlannedImage

FloatArray = npt.NDArray[np.float32]


def match_truth(images: Sequence[PlannedImage], truth: Truth) -> dict[PlannedImage, FloatArray]:
    """Return the landmarks float32 [120, 2], px of the 1024 model frame, of each image that has any, in order.

    Images and truth pair by id, as :func:`cxu.evaluation.match.match_ids` says. Landmarks that are NaN throughout are
    none.

    Raises
    ------
    UsageError
        If the truth is masks, or belongs to none of the images.
    DuplicateIdError
        If an id stands twice on one side.
    """
    if not isinstance(truth, LandmarkTruth):
        raise UsageError(f"--truth {truth.name} is masks: expected landmarks, an .npz or a table")
    ids = [image.image_id for image in images]
    matches = match_ids(ids, truth.image_id, names=("the images", f"--truth {truth.name}"))
    pairs = zip(matches.predictions, matches.truths, strict=True)
    found = {images[image]: truth.landmarks_xy[row].astype(np.float32) for image, row in sorted(pairs)}
    known = {image: points for image, points in found.items() if np.isfinite(points).all(axis=1).any()}
    if not known:
        raise UsageError(f"--truth {truth.name} has no annotated node of any of the images")
    return known
