"""Landmarks and uncertainty from samples."""

import math

import numpy as np
import pytest
import torch

from cxu.model.graph import error_factor
from cxu.model.hybridgnet import Encoding, HybridGNet, ModelConfig
from cxu.model.sampling import draw_errors, draw_latents, full_float32, image_seed, sample_landmarks


@pytest.fixture(scope="module", params=[{}, {"refine": True, "spread": True}], ids=["plain", "refined"])
def model(request):
    torch.manual_seed(0)
    return HybridGNet(ModelConfig(64, **request.param)).eval()


@pytest.fixture(scope="module")
def spreading():
    """A network that states another spread at every node, and decodes that are all the same."""
    torch.manual_seed(0)
    model = HybridGNet(ModelConfig(64, spread=True)).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.spread.exit.weight, std=0.3)
        torch.nn.init.normal_(model.spread.node)
        model.encoder.fc_logvar.weight.zero_()
        model.encoder.fc_logvar.bias.fill_(-60)
    return model


def images_and_seeds(n):
    images = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    return images, [image_seed(0, image.numpy()) for image in images]


@pytest.mark.parametrize("parts", [(1, 7), (3, 5), (8,)])
def test_batches_of_any_size_give_the_same_numbers(model, parts):
    images, seeds = images_and_seeds(8)
    whole = sample_landmarks(model, images, seeds)
    first = 0
    for size in parts:
        rows = slice(first, first + size)
        part = sample_landmarks(model, images[rows], seeds[rows])
        torch.testing.assert_close(part.mean, whole.mean[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std, whole.std[rows], atol=1e-5, rtol=0)
        first += size


def test_a_repeat_is_identical_and_another_seed_is_not(model):
    images, seeds = images_and_seeds(2)
    once, again = (sample_landmarks(model, images, seeds) for _ in range(2))
    assert torch.equal(once.mean, again.mean)
    assert torch.equal(once.std, again.std)
    other = sample_landmarks(model, images, [seed + 1 for seed in seeds])
    assert not torch.equal(once.std, other.std)
    assert torch.equal(once.latent_sigma, other.latent_sigma)


def test_mean_and_std_are_those_of_the_kept_samples(model):
    images, seeds = images_and_seeds(2)
    found = sample_landmarks(model, images, seeds, n_samples=7, keep=True)
    assert found.points.shape == (2, 7, 120, 2)
    np.testing.assert_allclose(found.mean, found.points.numpy().mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.std, found.points.numpy().std(axis=1, ddof=0), atol=1e-6)
    assert sample_landmarks(model, images, seeds, n_samples=7).points is None


def test_one_sample_has_no_spread(model):
    images, seeds = images_and_seeds(1)
    assert sample_landmarks(model, images, seeds, n_samples=1).std.abs().max() == 0


@pytest.mark.parametrize("n_samples", [2, 3, 50])
def test_samples_are_as_far_apart_as_the_spread_says(spreading, n_samples):
    images, seeds = images_and_seeds(2)
    with torch.inference_mode():
        stated = spreading(images).spread[:, 0]
    assert stated.max() > 1.5 * stated.min()
    assert not torch.equal(stated[0], stated[1])
    found = sample_landmarks(spreading, images, seeds, n_samples=n_samples)
    # the decodes are all the same here, so nothing else widens the samples
    torch.testing.assert_close(found.std, stated, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("n_samples", [3, 7, 50])
def test_what_widens_the_samples_leaves_their_mean_and_adds_its_variance(n_samples):
    points, spread = 0.02 * torch.randn(2, n_samples, 120, 2), 0.01 + 0.05 * torch.rand(2, 120, 2)
    errors = draw_errors(points, spread, error_factor(), [1, 2])
    torch.testing.assert_close(errors.mean(dim=1), torch.zeros(2, 120, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(errors.std(dim=1, correction=0), spread)
    together = (points.var(dim=1, correction=0) + spread**2).sqrt()
    torch.testing.assert_close((points + errors).std(dim=1, correction=0), together, atol=0, rtol=1e-3)
    assert not torch.equal(errors[0] / spread[0], errors[1] / spread[1])


def test_a_factor_without_size_draws_nothing_and_no_nan():
    errors = draw_errors(torch.rand(1, 5, 120, 2), torch.ones(1, 120, 2), torch.zeros(240, 240), [1])
    assert (errors == 0).all()


def test_neighbours_go_together_and_x_and_y_do_not():
    points = torch.randn(1, 20_000, 1, 2).expand(-1, -1, 120, -1)
    errors = draw_errors(points, torch.full((1, 120, 2), 0.01), error_factor(), [5])[0]
    x, y = np.corrcoef(errors[:, :, 0].T), np.corrcoef(errors[:, :, 1].T)
    for found in (x, y):
        assert found[3, 4] == pytest.approx(math.exp(-1 / 18), abs=0.01)
        assert found[44, 93] == pytest.approx(math.exp(-1 / 18), abs=0.01)
        assert abs(found[43, 44]) < 0.04
    between = np.corrcoef(errors[:, :, 0].T, errors[:, :, 1].T)[:120, 120:]
    assert np.abs(between).max() < 0.04


def test_a_spread_draws_the_same_latents_and_the_same_decodes():
    torch.manual_seed(0)
    plain = HybridGNet(ModelConfig(64)).eval()
    widened = HybridGNet(ModelConfig(64, spread=True)).eval()
    widened.load_state_dict(plain.state_dict(), strict=False)
    images, seeds = images_and_seeds(2)
    without, having = (sample_landmarks(model, images, seeds, n_samples=9) for model in (plain, widened))
    assert torch.equal(without.mu, having.mu)
    torch.testing.assert_close(having.mean, without.mean, atol=1e-6, rtol=0)
    assert not torch.equal(having.std, without.std)


def test_latents_have_the_mean_and_spread_of_the_encoding():
    encoding = Encoding(
        torch.tensor([[2.0, -1.0]]), torch.log(torch.tensor([[4.0, 0.25]])), torch.empty(0), torch.empty(0)
    )
    latents = draw_latents(encoding, [5], 20_000)[0]
    np.testing.assert_allclose(latents.mean(0), [2, -1], atol=0.05)
    np.testing.assert_allclose(latents.std(0), [2, 0.5], rtol=0.03)


@pytest.mark.parametrize(
    "other",
    [np.zeros((4, 3), np.uint8), np.zeros((3, 4), np.uint16), np.ones((3, 4), np.uint8)],
    ids=["shape", "dtype", "values"],
)
def test_seed_depends_on_pixels_shape_and_type(other):
    pixels = np.zeros((3, 4), np.uint8)
    assert image_seed(0, pixels) != image_seed(0, other)
    assert image_seed(0, pixels) != image_seed(1, pixels)
    assert image_seed(0, pixels) == image_seed(0, np.zeros((3, 8), np.uint8)[:, ::2])
    assert 0 <= image_seed(0, pixels) < 2**63


def test_precision_reaches_the_encoder(model):
    images, seeds = images_and_seeds(2)
    exact, rounded = (sample_landmarks(model, images, seeds, precision=name) for name in ("float32", "bf16"))
    assert 0 < (exact.mean - rounded.mean).abs().max() < 0.02
    assert rounded.mean.dtype == rounded.latent_sigma.dtype == torch.float32


def tf32_settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("products", ["highest", "high"])
def test_float32_is_float32_inside_and_as_before_outside(products):
    torch.set_float32_matmul_precision(products)
    try:
        before = tf32_settings()
        with full_float32():
            if hasattr(torch.backends.cudnn, "conv"):
                inside = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
                assert inside == ("ieee", "ieee")
            else:
                assert tf32_settings() == (False, False)
        assert tf32_settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_come_back_after_an_error():
    before = tf32_settings()
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert tf32_settings() == before
