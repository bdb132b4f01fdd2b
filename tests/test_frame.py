from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu.frame import Box, ModelFrame, crop_box, full_frame, padded_frame

lengths = st.integers(1, 6000)
frames = st.builds(
    ModelFrame,
    side=st.floats(1, 20000),
    offset_xy=st.tuples(st.floats(-10000, 10000), st.floats(-10000, 10000)),
)
points = hnp.arrays(np.float64, st.tuples(st.integers(0, 8), st.just(2)), elements=st.floats(-20000, 20000))
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), lengths, lengths, lengths, lengths)


@given(frames, points)
def test_to_model_and_to_image_are_inverses(frame, points_xy):
    np.testing.assert_allclose(frame.to_image(frame.to_model(points_xy)), points_xy, atol=1e-6)
    # positions of up to 20,000 px in an image of one pixel are 20 million model pixels: relative there
    np.testing.assert_allclose(frame.to_model(frame.to_image(points_xy)), points_xy, rtol=1e-9, atol=1e-5)


@given(frames)
def test_corners_of_the_square_are_0_and_1024(frame):
    origin = np.array([frame.offset_xy])
    np.testing.assert_allclose(frame.to_model(origin), [[0, 0]], atol=1e-6)
    np.testing.assert_allclose(frame.to_model(origin + frame.side), [[1024, 1024]], rtol=1e-6)


@given(boxes)
def test_padded_frame_is_centred_with_the_odd_pixel_at_the_end(box):
    frame = padded_frame(box)
    assert frame.side == max(box.width, box.height)
    for start, length, offset in zip(box[:2], (box.width, box.height), frame.offset_xy, strict=True):
        before = start - offset
        after = frame.side - before - length
        assert before >= 0
        assert after - before in {0, 1}


def test_published_inverse_by_hand():
    # 601 x 801 content at (30, 12): side 801, pad_left (801 - 601) // 2 = 100, pad_right 100
    frame = padded_frame(Box(30, 12, 631, 813))
    assert frame == ModelFrame(801.0, (-70.0, 12.0))
    points_xy = np.array([[0.0, 0.0], [512.0, 256.0], [1024.0, 1024.0]])
    expected = [[-70.0, 12.0], [512 * 801 / 1024 - 100 + 30, 256 * 801 / 1024 + 12], [731.0, 813.0]]
    np.testing.assert_allclose(frame.to_image(points_xy), expected)
    assert frame.scale == 801 / 1024


def test_odd_pad_pixel_goes_to_the_end():
    # 5 columns missing: 2 before, 3 after
    assert full_frame(height=10, width=5) == ModelFrame(10.0, (-2.0, 0.0))
    assert full_frame(height=5, width=10) == ModelFrame(10.0, (0.0, -2.0))


def test_square_native_image_is_its_own_frame():
    frame = full_frame(1024, 1024)
    points_xy = np.array([[3.0, 1026.0]])
    np.testing.assert_array_equal(frame.to_model(points_xy), points_xy)
    assert frame.exact


def test_assumed_frames_say_so():
    assert not full_frame(3, 4, exact=False).exact


@pytest.mark.parametrize(
    ("dtype", "dark", "bright"),
    [
        (np.uint8, 1, 2),
        # value >> 8 must be above 1: 511 >> 8 is 1, 512 >> 8 is 2
        (np.uint16, 511, 512),
    ],
)
def test_crop_threshold(dtype, dark, bright):
    image = np.full((6, 9), dark, dtype)
    image[2, 3] = image[4, 6] = bright
    assert crop_box(image) == Box(left=3, top=2, right=7, bottom=5)


def test_crop_keeps_single_pixels_at_the_edges():
    image = np.zeros((4, 5), np.uint8)
    image[0, 4] = image[3, 0] = 255
    assert crop_box(image) == Box(0, 0, 5, 4)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 0), (np.uint8, 1), (np.uint16, 511)])
def test_image_without_content_keeps_its_full_box(dtype, value):
    assert crop_box(np.full((7, 5), value, dtype)) == Box(0, 0, 5, 7)


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_crop_box_holds_all_content_and_touches_it_on_every_side(image):
    box = crop_box(image)
    content = (image >> 8) > 1
    inside = content[box.top : box.bottom, box.left : box.right]
    assert inside.sum() == content.sum()
    if content.any():
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
