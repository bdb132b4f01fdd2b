import collections

import pytest
import torch

from cxu.errors import UsageError
from cxu.training import TrainOptions
from cxu.training.schedule import draw_batch, ema_decay, image_chances, kl_weight, learning_rate, step_generator

DATASETS = ["JSRT"] * 4 + ["Montgomery"] * 10 + ["Shenzhen"] * 30
HEARTS = [True] * 4 + [False] * 40


def test_step_schedule_decays_twenty_times():
    options = TrainOptions(steps=10, lr=1.0, warmup=0.0, schedule="step")
    assert [learning_rate(options, fraction) for fraction in (0, 0.049, 0.05, 0.1)] == [1, 1, 0.9, pytest.approx(0.81)]


def test_cosine_is_half_way_down_in_the_middle():
    options = TrainOptions(steps=10, lr=1.0, warmup=0.2)
    assert learning_rate(options, 0.6) == pytest.approx(0.5)


def test_without_a_ramp_the_kl_weight_is_the_last_one():
    options = TrainOptions(steps=10, kl=1e-2, kl_ramp=0.0)
    assert kl_weight(options, 0.0) == pytest.approx(1e-2)


def test_average_forgets_the_first_weights():
    options = TrainOptions(steps=10, ema=0.99)
    assert ema_decay(options, 0) == 0.1
    assert ema_decay(options, 10_000) == 0.99


def test_images_with_and_without_a_heart_get_half_each():
    chances = image_chances(DATASETS, HEARTS, {})
    assert chances[:4].sum() == pytest.approx(0.5)
    assert chances.sum() == pytest.approx(1)
    assert len(chances[4:].unique()) == 1


def test_where_all_have_hearts_all_images_are_equal():
    assert len(image_chances(DATASETS, [True] * 44, {}).unique()) == 1


def test_named_data_sets_get_their_share_and_the_others_the_rest():
    chances = image_chances(DATASETS, HEARTS, {"JSRT": 0.4, "Montgomery": 0.2})
    assert [chances[:4].sum(), chances[4:14].sum(), chances[14:].sum()] == pytest.approx([0.4, 0.2, 0.4])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"jsrt": 0.5}, "share of 'jsrt': no training image is of that data set"),
        ({"JSRT": 0.5, "Montgomery": 0.2, "Shenzhen": 0.1}, "name every data set, but add up to 0.8"),
    ],
)
def test_shares_that_do_not_fit_the_data_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        image_chances(DATASETS, HEARTS, shares)


def test_every_batch_is_half_of_images_with_hearts():
    chances = image_chances(DATASETS, HEARTS, {})
    for step in range(50):
        batch = draw_batch(chances, 8, 0, step)
        assert int((batch < 4).sum()) == 4
        assert len(set(batch.tolist())) == 8


def test_batches_follow_the_chances():
    chances = image_chances(DATASETS, HEARTS, {"JSRT": 0.1, "Montgomery": 0.55})
    drawn = collections.Counter(DATASETS[image] for step in range(500) for image in draw_batch(chances, 3, 1, step))
    assert {name: drawn[name] / 1500 for name in drawn} == pytest.approx(
        {"JSRT": 0.1, "Montgomery": 0.55, "Shenzhen": 0.35}, abs=0.03
    )
    images = collections.Counter(int(image) for step in range(500) for image in draw_batch(chances, 3, 1, step))
    assert len(images) == 44


def test_a_batch_larger_than_the_data_repeats_images():
    assert sorted(draw_batch(torch.full((2,), 0.5, dtype=torch.float64), 4, 0, 0).tolist()) == [0, 0, 1, 1]


def test_batches_are_functions_of_seed_and_step():
    chances = image_chances(DATASETS, HEARTS, {})
    batches = [draw_batch(chances, 8, seed, step).tolist() for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert batches[0] == batches[1]
    assert len({tuple(batch) for batch in batches}) == 3


def test_purposes_have_random_numbers_of_their_own():
    cpu = torch.device("cpu")
    drawn = [torch.rand(3, generator=step_generator(0, 7, name, cpu)).tolist() for name in ("batch", "images", "batch")]
    assert drawn[0] == drawn[2] != drawn[1]
