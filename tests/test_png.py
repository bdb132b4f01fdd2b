"""Label images written run by run, read back by two libraries that know nothing of how they were written."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu import raster
from cxu.frame import Box
from cxu.png import LABEL_VALUES, encode_label_png, encode_label_window
from cxu.window import Window
from mask_helpers import read_png


def chunks(png):
    """Return the chunks of a PNG, its checksums verified."""
    position, found = 8, []
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", png, position + 8 + length)[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        position += 12 + length
    return found


def check(labels):
    png = encode_label_png(labels)
    np.testing.assert_array_equal(read_png(png), labels)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), labels)
    np.testing.assert_array_equal(raster.decode_png(png), labels)
    # zlib verifies the checksum of the pixels, and that nothing is left
    inflate = zlib.decompressobj()
    scanlines = inflate.decompress(dict(chunks(png))[b"IDAT"])
    assert (inflate.eof, inflate.unused_data) == (True, b"")
    assert len(scanlines) == labels.size + len(labels)
    return png


@given(
    labels=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.sampled_from(LABEL_VALUES)
    )
)
@settings(max_examples=150)
def test_any_label_image_comes_back(labels):
    check(labels)


@given(
    width=st.integers(1, 1200),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    values=st.lists(st.sampled_from(LABEL_VALUES), min_size=12, max_size=12),
)
@settings(max_examples=100)
def test_runs_of_any_length_come_back(width, lengths, values):
    flat = np.repeat(np.array(values[: len(lengths)], np.uint8), lengths)
    check(np.resize(flat, (-(-flat.size // width), width)))


def test_every_length_of_a_run_has_a_code():
    # a run ends with nothing, one or two literals, or a match of 3 to 257, after matches of 258
    for start in range(1, 530, 40):
        lines = [np.arange(600) < length for length in range(start, start + 40)]
        check(np.array(lines, np.uint8) * np.uint8(255))


@pytest.mark.parametrize("value", LABEL_VALUES)
def test_one_colour(value):
    check(np.full((1024, 1024), value, np.uint8))
    check(np.full((1, 1), value, np.uint8))


def test_a_view_is_fine():
    labels = np.zeros((30, 40), np.uint8)
    labels[5:20, 3:30] = 2
    np.testing.assert_array_equal(read_png(encode_label_png(labels[::2, ::-1])), labels[::2, ::-1])


@given(
    labels=hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from(LABEL_VALUES)),
    edges=st.tuples(*[st.integers(0, 11)] * 4),
)
def test_a_window_gives_the_bytes_of_its_image(labels, edges):
    window = Window.blank(Box(*edges), labels.shape)
    window.pixels[:] = labels[: window.pixels.shape[0], : window.pixels.shape[1]]
    assert encode_label_window(window) == check(window.image())


def test_a_value_that_is_no_label_is_our_own_mistake():
    with pytest.raises(AssertionError, match="label values only"):
        encode_label_png(np.full((3, 3), 7, np.uint8))


def test_bytes_are_pinned():
    labels = np.zeros((9, 13), np.uint8)
    labels[2:7, 1:6], labels[2:7, 7:12], labels[5:8, 4:9], labels[8, 0] = 1, 2, 3, 255
    png = check(labels)
    assert [kind for kind, _ in chunks(png)] == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks(png)[0][1] == struct.pack(">IIBBBBB", 13, 9, 8, 0, 0, 0, 0)
    # the same on every machine: a run that is continued elsewhere ends with the same bytes
    assert zlib.crc32(png) == 189240877


def test_masks_are_small():
    # a general compressor's fastest level takes half as much again
    labels = np.zeros((1024, 1024), np.uint8)
    for centre_x, label in ((300, 1), (720, 2)):
        angle = np.linspace(0, 2 * np.pi, 44, endpoint=False)
        outline = np.stack([centre_x + 150 * np.cos(angle), 500 + 300 * np.sin(angle)], axis=1)
        raster.paint_polygon(labels, outline, label)
    assert len(encode_label_png(labels)) < 0.75 * len(cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
