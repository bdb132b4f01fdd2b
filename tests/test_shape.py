"""The shape model, and the made-up uncertainty and quality that go with its shapes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG
from cxu.contour import crosses_itself, polygon_area
from cxu.errors import FormatError
from cxu.shape import (
    COEFFICIENT_LIMIT,
    SHAPE_MODEL_FILE,
    ShapeModel,
    load_shape_model,
    sample_rca,
    sample_shapes,
    sample_sigmas,
)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
# Widest range, with a margin, of the areas of 195 annotated outlines, in 1000 px².
AREAS = {RIGHT_LUNG: (80, 280), LEFT_LUNG: (60, 240), HEART: (45, 150)}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_shape_model", ROOT / "scripts" / "make_shape_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes_xy():
    return sample_shapes(load_shape_model(), 400, np.random.default_rng(5))


def neighbour_correlation(sigma_px):
    """Median over rows and organs of the correlation between a node's uncertainty and its ring neighbour's."""
    found = []
    for organ in ORGANS:
        centred = sigma_px[:, organ.nodes] - sigma_px[:, organ.nodes].mean(axis=1, keepdims=True)
        found.append((centred * np.roll(centred, -1, axis=1)).sum(axis=1) / (centred**2).sum(axis=1))
    return float(np.median(found))


def test_model_says_what_it_is():
    model = load_shape_model()
    assert model.n_shapes == 195
    assert model.variance_explained >= 0.98
    assert model.n_modes == 16
    assert {array.dtype for array in (model.mean_xy, model.modes, model.mode_sd_px)} == {np.dtype(np.float32)}


def test_modes_are_orthonormal_and_sorted():
    model = load_shape_model()
    np.testing.assert_allclose(model.modes @ model.modes.T, np.eye(model.n_modes), atol=2e-4)
    assert (np.diff(model.mode_sd_px) < 0).all()


def test_mean_shape_is_a_chest_in_the_frame():
    mean = load_shape_model().mean_xy
    right, left, heart = (mean[organ.nodes] for organ in ORGANS)
    assert right[:, 0].max() < left[:, 0].min()  # the patient's right lies on the image's left
    assert right[0, 1] < right[:, 1].mean()  # index 0 lies near the apex
    assert right[:, 0].mean() < heart[:, 0].mean() < left[:, 0].mean()
    assert heart[:, 1].mean() > left[:, 1].mean()
    assert mean.min() > 0
    assert mean.max() < 1023


def test_no_organ_crosses_itself(shapes_xy):
    rings = [shape[organ.nodes] for shape in shapes_xy for organ in ORGANS]
    assert not crosses_itself(rings).any()


def test_right_lung_is_left_of_the_left_lung(shapes_xy):
    assert (shapes_xy[:, RIGHT_LUNG.nodes, 0].mean(axis=1) < shapes_xy[:, LEFT_LUNG.nodes, 0].mean(axis=1)).all()


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_areas_are_those_of_adults(shapes_xy, organ):
    areas = np.array([polygon_area(shape[organ.nodes]) for shape in shapes_xy]) / 1000
    low, high = AREAS[organ]
    assert low < areas.min()
    assert areas.max() < high
    assert areas.std() > 0.1 * areas.mean()


def test_shapes_stay_within_four_pixels_of_the_frame(shapes_xy):
    assert shapes_xy.min() >= -4
    assert shapes_xy.max() <= 1027


def test_coefficients_are_truncated(shapes_xy):
    model = load_shape_model()
    coefficients = (shapes_xy - model.mean_xy).reshape(len(shapes_xy), -1) @ model.modes.T / model.mode_sd_px
    assert np.abs(coefficients).max() < COEFFICIENT_LIMIT + 0.02
    assert coefficients.std() == pytest.approx(0.95, abs=0.06)


def test_shapes_are_repeatable_and_plain_float32():
    first, second = (sample_shapes(load_shape_model(), 3, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32
    assert sample_shapes(load_shape_model(), 0, np.random.default_rng(1)).shape == (0, 120, 2)


def test_scale_zero_gives_the_mean():
    drawn = sample_shapes(load_shape_model(), 2, np.random.default_rng(0), scale=0.0)
    np.testing.assert_array_equal(drawn[1], load_shape_model().mean_xy)


def test_an_impossible_scale_is_an_error():
    with pytest.raises(FormatError, match="no plausible shapes at scale 60"):
        sample_shapes(load_shape_model(), 40, np.random.default_rng(0), scale=60.0)


def test_shapes_from_coefficients_by_hand():
    modes = np.zeros((2, 240), np.float32)
    modes[0, 3], modes[1, 238] = 1, -1
    model = ShapeModel(np.full((120, 2), 7, np.float32), modes, np.array([10, 4], np.float32))
    shape = model.shapes(np.array([[2.0, 0.5]]))[0]
    assert shape[1].tolist() == [7, 27]
    assert shape[119].tolist() == [5, 7]
    assert (shape[2:119] == 7).all()


def test_most_sigmas_lie_between_2_and_8_px():
    sigma_xy = sample_sigmas(600, np.random.default_rng(3))
    node = sigma_xy.mean(axis=2)
    assert 0.75 < np.mean((node >= 2) & (node <= 8)) < 0.92
    assert 3.0 < np.median(node) < 4.5
    assert sigma_xy.dtype == np.float32
    assert sigma_xy.min() > 0


def test_neighbours_are_alike():
    node = sample_sigmas(400, np.random.default_rng(4)).mean(axis=2)
    assert 0.8 < neighbour_correlation(node) < 0.9


def test_the_two_axes_differ():
    sigma_xy = sample_sigmas(200, np.random.default_rng(4), uncertain_runs=0, uncertain_rows=0)
    ratio = sigma_xy[..., 0] / sigma_xy[..., 1]
    assert np.quantile(ratio, 0.05) < 0.75
    assert np.quantile(ratio, 0.95) > 1.3


@pytest.mark.parametrize(
    ("uncertain", "certain"),
    [(21, 10), (65, 55), (84, 55), (111, 96), (102, 96)],
    ids=["right angle", "left angle", "left hilum", "heart apex", "heart base"],
)
def test_hard_borders_are_less_certain(uncertain, certain):
    node = sample_sigmas(300, np.random.default_rng(6), uncertain_runs=0, uncertain_rows=0).mean(axis=2)
    assert np.median(node[:, uncertain]) > 1.2 * np.median(node[:, certain])


def test_a_run_is_long_high_and_on_one_organ():
    node = sample_sigmas(200, np.random.default_rng(7), uncertain_runs=1, uncertain_rows=0).mean(axis=2)
    high = np.stack([(node[:, organ.nodes] > 9).sum(axis=1) for organ in ORGANS], axis=1)
    assert np.median(high.max(axis=1)) >= 6
    assert (np.sort(high, axis=1)[:, 1] <= 3).mean() > 0.95
    assert set(high.argmax(axis=1)) == {0, 1, 2}
    assert 10 < np.median(node.max(axis=1)) < 25


def test_uncertain_rows_are_uncertain_everywhere():
    node = sample_sigmas(200, np.random.default_rng(8), uncertain_runs=0, uncertain_rows=1).mean(axis=2)
    assert 7.5 < np.median(node.mean(axis=1)) < 12
    assert np.mean(node > 5) > 0.9


def test_sigmas_are_repeatable_and_may_be_none():
    first, second = (sample_sigmas(3, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert sample_sigmas(0, np.random.default_rng(1)).shape == (0, 120, 2)


def test_rca_falls_with_uncertainty():
    node = np.repeat(np.array([[3.0], [10.0], [60.0]]), 120, axis=1)
    rca = np.stack([sample_rca(node, np.random.default_rng(seed)) for seed in range(50)])
    assert (rca[..., 0] < rca[..., 1]).all()
    assert rca.min() > 0
    assert rca.max() < 1
    assert rca[:, 0, 0].min() > 0.75
    assert np.median(rca[:, 1, 0]) < 0.7
    assert (np.diff(np.median(rca[..., 0], axis=0)) < 0).all()


def test_the_file_is_written_the_same_everywhere(script):
    path = ROOT / "src" / "cxu" / SHAPE_MODEL_FILE
    with np.load(path) as stored:
        assert script.npz_bytes(dict(stored)) == path.read_bytes()


def test_modes_of_a_line_are_that_line(script):
    direction = np.zeros((120, 2))
    direction[5, 1] = -1
    steps = np.array([-3.0, -1.0, 1.0, 3.0])
    model = script.principal_modes(np.full((120, 2), 9.0) + steps[:, None, None] * direction)
    assert model["n_shapes"] == 4
    assert model["mode_sd_px"] == pytest.approx([np.sqrt(5)], abs=1e-3)
    assert model["modes"][0, 11] == 1  # signed so that its largest value is positive
    assert (model["mean_xy"] == 9).all()


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "train").is_dir(), reason="needs the annotated outlines in ../shared/data/train")
def test_the_committed_model_is_the_computed_one(script):
    outlines = script.read_outlines(SHARED)
    computed, model = script.principal_modes(outlines), load_shape_model()
    assert len(outlines) == model.n_shapes
    np.testing.assert_allclose(computed["mean_xy"], model.mean_xy, atol=2e-3)
    np.testing.assert_allclose(computed["modes"], model.modes, atol=5e-5)
    np.testing.assert_allclose(computed["mode_sd_px"], model.mode_sd_px, atol=2e-3)
