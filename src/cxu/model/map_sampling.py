"""A feature map around positions: what the image-to-graph skip connections see of it.

Source: image-to-graph skip connections (Gaggion et al., TMI 2022, arXiv 2203.10977), which sample by RoI-Align.
Letters in shapes: B images, C channels, H side of a map, P points, T taps along an axis.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

MapSampling = Literal["fixed", "adaptive"]


def sample_maps(maps: Tensor, points: Tensor, map_sampling: MapSampling = "fixed") -> Tensor:
    """Sample feature maps around positions: the mean of bilinear samples on a 3 px wide square.

    Parameters
    ----------
    maps
        [B, C, H, H].
    points
        [B, P, 2] (x, y) in [0, 1]; p · H in index coordinates, pixel centres at integers. A sample in [−1, 0] counts as
        at 0, in [H − 1, H] as at H − 1, beyond as zero.
    map_sampling
        ``fixed``: samples at −1, 0, 1 along each axis. ``adaptive``: 3 or 4 along each, as rounding has it in the
        published kernel (RoI-Align).

    Returns
    -------
    [B, P, C].
    """
    n_images, n_channels, side, _ = maps.shape
    taps = _fixed_taps if map_sampling == "fixed" else _adaptive_taps
    index_x, weight_x = taps(points[..., 0], side)  # [B, P, T]
    index_y, weight_y = taps(points[..., 1], side)
    base = torch.arange(n_images, device=maps.device).view(-1, 1, 1, 1) * side**2
    index = base + index_y[..., :, None] * side + index_x[..., None, :]  # [B, P, T, T]
    weight = weight_y[..., :, None] * weight_x[..., None, :]
    table = maps.permute(0, 2, 3, 1).reshape(-1, n_channels).float()  # [B · H · H, C]
    bags = functional.embedding_bag(
        index.flatten(0, 1).flatten(1), table, per_sample_weights=weight.flatten(0, 1).flatten(1), mode="sum"
    )
    return bags.view(n_images, -1, n_channels)


def _fixed_taps(positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the 4 pixels along one axis that three samples at −1, 0, 1 touch, and their weights, [B, P, 4]."""
    centre = positions * side
    floor = centre.detach().floor()
    fraction = centre - floor
    valid = [((centre + step >= -1) & (centre + step <= side)).to(centre.dtype) for step in (-1, 0, 1)]
    weights = [(1 - fraction) * valid[0]]
    weights += [fraction * before + (1 - fraction) * here for before, here in itertools.pairwise(valid)]
    weights.append(fraction * valid[2])
    index = floor.long()[..., None] + torch.arange(-1, 3, device=centre.device)
    return index.clamp(0, side - 1), torch.stack(weights, dim=-1) / 3


def _adaptive_taps(positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the pixels along one axis that the published kernel touches, and their weights, [B, P, 8].

    The box is 3 px wide, and the kernel takes ceil(width) samples of it: 3, or 4 where rounding makes the width a
    single bit too large.
    """
    centre = positions * side
    start = (centre - 1) - 0.5
    width = ((centre + 2) - 0.5) - start
    count = width.detach().ceil().clamp(3, 4)
    step = torch.arange(4, device=centre.device, dtype=centre.dtype)
    samples = start[..., None] + (step + 0.5) * (width / count)[..., None]  # [B, P, 4]
    valid = (samples >= -1) & (samples <= side) & (step < count[..., None])
    samples = samples.clamp(0, side - 1)
    floor = samples.detach().floor().clamp(max=side - 1)
    fraction = samples - floor
    share = valid / count[..., None]
    index = torch.cat([floor, (floor + 1).clamp(max=side - 1)], dim=-1).long()
    return index, torch.cat([(1 - fraction) * share, fraction * share], dim=-1)
