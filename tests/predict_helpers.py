"""Small random networks and made-up films."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image

from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.weights import save_weights
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_shapes


@functools.cache
def tiny_model(*, use_skip=True, size=64):
    """Return a network of random weights, spread enough that samples differ."""
    torch.manual_seed(7)
    model = HybridGNet(ModelConfig(size, use_skip=use_skip, map_sampling="fixed")).eval()
    with torch.no_grad():
        model.encoder.fc_logvar.bias.zero_()
    return model


def write_weights(path, **options):
    """Write the tiny network as safetensors and return the path."""
    save_weights(tiny_model(**options), path, {"note": "random"})
    return path


def film_pixels(seed=0, size=96, shape_hw=None):
    """Return a grey picture uint8 [H, W] that looks like a chest film."""
    rng = np.random.default_rng(seed)
    landmarks = sample_shapes(load_shape_model(), 1, rng)[0]
    square = synthetic_background(landmarks, size, rng)
    if shape_hw is None:
        return square
    return np.asarray(Image.fromarray(square).resize(shape_hw[::-1]))


def write_film(path, seed=0, **options):
    """Write a made-up film as PNG and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film_pixels(seed, **options)).save(path)
    return path
