"""Time a training step: the encoder in bfloat16 as cxu trains it, against autograd over the plain layers.

Prints milliseconds a step and, last, the ratio. Both sides run the same steps in turn, in one process.

    python benchmarks/train_step.py --size 256 --steps 10
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from cxu.model import hybridgnet
from cxu.model.device import freed_memory_kept
from cxu.training.options import TrainOptions
from cxu.training.start import first_model
from cxu.training.trainer import Trainer, TrainingData

N_IMAGES = 32


def plain(block: hybridgnet.ResidualBlock, maps: torch.Tensor, *, pool: bool) -> torch.Tensor:
    """Return what a residual block gives when autograd sees every layer of it."""
    summed = torch.relu(block.block(maps) + block.skip(maps))
    return torch.nn.functional.max_pool2d(summed, 2) if pool else summed


def main() -> None:
    """Time steps of either side in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    options = TrainOptions(steps=1, size=given.size, batch_size=given.batch_size, refine=True, spread=True, across=1.0)
    images = torch.randint(0, 256, (N_IMAGES, 1, given.size, given.size), dtype=torch.uint8)
    data = TrainingData(images, torch.rand(N_IMAGES, 120, 2), torch.full((N_IMAGES,), 1 / N_IMAGES).double())
    trainer = Trainer(first_model(options), data, options)

    def step() -> float:
        start = time.perf_counter()
        trainer.advance(0.5)
        return 1000 * (time.perf_counter() - start)

    def plain_step() -> float:
        with mock.patch.object(hybridgnet.ResidualBlock, "_train_rounded", plain):
            return step()

    plain_step(), step()
    without_memory = [plain_step() for _ in range(given.steps)]
    with freed_memory_kept():
        plain_step(), step()
        pairs = [(plain_step(), step()) for _ in range(given.steps)]
    layers, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{given.size} px, {given.batch_size} images, {torch.get_num_threads()} threads, medians of {given.steps} steps"
    )
    print(f"autograd over the layers               {statistics.median(without_memory):8.0f} ms a step")
    print(f"the same, freed memory kept            {layers:8.0f} ms a step")
    print(
        f"cxu                                    {ours:8.0f} ms a step, {1000 * given.batch_size / ours:.0f} images/s"
    )
    print(f"ratio to the first {statistics.median(without_memory) / ours:.2f}, to the second {layers / ours:.2f}")


if __name__ == "__main__":
    main()
