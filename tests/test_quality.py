import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu.anatomy import LEFT_LUNG, N_NODES, RIGHT_LUNG
from cxu.quality import (
    ORIENTATIONS,
    REASONS,
    Evidence,
    Gate,
    Space,
    contour_contrast,
    fit_space,
    grade,
    place_shapes,
    reason_of_film,
)
from cxu.shape import load_shape_model, sample_shapes

SHAPES = sample_shapes(load_shape_model(), 60, np.random.default_rng(0)) / 1024


def evidence(n=1, **changed):
    rng = np.random.default_rng(1)
    made = {
        "mean_xy": SHAPES[:n],
        "sigma_px": np.full((n, N_NODES), 8.0),
        "mu": rng.standard_normal((n, 4)),
        "latent_sigma": np.full((n, 4), 0.5),
        "features": np.tile([3.0, 0.0], (n, 1)),
        "contrast": np.full(n, 0.2),
        "side_odds": np.full(n, 3.0),
    }
    return Evidence(**{**made, **changed})


def gate(**limits):
    """Return a gate whose first feature says upright and whose second says upside down."""
    rng = np.random.default_rng(2)
    weights = np.zeros((len(ORIENTATIONS), 2))
    weights[0, 0], weights[2, 1] = 4.0, 4.0
    wide = dict.fromkeys(REASONS, (0.0, 1e6, 2e6))
    return Gate(
        latents=fit_space(rng.standard_normal((500, 4)), 4),
        appearance=fit_space(np.array([3.0, 0.0]) + rng.standard_normal((500, 2)), 2),
        shapes=fit_space(place_shapes(SHAPES), 20),
        orientation_weights=weights,
        orientation_offsets=np.zeros(len(ORIENTATIONS)),
        feature_mean=np.zeros(2),
        feature_sd=np.ones(2),
        limits={**wide, **limits},
    )


def test_grades_by_hand():
    limits = (10.0, 20.0, 30.0)
    assert grade(np.array([5.0, 10, 15, 20, 25, 30, 50]), limits).tolist() == [0, 0, 0.5, 1, 1.5, 2, 4]


@given(hnp.arrays(float, 20, elements=st.floats(-50, 50)))
def test_worse_values_have_no_better_grade(values):
    grades = grade(np.sort(values), (0.0, 5.0, 6.0))
    assert (np.diff(grades) >= 0).all()
    assert (grades >= 0).all()


def test_an_ordinary_film_is_ok():
    (verdict,) = gate().judge(evidence(), [None])
    assert (verdict.quality, verdict.reason) == ("ok", None)
    assert verdict.score < 1


@pytest.mark.parametrize(
    ("changed", "limits", "quality", "reason"),
    [
        ({"sigma_px": np.full((1, N_NODES), 25.0)}, {"image_score": (8, 20, 30)}, "review", "landmarks are uncertain"),
        ({"sigma_px": np.full((1, N_NODES), 35.0)}, {"image_score": (8, 20, 30)}, "reject", "landmarks are uncertain"),
        ({"latent_sigma": np.ones((1, 4))}, {"latent_sigma": (0.4, 0.6, 0.8)}, "reject", "latent code is uncertain"),
        ({"mu": np.full((1, 4), 9.0)}, {"latent_distance": (1, 2, 3)}, "reject", REASONS["latent_distance"]),
        ({"features": np.array([[30.0, 0.0]])}, {"appearance": (1, 2, 3)}, "reject", "looks unlike training films"),
        ({"features": np.array([[0.0, 3.0]])}, {"orientation": (0, 1, 3)}, "reject", "seems upside down"),
        ({"contrast": np.array([0.0])}, {"contrast": (-0.2, -0.1, -0.05)}, "reject", REASONS["contrast"]),
        ({"side_odds": np.array([-1.0])}, {"sides": (-3, 0, 2)}, "review", "sides seem exchanged"),
        ({"mean_xy": SHAPES[:1, ::-1]}, {"shape": (1, 2, 3)}, "reject", "contours are implausible"),
    ],
)
def test_each_signal_sends_its_images_away(changed, limits, quality, reason):
    (verdict,) = gate(**limits).judge(evidence(**changed), [None])
    assert (verdict.quality, verdict.reason) == (quality, reason)


def test_the_worst_signal_decides_and_is_told_first():
    limits = {"image_score": (8, 20, 30), "contrast": (-0.2, -0.1, -0.05)}
    found = evidence(sigma_px=np.full((1, N_NODES), 25.0), contrast=np.zeros(1))
    (verdict,) = gate(**limits).judge(found, [None])
    assert verdict.score == pytest.approx(3)
    assert verdict.reason == f"{REASONS['contrast']}; {REASONS['image_score']}"


def test_what_a_file_says_against_itself_rejects_whatever_was_measured():
    said = [reason_of_film("LATERAL", "DX"), reason_of_film("PA", "CR"), None]
    verdicts = gate().judge(evidence(3), said)
    assert [one.quality for one in verdicts] == ["reject", "ok", "ok"]
    assert verdicts[0].reason == "the file says LATERAL: not a frontal view"
    assert verdicts[0].score >= 2


@pytest.mark.parametrize("view", ["LATERAL", "lateral", " LL ", "RL", "LLD"])
def test_side_views(view):
    assert "not a frontal view" in reason_of_film(view, None)


@pytest.mark.parametrize("modality", ["CT", "mr", "US", "SEG"])
def test_other_devices(modality):
    assert "not a radiograph" in reason_of_film("PA", modality)


@pytest.mark.parametrize("view", [None, "", "PA", "AP", "L", "FRONTAL"])
@pytest.mark.parametrize("modality", [None, "", "CR", "DX", "DR", "RG", "OT"])
def test_frontal_radiographs(view, modality):
    assert reason_of_film(view, modality) is None


def test_without_standard_deviations_the_other_signals_decide():
    limits = {"image_score": (8, 20, 30), "contrast": (-0.2, -0.1, -0.05)}
    found = evidence(2, sigma_px=np.full((2, N_NODES), np.nan), contrast=np.array([0.2, 0.0]))
    assert [one.quality for one in gate(**limits).judge(found, [None, None])] == ["ok", "reject"]


def test_an_image_is_judged_by_itself():
    limits = {"image_score": (8, 20, 30), "latent_distance": (0.5, 1, 2), "shape": (0.5, 1, 2)}
    found = evidence(20, sigma_px=np.linspace(5, 40, 20)[:, None].repeat(N_NODES, 1))
    together = gate(**limits).judge(found, [None] * 20)
    alone = [gate(**limits).judge(Evidence(*(part[i : i + 1] for part in found)), [None])[0] for i in range(20)]
    assert [one.quality for one in together] == [one.quality for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone])


def test_the_space_of_a_gaussian_by_hand():
    # two directions of standard deviations 3 and 1: twice them is a distance of the root of (4 + 4 + rest²) / 3
    values = np.array([[3.0, 1, 0], [-3, 1, 0], [3, -1, 0], [-3, -1, 0]])
    space = Space(np.zeros(3), np.array([[1 / 3, 0, 0], [0, 1.0, 0]]), beside=0.5)
    assert space.distance(np.array([[6.0, 2.0, 0.0]]))[0] == pytest.approx(np.sqrt(8 / 3))
    assert space.distance(np.array([[0.0, 0.0, 1.0]]))[0] == pytest.approx(np.sqrt(4 / 3))
    fitted = fit_space(values, 2)
    assert np.abs(fitted.directions) == pytest.approx(np.array([[1 / 3, 0, 0], [0, 1, 0]]))


def test_training_lies_at_a_distance_of_about_one():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((2000, 10)) * np.arange(1, 11)
    distance = fit_space(values, 6).distance(values)
    assert np.sqrt(np.square(distance).mean()) == pytest.approx(1, abs=0.01)


@given(st.floats(0.2, 3), st.floats(-1, 1), st.floats(-1, 1))
def test_place_and_size_do_not_matter_for_shapes(scale, x, y):
    moved = SHAPES[:2] * scale + np.array([x, y])
    assert place_shapes(moved) == pytest.approx(place_shapes(SHAPES[:2]), abs=1e-6)


def test_turned_shapes_are_others():
    assert not np.allclose(place_shapes(SHAPES[:1]), place_shapes(1 - SHAPES[:1]), atol=0.1)


def test_contrast_of_dark_lungs_by_hand():
    # lungs of 0.2 in surroundings of 0.7: half a grey scale on every step, whichever way the ring winds
    from cxu.raster import fill_polygon

    pixels = np.full((256, 256), 0.7)
    for organ in (RIGHT_LUNG, LEFT_LUNG):
        pixels[fill_polygon(SHAPES[0, organ.nodes].astype(np.float32) * 256, (256, 256)) > 0] = 0.2
    found = contour_contrast(pixels, SHAPES[0])
    assert found == pytest.approx(0.5, abs=0.05)
    assert contour_contrast(1 - pixels, SHAPES[0]) == pytest.approx(-found)
    assert contour_contrast(np.full((256, 256), 0.3), SHAPES[0]) == 0


def test_contours_outside_the_image_have_a_contrast():
    assert np.isfinite(contour_contrast(np.random.default_rng(0).random((64, 64)), SHAPES[0] * 3 - 1))
