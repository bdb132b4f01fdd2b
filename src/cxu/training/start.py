"""A network to begin with: new, or from weights of any input size."""

from __future__ import annotations

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
        If the weights to start from are of another latent size.
    """
    # the global generator is left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(f"{options.seed} weights"))
        model = HybridGNet(
            ModelConfig(
                options.size,
                options.variant == "igsc",
                options.latents,
                refine=options.refine,
                spread=options.spread,
            )
        )
    if options.start is not None:
        take_over(load_weights(Path(options.start)).model, model, options.start)
    return model


def take_over(start: HybridGNet, model: HybridGNet, origin: str) -> None:
    """Copy into ``model`` what ``start`` has of it: latent layers are resized, layers of another shape stay new.

    Of the other variant the layers behind a skip connection have another shape; the encoder is the same. A layer is
    taken over whole or not at all, and so is what refines the positions or states their spread. Maps are sampled as in
    every training run (``fixed``), whatever the start did.
    """
    for what in ("latents", "order", "filters"):
        theirs, ours = getattr(start.config, what), getattr(model.config, what)
        if theirs != ours:
            raise UsageError(f"weights {origin} have {what} {theirs}; the run asks for {ours}")
    state, own = dict(start.state_dict()), model.state_dict()
    before, after = start.config.size // 32, model.config.size // 32
    for name in _LATENT_LAYERS:
        state[name] = resize_latent_layer(state[name], before, after)
    new = {_layer(name) for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape}
    kept = {name: state[name] for name in own if _layer(name) not in new}
    model.load_state_dict({**own, **kept})


def _layer(name: str) -> str:
    """Return the layer that a tensor belongs to; a further part of the network counts as one."""
    part = name.partition(".")[0]
    if part.startswith(("refine_", "spread")):
        return part
    return name.partition(".lins.")[0] if ".lins." in name else name.rpartition(".")[0]


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
