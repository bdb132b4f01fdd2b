"""One network in training: a step, its average, its state to a checkpoint and back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cxu.model.hybridgnet import HybridGNet
from cxu.training.augment import augment
from cxu.training.checkpoint import State
from cxu.training.losses import Losses, losses
from cxu.training.metrics import to_unit
from cxu.training.options import TrainOptions
from cxu.training.schedule import draw_batch, ema_decay, kl_weight, learning_rate, step_generator


@dataclass
class TrainingData:
    """The images of training: uint8 [n, 1, S, S]; targets [n, 120, 2] in 0 … 1; each image's chance [n]."""

    images: Tensor
    targets: Tensor
    chances: Tensor


@dataclass
class Trainer:
    """A network, its optimiser and its average at some step of a run."""

    model: HybridGNet
    data: TrainingData
    options: TrainOptions
    average: dict[str, Tensor] = field(init=False)
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.model.train()
        self.average = _copy(self.model) if self.options.ema else {}
        # what only looks on must not shorten the steps of what it looks at
        named = [*self.model.named_parameters()]
        self._apart = [
            [one for name, one in named if name.startswith("spread.") == looks_on] for looks_on in (False, True)
        ]
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=self.options.lr, weight_decay=self.options.weight_decay
        )

    def advance(self, fraction: float) -> Tensor:
        """Make one step, ``fraction`` of the run being done, and return the parts of its loss [8], detached."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.options, fraction)
        parts = self._losses()
        weight = kl_weight(self.options, fraction)
        self.optimiser.zero_grad(set_to_none=True)
        parts.total(self.options, kl=weight).backward()  # type: ignore[no-untyped-call]
        for parameters in self._apart:
            torch.nn.utils.clip_grad_norm_(parameters, self.options.clip)
        self.optimiser.step()
        self._update_average()
        self.step += 1
        return torch.stack([part.detach() for part in parts])

    def _losses(self) -> Losses:
        options, (images, targets) = self.options, self._batch()
        generator = step_generator(options.seed, self.step, "images", self.device)
        changed = augment(images, targets, generator, options.augment)
        encoding = self.model.encode(changed.images, options.precision)
        shape = (len(images), options.train_samples, options.latents)
        noise = torch.randn(shape, generator=generator, device=self.device)
        latents = encoding.mu[:, None] + torch.exp(0.5 * encoding.log_var)[:, None] * noise
        decoding = self.model.decode(encoding, latents, spread=options.spread)
        return losses(encoding, decoding, changed.points, changed.corrupted, options)

    def _batch(self) -> tuple[Tensor, Tensor]:
        chosen = draw_batch(self.data.chances, self.options.batch_size, self.options.seed, self.step)
        chosen = chosen.to(self.data.images.device)
        return to_unit(self.data.images[chosen]), self.data.targets[chosen]

    def _update_average(self) -> None:
        if not self.average:
            return
        weights = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_([*self.average.values()], weights, 1 - ema_decay(self.options, self.step))

    def finished_model(self) -> HybridGNet:
        """Return a network with the averaged weights, or the last ones where no average is kept; in eval mode."""
        model = copy.deepcopy(self.model)
        model.load_state_dict({**self.model.state_dict(), **self.average})
        return model.eval()

    def state(self, seconds: float, sums: Tensor, since: int, lines: list[dict[str, float | int | None]]) -> State:
        """Return all that :meth:`restore` needs, with what the loop keeps."""
        weights = self.model.state_dict(), dict(self.average), self.optimiser.state_dict()
        return State(*weights, self.step, seconds, sums, since, lines)

    def restore(self, state: State) -> None:
        """Go to where a checkpoint was written."""
        self.model.load_state_dict(state.model)
        for name, tensor in state.average.items():
            self.average[name].copy_(tensor)
        self.optimiser.load_state_dict(state.optimiser)
        self.step = state.step


def _copy(model: HybridGNet) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
