"""One function a reader, from bytes to nothing: it gives the right answer or raises a :class:`~cxu.errors.CxuError`.

Anything else it raises, and any answer that an independent and slower way contradicts, is a failure. Files are written
into a folder of their own, the same one every time.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from cxu import codec, files, films, images, maskfolder, picturefolder, store, table
from cxu.catalog import find_source
from cxu.criteria import Criteria
from cxu.errors import CodecError, CxuError
from cxu.image_listing import ImageFile
from cxu.ingest import ImportOptions, ImportReport, convert_stream
from cxu.labels import IdList, open_labels, parse_condition, satisfies
from cxu.published import Provenance
from cxu.selection import filter_rows
from cxu.thresholds import Thresholds, parse_max_std

Target = Callable[[bytes], None]

_NUMBERS: Final = 4  # a text of landmarks, in place of 240
_IMAGE_KINDS: Final = ("png", "jpg", "tif", "dcm")
_RECORD: Final = {
    "command": "rasterize",
    "table": "0",
    "frame": None,
    "options": {"organs": ["heart"]},
    "target": {"images": []},
    "choice": {"seed": 0},
    "schema_version": 1,
    "cxu_version": "0",
    "identity": "0",
    "table_name": "latest",
}
_MOST_PIXELS: Final = 1 << 22  # of an image that is decoded here: larger ones are only measured


@functools.cache
def folder() -> Path:
    """Return a folder for the files that readers are given, in memory where that can be; it goes with the process."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="cxu-fuzz-", dir=memory))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def rle(data: bytes) -> None:
    """Published run lengths: what is decoded is what run after run paints, and encodes to the same mask."""
    shape = (1 + (data[0] if data else 0) % 24, 1 + (data[1] if len(data) > 1 else 0) % 24)
    text = data[2:].decode("utf-8", "replace")
    try:
        mask = codec.decode_rle(text, shape)
    except CodecError:
        return
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = 1
    assert (mask == flat.reshape(shape)).all()
    assert (codec.decode_rle(codec.encode_rle(mask), shape) == mask).all()


def coco(data: bytes) -> None:
    """COCO's compressed run lengths: there and back."""
    shape = (1 + (data[0] if data else 0) % 24, 1 + (data[1] if len(data) > 1 else 0) % 24)
    try:
        counts = codec.expand_coco_text(data[2:].decode("utf-8", "replace"))
        mask = codec.decode_coco_counts(counts, shape)
    except CodecError:
        return
    again = codec.decode_coco_counts(codec.expand_coco_text(codec.compress_coco_counts(counts)), shape)
    assert (again == mask).all()
    assert (codec.decode_coco_counts(codec.encode_coco_counts(mask), shape) == mask).all()


def landmarks(data: bytes) -> None:
    """Texts of landmarks, many at once: the same numbers as one text after the other, read by Python."""
    texts = data.split(b"|")
    values, valid = codec.parse_number_rows(pa.array(texts, pa.binary()), _NUMBERS)
    for text, row, is_valid in zip(texts, values, valid, strict=True):
        expected = _numbers_of(text)
        assert is_valid == (expected is not None), text
        assert bool(codec.explain_numbers(text, _NUMBERS)) != is_valid, text
        if expected is None:
            assert np.isnan(row).all()
        else:
            np.testing.assert_array_equal(row, expected)


def _numbers_of(text: bytes) -> np.ndarray | None:
    try:
        words = [word for word in re.split(r"[\[\](){},; \t\r\n\f\v]+", text.decode("utf-8")) if word]
        numbers = [float(word) if "_" not in word else math.nan for word in words]
    except (UnicodeDecodeError, ValueError):
        return None
    limit = float(np.finfo(np.float32).max)
    if len(numbers) != _NUMBERS or not all(abs(number) <= limit for number in numbers):
        return None
    return np.array(numbers).astype(np.float32)


def published(data: bytes) -> None:
    """A published CSV: every row that is imported is one that Python's own reader finds, with the same landmarks."""
    source = find_source("chestxray8")
    report = ImportReport("fuzzed.csv", source.name, "model")
    options = ImportOptions(frame="model", keep_rle=True)
    where = folder() / "parts"
    where.mkdir(exist_ok=True)
    for part in where.iterdir():
        part.unlink()
    try:
        parts, seen = convert_stream(
            io.BytesIO(data), where, report, source, options, Provenance(None), progress=lambda _: None
        )
    except CxuError:
        return
    rows = pa.concat_tables([store.open_table(where / part.name).read() for part in parts])
    assert len(rows) == len(seen) == report.imported
    assert np.isfinite(table.landmarks_of(rows)).all()
    _check_sigmas(rows)
    if b'"' in data or b"\r" in data or b"\x00" in data:
        return  # quoting has dialects
    csv.field_size_limit(1 << 30)
    plain = {tuple(line[:1]) for line in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""))}
    texts = {text for (text,) in (one for one in plain if one)}
    assert all(any(image_id in text for text in texts) for image_id in rows["image_id"].to_pylist())


def _check_sigmas(rows: pa.Table) -> None:
    sigma = table.list_column(rows, "sigma_model_px")
    assert not (sigma < 0).any()
    assert not np.isinf(sigma).any()


def parquet(data: bytes) -> None:
    """A table of anybody's: it is refused, or it can be filtered, and what stays is a table."""
    path = _written("fuzzed.parquet", data)
    try:
        rows = store.open_table(path).read()
        selected, excluded, report = filter_rows(rows, Criteria(Thresholds(max_std=parse_max_std("8"), min_rca=0.5)))
    except CxuError:
        return
    assert len(selected) + len(excluded) == len(rows) == report.rows_in
    assert table.confident_of(selected).shape == (len(selected), 120)


def image(data: bytes) -> None:
    """An image: its size is what its header says, its grey values are finite and hold what the film is measured by."""
    kind, content = _IMAGE_KINDS[(data[0] if data else 0) % len(_IMAGE_KINDS)], data[1:]
    path = _written(f"fuzzed.{kind}", content)
    file = ImageFile(str(path.parent), path.name)
    try:
        height, width = images.image_size(file)
    except CxuError:
        with contextlib.suppress(CxuError):
            films.read_film(file, even_flat=True)
        return
    if height * width > _MOST_PIXELS:
        return
    with contextlib.suppress(CxuError):
        film = films.read_film(file, even_flat=True)
        assert film.grey.ndim == 2
        assert np.isfinite(film.grey).all()
        assert film.aspect > 0
        drawn = films.model_input(film, films.film_frame(film), 64)
        assert drawn.shape == (64, 64)
        assert np.isfinite(drawn).all()
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def weights(data: bytes) -> None:
    """A weight file: the header of a safetensors file before a body of zeros, or the bytes of a pickle."""
    from cxu.model.weights import load_weights

    if data[:1] == b"P":
        path = _written("fuzzed.bin", data[1:])
    else:
        header = data[1:]
        path = _written("fuzzed.safetensors", len(header).to_bytes(8, "little") + header + bytes(1 << 16))
    with contextlib.suppress(CxuError):
        loaded = load_weights(path)
        assert all(bool(tensor.isfinite().all()) for tensor in loaded.model.state_dict().values())


def words(data: bytes) -> None:
    """What users write: limits, conditions, lists of ids, label tables."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(CxuError):
        limits = parse_max_std(text)
        assert all(limit.value >= 0 and math.isfinite(limit.value) for limit in limits.values())
    with contextlib.suppress(CxuError):
        condition = parse_condition(text)
        rows = pa.table({condition.column: pa.array(["a", None, "3"])})
        assert satisfies(rows, condition).shape == (3,)
    with contextlib.suppress(CxuError):
        ids = IdList(_written("ids.txt", data))
        assert all(isinstance(one, str) and one for one in ids.ids)
    with contextlib.suppress(CxuError):
        labels = open_labels(str(_written("labels.csv", data)), ["chestxray8"])
        assert labels.n_lines >= 0


def records(data: bytes) -> None:
    """What cxu keeps beside its tables: the list of a source's files, and the record of an output folder."""
    home = store.Home(folder() / "home")
    where = home.source_folder("chestxray8", "model")
    where.mkdir(parents=True, exist_ok=True)
    (where / "source.json").write_bytes(data)
    with contextlib.suppress(CxuError):
        listing = home.listing("chestxray8", "model")
        assert all(Path(part.name).name == part.name for part in listing.parts)
        assert listing.rows >= 0
    out = folder() / "out"
    out.mkdir(exist_ok=True)
    (out / files.RECORD).write_bytes(data)
    with contextlib.suppress(CxuError):
        files.read_record(out)
    for kind in (maskfolder.MaskFolder, picturefolder.PictureFolder):
        with contextlib.suppress(CxuError):
            kind(out).claim(_RECORD, [], overwrite=False)


TARGETS: Final[dict[str, Target]] = {
    one.__name__: one for one in (rle, coco, landmarks, published, parquet, image, weights, words, records)
}
