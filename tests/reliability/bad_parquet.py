"""Parquet files that are no table of cxu, or not what they say: ``cxu filter``."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders import chest, make_rows
from cxu import table
from reliability.case import Case

TITLE: Final = "Parquet tables"
INTRO: Final = (
    "`cxu filter` of a table that another program wrote or that was damaged. It is refused, and nothing is "
    "written; or rows that cannot be are left out with their reason, and the others stay: rows that stay and rows"
    " left out add up to the rows read."
)
N_ROWS: Final = 3


@dataclass(frozen=True, kw_only=True)
class TableCase(Case):
    """A Parquet file, or a folder of them.

    Attributes
    ----------
    excluded
        The reasons of the rows left out; None where the table is refused.
    table
        What is filtered, in the folder.
    """

    exit_code: int = 1
    excluded: tuple[str, ...] | None = None
    table: str = "rows.parquet"

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        if self.excluded is None:
            return f"refused (exit {self.exit_code}): “…{self.says}…”"
        if not self.excluded:
            return "read; every row stays"
        return f"row left out as `{self.excluded[0]}`, the other two stay" + (f": “…{self.says}…”" if self.says else "")


def good_rows(**columns: Any) -> pa.Table:
    """Return three rows with uncertainties; ``columns`` replace some."""
    sigma = np.full((N_ROWS, 120, 2), 3, np.float32)
    return make_rows(N_ROWS, **{**table.sigma_columns(sigma), **columns})


def _written(rows: pa.Table, late: str | None = None) -> bytes:
    stream = pa.BufferOutputStream()
    with pq.ParquetWriter(stream, rows.schema) as writer:
        writer.write_table(rows)
        if late is not None:
            writer.add_key_value_metadata({"cxu_late": late})
    return stream.getvalue().to_pybytes()


def _file(name: str, content: Callable[[], bytes], says: str = "is no readable Parquet file", **case: Any) -> TableCase:
    """Return the case of a file of these bytes."""
    return TableCase(name=name, says=says, make=lambda folder: (folder / "rows.parquet").write_bytes(content()), **case)


def _rows(name: str, rows: Callable[[], pa.Table], says: str, **case: Any) -> TableCase:
    """Return the case of a Parquet file of these rows."""
    return _file(name, lambda: _written(rows()), says, **case)


def _left_out(name: str, says: str = "1 row left out as impossible", **columns: Any) -> TableCase:
    """Return the case of rows of which one cannot be."""
    return _rows(name, lambda: good_rows(**columns), says, exit_code=0, excluded=("impossible",))


def _one(values: Any, value: float) -> np.ndarray:
    """Return values [3, …] with one number of the second row replaced."""
    changed = np.array(values, np.float32)
    changed[1].flat[7] = value
    return changed


def _flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0x55
    return bytes(changed)


def _facts(text: bytes) -> pa.Table:
    return good_rows().replace_schema_metadata({b"cxu": text})


def _selection(**facts: Any) -> pa.Table:
    return _facts(json.dumps({"schema_version": "1", "kind": "selection", **facts}).encode())


def _with(name: str, values: pa.Array) -> pa.Table:
    rows = good_rows()
    return rows.set_column(rows.column_names.index(name), name, values)


def _latin_name() -> bytes:
    """Return a table whose file names a column in no UTF-8."""
    return _written(good_rows()).replace(b"rca_swapped", b"rca_swapp\xff\xfe")


def _latin_id() -> pa.Table:
    offsets = pa.py_buffer(np.arange(0, 3 * 4 + 1, 4, dtype=np.int32).tobytes())
    return _with("image_id", pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"aaaab\xff\xfebcccc")))


def _mixed(folder: Path) -> None:
    (folder / "many").mkdir()
    (folder / "many/a.parquet").write_bytes(_written(good_rows()))
    (folder / "many/b.parquet").write_bytes(_written(pa.table({"a": [1]})))


def _versions(folder: Path) -> None:
    (folder / "many").mkdir()
    (folder / "many/a.parquet").write_bytes(_written(good_rows()))
    (folder / "many/b.parquet").write_bytes(_written(_facts(b'{"schema_version": "0"}')))


def _footer(n_bytes: int) -> bytes:
    return _written(good_rows())[:-8] + struct.pack("<I", n_bytes) + b"PAR1"


def _some_sigma(value: float) -> dict[str, Any]:
    return table.sigma_columns(_one(np.full((N_ROWS, 120, 2), 3), value))


def _some_unknown() -> dict[str, Any]:
    sigma = np.full((N_ROWS, 120, 2), 3, np.float32)
    sigma[1] = np.nan
    return table.sigma_columns(sigma)


def _null_landmarks() -> pa.Array:
    kind = table.field_of("landmarks_xy").type
    return pa.array([chest().ravel().tolist(), None, chest().ravel().tolist()], kind)


_LANDMARKS: Final = np.broadcast_to(chest(), (N_ROWS, 120, 2))
_DEEP: Final = b"[" * 100_000

CASES: Final = (
    # the file
    _file("an empty file", lambda: b""),
    _file("a CSV named .parquet", lambda: b"source,image_id\nmimic,a\n"),
    _file("a page of HTML named .parquet", lambda: b"<!DOCTYPE html><html>404</html>"),
    _file("a file cut off in the middle", lambda: _written(good_rows())[: len(_written(good_rows())) // 2]),
    _file("its footer cut off", lambda: _written(good_rows())[:-100]),
    _file("its last byte cut off", lambda: _written(good_rows())[:-1]),
    _file("a footer longer than the file", lambda: _footer(1 << 30)),
    _file("a footer of no length", lambda: _footer(0)),
    _file("noise in its footer", lambda: _flipped(_written(good_rows()), -300)),
    _file("an encrypted file", lambda: _written(good_rows())[:-4] + b"PARE"),
    _file("a page of its rows overwritten", lambda: b"PAR1" + b"\xff" * 300 + _written(good_rows())[304:]),
    TableCase(name="no such file", make=lambda _: None, says="does not exist", exit_code=2),
    # the schema
    _rows("a table of something else", lambda: pa.table({"a": [1]}), "is no cxu table: it has no schema_version"),
    _rows(
        "a table of a later cxu", lambda: _facts(b'{"schema_version": "99"}'), "has schema version 99, this cxu reads 1"
    ),
    _rows("a schema version that is a list", lambda: _facts(b'{"schema_version": [1]}'), "has schema version [1]"),
    _rows("its facts no JSON", lambda: _facts(b'{"schema_version": "1"'), "is no cxu table"),
    _rows("its facts no UTF-8", lambda: _facts(b"\xff\xfe"), "is no cxu table"),
    _rows("its facts a list", lambda: _facts(b'["1"]'), "is no cxu table"),
    _rows("its facts nested 100,000 deep", lambda: _facts(_DEEP), "is no"),
    _rows(
        "facts of a selection of another kind",
        lambda: _selection(thresholds=5),
        "its fact 'thresholds' is int",
    ),
    _rows("limits of a selection without organs", lambda: _selection(limits_px=[5]), "its fact 'limits_px' is damaged"),
    _file("facts at its end a list", lambda: _written(good_rows(), late="[1]"), "cxu_late in its footer is list"),
    _rows("a column missing", lambda: good_rows().drop_columns(["rca_mean"]), "lacks the column 'rca_mean'"),
    _rows(
        "landmarks of another length",
        lambda: _with("landmarks_xy", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(714, np.float32)), 238)),
        "column 'landmarks_xy' is fixed_size_list",
    ),
    _rows(
        "landmarks of double precision",
        lambda: _with("landmarks_xy", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(720)), 240)),
        "column 'landmarks_xy' is fixed_size_list<",
    ),
    _rows(
        "ids that are numbers",
        lambda: _with("image_id", pa.array([1, 2, 3])),
        "column 'image_id' is int64, expected string",
    ),
    _file("a column name that is no UTF-8", _latin_name),
    TableCase(
        name="a folder with a table of something else",
        make=_mixed,
        table="many",
        says="b.parquet is no cxu table",
    ),
    TableCase(
        name="a folder with a table of another version",
        make=_versions,
        table="many",
        says="b.parquet has schema version 0",
    ),
    # the rows
    _rows("the same id twice", lambda: good_rows(image_id=["a", "a", "b"]), "1 images stand more than once"),
    _rows("ids that are no UTF-8", _latin_id, "is no readable Parquet file"),
    _left_out("landmarks that are NaN", landmarks_xy=_one(_LANDMARKS, np.nan)),
    _left_out("landmarks that are infinite", landmarks_xy=_one(_LANDMARKS, np.inf)),
    _rows(
        "landmarks that are null",
        lambda: _with("landmarks_xy", _null_landmarks()),
        "1 row left out as impossible",
        exit_code=0,
        excluded=("impossible",),
    ),
    _left_out("a sigma that is NaN", **_some_sigma(np.nan)),
    _left_out("a sigma that is infinite", **_some_sigma(np.inf)),
    _left_out("a negative sigma", **_some_sigma(-4)),
    _left_out("a negative uncertainty, its sigmas good", sigma_model_px=_one(np.full((N_ROWS, 120), 3), -1)),
    _rows(
        "sigmas of one row unknown",
        lambda: good_rows(**_some_unknown()),
        "rows of chestxray8 have no standard deviations",
        exit_code=2,
    ),
    _rows("no row", lambda: good_rows().slice(0, 0), "", exit_code=0, excluded=()),
)
