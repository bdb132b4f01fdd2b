"""How fast one image is predicted on the CPU, against a literal transcription of the published method.

    python benchmarks/predict_cpu.py [--size 1024] [--samples 50] [--repeat 9] [--weights FILE]

The transcription below is what one writes down from the papers: an image at a time through batch norms without running
statistics, graph convolutions edge by edge, the feature maps repeated for every sample. The script first makes sure
that both give the same numbers, then times them in turn and prints medians and ratios; then how far bf16 deviates;
then, with --folder N and --weights, images per second of `cxu predict` on a folder of N drawn films. Without --weights
the network is random, which takes the same time; the deviation of bf16 then says little.

Other programs on the same cores slow both sides down, and the one with more small steps more: --threads 1 suffers less.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cxu.frame import MODEL_SIZE
from cxu.model.device import freed_memory_kept
from cxu.model.graph import COARSE_RINGS, FINE_RINGS
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.sampling import draw_latents, sample_landmarks
from cxu.model.weights import load_weights
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_shapes

CHANNELS = (1, 8, 16, 32, 64, 128, 128)


class LiteralBlock(nn.Module):
    """Residual block with the published network's norm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, track_running_stats=False)

        def conv(channels: int) -> nn.Module:
            return nn.Conv2d(channels, after, 3, padding=1)

        self.block = nn.Sequential(norm(before), nn.ReLU(), conv(before), norm(after), nn.ReLU(), conv(after))
        projects = before != after
        self.skip = nn.Sequential(*([nn.Conv2d(before, after, 1, bias=False), norm(after)] if projects else []))

    def forward(self, maps: Tensor) -> Tensor:
        """[1, C, H, H] → [1, C', H, H]."""
        return torch.relu(self.block(maps) + self.skip(maps))


class LiteralNet(nn.Module):
    """Forward of the published method with the weights of one of our networks."""

    def __init__(self, model: HybridGNet) -> None:
        super().__init__()
        self.config, self.weights = model.config, model.state_dict()
        self.blocks = nn.ModuleList(LiteralBlock(*pair) for pair in itertools.pairwise(CHANNELS))
        for number, block in enumerate(self.blocks, start=1):
            prefix = f"encoder.dconv_down{number}."
            own = {name.removeprefix(prefix): x for name, x in self.weights.items() if name.startswith(prefix)}
            block.load_state_dict({name: x.contiguous() for name, x in own.items()})
        self.edges = {sum(rings): edges_of(rings) for rings in (COARSE_RINGS, FINE_RINGS)}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image [1, 1, size, size] → mu, log-variance, conv5, conv6."""
        maps, kept = image, []
        for number, block in enumerate(self.blocks, start=1):
            kept.append(block(maps))
            maps = functional.max_pool2d(kept[-1], 2) if number < 6 else kept[-1]
        flat = maps.flatten(1)
        mu, log_var = (
            functional.linear(flat, self.weights[f"encoder.{name}.weight"], self.weights[f"encoder.{name}.bias"])
            for name in ("fc_mu", "fc_logvar")
        )
        return mu, log_var, kept[4], kept[5]

    def decode(self, latents: Tensor, conv5: Tensor, conv6: Tensor) -> Tensor:
        """Latent codes [S, Z] of one image → positions [S, 120, 2]."""
        n_samples = len(latents)
        x = functional.linear(latents, self.weights["dec_lin.weight"], self.weights["dec_lin.bias"]).relu()
        x = x.view(n_samples, sum(COARSE_RINGS), -1)
        x = node_norm_relu(self.chebyshev("graphConv_up6", x))
        x = node_norm_relu(self.chebyshev("graphConv_up5", x))
        if self.config.use_skip:
            x = self.skip("SC_1", x, conv6)
        x = node_norm_relu(self.chebyshev("graphConv_up4", x))
        x = unpool(x)
        x = node_norm_relu(self.chebyshev("graphConv_up3", x))
        if self.config.use_skip:
            x = self.skip("SC_2", x, conv5)
        x = node_norm_relu(self.chebyshev("graphConv_up2", x))
        return self.chebyshev("graphConv_up1", x)

    def skip(self, name: str, x: Tensor, maps: Tensor) -> Tensor:
        """Nodes [S, N, F] → the same with the map's features and positions, [S, N, F + C + 2]."""
        positions = self.chebyshev(f"{name}.graphConv_pre", x)
        repeated = maps.expand(len(x), -1, -1, -1).contiguous()
        return torch.cat([x, sample_literally(repeated, positions), positions], dim=2)

    def chebyshev(self, name: str, x: Tensor) -> Tensor:
        """Sum over k of T_k x W_k, T_k x by recursion, L x edge by edge."""
        weights = [
            w for k in range(self.config.order) if (w := self.weights.get(f"{name}.lins.{k}.weight")) is not None
        ]
        source, target = self.edges[x.shape[1]]

        def laplacian(nodes: Tensor) -> Tensor:
            messages = -0.5 * nodes[:, source]
            return torch.zeros_like(nodes).index_add(1, target, messages)

        terms = [x, laplacian(x)] if len(weights) > 1 else [x]
        while len(terms) < len(weights):
            terms.append(2 * laplacian(terms[-1]) - terms[-2])
        result = sum(functional.linear(term, weight) for term, weight in zip(terms, weights, strict=True))
        bias = self.weights.get(f"{name}.bias")
        return result if bias is None else result + bias


def edges_of(rings: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return source and target of both directions of every edge, [2 N] each."""
    pairs, first = [], 0
    for length in rings:
        pairs += [(first + i, first + (i + step) % length) for i in range(length) for step in (1, -1)]
        first += length
    source, target = torch.tensor(pairs).T
    return source, target


def node_norm_relu(x: Tensor) -> Tensor:
    """Normalise each node over its own features, then ReLU."""
    variance, mean = torch.var_mean(x, dim=2, keepdim=True, correction=0)
    return ((x - mean) / torch.sqrt(variance + 1e-5)).relu()


def unpool(x: Tensor) -> Tensor:
    """[S, 60, F] → [S, 120, F]: each node, then the mean of it and the next on its ring."""
    rings = []
    for ring in x.split(COARSE_RINGS, dim=1):
        between = (ring + ring.roll(-1, dims=1)) / 2
        rings.append(torch.stack([ring, between], dim=2).flatten(1, 2))
    return torch.cat(rings, dim=1)


def sample_literally(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the means of 3 × 3 bilinear samples [S, N, C] of maps [S, C, H, H] at positions [S, N, 2]."""
    side = maps.shape[-1]
    step = torch.arange(-1.0, 2.0)
    offsets = torch.cartesian_prod(step, step)  # [9, 2]
    at = positions[:, :, None] * side + offsets  # [S, N, 9, 2]
    counted = ((at >= -1) & (at <= side)).all(dim=3)
    grid = at.clamp(0, side - 1) * (2 / (side - 1)) - 1
    sampled = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return (sampled * counted[:, None]).mean(dim=3).transpose(1, 2)


def check(config: ModelConfig) -> float:
    """Return the largest difference, in [0, 1] coordinates, between both with the same weights and latent codes."""
    torch.manual_seed(1)
    model = HybridGNet(config).eval()
    literal = LiteralNet(model)
    image, latents = torch.rand(1, 1, config.size, config.size), torch.randn(1, 4, config.latents)
    encoding = model.encode(image)
    mu, log_var, conv5, conv6 = literal.encode(image)
    torch.testing.assert_close(encoding.mu, mu, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoding.log_var, log_var, atol=1e-4, rtol=0)
    found, expected = model.decode(encoding, latents).points[0], literal.decode(latents[0], conv5, conv6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    return (found - expected).abs().max().item()


def in_turn(actions: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Return the seconds of each action, timed in turns, each time as the second image of a row.

    Ours runs with the process keeping freed memory, as `cxu predict` does; the transcription as torch comes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeat):
        for name, action in actions.items():
            with freed_memory_kept() if name.startswith("cxu") else contextlib.nullcontext():
                action()
                start = time.perf_counter()
                action()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(model: HybridGNet, image: Tensor, n_samples: int, repeat: int) -> None:
    """Time encoding, decoding and both, ours and the transcription's, and print medians and ratios."""
    literal = LiteralNet(model)
    encoding, (_, _, conv5, conv6) = model.encode(image), literal.encode(image)
    latents = draw_latents(encoding, [0], n_samples)

    def whole_literal() -> None:
        mu, log_var, *maps = literal.encode(image)
        eps = torch.randn(n_samples, mu.shape[1])
        points = literal.decode(mu + torch.exp(0.5 * log_var) * eps, *maps)
        points.mean(dim=0), points.std(dim=0, correction=0)

    seconds = in_turn(
        {
            "literal encode": lambda: literal.encode(image),
            "cxu encode": lambda: model.encode(image),
            "cxu encode bf16": lambda: model.encode(image, "bf16"),
            "literal decode": lambda: literal.decode(latents[0], conv5, conv6),
            "cxu decode": lambda: model.decode(encoding, latents),
            "literal total": whole_literal,
            "cxu total": lambda: sample_landmarks(model, image, [0], n_samples=n_samples),
            "cxu total bf16": lambda: sample_landmarks(model, image, [0], n_samples=n_samples, precision="bf16"),
            "cxu total, 1 sample": lambda: sample_landmarks(model, image, [0], n_samples=1),
        },
        repeat,
    )
    for name, times in seconds.items():
        print(f"{name:22} {1000 * statistics.median(times):8.1f} ms   fastest {1000 * min(times):8.1f} ms")
    for above, below in (
        ("literal encode", "cxu encode"),
        ("literal decode", "cxu decode"),
        ("cxu encode", "cxu encode bf16"),
        ("cxu total", "cxu total, 1 sample"),
        ("literal total", "cxu total"),
    ):
        ratio = statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))
        print(f"ratio {above} / {below}: {ratio:.2f}")


def deviation(model: HybridGNet, images: Tensor, n_samples: int) -> None:
    """Print how far bf16 moves landmarks and standard deviations, with the same latent noise."""
    exact, rounded = (
        sample_landmarks(model, images, range(len(images)), n_samples=n_samples, precision=precision)
        for precision in ("float32", "bf16")
    )
    moved = (exact.mean - rounded.mean).norm(dim=-1) * MODEL_SIZE
    before, after = (found.std.mean(dim=-1) for found in (exact, rounded))
    relative = (after / before - 1).abs()
    middle, rare, most = moved.median(), moved.quantile(0.99), moved.max()
    print(f"bf16 against float32, {len(images)} drawn films, px of the {MODEL_SIZE} px model frame:")
    print(f"  landmarks move by {middle:.3f} px (median), {rare:.3f} (99 %), {most:.3f} (most)")
    middle, rare, change = relative.median(), relative.quantile(0.99), after.mean() / before.mean() - 1
    print(f"  sigmas (median {MODEL_SIZE * before.median():.2f} px) change by {100 * middle:.2f} % (median)")
    print(f"  and {100 * rare:.2f} % (99 %), their mean by {100 * change:+.2f} %")


def drawn_films(n_films: int, size: int) -> Iterator[np.ndarray]:
    """Draw synthetic chests, uint8 [size, size]."""
    rng = np.random.default_rng(0)
    for landmarks_xy in sample_shapes(load_shape_model(), n_films, rng):
        yield synthetic_background(landmarks_xy, size, rng)


def films_per_second(weights: Path, n_films: int, n_samples: int, *options: str) -> float | None:
    """Return images per second of the command over a folder of drawn films, its start included; None without it."""
    cxu = [sys.executable, "-m", "cxu", "predict"]
    if subprocess.run([*cxu, "--help"], capture_output=True, check=False).returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        films = Path(folder) / "films"
        films.mkdir()
        for number, film in enumerate(drawn_films(n_films, MODEL_SIZE)):
            Image.fromarray(film).save(films / f"film{number:03}.png")
        command = [*cxu, str(films), "--out", str(Path(folder) / "out"), "--weights", str(weights)]
        start = time.perf_counter()
        subprocess.run([*command, "--samples", str(n_samples), *options], check=True, stdout=subprocess.DEVNULL)
        return n_films / (time.perf_counter() - start)


def processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Check, compare, and time the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="side of the input; with --weights, theirs")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, help="as many as torch takes without it")
    parser.add_argument("--weights", type=Path, help="a weight file; random weights without it")
    parser.add_argument("--folder", type=int, default=0, metavar="N", help="time the command on N films too")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.inference_mode():
        if given.weights:
            model = load_weights(given.weights).model
            if given.size not in (None, model.config.size):
                parser.error(f"--size {given.size}: these weights take {model.config.size}")
            model.config = replace(model.config, map_sampling="fixed")
        else:
            torch.manual_seed(0)
            model = HybridGNet(ModelConfig(given.size or MODEL_SIZE)).eval()
        worst = check(replace(model.config, size=128))
        print(f"same weights, 128 px: both give the same positions to {worst:.1e}")
        size = model.config.size
        films = torch.from_numpy(np.stack([*drawn_films(4, size)])).float()[:, None] / 255
        print(f"one image of {size} px, {given.samples} samples, medians of {given.repeat}")
        compare(model, films[:1], given.samples, given.repeat)
        deviation(model, films, given.samples)
    if given.folder and given.weights:
        rate = films_per_second(given.weights, given.folder, given.samples, "--device", "cpu", "--precision", "float32")
        print(
            "cxu predict: not in this version"
            if rate is None
            else f"cxu predict, {given.folder} films: {rate:.2f} a second"
        )
    elif given.folder:
        print("--folder needs --weights: the command takes no random network")


if __name__ == "__main__":
    main()
