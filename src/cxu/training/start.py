"""A network to begin with: new, or from weights of any input size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cxu.errors import UsageError
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.weights import load_weights
from cxu.training.options import TrainOptions
from cxu.training.schedule import hash_seed

_LATENT_LAYERS = ("encoder.fc_mu.weight", "encoder.fc_logvar.weight")


def first_model(options: TrainOptions) -> HybridGNet:
    """Return the network that a run begins with.

    Raises
    ------
    UsageError
        If the weights to start from are of the other variant or another latent size.
    """
    if options.start is not None:
        return resized_model(load_weights(Path(options.start)).model, options)
    # the global generator is left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(f"{options.seed} weights"))
        return HybridGNet(ModelConfig(options.size, options.variant == "igsc", options.latents))


def resized_model(model: HybridGNet, options: TrainOptions) -> HybridGNet:
    """Return the network with the options' input size; its latent layers are resized, all else is copied."""
    config = replace(model.config, size=options.size)
    if (config.use_skip, config.latents) != (options.variant == "igsc", options.latents):
        raise UsageError(
            f"weights {options.start}: {'igsc' if config.use_skip else 'no-skip'} with {config.latents} latents; "
            f"the run asks for {options.variant} with {options.latents}"
        )
    state = dict(model.state_dict())
    before, after = model.config.size // 32, options.size // 32
    for name in _LATENT_LAYERS:
        state[name] = resize_latent_layer(state[name], before, after)
    resized = HybridGNet(config)
    resized.load_state_dict(state)
    return resized


def resize_latent_layer(weight: Tensor, before: int, after: int) -> Tensor:
    """Resize weights [Z, C · before²] over a map of side ``before`` to [Z, C · after²].

    Each new cell gets the weights of the old cells it covers, in proportion to the covered area, so a map that is
    constant over its pixels gives the same output. For a whole multiple this is nearest neighbour divided by the ratio
    of areas.
    """
    maps = weight.view(len(weight), -1, before, before).double()
    cover = _coverage(before, after)
    return (cover @ maps @ cover.T).flatten(1).to(weight.dtype)


def _coverage(before: int, after: int) -> Tensor:
    """Return [after, before]: the length of each old cell that lies in a new one, in old cells."""
    edges = torch.arange(after + 1, dtype=torch.float64) * before / after
    cells = torch.arange(before, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], cells)
    high = torch.minimum(edges[1:, None], cells + 1)
    return (high - low).clamp(min=0)
