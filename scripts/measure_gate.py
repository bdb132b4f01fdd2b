"""Measure the gate: what it says of good films, and of images that are none; the figures of docs/results.md.

Every image is written to a file and goes through the call that `cxu predict` makes. Two families of damage were never
looked at when limits were chosen, and stand apart: films in shuffled tiles, and quarters of films.

    python scripts/measure_gate.py /data/train --json gate.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
import skimage.data
import skimage.util
from PIL import Image
from pydicom.data import get_testdata_file

import cxu
from cxu.errors import ImageError
from cxu.training.data import read_folder

SIDE: Final = 512
N_DRAWN: Final = 20
Pixels = np.ndarray
# what ships with scikit-image and with pydicom: others would be downloads
PHOTOGRAPHS: Final = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "horse"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
)
SLICES: Final = ("CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small.dcm", "examples_overlay.dcm")
QUALITIES: Final = ("ok", "review", "reject", "refused")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--films", type=int, default=40, help="films that are damaged in each way")
    parser.add_argument("--demo", type=Path, help="folder of further films")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, families in groups(given, Path(folder)).items():
            print(f"\n{title}\n\n| images | n | ok | review | reject | refused | median score | most common reason |")
            print("|---|---|---|---|---|---|---|---|")
            for name, paths in families.items():
                report[name] = judge(paths, given.weights)
                print(line_of(name, report[name]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


def groups(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return title → family → files, written into a folder where they are made."""
    part = read_folder(given.data).part(given.split)
    files = {path.stem: path for path in (given.data / "images").iterdir()}
    good = {
        f"{name}, {given.split}": [files[row.name] for row in part.rows if row.dataset == name]
        for name in dict.fromkeys(row.dataset for row in part.rows)
    }
    if given.demo:
        good["demo films"] = sorted(path for path in given.demo.iterdir() if path.suffix in {".png", ".dcm"})
    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(part.rows))[: given.films]
    films = [grey(files[part.rows[index].name]) for index in drawn]
    turned = {name: write(folder, name, map(change, films)) for name, change in TURNED.items()}
    left_out = {name: write(folder, name, (change(film, rng) for film in films)) for name, change in LEFT_OUT.items()}
    made = {name: write(folder, name, (make(rng) for _ in range(N_DRAWN))) for name, make in MADE.items()}
    return {
        "Good films": good,
        "Turned and mirrored films": turned,
        "No films": {
            **made,
            "photographs": write(folder, "photographs", photographs()),
            "CT and MR slices, DICOM": list(slices().values()),
            "CT and MR slices, PNG": write(folder, "slices", slice_pixels()),
        },
        "A film whose file says LATERAL": {"lateral": lateral(folder, films[:5])},
        "Left out of every choice": left_out,
    }


def grey(path: Path) -> Pixels:
    """Return a picture as grey values of 8 bits."""
    return np.asarray(Image.open(path).convert("L"))


def write(folder: Path, name: str, pictures: Iterator[Pixels]) -> list[Path]:
    """Write pictures as PNG and return the files."""
    target = folder / name.replace(" ", "_").replace("/", "_")
    target.mkdir()
    paths = []
    for index, pixels in enumerate(pictures):
        paths.append(target / f"{index:03}.png")
        Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1])
    return paths


TURNED: Final[dict[str, Callable[[Pixels], Pixels]]] = {
    "upside down": lambda film: film[::-1, ::-1],
    "flipped top to bottom": lambda film: film[::-1],
    "turned by 90° to the left": np.rot90,
    "turned by 90° to the right": lambda film: np.rot90(film, 3),
    "mirrored": lambda film: film[:, ::-1],
}


def tiles(film: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a film cut into 4 by 4 tiles in another order."""
    side = film.shape[0] // 4 * 4
    parts = [half for row in np.split(film[:side, :side], 4) for half in np.split(row, 4, axis=1)]
    order = rng.permutation(16)
    return np.vstack([np.hstack([parts[index] for index in order[at : at + 4]]) for at in range(0, 16, 4)])


def quarter(film: Pixels, rng: np.random.Generator) -> Pixels:
    """Return one quarter of a film."""
    height, width = (side // 2 for side in film.shape)
    top, left = rng.integers(0, 2, 2) * (height, width)
    return film[top : top + height, left : left + width]


LEFT_OUT: Final = {"shuffled tiles": tiles, "quarters of films": quarter}


def _ramp(rng: np.random.Generator) -> Pixels:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    return to_grey(x * np.cos(angle) + y * np.sin(angle))


def _radial(rng: np.random.Generator) -> Pixels:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - rng.uniform(0.3, 0.7, (2, 1, 1))
    return to_grey(np.hypot(x, y) * rng.choice([-1, 1]))


def _board(rng: np.random.Generator) -> Pixels:
    cell = int(rng.integers(8, 128))
    y, x = np.mgrid[:SIDE, :SIDE] // cell
    return np.where((x + y) % 2, 255, 0).astype(np.uint8)


def to_grey(values: Pixels) -> Pixels:
    """Return values stretched to 0 … 255."""
    low, high = values.min(), values.max()
    return np.rint(255 * (values - low) / (high - low)).astype(np.uint8)


MADE: Final[dict[str, Callable[[np.random.Generator], Pixels]]] = {
    "uniform noise": lambda rng: rng.integers(0, 256, (SIDE, SIDE), np.uint8),
    "Gaussian noise": lambda rng: np.clip(rng.normal(128, 50, (SIDE, SIDE)), 0, 255).astype(np.uint8),
    "black": lambda _: np.zeros((SIDE, SIDE), np.uint8),
    "white": lambda _: np.full((SIDE, SIDE), 255, np.uint8),
    "black with some noise": lambda rng: np.abs(rng.normal(0, 1, (SIDE, SIDE))).astype(np.uint8),
    "white with some noise": lambda rng: (255 - np.abs(rng.normal(0, 1, (SIDE, SIDE)))).astype(np.uint8),
    "gradients": _ramp,
    "radial gradients": _radial,
    "checkerboards": _board,
}


def photographs() -> Iterator[Pixels]:
    """Yield scikit-image's pictures in grey, and upside down, and as negatives."""
    for name in PHOTOGRAPHS:
        picture = np.asarray(Image.fromarray(skimage.util.img_as_ubyte(getattr(skimage.data, name)())).convert("L"))
        yield from (picture, picture[::-1], 255 - picture)


def slices() -> dict[str, Path]:
    """Return pydicom's slices of CT and MR that are there without a download, by name."""
    found = {name: get_testdata_file(name, download=False) for name in SLICES}
    return {name: Path(str(path)) for name, path in found.items() if path}


def slice_pixels() -> Iterator[Pixels]:
    """Yield the slices as pictures that have lost what their files said, in a wide window and in one for lungs."""
    for path in slices().values():
        values = pydicom.dcmread(path).pixel_array.astype(float)
        yield to_grey(values)
        yield to_grey(np.clip(values, *np.quantile(values, [0.3, 0.95])))


def lateral(folder: Path, films: list[Pixels]) -> list[Path]:
    """Write frontal films as DICOM that says LATERAL: the tag alone has to do."""
    paths = []
    for index, film in enumerate(films):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = pydicom.uid.generate_uid()
        header.Modality, header.ViewPosition = "CR", "LATERAL"
        header.Rows, header.Columns = film.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 8
        header.HighBit, header.PixelRepresentation = 7, 0
        header.PixelData = film.tobytes()
        paths.append(folder / f"lateral-{index}.dcm")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths


def judge(paths: list[Path], weights: str) -> dict[str, object]:
    """Return how many images of a family are ok, to review, to reject, and refused at reading; and why."""
    found: list[tuple[str, float, str | None]] = []
    readable = []
    for path in paths:
        try:
            readable.append(cxu.predict_images(path, weights=weights))
        except ImageError as error:
            found.append(("refused", 2.0, str(error).split(" has ")[-1].split(":")[0]))
    for rows in readable:
        columns = (rows[name][0].as_py() for name in ("quality", "quality_score", "quality_reason"))
        found.append(tuple(columns))  # type: ignore[arg-type]
    reasons = [reason.split("; ")[0] for _, _, reason in found if reason]
    return {
        "n": len(found),
        **{name: sum(quality == name for quality, _, _ in found) for name in QUALITIES},
        "median_score": float(np.median([score for _, score, _ in found])) if found else None,
        "reason": max(set(reasons), key=reasons.count) if reasons else "",
        "scores": sorted(round(float(score), 3) for _, score, _ in found),
    }


def line_of(name: str, counts: dict[str, object]) -> str:
    """Return a line of the table."""
    numbers = " | ".join(f"{counts[quality]}" for quality in QUALITIES)
    return f"| {name} | {counts['n']} | {numbers} | {counts['median_score']:.2f} | {counts['reason']} |"


if __name__ == "__main__":
    main()
