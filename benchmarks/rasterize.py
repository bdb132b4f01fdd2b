"""How fast masks are drawn and written, against the usual loop: pandas, run lengths to arrays, OpenCV's PNG.

    python benchmarks/rasterize.py                              # makes 2,048 rows first, in a temporary folder
    python benchmarks/rasterize.py --home HOME --csv FILE.csv   # both with the same rows of MIMIC-CXR-JPG
    python benchmarks/rasterize.py --folder /dev/shm            # without a disk

Either side writes the same images, one of labels a row, then one an organ; every pixel is compared. They take turns, in
one process and in two, which are up before the clock starts. Prints masks a second and their ratio, medians over runs
next to each other; then the bulk formats, and where the time of a label image goes; last the ratio of labels in two
processes.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
import pandas as pd
from fabricate import write_csv, write_home

from cxu import files, png
from cxu.anatomy import ORGANS, OrganName
from cxu.csv_writer import ORGAN_COLUMNS
from cxu.frame import MODEL_SIZE
from cxu.maskplan import plan_masks
from cxu.masks import MaskFormat, MaskOptions, OrganMask, RowShape, draw_organs, merge_window
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row
from cxu.rasterize import rasterize_table
from cxu.sharing import Share
from cxu.store import Home, Shard, StoredTable

SOURCE: Final = "mimic"
ROUNDS: Final = 5
CHUNK_ROWS: Final = 256
TOGETHER: Final = 4  # rows that go from step to step together: more would not stay in the cache
FORMATS: Final[tuple[MaskFormat, ...]] = ("labels", "organs")
BULK: Final[tuple[MaskFormat, ...]] = ("tar", "rle")


class Pool(Protocol):
    """What both sides need of processes."""

    def imap_unordered(self, function: Callable[[Any], Any], tasks: Iterable[Any], /) -> Iterator[Any]:
        """Yield ``function(task)`` for each task."""
        ...


class Here:
    """One process: this one."""

    def imap_unordered(self, function: Callable[[Any], Any], tasks: Iterable[Any], /) -> Iterator[Any]:
        """Yield ``function(task)`` for each task."""
        return map(function, tasks)


def usual(pool: Pool, csv: Path, format_: MaskFormat, out: Path) -> None:
    """Draw a whole CSV by the usual loop, chunks of rows in processes."""
    out.mkdir()
    columns = ["dicom_id", *ORGAN_COLUMNS.values()]
    chunks = ((chunk, format_, out) for chunk in pd.read_csv(csv, usecols=columns, chunksize=CHUNK_ROWS))
    list(pool.imap_unordered(usual_chunk, chunks))


def usual_chunk(task: tuple[pd.DataFrame, str, Path]) -> None:
    """Write the masks of some rows of the published CSV as one would."""
    rows, format_, out = task
    texts = [rows[organ.published_column].tolist() for organ in ORGANS]
    for image_id, *of_organs in zip(rows["dicom_id"].tolist(), *texts, strict=True):
        masks = [decode(text) for text in of_organs]
        if format_ == "labels":
            labels = np.zeros((MODEL_SIZE, MODEL_SIZE), np.uint8)
            for organ, mask in zip(ORGANS, masks, strict=True):
                labels[mask == 1] = organ.label
            cv2.imwrite(f"{out}/{image_id}.png", labels)
        else:
            for organ, mask in zip(ORGANS, masks, strict=True):
                cv2.imwrite(f"{out}/{image_id}.{organ.name}.png", mask)


def decode(text: str) -> np.ndarray:
    """Return a mask uint8 of published run lengths, by a slice a run: faster than sums over all pixels."""
    runs = np.fromstring(text, np.int64, sep=" ")
    mask = np.zeros(MODEL_SIZE * MODEL_SIZE, np.uint8)
    for start, length in zip((runs[::2] - 1).tolist(), runs[1::2].tolist(), strict=True):
        mask[start : start + length] = 1
    return mask.reshape(MODEL_SIZE, MODEL_SIZE)


def ours(pool: Pool, home: Path, format_: MaskFormat, out: Path, processes: int) -> None:
    """Draw a source by cxu, a share of its blocks in each process."""
    shares = [Share(number + 1, processes) for number in range(processes)]
    list(pool.imap_unordered(ours_share, [(home, format_, out, share) for share in shares]))


def ours_share(task: tuple[Path, MaskFormat, Path, Share]) -> None:
    """Plan, and draw a share of the blocks."""
    home, format_, out, share = task
    plan = plan_masks(Home(home).open(SOURCE), out, MaskOptions("full", format_), Target())
    assert not rasterize_table(plan, share=share).failures


def compare(ours_in: Path, theirs_in: Path) -> int:
    """Compare every pixel of two folders of PNG; return the number of files."""
    names = sorted(path.name for path in theirs_in.glob("*.png"))
    assert names == sorted(path.name for path in ours_in.glob("*.png"))
    for name in names:
        drawn, expected = (cv2.imread(f"{folder}/{name}", cv2.IMREAD_UNCHANGED) for folder in (ours_in, theirs_in))
        assert np.array_equal(drawn, expected), name
    return len(names)


def timed(function: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return seconds and result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def race(pool: Pool, processes: int, home: Path, csv: Path, folder: Path, format_: MaskFormat, rounds: int) -> float:
    """Let both sides write one format, in turn; print masks a second and return their ratio, medians of all rounds."""
    seconds, n_masks = [], 0
    for number in range(rounds):
        # a folder of its own for each, kept to the end: ext4 makes files slowly where some were removed just now
        mine, theirs = (folder / f"{side}-{format_}-{processes}-{number}" for side in ("cxu", "usual"))
        slow, _ = timed(usual, pool, csv, format_, theirs)
        fast, _ = timed(ours, pool, home, format_, mine, processes)
        n_masks = n_masks or compare(mine / SOURCE, theirs)
        seconds.append((fast, slow))
    fast, slow = (n_masks / statistics.median(side) for side in zip(*seconds, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in seconds)
    print(
        f"{title(format_, processes)}cxu {fast:6,.0f} masks/s   usual loop {slow:6,.0f} masks/s   ratio {ratio:5.1f}",
        flush=True,
    )
    return ratio


def title(format_: MaskFormat, processes: int) -> str:
    """Return how a line begins."""
    return f"{format_:8}{processes:>2} {'process' if processes == 1 else 'processes':11}"


def show_bulk(pool: Pool, processes: int, home: Path, folder: Path, n_rows: int) -> None:
    """Print how fast the formats of one file a block are."""
    for format_ in BULK:
        out = folder / f"cxu-{format_}-{processes}"
        seconds, _ = timed(ours, pool, home, format_, out, processes)
        size = sum(path.stat().st_size for path in (out / "masks").iterdir())
        print(
            f"{title(format_, processes)}cxu {n_rows / seconds:6,.0f} rows/s    {size / n_rows / 1000:5.1f} kB a row",
            flush=True,
        )


def show_stages(stored: StoredTable, folder: Path, rounds: int) -> None:
    """Print how the time of a label image adds up, in one process: the least of all rounds."""
    least: dict[str, float] = {}
    for number in range(rounds):
        out = folder / f"stages-{number}"
        out.mkdir()
        for name, seconds in stages(stored, out).items():
            least[name] = min(seconds, least.get(name, seconds))
    total = sum(least.values())
    sums = {"all": total, "without encoding": total - least["encode"], "without writing": total - least["write"]}
    for name, seconds in {**least, **sums}.items():
        print(f"{name:24}{1000 * seconds / stored.rows:6.3f} ms a label image")


def stages(stored: StoredTable, out: Path) -> dict[str, float]:
    """Return the seconds of each step from table to files."""
    options, names, seconds = MaskOptions("full", "labels"), itertools.count(), Counter[str]()
    steps: dict[str, Callable[[Any], Any]] = {
        "fill": lambda rows: [merge_window(organs, options) for organs in rows],
        "encode": lambda windows: [png.encode_label_window(window) for window in windows],
        "write": lambda contents: [files.write_bytes(out / f"{next(names)}.png", content) for content in contents],
    }
    for shard in stored.shards():
        taken, placed = timed(placed_rows, shard, options)
        seconds["read, place"] += taken
        for start in range(0, len(placed), TOGETHER):
            made: Any = placed[start : start + TOGETHER]
            for name, step in steps.items():
                taken, made = timed(step, made)
                seconds[name] += taken
    return seconds


def placed_rows(shard: Shard, options: MaskOptions) -> list[dict[OrganName, OrganMask]]:
    """Return what of each row is to be filled."""
    rows = shard.read((*KEY_COLUMNS, "landmarks_xy"))
    pairs = zip(RowKey.all_of(rows), RowShape.all_of(rows), strict=True)
    return [draw_organs(shape, place_row(key, None, Target()), options) for key, shape in pairs]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home with the rows of the CSV; both are made up where left out")
    parser.add_argument("--csv", type=Path, help="a published CSV of MIMIC-CXR-JPG in the model frame")
    parser.add_argument("--rows", type=int, default=2048, help="rows to make up (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where masks are written for a while (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that either side runs (default: %(default)s)")
    given = parser.parse_args()
    if (given.home is None) != (given.csv is None):
        parser.error("--home and --csv go together")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        home, csv = given.home or folder / "home", given.csv or folder / "rows.csv"
        if given.csv is None:
            write_home(home, given.rows, source=SOURCE)
            write_csv(csv, given.rows, source=SOURCE)
        files.sha256_of(csv)  # so that nobody pays for the disk
        stored = Home(home).open(SOURCE)
        print(f"{stored.rows:,} rows of {MODEL_SIZE} px, medians of {given.rounds} rounds; a mask is one PNG")
        with multiprocessing.get_context("spawn").Pool(2) as two:
            two.map(time.sleep, [1.0, 1.0], 1)  # by then both have all that they need
            pools: dict[int, Pool] = {1: Here(), 2: two}
            ratios = {
                (format_, processes): race(pool, processes, home, csv, folder, format_, given.rounds)
                for format_, (processes, pool) in itertools.product(FORMATS, pools.items())
            }
            for processes, pool in pools.items():
                show_bulk(pool, processes, home, folder, stored.rows)
        show_stages(stored, folder, given.rounds)
    print(f"ratio cxu / usual loop, labels, 2 processes: {ratios['labels', 2]:.1f}")


if __name__ == "__main__":
    main()
