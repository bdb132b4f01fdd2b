import math

import pytest
import torch

from cxu.model.hybridgnet import Decoding, Encoding
from cxu.training import TrainOptions
from cxu.training.losses import (
    coarse_targets,
    energy_score,
    kl_divergence,
    losses,
    negative_log_likelihood,
    squared_error,
    squared_error_across,
)
from cxu.training.options import AugmentOptions

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


RINGS = (44, 50, 26)


def circles(radius=0.1):
    """Three circles as targets [1, 120, 2], and the directions out of them and along them."""
    angles = torch.cat([torch.arange(length) * 2 * math.pi / length for length in RINGS])
    outwards = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    along = torch.stack([-angles.sin(), angles.cos()], dim=-1)[None]
    return 0.5 + radius * outwards, outwards, along


def test_errors_across_cost_and_errors_along_do_not():
    targets, outwards, along = circles()
    assert squared_error_across(targets + 0.03 * along, targets).item() == pytest.approx(0, abs=1e-12)
    for shift in (0.03, -0.03):
        assert squared_error_across(targets + shift * outwards, targets).item() == pytest.approx(0.03**2, rel=1e-4)
    slanted = targets + 0.03 * outwards + 0.5 * along
    assert squared_error_across(slanted, targets).item() == pytest.approx(0.03**2, rel=1e-4)


def test_the_tangent_is_that_of_the_neighbours_in_the_ring():
    # each ring a line there and back along x: the tangent is x, but at the two turns, whose neighbours are the same
    targets = torch.zeros(1, 120, 2)
    first = 0
    for length in RINGS:
        half = length // 2
        steps = torch.cat([torch.arange(half + 1), torch.arange(half - 1, 0, -1)])
        targets[0, first : first + length, 0] = steps / 100
        first += length
    turns = 2 * len(RINGS)
    shifted = targets + torch.tensor([0.5, 0.1])
    assert squared_error_across(shifted, targets).item() == pytest.approx(0.1**2 * (120 - turns) / 120, rel=1e-5)


def test_a_node_without_annotation_takes_its_neighbours_along():
    targets, outwards, _ = circles()
    targets[0, 43] = NAN
    points = torch.full((1, 120, 2), 0.5).requires_grad_()
    loss = squared_error_across(points, targets)
    loss.backward()
    assert points.grad.isfinite().all()
    without = [node for node in range(120) if not points.grad[0, node].any()]
    assert without == [0, 42, 43]
    # all in the centre: each of the others is a radius away
    assert loss.item() == pytest.approx(0.1**2, rel=1e-4)
    assert (points.grad * outwards).sum(dim=-1)[0, 1:42].lt(0).all()


def test_across_without_annotation_costs_nothing():
    points = torch.rand(1, 120, 2, requires_grad=True)
    loss = squared_error_across(points, torch.full((1, 120, 2), NAN))
    loss.backward()
    assert loss == 0
    assert (points.grad == 0).all()


def test_likelihood_by_hand():
    targets = torch.tensor([[[0.0, 0.0], [1.0, NAN]]])
    points = torch.tensor([[[[1.0, 0.0], [1.0, 7.0]], [[2.0, 0.0], [4.0, 7.0]]]])
    spread = torch.tensor([[[[1.0, 1.0], [2.0, 9.0]], [[0.5, 1.0], [3.0, 9.0]]]])
    errors = (1 + 0 + 0 + 16 + 0 + 1) / 2
    logarithms = math.log(2) + math.log(0.5) + math.log(3)
    assert negative_log_likelihood(points, spread, targets).item() == pytest.approx((errors + logarithms) / 6)


def test_likelihood_is_best_where_the_spread_is_the_error():
    targets = torch.zeros(1, 3, 2)
    points = torch.tensor([[[[0.01, -0.02], [0.03, 0.04], [-0.05, 0.06]]]])
    spread = points.abs().requires_grad_()
    best = negative_log_likelihood(points, spread, targets)
    best.backward()
    assert spread.grad.abs().max() < 1e-4
    for factor in (0.8, 1.25):
        assert negative_log_likelihood(points, factor * spread, targets) > best


def test_likelihood_moves_the_spread_and_never_the_points():
    targets = torch.zeros(1, 3, 2)
    targets[0, 1] = NAN
    points, spread = torch.ones(1, 2, 3, 2, requires_grad=True), torch.full((1, 2, 3, 2), 0.5, requires_grad=True)
    negative_log_likelihood(points, spread, targets).backward()
    assert points.grad is None
    assert spread.grad.isfinite().all()
    assert (spread.grad[:, :, 1] == 0).all()
    assert (spread.grad[:, :, ::2] < 0).all()


def options(**changes):
    return TrainOptions(**{"steps": 1, **changes})


def test_the_loss_has_all_its_parts():
    encoding = Encoding(torch.ones(1, 2), torch.zeros(1, 2), torch.empty(0), torch.empty(0))
    targets, outwards, _ = circles()
    positions = torch.stack([targets + 0.1 * outwards] * 2, dim=1)
    decoding = Decoding(
        positions,
        coarse_targets(targets)[:, None] + 0.2,
        targets[:, None] + 0.3,
        (targets[:, None] + 0.4, targets[:, None] + 0.5),
        torch.full_like(positions, 0.1),
    )
    chosen = options(train_samples=2, energy=2.0, across=3.0, spread=True)
    parts = losses(encoding, decoding, targets, torch.zeros(1, dtype=torch.bool), chosen)
    found = {name: round(part.item(), 4) for name, part in parts._asdict().items()}
    assert found == {
        "points": 0.005,  # 0.1² over x and y
        "drafts": 0.41,
        "pos1": 0.04,
        "pos2": 0.09,
        "across": 0.01,
        "kl": 0.5,
        "energy": 0.1,
        # errors of 0.1 · cos and 0.1 · sin: ½ · ½ + ln 0.1
        "spread": round(0.25 + math.log(0.1), 4),
    }
    expected = 0.005 + 0.41 + 0.04 + 0.09 + 0.1 * 0.5 + 2 * 0.1 + 3 * 0.01 + 0.25 + math.log(0.1)
    assert parts.total(chosen, kl=0.1).item() == pytest.approx(expected, rel=1e-3)


def test_parts_without_a_weight_are_zero():
    encoding = Encoding(torch.zeros(1, 2), torch.zeros(1, 2), torch.empty(0), torch.empty(0))
    decoding, whole = Decoding(torch.ones(1, 1, 4, 2), None, None), torch.zeros(1, dtype=torch.bool)
    parts = losses(encoding, decoding, torch.zeros(1, 4, 2), whole, options())
    assert parts._asdict() == {name: name == "points" for name in parts._fields}


def test_damaged_images_may_teach_the_uncertainty_alone():
    torch.manual_seed(0)
    mu, log_var = torch.rand(2, 3), torch.rand(2, 3)
    points, spread = torch.rand(2, 1, 120, 2), torch.rand(2, 1, 120, 2) + 0.1
    targets, damaged = torch.rand(2, 120, 2), torch.tensor([False, True])
    augmentation = AugmentOptions(corrupt=0.5)

    def parts(rows, teaches):
        encoding = Encoding(mu[rows], log_var[rows], torch.empty(0), torch.empty(0))
        decoding = Decoding(points[rows], None, None, (points[rows],), spread[rows])
        chosen = options(spread=True, across=1.0, augment=augmentation, corrupt_teaches=teaches)
        return losses(encoding, decoding, targets[rows], damaged[rows], chosen)

    both, whole, everything = parts([0, 1], "uncertainty"), parts([0], "uncertainty"), parts([0, 1], "all")
    for name in ("points", "drafts", "across"):
        assert getattr(both, name) == pytest.approx(getattr(whole, name))
        assert getattr(both, name) != pytest.approx(getattr(everything, name))
    assert both.spread == everything.spread
    assert both.kl == everything.kl
