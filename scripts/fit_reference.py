"""Fit what ships beside the bundled weights: the calibration of sigma, and the gate with its limits.

    python scripts/fit_reference.py /data/train

The spaces of the gate and its orientations come from films that the network was trained on; limits and calibration from
the validation part. No film of a test part is opened. Each network takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cxu import calibration, files
from cxu.frame import MODEL_SIZE
from cxu.model.hybridgnet import HybridGNet
from cxu.model.reference import reference_path, save_reference
from cxu.model.sampling import coarse_features, image_seed, sample_landmarks
from cxu.model.sides import load_sides, sides_path
from cxu.model.weights import bundled_path, bundled_variants, load_weights
from cxu.quality import ORIENTATIONS, REASONS, Evidence, Gate, contour_contrast, fit_space
from cxu.training.augment import augment
from cxu.training.data import TrainingFolder, load_images, read_folder
from cxu.training.options import AugmentOptions

BATCH: Final = 16
# How a film may differ from those of training and still be a good one.
GENTLE: Final = AugmentOptions(corrupt=0, squares=0, inversion=0, fill=0, borders=0.2, scale=0.15, shift=0.06)
COPIES: Final = 3  # of each validation film, changed so, beside itself
DIRECTIONS: Final = {"latents": 48, "appearance": 64, "shapes": 24}
REGULARISATION: Final = 0.001
# Share of good films that a single signal may send to review: more for the two that see a chest in the mirror, which is
# as good a chest to all others. And how many times further from the median rejection begins.
REVIEW_SHARE: Final = dict.fromkeys(REASONS, 0.01) | {"orientation": 0.02, "sides": 0.02}
REJECT_REACH: Final = dict.fromkeys(REASONS, 1.8) | {"orientation": 2.5}
REJECT_AT: Final = {"sides": 0.0}  # log odds: a film is rejected where it is likelier mirrored than not


def main() -> None:
    """Fit each bundled network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--variant", choices=bundled_variants(), action="append")
    given = parser.parse_args()
    folder = read_folder(given.data)
    for variant in given.variant or bundled_variants():
        path = bundled_path(variant)
        weights = load_weights(path)
        gate = fit_gate(weights.model, folder)
        fitted, crossed = fit_calibration(weights.model, folder.part("val"))
        out = reference_path(path)
        facts = {
            "training_films": len(folder.part("train").rows),
            "cross_fitted_coverage": crossed,
            "sides_sha256": files.sha256_of(sides_path()),
        }
        save_reference(out, weights.model_id, fitted, gate, facts)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
        print(fitted)
        print(f"within radii that were fitted without their film: {crossed}")
        for name, limits in gate.limits.items():
            print(f"  {name:16} {limits[0]:8.2f} {limits[1]:8.2f} {limits[2]:8.2f}")


def pictures(part: TrainingFolder, model: HybridGNet) -> Tensor:
    """Return the films of a part as the network takes them, [n, 1, S, S] in 0 … 1."""
    return load_images(part.root, [row.name for row in part.rows], model.config.size).float() / 255


def fit_gate(model: HybridGNet, folder: TrainingFolder) -> Gate:
    """Return the gate of a network."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to import

    training, validation = folder.part("train"), folder.part("val")
    films = pictures(training, model)
    generator = torch.Generator().manual_seed(0)
    points = torch.from_numpy(training.landmarks_xy / MODEL_SIZE)
    changed = augment(films, points, generator, GENTLE).images
    upright = look(model, torch.cat([films, changed]))
    turned, classes = [upright.features], [np.zeros(len(upright.features), np.int64)]
    for index in range(1, len(ORIENTATIONS)):
        # mirrored ones are the hardest to tell, here too
        shown = torch.cat([films, changed]) if ORIENTATIONS[index] == "mirrored" else changed
        turned.append(features_of(model, orient(shown, index)))
        classes.append(np.full(len(shown), index))
    features = np.concatenate(turned)
    mean, sd = features.mean(axis=0), features.std(axis=0) + 1e-3
    told = LogisticRegression(C=REGULARISATION, max_iter=300).fit((features - mean) / sd, np.concatenate(classes))
    gate = Gate(
        latents=fit_space(upright.mu, DIRECTIONS["latents"]),
        appearance=fit_space(upright.features, DIRECTIONS["appearance"]),
        shapes=fit_space(place(upright), DIRECTIONS["shapes"]),
        orientation_weights=told.coef_,
        orientation_offsets=told.intercept_,
        feature_mean=mean,
        feature_sd=sd,
        limits={},
    )
    good = pictures(validation, model)
    points = torch.from_numpy(validation.landmarks_xy / MODEL_SIZE)
    copies = [augment(good, points, generator, GENTLE).images for _ in range(COPIES)]
    limits = find_limits(gate.signals(look(model, torch.cat([good, *copies]))))
    return Gate(**{**gate.__dict__, "limits": limits})


def place(evidence: Evidence) -> np.ndarray:
    """Return landmarks brought to one place and size."""
    from cxu.quality import place_shapes  # noqa: PLC0415 - beside its only use

    return place_shapes(evidence.mean_xy)


def find_limits(signals: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Return median, review and reject of each signal, from its values on good films that were not trained on."""
    limits = {}
    for name, values in signals.items():
        median, review = np.quantile(values, [0.5, 1 - REVIEW_SHARE[name]])
        reject = REJECT_AT.get(name, review + REJECT_REACH[name] * (review - median))
        limits[name] = (float(median), float(review), float(reject))
    return limits


def orient(images: Tensor, index: int) -> Tensor:
    """Return images in one of the eight orientations."""
    if index >= 4:
        images = images.flip(-1)
    return torch.rot90(images, index % 4, dims=(-2, -1))


def features_of(model: HybridGNet, images: Tensor) -> np.ndarray:
    """Return what the gate sees of the encoder's last map, [n, F]."""
    with torch.inference_mode():
        return np.concatenate(
            [coarse_features(model.encode(batch, "float32")).numpy() for batch in torch.split(images, BATCH)]
        )


def look(model: HybridGNet, images: Tensor) -> Evidence:
    """Return what the gate looks at in images [n, 1, S, S]."""
    parts = []
    for batch in torch.split(images, BATCH):
        found = sample_landmarks(model, batch, [image_seed(0, picture.numpy()) for picture in batch])
        mean = found.mean.numpy()
        contrast = [contour_contrast(picture[0].numpy(), xy) for picture, xy in zip(batch, mean, strict=True)]
        sigma = found.std.mean(dim=-1).numpy() * MODEL_SIZE
        numbers = (found.mu.numpy(), found.latent_sigma.numpy(), found.features.numpy())
        with torch.inference_mode():
            odds = load_sides()(batch).numpy()
        parts.append(Evidence(mean, sigma, *numbers, np.array(contrast), odds))
    return Evidence(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def fit_calibration(model: HybridGNet, part: TrainingFolder) -> tuple[calibration.Calibration, dict[str, float]]:
    """Return scale and radius from the films of a part, and how often radii hold that were fitted without the film."""
    means, sigmas = zip(*predict(model, pictures(part, model)), strict=True)
    difference, sigma = np.concatenate(means) - part.landmarks_xy, np.concatenate(sigmas)
    data = ", ".join(f"{count} {name}" for name, count in count_datasets(part).items())
    fitted = calibration.fit(difference, sigma, data=f"validation: {data}")
    return fitted, calibration.cross_fitted_coverage(difference, sigma)


def predict(model: HybridGNet, images: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield means and standard deviations, px of the 1024 frame, batch by batch."""
    for batch in torch.split(images, BATCH):
        found = sample_landmarks(model, batch, [image_seed(0, picture.numpy()) for picture in batch])
        yield found.mean.numpy() * MODEL_SIZE, found.std.numpy() * MODEL_SIZE


def count_datasets(part: TrainingFolder) -> dict[str, int]:
    """Return how many films each data set has."""
    names = [row.dataset for row in part.rows]
    return {name: names.count(name) for name in sorted(set(names))}


if __name__ == "__main__":
    main()
