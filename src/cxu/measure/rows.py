"""Rows of the one table → rows of measures: values, intervals, flags, and why a value is blank.

Everything is measured of all 120 means, whatever a selection says of them: a polygon without its unconfident nodes is
thinner than the organ. What a selection says decides whether there is a value at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import table
from cxu.anatomy import N_NODES, ORGANS
from cxu.errors import FormatError
from cxu.measure import geometry, intervals
from cxu.measure.geometry import AREAS, LENGTHS, MEASURED, OVERLAP
from cxu.model.reference import sigma_scales

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
CodeArray = npt.NDArray[np.uint8]

IMAGE_FRACTIONS: Final = tuple(f"{organ.name}_image_fraction" for organ in ORGANS)
# why a value is blank, the first that holds; 0 stands for a value
REASONS: Final = ("", "not_finite", "unconfident", "unusable", "no_size", "no_spacing", "no_extent")
_NOT_FINITE, _UNCONFIDENT, _UNUSABLE, _NO_SIZE, _NO_SPACING, _NO_EXTENT = range(1, len(REASONS))

_SAMPLE_ROWS: Final = 256  # whose kept samples are in memory as numpy arrays at a time

READ: Final = (
    "source",
    "image_id",
    "patient_id",
    "frame",
    "height",
    "width",
    "landmarks_xy",
    "sigma_xy",
    "samples_xy",
    "confident",
    "usable",
    "model_id",
    "spacing_mm_xy",
    "view",
    "quality",
)
_KEPT: Final = ("source", "image_id", "patient_id", "frame", "view", "model_id", "quality")


def _measure_columns() -> dict[str, tuple[str, bool]]:
    """Return unit and whether there is an interval, by name of measure, in the order of the columns."""
    columns: dict[str, tuple[str, bool]] = {"ctr": ("", True)}
    columns |= {f"{name}_px": ("px of frame", True) for name in LENGTHS}
    columns |= {f"{name}_px2": ("px² of frame", True) for name in AREAS}
    columns |= {f"{name}_mm": ("mm", True) for name in LENGTHS}
    columns |= {f"{name}_mm2": ("mm²", True) for name in AREAS}
    columns |= dict.fromkeys((*IMAGE_FRACTIONS, *geometry.THORAX_FRACTIONS, "lung_area_ratio"), ("", True))
    columns[OVERLAP] = ("", False)
    columns["tilt_deg"] = ("degrees", True)
    return columns


MEASURES: Final = _measure_columns()
NODES: Final = ("heart_min_x_node", "heart_max_x_node", "thorax_min_x_node", "thorax_max_x_node")
FLAGS: Final = ("touches_border", "lungs_swapped", "heart_on_image_left")


def _schema() -> pa.Schema:
    fields = [table.field_of(name) for name in _KEPT]
    for name, (unit, has_interval) in MEASURES.items():
        ends = ("", "_low", "_high") if has_interval else ("",)
        fields += [pa.field(f"{name}{end}", pa.float32(), metadata={"unit": unit}) for end in ends]
    fields.insert(fields.index(pa.field("ctr_high", pa.float32())) + 1, pa.field("ctr_blank", pa.string()))
    fields += [pa.field(name, pa.int16()) for name in NODES]
    fields += [pa.field(name, pa.bool_()) for name in FLAGS]
    return pa.schema([*fields, pa.field("interval_method", pa.string()), pa.field("sigma_scale_source", pa.string())])


SCHEMA: Final = _schema()


@dataclass(frozen=True)
class Measured:
    """What was measured of n rows.

    Attributes
    ----------
    rows
        In :data:`SCHEMA`, in the order of the table.
    extras
        The columns that the table has beyond its own, such as labels.
    reasons
        By measure, for each row [n] the index into :data:`REASONS` of why it is blank; 0 where there is a value.
    """

    rows: pa.Table
    extras: pa.Table
    reasons: dict[str, CodeArray]


def measure(rows: pa.Table) -> Measured:
    """Measure rows of the one table: predictions, published rows or a selection.

    Parameters
    ----------
    rows
        The columns :data:`READ` as far as they are there, and any that the schema does not know; those are kept. No row
        gives none.

    Raises
    ------
    FormatError
        If kept samples are not a multiple of 240 numbers.
    """
    points = table.landmarks_of(rows).astype(np.float64)
    finite = np.all(np.isfinite(points), axis=(1, 2))
    # measured all the same, so that arrays keep their shape; blanked below
    points[~finite] = 0.0
    x, y = np.ascontiguousarray(points.transpose(2, 1, 0))
    values = {**geometry.measure_nodes(x, y), OVERLAP: geometry.overlap_fraction(points)}
    spread, method, scale_sources = _spread(rows, points, finite)
    reasons = _base_reasons(rows, x, y, finite)
    pixels = _Pixels.of(rows)
    columns: dict[str, Any] = {name: rows[name] for name in _KEPT}
    codes: dict[str, CodeArray] = {}
    for name, (_, has_interval) in MEASURES.items():
        base, factor, missing = pixels.of_measure(name)
        value = values[base] * factor
        codes[name] = _first_reason(reasons[base], missing, _NO_EXTENT * ~np.isfinite(value))
        columns[name] = _blanked(value, codes[name] > 0)
        if has_interval:
            half_width = intervals.HALF_WIDTH * spread[base] * factor
            unknown = (codes[name] > 0) | ~np.isfinite(half_width)
            columns[f"{name}_low"] = _blanked(value - half_width, unknown)
            columns[f"{name}_high"] = _blanked(value + half_width, unknown)
    columns["ctr_blank"] = _named(codes["ctr"])
    columns |= _nodes_and_flags(x, y, pixels.shape_hw, finite)
    columns |= {"interval_method": method, "sigma_scale_source": scale_sources}
    made = pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)
    return Measured(made, rows.select(extra_columns(rows.schema)), codes)


def measure_rows(rows: pa.Table) -> pa.Table:
    """Measure rows in memory: cardiothoracic ratio, lengths, areas, fractions, overlap and tilt, with intervals.

    Parameters
    ----------
    rows
        Rows of the one table: predictions, published rows or a selection.

    Returns
    -------
    A row for each, in the same order, with the columns of ``docs/commands/measure.md`` and those that the rows have
    beyond the schema of the table, such as labels. A value that cannot be had is null; ``ctr_blank`` says why.

    Raises
    ------
    FormatError
        If the rows are not in the schema of ``docs/format.md``.

    Examples
    --------
    >>> corners = np.zeros((1, 120, 2), np.float32)
    >>> corners[0, [10, 60], 0], corners[0, 100, 0] = [2.0, 10.0], 4.0
    >>> rows = table.build_table({
    ...     "source": "mine", "image_id": ["a"], "frame": "image", "model_id": "m",
    ...     "landmarks_xy": corners.reshape(1, 240)}, 1)
    >>> float(measure_rows(rows)["ctr"][0])
    0.4000000059604645
    """
    table.check_table(rows, "the table to measure")
    measured = measure(rows)
    made, extras = measured.rows, measured.extras
    for name, column in zip(free_names(extras.column_names), extras.columns, strict=True):
        made = made.append_column(name, column)
    return made


def extra_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that the one table does not know, in order."""
    return [name for name in schema.names if name not in table.SCHEMA.names and name not in table.OPTIONAL.names]


def free_names(names: Sequence[str]) -> list[str]:
    """Return names for columns beside the measures: those that a measure or an earlier column has get a prefix.

    Examples
    --------
    >>> free_names(["Age", "ctr"])
    ['Age', 'label_ctr']
    """
    free: list[str] = []
    for name in names:
        while name in SCHEMA.names or name in free:
            name = f"label_{name}"  # noqa: PLW2901 - prefixed until it is free
        free.append(name)
    return free


def _base_reasons(rows: pa.Table, x: FloatArray, y: FloatArray, finite: BoolArray) -> dict[str, CodeArray]:
    """Return for every measure of pixels why it is blank, for reasons that lie in the landmarks."""
    founded = geometry.well_founded(x, y, table.confident_of(rows).T, table.usable_of(rows).T)
    on_nodes = ("ctr", *LENGTHS, "tilt_deg")
    not_finite = _NOT_FINITE * ~finite
    return {
        name: _first_reason(not_finite, (_UNCONFIDENT if name in on_nodes else _UNUSABLE) * ~known)
        for name, known in founded.items()
    }


def _first_reason(*codes: npt.NDArray[Any]) -> CodeArray:
    """Return for each row [n] the first of several codes that is no 0, else 0."""
    found = np.zeros(len(codes[0]), np.uint8)
    for code in codes:
        found = np.where(found == 0, code, found).astype(np.uint8)
    return found


def _blanked(values: FloatArray, blank: BoolArray) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=blank)


def _named(codes: CodeArray) -> pa.Array:
    named = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8(), mask=codes == 0), pa.array(REASONS))
    return named.cast(pa.string())


def _nodes_and_flags(x: FloatArray, y: FloatArray, shape_hw: FloatArray, finite: BoolArray) -> dict[str, pa.Array]:
    nodes = geometry.extremal_nodes(x)
    flags = geometry.side_flags(x)
    unknown = ~(finite & np.isfinite(shape_hw).all(axis=0))
    return {
        **{name: pa.array(nodes[name].astype(np.int16), mask=~finite) for name in NODES},
        "touches_border": pa.array(geometry.touches_border(x, y, shape_hw), mask=unknown),
        **{name: pa.array(of_rows, mask=~finite) for name, of_rows in flags.items()},
    }


@dataclass(frozen=True)
class _Pixels:
    """What is known of the pixels of n rows: height and width [2, n] px, and mm per px [2, n] (x, y); else NaN."""

    shape_hw: FloatArray
    spacing_xy: FloatArray

    @classmethod
    def of(cls, rows: pa.Table) -> _Pixels:
        shape_hw = np.stack([table.scalar_column(rows, name) for name in ("height", "width")])
        shape_hw[:, ~np.all(shape_hw > 0, axis=0)] = np.nan
        spacing = table.list_column(rows, "spacing_mm_xy").astype(np.float64).T
        # the spacing is that of image pixels
        known = pc.equal(rows["frame"], "image").to_numpy() & np.all(np.isfinite(spacing) & (spacing > 0), axis=0)
        return cls(shape_hw, np.where(known, spacing, np.nan))

    def of_measure(self, name: str) -> tuple[str, FloatArray, CodeArray]:
        """Return what a measure is a multiple of, by what [n], and why that is unknown: codes [n]."""
        base, _, unit = name.rpartition("_")
        n_rows = self.shape_hw.shape[1]
        if unit in ("mm", "mm2"):
            both = self.spacing_xy[0] * self.spacing_xy[1]
            factor = both if unit == "mm2" else self.spacing_xy[0 if base.endswith("width") else 1]
            return base, factor, np.where(np.isnan(both), _NO_SPACING, 0).astype(np.uint8)
        if name in IMAGE_FRACTIONS:
            image_area = self.shape_hw[0] * self.shape_hw[1]
            of_area = AREAS[IMAGE_FRACTIONS.index(name)]
            return of_area, 1 / image_area, np.where(np.isnan(image_area), _NO_SIZE, 0).astype(np.uint8)
        return base if unit in ("px", "px2") else name, np.ones(n_rows), np.zeros(n_rows, np.uint8)


def _spread(rows: pa.Table, points: FloatArray, finite: BoolArray) -> tuple[dict[str, FloatArray], pa.Array, pa.Array]:
    """Return the spread of every measure [n], NaN where unknown, how it was found, and whence the calibration."""
    sigma = table.sigmas_of(rows)
    simulated = finite & np.all(np.isfinite(sigma) & (sigma >= 0), axis=(1, 2))
    sampled = np.zeros(len(rows), np.bool_)
    found: dict[str, FloatArray] = {name: np.full(len(rows), np.nan) for name in MEASURED}
    scales, sources = sigma_scales(rows["model_id"].to_pylist())
    for where, samples in _kept_samples(rows, finite):
        sampled[where] = True
        _fill(found, where, intervals.sampled_spread(points[where], samples, scales[where]))
    simulated &= ~sampled
    calibrated = sigma[simulated] * intervals.scale_of_nodes(scales[simulated])[..., None]
    _fill(found, simulated, intervals.simulated_spread(points[simulated], calibrated))
    method = np.where(sampled, "samples", "simulated")
    unknown = ~(sampled | simulated)
    return found, pa.array(method, pa.string(), mask=unknown), pa.array(np.array(sources, str), pa.string(), unknown)


def _fill(found: dict[str, FloatArray], where: npt.NDArray[Any], of_rows: dict[str, FloatArray]) -> None:
    for name, values in of_rows.items():
        found[name][where] = values


def _kept_samples(rows: pa.Table, finite: BoolArray) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray]]:
    """Yield finite rows with enough kept samples, as indices [m] and samples [m, S, 120, 2]."""
    if "samples_xy" not in rows.column_names:
        return
    column = rows["samples_xy"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    width = 2 * N_NODES
    broken = np.flatnonzero(lengths % width)
    if broken.size:
        raise FormatError(
            f"{rows['source'][broken[0]]} {rows['image_id'][broken[0]]}: samples_xy has {lengths[broken[0]]} numbers; "
            f"expected a multiple of {width}: predict again with --keep-samples"
        )
    enough = finite & (lengths >= intervals.MIN_SAMPLES * width)
    for length in np.unique(lengths[enough]):
        of_length = np.flatnonzero(enough & (lengths == length))
        for where in np.split(of_length, range(_SAMPLE_ROWS, len(of_length), _SAMPLE_ROWS)):
            flat = column.take(pa.array(where)).flatten().to_numpy(zero_copy_only=False)
            samples = flat.reshape(len(where), -1, N_NODES, 2)
            whole = np.isfinite(samples).all(axis=(1, 2, 3))
            if whole.any():
                yield where[whole], samples[whole]
