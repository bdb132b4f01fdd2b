import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu import calibration
from cxu.anatomy import HEART, N_NODES, ORGAN_NAMES, RIGHT_LUNG
from cxu.calibration import Calibration, conformal_quantile, cross_fitted_coverage, fit, from_json, radius_px
from cxu.errors import FormatError, UsageError


def gaussian(n_images, *, factor, seed=0, spread=0.4):
    """Return sigmas [n, 120, 2] and errors that are `factor` times larger than they say."""
    rng = np.random.default_rng(seed)
    sigma = 5 * np.exp(spread * rng.standard_normal((n_images, N_NODES, 2)))
    return factor * sigma * rng.standard_normal(sigma.shape), sigma


def test_the_scale_by_hand():
    # along x errors are twice sigma, along y none: the root of (4 + 0) / 2
    difference = np.zeros((9, N_NODES, 2))
    difference[..., 0] = 6.0
    assert fit(difference, np.full(difference.shape, 3.0)).sigma_scale == pytest.approx(
        dict.fromkeys(ORGAN_NAMES, np.sqrt(2))
    )


def test_the_scale_is_found_again():
    made = fit(*gaussian(60, factor=1.7))
    assert list(made.sigma_scale.values()) == pytest.approx([1.7] * 3, rel=0.02)
    assert made.n_images == dict.fromkeys(ORGAN_NAMES, 60)
    assert made.scales() == pytest.approx([1.7] * 3, rel=0.02)


def test_organs_are_fitted_apart_and_unannotated_ones_do_not_count():
    difference, sigma = gaussian(40, factor=1.0)
    difference[:, HEART.nodes] *= 3
    difference[20:, HEART.nodes] = np.nan
    made = fit(difference, sigma)
    assert made.sigma_scale["heart"] == pytest.approx(3, rel=0.05)
    assert made.sigma_scale["right_lung"] == pytest.approx(1, rel=0.05)
    assert made.n_images == {"right_lung": 40, "left_lung": 40, "heart": 20}


def test_the_quantile_by_hand():
    # nine images of one score: the ninth of them, since a tenth might be worse than all
    assert conformal_quantile([np.array([value]) for value in (3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 7.0, 8.0, 6.0)], 0.9) == 9
    # half of nineteen and one unknown: the tenth
    assert conformal_quantile([np.array([float(value)]) for value in range(1, 20)], 0.5) == 10


def test_every_image_counts_alike():
    # one image with a hundred scores of 100 is an image of ten; the weight below it is 0.9, that asked for 0.55
    scores = [np.array([float(value)]) for value in range(1, 10)] + [np.full(100, 100.0)]
    assert conformal_quantile(scores, 0.5) == 6


def test_too_few_images_have_no_radius():
    with pytest.raises(UsageError, match=r"8 annotated images of heart: too few .* 90%; at least 9"):
        conformal_quantile([np.ones(3)] * 8, 0.9, "heart")
    with pytest.raises(UsageError, match="0 annotated images"):
        conformal_quantile([], 0.9)


@given(st.integers(20, 60), st.integers(0, 2**32 - 1))
def test_the_radius_holds_at_least_its_share_of_what_it_was_fitted_to(n_images, seed):
    difference, sigma = gaussian(n_images, factor=1.3, seed=seed)
    made = fit(difference, sigma)
    inside = np.linalg.norm(difference, axis=-1) <= radius_px(made, sigma.mean(axis=-1)) * (1 + 1e-12)
    for organ in (RIGHT_LUNG, HEART):
        assert inside[:, organ.nodes].mean() >= 0.9


def test_new_images_are_held_as_often_as_was_promised():
    difference, sigma = gaussian(400, factor=1.3)
    made = fit(difference[:200], sigma[:200])
    inside = np.linalg.norm(difference[200:], axis=-1) <= radius_px(made, sigma[200:].mean(axis=-1))
    assert inside.mean() == pytest.approx(0.9, abs=0.015)


def test_cross_fitting_by_hand():
    # two folds of ten images; those of the first are twice as far off as those of the second
    difference = np.zeros((20, N_NODES, 2))
    difference[0::2, :, 0], difference[1::2, :, 0] = 8.0, 4.0
    found = cross_fitted_coverage(difference, np.full(difference.shape, 2.0), n_folds=2)
    assert found == dict.fromkeys(ORGAN_NAMES, 0.5)


def test_cross_fitted_coverage_is_about_what_was_promised():
    difference, sigma = gaussian(140, factor=1.3)
    difference[20:, HEART.nodes] = np.nan
    found = cross_fitted_coverage(difference, sigma)
    assert found["right_lung"] == pytest.approx(0.9, abs=0.02)
    assert 0.88 <= found["heart"] <= 1


def test_the_radius_by_hand():
    made = Calibration(
        dict.fromkeys(ORGAN_NAMES, 1.0),
        {"right_lung": 2.0, "left_lung": 3.0, "heart": 4.0},
        dict.fromkeys(ORGAN_NAMES, 2.5),
        0.9,
        dict.fromkeys(ORGAN_NAMES, 9),
    )
    sigma = np.full((1, N_NODES), 5.0)
    sigma[0, :2] = 1.0, np.nan
    radius = radius_px(made, sigma)[0]
    assert radius[0] == 5  # the floor
    assert np.isnan(radius[1])
    assert (radius[2], radius[50], radius[110]) == (10, 15, 20)


def test_there_and_back():
    made = fit(*gaussian(12, factor=1.2), data="validation: 12 films")
    assert from_json(made.as_json()) == made


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("radius_factor"),
        lambda content: content["sigma_scale"].pop("heart"),
        lambda content: content["sigma_scale"].update(heart="much"),
        lambda content: content["sigma_scale"].update(heart=float("nan")),
        lambda content: content["floor_px"].update(heart=-1.0),
        lambda content: content.update(n_images=None),
    ],
)
def test_damaged_calibrations_are_refused(damage):
    content = fit(*gaussian(12, factor=1.2)).as_json()
    damage(content)
    with pytest.raises(FormatError, match="calibration"):
        from_json(content)


def test_published_sigmas_have_an_assumed_scale():
    assert calibration.assumed_scales().tolist() == [1.7, 1.7, 1.7]
