"""How the columns of the table are best encoded: bytes a row, and the time to write and to read them.

    python benchmarks/storage.py
    python benchmarks/storage.py --all          # every encoding with every compression

Makes a shard of each kind of rows (published in the model frame, published in the pixels of films, predictions) and
writes every column in several ways, in memory and on one core. Prints bytes a row and milliseconds of processor time a
shard at best of three. Then the whole table as cxu writes it, and as pyarrow does with zstd 3 and dictionaries
throughout; last, how many times smaller than the published CSV the table is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fabricate import fabricate_lines, fabricate_rows, header_of

from cxu import store, table
from cxu.row_groups import encode_file, encoding_options

SOURCE = "mimic"
N_TIMES = 3
N_LINES = 256  # of the CSV
LISTS = ("landmarks_xy", "sigma_xy", "sigma_model_px")
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    "snappy": {"compression": "snappy"},
    "lz4": {"compression": "lz4"},
    **{f"zstd {level}": {"compression": "zstd", "compression_level": level} for level in (1, 3, 9)},
}
# what is worth a look in every kind of rows
SHORT = (
    ("dictionary", "none"),
    ("dictionary", "snappy"),
    ("dictionary", "zstd 1"),
    ("dictionary", "zstd 3"),
    ("byte streams", "snappy"),
    ("byte streams", "zstd 1"),
    ("byte streams", "zstd 3"),
    ("plain", "zstd 3"),
)


def predictions() -> pa.Table:
    """Return rows in full precision: those of films, moved by less than the published files show."""
    rows, rng = fabricate_rows(0, store.SHARD_ROWS, 0, SOURCE, "image"), np.random.default_rng(0)
    sigma_xy = table.sigmas_of(rows) + rng.uniform(0, 0.01, (len(rows), 120, 2)).astype(np.float32)
    landmarks_xy = table.landmarks_of(rows) + rng.uniform(-0.5, 0.5, (len(rows), 120, 2)).astype(np.float32)
    side = table.scalar_column(rows, "frame_side")
    columns = {"landmarks_xy": landmarks_xy, **table.sigma_columns(sigma_xy, side)}
    columns |= {name: rows[name] for name in ("source", "image_id", "height", "width", "frame", "frame_side")}
    return table.build_table({**columns, "model_id": "0" * 64, "n_samples": 50}, len(rows))


def best_ms(function: Callable[[], Any]) -> float:
    """Return the processor time of a call at best, ms."""
    seconds = []
    for _ in range(N_TIMES):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds)


def measured(rows: pa.Table, options: dict[str, Any]) -> tuple[float, float, float]:
    """Return bytes a row, and ms to write and to read all rows."""
    written = encode_file(rows, options)

    def read() -> pa.Table:
        return pq.ParquetFile(pa.BufferReader(written)).read(use_threads=False)

    assert read().equals(rows)
    return written.size / len(rows), best_ms(lambda: encode_file(rows, options)), best_ms(read)


def options_of(path: str, encoding: str, compression: str) -> dict[str, Any]:
    """Return pyarrow's options for a single column."""
    as_dictionary: dict[str, Any] = {"use_dictionary": encoding == "dictionary"}
    named = {"byte streams": "BYTE_STREAM_SPLIT", "delta": "DELTA_BINARY_PACKED", "common starts": "DELTA_BYTE_ARRAY"}
    in_column = {"column_encoding": {path: named[encoding]}} if encoding in named else {}
    return {**as_dictionary, **in_column, **COMPRESSIONS[compression]}


def show(label: str, numbers: tuple[float, float, float]) -> None:
    """Print one line of numbers."""
    print(f"  {label:34}{numbers[0]:9.1f} B/row{numbers[1]:9.1f} ms to write{numbers[2]:8.1f} ms to read", flush=True)


def compare_columns(rows: pa.Table, ways: list[tuple[str, str]]) -> None:
    """Print the numbers of the list columns."""
    for name in LISTS:
        column = rows.select([name]).replace_schema_metadata(None)
        for encoding, compression in ways:
            show(
                f"{name} {encoding} {compression}",
                measured(column, options_of(f"{name}.list.element", encoding, compression)),
            )


def compare_others(rows: pa.Table) -> None:
    """Print what the other columns take, and what whole numbers in delta encoding would."""
    others = rows.drop_columns(list(LISTS)).replace_schema_metadata(None)
    for compression in ("none", "snappy", "zstd 1", "zstd 3", "zstd 9"):
        show(
            f"all others dictionary {compression}",
            measured(others, {"use_dictionary": True, **COMPRESSIONS[compression]}),
        )
    ids = rows.select(["image_id"]).replace_schema_metadata(None)
    for encoding in ("dictionary", "plain", "common starts"):
        show(f"image_id {encoding} zstd 1", measured(ids, options_of("image_id", encoding, "zstd 1")))
    for name, scale in zip(LISTS, (1, 100, 200), strict=True):
        whole = pa.array(np.rint(scale * table.list_column(rows, name)).astype(np.int32).ravel())
        column = pa.table({name: pa.FixedSizeListArray.from_arrays(whole, rows.schema.field(name).type.list_size)})
        for compression in ("none", "zstd 1"):
            label = f"{name} as int32, delta {compression}"
            show(label, measured(column, options_of(f"{name}.list.element", "delta", compression)))


def csv_bytes() -> float:
    """Return the bytes of a line of the published CSV, its line end and its part of the header included."""
    lines = fabricate_lines(0, N_LINES, 0, SOURCE)
    return float(np.mean([len(line) + 1 for line in lines])) + len(header_of(SOURCE)) / store.SHARD_ROWS


def main() -> None:
    """Measure the columns, then whole tables."""
    parser = argparse.ArgumentParser(description="Compare encodings of the table's columns.")
    parser.add_argument("--all", action="store_true", help="every encoding with every compression")
    everything = [
        (encoding, compression) for encoding in ("dictionary", "byte streams", "plain") for compression in COMPRESSIONS
    ]
    ways = everything if parser.parse_args().all else list(SHORT)
    kinds = {
        "published, model frame": fabricate_rows(0, store.SHARD_ROWS, 0, SOURCE),
        "published, pixels of films": fabricate_rows(0, store.SHARD_ROWS, 0, SOURCE, "image"),
        "predictions": predictions(),
    }
    for kind, rows in kinds.items():
        print(f"{kind}: {len(rows):,} rows")
        compare_columns(rows, ways)
    print("published, model frame: other columns, and delta")
    compare_others(kinds["published, model frame"])
    before = {"use_dictionary": True, **COMPRESSIONS["zstd 3"]}
    for kind, rows in kinds.items():
        print(f"{kind}: whole table")
        show("dictionary, zstd 3", measured(rows, before))
        show("as cxu writes it", measured(rows, encoding_options(rows)))
    published = kinds["published, model frame"]
    written = encode_file(published, encoding_options(published))
    file = pq.ParquetFile(pa.BufferReader(written))
    alone = best_ms(lambda: file.read(["sigma_model_px"], use_threads=False))
    whole = best_ms(lambda: file.read(use_threads=False))
    print(f"sigma_model_px alone {alone:.1f} ms of {whole:.1f} ms for all columns: {whole / alone:.1f} × faster")
    of_csv, of_table = csv_bytes(), written.size / len(published)
    print(f"CSV {of_csv:,.0f} B a row, table {of_table:,.0f}: ratio {of_csv / of_table:.1f}")


if __name__ == "__main__":
    main()
