"""How many images a second a GPU predicts: on the device alone, by batch, precision and layout, and by the command.

    python benchmarks/predict_gpu.py [--size 1024] [--samples 50] [--repeat 9] [--weights FILE] [--folder 64]

Without a CUDA device it says so and ends with exit code 2; --device cpu with a small --size tries the script itself.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from predict_cpu import films_per_second, processor
from torch import Tensor

from cxu.frame import MODEL_SIZE
from cxu.model.hybridgnet import HybridGNet, ModelConfig, Precision
from cxu.model.sampling import draw_latents, sample_landmarks
from cxu.model.weights import load_weights

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PRECISIONS = ("float32", "tf32", "bf16")
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predict(model: HybridGNet, images: Tensor, n_samples: int, precision: str) -> Tensor:
    """Return mean positions; tf32 is no choice of the library, so its steps stand here."""
    seeds = range(len(images))
    if precision != "tf32":
        chosen: Precision = "bf16" if precision == "bf16" else "float32"
        return sample_landmarks(model, images, seeds, n_samples=n_samples, precision=chosen).mean
    # torch lets convolutions round to TF32 unless told otherwise
    with torch.inference_mode():
        encoding = model.encode(images)
        points = model.decode(encoding, draw_latents(encoding, seeds, n_samples)).points
        return torch.stack([points.mean(dim=1), points.std(dim=1, correction=0)])


def images_per_second(model: HybridGNet, images: Tensor, n_samples: int, precision: str, repeat: int) -> float:
    """Return images a second, the median of ``repeat`` runs after two that warm up."""
    seconds = []
    for _ in range(repeat + 2):
        wait_for(images.device)
        start = time.perf_counter()
        predict(model, images, n_samples, precision)
        wait_for(images.device)
        seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds[2:])


def time_device(model: HybridGNet, device: torch.device, n_samples: int, repeat: int) -> None:
    """Print images a second for every batch, precision and layout."""
    size = model.config.size
    for layout, memory_format in LAYOUTS.items():
        ours = copy.deepcopy(model).to(device)
        ours.encoder.to(memory_format=memory_format)
        for precision in PRECISIONS:
            for batch in BATCHES:
                try:
                    images = torch.rand(batch, 1, size, size, device=device)
                    rate = f"{images_per_second(ours, images, n_samples, precision, repeat):9.1f}"
                except torch.cuda.OutOfMemoryError:
                    rate = "out of memory"
                print(f"{layout:14} {precision:8} batch {batch:3} {rate} images/s", flush=True)


def main() -> int:
    """Time the device, then the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=MODEL_SIZE, help="of random weights; ignored with --weights")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--weights", type=Path, help="a weight file; random weights without it")
    parser.add_argument("--folder", type=int, default=64, metavar="N", help="films for the command; 0: leave it out")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (--device cpu --size 64 tries the script)")
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{name}, torch {torch.__version__}, {given.samples} samples, medians of {given.repeat}")
    torch.manual_seed(0)
    model = load_weights(given.weights).model if given.weights else HybridGNet(ModelConfig(given.size)).eval()
    time_device(model, device, given.samples, given.repeat)
    if given.folder and given.weights:
        for precision in ("float32", "bf16"):
            options = ("--device", given.device, "--precision", precision)
            rate = films_per_second(given.weights, given.folder, given.samples, *options)
            said = "not in this version" if rate is None else f"{rate:.2f} images/s, start included"
            print(f"cxu predict {precision}, {given.folder} films: {said}")
    elif given.folder:
        print("the command was not timed: it needs --weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
