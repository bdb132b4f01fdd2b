import math

import numpy as np
import pytest
import torch

from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.shape import load_shape_model
from cxu.training.metrics import dice, evaluate, predict, score, score_datasets


def square(n_nodes, left, top, side):
    """Return n_nodes points along a square whose corners are among them."""
    corners = np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]], np.float32)
    return np.concatenate([corners, np.repeat(corners[3:], n_nodes - 4, axis=0)])


def landmarks(shift=0):
    """Lungs of 100 × 100 px, a heart of 50 × 50 px, moved to the right."""
    return np.concatenate(
        [
            square(RIGHT_LUNG.n_nodes, 100 + shift, 100, 99),
            square(LEFT_LUNG.n_nodes, 400 + shift, 100, 99),
            square(HEART.n_nodes, 300 + shift, 300, 49),
        ]
    )


def test_dice_by_hand():
    # of 100 columns 90 overlap, of 50 heart columns 40
    assert dice((RIGHT_LUNG, LEFT_LUNG), landmarks(10), landmarks()) == pytest.approx(0.9)
    assert dice((HEART,), landmarks(10), landmarks()) == pytest.approx(0.8)
    assert dice((HEART,), landmarks(500), landmarks()) == 0


def test_lungs_are_one_mask():
    found = landmarks()
    found[LEFT_LUNG.nodes] = found[RIGHT_LUNG.nodes.start]
    # 10,000 of 20,000 pixels are found: 2 · 10,000 / (10,000 + 20,000), less the single pixel's nothing
    assert dice((RIGHT_LUNG, LEFT_LUNG), found, landmarks()) == pytest.approx(2 / 3, abs=1e-4)


def test_an_organ_without_annotation_has_no_dice():
    true = landmarks()
    true[HEART.nodes] = np.nan
    assert math.isnan(dice((HEART,), landmarks(), true))
    assert dice((RIGHT_LUNG,), landmarks(), true) == 1


def test_scores_by_hand():
    true = np.stack([landmarks(), landmarks()])
    true[1, HEART.nodes] = np.nan
    mean = true.copy()
    mean[0, :, 0] += 3
    mean[0, :, 1] += 4
    mean[1, HEART.nodes] = 7
    sigma = np.ones((2, 120), np.float32)
    sigma[0] = 2
    found = score(mean, sigma, true)
    # 120 nodes off by (3, 4), 94 exact
    assert found.images == 2
    assert found.mse_px2 == pytest.approx(120 * (9 + 16) / (2 * 214))
    assert found.error_px == pytest.approx(120 * 5 / 214)
    assert found.pearson == pytest.approx(1)
    assert found.sigma_px == 1.5
    assert found.dice_heart == dice((HEART,), mean[0], true[0])
    assert found.dice_lungs == pytest.approx((dice((RIGHT_LUNG, LEFT_LUNG), mean[0], true[0]) + 1) / 2)


def test_scores_of_each_data_set_and_of_all():
    true = np.stack([landmarks(), landmarks(), landmarks()])
    mean = np.stack([landmarks(10), landmarks(), landmarks()])
    found = score_datasets(mean, np.ones((3, 120)), true, ["a", "b", "b"])
    assert list(found) == ["all", "a", "b"]
    assert [one.images for one in found.values()] == [3, 1, 2]
    assert [one.mse_px2 for one in found.values()] == pytest.approx([100 / 6, 50, 0])


def test_a_prediction_that_is_no_number_is_not_left_out():
    mean = landmarks()[None].copy()
    mean[0, 0] = np.nan
    found = score(mean, np.ones((1, 120)), landmarks()[None])
    assert math.isnan(found.mse_px2)
    assert math.isnan(found.error_px)
    assert found.dice_heart == 1


def test_no_image_has_no_scores():
    found = score(np.empty((0, 120, 2)), np.empty((0, 120)), np.empty((0, 120, 2)))
    assert found.images == 0
    assert math.isnan(found.mse_px2)
    assert math.isnan(found.sigma_px)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HybridGNet(ModelConfig(64, latents=8)).train()


def test_predictions_are_of_the_image_alone_and_leave_the_model_in_its_mode(model):
    images = torch.randint(0, 256, (18, 1, 64, 64), dtype=torch.uint8)
    mean, sigma = predict(model, images, n_samples=5)
    alone, alone_sigma = predict(model, images[17:], n_samples=5)
    assert mean.shape == (18, 120, 2)
    assert model.training
    np.testing.assert_allclose(mean[17:], alone, atol=1e-2)
    np.testing.assert_allclose(sigma[17:], alone_sigma, atol=1e-2)
    assert not np.allclose(mean[0], mean[1], atol=1)


def test_evaluation_is_the_score_of_the_predictions(model):
    images = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    true = np.repeat(load_shape_model().mean_xy[None].astype(np.float32), 3, axis=0)
    mean_xy, std_xy = predict(model, images, n_samples=4)
    assert evaluate(model, images, true, n_samples=4) == score(mean_xy, std_xy.mean(axis=-1), true)
