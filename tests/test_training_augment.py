import dataclasses

import pytest
import torch

from cxu.training.augment import add_borders, add_noise, add_squares, augment, blur, corrupt, invert, move
from cxu.training.options import AugmentOptions, parse_augmentation

OFF = parse_augmentation(["off"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(centres_xy, side, radius):
    """Images with a smooth bright disc at each centre [B, 2] px."""
    steps = torch.arange(side, dtype=torch.float32)
    x, y = steps[None, None, :], steps[None, :, None]
    distance = ((x - centres_xy[:, 0, None, None]) ** 2 + (y - centres_xy[:, 1, None, None]) ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1)[:, None]


def centroids(images):
    weights = images[:, 0] / images[:, 0].sum(dim=(1, 2), keepdim=True)
    steps = torch.arange(images.shape[-1], dtype=torch.float32)
    return torch.stack([(weights.sum(dim=1) * steps).sum(dim=1), (weights.sum(dim=2) * steps).sum(dim=1)], dim=1)


def changing(**strengths):
    return dataclasses.replace(OFF, **strengths)


@pytest.mark.parametrize(
    "options",
    [
        changing(rotation=30.0),
        changing(scale=0.3),
        changing(aspect=0.3),
        changing(shift=0.15),
        changing(rotation=20.0, scale=0.2, aspect=0.2, shift=0.1),
    ],
)
def test_points_move_with_their_pixels(options):
    side, count = 128, 32
    centres = 45 + 38 * torch.rand(count, 2, generator=generator(1))
    points = centres[:, None] / side
    moved, moved_points = move(discs(centres, side, 6), points, generator(), options)
    found, stated = centroids(moved), moved_points[:, 0] * side
    assert (found - stated).norm(dim=1).max() < 0.1
    assert (stated - centres).norm(dim=1).max() > 3


def test_each_image_moves_in_its_own_way():
    points = torch.full((4, 1, 2), 0.3)
    _, moved = move(torch.zeros(4, 1, 64, 64), points, generator(), AugmentOptions())
    assert len({tuple(point) for point in moved[:, 0].tolist()}) == 4


def test_nodes_without_annotation_stay_without():
    points = torch.rand(2, 5, 2)
    points[0, 2:] = torch.nan
    _, moved, _ = augment(torch.rand(2, 1, 64, 64), points, generator(), AugmentOptions())
    assert torch.equal(moved.isnan(), points.isnan())


def test_switched_off_nothing_changes():
    images, points = torch.rand(3, 1, 64, 64), torch.rand(3, 120, 2)
    same, same_points, corrupted = augment(images, points, generator(), OFF)
    assert not corrupted.any()
    assert torch.allclose(same, images, atol=1e-5)
    assert torch.allclose(same_points, points, atol=1e-6)


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(AugmentOptions)])
def test_every_strength_changes_the_images_alone(name):
    needed = {
        "fill": {"shift": 0.1},
        "border_width": {"borders": 1.0},
        "borders": {"border_width": 0.1},
        "square_size": {"squares": 1.0},
        "squares": {"square_size": 0.2},
        "corrupt": {"corrupt_noise": 0.3, "corrupt_squares": 2, "corrupt_size": 0.1},
        "corrupt_noise": {"corrupt": 1.0, "corrupt_size": 0.0},
        "corrupt_squares": {"corrupt": 1.0, "corrupt_size": 0.2},
        "corrupt_size": {"corrupt": 1.0, "corrupt_squares": 3},
    }.get(name, {})
    images, points = 0.2 + 0.6 * torch.rand(8, 1, 64, 64, generator=generator(3)), torch.rand(8, 120, 2)
    strength = {"corrupt_squares": 3, "rotation": 8.0}.get(name, 0.2 if name in ("scale", "gamma") else 0.5)
    without, *_ = augment(images, points, generator(), changing(**{**needed, name: 0}))
    changed, *_ = augment(images, points, generator(), changing(**{**needed, name: strength}))
    assert (changed - without).abs().max() > 0.01


def test_a_generator_in_the_same_state_gives_the_same():
    images, points = torch.rand(4, 1, 64, 64), torch.rand(4, 120, 2)
    strong = AugmentOptions(corrupt=0.5)
    first, again = (augment(images, points, generator(5), strong) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], augment(images, points, generator(6), strong)[0])


def test_greys_stay_within_black_and_white():
    images = torch.rand(16, 1, 64, 64)
    changed, _, corrupted = augment(images, torch.rand(16, 120, 2), generator(), AugmentOptions(noise=0.5, corrupt=1.0))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.isfinite(changed).all()
    assert corrupted.all()


def test_the_damaged_images_are_told():
    images, points = torch.full((200, 1, 32, 32), 0.5), torch.rand(200, 120, 2)
    only = changing(corrupt=0.3, corrupt_noise=0.4, corrupt_squares=2, corrupt_size=0.3)
    changed, _, corrupted = augment(images, points, generator(), only)
    assert torch.equal(corrupted, (changed != images).flatten(1).any(dim=1))
    assert corrupted.float().mean() == pytest.approx(0.3, abs=0.08)


def test_inversion_mirrors_the_greys():
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(invert(images, generator(), 1.0), 1 - images)
    assert torch.equal(invert(images, generator(), 0.0), images)


def test_borders_are_black_strips_at_the_edges():
    bordered = add_borders(torch.ones(32, 1, 100, 100), generator(), 1.0, 0.2)
    assert set(bordered.unique().tolist()) == {0.0, 1.0}
    assert (bordered[:, :, 20:80, 20:80] == 1).all()
    # each image lost about a tenth of the side at every edge
    assert bordered.mean() == pytest.approx(0.64, abs=0.06)


def test_a_square_is_a_square_of_one_grey():
    image = torch.full((1, 1, 100, 100), -1.0)
    for seed in range(20):
        drawn = add_squares(image, generator(seed), 0.1)[0, 0]
        rows, columns = (drawn >= 0).any(dim=1).nonzero(), (drawn >= 0).any(dim=0).nonzero()
        assert len(rows)
        assert len(drawn[drawn >= 0].unique()) == 1
        assert max(len(rows), len(columns)) <= 21
        assert int((drawn >= 0).sum()) == len(rows) * len(columns)


def test_squares_can_all_be_black():
    drawn = add_squares(torch.ones(16, 1, 50, 50), generator(), 0.2, black=1.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


def test_only_chosen_images_get_squares():
    drawn = add_squares(torch.full((4, 1, 50, 50), -1.0), generator(), 0.3, chance=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert [(image >= 0).any().item() for image in drawn] == [False, True, False, True]


def test_noise_has_at_most_its_strength():
    noisy = add_noise(torch.full((64, 1, 64, 64), 0.5), generator(), 0.1)
    sigmas = noisy.flatten(1).std(dim=1)
    assert sigmas.max() < 0.105
    assert sigmas.mean() == pytest.approx(0.05, abs=0.01)


def test_blur_keeps_the_grey_and_widens_an_edge():
    edge = torch.zeros(64, 1, 64, 64)
    edge[..., 32:] = 1
    blurred = blur(edge, generator(), 0.05)
    assert torch.allclose(blurred.mean(dim=(1, 2, 3)), torch.tensor(0.5), atol=1e-4)
    widened = ((blurred > 0.01) & (blurred < 0.99)).any(dim=(1, 2, 3))
    assert 0.3 < widened.float().mean() < 0.7
    assert torch.allclose(blurred[~widened], edge[~widened], atol=1e-2)


def test_corruption_is_by_squares_or_by_noise():
    images = torch.full((200, 1, 32, 32), 0.5)
    corrupted, chosen = corrupt(
        images, generator(), changing(corrupt=0.5, corrupt_noise=0.4, corrupt_squares=3, corrupt_size=0.2)
    )
    n_greys = torch.tensor([len(image.unique()) for image in corrupted])
    untouched, squares, noise = (n_greys == 1).sum(), ((n_greys > 1) & (n_greys < 6)).sum(), (n_greys > 20).sum()
    assert untouched + squares + noise == 200
    assert 80 <= untouched <= 120
    assert min(squares, noise) >= 30
    assert torch.equal(chosen, n_greys > 1)
