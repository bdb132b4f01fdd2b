from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu import contour

SQUARE = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
BOW_TIE = np.array([[0, 0], [2, 2], [2, 0], [0, 2]], float)
HALF = np.sqrt(0.5)

contours = hnp.arrays(
    np.float64, st.tuples(st.integers(3, 9), st.just(2)), elements=st.integers(-500, 500).map(lambda value: value / 4)
)


# -- area


@pytest.mark.parametrize(
    ("nodes", "area"),
    [
        (SQUARE, 4),
        (SQUARE[::-1], 4),
        (SQUARE + 1000.5, 4),
        ([[0, 0], [4, 0], [0, 3]], 6),
        # an L of three unit squares
        ([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]], 3),
        ([[0, 0], [5, 5], [9, 9]], 0),
        ([[0, 0], [5, 5]], 0),
        ([[3, 3]], 0),
        (np.zeros((0, 2)), 0),
    ],
)
def test_area_by_hand(nodes, area):
    assert contour.polygon_area(np.array(nodes, float)) == area


@given(contours)
def test_area_is_that_of_shapely(nodes):
    assert contour.polygon_area(nodes) == pytest.approx(shapely.Polygon(nodes).area, abs=1e-6)


def test_area_keeps_its_precision_in_float32_far_from_the_origin():
    assert contour.polygon_area((SQUARE + 4000).astype(np.float32)) == 4


# -- normals


def test_normals_of_a_square_point_out_of_its_corners():
    expected = np.array([[-HALF, -HALF], [HALF, -HALF], [HALF, HALF], [-HALF, HALF]])
    np.testing.assert_allclose(contour.outward_normals(SQUARE), expected)
    np.testing.assert_allclose(contour.outward_normals(SQUARE[::-1]), expected[::-1])


def test_normals_within_a_straight_edge_are_perpendicular_to_it():
    nodes = np.array([[0, 0], [5, 0], [10, 0], [10, 10], [0, 10]], float)
    np.testing.assert_allclose(contour.outward_normals(nodes)[1], [0, -1])


@pytest.mark.parametrize("winding", [1, -1])
def test_normals_of_a_regular_polygon_point_away_from_its_centre(winding):
    angle = winding * 2 * np.pi * np.arange(44) / 44
    outward = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(contour.outward_normals(300 + 50 * outward), outward, atol=1e-9)


@given(contours)
def test_normals_are_unit_vectors_that_do_not_depend_on_the_winding(nodes):
    assume(contour.polygon_area(nodes) > 0)
    normals = contour.outward_normals(nodes)
    lengths = np.linalg.norm(normals, axis=1)
    assert np.all(np.isclose(lengths, 1) | (lengths == 0))
    chords = np.roll(nodes, -1, axis=0) - np.roll(nodes, 1, axis=0)
    np.testing.assert_array_equal(lengths == 0, ~chords.any(axis=1))
    np.testing.assert_allclose(np.sum(normals * chords, axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(contour.outward_normals(nodes[::-1])[::-1], normals, atol=1e-12)


@pytest.mark.parametrize("nodes", [[[3, 4]], [[0, 0], [5, 5]], [[7, 7]] * 4])
def test_a_node_whose_neighbours_coincide_has_no_normal(nodes):
    np.testing.assert_array_equal(contour.outward_normals(np.array(nodes, float)), np.zeros((len(nodes), 2)))


def test_contours_without_area_still_have_unit_normals():
    normals = contour.outward_normals(np.array([[0, 0], [1, 0], [2, 0], [3, 0]], float))
    np.testing.assert_allclose(np.abs(normals), [[0, 1]] * 4)


# -- sigma along the normal


def test_sigma_along_the_normal_by_hand():
    nodes = np.array([[0, 0], [5, 0], [10, 0], [10, 5], [10, 10], [0, 10]], float)
    sigma_xy = np.tile([3.0, 4.0], (6, 1))
    along = contour.normal_sigma(nodes, sigma_xy)
    assert along[1] == 4  # within the upper edge: vertical
    assert along[3] == 3  # within the right edge: horizontal
    assert along[2] == pytest.approx(np.sqrt(0.5 * 9 + 0.5 * 16))  # corner


def test_sigma_without_a_normal_is_the_larger_one():
    assert contour.normal_sigma(np.array([[1, 1], [4, 4]], float), np.array([[2, 5], [7, 1]], float)).tolist() == [5, 7]


@given(contours, st.floats(0.01, 50))
def test_equal_sigmas_are_the_same_in_every_direction(nodes, sigma):
    np.testing.assert_allclose(contour.normal_sigma(nodes, np.full((len(nodes), 2), sigma)), sigma, rtol=1e-9)


# -- gaps


def plain_longest_gap(confident):
    """Walk the ring from every node and count how far the run of False goes."""
    n_nodes = len(confident)
    longest = 0
    for start in range(n_nodes):
        length = 0
        while length < n_nodes and not confident[(start + length) % n_nodes]:
            length += 1
        longest = max(longest, length)
    return longest


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 4), st.integers(1, 12))))
def test_longest_gap_is_the_one_found_by_walking_the_ring(confident):
    assert contour.longest_gap(confident).tolist() == [plain_longest_gap(row) for row in confident.tolist()]


@pytest.mark.parametrize(
    ("nodes", "gap"),
    [("1111", 0), ("0000", 4), ("0110", 2), ("1001", 2), ("0101", 1), ("00100", 4), ("0", 1), ("1", 0)],
)
def test_longest_gap_passes_from_the_end_to_the_start(nodes, gap):
    assert contour.longest_gap(np.array([node == "1" for node in nodes])) == gap


def test_longest_gap_keeps_leading_axes():
    assert contour.longest_gap(np.zeros((2, 3, 5), bool)).tolist() == [[5] * 3] * 2


# -- validity


def test_crossing_contours_are_told_from_simple_ones():
    touching = np.array([[0, 0], [4, 0], [4, 4], [2, 0], [0, 4]], float)
    twice = np.array([[0, 0], [0, 0], [2, 0], [2, 2], [0, 2]], float)
    pair = SQUARE[:2]
    crossing = contour.crosses_itself([SQUARE, BOW_TIE, SQUARE[::-1], touching, twice, pair, pair[:0]])
    assert crossing.tolist() == [False, True, False, True, False, False, False]


@given(st.lists(hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(2)), elements=st.integers(-4, 4))))
def test_crossing_of_many_contours_is_that_of_each(contours_xy):
    expected = [len(points) >= 3 and not shapely.Polygon(points).is_valid for points in contours_xy]
    assert contour.crosses_itself(contours_xy).tolist() == expected


def test_no_contours_give_no_answers():
    assert contour.crosses_itself([]).shape == (0,)
