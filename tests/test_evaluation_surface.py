"""Dice and boundary distances: tiny masks worked out by hand, and a plain distance transform to compare with."""

import builtins
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxu.errors import MissingExtraError
from cxu.evaluation.surface import boundary, dice, surface_distances

pytest.importorskip("scipy")
EMPTY = np.zeros((6, 8), bool)


def mask(text):
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def box(top, left, bottom, right, shape=(6, 8)):
    drawn = np.zeros(shape, bool)
    drawn[top:bottom, left:right] = True
    return drawn


# --- Dice ------------------------------------------------------------------------------------------------------------


def test_dice_by_hand():
    # 4 and 6 pixels, 2 in common
    assert dice(box(0, 0, 2, 2), box(0, 1, 2, 4)) == pytest.approx(0.4)


def test_dice_of_empty_masks():
    assert dice(EMPTY, EMPTY) == 1
    assert dice(EMPTY, box(0, 0, 1, 1)) == 0
    assert dice(box(0, 0, 1, 1), EMPTY) == 0


# --- boundary --------------------------------------------------------------------------------------------------------


def test_boundary_lies_inside_and_a_free_diagonal_makes_none():
    drawn = mask(
        """
        .......
        .#####.
        .#####.
        .####..
        .......
        """
    )
    expected = mask(
        """
        .......
        .#####.
        .#...#.
        .####..
        .......
        """
    )
    assert (boundary(drawn) == expected).all()


def test_edge_of_the_image_is_boundary():
    assert boundary(np.ones((3, 4), bool)).sum() == 10


def test_edge_of_what_is_ignored_is_no_boundary():
    drawn, ignored = box(1, 1, 5, 7), np.zeros((6, 8), bool)
    ignored[:, 5:] = True
    expected = mask(
        """
        ........
        .###....
        .#......
        .#......
        .###....
        ........
        """
    )
    assert (boundary(drawn & ~ignored, ignored) == expected).all()


# --- distances -------------------------------------------------------------------------------------------------------


def test_same_masks_are_at_distance_zero():
    assert surface_distances(box(1, 1, 4, 5), box(1, 1, 4, 5)) == (0, 0, 0)


def test_two_pixels():
    # one pixel each, 3 to the right and 4 down
    assert surface_distances(box(0, 0, 1, 1), box(4, 3, 5, 4)) == (5, 5, 5)


def test_directions_differ():
    # a pixel against itself with two more to its right: 0 there; 0, 1 and 2 back
    found = surface_distances(box(2, 1, 3, 2), box(2, 1, 3, 4))
    assert found.hausdorff == 2
    assert found.hd95 == pytest.approx(1.9)  # 95 % of the way from 0 over 1 to 2
    assert found.assd == pytest.approx(3 / 4)  # 0 and 0, 1, 2: pooled, not the mean of 0 and 1


def test_hd95_takes_the_larger_direction_and_pools_nothing():
    # 21 pixels in a row against the first one: back 0 to 20, there 0
    row, first = np.ones((1, 21), bool), np.zeros((1, 21), bool)
    first[0, 0] = True
    assert surface_distances(first, row).hd95 == pytest.approx(19)
    pooled = np.percentile([0, *range(21)], 95)
    assert pooled != pytest.approx(19)


@pytest.mark.parametrize("masks", [(EMPTY, EMPTY), (EMPTY, box(0, 0, 2, 2)), (box(0, 0, 2, 2), EMPTY)])
def test_empty_masks_have_no_distance(masks):
    assert all(map(math.isnan, surface_distances(*masks)))


def test_ignored_pixels_count_on_neither_side():
    ignored = np.zeros((6, 8), bool)
    ignored[:, 5:] = True
    narrow, wide = box(1, 1, 5, 7) & ~ignored, box(1, 1, 5, 8) & ~ignored
    assert surface_distances(narrow, wide, ignored) == (0, 0, 0)
    # all of the boundary touches what is ignored
    assert all(map(math.isnan, surface_distances(box(2, 2, 3, 3), box(2, 2, 3, 3), ~box(2, 2, 3, 3))))


def plain_distances(first, second):
    """The same by a distance transform of every pixel."""
    from scipy import ndimage

    edges = [one & ~ndimage.binary_erosion(one) for one in (first, second)]
    directed = [ndimage.distance_transform_edt(~edges[1 - side])[edges[side]] for side in (0, 1)]
    return (
        max(one.max() for one in directed),
        max(np.percentile(one, 95) for one in directed),
        np.concatenate(directed).mean(),
    )


small_masks = arrays.arrays(bool, (7, 9), elements=st.booleans())


@given(small_masks, small_masks)
def test_distances_are_those_of_a_distance_transform(first, second):
    found = surface_distances(first, second)
    if first.any() and second.any():
        assert found == pytest.approx(plain_distances(first, second))
        assert found == pytest.approx(surface_distances(second, first))
        assert found.assd <= found.hausdorff
        assert found.hd95 <= found.hausdorff
    else:
        assert all(map(math.isnan, found))


@given(small_masks, small_masks, st.integers(0, 5), st.integers(0, 5))
def test_distances_do_not_depend_on_what_lies_around(first, second, above, before):
    # a free frame around both, so that no mask reaches the edge of the image
    inner = [np.pad(one, 1) for one in (first, second)]
    outer = [np.pad(one, ((above, 3), (before, 2))) for one in inner]
    np.testing.assert_allclose(surface_distances(*inner), surface_distances(*outer))


def test_missing_scipy_is_named(monkeypatch):
    real = builtins.__import__

    def without_scipy(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(MissingExtraError, match=r"cxu\[science\]"):
        surface_distances(box(0, 0, 2, 2), box(0, 0, 2, 2))
