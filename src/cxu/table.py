"""The one table: its columns, types and units, and the way between its columns and numpy.

Published files and predictions both become this Arrow schema; everything downstream takes it and cannot tell who made
it. ``docs/format.md`` is its normative description and a test compares the two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import N_NODES, N_ORGANS, ORGAN_NAMES
from cxu.errors import FormatError
from cxu.frame import MODEL_SIZE

SCHEMA_VERSION: Final = "1"
METADATA_KEY: Final = b"cxu"
N_LATENT: Final = 64
PUBLISHED_MODEL: Final = "published"

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def _field(name: str, kind: pa.DataType, unit: str, meaning: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable, metadata={"unit": unit, "meaning": meaning})


_XY = pa.list_(pa.float32(), 2)
_PX = "px of frame"
_MODEL_PX = "px of the 1024 model frame"

SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "", "data set the image belongs to", nullable=False),
        _field("image_id", pa.string(), "", "canonical id of the image", nullable=False),
        _field("patient_id", pa.string(), "", "patient, where the id tells it"),
        _field("height", pa.int32(), _PX, "height of the frame; null where the file did not say"),
        _field("width", pa.int32(), _PX, "width of the frame; null where the file did not say"),
        _field("frame", pa.string(), "", "pixels the landmarks are in: model or image", nullable=False),
        _field("frame_side", pa.float32(), "image px", "side of the model frame in the image"),
        _field("frame_offset_xy", _XY, "image px", "origin of the model frame in the image"),
        _field("frame_exact", pa.bool_(), "", "whether side and offset are known rather than assumed"),
        _field("landmarks_xy", pa.list_(pa.float32(), 2 * N_NODES), _PX, "x, y of every node", nullable=False),
        _field("sigma_xy", pa.list_(pa.float32(), 2 * N_NODES), _PX, "standard deviation of x, y of every node"),
        _field("sigma_model_px", pa.list_(pa.float32(), N_NODES), _MODEL_PX, "(sigma_x + sigma_y) / 2 of every node"),
        _field("mean_sigma_model_px", pa.float32(), _MODEL_PX, "mean of sigma_model_px: the image score"),
        _field("max_sigma_model_px", pa.float32(), _MODEL_PX, "largest of sigma_model_px"),
        _field("rca_mean", pa.float32(), "Dice", "mean Dice of reverse classification accuracy"),
        _field("rca_max", pa.float32(), "Dice", "largest Dice of reverse classification accuracy"),
        _field("rca_swapped", pa.bool_(), "", "whether the file had the two exchanged; they are sorted here"),
        _field("latent_sigma", pa.list_(pa.float32(), N_LATENT), "", "standard deviations of the latent code"),
        _field("model_id", pa.string(), "", "hash of the weights, or 'published'", nullable=False),
        _field("n_samples", pa.int32(), "", "samples behind mean and standard deviation"),
        _field("seed", pa.int64(), "", "seed of the decodes"),
        _field("precision", pa.string(), "", "arithmetic of the encoder"),
        _field("repo", pa.string(), "", "Hub repository of the file"),
        _field("revision", pa.string(), "", "commit of the repository"),
        _field("file_sha256", pa.string(), "", "hash of the file the row came from"),
        _field("spacing_mm_xy", _XY, "mm / image px", "pixel spacing, where the image says"),
        _field("view", pa.string(), "", "projection, where the image says"),
        _field("quality", pa.string(), "", "ok, review or reject"),
        _field("quality_score", pa.float32(), "", "score behind quality"),
        _field("quality_reason", pa.string(), "", "why quality is not ok"),
        _field("radius90_px", pa.list_(pa.float32(), N_NODES), _PX, "radius that holds the true node 90 times in 100"),
    ]
)

RLE_COLUMNS: Final = tuple(f"rle_{organ}" for organ in ORGAN_NAMES)
# Columns that some tables carry beyond the schema.
OPTIONAL: Final = pa.schema(
    [
        _field("confident", pa.list_(pa.bool_(), N_NODES), "", "nodes within the thresholds of the selection"),
        _field("usable", pa.list_(pa.bool_(), N_ORGANS), "", "organs with enough confident nodes and no long gap"),
        _field("samples_xy", pa.list_(pa.float32()), _PX, "kept samples, S × 120 × 2 flattened"),
        *(_field(name, pa.large_string(), "", "published mask of the organ as shipped") for name in RLE_COLUMNS),
    ]
)


def build_table(columns: Mapping[str, Any], n_rows: int) -> pa.Table:
    """Build a table in the schema from the columns that are known; the rest is null.

    Parameters
    ----------
    columns
        Column name to an Arrow array, a list of scalars, one scalar for all rows, or a numpy array: [n] for scalar
        columns, [n, …] for list columns. NaN becomes null; in a list column a row that is NaN throughout does.
    n_rows
        Number of rows.

    Raises
    ------
    KeyError
        If a name is neither in the schema nor an optional column.
    """
    names = [*SCHEMA.names, *(name for name in OPTIONAL.names if name in columns)]
    unknown = set(columns) - set(names)
    if unknown:
        raise KeyError(f"not columns of the table: {sorted(unknown)}")
    fields = [field_of(name) for name in names]
    arrays = [_to_arrow(columns.get(field.name), field.type, n_rows) for field in fields]
    return pa.table(arrays, schema=pa.schema(fields, metadata=encode_metadata({})))


def field_of(name: str) -> pa.Field:
    """Return the field of a column of the schema or of :data:`OPTIONAL`."""
    return SCHEMA.field(name) if name in SCHEMA.names else OPTIONAL.field(name)


def _to_arrow(values: Any, kind: pa.DataType, n_rows: int) -> pa.Array:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(kind)
    if values is None or isinstance(values, (str, int, float, bool)):
        return pa.repeat(pa.scalar(values, kind), n_rows)
    if isinstance(values, np.ndarray) and pa.types.is_fixed_size_list(kind):
        return lists_from_numpy(values.reshape(n_rows, kind.list_size), kind)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, from_pandas=True).cast(kind)
    return pa.array(values, kind)


def lists_from_numpy(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return a fixed-size list array from [n, width]; rows of floats that are all NaN become null."""
    missing = np.isnan(values).all(axis=1) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(missing) if missing.any() else None)


def list_column(table: pa.Table, name: str, *, writable: bool = True) -> npt.NDArray[Any]:
    """Return a fixed-size list column as numpy [n, width]: NaN (or False) where a row is null, float32 or bool.

    It is a copy, or without ``writable`` the column's own memory where no row is null.
    """
    column = pa.concat_arrays(table.column(name).chunks or [pa.array([], table.schema.field(name).type)])
    width = column.type.list_size
    is_bool = pa.types.is_boolean(column.type.value_type)
    # flatten() leaves null rows out, whatever their slots in the child array hold
    there = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    if not column.null_count:
        return there if there.flags.writeable or not writable else there.copy()
    values = np.full((len(column), width), False if is_bool else np.nan, bool if is_bool else np.float32)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = there
    return values


def landmarks_of(table: pa.Table) -> FloatArray:
    """Return the landmarks float32 [n, 120, 2] (x, y) in px of each row's frame."""
    return list_column(table, "landmarks_xy").reshape(-1, N_NODES, 2)


def sigmas_of(table: pa.Table) -> FloatArray:
    """Return the standard deviations float32 [n, 120, 2] (x, y) in px of each row's frame; NaN for rows without."""
    return list_column(table, "sigma_xy").reshape(-1, N_NODES, 2)


def confident_of(table: pa.Table) -> BoolArray:
    """Return which nodes are confident, bool [n, 120]; all of them where the table is no selection."""
    if "confident" not in table.column_names:
        return np.ones((len(table), N_NODES), np.bool_)
    return list_column(table, "confident")


def usable_of(table: pa.Table) -> BoolArray:
    """Return which organs are usable, bool [n, 3] in the order of ORGANS; all where the table is no selection."""
    if "usable" not in table.column_names:
        return np.ones((len(table), N_ORGANS), np.bool_)
    return list_column(table, "usable")


def scalar_column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a numeric or boolean column as numpy [n]; NaN where a number is null, False where a boolean is."""
    column = table.column(name)
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy()
    return column.to_numpy().astype(np.float64)


def node_uncertainty(sigma_xy: FloatArray) -> FloatArray:
    """Return (sigma_x + sigma_y) / 2 of sigma [..., 2]: the node uncertainty of the paper, never the norm."""
    sigma = sigma_xy.astype(np.float32, copy=False)
    # what mean(axis=-1) gives, bit for bit: over an axis of two it takes ten times as long
    result: FloatArray = (sigma[..., 0] + sigma[..., 1]) / np.float32(2)
    return result


def sigma_columns(sigma_xy: FloatArray, side: npt.NDArray[np.floating] | None = None) -> dict[str, FloatArray]:
    """Return the four sigma columns of the schema.

    Parameters
    ----------
    sigma_xy
        float32 [n, 120, 2] in px of the frame; NaN for rows without.
    side
        [n] side of the model frame in px of the frame; None where the frame is the model frame. NaN where unknown: the
        columns in model px are then null.
    """
    sigma_model = node_uncertainty(sigma_xy)
    if side is not None:
        sigma_model = (sigma_model * (MODEL_SIZE / side[:, None])).astype(np.float32)
    return {
        "sigma_xy": sigma_xy,
        "sigma_model_px": sigma_model,
        "mean_sigma_model_px": sigma_model.mean(axis=1, dtype=np.float64).astype(np.float32),
        "max_sigma_model_px": sigma_model.max(axis=1),
    }


def check_table(table: pa.Table | pa.Schema, name: str) -> None:
    """Check that a table has the columns and types of the schema.

    Raises
    ------
    FormatError
        If a column is missing or of another type, or the table is of another schema version.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    version = decode_metadata(schema).get("schema_version")
    if version is None:
        raise FormatError(f"{name} is no cxu table: it has no schema_version; import CSV files with: cxu import")
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{name} has schema version {version}, this cxu reads {SCHEMA_VERSION}; make it again with this version"
        )
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise FormatError(f"{name} has the column {twice[0]!r} more than once")
    for field in SCHEMA:
        if field.name not in schema.names:
            raise FormatError(f"{name} lacks the column {field.name!r}; expected the columns of docs/format.md")
        if schema.field(field.name).type != field.type:
            raise FormatError(
                f"{name}: column {field.name!r} is {schema.field(field.name).type}, expected {field.type}"
            )


def encode_metadata(facts: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the file metadata of a table: the schema version and ``facts``, as JSON with sorted keys."""
    content = {"schema_version": SCHEMA_VERSION, **facts}
    return {METADATA_KEY: json.dumps(content, sort_keys=True, ensure_ascii=True).encode()}


def decode_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return the facts of :func:`encode_metadata`; empty where there are none."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return {}
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def check_facts(facts: Mapping[str, Any]) -> None:
    """Check that facts of a selection, and of those it was made from, are of the kinds that cxu writes.

    Raises
    ------
    ValueError
        If one is not: it is named.
    """
    thresholds = facts.get("thresholds", {})
    if not isinstance(thresholds, dict):
        raise ValueError(f"its fact 'thresholds' is {type(thresholds).__name__}, not an object of named values")
    numbers = (int, float, NoneType)
    limits = facts.get("limits_px", [])
    good = {
        "max_std": _is_by_organ(thresholds.get("max_std"), str),
        "max_radius90": _is_by_organ(thresholds.get("max_radius90"), (int, float)),
        "organs": _is_list(thresholds.get("organs", []), str),
        "limits_px": _is_list(limits, dict) and all(_is_limit(one) for one in limits),
        **{name: isinstance(thresholds.get(name), numbers) for name in ("min_rca", "min_rca_max", "max_mean_std")},
        **{name: _is_list(facts.get(name, []), dict) for name in ("labels", "inputs")},
        **{name: _is_list(facts.get(name, []), str) for name in ("sources", "where")},
    }
    damaged = [name for name, is_good in good.items() if not is_good]
    if damaged:
        raise ValueError(f"its fact {damaged[0]!r} is damaged")
    for one in facts.get("inputs", []):
        check_facts(one)


def _is_list(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_limit(group: Mapping[str, Any]) -> bool:
    named = all(isinstance(group.get(name), str) for name in ("source", "model_id"))
    return named and _is_by_organ(group.get("px", 0), (int, float, NoneType))


def _is_by_organ(values: object, kind: type | tuple[type, ...]) -> bool:
    """Tell whether values are nothing, or one of a kind for each of some organs."""
    if values is None:
        return True
    return isinstance(values, dict) and all(
        name in ORGAN_NAMES and isinstance(value, kind) for name, value in values.items()
    )


def with_facts(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """Return ``table`` with ``facts`` as its file metadata."""
    return table.replace_schema_metadata(encode_metadata(facts))


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of tables of one schema, one after the other, each column in one chunk."""
    return pa.concat_tables(tables).combine_chunks()
