import math

import pytest
import torch

from cxu.model.hybridgnet import Decoding, Encoding
from cxu.training.losses import coarse_targets, energy_score, kl_divergence, losses, squared_error

NAN = float("nan")


def test_squared_error_by_hand():
    targets = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [NAN, NAN]]])
    points = torch.tensor([[[[1.0, 0.0], [1.0, 3.0]]], [[[0.0, 0.0], [9.0, 9.0]]]])
    # 1 + 0 + 0 + 4 + 0 + 0 over the 6 annotated coordinates
    assert squared_error(points, targets, "samples").item() == pytest.approx(5 / 6)


def test_squared_error_of_samples_or_of_their_mean():
    targets = torch.zeros(1, 1, 2)
    points = torch.tensor([[[[1.0, 0.0]], [[-1.0, 2.0]]]])
    assert squared_error(points, targets, "samples").item() == pytest.approx((1 + 0 + 1 + 4) / 4)
    assert squared_error(points, targets, "mean").item() == pytest.approx((0 + 1) / 2)


def test_nodes_without_annotation_have_no_gradient():
    targets = torch.rand(2, 4, 2)
    targets[0, 1:3] = NAN
    points = torch.rand(2, 3, 4, 2, requires_grad=True)
    (squared_error(points, targets, "samples") + energy_score(points, targets)).backward()
    assert torch.isfinite(points.grad).all()
    assert (points.grad[0, :, 1:3] == 0).all()
    assert (points.grad[0, :, 0] != 0).all()


def test_a_batch_without_annotation_costs_nothing():
    targets, points = torch.full((1, 4, 2), NAN), torch.rand(1, 2, 4, 2)
    assert squared_error(points, targets, "samples") == 0
    assert energy_score(points, targets) == 0


def test_coarse_targets_are_means_of_pairs():
    targets = torch.tensor([[[0.0, 2.0], [4.0, 6.0], [1.0, 1.0], [NAN, NAN]]])
    coarse = coarse_targets(targets)
    assert coarse[0, 0].tolist() == [2.0, 4.0]
    assert coarse[0, 1].isnan().all()


def test_kl_by_hand():
    assert kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    # mean 1, variance e²: (1 + e² − 1 − 2) / 2
    assert kl_divergence(torch.ones(2, 3), torch.full((2, 3), 2.0)).item() == pytest.approx((math.e**2 - 2) / 2)


def test_energy_score_by_hand():
    targets = torch.tensor([[[0.0, 0.0]]])
    points = torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]], [[3.0, 1.0]]]])
    to_target = (5 + 1 + math.sqrt(10)) / 3
    between = (math.sqrt(18) + 3 + 3) / 3
    assert energy_score(points, targets).item() == pytest.approx(to_target - between / 2, rel=1e-5)


def test_energy_score_is_least_where_the_spread_is_that_of_the_errors():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(20_000, 1, 2, generator=generator)
    noise = torch.randn(20_000, 8, 1, 2, generator=generator)
    scores = {spread: energy_score(spread * noise, targets).item() for spread in (0.25, 0.6, 1.0, 1.5, 3.0)}
    assert min(scores, key=scores.get) == 1.0


def test_the_loss_has_all_its_parts():
    encoding = Encoding(torch.ones(1, 2), torch.zeros(1, 2), torch.empty(0), torch.empty(0))
    targets = torch.zeros(1, 4, 2)
    decoding = Decoding(torch.full((1, 2, 4, 2), 0.1), torch.full((1, 2, 2, 2), 0.2), torch.full((1, 2, 4, 2), 0.3))
    parts = losses(encoding, decoding, targets, mse_on="mean", energy=True)
    assert [round(part.item(), 4) for part in parts] == [0.01, 0.04, 0.09, 0.5, round(math.hypot(0.1, 0.1) - 5e-5, 4)]
    assert parts.total(kl=0.1, energy=2.0).item() == pytest.approx(0.14 + 0.05 + 2 * parts.energy.item())


def test_the_variant_without_skip_connections_states_no_other_positions():
    encoding = Encoding(torch.zeros(1, 2), torch.zeros(1, 2), torch.empty(0), torch.empty(0))
    parts = losses(
        encoding, Decoding(torch.ones(1, 1, 4, 2), None, None), torch.zeros(1, 4, 2), mse_on="mean", energy=False
    )
    assert [part.item() for part in parts] == [1, 0, 0, 0, 0]
