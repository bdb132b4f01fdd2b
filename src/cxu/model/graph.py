"""The landmark graph: each organ a ring, at full and at half resolution, as small dense constants.

Source: HybridGNet (Gaggion et al., TMI 2022, arXiv 2203.10977), section on spectral graph convolutions and pooling.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

from cxu.anatomy import N_NODES, ORGANS

FINE_RINGS: Final = tuple(organ.n_nodes for organ in ORGANS)
COARSE_RINGS: Final = tuple(nodes // 2 for nodes in FINE_RINGS)
N_COARSE: Final = N_NODES // 2

# The constants below are made once and kept: made within inference mode they would be of no use in training.


@functools.cache
@torch.inference_mode(False)
def ring_laplacian(rings: tuple[int, ...]) -> Tensor:
    """Return −D^(−1/2) A D^(−1/2) of closed rings [N, N] float32: the rescaled Laplacian at lambda_max = 2."""
    laplacian = torch.zeros(sum(rings), sum(rings))
    first = 0
    for length in rings:
        nodes = torch.arange(length)
        for step in (1, -1):
            laplacian[first + nodes, first + (nodes + step) % length] = -0.5
        first += length
    return laplacian


@functools.cache
@torch.inference_mode(False)
def chebyshev_stack(rings: tuple[int, ...], order: int) -> Tensor:
    """Return T_0 … T_(order−1) of the rings' Laplacian side by side, [N, order · N] float32."""
    laplacian = ring_laplacian(rings)
    terms = [torch.eye(len(laplacian)), laplacian]
    while len(terms) < order:
        terms.append(2 * laplacian @ terms[-1] - terms[-2])
    return torch.cat(terms[:order], dim=1)


@functools.cache
@torch.inference_mode(False)
def unpool_matrix() -> Tensor:
    """Return the map [120, 60] from coarse to fine nodes: 2i copies i, 2i + 1 is the mean of i and the next."""
    unpool = torch.zeros(N_NODES, N_COARSE)
    first = 0
    for length in COARSE_RINGS:
        nodes = torch.arange(length)
        unpool[2 * (first + nodes), first + nodes] = 1.0
        unpool[2 * (first + nodes) + 1, first + nodes] = 0.5
        unpool[2 * (first + nodes) + 1, first + (nodes + 1) % length] = 0.5
        first += length
    return unpool


@functools.cache
@torch.inference_mode(False)
def error_factor(reach: float = 3.0) -> Tensor:
    """Return a factor L [240, 240] of the correlation L Lᵀ of node errors (x, y interleaved), before any was measured.

    Along a ring the correlation falls as exp(−d² / 2 reach²), d in nodes; x and y, and the organs, are independent.
    """
    factor = torch.zeros(N_NODES, N_NODES)
    first = 0
    for length in FINE_RINGS:
        nodes = torch.arange(length)
        distance = (nodes[:, None] - nodes).abs()
        distance = torch.minimum(distance, length - distance)
        # a Gaussian of width reach / √2, with itself, is one of width reach
        kernel = torch.exp(-((distance / reach) ** 2))
        factor[first : first + length, first : first + length] = kernel / kernel.norm(dim=1, keepdim=True)
        first += length
    return torch.kron(factor, torch.eye(2))
