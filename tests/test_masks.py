"""One row to its masks: the four policies on organs worked out by hand, and the laws between them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxu import shape
from cxu.anatomy import HEART, LEFT_LUNG, ORGAN_NAMES, ORGANS, RIGHT_LUNG
from cxu.errors import FormatError, UsageError
from cxu.frame import ModelFrame
from cxu.masks import MaskOptions, Placement, RowShape, draw_organs, in_image, merge_labels, resized
from mask_helpers import last_corner, picture, plain_labels, tiny_chest

ALL = np.ones(120, bool)
USABLE = np.ones(3, bool)
TINY = Placement((10, 12))
REFUSED = {("ignore", "rle"), ("probability", "labels"), ("probability", "rle")}


def options(policy, **others):
    return MaskOptions(policy, "organs" if policy == "probability" else "npz", **others)


def tiny(confident=ALL, usable=USABLE, sigma=0.5, samples=None):
    sigma_xy = np.broadcast_to(np.float32(sigma), (120, 2))
    return RowShape(tiny_chest(), sigma_xy, confident, np.array(usable), samples)


def labels_of(row, policy, placement=TINY, **others):
    chosen = options(policy, **others)
    return merge_labels(draw_organs(row, placement, chosen), chosen)


# --- what goes with what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "format_"),
    list(itertools.product(["confident", "full", "ignore", "probability"], ["labels", "organs", "npz", "rle", "tar"])),
)
def test_formats_of_each_policy(policy, format_):
    if (policy, format_) in REFUSED:
        with pytest.raises(UsageError, match=f"--policy {policy} cannot be written as {format_}; take .*npz"):
            MaskOptions(policy, format_)
    else:
        assert MaskOptions(policy, format_).policy == policy


@pytest.mark.parametrize("band", [-0.1, float("nan"), float("inf")])
def test_bands_that_are_no_width_are_refused(band):
    with pytest.raises(UsageError, match="--band"):
        MaskOptions("ignore", band=band)


# --- by hand ---------------------------------------------------------------------------------------------------------

FULL = picture("""
    ............
    .1111..2222.
    .1111..2222.
    .1111..2222.
    .1111..2222.
    .1111333322.
    .1111333322.
    .....3333...
    .....3333...
    ............
""")


@pytest.mark.parametrize("policy", ["full", "confident", "ignore"])
def test_all_nodes_confident_gives_the_full_polygons_heart_on_top(policy):
    np.testing.assert_array_equal(labels_of(tiny(), policy), FULL)


def test_confident_leaves_an_uncertain_corner_out():
    # the right lung is the triangle of its other corners: the edge from (4, 6) to (1, 1) passes these pixels
    expected = picture("""
        ............
        .1111..2222.
        ..111..2222.
        ..111..2222.
        ...11..2222.
        ...11333322.
        ....1333322.
        .....3333...
        .....3333...
        ............
    """)
    row = tiny(~last_corner(RIGHT_LUNG))
    np.testing.assert_array_equal(labels_of(row, "confident"), expected)
    np.testing.assert_array_equal(labels_of(row, "full"), FULL)


def test_ignore_covers_both_edges_of_an_uncertain_corner():
    # 2.8 * 0.5 = 1.4 px around the bottom and the left edge of the right lung: a pixel at a corner is 1.41 px away
    expected = picture("""
        .#..........
        ###11..2222.
        ###11..2222.
        ###11..2222.
        ###11..2222.
        #####333322.
        ######33322.
        .####3333...
        .....3333...
        ............
    """)
    organs = draw_organs(tiny(~last_corner(RIGHT_LUNG)), TINY, options("ignore"))
    np.testing.assert_array_equal(merge_labels(organs, options("ignore")), expected)
    # of 4 × 6 pixels, the right half of the upper four lines is left
    assert organs["right_lung"].area_ratio == pytest.approx(8 / 24)
    assert organs["left_lung"].area_ratio == 1
    assert set(np.unique(organs["right_lung"].plane)) == {0, 1, 255}
    assert set(np.unique(organs["heart"].plane)) == {0, 1}


@pytest.mark.parametrize(("band", "pixels"), [(0.0, 0), (1.9, 9), (2.0, 28)])
def test_width_of_the_band(band, pixels):
    # below 1 px only the pixels of the edges themselves, from 1 px on those of the picture above
    plane = draw_organs(tiny(~last_corner(RIGHT_LUNG)), TINY, options("ignore", band=band))["right_lung"].plane
    assert (plane == 255).sum() == pixels


def test_an_unusable_organ_is_ignored_over_its_full_polygon_and_wins_over_the_heart():
    row = tiny(~last_corner(LEFT_LUNG), usable=(True, False, True))
    expected = picture("""
        ............
        .1111..####.
        .1111..####.
        .1111..####.
        .1111..####.
        .111133####.
        .111133####.
        .....3333...
        .....3333...
        ............
    """)
    for policy in ("confident", "full", "ignore"):
        np.testing.assert_array_equal(labels_of(row, policy), expected)


def test_an_unusable_organ_may_be_background():
    row = tiny(usable=(True, False, True))
    expected = np.where(FULL == 2, 0, FULL)
    np.testing.assert_array_equal(labels_of(row, "confident", unusable="background"), expected)
    np.testing.assert_array_equal(labels_of(tiny(usable=(False,) * 3), "full", unusable="background"), 0 * FULL)


def test_without_a_usable_organ_everything_is_ignored():
    np.testing.assert_array_equal(labels_of(tiny(usable=(False,) * 3), "confident"), np.where(FULL, 255, 0))


@pytest.mark.parametrize("policy", ["confident", "full", "ignore", "probability"])
def test_an_unusable_organ_keeps_its_full_polygon_and_no_area(policy):
    mask = draw_organs(tiny(~last_corner(LEFT_LUNG), usable=(True, False, True)), TINY, options(policy))["left_lung"]
    assert (mask.usable, mask.area_ratio, mask.crosses_itself) == (False, 0.0, False)
    np.testing.assert_array_equal(mask.plane[:5], FULL[:5] // 2)
    assert mask.plane.sum() == 24


def test_probability_falls_off_across_the_edge():
    # x = 0 … 6 on line 3: the edges are at 1 and 4, sigma is 0.5, so 1 px is two of them: 255 Φ(±2) = 249.2, 5.8
    plane = draw_organs(tiny(), TINY, options("probability"))["right_lung"].plane
    assert plane[3, :7].tolist() == [6, 128, 249, 249, 128, 6, 0]


def test_probability_is_the_share_of_kept_samples():
    moved = tiny_chest() + np.array([1, 0])
    samples = np.stack([tiny_chest(), moved, moved])
    # uncertainty that the row does not have: the samples say it
    organs = draw_organs(tiny(sigma=np.nan, samples=samples), TINY, options("probability"))
    assert organs["right_lung"].plane[3, :7].tolist() == [0, 85, 255, 255, 255, 170, 0]
    # expected area: (4 + 4 + 4) / 3 columns of 6
    assert organs["right_lung"].area_ratio == pytest.approx(1, abs=1e-3)


def test_area_ratios():
    organs = draw_organs(tiny(~last_corner(RIGHT_LUNG)), TINY, options("confident"))
    # half of the box of 3 × 5; the others are whole
    assert [organs[name].area_ratio for name in ORGAN_NAMES] == [pytest.approx(0.5), 1, 1]
    organs = draw_organs(tiny(~last_corner(RIGHT_LUNG)), TINY, options("full"))
    assert [organs[name].area_ratio for name in ORGAN_NAMES] == [1, 1, 1]


def test_a_contour_that_crosses_itself_is_said():
    landmarks = tiny_chest()
    landmarks[[14, 28]] = landmarks[[28, 14]]
    row = RowShape(landmarks, np.ones((120, 2)), ALL, USABLE)
    crossing = [mask.crosses_itself for mask in draw_organs(row, TINY, options("full")).values()]
    assert crossing == [True, False, False]
    usable_elsewhere = RowShape(landmarks, np.ones((120, 2)), ALL, np.array([False, True, True]))
    assert not draw_organs(usable_elsewhere, TINY, options("full"))["right_lung"].crosses_itself


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ignore", "probability"])
def test_a_row_without_sigma_is_refused_where_the_policy_needs_it(policy):
    with pytest.raises(UsageError, match=f"--policy {policy} needs standard deviations"):
        draw_organs(tiny(sigma=np.nan), TINY, options(policy))


def test_samples_are_no_sigma_for_a_band():
    with pytest.raises(UsageError, match="--policy ignore needs standard deviations"):
        draw_organs(tiny(sigma=np.nan, samples=tiny_chest()[None]), TINY, options("ignore"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7])
def test_landmarks_that_are_nowhere_are_refused(value):
    landmarks = tiny_chest()
    landmarks[7, 1] = value
    with pytest.raises(FormatError, match="landmarks that are no number"):
        draw_organs(RowShape(landmarks, np.ones((120, 2)), ALL, USABLE), TINY, options("full"))


# --- placements ------------------------------------------------------------------------------------------------------


def test_resizing_scales_each_axis_and_sigma():
    placement = resized((100, 200), (50, 400))
    assert placement == Placement((50, 400), (2.0, 0.5))
    assert placement.points(np.array([[10.0, 10.0]])).tolist() == [[20, 5]]
    assert placement.sigmas(np.array([[3.0, 3.0]])).tolist() == [[6, 1.5]]


def test_placing_in_an_image_undoes_the_model_frame():
    placement = in_image(ModelFrame(2048.0, (-100.0, 7.0), exact=False), (2000, 1800))
    assert placement == Placement((2000, 1800), (2.0, 2.0), (-100.0, 7.0), exact=False)
    assert placement.points(np.array([[50.0, 10.0]])).tolist() == [[0, 27]]
    assert placement.sigmas(np.array([[3.0, 1.0]])).tolist() == [[6, 2]]


def test_a_doubled_size_is_drawn_from_doubled_nodes():
    drawn = labels_of(tiny(), "full", resized((10, 12), (20, 24)))
    right = np.zeros((20, 24), bool)
    right[2:13, 2:9] = True
    np.testing.assert_array_equal(drawn == 1, right)


# --- laws ------------------------------------------------------------------------------------------------------------


@st.composite
def rows(draw):
    """A chest of the shape model at a sixteenth of its size, with any confident nodes and usable organs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    landmarks = shape.sample_shapes(shape.load_shape_model(), 1, rng)[0] / 16
    sigma = shape.sample_sigmas(1, rng)[0] / 16
    confident = rng.random(120) < draw(st.sampled_from([0.5, 0.9, 1.0]))
    return RowShape(landmarks, sigma, confident, rng.random(3) < 0.8)


SMALL = Placement((64, 64))


@given(row=rows(), policy=st.sampled_from(["confident", "full", "ignore"]), background=st.booleans())
@settings(max_examples=60)
def test_labels_are_the_planes_painted_in_order(row, policy, background):
    chosen = options(policy, unusable="background" if background else "ignore")
    organs = draw_organs(row, SMALL, chosen)
    planes = [organs[organ.name].plane for organ in ORGANS]
    np.testing.assert_array_equal(merge_labels(organs, chosen), plain_labels(planes, row.usable, background=background))


@given(row=rows())
@settings(max_examples=40)
def test_ignore_is_full_wherever_it_is_not_255(row):
    banded, full = labels_of(row, "ignore", SMALL), labels_of(row, "full", SMALL)
    kept = banded != 255
    np.testing.assert_array_equal(banded[kept], full[kept])
    assert (banded[full == 255] == 255).all()


@given(row=rows())
@settings(max_examples=40)
def test_probable_is_full(row):
    probable, full = draw_organs(row, SMALL, options("probability")), draw_organs(row, SMALL, options("full"))
    for name in ORGAN_NAMES:
        if full[name].usable:
            np.testing.assert_array_equal(probable[name].plane >= 128, full[name].plane == 1)


@given(row=rows(), exponent=st.sampled_from([-2, -4, -8, None]))
@settings(max_examples=40)
def test_with_sigma_towards_zero_every_policy_is_full(row, exponent):
    # whatever the limit, such nodes are confident
    sigma = np.zeros((120, 2)) if exponent is None else row.sigma_xy * 10.0**exponent
    certain = RowShape(np.rint(row.landmarks_xy), sigma, ALL, USABLE)
    full = draw_organs(certain, SMALL, options("full"))
    for policy in ("confident", "ignore"):
        for name, mask in draw_organs(certain, SMALL, options(policy)).items():
            np.testing.assert_array_equal(mask.plane, full[name].plane)
    for name, mask in draw_organs(certain, SMALL, options("probability")).items():
        edge = (mask.plane > 0) & (mask.plane < 255)
        np.testing.assert_array_equal(mask.plane[~edge] > 0, full[name].plane[~edge] > 0)
        # only the pixels on the contour itself are undecided, and the fill covers them
        assert (full[name].plane[edge] == 1).all()
        np.testing.assert_array_equal(mask.plane >= 128, full[name].plane == 1)


@given(row=rows())
@settings(max_examples=20)
def test_planes_are_whole_whatever_leaves_the_image(row):
    far = RowShape(row.landmarks_xy + np.array([200, -300]), row.sigma_xy, row.confident, row.usable)
    for policy in ("confident", "full", "ignore", "probability"):
        for mask in draw_organs(far, SMALL, options(policy)).values():
            assert mask.plane.shape == (64, 64)
            assert not mask.plane.any()
    assert HEART.name in draw_organs(far, SMALL, options("full"))


@pytest.mark.parametrize("wrong", [{"policy": "ignor"}, {"format": "png"}, {"unusable": "drop"}])
def test_unknown_options_are_refused_by_name(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(UsageError, match=f"{name} '{value}' is unknown"):
        MaskOptions(**wrong)
