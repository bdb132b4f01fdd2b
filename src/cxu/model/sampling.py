"""Landmarks and their uncertainty from samples of the latent code: encode once, decode many.

Source: CheXmask-U (arXiv 2512.10715), section on uncertainty: N decodes of z ~ N(mu, sigma²); per node the mean and the
standard deviation (ddof 0) of each coordinate.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cxu.anatomy import N_NODES
from cxu.model.hybridgnet import Encoding, HybridGNet, Precision

DEFAULT_SAMPLES = 50
FEATURE_CELLS = 4  # a side
_TINY = 1e-20  # in place of a zero that would be divided by


@dataclass(frozen=True)
class Samples:
    """What was found for B images; coordinates are (x, y) in [0, 1] of the model frame.

    Attributes
    ----------
    mean, std
        [B, 120, 2] float32.
    mu, latent_sigma
        [B, Z] float32: mean and standard deviations of the latent code.
    features
        [B, C·4·4] float32: means of the encoder's last map over a grid of 4 by 4, for the gate.
    points
        [B, S, 120, 2] float32, where the samples were to be kept, else None.
    """

    mean: Tensor
    std: Tensor
    mu: Tensor
    latent_sigma: Tensor
    features: Tensor
    points: Tensor | None = None


def image_seed(seed: int, pixels: npt.NDArray[np.generic]) -> int:
    """Return the seed of one image: from the user's and the pixels, so that order and batch never matter.

    Examples
    --------
    >>> image_seed(0, np.zeros((2, 2), np.uint8)) == image_seed(0, np.zeros((2, 2), np.uint8))
    True
    """
    digest = hashlib.sha256(f"{seed} {pixels.dtype.str} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def coarse_features(encoding: Encoding) -> Tensor:
    """Return means of the encoder's last map over a grid of 4 by 4, [B, C·4·4]: what there is, and roughly where."""
    return functional.adaptive_avg_pool2d(encoding.conv6.float(), FEATURE_CELLS).flatten(1)


def draw_latents(encoding: Encoding, seeds: Sequence[int], n_samples: int) -> Tensor:
    """Return n_samples latent codes of each image, [B, S, Z].

    The noise is drawn on the CPU with a generator of its own for each image: the same on every device, in every batch.
    """
    eps = _noise(seeds, (n_samples, encoding.mu.shape[1])).to(encoding.mu.device)
    return encoding.mu[:, None] + torch.exp(0.5 * encoding.log_var)[:, None] * eps


def draw_errors(points: Tensor, spread: Tensor, factor: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return errors as a network expects them, to be added to the decodes, [B, S, 120, 2].

    Over the samples of an image every coordinate of them has a mean of exactly zero, exactly the standard deviation
    that was stated, and no correlation with the decodes. So the mean stays where it is, variances add up, and neither
    depends on chance. Errors of nodes go together as the factor says.

    Parameters
    ----------
    points
        Decodes [B, S, 120, 2], S of 3 or more; of two samples nothing is left to chance, and they are spread as stated.
    spread
        [B, 120, 2].
    factor
        [240, 240], L of the correlation L Lᵀ.
    seeds
        One for each image.
    """
    n_images, n_samples = points.shape[:2]
    # streams of their own: the latent codes are the same with a spread and without
    eps = _noise([seed ^ 1 for seed in seeds], (n_samples, 2 * N_NODES)).to(points.device)
    errors = (eps @ factor.T).view(n_images, n_samples, N_NODES, 2)
    errors = errors - errors.mean(dim=1, keepdim=True)
    if n_samples > 2:
        decodes = points - points.mean(dim=1, keepdim=True)
        share = (errors * decodes).sum(dim=1, keepdim=True) / decodes.square().sum(dim=1, keepdim=True).clamp_min(_TINY)
        errors = errors - share * decodes
        # of few samples little may be left: what was rounding would be scaled up with it
        errors = errors - errors.mean(dim=1, keepdim=True)
    scale = spread[:, None] / errors.std(dim=1, keepdim=True, correction=0).clamp_min(_TINY)
    return scale * errors


def _noise(seeds: Sequence[int], shape: tuple[int, int]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Keep CUDA from rounding float32 to TF32, which convolutions do unless told otherwise; then put all back."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    settings: list[tuple[Any, str, object]]
    if hasattr(convolutions, "conv"):  # since torch 2.9, where old and new names must not be mixed
        settings = [(convolutions.conv, "fp32_precision", "ieee"), (products, "fp32_precision", "ieee")]
    else:
        settings = [(convolutions, "allow_tf32", False), (products, "allow_tf32", False)]
    before = [getattr(backend, name) for backend, name, _ in settings]
    try:
        for backend, name, value in settings:
            setattr(backend, name, value)
        yield
    finally:
        for (backend, name, _), value in zip(settings, before, strict=True):
            setattr(backend, name, value)


def sample_landmarks(
    model: HybridGNet,
    images: Tensor,
    seeds: Sequence[int],
    *,
    n_samples: int = DEFAULT_SAMPLES,
    keep: bool = False,
    precision: Precision = "float32",
) -> Samples:
    """Predict landmarks with their standard deviations.

    Parameters
    ----------
    model
        In evaluation mode.
    images
        [B, 1, size, size] float32 in [0, 1], on the model's device.
    seeds
        One for each image, from :func:`image_seed`.
    n_samples
        Decodes of each image.
    keep
        Keep the samples themselves.
    precision
        Of the encoder's convolutions; all else is float32.
    """
    with torch.inference_mode(), full_float32():
        encoding = model.encode(images, precision)
        points = model.decode(encoding, draw_latents(encoding, seeds, n_samples)).points
        if model.config.spread and n_samples > 1:
            spread = model.decode(encoding, encoding.mu[:, None], spread=True).spread
            assert spread is not None
            points = points + draw_errors(points, spread[:, 0], model.spread.error_factor, seeds)
        return Samples(
            mean=points.mean(dim=1),
            std=points.std(dim=1, correction=0),
            mu=encoding.mu,
            latent_sigma=torch.exp(0.5 * encoding.log_var),
            features=coarse_features(encoding),
            points=points if keep else None,
        )
