from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import chest, make_rows
from cxu import table
from cxu.errors import FormatError

NAN = np.nan


# -- the schema


def test_the_schema_is_the_documented_one():
    assert table.SCHEMA.names == [
        "source",
        "image_id",
        "patient_id",
        "height",
        "width",
        "frame",
        "frame_side",
        "frame_offset_xy",
        "frame_exact",
        "landmarks_xy",
        "sigma_xy",
        "sigma_model_px",
        "mean_sigma_model_px",
        "max_sigma_model_px",
        "rca_mean",
        "rca_max",
        "rca_swapped",
        "latent_sigma",
        "model_id",
        "n_samples",
        "seed",
        "precision",
        "repo",
        "revision",
        "file_sha256",
        "spacing_mm_xy",
        "view",
        "quality",
        "quality_score",
        "quality_reason",
        "radius90_px",
    ]
    assert table.SCHEMA.field("landmarks_xy").type == pa.list_(pa.float32(), 240)
    assert table.SCHEMA.field("sigma_model_px").type == pa.list_(pa.float32(), 120)
    assert table.OPTIONAL.names[-3:] == ["rle_right_lung", "rle_left_lung", "rle_heart"]
    for field in [*table.SCHEMA, *table.OPTIONAL]:
        assert set(field.metadata) == {b"unit", b"meaning"}
        assert field.metadata[b"meaning"]


# -- building


def test_columns_that_are_not_given_are_null():
    rows = make_rows(3)
    assert rows.schema.names == table.SCHEMA.names
    assert {name: rows[name].null_count for name in ("sigma_xy", "rca_mean", "seed", "view", "frame_offset_xy")} == {
        "sigma_xy": 3,
        "rca_mean": 3,
        "seed": 3,
        "view": 3,
        "frame_offset_xy": 3,
    }
    assert rows["source"].to_pylist() == ["chestxray8"] * 3
    table.check_table(rows, "rows")


def test_nan_becomes_null_in_columns_given_as_numpy():
    sigma_xy = np.ones((3, 120, 2), np.float32)
    sigma_xy[1] = NAN
    rows = make_rows(
        3,
        sigma_xy=sigma_xy,
        height=np.array([2000, NAN, 1024.0]),
        frame_side=np.array([NAN, 2.5, NAN]),
        frame_offset_xy=np.array([[0, -3], [NAN, NAN], [1, 2]], np.float32),
    )
    assert rows["height"].to_pylist() == [2000, None, 1024]
    assert rows["frame_side"].to_pylist() == [None, 2.5, None]
    assert rows["frame_offset_xy"].to_pylist() == [[0, -3], None, [1, 2]]
    assert [values is None for values in rows["sigma_xy"].to_pylist()] == [False, True, False]
    assert rows["sigma_xy"][2].as_py() == [1.0] * 240


def test_a_list_with_some_nan_is_no_null():
    rows = make_rows(1, frame_offset_xy=np.array([[NAN, 2]], np.float32))
    assert rows["frame_offset_xy"].null_count == 0
    np.testing.assert_array_equal(table.list_column(rows, "frame_offset_xy"), [[NAN, 2]])


def test_columns_come_as_scalars_lists_numpy_or_arrow():
    rows = make_rows(
        2,
        seed=7,
        view=["PA", None],
        rca_swapped=np.array([True, False]),
        frame_exact=pa.array([None, True]),
        n_samples=pa.chunked_array([[50], [None]]),
        confident=np.tile([True, False], 120).reshape(2, 120),
        rle_heart=pa.array(["1 2", ""]),
    )
    assert rows["seed"].to_pylist() == [7, 7]
    assert rows["view"].to_pylist() == ["PA", None]
    assert rows["rca_swapped"].to_pylist() == [True, False]
    assert rows["frame_exact"].to_pylist() == [None, True]
    assert rows["n_samples"].to_pylist() == [50, None]
    assert rows["rle_heart"].to_pylist() == ["1 2", ""]
    assert rows.column_names[-2:] == ["confident", "rle_heart"]
    np.testing.assert_array_equal(table.confident_of(rows), np.tile([True, False], (2, 60)))


def test_a_table_of_no_rows_has_every_column():
    rows = make_rows(0, landmarks_xy=np.zeros((0, 120, 2), np.float32), sigma_xy=np.zeros((0, 240), np.float32))
    assert len(rows) == 0
    table.check_table(rows, "rows")
    assert table.landmarks_of(rows).shape == (0, 120, 2)


def test_a_column_of_another_name_is_a_mistake():
    with pytest.raises(KeyError, match="sigma_px"):
        make_rows(1, sigma_px=np.ones((1, 120)))


def test_missing_ids_are_noticed_when_a_file_is_written():
    with pytest.raises(pa.ArrowInvalid, match="image_id"):
        pq.write_table(make_rows(1, image_id=[None]), io.BytesIO())


# -- reading columns


def numbered(n_rows):
    """Return a table whose landmarks count up, and whose sigma is null in every third row."""
    landmarks_xy = np.arange(n_rows * 240, dtype=np.float32).reshape(n_rows, 120, 2)
    sigma_xy = landmarks_xy + 0.5
    sigma_xy[::3] = NAN
    confident = (landmarks_xy[..., 0] % 14) < 6
    return make_rows(n_rows, landmarks_xy=landmarks_xy, sigma_xy=sigma_xy, confident=confident), landmarks_xy, sigma_xy


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_list_columns_read_the_rows_of_chunked_and_sliced_tables(chunk_lengths, first, length):
    rows, landmarks_xy, sigma_xy = numbered(sum(chunk_lengths))
    ends = np.cumsum([0, *chunk_lengths])
    chunks = [rows.slice(start, n) for start, n in zip(ends, chunk_lengths, strict=False)]
    part = pa.concat_tables(chunks).slice(first, length)
    expected = slice(first, first + length)
    np.testing.assert_array_equal(table.landmarks_of(part), landmarks_xy[expected])
    np.testing.assert_array_equal(table.sigmas_of(part), sigma_xy[expected])
    np.testing.assert_array_equal(table.confident_of(part), ((landmarks_xy[..., 0] % 14) < 6)[expected])


def test_list_columns_read_rows_that_were_taken_out_of_order():
    rows, landmarks_xy, sigma_xy = numbered(7)
    taken = rows.take([6, 3, 1, 0])
    np.testing.assert_array_equal(table.landmarks_of(taken), landmarks_xy[[6, 3, 1, 0]])
    np.testing.assert_array_equal(table.sigmas_of(taken), sigma_xy[[6, 3, 1, 0]])


def test_list_columns_come_back_from_parquet():
    rows, landmarks_xy, sigma_xy = numbered(7)
    stream = io.BytesIO()
    pq.write_table(rows, stream, row_group_size=3)
    back = pq.read_table(stream)
    np.testing.assert_array_equal(table.landmarks_of(back), landmarks_xy)
    np.testing.assert_array_equal(table.sigmas_of(back), sigma_xy)


def test_a_null_row_reads_as_nan_or_false():
    rows = make_rows(2, usable=pa.array([None, [True, False, True]], pa.list_(pa.bool_(), 3)))
    assert table.usable_of(rows).tolist() == [[False] * 3, [True, False, True]]
    assert table.usable_of(rows).dtype == np.bool_
    assert np.isnan(table.sigmas_of(rows)).all()
    assert table.sigmas_of(rows).dtype == np.float32


def test_everything_is_confident_and_usable_in_a_table_that_is_no_selection():
    rows = make_rows(2)
    assert table.confident_of(rows).all()
    assert table.confident_of(rows).shape == (2, 120)
    assert table.usable_of(rows).tolist() == [[True] * 3] * 2


def test_scalar_columns_read_nulls_as_nan_or_false():
    rows = make_rows(3, height=[5, None, 7], rca_mean=[None, 0.5, None], frame_exact=[True, None, False])
    np.testing.assert_array_equal(table.scalar_column(rows, "height"), [5, NAN, 7])
    np.testing.assert_array_equal(table.scalar_column(rows, "rca_mean"), [NAN, 0.5, NAN])
    assert table.scalar_column(rows, "frame_exact").tolist() == [True, False, False]
    assert table.scalar_column(make_rows(2, seed=3), "seed").tolist() == [3, 3]


# -- sigma


def test_node_uncertainty_is_the_mean_of_both_axes_not_the_norm():
    assert table.node_uncertainty(np.array([[3.0, 4.0], [0.0, 5.0]], np.float32)).tolist() == [3.5, 2.5]


def test_sigma_columns_by_hand():
    sigma_xy = np.full((3, 120, 2), [3, 4], np.float32)
    sigma_xy[0, 7] = [20, 30]
    sigma_xy[2] = NAN
    columns = table.sigma_columns(sigma_xy)
    assert columns["sigma_model_px"][0, :8].tolist() == [3.5] * 7 + [25]
    np.testing.assert_allclose(columns["mean_sigma_model_px"], [(119 * 3.5 + 25) / 120, 3.5, NAN], rtol=1e-6)
    np.testing.assert_array_equal(columns["max_sigma_model_px"], np.array([25, 3.5, NAN], np.float32))
    assert {values.dtype for values in columns.values()} == {np.dtype(np.float32)}


def test_sigma_of_an_image_frame_is_scaled_to_the_model_frame():
    sigma_xy = np.full((3, 120, 2), [3, 4], np.float32)
    columns = table.sigma_columns(sigma_xy, np.array([2048.0, 512.0, NAN]))
    assert columns["sigma_model_px"][:, 0].tolist()[:2] == [1.75, 7]
    assert np.isnan(columns["sigma_model_px"][2]).all()
    np.testing.assert_array_equal(columns["sigma_xy"], sigma_xy)


# -- checks and metadata


def test_a_table_that_lacks_a_column_or_has_another_type_is_refused():
    rows = make_rows(1)
    with pytest.raises(FormatError, match=r"my\.parquet lacks the column 'rca_max'"):
        table.check_table(rows.drop_columns(["rca_max"]), "my.parquet")
    index = rows.column_names.index("height")
    wider = rows.set_column(index, "height", rows["height"].cast(pa.int64()))
    with pytest.raises(FormatError, match="column 'height' is int64, expected int32"):
        table.check_table(wider, "my.parquet")
    table.check_table(rows.append_column("ViewPosition", pa.array(["PA"])), "my.parquet")
    table.check_table(rows.schema, "my.parquet")


def test_a_table_of_someone_else_or_of_another_version_is_refused():
    rows = make_rows(1)
    with pytest.raises(FormatError, match="no cxu table: it has no schema_version; import CSV files with: cxu import"):
        table.check_table(rows.replace_schema_metadata(None), "my.parquet")
    with pytest.raises(FormatError, match="has schema version 2, this cxu reads 1"):
        table.check_table(table.with_facts(rows, {"schema_version": "2"}), "my.parquet")


facts = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "schema_version"),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(facts)
def test_facts_come_back_from_the_metadata_of_a_file(content):
    rows = table.with_facts(pa.table({"a": [1]}), content)
    stream = io.BytesIO()
    pq.write_table(rows, stream)
    assert table.decode_metadata(pq.read_schema(stream)) == {"schema_version": "1", **content}


def test_metadata_is_the_same_bytes_in_any_order():
    assert table.encode_metadata({"a": 1, "b": 2}) == table.encode_metadata({"b": 2, "a": 1})


@pytest.mark.parametrize("raw", [None, b"no JSON", b"[1]", b"\xff"])
def test_damaged_metadata_reads_as_none(raw):
    schema = pa.schema([], metadata=None if raw is None else {table.METADATA_KEY: raw})
    assert table.decode_metadata(schema) == {}


def test_rows_are_concatenated_into_one_chunk():
    both = table.concat_rows([make_rows(2), make_rows(3, source="mimic")])
    assert both["source"].to_pylist() == ["chestxray8"] * 2 + ["mimic"] * 3
    assert all(column.num_chunks == 1 for column in both.columns)
    np.testing.assert_array_equal(table.landmarks_of(both)[4], chest())
