"""Fabricate tables as large as CheXmask-U: published CSV files, masks included, and homes of Parquet parts.

    python benchmarks/fabricate.py parquet FOLDER --rows 657566
    python benchmarks/fabricate.py csv FILE.csv --rows 50000 --source mimic

No row describes a person: outlines come from the shape model, standard deviations, RCA, ids and film sizes are made up
to look like the published ones. Row i of a source depends on the seed and i alone, so that any number of workers writes
the same bytes, and a CSV, once imported, holds the rows that the home of the same seed holds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

if __name__ == "__main__":
    # several processes of several threads each are slower; a script that imports this one decides for itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import files, store, table
from cxu.anatomy import N_NODES, ORGANS
from cxu.catalog import SOURCES, FrameName, find_source
from cxu.csv_writer import COLUMNS, ORGAN_COLUMNS
from cxu.engine import run_shards
from cxu.errors import CxuError, UsageError
from cxu.frame import MODEL_SIZE
from cxu.published import N_PUBLISHED_SAMPLES
from cxu.raster import paint_polygon
from cxu.shape import load_shape_model, sample_rca, sample_shapes, sample_sigmas

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

BLOCK_ROWS: Final = 256  # rows drawn together: a change of it changes every row
SLACK_PX: Final = 4  # px of the model frame by which landmarks may leave the film
ZOOM: Final = (0.75, 1.0)  # published chests fill less of the frame than those the shape model was made of
UNCERTAIN_ROWS: Final = 0.05  # share of rows that the network would be lost on
EXCHANGED_ROWS: Final = {"padchest": 0.6}  # share of rows with RCA exchanged and the size left blank
# Median image score of each source, px of the model frame: the paper has 7.5 for PadChest to 12.7 for CheXpert.
TYPICAL_SCORE_PX: Final = {"mimic": 8.0, "chexpert": 12.7, "chestxray8": 8.0, "padchest": 7.5, "vindr": 8.5}
DRAWN_SCORE_PX: Final = 3.8  # what cxu.shape draws instead
# Usual sizes of films, height and width.
FILM_SIZES_HW: Final = {
    "mimic": ((3056, 2544), (2544, 3056), (2022, 2022), (2828, 2320)),
    "chexpert": ((2320, 2828), (2828, 2320), (2022, 2022), (2320, 2320)),
    "chestxray8": ((MODEL_SIZE, MODEL_SIZE),),
    "padchest": ((2991, 2992), (4280, 3520), (2539, 3050), (2836, 2336)),
    "vindr": ((2880, 2304), (3072, 3072), (2584, 2345), (2336, 2836)),
}
_HUNDREDTHS: Final = pa.array([f"{number:02d}" for number in range(100)])


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one source and frame as a published file states them, before they are text or a table.

    Attributes
    ----------
    ids
        Published ids of the n rows, image suffix included.
    landmarks_xy
        int64 [n, 120, 2] (x, y), px of the frame.
    sigma_hundredths
        int64 [n, 120, 2] (x, y), hundredths of a px of the frame.
    rca
        float64 [n, 2]: mean and max.
    shape_hw
        int64 [n, 2]: height and width of the frame, px.
    exchanged
        bool [n]: the file has RCA mean and max exchanged, and leaves height and width blank.
    """

    source: str
    frame: FrameName
    ids: list[str]
    landmarks_xy: IntArray
    sigma_hundredths: IntArray
    rca: FloatArray
    shape_hw: IntArray
    exchanged: npt.NDArray[np.bool_]

    def __getitem__(self, kept: slice) -> Block:
        """Return a stretch of the rows."""
        names = ("ids", "landmarks_xy", "sigma_hundredths", "rca", "shape_hw", "exchanged")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


def draw_block(number: int, seed: int, source: str, frame: FrameName) -> Block:
    """Draw the rows ``number * BLOCK_ROWS`` to ``(number + 1) * BLOCK_ROWS - 1`` of a source.

    The model frame and the image frame of a seed hold the same rows.
    """
    rng = np.random.default_rng([seed, list(SOURCES).index(source), number])
    ids = _draw_ids(source, number * BLOCK_ROWS, rng)
    film_hw = rng.choice(np.array(FILM_SIZES_HW[source]), BLOCK_ROWS)
    side = film_hw.max(axis=1)
    pad_xy = (side[:, None] - film_hw[:, ::-1]) // 2
    shapes_xy = sample_shapes(load_shape_model(), BLOCK_ROWS, rng).astype(np.float64)
    zoom = rng.uniform(*ZOOM, BLOCK_ROWS)
    landmarks_xy = _fit_to_film(shapes_xy, zoom, pad_xy * (MODEL_SIZE / side[:, None]))
    sigma_xy = sample_sigmas(BLOCK_ROWS, rng, uncertain_rows=UNCERTAIN_ROWS).astype(np.float64)
    # published values have 16 digits, of which the table keeps seven
    rca = sample_rca(sigma_xy.mean(axis=2), rng) + 1e-8 * rng.random((BLOCK_ROWS, 2))
    exchanged = rng.random(BLOCK_ROWS) < EXCHANGED_ROWS.get(source, 0.0)
    sigma_xy *= TYPICAL_SCORE_PX[source] / DRAWN_SCORE_PX
    if frame == "image":
        scale = (side / MODEL_SIZE)[:, None, None]
        landmarks_xy, sigma_xy = landmarks_xy * scale - pad_xy[:, None], sigma_xy * scale
    return Block(
        source,
        frame,
        ids,
        np.rint(landmarks_xy).astype(np.int64),
        np.rint(100 * sigma_xy).astype(np.int64),
        rca,
        film_hw if frame == "image" else np.full_like(film_hw, MODEL_SIZE),
        exchanged,
    )


def _draw_ids(source: str, first: int, rng: np.random.Generator) -> list[str]:
    """Return the published ids of a block whose first row is ``first``; no other row of the source has any of them."""
    rows = range(first, first + BLOCK_ROWS)
    letters = rng.bytes(20 * BLOCK_ROWS).hex()
    words = [letters[40 * index : 40 * (index + 1)] for index in range(BLOCK_ROWS)]
    match source:
        case "mimic":
            return ["-".join(word[start : start + 8] for start in range(0, 40, 8)) for word in words]
        case "chexpert":
            return [f"train/patient{row // 3 + 1:05d}/study{row % 3 + 1}/view1_frontal.jpg" for row in rows]
        case "chestxray8":
            return [f"{row // 4 + 1:08d}_{row % 4:03d}.png" for row in rows]
        case "padchest":
            digits = [f"{int(word, 16) % 10**14:014d}" for word in words]
            return [
                f"2168401113669640{digit}{row:015d}_00-{row % 1000:03d}-{row % 191:03d}.png"
                for digit, row in zip(digits, rows, strict=True)
            ]
        case _:
            return [word[:32] for word in words]


def _fit_to_film(shapes_xy: FloatArray, zoom: FloatArray, pad_xy: FloatArray) -> FloatArray:
    """Scale shapes [n, 120, 2] by ``zoom`` [n], or by less, and shift them, so that they lie on their films.

    ``pad_xy`` [n, 2] is what was padded to either side of the film. All in px of the model frame.
    """
    first, last = pad_xy - SLACK_PX, MODEL_SIZE - 1 - pad_xy + SLACK_PX
    low, high = shapes_xy.min(axis=1), shapes_xy.max(axis=1)
    scale = np.minimum(zoom, ((last - first) / (high - low)).min(axis=1))[:, None]
    centre, half = (low + high) / 2, scale * (high - low) / 2
    moved = np.clip(centre, first + half, last - half)
    fitted: FloatArray = moved[:, None] + scale[:, None] * (shapes_xy - centre[:, None])
    return fitted


def to_table(block: Block) -> pa.Table:
    """Return the rows that ``cxu import`` would make of the block's text."""
    source, n_rows = SOURCES[block.source], len(block.ids)
    ids = [source.canonical_id(text) for text in block.ids]
    is_image, is_native = block.frame == "image", source.framing == "native"
    unknown = block.exchanged & (is_image and not is_native)
    height, width = np.where(unknown, np.nan, block.shape_hw.T)
    side = np.maximum(height, width) if is_image or is_native else np.full(n_rows, np.nan)
    offset_xy = -np.stack([(side - width) // 2, (side - height) // 2], axis=1) + 0.0  # turns -0.0 into 0.0
    sigma_xy = (block.sigma_hundredths / 100).astype(np.float32)
    columns: dict[str, Any] = {
        "source": source.name,
        "image_id": ids,
        "patient_id": [source.patient_id(text) for text in ids],
        "height": height,
        "width": width,
        "frame": block.frame,
        "frame_side": side,
        "frame_offset_xy": offset_xy.astype(np.float32),
        "frame_exact": pa.array(np.full(n_rows, source.framing in ("pad", "native")), mask=np.isnan(side)),
        "landmarks_xy": block.landmarks_xy.astype(np.float32),
        **table.sigma_columns(sigma_xy, side if is_image else None),
        "rca_mean": block.rca[:, 0].astype(np.float32),
        "rca_max": block.rca[:, 1].astype(np.float32),
        "rca_swapped": block.exchanged,
        "model_id": table.PUBLISHED_MODEL,
        "n_samples": N_PUBLISHED_SAMPLES,
    }
    return table.build_table(columns, n_rows)


def header_of(source: str) -> str:
    """Return the header of a source's published file."""
    return ",".join((SOURCES[source].id_column, *COLUMNS[1:]))


def to_lines(block: Block) -> list[str]:
    """Return the rows as lines of a published file, in the order of :func:`header_of`, without line ends."""
    exchanged = block.exchanged[:, None]
    # sizes are whole numbers where all are known; pandas writes them as decimals where some are blank
    size_text = pa.array(block.shape_hw.ravel()).cast(pa.string())
    if block.source in EXCHANGED_ROWS:
        size_text = pc.binary_join_element_wise(size_text, "0", ".")
    height, width = _columns(pc.if_else(pa.array(np.repeat(block.exchanged, 2)), "", size_text))
    fields = [
        pa.array(block.ids, pa.string()),
        *_columns(pa.array(np.where(exchanged, block.rca[:, ::-1], block.rca).ravel()).cast(pa.string())),
        _quoted(_joined(pa.array(block.landmarks_xy.ravel()).cast(pa.string()), _widths(block), ",")),
        _quoted(_joined(_decimals(block.sigma_hundredths.ravel()), _widths(block), ",")),
        *(masks_text(block, name) for name in ORGAN_COLUMNS),
        height,
        width,
    ]
    lines: list[str] = pc.binary_join_element_wise(*fields, ",").to_pylist()
    return lines


def _widths(block: Block) -> IntArray:
    return np.full(len(block.ids), 2 * N_NODES)


def _columns(pairs: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return every other value of an array, from the first and from the second on."""
    first = pa.array(np.arange(0, len(pairs), 2))
    return pairs.take(first), pairs.take(pc.add(first, 1))


def _joined(words: pa.Array, counts: IntArray, separator: str) -> pa.Array:
    """Return texts [n] of ``counts`` words each."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words), separator)


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def _decimals(hundredths: IntArray) -> pa.Array:
    """Return numbers of two decimals as text."""
    whole, rest = np.divmod(hundredths, 100)
    return pc.binary_join_element_wise(pa.array(whole).cast(pa.string()), _HUNDREDTHS.take(pa.array(rest)), ".")


def masks_text(block: Block, organ_name: str) -> pa.Array:
    """Return the published RLE [n] of an organ: the fill of its polygon in the frame."""
    organ = next(organ for organ in ORGANS if organ.name == organ_name)
    shapes = block.shape_hw.tolist()
    runs = [
        polygon_runs(points, (h, w)) for points, (h, w) in zip(block.landmarks_xy[:, organ.nodes], shapes, strict=True)
    ]
    counts = np.array([numbers.size for numbers in runs], np.int64)
    return _joined(pa.array(np.concatenate([*runs, counts[:0]])).cast(pa.string()), counts, " ")


def polygon_runs(polygon_xy: IntArray, shape_hw: tuple[int, int]) -> IntArray:
    """Return the runs of the fill of a polygon [N, 2] as published: start (from 1) and length in turn, int64 [2 R].

    The same numbers as ``encode_rle(fill_polygon(polygon_xy, shape_hw))``, without a mask of the whole frame: only the
    pixels around the polygon are drawn. The polygon has to be narrower than the frame.
    """
    height, width = shape_hw
    limit_xy = np.array([width - 1, height - 1])
    left, top = np.clip(polygon_xy.min(axis=0), 0, limit_xy).tolist()
    right, bottom = np.clip(polygon_xy.max(axis=0), 0, limit_xy).tolist()
    assert right - left + 1 < width, "runs of one line would go on in the next"
    # a column of background in front of every line, and a line below, so that every run has both its ends
    window = np.zeros((bottom - top + 2, right - left + 2), np.uint8)
    paint_polygon(window[:-1, 1:], polygon_xy - [left, top], 1)
    flat = window.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    line, column = np.divmod(edges[::2], window.shape[1])
    runs = np.empty(edges.size, np.int64)
    runs[::2] = (line + top) * width + column + left  # counted from 1, and the column of background is one too
    runs[1::2] = edges[1::2] - edges[::2]
    return runs


def fabricate_rows(
    start: int, count: int, seed: int = 0, source: str = "mimic", frame: FrameName = "model"
) -> pa.Table:
    """Return the rows ``start`` to ``start + count - 1`` of a source as a table in the schema."""
    return table.concat_rows([to_table(block) for block in _blocks(start, count, seed, source, frame)])


def fabricate_lines(
    start: int, count: int, seed: int = 0, source: str = "mimic", frame: FrameName = "model"
) -> list[str]:
    """Return the same rows as lines of the published CSV, without line ends."""
    return [line for block in _blocks(start, count, seed, source, frame) for line in to_lines(block)]


def _blocks(start: int, count: int, seed: int, source: str, frame: FrameName) -> Iterator[Block]:
    """Yield these rows, cut where blocks begin."""
    name, stop = find_source(source).name, start + count
    for number in range(start // BLOCK_ROWS, max(stop - 1, start) // BLOCK_ROWS + 1):
        first = number * BLOCK_ROWS
        yield draw_block(number, seed, name, frame)[max(start - first, 0) : stop - first]


def rows_by_source(rows: int) -> dict[str, int]:
    """Divide ``rows`` among the sources in the proportion of their published rows; sources left without are left out.

    Examples
    --------
    >>> rows_by_source(10)
    {'mimic': 4, 'chexpert': 3, 'chestxray8': 1, 'padchest': 2}
    """
    published = np.array([source.rows_expected for source in SOURCES.values()])
    shares = np.diff(np.rint(rows * np.cumsum(published) / published.sum()), prepend=0).astype(int).tolist()
    return {name: share for name, share in zip(SOURCES, shares, strict=True) if share}


@dataclass(frozen=True)
class PartTask:
    """One file of rows to write: ``start`` to ``start + count - 1`` of a source."""

    path: Path
    start: int
    count: int
    seed: int
    source: str
    frame: FrameName


def write_part(task: PartTask) -> store.Part:
    """Write the rows of a task as a Parquet part."""
    store.write_table(fabricate_rows(task.start, task.count, task.seed, task.source, task.frame), task.path)
    return store.Part(task.path.name, task.count, files.sha256_of(task.path))


def write_lines(task: PartTask) -> Path:
    """Write the rows of a task as lines of a CSV."""
    with task.path.open("w", encoding="ascii", newline="") as stream:
        for line in fabricate_lines(task.start, task.count, task.seed, task.source, task.frame):
            stream.write(line + "\n")
    return task.path


def no_progress(done: int, total: int) -> None:
    """Say nothing of ``done`` rows of ``total``."""


def write_home(
    home: str | Path,
    rows: int,
    *,
    source: str | None = None,
    frame: FrameName = "model",
    seed: int = 0,
    workers: int = 1,
    progress: Progress = no_progress,
) -> store.Home:
    """Write a home whose sources hold ``rows`` rows in all, as if their files had been imported.

    Parameters
    ----------
    home
        Folder of the home; it may hold other sources or frames already.
    rows
        Number of rows, in the proportion of the published tables (:func:`rows_by_source`), or all of ``source``.
    frame
        Pixels that the landmarks are in.
    seed, workers
        The same seed gives the same bytes, however many processes write them.
    progress
        Called with the rows written so far, and ``rows``.

    Raises
    ------
    UsageError
        If the home holds one of the sources in this frame: made-up rows are never mixed with others.
    """
    shares = rows_by_source(rows) if source is None else {find_source(source).name: rows}
    made = store.Home(home)
    with ExitStack() as stack:
        staged: dict[str, Path] = {}
        for name in shares:
            stack.enter_context(made.lock(name, frame))
            made.tidy(name, frame)
            if made.listing(name, frame).files:
                raise UsageError(f"{made.root} already holds rows of {name} in the {frame} frame; give another folder")
            staged[name] = made.staging(name, frame, "fabricate")
            stack.callback(shutil.rmtree, staged[name], ignore_errors=True)
        tasks = [
            PartTask(
                staged[name] / f"part-{_key(name, frame, seed)[:12]}-{index:05d}.parquet",
                start,
                count,
                seed,
                name,
                frame,
            )
            for name, share in shares.items()
            for index, (start, count) in enumerate(_cut(share, store.SHARD_ROWS))
        ]
        parts: dict[str, list[store.Part]] = {name: [] for name in shares}
        done = 0
        for task, part in zip(tasks, run_shards(write_part, tasks, workers=workers), strict=True):
            parts[task.source].append(part)
            progress(done := done + part.rows, rows)
        for name, share in shares.items():
            record = store.SourceFile(
                f"fabricated-{name}-{frame}-seed{seed}", _key(name, frame, seed), share, 0, parts=tuple(parts[name])
            )
            made.publish(store.SourceListing(name, frame, (record,)), staged[name])
    return made


def _cut(rows: int, size: int) -> list[tuple[int, int]]:
    """Return starts and counts of pieces of at most ``size`` rows."""
    return [(start, min(size, rows - start)) for start in range(0, rows, size)]


def _key(source: str, frame: FrameName, seed: int) -> str:
    """Return what stands for the hash of the published file that never was."""
    return files.hash_of(["fabricated", source, frame, seed])


def write_csv(
    path: Path,
    rows: int,
    *,
    source: str = "mimic",
    frame: FrameName = "model",
    seed: int = 0,
    workers: int = 1,
    progress: Progress = no_progress,
) -> None:
    """Write ``rows`` rows of a source as a published CSV, masks included, a whole file or none.

    Parameters are those of :func:`write_home`; ``frame`` is that of the file: ``model`` for Preprocessed, ``image`` for
    OriginalResolution. A file that is there is replaced.

    Raises
    ------
    UsageError
        If ``path`` is a folder.
    """
    name = find_source(source).name
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        files.replacing(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=files.TEMP_PREFIX, ignore_cleanup_errors=True) as folder,
        temporary.open("wb") as stream,
    ):
        stream.write(f"{header_of(name)}\n".encode())
        tasks = [
            PartTask(Path(folder) / f"{start}.csv", start, count, seed, name, frame)
            for start, count in _cut(rows, BLOCK_ROWS)
        ]
        # parts travel as files: results that wait for the disk would fill the memory
        for task, part in zip(tasks, run_shards(write_lines, tasks, workers=workers), strict=True):
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, stream)
            part.unlink()
            progress(task.start + task.count, rows)


def show_progress(done: int, total: int) -> None:
    """Keep one line on stderr up to date."""
    print(f"\r{done:,} of {total:,} rows", end="" if done < total else "\n", file=sys.stderr, flush=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _at_least(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``least`` on."""

    def read(text: str) -> int:
        try:
            value = int(text.replace("_", "?"))
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {least} or more")
        return value

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    home = kinds.add_parser("parquet", help="a home: sources that filter, rasterize and measure take")
    home.add_argument("out", type=Path, metavar="FOLDER")
    home.add_argument("--source", choices=SOURCES, help="all rows of one source (default: divided as published)")
    home.add_argument("--frame", choices=get_args(FrameName), default="model", help="default: %(default)s")
    file = kinds.add_parser("csv", help="a published file, for import")
    file.add_argument("out", type=Path, metavar="FILE.csv")
    file.add_argument("--source", choices=SOURCES, default="mimic", help="default: %(default)s")
    file.add_argument(
        "--original", dest="frame", action="store_const", const="image", default="model", help="at original resolution"
    )
    for command in (home, file):
        command.add_argument("--rows", type=_at_least(1), required=True)
        command.add_argument("--seed", type=_at_least(0), default=0, help="default: %(default)s")
        command.add_argument("--workers", type=_at_least(1), default=os.cpu_count() or 1, help="default: %(default)s")
    return parser


def main() -> None:
    """Write what the command line asks for, and say how large it is and how long it took."""
    options = _parser().parse_args()
    settings = {name: getattr(options, name) for name in ("source", "frame", "seed", "workers")}
    write = write_home if options.kind == "parquet" else write_csv
    start = time.perf_counter()
    try:
        write(options.out, options.rows, **settings, progress=show_progress)
    except (CxuError, OSError) as error:
        sys.exit(f"fabricate: {error}")
    except KeyboardInterrupt:
        sys.exit("\nfabricate: stopped")
    seconds = time.perf_counter() - start
    print(
        f"{options.out}: {options.rows:,} synthetic rows, {size_of(options.out) / 1e6:,.1f} MB, {seconds:.0f} s, "
        f"{options.rows / seconds:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
