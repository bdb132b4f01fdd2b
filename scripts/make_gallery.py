"""Make the pictures of the gallery: every kind of overlay and figure, from synthetic rows and drawn films.

    python scripts/make_gallery.py docs/gallery

No picture shows a person: outlines come from the shape model, standard deviations, radii and RCA are made up, and the
films are phantoms. Each picture is made by the command that the page shows below it, then reduced in size and colours
where it would be large.
"""

from __future__ import annotations

import argparse
import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cxu import files, store, table
from cxu.anatomy import ORGANS
from cxu.canvas import BLANK, INK, PAPER, sigma_colours
from cxu.frame import MODEL_SIZE
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_rca, sample_shapes, sample_sigmas

SEED = 7
FILM_PX = 512
N_FILMS = 12
N_ROWS = 2500
SCORE = 2.2  # times what cxu.shape draws: about as uncertain as published rows
RADIUS = 2.7  # standard deviations to a made-up radius
GRAIN_PX = 2.5
GREYISH = 14  # levels between the strongest and the weakest channel
N_GREYS = 70
N_SIGMAS = 40
MOST_BYTES = 150_000
MOST_PX = 1150


class Picture(NamedTuple):
    """A picture of the gallery: its name there, the command that makes it, and which file of that command it is."""

    name: str
    command: str
    made: str


SETUP = ("cxu filter films.parquet --max-std 12 --name strict",)
PICTURES = (
    Picture(
        "overlay-uncertainty.png",
        "cxu overlay films.parquet --images films/ --out by-uncertainty/",
        "by-uncertainty/synthetic/film_09.png",
    ),
    Picture(
        "overlay-filtered.png",
        "cxu overlay strict --images films/ --out filtered/",
        "filtered/synthetic/film_09.png",
    ),
    Picture(
        "overlay-radius.png",
        "cxu overlay films.parquet --images films/ --colour radius --out by-radius/",
        "by-radius/synthetic/film_09.png",
    ),
    Picture(
        "overlay-organ.png",
        "cxu overlay films.parquet --images films/ --colour organ --band 0 --out by-organ/",
        "by-organ/synthetic/film_09.png",
    ),
    Picture(
        "overlay-sheet.png",
        "cxu overlay strict --images films/ --sheet --columns 3 --rows 2 --order uncertain --out sheets/",
        "sheets/sheet-001.png",
    ),
    Picture(
        "overlay-blank.png",
        "cxu overlay a.parquet --sheet --columns 6 --rows 2 --size 200 --limit 12 --seed 1 --out shapes/",
        "shapes/sheet-001.png",
    ),
    Picture("plot-nodes.png", "cxu plot nodes a.parquet b.parquet --out nodes.png", "nodes.png"),
    Picture("plot-sigma.png", "cxu plot sigma a.parquet b.parquet --out sigma.png", "sigma.png"),
    Picture("plot-kept.png", "cxu plot kept a.parquet b.parquet --out kept.png", "kept.png"),
    Picture("plot-rca.png", "cxu plot rca a.parquet b.parquet --out rca.png", "rca.png"),
    Picture("plot-ctr.png", "cxu plot ctr a.parquet b.parquet --out ctr.png", "ctr.png"),
    Picture("plot-ctr-few.png", "cxu plot ctr films.parquet --out ctr-few.png", "ctr-few.png"),
)


def main() -> None:
    """Write the pictures into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--only", default="", help="only pictures whose name begins so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cxu-gallery-") as folder:
        make_input(Path(folder))
        for line in SETUP:
            run(line, Path(folder))
        for picture in PICTURES:
            if picture.name.startswith(options.only):
                run(picture.command, Path(folder))
                content = reduced(Path(folder, picture.made))
                files.write_bytes(options.out / picture.name, content)
                print(f"{options.out / picture.name}: {len(content):,} bytes")


def run(line: str, folder: Path) -> None:
    """Run a command line of cxu in ``folder``."""
    command = [sys.executable, "-P", "-m", *shlex.split(line)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{line} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def make_input(folder: Path) -> None:
    """Write films and tables, synthetic all of them."""
    rng = np.random.default_rng(SEED)
    shapes, sigmas = sample_shapes(load_shape_model(), N_FILMS, rng), films_sigmas(rng)
    scale = FILM_PX / MODEL_SIZE
    ids = [f"film_{number:02d}" for number in range(1, N_FILMS + 1)]
    (folder / "films").mkdir()
    for image_id, shape in zip(ids, shapes, strict=True):
        film = Image.fromarray(synthetic_background(shape, FILM_PX, rng))
        # without its grain, which would be most of the bytes of a picture
        film.filter(ImageFilter.GaussianBlur(GRAIN_PX)).save(folder / "films" / f"{image_id}.png")
    columns = {
        "frame": "image",
        "height": FILM_PX,
        "width": FILM_PX,
        "frame_side": float(FILM_PX),
        "frame_offset_xy": np.zeros((N_FILMS, 2), np.float32),
        "frame_exact": True,
        "radius90_px": RADIUS * scale * table.node_uncertainty(sigmas),
    }
    write_rows(folder / "films.parquet", "synthetic", ids, shapes * scale, sigmas * scale, FILM_PX, columns)
    for name, factor in (("a", SCORE), ("b", 1.5 * SCORE)):
        shapes, sigmas = sample_shapes(load_shape_model(), N_ROWS, rng), sample_sigmas(N_ROWS, rng)
        rca = sample_rca(table.node_uncertainty(sigmas), rng)
        columns = {
            "frame": "model",
            "height": MODEL_SIZE,
            "width": MODEL_SIZE,
            "rca_mean": rca[:, 0],
            "rca_max": rca[:, 1],
        }
        ids = [f"{name}_{number:04d}" for number in range(N_ROWS)]
        source = f"synthetic {name}"
        write_rows(folder / f"{name}.parquet", source, ids, shapes, factor * sigmas, MODEL_SIZE, columns)


def films_sigmas(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the standard deviations of the films, px of the model frame: some certain, some not, some in part."""
    kinds = [(0.0, 0.0)] * 2 + [(1.0, 0.0)] * 6 + [(0.0, 0.0)] * 2 + [(0.0, 1.0)] * 2
    drawn = [sample_sigmas(1, rng, uncertain_runs=runs, uncertain_rows=whole) for runs, whole in kinds]
    return SCORE * np.concatenate(drawn)


def write_rows(
    path: Path,
    source: str,
    ids: list[str],
    landmarks_xy: npt.NDArray[np.floating],
    sigma_xy: npt.NDArray[np.float32],
    side: float,
    columns: dict[str, object],
) -> None:
    """Write rows as a table: landmarks and sigmas in px of their frame, whose model frame has that side."""
    sides = np.full(len(ids), side)
    rows = {
        "source": source,
        "image_id": ids,
        "model_id": "synthetic",
        "n_samples": 50,
        "landmarks_xy": landmarks_xy.astype(np.float32),
        **table.sigma_columns(sigma_xy.astype(np.float32), sides),
        **columns,
    }
    store.write_table(table.build_table(rows, len(ids)), path)


def reduced(path: Path) -> bytes:
    """Return a picture as a PNG for the page: no wider than that, and in few colours if it would be large."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((MOST_PX, 2 * MOST_PX), Image.Resampling.LANCZOS)
    content, share = png(picture), 1.0
    while len(content) > MOST_BYTES:
        size = (round(share * picture.width), round(share * picture.height))
        content = png(in_few_colours(picture.resize(size, Image.Resampling.LANCZOS)))
        share *= 0.95
    return content


def png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def in_few_colours(picture: Image.Image) -> Image.Image:
    """Return a picture in 256 colours, those that mean something among them: greys would else take nearly all."""
    pixels = np.asarray(picture)
    coloured = pixels[np.ptp(pixels, axis=2) > GREYISH]
    greys = np.repeat(np.rint(np.linspace(0, 255, N_GREYS)), 3).reshape(-1, 3)
    meant = [PAPER, BLANK, INK, *(organ.colour_rgb for organ in ORGANS), *sigma_colours(np.linspace(0, 24, N_SIGMAS))]
    known = np.concatenate([greys, meant]).astype(int)
    others = Image.fromarray(coloured[None]).quantize(256 - len(known)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*known.ravel().tolist(), *others])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
