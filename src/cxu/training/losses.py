"""The training loss: squared errors of all positions the network states, KL, and an energy score of the samples.

Sources: HybridGNet (TMI 2022), section on training; heterogeneous labels (ISBI 2023): nodes without annotation do not
count. Letters in shapes: B images, S samples of each, N nodes, Z latent size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cxu.anatomy import ORGANS
from cxu.model.hybridgnet import Decoding, Encoding
from cxu.training.options import MseOn, TrainOptions

_SMOOTH = 1e-8  # under a square root: a tenth of a pixel of the 1024 frame, so that its slope stays finite at 0


class Losses(NamedTuple):
    """The parts of the loss, unweighted scalars; normalised coordinates."""

    points: Tensor
    drafts: Tensor
    pos1: Tensor
    pos2: Tensor
    across: Tensor
    kl: Tensor
    energy: Tensor
    spread: Tensor

    def total(self, options: TrainOptions, *, kl: float) -> Tensor:
        """Return the weighted sum; the weight of the KL term changes during a run."""
        positions = self.points + self.drafts + self.pos1 + self.pos2
        weighted = options.across * self.across + options.energy * self.energy + self.spread
        return positions + weighted + kl * self.kl


def losses(encoding: Encoding, decoding: Decoding, targets: Tensor, corrupted: Tensor, options: TrainOptions) -> Losses:
    """Return the loss of a batch; parts without a weight are 0.

    Parameters
    ----------
    encoding, decoding
        Of B images and S samples of each.
    targets
        [B, 120, 2] in 0 … 1, NaN where not annotated.
    corrupted
        Which images were damaged badly, bool [B]. Where these teach the uncertainty alone, they enter the spread's
        likelihood and the KL term, which draws their latent code back to the prior, and nothing else.
    options
        Whether squared errors are those of every sample or of the mean over samples, and which parts have a weight.
        With an energy score the mean is right: the error of every sample would draw their spread to zero.
    """
    zero, mse_on = targets.new_zeros(()), options.mse_on
    spread = decoding.spread
    likelihood = zero if spread is None else negative_log_likelihood(decoding.points, spread, targets)
    if options.corrupt_teaches == "uncertainty":
        targets = targets.masked_fill(corrupted[:, None, None], torch.nan)
    coarse = coarse_targets(targets)
    return Losses(
        points=squared_error(decoding.points, targets, mse_on),
        drafts=sum((squared_error(draft, targets, mse_on) for draft in decoding.drafts), start=zero),
        pos1=zero if decoding.pos1 is None else squared_error(decoding.pos1, coarse, mse_on),
        pos2=zero if decoding.pos2 is None else squared_error(decoding.pos2, targets, mse_on),
        across=squared_error_across(decoding.points.mean(dim=1), targets) if options.across else zero,
        kl=kl_divergence(encoding.mu, encoding.log_var),
        energy=energy_score(decoding.points, targets) if options.energy else zero,
        spread=likelihood,
    )


def coarse_targets(targets: Tensor) -> Tensor:
    """Return the mean of fine nodes 2i and 2i + 1: [B, 120, 2] → [B, 60, 2]; NaN where either is."""
    return targets.view(len(targets), -1, 2, 2).mean(dim=2)


def squared_error(points: Tensor, targets: Tensor, mse_on: MseOn) -> Tensor:
    """Return the mean squared difference of points [B, S, N, 2] and targets [B, N, 2] where these are annotated."""
    if mse_on == "mean":
        points = points.mean(dim=1, keepdim=True)
    known = targets.isfinite()
    difference = torch.where(known[:, None], points - targets.nan_to_num()[:, None], 0.0)
    return difference.square().sum() / (known.sum() * points.shape[1]).clamp(min=1)


def squared_error_across(points: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared distance of points [B, N, 2] from the tangents at their targets [B, N, 2].

    The tangent at a node is the line between its two neighbours. Nodes count where they and their neighbours are
    annotated.
    """
    rings = torch.split(targets, [organ.n_nodes for organ in ORGANS], dim=1)
    turned = [ring.roll(-1, dims=1) - ring.roll(1, dims=1) for ring in rings]
    tangents = torch.cat(turned, dim=1)
    normals = functional.normalize(torch.stack([-tangents[..., 1], tangents[..., 0]], dim=-1), dim=-1)
    known = (targets + normals).isfinite().all(dim=-1)
    # NaN would spoil the gradient even where it is not chosen
    products = (points - targets.nan_to_num()) * normals.nan_to_num()
    distances = torch.where(known, products.sum(dim=-1), 0.0)
    return distances.square().sum() / known.sum().clamp(min=1)


def negative_log_likelihood(points: Tensor, spread: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the errors of points under N(0, spread²), less its constant.

    Points and spread [B, S, N, 2], targets [B, N, 2]; the mean is over annotated coordinates. The errors are taken as
    given: the likelihood would otherwise pay for errors with spread, and leave hard nodes where they are.
    """
    known = targets.isfinite()[:, None].expand_as(points)
    errors = (points.detach() - targets.nan_to_num()[:, None]) / spread
    each = torch.where(known, 0.5 * errors.square() + spread.log(), 0.0)
    return each.sum() / known.sum().clamp(min=1)


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mu, sigma²) | N(0, 1)), the mean over latents and images; [B, Z] each."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).mean()


def energy_score(points: Tensor, targets: Tensor) -> Tensor:
    """Return the energy score of samples [B, S, N, 2] against targets [B, N, 2], the mean over annotated nodes.

    For each node E|x − y| − ½ E|x − x'|, x and x' two different samples, y the target, |·| the Euclidean length. It is
    a strictly proper scoring rule: its expectation is least when the samples are distributed as the target is, so it
    rewards a spread that matches the error. Source: Gneiting and Raftery, JASA 2007, section 4.3.
    """
    n_samples = points.shape[1]
    known = targets.isfinite().all(dim=-1)  # [B, N]
    to_target = _length(points - targets.nan_to_num()[:, None]).mean(dim=1)
    first, second = torch.triu_indices(n_samples, n_samples, offset=1, device=points.device)
    between = _length(points[:, first] - points[:, second]).mean(dim=1)
    score = torch.where(known, to_target - 0.5 * between, 0.0)
    return score.sum() / known.sum().clamp(min=1)


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=-1) + _SMOOTH).sqrt()
