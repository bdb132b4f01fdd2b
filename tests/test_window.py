"""Windows of masks against whole masks: the same pixels, and the same changes along lines and down columns."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu.frame import Box
from cxu.window import Window, column_edges, line_changes, row_edges

images = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.sampled_from([0, 0, 1, 3])
)
edges = st.integers(-3, 28)
boxes = st.builds(Box, edges, edges, edges, edges)


def plain_edges(flat):
    """Return where foreground begins and ends in turn."""
    padded = np.concatenate([[0], flat != 0, [0]]).astype(int)
    return np.flatnonzero(np.diff(padded)).tolist()


def cut(image, box):
    """Return what of an image lies in a box, as a window and as an image that is background elsewhere."""
    window = Window.blank(box, image.shape)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    within = (rows >= box.top) & (rows < box.bottom) & (columns >= box.left) & (columns < box.right)
    window.pixels[:] = image[within].reshape(window.pixels.shape)
    return window, np.where(within, image, 0)


def by_hand():
    """Return a window of 2 × 3 pixels in an image of 4 × 5."""
    window = Window.blank(Box(1, 1, 4, 3), (4, 5))
    window.pixels[:] = [[0, 1, 1], [1, 1, 0]]
    return window


def test_a_window_by_hand():
    window = by_hand()
    assert window.image().tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0] * 5]
    # line by line 5 pixels each, column by column 4
    assert row_edges(window).tolist() == [7, 9, 11, 13]
    assert column_edges(window).tolist() == [6, 7, 9, 11, 13, 14]
    # a byte in front of each line
    places, values = line_changes(window, lead=1)
    assert (places.tolist(), values.tolist()) == ([9, 11, 14, 16], [1, 0, 1, 0])


def test_a_part_of_a_window_is_drawn_into():
    window = by_hand()
    window.part(Box(2, 1, 4, 2))[:] = 9
    assert window.image()[1].tolist() == [0, 0, 9, 9, 0]


@pytest.mark.parametrize("box", [Box(0, 0, 0, 0), Box(5, 0, 9, 4), Box(-9, -9, -1, -1), Box(3, 3, 1, 1)])
def test_a_window_beside_the_image_is_empty(box):
    window = Window.blank(box, (4, 5))
    assert window.pixels.size == 0
    assert window.image().tolist() == np.zeros((4, 5)).tolist()
    assert row_edges(window).size == column_edges(window).size == line_changes(window)[0].size == 0


@given(image=images, box=boxes)
@example(image=np.ones((3, 4), np.uint8), box=Box(0, 0, 4, 3))
@example(image=np.ones((3, 4), np.uint8), box=Box(0, 1, 4, 3))
@example(image=np.ones((3, 4), np.uint8), box=Box(1, 0, 3, 3))
def test_edges_of_a_window_are_those_of_its_image(image, box):
    window, expected = cut((image != 0).astype(np.uint8), box)
    np.testing.assert_array_equal(window.image(), expected)
    assert row_edges(window).tolist() == plain_edges(expected.ravel())
    assert column_edges(window).tolist() == plain_edges(expected.ravel(order="F"))


@given(image=images, box=boxes, lead=st.integers(1, 3))
def test_changes_of_a_window_are_those_of_its_lines(image, box, lead):
    window, expected = cut(image, box)
    flat = np.pad(expected, ((0, 0), (lead, 0))).ravel()
    changed = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    places, values = line_changes(window, lead=lead)
    inner = places < flat.size  # what is in the last pixel ends behind it
    assert places[inner].tolist() == changed.tolist()
    assert values[inner].tolist() == flat[changed].tolist()
    assert places[~inner].tolist() == ([flat.size] if flat[-1] else [])


@given(images)
def test_a_whole_image_is_a_window(image):
    np.testing.assert_array_equal(Window.of(image).image(), image)
