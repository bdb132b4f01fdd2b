"""How errors of different nodes go together, measured: what makes drawn errors look like real ones."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from cxu.anatomy import ORGANS

MIN_FILMS: Final = 10


def measured_error_factor(errors: Tensor, prior: Tensor) -> Tensor:
    """Return a factor L [240, 240] of the correlation L Lᵀ of node errors (x, y interleaved).

    Along the ring of an organ the correlation is taken to depend on the distance alone, and to be the same for x and y;
    organs, and x and y, are taken to be independent. The correlation of a ring with itself moved is then the mean over
    many nodes and films, and its factor is that of a circulant matrix: the roots of its spectrum.

    Parameters
    ----------
    errors
        [n, 120, 2], each divided by its standard deviation; NaN where not annotated.
    prior
        The factor to keep for organs that are annotated on fewer than ten films.
    """
    factor = prior.clone()
    for organ in ORGANS:
        rings = errors[errors[:, organ.nodes].isfinite().all(dim=(1, 2)), organ.nodes].double()
        if len(rings) < MIN_FILMS:
            continue
        power = torch.fft.fft(rings, dim=1).abs().square().mean(dim=(0, 2))
        kernel = torch.fft.ifft((power / power.mean()).sqrt()).real
        nodes = torch.arange(organ.n_nodes)
        circulant = kernel[(nodes[:, None] - nodes) % organ.n_nodes]
        block = slice(2 * organ.nodes.start, 2 * organ.nodes.stop)
        factor[block, block] = torch.kron(circulant, torch.eye(2, dtype=torch.float64)).to(factor.dtype)
    return factor
