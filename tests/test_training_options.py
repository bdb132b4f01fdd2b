import json

import pytest

from cxu.errors import UsageError
from cxu.training import AugmentOptions, TrainOptions
from cxu.training.options import parse_augmentation, parse_shares


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "either a number of steps or a budget"),
        ({"steps": 1, "budget_minutes": 1}, "either a number of steps or a budget"),
        ({"steps": 0}, "steps = 0; expected above 0"),
        ({"steps": 1, "lr": float("nan")}, "lr = nan"),
        ({"steps": 1, "kl": 0.0}, "kl = 0.0"),
        ({"steps": 1, "ema": 1.0}, "ema = 1.0"),
        ({"steps": 1, "size": 100}, "input size 100; expected a multiple of 32"),
        ({"steps": 1, "size": 32}, "input size 32"),
        ({"steps": 1, "energy": 0.1}, "at least 2 training samples"),
        ({"steps": 1, "across": -0.1}, "across = -0.1; expected 0 or more"),
        ({"steps": 1, "refine": True, "variant": "no-skip"}, "refinement .* needs the variant igsc"),
        ({"steps": 1, "corrupt_teaches": "none"}, "corrupt_teaches = 'none'; expected all or uncertainty"),
        ({"steps": 1, "corrupt_teaches": "uncertainty", "spread": True}, "only where there are some"),
        ({"steps": 1, "shares": {"JSRT": 0.7, "Shenzhen": 0.7}}, "add up to 1 at most"),
        ({"steps": 1, "shares": {"JSRT": -0.1}}, "numbers from 0"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        TrainOptions(**wrong)


def test_recipe_is_json_and_leaves_out_what_does_not_change_the_result():
    options = TrainOptions(steps=3, shares={"JSRT": 0.5})
    recipe = json.loads(json.dumps(options.recipe()))
    assert recipe["shares"] == {"JSRT": 0.5}
    assert recipe["augment"]["noise"] == AugmentOptions().noise
    assert recipe == TrainOptions(steps=3, shares={"JSRT": 0.5}, device="cpu", report_test=True).recipe()
    assert recipe != TrainOptions(steps=3, shares={"JSRT": 0.5}, seed=1).recipe()


@pytest.mark.parametrize("setting", ["noise", "noise=much", "nois=0.1", "noise=-1", "squares=1.5", "noise=nan"])
def test_wrong_augmentation_is_refused(setting):
    with pytest.raises(UsageError, match="augmentation"):
        parse_augmentation([setting])


def test_augmentation_counts_stay_whole_numbers():
    assert parse_augmentation(["corrupt_squares=2"]).corrupt_squares == 2
    assert isinstance(parse_augmentation(["corrupt_squares=2"]).corrupt_squares, int)


@pytest.mark.parametrize("setting", ["JSRT", "JSRT=half"])
def test_wrong_shares_are_refused(setting):
    with pytest.raises(UsageError, match=r"expected NAME=NUMBER, such as JSRT=0\.5"):
        parse_shares([setting])
