"""Measure `cxu check`: what it says of films that are as they were, and of films that were changed behind its back.

Every film is written to a file, the table holds its annotated landmarks, and both go through the call that `cxu check`
makes. Limits were chosen on the validation part; the test part is for the figures of docs/commands/check.md.

    python scripts/measure_check.py /data/train --split test --demo /data/demo --json check.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.csv as pa_csv
from PIL import Image

import cxu
from cxu import store, table
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.check.folder import check_rows
from cxu.check.geometry import resample_ring
from cxu.check.plan import plan_check
from cxu.check.run import CheckReport, check_images
from cxu.frame import MODEL_SIZE
from cxu.model.weight_source import load
from cxu.model.weights import Weights
from cxu.training.data import read_folder

Pixels = np.ndarray


class Films(NamedTuple):
    """Films with their table: names, sources, files, landmarks [n, 120, 2] px of the 1024 model frame."""

    names: list[str]
    sources: list[str]
    files: list[Path]
    landmarks_xy: np.ndarray


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--demo", type=Path, help="folder of further films; their table is made by the other network")
    parser.add_argument("--only", nargs="*", help="these changes alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=Path, help="folder for a CSV of every film under each change")
    given = parser.parse_args()
    weights, films, measured = load("bundled"), annotated(given.data, given.split), {}
    print("| change | films | " + " | ".join(("ok", "unsure", "the most frequent others")) + " | found of a source |")
    print("|---|---|---|---|---|---|")
    wanted = {name: change for name, change in CHANGES.items() if not given.only or name in given.only}
    for name, (of_image, of_table) in wanted.items():
        report(name, changed(films, of_image, of_table, weights), measured, given.rows)
    if not given.only:
        by_network = films._replace(landmarks_xy=seen_by_other(films.files))
        for name in ("none", "20 px up", "mirrored image", "other patients"):
            of_image, of_table = CHANGES[name]
            report(
                f"{name}; table by the other network",
                changed(by_network, of_image, of_table, weights),
                measured,
                given.rows,
            )
        if given.demo:
            report("demo films; table by the other network", demo(given.demo, weights), measured, given.rows)
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n")


def annotated(data: Path, split: str) -> Films:
    """Return the annotated films of a part."""
    part = read_folder(data).part(split)
    files = {path.stem: path for path in (data / "images").iterdir()}
    names = [row.name for row in part.rows]
    return Films(names, [row.dataset.lower() for row in part.rows], [files[name] for name in names], part.landmarks_xy)


def seen_by_other(files: list[Path]) -> np.ndarray:
    """Return what the network without skip connections sees in square films, [n, 120, 2] px of the 1024 frame."""
    rows = cxu.predict_images([str(path) for path in files], weights="bundled:no-skip")
    sides = np.maximum(table.scalar_column(rows, "height"), table.scalar_column(rows, "width"))
    return table.landmarks_of(rows) * (MODEL_SIZE / sides[:, None, None])


def moved(film: Pixels, right: float = 0, down: float = 0, scale: float = 1) -> Pixels:
    """Return a film whose content lies elsewhere (px of the 1024 frame), scaled about its centre; black beside it."""
    side = film.shape[0]
    middle, step = (side - 1) / 2, side / MODEL_SIZE
    left, top = (middle - (middle + distance * step) / scale for distance in (right, down))
    placed = Image.fromarray(film).transform(
        (side, side), Image.Transform.AFFINE, (1 / scale, 0, left, 0, 1 / scale, top), Image.Resampling.BILINEAR
    )
    return np.asarray(placed)


def exchanged(landmarks_xy: np.ndarray) -> np.ndarray:
    """Return landmarks [n, 120, 2] with right and left lung named the other way round."""
    return np.stack(
        [
            np.concatenate(
                [
                    resample_ring(np.roll(one[LEFT_LUNG.nodes][::-1], 1, axis=0), RIGHT_LUNG.n_nodes),
                    resample_ring(np.roll(one[RIGHT_LUNG.nodes][::-1], 1, axis=0), LEFT_LUNG.n_nodes),
                    one[HEART.nodes],
                ]
            )
            for one in landmarks_xy
        ]
    )


def flipped(landmarks_xy: np.ndarray) -> np.ndarray:
    """Return landmarks [n, 120, 2] of a table that flips x: the right lung comes to lie on the image's right."""
    return landmarks_xy * (-1.0, 1.0) + (MODEL_SIZE - 1.0, 0.0)


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values


Change = tuple[Callable[[Pixels], Pixels], Callable[[np.ndarray], np.ndarray]]
CHANGES: Final[dict[str, Change]] = {
    "none": (_as_it_is, _as_it_is),
    "5 px up": (lambda film: moved(film, down=-5), _as_it_is),
    "10 px up": (lambda film: moved(film, down=-10), _as_it_is),
    "20 px up": (lambda film: moved(film, down=-20), _as_it_is),
    "20 px to the right": (lambda film: moved(film, right=20), _as_it_is),
    "40 px up": (lambda film: moved(film, down=-40), _as_it_is),
    "0.9 times as large": (lambda film: moved(film, scale=0.9), _as_it_is),
    "0.95 times as large": (lambda film: moved(film, scale=0.95), _as_it_is),
    "1.1 times as large": (lambda film: moved(film, scale=1.1), _as_it_is),
    "mirrored image": (lambda film: film[:, ::-1], _as_it_is),
    "mirrored table": (_as_it_is, flipped),
    "mirrored image and table": (lambda film: film[:, ::-1], flipped),
    "names exchanged": (_as_it_is, exchanged),
    "upside down": (lambda film: film[::-1, ::-1], _as_it_is),
    "other patients": (_as_it_is, lambda landmarks_xy: np.roll(landmarks_xy, 1, axis=0)),
}


def changed(
    films: Films, of_image: Callable[[Pixels], Pixels], of_table: Callable[..., Any], weights: Weights
) -> CheckReport:
    """Return what is said of films and table that were changed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for source in set(films.sources):
            (folder / "films" / source).mkdir(parents=True)
        for name, source, path in zip(films.names, films.sources, films.files, strict=True):
            pixels = np.ascontiguousarray(of_image(np.asarray(Image.open(path).convert("L"))))
            Image.fromarray(pixels).save(folder / "films" / source / f"{name}.png", compress_level=1)
        landmarks_xy = np.empty_like(films.landmarks_xy)
        of_source = np.array(films.sources)
        for source in set(films.sources):  # other patients are of the same hospital
            landmarks_xy[of_source == source] = of_table(films.landmarks_xy[of_source == source])
        columns = {"source": films.sources, "image_id": films.names, "height": MODEL_SIZE, "width": MODEL_SIZE}
        columns |= {"frame": "model", "landmarks_xy": landmarks_xy, "model_id": "annotated"}
        store.write_table(table.build_table(columns, len(films.names)), folder / "rows.parquet")
        return look(folder / "rows.parquet", folder / "films", len(films.names), weights)


def demo(folder: Path, weights: Weights) -> CheckReport:
    """Return what is said of further films and what the other network sees in them."""
    with tempfile.TemporaryDirectory() as name:
        rows = cxu.predict_images(str(folder), weights="bundled:no-skip", source="demo")
        store.write_table(rows, Path(name) / "rows.parquet")
        return look(Path(name) / "rows.parquet", folder, len(rows), weights)


def look(rows: Path, films: Path, n_rows: int, weights: Weights) -> CheckReport:
    """Return what `cxu check` says."""
    return check_images(plan_check([store.open_table(rows)], [str(films)], n_rows=3 * n_rows), weights)


def report(name: str, found: CheckReport, measured: dict[str, Any], folder: Path | None) -> None:
    """Print a line, and keep the numbers."""
    counts = Counter(row.verdict for row in found.rows)
    others = ", ".join(f"{verdict} {n}" for verdict, n in counts.most_common() if verdict not in ("ok", "unsure"))
    by_source = "; ".join(
        f"{one.source} {', '.join(finding.kind for finding in one.findings if finding.is_fault) or 'nothing'}"
        for one in found.sources
    )
    print(f"| {name} | {len(found.rows)} | {counts['ok']} | {counts['unsure']} | {others} | {by_source} |", flush=True)
    measured[name] = {"verdicts": counts, "sources": [one.as_json() for one in found.sources]}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        pa_csv.write_csv(check_rows(found.rows), folder / f"{name.replace(' ', '-').replace(';', '')}.csv")


if __name__ == "__main__":
    main()
