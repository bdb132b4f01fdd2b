"""Quantiles by counting: the numbers of numpy, bit for bit, whatever the values and however they are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu.quantiles import (
    N_RANGES,
    count_by_range,
    exact_quantiles,
    quantiles_within,
    ranges_of_quantiles,
    within_ranges,
)

SHARES = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]
floats = st.floats(-(2.0**100), 2.0**100, width=32)
# many that are equal or share their upper half, as hundredths do
alike = st.sampled_from([0.0, -0.0, 1.0, 1.0001, 3.14, 3.15, -2.5, 1e-40, -1e-40])
values = hnp.arrays(np.float32, st.integers(1, 60), elements=floats | alike)


@given(values, st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(1, 4))
def test_quantiles_are_those_of_numpy(values, shares, n_blocks):
    found = exact_quantiles(np.array_split(values, n_blocks), shares)
    assert found == np.quantile(values, shares).tolist()


@pytest.mark.parametrize("decimals", [0, 2, 7])
def test_quantiles_of_many_values_are_those_of_numpy(decimals):
    sigma = np.random.default_rng(3).gamma(4, 2, (500, 120)).round(decimals).astype(np.float32)
    assert (
        exact_quantiles([sigma[:100], sigma[100:, ::2], sigma[100:, 1::2]], SHARES)
        == np.quantile(sigma, SHARES).tolist()
    )


def test_only_the_ranges_around_a_quantile_are_kept():
    sigma = np.random.default_rng(3).gamma(4, 2, 100_000).astype(np.float32)
    wanted = ranges_of_quantiles(count_by_range(sigma), [0.5])
    assert wanted.sum() <= 2
    assert 0 < within_ranges(sigma, wanted).size < 0.02 * sigma.size


def test_more_ranges_than_are_needed_do_no_harm():
    sigma = np.random.default_rng(3).gamma(4, 2, 1000).astype(np.float32)
    counts, wanted = count_by_range(sigma), np.zeros(N_RANGES, bool)
    for shares in ([0.5], [0.1, 0.9], [0.97]):
        wanted |= ranges_of_quantiles(counts, shares)
    found = [within_ranges(part, wanted) for part in (sigma[600:], sigma[:600])]
    assert quantiles_within(found, wanted, counts, [0.5]) == np.quantile(sigma, [0.5]).tolist()


def test_nothing_has_no_quantiles():
    empty = np.empty((0, 120), np.float32)
    for blocks in ([], [empty]):
        assert exact_quantiles(blocks, SHARES) == []
    assert not ranges_of_quantiles(count_by_range(empty), SHARES).any()


def test_the_values_stay_as_they_are():
    sigma = np.array([[3, 1], [2, 0]], np.float32)
    sigma.flags.writeable = False
    assert exact_quantiles([sigma[:, :1], sigma[:, 1:]], [0.5]) == [1.5]
