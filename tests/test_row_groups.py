"""Encodings, and row groups that were encoded apart: the bytes of a file that pyarrow wrote in one go."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_rows
from cxu import table
from cxu.row_groups import JoinedGroups, encode_file, encoding_options

LATE = {"cxu_late": '{"flow": []}'}


def published(n_rows, seed=0):
    """Return rows as published: whole pixels, hundredths, a film without RCA among them."""
    rng = np.random.default_rng(seed)
    sigma_xy = rng.gamma(4, 0.6, (n_rows, 120, 2)).round(2).astype(np.float32)
    sigma_xy[::7] = np.nan
    rca = np.where(np.arange(n_rows) % 5, rng.uniform(0.4, 1, n_rows), np.nan)
    columns = {"landmarks_xy": rng.integers(0, 1024, (n_rows, 120, 2)).astype(np.float32), "rca_mean": rca}
    return make_rows(n_rows, **columns, **table.sigma_columns(sigma_xy))


def predicted(n_rows):
    """Return rows in full precision, with kept samples and columns of labels."""
    rng = np.random.default_rng(1)
    sigma_xy = rng.gamma(4, 0.6, (n_rows, 120, 2)).astype(np.float32)
    landmarks_xy = rng.uniform(0, 1024, (n_rows, 120, 2)).astype(np.float32)
    rows = make_rows(n_rows, landmarks_xy=landmarks_xy, **table.sigma_columns(sigma_xy))
    samples = [rng.uniform(0, 1024, 480).astype(np.float32) if row % 3 else None for row in range(n_rows)]
    rows = rows.append_column(table.field_of("samples_xy"), pa.array(samples, pa.list_(pa.float32())))
    rows = rows.append_column("Finding Labels", pa.array(["Edema", None] * n_rows)[:n_rows])
    confident = table.lists_from_numpy(rng.random((n_rows, 120)) < 0.5, table.field_of("confident").type)
    return rows.append_column(table.field_of("confident"), confident)


def in_one_go(rows, group_rows):
    stream = io.BytesIO()
    # the first group decides
    with pq.ParquetWriter(stream, rows.schema, **encoding_options(rows.slice(0, group_rows))) as writer:
        if len(rows):
            writer.write_table(rows, row_group_size=group_rows)
        writer.add_key_value_metadata(LATE)
    return stream.getvalue()


def joined(rows, group_rows):
    stream = io.BytesIO()
    groups = JoinedGroups(stream, rows.schema)
    looked_at = [groups.looked_at(rows.slice(at, group_rows)) for at in range(0, len(rows), group_rows)]
    # encoded in any order
    encoded = [groups.encode(group) for group in reversed(looked_at)]
    for group in reversed(encoded):
        groups.append(group)
    groups.finish(LATE)
    return stream.getvalue()


@pytest.mark.parametrize("make", [published, predicted])
@pytest.mark.parametrize("group_rows", [400, 399, 64, 7])
def test_joined_groups_are_the_bytes_of_one_file(make, group_rows):
    rows = make(400)
    content = joined(rows, group_rows)
    assert content == in_one_go(rows, group_rows)
    file = pq.ParquetFile(io.BytesIO(content))
    assert file.num_row_groups == -(-400 // group_rows)
    assert file.read().equals(rows)
    assert file.read_row_group(file.num_row_groups - 1).equals(rows.slice(400 - (400 % group_rows or group_rows)))
    assert file.metadata.metadata[b"cxu_late"] == LATE["cxu_late"].encode()


def test_no_group_is_a_file_without_rows():
    rows = make_rows(0)
    assert joined(rows, 5) == in_one_go(rows, 5)
    assert pq.read_table(io.BytesIO(joined(rows, 5))).equals(rows)


def encodings(rows):
    """Return for each column its compression and whether it has a dictionary."""
    group = pq.ParquetFile(pa.BufferReader(encode_file(rows, encoding_options(rows)))).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    return {
        column.path_in_schema.split(".")[0]: (column.compression, column.has_dictionary_page, column.encodings)
        for column in columns
    }


def test_published_lists_go_into_dictionaries_and_those_of_full_precision_into_byte_streams():
    of_published, of_predicted = encodings(published(600)), encodings(predicted(600))
    for name in ("landmarks_xy", "sigma_xy", "sigma_model_px"):
        assert of_published[name][:2] == ("SNAPPY", True)
        assert of_predicted[name][:2] == ("ZSTD", False)
        assert "BYTE_STREAM_SPLIT" in of_predicted[name][2]
    assert "BYTE_STREAM_SPLIT" in of_predicted["samples_xy"][2]
    for found in (of_published, of_predicted):
        assert found["image_id"][:2] == ("ZSTD", True)
        assert found["rca_mean"][0] == "ZSTD"


@pytest.mark.parametrize(("make", "share"), [(published, 1.05), (predicted, 0.9)])
def test_the_choice_is_no_larger_than_dictionaries_and_zstd_throughout(make, share):
    rows = make(2000)
    chosen = encode_file(rows, encoding_options(rows)).size
    assert chosen < share * encode_file(rows, {"compression": "zstd", "compression_level": 3}).size


def test_the_first_values_there_are_decide():
    sigma = np.full((300, 120), np.nan, np.float32)
    sigma[200:] = np.random.default_rng(0).uniform(1, 9, (100, 120))
    kind = table.field_of("sigma_model_px").type
    column = pa.chunked_array([table.lists_from_numpy(part, kind) for part in np.array_split(sigma, 3)])
    assert encoding_options(pa.table({"sigma": column}))["column_encoding"] == {
        "sigma.list.element": "BYTE_STREAM_SPLIT"
    }
    assert encoding_options(pa.table({"sigma": column.slice(0, 200)}))["column_encoding"] is None


def test_scalar_columns_have_statistics_and_lists_do_without():
    rows = published(50)
    group = pq.ParquetFile(pa.BufferReader(encode_file(rows, encoding_options(rows)))).metadata.row_group(0)
    stated = {
        group.column(index).path_in_schema: group.column(index).is_stats_set for index in range(group.num_columns)
    }
    assert stated["rca_mean"]
    assert not stated["sigma_xy.list.element"]


def test_columns_of_other_kinds_are_written():
    rows = pa.table(
        {
            "a.b": [1, 2],
            "record": [{"x": 1.5, "y": ["u", "v"]}, None],
            "tags": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())),
            "level": pa.array(["p", "q"]).dictionary_encode(),
        }
    )
    written = pq.read_table(io.BytesIO(joined(rows, 1)))
    assert written.to_pylist() == rows.to_pylist()
