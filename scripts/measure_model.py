"""Measure a weight file on annotated films that it was not trained on: the numbers of docs/model.md.

Prints a table and, with --json FILE, writes every number. Clean films go through the same call as `cxu predict`; films
are damaged on the model's own input. Intervals are 95 % of a bootstrap over films.

    python scripts/measure_model.py /data/train --weights bundled --json measured.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cxu
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.frame import MODEL_SIZE
from cxu.model.hybridgnet import HybridGNet
from cxu.model.sampling import image_seed, sample_landmarks
from cxu.model.weight_source import load
from cxu.stats import bootstrap, pearson, spearman
from cxu.training.data import TrainingFolder, load_images, read_folder
from cxu.training.metrics import dice

NOISE_SIGMAS = (0, 10, 20, 30, 40, 50, 60, 80, 100)  # 8-bit
SQUARES = (1, 2, 4)
HALF_SIZE_PX = 100  # of the 1024 frame
BATCH = 8


@dataclass(frozen=True)
class Films:
    """Predictions of some films beside their truth, px of the 1024 frame; [n, 120, 2], [n, 120], [n, 120, 2]."""

    found_xy: np.ndarray
    sigma_px: np.ndarray
    true_xy: np.ndarray

    @property
    def error_px(self) -> np.ndarray:
        """Distance of each node, NaN where not annotated."""
        return np.linalg.norm(self.found_xy - self.true_xy, axis=-1)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gallery", type=Path, help="PNG of the films with the largest errors: shapes alone")
    given = parser.parse_args()
    weights = load(given.weights)
    folder = read_folder(given.data).part(given.split)
    if "JSRT" not in {row.dataset for row in folder.rows}:
        parser.error(f"{given.data} has no film of JSRT in the split {given.split}: these are the ones to be damaged")
    report: dict[str, Any] = {"model_id": weights.model_id, "split": given.split, "clean": {}, "damaged": {}}

    clean = predict_files(folder, given.weights)
    names = np.array([row.dataset for row in folder.rows])
    for name in [*dict.fromkeys(names), "all"]:
        of = names == name if name != "all" else np.ones(len(names), bool)
        report["clean"][name] = describe(Films(clean.found_xy[of], clean.sigma_px[of], clean.true_xy[of]))
    jsrt = TrainingFolder(
        folder.root, tuple(r for r in folder.rows if r.dataset == "JSRT"), folder.landmarks_xy[names == "JSRT"], ()
    )
    report["damaged"] = measure_damaged(weights.model, jsrt)
    print_report(report)
    if given.gallery:
        draw_gallery(clean, names, given.gallery)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


def predict_files(folder: TrainingFolder, weights: str) -> Films:
    """Predict the image files themselves, as a user does, and bring the result into the 1024 frame."""
    files = {path.stem: path for path in (folder.root / "images").iterdir()}
    table = cxu.predict_images([files[row.name] for row in folder.rows], weights=weights)
    assert [Path(image_id).stem for image_id in table["image_id"].to_pylist()] == [row.name for row in folder.rows]
    scale = MODEL_SIZE / np.array(table["frame_side"].to_pylist())
    offset = np.array(table["frame_offset_xy"].to_pylist())
    found = cxu.landmarks(table)
    found = (found - offset[:, None]) * scale[:, None, None]
    return Films(found, np.array(table["sigma_model_px"].to_pylist()), folder.landmarks_xy)


def describe(films: Films) -> dict[str, Any]:
    """Return every measure of a set of films with its interval."""
    pairs = list(zip(films.found_xy, films.true_xy, strict=True))
    by_film = {
        "mse_px2": np.nanmean((films.found_xy - films.true_xy) ** 2, axis=(1, 2)),
        "error_px": np.nanmean(films.error_px, axis=1),
        "dice_lungs": np.array([dice((RIGHT_LUNG, LEFT_LUNG), *pair) for pair in pairs]),
        "dice_right_lung": np.array([dice((RIGHT_LUNG,), *pair) for pair in pairs]),
        "dice_left_lung": np.array([dice((LEFT_LUNG,), *pair) for pair in pairs]),
        "dice_heart": np.array([dice((HEART,), *pair) for pair in pairs]),
    }
    # nodes count alike, however many of a film are annotated
    counts = np.isfinite(films.error_px).sum(axis=1)
    result: dict[str, Any] = {"films": len(pairs)}
    for name, values in by_film.items():
        weights = counts if name in ("mse_px2", "error_px") else np.ones(len(values))
        known = np.isfinite(values)
        if known.any():
            result[name] = with_interval(
                lambda of, v=values[known], w=weights[known]: float(np.average(v[of], weights=w[of])), int(known.sum())
            )
    result["pearson"] = with_interval(lambda of: correlate(films.sigma_px[of], films.error_px[of]), len(pairs))
    result["median_score_px"] = float(np.median(films.sigma_px.mean(axis=1)))
    result["median_sigma_px"] = float(np.median(films.sigma_px[np.isfinite(films.error_px)]))
    result["median_error_px"] = float(np.nanmedian(films.error_px))
    result["worst_films_error_px"] = np.sort(np.nanmean(films.error_px, axis=1))[::-1][:5].round(1).tolist()
    return result


def with_interval(measure: Callable[[np.ndarray], float], count: int) -> list[float]:
    """Return the value, and the 2.5 and 97.5 % quantiles of resampled films."""
    return list(bootstrap(measure, count))


def correlate(sigma_px: np.ndarray, error_px: np.ndarray) -> float:
    """Return Pearson's correlation over annotated nodes."""
    known = np.isfinite(error_px)
    return pearson(sigma_px[known], error_px[known])


def measure_damaged(model: HybridGNet, folder: TrainingFolder) -> dict[str, Any]:
    """Return how score and error go together over noise and squares, and sigma inside squares against outside."""
    images = load_images(folder.root, [row.name for row in folder.rows], model.config.size).float() / 255
    scores, errors, steps = [], [], {}
    inside, outside = [], []
    for name, damaged, covered in damages(images, folder.landmarks_xy):
        films = Films(*sample(model, damaged), folder.landmarks_xy)
        score, error = films.sigma_px.mean(axis=1), np.nanmean(films.error_px, axis=1)
        scores.append(score)
        errors.append(error)
        steps[name] = {"median_score_px": float(np.median(score)), "median_error_px": float(np.median(error))}
        if covered.any():
            inside.append(films.sigma_px[covered])
            outside.append(films.sigma_px[~covered])
            steps[name]["sigma_ratio"] = float(np.median(inside[-1]) / np.median(outside[-1]))
            steps[name]["error_ratio"] = float(
                np.nanmedian(films.error_px[covered]) / np.nanmedian(films.error_px[~covered])
            )
    score, error = np.stack(scores), np.stack(errors)  # [steps, films]
    count = score.shape[1]
    noisy = len(NOISE_SIGMAS)
    return {
        "steps": steps,
        "spearman": with_interval(lambda of: ranked(score[:, of], error[:, of]), count),
        "spearman_noise": with_interval(lambda of: ranked(score[:noisy, of], error[:noisy, of]), count),
        "spearman_squares": with_interval(lambda of: ranked(score[noisy:, of], error[noisy:, of]), count),
        "spearman_within_films": with_interval(lambda of: within_films(score[:, of], error[:, of]), count),
        "sigma_inside_outside": float(np.median(np.concatenate(inside)) / np.median(np.concatenate(outside))),
    }


def damages(images: torch.Tensor, landmarks_xy: np.ndarray) -> Iterator[tuple[str, torch.Tensor, np.ndarray]]:
    """Yield a name, the damaged images and which nodes are covered [n, 120]."""
    rng = np.random.default_rng(0)
    nothing = np.zeros(landmarks_xy.shape[:2], bool)
    side = images.shape[-1]
    for sigma in NOISE_SIGMAS:
        noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
        yield f"noise {sigma}", (images + sigma / 255 * noise).clamp(0, 1), nothing
    for count in SQUARES:
        damaged, covered = images.clone(), nothing.copy()
        for row, points in enumerate(landmarks_xy):
            for centre in points[rng.choice(len(points), count, replace=False)]:
                low, high = centre - HALF_SIZE_PX, centre + HALF_SIZE_PX
                (left, top), (right, bottom) = ((np.rint(edge * side / MODEL_SIZE)).astype(int) for edge in (low, high))
                damaged[row, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
                covered[row] |= ((points >= low) & (points <= high)).all(axis=1)
        yield f"squares {count}", damaged, covered


def sample(model: HybridGNet, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return means and node sigmas, px of the 1024 frame."""
    means, sigmas = [], []
    for batch in torch.split(images, BATCH):
        found = sample_landmarks(model, batch, [image_seed(0, picture.numpy()) for picture in batch])
        means.append(found.mean.numpy() * MODEL_SIZE)
        sigmas.append(found.std.mean(dim=-1).numpy() * MODEL_SIZE)
    return np.concatenate(means), np.concatenate(sigmas)


def draw_gallery(films: Films, datasets: np.ndarray, path: Path) -> None:
    """Draw the found shapes of the worst films, nodes coloured by their error and, below, by their uncertainty.

    Neither films nor annotated outlines are drawn: they are not ours to hand on.
    """
    import matplotlib  # noqa: PLC0415 - only for the picture

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    worst = np.argsort(np.nanmean(films.error_px, axis=1))[::-1][:6]
    figure, axes = pyplot.subplots(2, len(worst), figsize=(15, 5.6), layout="constrained")
    for column, row in enumerate(worst):
        for axis, values, what in zip(
            axes[:, column], (films.error_px[row], films.sigma_px[row]), ("error", "sigma"), strict=True
        ):
            for organ in (RIGHT_LUNG, LEFT_LUNG, HEART):
                ring = np.vstack([films.found_xy[row, organ.nodes], films.found_xy[row, organ.nodes.start]])
                axis.plot(*ring.T, color="0.75", linewidth=1, zorder=1)
            unknown = np.isnan(films.error_px[row])
            drawn = axis.scatter(
                *films.found_xy[row, ~unknown].T, c=values[~unknown], s=16, cmap="viridis", vmin=0, vmax=60, zorder=2
            )
            title = f"{datasets[row]}, mean error {np.nanmean(films.error_px[row]):.0f} px"
            axis.set(aspect="equal", xticks=[], yticks=[], xlim=(0, MODEL_SIZE), ylim=(MODEL_SIZE, 0))
            axis.set_title(title if what == "error" else f"mean sigma {films.sigma_px[row].mean():.0f} px", fontsize=9)
    axes[0, 0].set_ylabel("error of a node")
    axes[1, 0].set_ylabel("uncertainty of a node")
    figure.colorbar(drawn, ax=axes, label="px of the 1024 frame", shrink=0.7, extend="max")
    figure.savefig(path, dpi=90)


def ranked(score: np.ndarray, error: np.ndarray) -> float:
    """Return the correlation of ranks of two arrays of one shape."""
    return spearman(score.ravel(), error.ravel())


def within_films(score: np.ndarray, error: np.ndarray) -> float:
    """Return the mean over films of the correlation of ranks over a film's damages, [steps, films]."""
    return float(np.mean([ranked(score[:, film], error[:, film]) for film in range(score.shape[1])]))


def print_report(report: dict[str, Any]) -> None:
    """Print the tables of docs/model.md, in Markdown."""
    columns = {
        "mse_px2": ("MSE px²", "{:.0f}"),
        "error_px": ("error px", "{:.1f}"),
        "dice_lungs": ("Dice lungs", "{:.3f}"),
        "dice_heart": ("Dice heart", "{:.3f}"),
        "pearson": ("Pearson", "{:.2f}"),
    }
    print("| data set | films |", *(f"{title} |" for title, _ in columns.values()), "image score px |")
    print("|---" * (3 + len(columns)) + "|")
    for name, numbers in report["clean"].items():
        cells = [with_bounds(numbers.get(key), form) for key, (_, form) in columns.items()]
        print("|", " | ".join([name, str(numbers["films"]), *cells, f"{numbers['median_score_px']:.1f}"]), "|")
    print("\n| damage | score px | error px | sigma inside / outside | error inside / outside |\n|---|---|---|---|---|")
    for name, step in report["damaged"]["steps"].items():
        ratios = [f"{step[key]:.1f}" if key in step else "" for key in ("sigma_ratio", "error_ratio")]
        print("|", " | ".join([name, f"{step['median_score_px']:.1f}", f"{step['median_error_px']:.1f}", *ratios]), "|")
    for key in ("spearman", "spearman_noise", "spearman_squares", "spearman_within_films"):
        print(f"\n{key}: {with_bounds(report['damaged'][key], '{:.2f}')}")
    print(f"sigma inside / outside squares: {report['damaged']['sigma_inside_outside']:.2f}")


def with_bounds(value: list[float] | None, form: str) -> str:
    """Return a value with its interval as text; nothing where there is none."""
    return "" if value is None else "{} ({}–{})".format(*(form.format(number) for number in value))


if __name__ == "__main__":
    main()
