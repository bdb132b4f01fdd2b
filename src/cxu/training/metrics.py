"""How well a network predicts annotated images: errors in px of the 1024 frame, Dice, and what its spread is worth.

Definitions: squared errors are the mean over images, annotated nodes and both coordinates. A node's error is its
Euclidean distance, its sigma the mean of the two standard deviations. Predictions are means of stochastic decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, RIGHT_LUNG, Organ
from cxu.frame import MODEL_SIZE
from cxu.model.hybridgnet import HybridGNet
from cxu.model.sampling import image_seed, sample_landmarks
from cxu.raster import BoolArray, fill_polygon
from cxu.stats import pearson

Landmarks = npt.NDArray[np.float32]
_BATCH = 16
_LUNGS = (RIGHT_LUNG, LEFT_LUNG)


@dataclass(frozen=True)
class Scores:
    """What was measured on some images; NaN where nothing annotated says it.

    Attributes
    ----------
    images
        How many.
    mse_px2, error_px
        Mean squared difference of coordinates; mean distance of nodes.
    dice_lungs, dice_heart
        Mean Dice of both lungs as one mask, and of the heart, against the mask of the annotated landmarks.
    pearson
        Correlation of node sigma and node error over all nodes.
    sigma_px
        Median of the images' mean node sigmas.
    """

    images: int
    mse_px2: float
    error_px: float
    dice_lungs: float
    dice_heart: float
    pearson: float
    sigma_px: float


def evaluate(
    model: HybridGNet,
    images: Tensor,
    landmarks_xy: Landmarks,
    *,
    n_samples: int = 50,
    seed: int = 0,
) -> Scores:
    """Measure a network on images [n, 1, S, S] uint8 with landmarks [n, 120, 2] px, NaN where not annotated."""
    mean_xy, std_xy = predict(model, images, n_samples=n_samples, seed=seed)
    return score(mean_xy, std_xy.mean(axis=-1), landmarks_xy)


def predict(model: HybridGNet, images: Tensor, *, n_samples: int = 50, seed: int = 0) -> tuple[Landmarks, Landmarks]:
    """Return mean and standard deviation of landmarks, [n, 120, 2] each, px of the 1024 frame."""
    device, training = next(model.parameters()).device, model.training
    means, stds = [np.empty((0, N_NODES, 2), np.float32)], [np.empty((0, N_NODES, 2), np.float32)]
    model.eval()
    for batch in torch.split(images, _BATCH):
        seeds = [image_seed(seed, picture.numpy()) for picture in batch.cpu()]
        found = sample_landmarks(model, to_unit(batch.to(device)), seeds, n_samples=n_samples)
        means.append((found.mean * MODEL_SIZE).cpu().numpy())
        stds.append((found.std * MODEL_SIZE).cpu().numpy())
    model.train(training)
    return np.concatenate(means), np.concatenate(stds)


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in 0 … 1."""
    return images.float() / 255


def score(mean_xy: Landmarks, sigma_px: npt.NDArray[np.floating], landmarks_xy: Landmarks) -> Scores:
    """Compare predictions with annotated landmarks, [n, 120, 2] px each, NaN in the latter where not annotated."""
    difference = (mean_xy - landmarks_xy).astype(np.float64)
    known = np.isfinite(landmarks_xy).all(axis=-1)
    error = np.linalg.norm(difference, axis=-1)[known]
    pairs = list(zip(mean_xy, landmarks_xy, strict=True))
    return Scores(
        images=len(mean_xy),
        mse_px2=float(np.square(difference[known]).mean()) if known.any() else np.nan,
        error_px=float(error.mean()) if known.any() else np.nan,
        dice_lungs=_mean_known([dice(_LUNGS, *pair) for pair in pairs]),
        dice_heart=_mean_known([dice((HEART,), *pair) for pair in pairs]),
        pearson=pearson(sigma_px[known], error),
        sigma_px=float(np.median(sigma_px.mean(axis=1))) if len(sigma_px) else np.nan,
    )


def dice(organs: Sequence[Organ], found_xy: Landmarks, true_xy: Landmarks) -> float:
    """Return the Dice of two sets of landmarks [120, 2], the organs' masks drawn as one; NaN if not annotated."""
    if not all(np.isfinite(true_xy[organ.nodes]).all() for organ in organs):
        return float("nan")
    found, true = _mask(organs, found_xy), _mask(organs, true_xy)
    return 2 * float((found & true).sum()) / max(float(found.sum() + true.sum()), 1.0)


def _mask(organs: Sequence[Organ], landmarks_xy: Landmarks) -> BoolArray:
    # a network at its start places nodes anywhere; far outside is as good as outside
    inside = np.nan_to_num(landmarks_xy, nan=-MODEL_SIZE).clip(-MODEL_SIZE, 2 * MODEL_SIZE)
    drawn = [fill_polygon(inside[organ.nodes], (MODEL_SIZE, MODEL_SIZE)) for organ in organs]
    return np.logical_or.reduce([mask > 0 for mask in drawn])


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def score_datasets(
    mean_xy: Landmarks, sigma_px: npt.NDArray[np.floating], landmarks_xy: Landmarks, datasets: Sequence[str]
) -> dict[str, Scores]:
    """Return the scores of all images, as ``all``, and of each data set."""
    result = {"all": score(mean_xy, sigma_px, landmarks_xy)}
    for name in sorted(set(datasets)):
        of = np.array([dataset == name for dataset in datasets])
        result[name] = score(mean_xy[of], sigma_px[of], landmarks_xy[of])
    return result
