"""Augmentation on the device, in batches: pure functions of images, points and a generator.

Images are float32 [B, 1, S, S] in 0 … 1; points float32 [B, N, 2] (x, y) in 0 … 1 with pixel = point · S and pixel
centres at integers, NaN where not annotated. Every image of a batch is changed in its own way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cxu.training.options import AugmentOptions

_SHADING_CELLS = 4


class Augmented(NamedTuple):
    """Changed images and points, shaped as they came, and which images were damaged badly: bool [B]."""

    images: Tensor
    points: Tensor
    corrupted: Tensor


def augment(images: Tensor, points: Tensor, generator: torch.Generator, options: AugmentOptions) -> Augmented:
    """Return the images and points changed as ``options`` say, greys within 0 … 1."""
    images, points = move(images, points, generator, options)
    images = change_greys(images, generator, options)
    images = blur(images, generator, options.blur)
    images = invert(images, generator, options.inversion)
    images = add_borders(images, generator, options.borders, options.border_width)
    images = add_squares(images, generator, options.square_size, chance=options.squares)
    images = add_noise(images, generator, options.noise)
    images, corrupted = corrupt(images, generator, options)
    return Augmented(images, points, corrupted)


def move(images: Tensor, points: Tensor, generator: torch.Generator, options: AugmentOptions) -> tuple[Tensor, Tensor]:
    """Rotate, scale, stretch and shift about the centre; points move exactly with their pixels."""
    count, _, side, _ = images.shape
    angle = math.radians(options.rotation) * _signed(count, images, generator)
    size = torch.exp(options.scale * _signed(count, images, generator))
    stretch = torch.exp(0.5 * options.aspect * _signed(count, images, generator))
    shift = 2 * options.shift * _signed(count, images, generator, 2)  # in units of half a side
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    matrix = turn * (size[:, None] * torch.stack([stretch, 1 / stretch], dim=1))[:, None, :]
    fill = _unit(count, images, generator) * _chosen(count, images, generator, options.fill)
    moved = _resample(images - fill.view(-1, 1, 1, 1), matrix, shift) + fill.view(-1, 1, 1, 1)
    # grid coordinates: −1 and 1 are the centres of the outer pixels
    reach = (side - 1) / 2
    centred = points * (side / reach) - 1
    return moved, ((centred @ matrix.transpose(1, 2) + shift[:, None]) + 1) * (reach / side)


def _resample(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Draw images so that what was at g is at matrix · g + shift, in grid coordinates; zero comes in from outside."""
    back = torch.linalg.inv(matrix)
    theta = torch.cat([back, -back @ shift[:, :, None]], dim=2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=True)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=True)


def change_greys(images: Tensor, generator: torch.Generator, options: AugmentOptions) -> Tensor:
    """Gamma, then contrast about the mean, brightness and a smooth field of shading; clipped."""
    count = len(images)
    gamma = torch.exp(options.gamma * _signed(count, images, generator)).view(-1, 1, 1, 1)
    contrast = torch.exp(options.contrast * _signed(count, images, generator)).view(-1, 1, 1, 1)
    offset = options.brightness * _signed(count, images, generator).view(-1, 1, 1, 1)
    greys = images.clamp(1e-6, 1).pow(gamma)
    mean = greys.mean(dim=(1, 2, 3), keepdim=True)
    greys = (greys - mean) * contrast + mean + offset
    if options.shading:
        cells = options.shading * _signed(count, images, generator, 1, _SHADING_CELLS, _SHADING_CELLS)
        greys = greys + functional.interpolate(cells, images.shape[-2:], mode="bilinear", align_corners=True)
    return greys.clamp(0, 1)


def blur(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Blur half of the images by Gaussians with standard deviations up to ``strength`` sides."""
    count, side = len(images), images.shape[-1]
    sigma = strength * side * _unit(count, images, generator) * _chosen(count, images, generator, 0.5)
    reach = math.ceil(2.5 * strength * side)
    if reach == 0:
        return images
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, None]
    # the images become channels, each with a kernel of its own
    planes = functional.pad(images.transpose(0, 1), (reach, reach, reach, reach), mode="replicate")
    planes = functional.conv2d(planes, kernel[:, :, None], groups=count)
    return functional.conv2d(planes, kernel[:, :, :, None], groups=count).transpose(0, 1)


def invert(images: Tensor, generator: torch.Generator, chance: float) -> Tensor:
    """Turn black to white in a share of the images."""
    chosen = _chosen(len(images), images, generator, chance).view(-1, 1, 1, 1)
    return chosen + (1 - 2 * chosen) * images


def add_borders(images: Tensor, generator: torch.Generator, chance: float, width: float) -> Tensor:
    """Blacken the four edges of a share of the images, each edge by its own width up to ``width`` sides."""
    count, side = len(images), images.shape[-1]
    widths = width * side * _unit(count, images, generator, 4) * _chosen(count, images, generator, chance)[:, None]
    left, top, right, bottom = widths.view(count, 4, 1, 1, 1).unbind(dim=1)
    x, y = _axes(images)
    inside = (x >= left) & (x < side - right) & (y >= top) & (y < side - bottom)
    return images * inside


def add_squares(
    images: Tensor,
    generator: torch.Generator,
    half_size: float,
    *,
    chance: float | Tensor = 1.0,
    black: float = 0.0,
) -> Tensor:
    """Put one square of one grey into a share of the images, its half side up to ``half_size`` sides.

    ``chance`` may be a number for each image [B]; ``black`` is the share of squares that are black.
    """
    count, side = len(images), images.shape[-1]
    chosen = _chosen(count, images, generator, chance) > 0
    half = half_size * side * (0.25 + 0.75 * _unit(count, images, generator))
    centre = side * _unit(count, images, generator, 2)
    grey = _unit(count, images, generator) * (1 - _chosen(count, images, generator, black))
    x, y = _axes(images)
    half, centre_x, centre_y = (part.view(-1, 1, 1, 1) for part in (half, centre[:, 0], centre[:, 1]))
    covered = ((x - centre_x).abs() <= half) & ((y - centre_y).abs() <= half) & chosen.view(-1, 1, 1, 1)
    return torch.where(covered, grey.view(-1, 1, 1, 1), images)


def add_noise(images: Tensor, generator: torch.Generator, strength: float | Tensor) -> Tensor:
    """Add Gaussian noise with a standard deviation up to ``strength`` (one, or one for each image [B]); clipped."""
    sigma = (strength * _unit(len(images), images, generator)).view(-1, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + sigma * noise).clamp(0, 1)


def corrupt(images: Tensor, generator: torch.Generator, options: AugmentOptions) -> tuple[Tensor, Tensor]:
    """Damage a share of the images badly: half of these by squares, half by noise, so that both are seen apart.

    Also return which images were chosen, bool [B].
    """
    count = len(images)
    if not options.corrupt:
        return images, torch.zeros(count, dtype=torch.bool, device=images.device)
    chosen = _chosen(count, images, generator, options.corrupt)
    by_squares = chosen * _chosen(count, images, generator, 0.5)
    for drawn in range(options.corrupt_squares):
        # the first square is certain, each further one is there in every second image
        chance = by_squares * (1.0 if drawn == 0 else 0.5)
        images = add_squares(images, generator, options.corrupt_size, chance=chance, black=0.5)
    return add_noise(images, generator, options.corrupt_noise * (chosen - by_squares)), chosen > 0


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixel coordinates x [1, S] and y [S, 1]."""
    steps = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    return steps[None, :], steps[:, None]


def _unit(count: int, images: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform in 0 … 1, [count, …], on the images' device."""
    return torch.rand(count, *shape, generator=generator, device=images.device, dtype=images.dtype)


def _signed(count: int, images: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform in −1 … 1."""
    return 2 * _unit(count, images, generator, *shape) - 1


def _chosen(count: int, images: Tensor, generator: torch.Generator, chance: float | Tensor) -> Tensor:
    """1 for images that are chosen with that chance, else 0, [count]."""
    return (_unit(count, images, generator) < chance).to(images.dtype)
