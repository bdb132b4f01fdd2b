"""How landmarks lie on others: known by hand, and by laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.check import geometry
from cxu.shape import load_shape_model, sample_shapes

SHAPES = sample_shapes(load_shape_model(), 8, np.random.default_rng(3)).astype(np.float64)

chests = st.sampled_from(list(SHAPES))
shifts = st.tuples(st.floats(-300, 300), st.floats(-300, 300))
scales = st.tuples(st.floats(0.5, 2), st.floats(0.5, 2))
seeds = st.integers(0, 2**32 - 1)


def centre(chest):
    return chest[:94].mean(axis=0)


def placed(chest, shift, scale):
    return (chest - centre(chest)) * scale + centre(chest) + shift


def square(left, top, side, n):
    """Return a ring of n nodes, n divisible by 4, along a square, from its left top corner to the right."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], float)
    steps = np.arange(n) * 4 / n
    return np.stack([np.interp(steps, np.arange(5), corners[:, axis]) for axis in (0, 1)], axis=1) * side + (left, top)


def two_squares():
    heart = np.full((26, 2), np.nan)
    return np.concatenate([square(100, 100, 200, 44), square(500, 100, 200, 48), [[500, 100]] * 2, heart])


# --- shift and scale -------------------------------------------------------------------------------------------------


@given(chests, shifts, scales)
def test_shift_and_scale_are_found(chest, shift, scale):
    found = geometry.fit(chest, placed(chest, shift, scale))
    assert found.shift_xy == pytest.approx(shift, abs=1e-6)
    assert found.scale_xy == pytest.approx(scale, abs=1e-8)
    assert found.residual_px == pytest.approx(0, abs=1e-6)


@given(chests, chests, shifts)
def test_moving_the_target_moves_the_shift_by_as_much(chest, onto, shift):
    before, after = geometry.fit(chest, onto), geometry.fit(chest, onto + shift)
    assert np.subtract(after.shift_xy, before.shift_xy) == pytest.approx(shift, abs=0.05)
    assert after.residual_px == pytest.approx(before.residual_px, abs=0.05)


@given(chests, shifts, seeds)
def test_a_lung_base_drawn_elsewhere_moves_nothing(chest, shift, seed):
    onto = chest + shift
    few = np.random.default_rng(seed).choice(94, 9, replace=False)
    onto[few] += (0, 120)
    assert geometry.fit(chest, onto).shift_xy == pytest.approx(shift, abs=0.5)


@given(chests, shifts)
def test_unknown_nodes_do_not_count(chest, shift):
    onto = chest + shift
    onto[HEART.nodes] = np.nan
    onto[3] = np.nan
    found = geometry.fit(chest, onto)
    assert found.shift_xy == pytest.approx(shift, abs=1e-6)


def test_nothing_is_known_of_too_few_nodes_or_a_point():
    chest = SHAPES[0].copy()
    chest[19:] = np.nan
    assert np.isnan(geometry.fit(chest, SHAPES[1])[0]).all()
    assert np.isnan(geometry.fit(np.zeros((120, 2)), SHAPES[1]).residual_px)


# --- distance of outlines --------------------------------------------------------------------------------------------


def test_squares_that_were_moved_by_hand():
    still, moved = two_squares(), np.add(two_squares(), (0, 10))
    assert geometry.outline_distance(still, two_squares()) == pytest.approx(0)
    # two edges of four slide along themselves, the others come to lie 10 px away: 5 px, less a little at the corners
    assert geometry.outline_distance(still, moved) == pytest.approx(4.9, abs=0.15)


@given(chests, chests, st.integers(0, 25))
def test_distance_is_the_same_both_ways_and_wherever_an_outline_begins(first, second, start):
    there = geometry.outline_distance(first, second)
    assert geometry.outline_distance(second, first) == pytest.approx(there)
    turned = first.copy()
    turned[HEART.nodes] = np.roll(first[HEART.nodes], start, axis=0)
    assert geometry.outline_distance(turned, second) == pytest.approx(there, rel=0.05, abs=0.05)
    assert geometry.outline_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_organs_that_are_unknown_are_left_out():
    assert np.isnan(geometry.outline_distance(np.full((120, 2), np.nan), SHAPES[0]))


# --- sides -----------------------------------------------------------------------------------------------------------


@given(chests)
def test_mirrored_twice_is_the_same_outlines(chest):
    assert geometry.outline_distance(geometry.mirrored(geometry.mirrored(chest)), chest) < 2


def test_a_mirrored_chest_is_named_as_any_film():
    chest = SHAPES[0]
    mirrored = geometry.mirrored(chest)
    assert mirrored[RIGHT_LUNG.nodes, 0].mean() < mirrored[LEFT_LUNG.nodes, 0].mean()
    # the apex of the one is that of the other
    assert mirrored[RIGHT_LUNG.first] == pytest.approx((1023 - chest[LEFT_LUNG.first, 0], chest[LEFT_LUNG.first, 1]))
    assert geometry.named_by_place(mirrored)[1] is False


@given(chests)
def test_a_chest_does_not_fit_its_mirror_image(chest):
    as_it_is, mirrored = geometry.fit(chest, chest), geometry.fit(geometry.mirrored(chest), chest)
    assert as_it_is.residual_px == pytest.approx(0, abs=1e-6)
    assert mirrored.residual_px > 10


@given(chests)
def test_exchanged_names_are_noticed_and_put_right(chest):
    flip = lambda ring: np.roll(ring[::-1], 1, axis=0)  # noqa: E731
    exchanged = np.concatenate(
        [
            geometry.resample_ring(flip(chest[LEFT_LUNG.nodes]), 44),
            geometry.resample_ring(flip(chest[RIGHT_LUNG.nodes]), 50),
            chest[HEART.nodes],
        ]
    )
    assert geometry.named_by_place(chest) == (pytest.approx(chest), False)
    named, was_exchanged = geometry.named_by_place(exchanged)
    assert was_exchanged is True
    assert geometry.outline_distance(named, chest) < 2
    assert geometry.fit(named, chest).shift_xy == pytest.approx((0, 0), abs=1)


@given(chests)
def test_a_flipped_table_is_named_as_the_mirrored_film_is(chest):
    flipped = chest * (-1, 1) + (1023, 0)
    named, was_exchanged = geometry.named_by_place(flipped)
    assert was_exchanged is True
    assert geometry.fit(named, geometry.mirrored(chest)).shift_xy == pytest.approx((0, 0), abs=1e-6)
    assert geometry.fit(geometry.mirrored(named), chest).residual_px < 2


def test_names_of_unknown_lungs_stay():
    chest = SHAPES[0].copy()
    chest[LEFT_LUNG.nodes] = np.nan
    assert geometry.named_by_place(chest)[1] is False


def test_a_ring_keeps_its_first_node_and_its_corners():
    ring = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
    assert geometry.resample_ring(ring, 4) == pytest.approx(ring)
    assert geometry.resample_ring(ring, 8)[7] == pytest.approx((0, 2))
