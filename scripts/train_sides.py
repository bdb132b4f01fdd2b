"""Train the network that tells films from mirrored ones, and write it into the package.

    python scripts/train_sides.py /data/train

Films of the training part alone, changed anew each time; the validation part is reported, and the test part not opened.
Two CPU cores take about ten minutes. scripts/fit_reference.py then sets the limit that goes with it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cxu import files
from cxu.frame import MODEL_SIZE
from cxu.model.sides import SIDE, SideNet, sides_path
from cxu.training.augment import augment
from cxu.training.data import TrainingFolder, load_images, read_folder
from cxu.training.options import AugmentOptions

STRONG: Final = AugmentOptions(corrupt=0, inversion=0, borders=0.2, scale=0.2, shift=0.08)
GENTLE: Final = AugmentOptions(corrupt=0, squares=0, inversion=0, fill=0, borders=0.2, scale=0.15, shift=0.06)
STEPS: Final = 800
BATCH: Final = 48
DOUBT: Final = 0.05  # of every label: the few films would else be learned by heart
COPIES: Final = 3  # of each validation film, moderately changed, beside itself


def main() -> None:
    """Train, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    folder = read_folder(given.data)
    films, points = pictures(folder.part("train"))
    good, its_points = pictures(folder.part("val"))
    shown = torch.cat([good, *(augment(good, its_points, generator, GENTLE).images for _ in range(COPIES))])
    model = SideNet()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, given.steps)
    began = time.monotonic()
    for step in range(1, given.steps + 1):
        drawn = torch.randint(0, len(films), (BATCH,), generator=generator)
        changed = augment(films[drawn], points[drawn], generator, STRONG).images
        # of the mirrored film the odds are the same turned round: it needs no showing
        odds = model(changed)
        loss = (functional.softplus(-odds) + DOUBT * odds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == given.steps:
            print(f"step {step}, {time.monotonic() - began:.0f} s, loss {loss:.4f}: {report(model, shown)}", flush=True)
    facts = {"steps": given.steps, "training_films": len(films)}
    weights = {name: values.half() for name, values in model.state_dict().items() if values.is_floating_point()}
    with files.replacing(sides_path()) as temporary:
        save_file(weights, temporary, metadata={"cxu_sides": json.dumps(facts, sort_keys=True)})
    print(f"{sides_path()}: {sides_path().stat().st_size / 1e6:.1f} MB")


def pictures(part: TrainingFolder) -> tuple[Tensor, Tensor]:
    """Return the films of a part [n, 1, 80, 80] and their landmarks [n, 120, 2], both in 0 … 1."""
    films = load_images(part.root, [row.name for row in part.rows], 2 * SIDE).float() / 255
    return functional.avg_pool2d(films, 2), torch.from_numpy(part.landmarks_xy / MODEL_SIZE).float()


def report(model: SideNet, films: Tensor) -> str:
    """Return how films that were not trained on are told."""
    model.eval()
    with torch.inference_mode():
        odds = np.concatenate([model(batch).numpy() for batch in torch.split(films, BATCH)])
    model.train()
    few = ", ".join(f"{value:.1f}" for value in np.quantile(odds, [0.01, 0.02, 0.05]))
    return f"{(odds < 0).mean():.2%} of {len(odds)} the wrong way round; log odds of the lowest 1, 2, 5 %: {few}"


if __name__ == "__main__":
    main()
