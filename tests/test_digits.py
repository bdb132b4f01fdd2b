"""Numbers out of text: the same as Python's float, or left to those who can read it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu import codec, digits

PLAIN = st.from_regex(r"-?[0-9]{1,7}|-?[0-9]{0,3}\.[0-9]{1,3}|-?[0-9]{1,4}\.[0-9]{0,2}", fullmatch=True).filter(
    lambda text: len(text.lstrip("-")) <= 8
)


def parse(texts, count, between=b""):
    encoded = [text.encode() for text in texts]
    stops = np.cumsum([len(text) + len(between) for text in encoded]) - len(between)
    starts = stops - [len(text) for text in encoded]
    return digits.parse_plain(np.frombuffer(between.join(encoded), np.uint8), starts, stops, count)


@given(st.lists(st.lists(PLAIN, min_size=3, max_size=3), min_size=1, max_size=9), st.sampled_from([b"", b"|", b"x,"]))
def test_plain_numbers_are_those_of_float(rows, between):
    values = parse([",".join(row) for row in rows], 3, between)
    if between == b"x," and len(rows) > 1:
        assert values is None  # a comma too many: nobody knows whose
        return
    expected = np.array([[float(token) for token in row] for row in rows])
    np.testing.assert_array_equal(values, expected)
    assert (np.signbit(values) == np.signbit(expected)).all()


@given(st.lists(st.text("0123456789,.-e +/", max_size=12), min_size=1, max_size=5), st.integers(1, 3))
def test_whatever_is_taken_is_right_and_the_rest_is_left_alone(texts, count):
    values = parse(texts, count)
    if values is not None:
        np.testing.assert_array_equal(values, [[float(token) for token in text.split(",")] for text in texts])


NOT_PLAIN = (
    *("", ",", "1,", ",1", "1,,2", "1", "1,2,3", ".,1", "-,1", "-.,1", "1.2.3,1", "1-2,1", "--1,1", "123456789,1"),
    *("023...,1", "1.5,023...", "1..5,2", "2...,.5", "1,2..", "5.5,1.5."),
    *("1,2e3", "1,nan", "1, 2", "[1,2]", "1/2,3", "1,2\n", "1;2,3", "\uff11,2"),
)


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_is_not_plain_is_left_alone(text):
    assert parse([text], 2) is None
    assert parse(["3,4", text, "5,6"], 2) is None


def test_more_tokens_than_a_block():
    numbers = np.random.default_rng(0).integers(-999, 99_999, (700, 240))
    values = parse([",".join(map(str, row)) for row in numbers.tolist()], 240)
    np.testing.assert_array_equal(values, numbers)


def test_no_text_gives_no_row():
    assert parse([], 2).shape == (0, 2)


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_string()])
@pytest.mark.parametrize("sliced", [slice(0, 3), slice(1, 3), slice(2, 2)])
def test_columns_that_are_cut_out_of_others(kind, sliced):
    column = pa.array(["1,2", "3.5,-4", "5,6"], kind)[sliced.start : sliced.stop]
    values, valid = codec.parse_number_rows(column, 2)
    np.testing.assert_array_equal(values, np.array([[1, 2], [3.5, -4], [5, 6]], np.float32)[sliced])
    assert valid.all()


def test_a_row_that_is_not_plain_spoils_no_other():
    values, valid = codec.parse_number_rows(pa.array([b"1,2", b"[3 4]", None, b"5,x", b"1e2,6"]), 2)
    assert valid.tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(values[valid], [[1, 2], [3, 4], [100, 6]])
