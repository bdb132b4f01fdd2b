"""Where a crop lies: laws of margin, edge and square, and boxes worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu.cropping import (
    CropShape,
    Margin,
    clip_box,
    cut_out,
    parse_margin,
    place_crop,
    square_box,
    with_margin,
)
from cxu.errors import UsageError
from cxu.frame import Box

sides = st.integers(1, 60)
margins = st.one_of(
    st.integers(0, 40).map(lambda px: Margin(px=px)), st.floats(0, 200).map(lambda percent: Margin(percent=percent))
)


@st.composite
def boxes_in_images(draw):
    """Draw an image's height and width, and a box of at least a pixel within it."""
    height, width = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (height, width), Box(left, top, right, bottom)


def holds(outer, inner):
    return (
        outer.left <= inner.left
        and outer.top <= inner.top
        and outer.right >= inner.right
        and outer.bottom >= inner.bottom
    )


def whole(image_hw):
    return Box(0, 0, image_hw[1], image_hw[0])


# --- margins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length", "pixels"),
    [
        ("5%", 200, 10),
        ("5%", 30, 2),  # 1.5: halves upwards
        ("5%", 29, 1),  # 1.45
        ("7%", 100, 7),  # 0.07 * 100 is a little more than 7 in binary
        ("2.5%", 100, 3),
        ("0%", 100, 0),
        ("0", 100, 0),
        ("20", 1, 20),
        ("20px", 1, 20),
        (" 20 px ", 1, 20),
        ("1000%", 3, 30),
    ],
)
def test_margin_in_whole_pixels(text, length, pixels):
    assert parse_margin(text).of(length) == pixels


@pytest.mark.parametrize(
    "text", ["", "%", "5 pc", "-5%", "-3", "1.5", "1.5px", "nan%", "inf", "1e3", "5%%", "٥", "5% 3"]
)
def test_no_margin(text):
    with pytest.raises(UsageError, match=r"--margin .*expected a percentage of the box such as 5%"):
        parse_margin(text)


@pytest.mark.parametrize("text", ["1001%", "100001", "9" * 400 + "%"])
def test_margin_out_of_range(text):
    with pytest.raises(UsageError, match=r"expected 0 to 1000%, or 0 to 100,000 px"):
        parse_margin(text)


@pytest.mark.parametrize("text", ["5%", "12.5%", "20px", "0px"])
def test_a_margin_is_written_as_it_is_read(text):
    assert str(parse_margin(text)) == text


@given(boxes_in_images(), margins)
def test_margin_is_the_same_on_opposite_sides(drawn, margin):
    _, box = drawn
    grown = with_margin(box, margin)
    assert box.left - grown.left == grown.right - box.right == margin.of(box.width) >= 0
    assert box.top - grown.top == grown.bottom - box.bottom == margin.of(box.height) >= 0


@given(boxes_in_images(), margins)
def test_clipping_keeps_what_lies_in_the_image_and_only_that(drawn, margin):
    image_hw, box = drawn
    clipped = clip_box(with_margin(box, margin), image_hw)
    assert holds(clipped, box)
    assert holds(whole(image_hw), clipped)
    assert clip_box(clipped, image_hw) == clipped


# --- squares ---------------------------------------------------------------------------------------------------------


@given(boxes_in_images())
def test_square_holds_the_box_and_is_no_larger_than_it_must(drawn):
    image_hw, box = drawn
    square = square_box(box, image_hw)
    assert square.width == square.height == max(box.width, box.height)
    assert holds(square, box)


@given(boxes_in_images())
def test_square_leaves_the_image_only_where_that_is_too_small_and_then_holds_its_side(drawn):
    image_hw, box = drawn
    square = square_box(box, image_hw)
    for low, high, available in ((square.left, square.right, image_hw[1]), (square.top, square.bottom, image_hw[0])):
        if available >= square.width:
            assert low >= 0
            assert high <= available
        else:
            assert low <= 0
            assert high >= available


@given(boxes_in_images())
def test_square_is_as_near_to_the_middle_as_it_may_be(drawn):
    image_hw, box = drawn
    square = square_box(box, image_hw)
    away = abs(square.left - (box.left - (square.width - box.width) // 2))
    for start in range(square.left - 1, square.left + 2):
        moved = Box(start, square.top, start + square.width, square.bottom)
        too_small = image_hw[1] < square.width
        fits = (
            holds(moved, Box(0, moved.top, image_hw[1], moved.bottom))
            if too_small
            else (moved.left >= 0 and moved.right <= image_hw[1])
        )
        if fits:
            assert abs(start - (box.left - (square.width - box.width) // 2)) >= away


@given(boxes_in_images())
def test_a_square_stays_one(drawn):
    image_hw, box = drawn
    square = square_box(box, image_hw)
    assert square_box(square, image_hw) == square


@pytest.mark.parametrize(
    ("box", "image_hw", "square"),
    [
        (Box(10, 10, 20, 30), (40, 40), Box(5, 10, 25, 30)),
        (Box(10, 10, 21, 30), (40, 40), Box(6, 10, 26, 30)),  # the odd pixel at the end
        (Box(0, 10, 10, 30), (40, 40), Box(0, 10, 20, 30)),
        (Box(32, 10, 40, 30), (40, 40), Box(20, 10, 40, 30)),
        (Box(0, 30, 30, 40), (40, 40), Box(0, 10, 30, 40)),
        (Box(0, 0, 12, 30), (30, 12), Box(-9, 0, 21, 30)),
        (Box(8, 0, 12, 30), (30, 12), Box(-5, 0, 25, 30)),  # the organ in the middle, as far as that holds the image
        (Box(0, 0, 4, 30), (30, 12), Box(-13, 0, 17, 30)),
    ],
)
def test_squares_worked_out_by_hand(box, image_hw, square):
    assert square_box(box, image_hw) == square


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "box", "shape_hw", "flags"),
    [
        (CropShape(), Box(10, 20, 50, 80), (60, 40), (False, False)),
        (CropShape(Margin(percent=10)), Box(6, 14, 54, 86), (72, 48), (False, False)),
        (CropShape(Margin(px=15)), Box(0, 5, 65, 95), (90, 65), (True, False)),
        (CropShape(square=True), Box(0, 20, 60, 80), (60, 60), (False, False)),
        (CropShape(Margin(px=30), square=True), Box(-10, 0, 90, 100), (100, 100), (True, True)),
        (CropShape(size=30), Box(10, 20, 50, 80), (30, 20), (False, False)),
        (CropShape(size=120), Box(10, 20, 50, 80), (120, 80), (False, False)),
        (CropShape(size=7), Box(10, 20, 50, 80), (7, 5), (False, False)),
        (CropShape(size=1), Box(10, 20, 50, 80), (1, 1), (False, False)),
        (CropShape(square=True, size=33), Box(0, 20, 60, 80), (33, 33), (False, False)),
    ],
)
def test_crops_worked_out_by_hand(shape, box, shape_hw, flags):
    region = place_crop(Box(10, 20, 50, 80), (100, 80), shape)
    assert (region.tight, region.box, region.shape_hw) == (Box(10, 20, 50, 80), box, shape_hw)
    assert (region.clipped, region.padded) == flags


def test_scale_is_pixels_of_the_crop_per_pixel_of_the_image():
    region = place_crop(Box(10, 20, 50, 80), (100, 80), CropShape(size=7))
    assert region.scale_xy == (5 / 40, 7 / 60)


@pytest.mark.parametrize("size", [0, -1, 8193])
def test_size_out_of_range(size):
    with pytest.raises(UsageError, match=f"--size {size}: expected 1 to 8,192 px"):
        CropShape(size=size)


@given(boxes_in_images(), margins, st.booleans(), st.none() | st.integers(1, 200))
def test_a_crop_holds_the_organs_and_says_what_became_of_its_box(drawn, margin, square, size):
    image_hw, tight = drawn
    region = place_crop(tight, image_hw, CropShape(margin, square, size))
    assert holds(region.box, tight)
    assert region.clipped == (not holds(whole(image_hw), with_margin(tight, margin)))
    assert region.padded == (not holds(whole(image_hw), region.box))
    assert square or not region.padded
    assert max(region.shape_hw) == (size or max(region.box.width, region.box.height))
    assert min(region.shape_hw) >= 1
    if square:
        assert region.shape_hw[0] == region.shape_hw[1]


@given(boxes_in_images(), st.booleans(), st.sampled_from([np.uint8, np.uint16]))
def test_what_is_cut_out_is_the_image_there_and_zero_elsewhere(drawn, square, dtype):
    image_hw, box = drawn
    image = np.arange(1, image_hw[0] * image_hw[1] + 1).reshape(image_hw).astype(dtype)
    if square:
        box = square_box(box, image_hw)
    cut = cut_out(image, box)
    padded = np.pad(image, 60)
    np.testing.assert_array_equal(cut, padded[box.top + 60 : box.bottom + 60, box.left + 60 : box.right + 60])
    assert cut.dtype == dtype
    assert not np.shares_memory(cut, image)


def test_nothing_of_an_image_is_black():
    assert not cut_out(np.ones((3, 3), np.uint8), Box(5, 5, 8, 7)).any()
