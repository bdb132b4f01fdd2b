from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from builders import chest
from cxu import anatomy, raster
from cxu.errors import CxuError
from cxu.frame import Box
from cxu.window import Window


def drawn(text):
    """Return the mask of a drawing: a line a row, # inside."""
    return np.array([[character == "#" for character in line] for line in text.split()], np.uint8)


def square(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


# -- the fill rule

TRIANGLE = """
#####..
####...
###....
##.....
#......
.......
"""
NOTCH = """
........
.#.....#
.##...##
.###.###
.#######
.#######
........
"""
CUT_OFF = """
###.
###.
....
"""
LINE = """
......
.#####
......
"""
# the upper edge runs from (1, 1) to (7, 3): a third of a pixel a column, rounded
SLOPE = """
.........
.##......
.#####...
.#######.
.#######.
.........
"""


@pytest.mark.parametrize(
    ("nodes", "drawing"),
    [
        ([[0, 0], [4, 0], [0, 4]], TRIANGLE),
        ([[1, 1], [4, 4], [7, 1], [7, 5], [1, 5]], NOTCH),
        ([[-5, -5], [2, -5], [2, 1], [-5, 1]], CUT_OFF),
        ([[1, 1], [5, 1]], LINE),
        ([[1, 1], [5, 1], [3, 1]], LINE),
        ([[1, 1], [7, 3], [7, 4], [1, 4]], SLOPE),
    ],
)
@pytest.mark.parametrize("step", [1, -1])
def test_fill_by_hand_includes_the_border_for_either_winding(nodes, drawing, step):
    expected = drawn(drawing)
    mask = raster.fill_polygon(np.array(nodes, float)[::step], expected.shape)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_vertices_are_rounded_half_to_even():
    expected = drawn("##... ##... ##... .....")
    np.testing.assert_array_equal(raster.fill_polygon(square(0.5, -0.5, 1.49, 2.5), (4, 5)), expected)


@pytest.mark.parametrize("nodes", [np.zeros((0, 2)), square(20, 20, 30, 30), square(-30, 0, -20, 5)])
def test_contours_without_nodes_or_outside_the_image_leave_it_empty(nodes):
    assert not raster.fill_polygon(nodes, (10, 12)).any()


def test_a_contour_around_the_image_fills_it():
    assert raster.fill_polygon(square(-50, -50, 500, 500), (10, 12)).all()


def test_fill_takes_float32_landmarks_of_every_organ():
    for organ in anatomy.ORGANS:
        mask = raster.fill_polygon(chest()[organ.nodes], (1024, 1024))
        # an ellipse of these radii, and half a pixel of border all around
        assert 0.95 < mask.sum() / (np.pi * (45_000 if organ.name != "heart" else 19_200)) < 1.05


coordinates = st.integers(-30, 50) | st.integers(-300_000, 300_000)


@given(
    vertices=hnp.arrays(np.int32, st.tuples(st.integers(0, 7), st.just(2)), elements=coordinates),
    shape_hw=hnp.array_shapes(min_dims=2, max_dims=2, max_side=30),
    margins=st.tuples(*[st.integers(0, 40)] * 4),
)
@settings(max_examples=400)
def test_a_polygon_drawn_into_a_window_is_that_of_the_whole_mask(vertices, shape_hw, margins):
    box = raster.box_around(vertices)
    left, top, right, bottom = margins
    for wider in (box, Box(box.left - left, box.top - top, box.right + right, box.bottom + bottom)):
        window = Window.blank(wider, shape_hw)
        raster.paint_vertices(window, vertices, 7)
        np.testing.assert_array_equal(window.image(), 7 * raster.fill_polygon(vertices, shape_hw))


def test_the_box_around_a_polygon_holds_its_border():
    assert raster.box_around(raster.to_vertices(square(0.5, -0.6, 1.5, 2.4))) == Box(0, -1, 3, 3)
    assert raster.box_around(np.zeros((0, 2), np.int32)) == Box(0, 0, 0, 0)


@pytest.fixture
def _unchecked_fill_rule():
    raster.check_fill_rule.cache_clear()
    yield
    raster.check_fill_rule.cache_clear()


@pytest.mark.usefixtures("_unchecked_fill_rule")
def test_an_opencv_that_fills_differently_is_refused_before_anything_is_drawn(monkeypatch):
    fill = cv2.fillPoly

    def fill_and_add_a_pixel(mask, polygons, value):
        fill(mask, polygons, value)
        mask[0, 0] = 1

    monkeypatch.setattr(cv2, "fillPoly", fill_and_add_a_pixel)
    with pytest.raises(CxuError, match=rf"OpenCV {cv2.__version__} does not fill .*\n?.*opencv-python-headless>=4.11"):
        raster.fill_polygon(square(1, 1, 3, 3), (5, 5))


@pytest.mark.usefixtures("_unchecked_fill_rule")
def test_the_fill_rule_is_checked_once_a_process(monkeypatch):
    calls = []
    fill = cv2.fillPoly
    monkeypatch.setattr(cv2, "fillPoly", lambda *args: (calls.append(args[0].shape), fill(*args)))
    for _ in range(3):
        raster.fill_polygon(square(1, 1, 3, 3), (5, 6))
    assert calls == [(20, 20), (5, 6), (5, 6), (5, 6)]


# -- the ignore band


def test_ignore_band_of_one_edge_by_hand():
    # sigma 1 both ways is 1 along any normal; 2.1 px around the upper edge, with round ends
    band = raster.ignore_band(
        square(3, 3, 7, 7), np.ones((4, 2)), np.array([True, False, False, False]), (11, 11), band_sigmas=2.1
    )
    assert band.dtype == np.bool_
    expected = drawn("""
        ...........
        ...#####...
        ..#######..
        .#########.
        ..#######..
        ...#####...
        ...........
        ...........
        ...........
        ...........
        ...........
    """)
    np.testing.assert_array_equal(band, expected.astype(bool))


def test_the_last_edge_closes_the_ring():
    band = raster.ignore_band(
        square(3, 3, 7, 7), np.full((4, 2), 0.5), np.array([False, False, False, True]), (11, 11), band_sigmas=2.1
    )
    expected = np.zeros((11, 11), bool)
    expected[3:8, 2:5] = True
    expected[[2, 8], 3] = True
    np.testing.assert_array_equal(band, expected)


def test_the_band_widens_linearly_along_its_edge():
    # the nodes on the upper edge have a vertical normal: sigma_y counts, 0 to 4 over 20 px, and sigma_x does not
    nodes = np.array([[0, 20], [10, 20], [30, 20], [40, 20], [40, 40], [0, 40]], float)
    sigma_xy = np.array([[9, 0], [9, 0], [9, 4], [9, 4], [9, 0], [9, 0]], float)
    band = raster.ignore_band(nodes, sigma_xy, np.arange(6) == 1, (41, 41), band_sigmas=2.5)
    for x in range(11, 30):
        half_width = 2.5 * 4 * (x - 10) / 20
        assert band[:, x].sum() == 2 * int(half_width) + 1


def test_the_band_is_cut_off_at_the_image():
    nodes, sigma_xy, uncertain = square(-4, -4, 3, 3), np.ones((4, 2)), np.ones(4, bool)
    whole = raster.ignore_band(nodes + 10, sigma_xy, uncertain, (30, 30))
    np.testing.assert_array_equal(raster.ignore_band(nodes, sigma_xy, uncertain, (8, 8)), whole[10:18, 10:18])
    assert not raster.ignore_band(nodes - 50, sigma_xy, uncertain, (8, 8)).any()


def test_the_default_band_is_2_8_sigma():
    # an upper edge with nodes within it, so that its normals are vertical
    nodes = np.array([[0, 50], [20, 50], [40, 50], [60, 50], [60, 90], [0, 90]], float)
    band = raster.ignore_band(nodes, np.full((6, 2), 10.0), np.arange(6) == 1, (100, 100))
    assert np.flatnonzero(band[:, 30]).tolist() == list(range(50 - 28, 50 + 29))


def test_without_uncertainty_or_uncertain_edges_nothing_is_ignored():
    nodes = chest()[anatomy.HEART.nodes]
    every = np.ones(len(nodes), bool)
    assert not raster.ignore_band(nodes, np.zeros_like(nodes), every, (1024, 1024)).any()
    assert not raster.ignore_band(nodes, np.full_like(nodes, 9), ~every, (1024, 1024)).any()


def test_a_vanishing_sigma_leaves_only_pixels_on_the_contour():
    nodes = square(3, 3, 7, 7)
    band = raster.ignore_band(nodes, np.full((4, 2), 1e-6), np.ones(4, bool), (11, 11))
    np.testing.assert_array_equal(np.argwhere(band).min(axis=0), [3, 3])
    assert band.sum() == 16


# -- probability

SHAPE_HW = (24, 20)
whole_contours = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 7), st.just(2)), elements=st.integers(-8, 30).map(np.float32)
)
any_contours = hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(2)), elements=st.floats(-8, 30, width=32))
sigmas = st.floats(0, 6, width=32) | st.just(0.0)


@given(whole_contours | any_contours, sigmas, sigmas)
# half-pixel nodes: the rounded polygon misses (4, 2), which lies exactly on the mean contour
@example(np.array([[4.5, 0.5], [2.5, 6.5], [0, 3]], np.float32), 1.0, 1.0)
@example(np.array([[4.5, 0.5], [2.5, 6.5], [0, 3]], np.float32), 0.0, 0.0)
# OpenCV cuts this line off at the image before it draws it, and misses (16, 2), which lies on it
@example(np.array([[24, 3], [0, 0]], np.float32), 0.0, 0.0)
def test_probability_of_a_half_and_more_is_exactly_the_full_mask(nodes, sigma_x, sigma_y):
    sigma_xy = np.tile(np.array([sigma_x, sigma_y], np.float32), (len(nodes), 1))
    probability = raster.probability_mask(nodes, sigma_xy, SHAPE_HW)
    assert probability.dtype == np.uint8
    np.testing.assert_array_equal(probability > 127, raster.fill_polygon(nodes, SHAPE_HW) == 1)


@given(whole_contours | any_contours)
def test_without_uncertainty_the_probability_is_0_or_1(nodes):
    probability = raster.probability_mask(nodes, np.zeros_like(nodes), SHAPE_HW)
    np.testing.assert_array_equal(probability, 255 * raster.fill_polygon(nodes, SHAPE_HW))


def test_a_vanishing_sigma_is_certain_but_on_the_contour():
    nodes = square(3, 3, 7, 7)
    probability = raster.probability_mask(nodes, np.full((4, 2), 1e-6), (11, 11))
    expected = np.zeros((11, 11))
    expected[3:8, 3:8] = 128
    expected[4:7, 4:7] = 255
    np.testing.assert_array_equal(probability, expected)


@pytest.mark.parametrize(("sigma_x", "sigma_y"), [(3.0, 11.0), (7.5, 0.5), (0.4, 6.0)])
def test_across_a_straight_edge_the_probability_is_the_normal_distribution(sigma_x, sigma_y):
    # nodes within the left edge, so that the normal there is horizontal: only sigma_x counts
    nodes = np.array([[60, 0], [60, 40], [60, 80], [60, 120], [160, 120], [160, 0]], float)
    probability = raster.probability_mask(nodes, np.tile([sigma_x, sigma_y], (6, 1)), (121, 161))
    distance = np.arange(161) - 60
    near = distance < 40  # farther in, the other sides are nearer
    expected = norm.cdf(distance / sigma_x)
    np.testing.assert_allclose(probability[60, near] / 255, expected[near], atol=0.5 / 255 + 1e-5)


def test_probability_uses_the_sigma_at_the_nearest_point_of_the_contour():
    # sigma grows linearly from 2 to 6 between the two inner nodes of the left edge
    nodes = np.array([[60, -40], [60, 0], [60, 80], [60, 120], [190, 120], [190, -40]], float)
    sigma_xy = np.array([[2, 1], [2, 1], [6, 1], [6, 1], [1, 1], [1, 1]], float)
    probability = raster.probability_mask(nodes, sigma_xy, (81, 191))
    for y in (20, 40, 70):
        assert probability[y, 64] == pytest.approx(255 * norm.cdf(4 / (2 + 4 * y / 80)), abs=0.51)


def test_probability_is_cut_off_at_the_image():
    nodes, sigma_xy = square(-4, -4, 9, 5), np.full((4, 2), 2.0)
    whole = raster.probability_mask(nodes + 20, sigma_xy, (60, 60))
    np.testing.assert_array_equal(raster.probability_mask(nodes, sigma_xy, (12, 15)), whole[20:32, 20:35])


def test_probability_of_sampled_contours_is_their_share():
    # four squares that all hold (5, 5); 3, 2 and 1 of them reach further right
    samples = np.stack([square(5, 5, right, 6) for right in (5, 6, 7, 8)])
    mask = raster.sample_probability_mask(samples, (8, 10))
    assert mask.dtype == np.uint8
    # shares 1, 3/4, 1/2, 1/4 of 255, a half rounded to even
    assert mask[5].tolist() == [0, 0, 0, 0, 0, 255, 191, 128, 64, 0]
    np.testing.assert_array_equal(mask[6], mask[5])
    assert not np.delete(mask, [5, 6], axis=0).any()


def test_one_sample_is_its_full_mask():
    nodes = chest(96, 80)[anatomy.LEFT_LUNG.nodes]
    full = raster.fill_polygon(nodes, (80, 96))
    np.testing.assert_array_equal(raster.sample_probability_mask(nodes[None], (80, 96)), 255 * full)


# -- PNG


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_png_bytes_and_pixels_are_inverses(image):
    content = raster.encode_png(image)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    np.testing.assert_array_equal(raster.decode_png(content), image)
