from __future__ import annotations

import json
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as pycoco

from builders import plain_decode_rle
from cxu import codec
from cxu.errors import CodecError, CxuError, FormatError

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
masks = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 1))
EMPTY, FULL = np.zeros((3, 2), np.uint8), np.ones((3, 2), np.uint8)
# 2 rows, 3 columns; by rows 0 1 1 | 1 0 0, by columns 0 1 | 1 0 | 1 0
SMALL = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)


def runs_of(pixels):
    """Return (value, length) of the runs of a list."""
    return [(value, len(list(run))) for value, run in groupby(pixels)]


def plain_encode_rle(mask):
    words, position = [], 1
    for value, length in runs_of([pixel for row in mask.tolist() for pixel in row]):
        words += [str(position), str(length)] if value else []
        position += length
    return " ".join(words)


def plain_coco_counts(mask):
    runs = runs_of([pixel for column in mask.T.tolist() for pixel in column])
    lengths = [length for _, length in runs]
    return lengths if runs[0][0] == 0 else [0, *lengths]


# -- published run lengths


@given(masks)
@example(EMPTY)
@example(FULL)
def test_published_rle_is_as_described_and_comes_back(mask):
    text = codec.encode_rle(mask)
    assert text == plain_encode_rle(mask)
    np.testing.assert_array_equal(codec.decode_rle(text, mask.shape), mask)
    np.testing.assert_array_equal(plain_decode_rle(text, mask.shape), mask)


def test_published_rle_counts_rows_from_one():
    assert codec.encode_rle(SMALL) == "2 3"
    assert codec.encode_rle(SMALL.T) == "2 2 5 1"
    np.testing.assert_array_equal(codec.decode_rle("2 3", (2, 3)), SMALL)


def test_an_empty_text_is_a_mask_without_foreground():
    assert codec.encode_rle(EMPTY) == ""
    decoded = codec.decode_rle("", (3, 2))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, EMPTY)


def test_published_rle_may_touch_the_last_pixel_but_not_pass_it():
    np.testing.assert_array_equal(codec.decode_rle("1 6", (2, 3)), np.ones((2, 3)))
    with pytest.raises(CodecError, match="ends at 7, beyond the 6 pixels of 2 × 3"):
        codec.decode_rle("2 6", (2, 3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1", "1 numbers; expected pairs"),
        ("1 2 3", "3 numbers; expected pairs"),
        ("1 two", "no whole number"),
        ("1.5 2", "no whole number"),
        ("1_0 2", "no whole number"),
        ("1, 2", "no whole number"),
        ("nan 2", "no whole number"),
        ("1 99999999999999999999", "no whole number"),
        ("0 2", "holds 0"),
        ("-1 2", "holds -1"),
        ("-9223372036854775808 2", "holds -9223372036854775808"),
        ("1 0", "holds 0"),
        ("3 -1", "holds -1"),
        ("1 3 3 1", "overlap or go backwards"),
        ("5 1 1 1", "overlap or go backwards"),
        ("7 1", "holds 7, beyond the 6 pixels of 2 × 3"),
        ("6 2", "ends at 7, beyond the 6 pixels of 2 × 3"),
        # sums of these wrap around in 64 bits
        ("9223372036854775807 9223372036854775807", "beyond the 6 pixels"),
        ("1 9223372036854775807 3 1", "beyond the 6 pixels"),
    ],
)
def test_malformed_published_rle_says_why(text, reason):
    with pytest.raises(CodecError, match=reason):
        codec.decode_rle(text, (2, 3))


def test_a_codec_error_is_a_format_error():
    assert issubclass(CodecError, FormatError)
    assert issubclass(CodecError, CxuError)


def edges_of(mask, order="C"):
    """Return where foreground begins and ends in turn."""
    padded = np.concatenate([[0], mask.ravel(order=order), [0]]).astype(int)
    return np.flatnonzero(np.diff(padded))


@given(st.lists(st.none() | masks, max_size=6))
def test_published_rle_of_many_masks_is_that_of_each(many):
    texts = codec.format_rle([None if mask is None else edges_of(mask) for mask in many])
    assert texts.type == pa.large_string()
    assert texts.to_pylist() == [None if mask is None else codec.encode_rle(mask) for mask in many]


# -- COCO run lengths


@given(masks)
@example(EMPTY)
@example(FULL)
def test_coco_counts_are_as_described_and_come_back(mask):
    counts = codec.encode_coco_counts(mask)
    assert counts.tolist() == plain_coco_counts(mask)
    np.testing.assert_array_equal(codec.decode_coco_counts(counts, mask.shape), mask)


def test_coco_counts_go_down_columns_and_start_with_background():
    assert codec.encode_coco_counts(SMALL).tolist() == [1, 2, 1, 1, 1]
    assert codec.encode_coco_counts(FULL).tolist() == [0, 6]
    assert codec.encode_coco_counts(EMPTY).tolist() == [6]


@given(masks)
@example(FULL)
def test_compressed_text_is_that_of_pycocotools(mask):
    theirs = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
    ours = codec.compress_coco_counts(codec.encode_coco_counts(mask))
    assert ours == theirs
    np.testing.assert_array_equal(codec.decode_coco_counts(codec.expand_coco_text(theirs), mask.shape), mask)


def test_compressed_text_of_a_real_size_is_that_of_pycocotools():
    y, x = np.mgrid[:900, :700]
    mask = (((x - 300) / 250) ** 2 + ((y - 500) / 390) ** 2 <= 1).astype(np.uint8)
    theirs = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
    assert codec.compress_coco_counts(codec.encode_coco_counts(mask)) == theirs


@given(st.lists(st.integers(0, 2**33), max_size=12))
def test_compressed_text_holds_any_counts(counts):
    text = codec.compress_coco_counts(np.array(counts, np.int64))
    assert text.isascii()
    assert codec.expand_coco_text(text).tolist() == counts


@given(st.lists(st.none() | masks, max_size=6))
def test_compressed_text_of_many_masks_is_that_of_each(many):
    counts = [None if mask is None else codec.coco_counts(edges_of(mask, "F"), mask.size) for mask in many]
    for found, mask in zip(counts, many, strict=True):
        assert mask is None or found.tolist() == plain_coco_counts(mask)
    texts = codec.format_coco(counts)
    assert texts.type == pa.large_string()
    theirs = [mask if mask is None else pycoco.encode(np.asfortranarray(mask))["counts"].decode() for mask in many]
    assert texts.to_pylist() == theirs


@given(st.lists(st.lists(st.integers(0, 2**33), max_size=6), max_size=4))
def test_compressed_text_of_many_holds_any_counts(many):
    texts = codec.format_coco([np.array(counts, np.int64) for counts in many]).to_pylist()
    assert [codec.expand_coco_text(text).tolist() for text in texts] == many


def test_compressed_text_by_hand():
    # 1, 2, 1, then differences to the count before last: 1 - 2 = -1 and 1 - 1 = 0
    assert codec.compress_coco_counts(np.array([1, 2, 1, 1, 1])) == "121O0"
    # 100 = 0b11_00100: the low five bits with the bit for more (4 + 32), then 3
    assert codec.compress_coco_counts(np.array([100])) == chr(48 + 36) + chr(48 + 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("12 1", "holds the character ' '"),
        ("12é", "holds the character 'é'"),
        ("1p", "holds the character 'p'"),
        ("1/", "holds the character '/'"),
        ("12P", "ends within a count"),
        ("o" * 20 + "0", "holds a count of"),
    ],
)
def test_malformed_compressed_text_says_why(text, reason):
    with pytest.raises(CodecError, match=reason):
        codec.expand_coco_text(text)


@pytest.mark.parametrize("counts", [[5], [7], [], [8, -2], [2**62, 2**62, 2**62, 2**62, 6]])
def test_counts_that_do_not_add_up_are_refused(counts):
    with pytest.raises(CodecError, match=r"add up to -?\d+; expected 6"):
        codec.decode_coco_counts(np.array(counts, np.int64), (2, 3))


@given(masks)
def test_the_dialects_agree_on_the_pixels(mask):
    coco = codec.decode_coco_counts(codec.encode_coco_counts(mask), mask.shape)
    np.testing.assert_array_equal(coco, codec.decode_rle(codec.encode_rle(mask), mask.shape))


# -- landmark text

points = hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.just(2)), elements=st.integers(-30, 5000))
float_points = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(2)),
    elements=st.floats(-3000, 3000, width=32, allow_subnormal=False),
)

SPELLINGS = {
    "commas": lambda values: ",".join(map(str, values.ravel().tolist())),
    "commas and spaces": lambda values: " , ".join(map(str, values.ravel().tolist())),
    "spaces": lambda values: " ".join(map(str, values.ravel().tolist())),
    "tabs and semicolons": lambda values: ";\t".join(map(str, values.ravel().tolist())),
    "numpy pairs": lambda values: np.array2string(values, threshold=10_000, floatmode="unique"),
    "numpy flat": lambda values: np.array2string(values.ravel(), threshold=10_000, floatmode="unique"),
    "JSON pairs": lambda values: json.dumps(values.tolist()),
    "JSON flat": lambda values: json.dumps(values.ravel().tolist(), indent=1),
    "tuples": lambda values: str(tuple(map(tuple, values.tolist()))),
    "CRLF": lambda values: "\r\n".join(map(str, values.ravel().tolist())),
    "ends in a comma": lambda values: "".join(f"{value}," for value in values.ravel().tolist()),
}


@given(points)
def test_whole_landmarks_come_back_from_text(landmarks_xy):
    text = codec.format_landmarks(landmarks_xy)
    assert set(text) <= set("0123456789-,")
    np.testing.assert_array_equal(codec.parse_landmarks(text), landmarks_xy)


@given(hnp.arrays(np.int64, (4, 2), elements=st.integers(-300_000, 500_000)))
def test_landmarks_with_decimals_come_back_from_text(hundredths):
    text = codec.format_landmarks(hundredths / 100, decimals=2)
    np.testing.assert_array_equal(codec.parse_landmarks(text), (hundredths / 100).astype(np.float32))


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(values=points | float_points)
def test_every_spelling_reads_alike(spelling, values):
    text = SPELLINGS[spelling](values)
    parsed = codec.parse_landmarks(text)
    assert parsed.dtype == np.float32
    np.testing.assert_array_equal(parsed, values.astype(np.float32))
    batch, valid = codec.parse_number_rows(pa.array([text.encode()]), values.size)
    assert valid.all()
    np.testing.assert_array_equal(batch[0], parsed.ravel())


def test_the_spellings_by_hand():
    expected = [[1, 2], [3, 4]]
    for text in (
        "1,2,3,4",
        "[[1 2]\n [3 4]]",
        "[[1.0, 2.0], [3.0, 4.0]]",
        "1. 2. 3. 4.",
        " 1 2 3e0 4 ",
        "((1,2),(3,4))",
    ):
        assert codec.parse_landmarks(text).tolist() == expected


def test_landmarks_are_rounded_half_to_even():
    assert codec.format_landmarks(np.array([[0.5, 1.5], [2.5, -0.4]])) == "0,2,2,0"
    assert codec.format_landmarks(np.array([[0.125, 3]]), decimals=2) == "0.12,3.00"


def test_no_landmarks_are_an_empty_text():
    assert codec.format_landmarks(np.zeros((0, 2))) == ""
    assert codec.parse_landmarks("").shape == (0, 2)


BAD_TEXTS = [
    ("", "is blank"),
    ("  \n", "is blank"),
    ("1,2,3", "3 numbers, expected 4"),
    ("1,2,3,4,5", "5 numbers, expected 4"),
    ("1,2,x,4", "value 3 is 'x', not a number"),
    ("1,2,3-4,4", "value 3 is '3-4', not a number"),
    ("1,2,1_000,4", "value 3 is '1_000', not a number"),
    ("1,2,3,4\u00a05", "value 4 is '4\\xa05', not a number"),
    ("1,nan,3,4", "value 2 is nan, not a finite number"),
    ("inf,2,3,4", "value 1 is inf, not a finite number"),
    ("1,2,3,1e39", "value 4 is 1e39, not a finite number"),
    ("[1 2 ... 3 4]", "was abbreviated with '...' when it was written: the values are lost"),
    ("1,2,3," + "x" * 50, f"value 4 is {'x' * 20!r}, not a number"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_TEXTS)
def test_explain_numbers_says_why_a_text_is_invalid(text, reason):
    assert codec.explain_numbers(text.encode(), 4) == reason
    values, valid = codec.parse_number_rows(pa.array([text.encode()]), 4)
    assert not valid[0]
    assert np.isnan(values).all()


def test_explain_numbers_tells_null_and_foreign_bytes():
    assert codec.explain_numbers(None, 4) == "is blank"
    assert codec.explain_numbers(b"1,2,3,\xff", 4) == "is not UTF-8 text"
    assert codec.explain_numbers(b"1,2,3,4", 4) == ""


@pytest.mark.parametrize("text", ["1,2,3", "1,x", "nan,1", "1 ... 2", "1_0,2"])
def test_parse_landmarks_refuses_what_is_no_pairs_of_numbers(text):
    with pytest.raises(CodecError):
        codec.parse_landmarks(text)


def assert_batch_equals_one_by_one(texts, count):
    values, valid = codec.parse_number_rows(pa.array(texts, pa.binary()), count)
    assert values.shape == (len(texts), count)
    assert values.dtype == np.float32
    assert valid.dtype == np.bool_
    for index, text in enumerate(texts):
        reason = codec.explain_numbers(text, count)
        assert valid[index] == (not reason), (text, reason)
        if reason:
            assert np.isnan(values[index]).all()
        else:
            np.testing.assert_array_equal(values[index], codec.parse_landmarks(text.decode()).ravel())


spelled = st.builds(
    lambda spelling, values: SPELLINGS[spelling](values).encode(),
    st.sampled_from(sorted(SPELLINGS)),
    hnp.arrays(np.float32, (2, 2), elements=st.floats(-3000, 3000, width=32, allow_subnormal=False)),
)
bad = st.sampled_from([*(text.encode() for text, _ in BAD_TEXTS), b"1,2,3,\xff", None])
noise = st.text("0123456789.,-+eE_x [](){};\n\r\t\v\f\u00a0\u2028", max_size=12).map(str.encode)


@given(st.lists(spelled | bad | noise, max_size=6))
@example([b"1,2,,3,4"])
@example([b"1,2,,3,4", b"[1 2 3 4]"])
@example([b"1\x0b2 3 4", b"1,2,3,4"])
def test_the_batch_parser_equals_the_scalar_one(texts):
    assert_batch_equals_one_by_one(texts, 4)


def test_the_batch_parser_reads_slices_and_strings():
    column = pa.array(["9,9", "1,2", "3 4", "5,6"])
    values, valid = codec.parse_number_rows(column.slice(1, 2), 2)
    assert valid.all()
    assert values.tolist() == [[1, 2], [3, 4]]


def test_no_rows_parse_to_no_rows():
    values, valid = codec.parse_number_rows(pa.array([], pa.binary()), 240)
    assert values.shape == (0, 240)
    assert valid.shape == (0,)
