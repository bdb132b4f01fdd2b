"""What changes during a run, as functions of the fraction done; and which images make the next batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch

from cxu.errors import UsageError
from cxu.training.options import TrainOptions

_DECAYS = 20  # of the step schedule: as often as the published recipe, 0.9 every 50 of 1000 epochs


def learning_rate(options: TrainOptions, fraction: float) -> float:
    """Return the learning rate after that fraction of the run.

    Examples
    --------
    >>> options = TrainOptions(steps=100, lr=1.0, warmup=0.1)
    >>> learning_rate(options, 0.05), learning_rate(options, 0.1), learning_rate(options, 1.0)
    (0.5, 1.0, 0.0)
    """
    if fraction < options.warmup:
        return options.lr * fraction / options.warmup
    if options.schedule == "step":
        return options.lr * 0.9 ** math.floor(_DECAYS * fraction)
    done = (fraction - options.warmup) / (1 - options.warmup)
    return options.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def kl_weight(options: TrainOptions, fraction: float) -> float:
    """Return the weight of the KL term after that fraction of the run: log-linear, then constant.

    Examples
    --------
    >>> options = TrainOptions(steps=1, kl_start=1e-4, kl=1e-2, kl_ramp=0.5)
    >>> round(kl_weight(options, 0.25), 6), round(kl_weight(options, 0.9), 6)
    (0.001, 0.01)
    """
    done = min(fraction / options.kl_ramp, 1.0) if options.kl_ramp else 1.0
    return math.exp(math.log(options.kl_start) * (1 - done) + math.log(options.kl) * done)


def ema_decay(options: TrainOptions, step: int) -> float:
    """Return the decay of the weights' average at a step: short at first, so that the first weights are forgotten."""
    return min(options.ema, (1 + step) / (10 + step))


def image_chances(datasets: Sequence[str], has_heart: Sequence[bool], shares: Mapping[str, float]) -> torch.Tensor:
    """Return each image's chance to be drawn, float64 [n], adding up to 1.

    Named data sets get their shares, the others what is left, by their numbers of images. Without shares, images with
    and without a heart get half each where there are both.

    Raises
    ------
    UsageError
        If a share is of a data set that has no image, or the shares leave an image no chance or a rest nobody gets.
    """
    unknown = [name for name in shares if name not in datasets]
    if unknown:
        raise UsageError(f"share of {unknown[0]!r}: no training image is of that data set, but {sorted(set(datasets))}")
    if shares:
        groups = [name if name in shares else "" for name in datasets]
        parts = {**shares, "": 1 - sum(shares.values())}
    else:
        groups = [str(bool(heart)) for heart in has_heart]
        parts = dict.fromkeys(set(groups), 1 / len(set(groups)))
    if "" not in groups and shares and abs(parts[""]) > 1e-9:
        raise UsageError(f"shares {dict(shares)} name every data set, but add up to {sum(shares.values()):g}, not 1")
    chances = [parts[group] / groups.count(group) for group in groups]
    return torch.tensor(chances, dtype=torch.float64)


def draw_batch(chances: torch.Tensor, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """Return the images of a batch, int64 [batch_size]: a function of seed and step alone.

    Drawn at even distances along the shuffled images' added-up chances, so that every batch holds its shares of the
    data sets to within one image, and an image is drawn twice only where its chance asks for it.
    """
    generator = step_generator(seed, step, "batch", torch.device("cpu"))
    groups = torch.unique(chances)
    order = torch.randperm(len(chances), generator=generator)
    # images of equal chance stay together, shuffled among themselves
    order = torch.cat([order[chances[order] == chance] for chance in groups])
    edges = chances[order].cumsum(0)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    places = (torch.arange(batch_size) + start) / batch_size * edges[-1]
    return order[torch.searchsorted(edges, places).clamp(max=len(chances) - 1)]


def step_generator(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """Return the generator of one step for one purpose: nothing of it needs to be saved for a resume."""
    number = hash_seed(f"{seed} {step} {purpose}")
    return torch.Generator(device).manual_seed(number)


def hash_seed(text: str) -> int:
    """Return 63 bits of a text's SHA-256.

    Examples
    --------
    >>> hash_seed("0 1 batch") == hash_seed("0 1 batch"), hash_seed("a") == hash_seed("b")
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
