"""The spread of node uncertainties, counted and shown again in pieces: what numpy gives of all of them."""

import numpy as np
import pytest

from cxu import engine
from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGAN_NAMES
from cxu.flow import SigmaPool, SigmaSpread, by_organ, count_sigma, named_by_organ, sigma_within

SHARES = (0.05, 0.5, 0.95)


@pytest.fixture
def sigma():
    rng = np.random.default_rng(5)
    return (rng.gamma(4, 1.2, (300, N_NODES)) * np.repeat([1.0, 2.0, 5.0], [44, 50, 26])).round(2).astype(np.float32)


def spread_of(parts, asked):
    """Return the spread of uncertainties that come in parts."""
    spread = SigmaSpread(asked)
    for part in parts:
        spread.count(count_sigma(part))
    for part in reversed(parts):
        spread.keep(sigma_within(part, spread.wanted))
    return spread


def test_quantiles_of_groups_of_organs(sigma):
    asked = [(("heart",), (0.8,)), (("right_lung", "heart"), (0.1, 0.9)), (ORGAN_NAMES, SHARES)]
    spread = spread_of([sigma[:7], sigma[7:200], sigma[200:]], asked)
    right_and_heart = np.concatenate([sigma[:, :44], sigma[:, HEART.nodes]], axis=1)
    expected = [
        np.quantile(sigma[:, HEART.nodes], [0.8]).tolist(),
        np.quantile(right_and_heart, [0.1, 0.9]).tolist(),
        np.quantile(sigma, SHARES).tolist(),
    ]
    assert spread.quantiles() == expected
    with engine.Threads(3) as pool:
        assert spread.quantiles(pool) == expected


def test_little_is_kept_of_many_values(sigma):
    spread = SigmaSpread(by_organ(SHARES))
    spread.count(count_sigma(sigma))
    assert sum(values.size for values in sigma_within(sigma, spread.wanted)) < 0.1 * sigma.size


def test_no_rows_have_no_quantiles():
    assert spread_of([np.empty((0, N_NODES), np.float32)], by_organ(SHARES)).quantiles() == [[]] * 4


def test_the_pool_gives_the_same_by_name(sigma):
    pool = SigmaPool(400)
    pool.add(("mimic", "m"), sigma[:100])
    pool.add(("vindr", "m"), sigma[100:])
    found = pool.drain_quantiles(SHARES)
    assert list(found) == [*ORGAN_NAMES, "all"]
    assert found["left_lung"] == [round(float(value), 4) for value in np.quantile(sigma[:, LEFT_LUNG.nodes], SHARES)]
    assert found == named_by_organ(spread_of([sigma], by_organ(SHARES)).quantiles())
