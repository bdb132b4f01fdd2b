"""How fast masks are drawn and written, against the usual loop: pandas, run lengths to arrays, OpenCV's PNG.

    python benchmarks/rasterize.py                              # makes 2,048 rows first, in a temporary folder
    python benchmarks/rasterize.py --home HOME --csv FILE.csv   # both with the same rows of MIMIC-CXR-JPG
    python benchmarks/rasterize.py --folder /dev/shm            # without a disk

Either side writes the same images, one of labels a row, then one an organ; every pixel is compared. They take turns, in
one process and in two; the clock starts when each process has finished its first rows. Prints masks a second and their
ratio, medians over runs next to each other; then the bulk formats, and where the time of a label image goes; last the
ratio of labels in two processes.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pandas as pd
from fabricate import write_csv, write_home

from cxu import files, maskplan, png
from cxu.anatomy import ORGANS, OrganName
from cxu.csv_writer import ORGAN_COLUMNS
from cxu.frame import MODEL_SIZE
from cxu.maskplan import plan_masks
from cxu.masks import MaskFormat, MaskOptions, OrganMask, RowShape, draw_organs, merge_window
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row
from cxu.rasterize import rasterize_table
from cxu.store import Home, Shard, StoredTable

SOURCE: Final = "mimic"
ROUNDS: Final = 5
CHUNK_ROWS: Final = 256  # rows that a process draws at a time, on either side
TOGETHER: Final = 4  # rows that go from step to step together: more would not stay in the cache
FORMATS: Final[tuple[MaskFormat, ...]] = ("labels", "organs")
PROCESSES: Final = (1, 2)
BULK: Final[tuple[MaskFormat, ...]] = ("tar", "rle")


@dataclass
class Clock:
    """Notes when rows are done."""

    marks: list[tuple[float, int]] = field(default_factory=list)

    def mark(self, n_rows: int) -> None:
        """Note that so many rows more are done."""
        self.marks.append((time.perf_counter(), n_rows))

    def speed(self, processes: int) -> float:
        """Return rows a second, from when each process has finished its first rows, in step with the others."""
        (start, _), *rest = self.marks[processes - 1 :]
        return sum(n_rows for _, n_rows in rest) / (rest[-1][0] - start)


def usual(csv: Path, format_: MaskFormat, out: Path, processes: int, clock: Clock) -> None:
    """Draw a whole CSV by the usual loop, chunks of rows in processes."""
    out.mkdir()
    columns = ["dicom_id", *ORGAN_COLUMNS.values()]
    chunks = ((chunk, format_, out) for chunk in pd.read_csv(csv, usecols=columns, chunksize=CHUNK_ROWS))
    if processes == 1:
        for n_rows in map(usual_chunk, chunks):
            clock.mark(n_rows)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for n_rows in pool.imap(usual_chunk, chunks):
            clock.mark(n_rows)


def usual_chunk(task: tuple[pd.DataFrame, str, Path]) -> int:
    """Write the masks of some rows of the published CSV as one would; return how many rows these are."""
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
    return len(rows)


def decode(text: str) -> np.ndarray:
    """Return a mask uint8 of published run lengths, by a slice a run: faster than sums over all pixels."""
    runs = np.fromstring(text, np.int64, sep=" ")
    mask = np.zeros(MODEL_SIZE * MODEL_SIZE, np.uint8)
    for start, length in zip((runs[::2] - 1).tolist(), runs[1::2].tolist(), strict=True):
        mask[start : start + length] = 1
    return mask.reshape(MODEL_SIZE, MODEL_SIZE)


def ours(stored: StoredTable, format_: MaskFormat, out: Path, processes: int, clock: Clock) -> None:
    """Draw a source by cxu, as the command does."""
    plan = plan_masks(stored, out, MaskOptions("full", format_), Target())
    assert not rasterize_table(plan, workers=processes, progress=clock.mark).failures


def compare(ours_in: Path, theirs_in: Path) -> int:
    """Compare every pixel of two folders of PNG; return the number of files."""
    names = sorted(path.name for path in theirs_in.glob("*.png"))
    assert names == sorted(path.name for path in ours_in.glob("*.png"))
    for name in names:
        drawn, expected = (cv2.imread(f"{folder}/{name}", cv2.IMREAD_UNCHANGED) for folder in (ours_in, theirs_in))
        assert np.array_equal(drawn, expected), name
    return len(names)


def race(stored: StoredTable, csv: Path, folder: Path, format_: MaskFormat, processes: int, rounds: int) -> float:
    """Let both sides write one format, in turn; print masks a second and return their ratio, medians of all rounds."""
    per_row = {"labels": 1, "organs": len(ORGANS)}[format_]
    speeds = []
    for number in range(rounds):
        # a folder of its own for each, kept to the end: ext4 makes files slowly where some were removed just now
        mine, theirs = (folder / f"{side}-{format_}-{processes}-{number}" for side in ("cxu", "usual"))
        clocks = Clock(), Clock()
        usual(csv, format_, theirs, processes, clocks[1])
        ours(stored, format_, mine, processes, clocks[0])
        if number == 0:
            assert compare(mine / SOURCE, theirs) == per_row * stored.rows
        speeds.append([per_row * clock.speed(processes) for clock in clocks])
    fast, slow = (statistics.median(side) for side in zip(*speeds, strict=True))
    ratio = statistics.median(fast / slow for fast, slow in speeds)
    print(
        f"{title(format_, processes)}cxu {fast:6,.0f} masks/s   usual loop {slow:6,.0f} masks/s   ratio {ratio:5.1f}",
        flush=True,
    )
    return ratio


def title(format_: MaskFormat, processes: int) -> str:
    """Return how a line begins."""
    return f"{format_:8}{processes:>2} {'process' if processes == 1 else 'processes':11}"


def show_bulk(stored: StoredTable, folder: Path, format_: MaskFormat, processes: int) -> None:
    """Print how fast a format of one file a block is."""
    out, clock = folder / f"cxu-{format_}-{processes}", Clock()
    ours(stored, format_, out, processes, clock)
    size = sum(path.stat().st_size for path in (out / "masks").iterdir()) / stored.rows / 1000
    print(f"{title(format_, processes)}cxu {clock.speed(processes):6,.0f} rows/s   {size:5.1f} kB a row", flush=True)


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


def timed(function: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return seconds and result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


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
    parser.add_argument("--rows", type=int, default=2048, help="rows to make up, 1,024 or more (default: %(default)s)")
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
        # also of a short run each process has several
        maskplan.BLOCK_ROWS = CHUNK_ROWS  # type: ignore[misc]
        ratios = {
            (format_, processes): race(stored, csv, folder, format_, processes, given.rounds)
            for format_, processes in itertools.product(FORMATS, PROCESSES)
        }
        for format_, processes in itertools.product(BULK, PROCESSES):
            show_bulk(stored, folder, format_, processes)
        show_stages(stored, folder, given.rounds)
    print(f"ratio cxu / usual loop, labels, 2 processes: {ratios['labels', 2]:.1f}")


if __name__ == "__main__":
    main()
