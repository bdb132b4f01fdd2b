"""Statistics: values worked out by hand, laws, and the same numbers as scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cxu import stats

NAN = float("nan")
whole = st.integers(-50, 50).map(float)
pairs = st.lists(st.tuples(whole, whole), min_size=3, max_size=40)


def columns(points):
    return np.array(points, float).reshape(-1, 2).T


# --- correlations ----------------------------------------------------------------------------------------------------


def test_pearson_by_hand():
    # deviations -1, 0, 1 and -4/3, -1/3, 5/3: covariance 3, variances 2 and 14/3
    assert stats.pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / math.sqrt(2 * 14 / 3))


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 · 2 / (4 · 15)
    assert stats.spearman([10, 20, 30, 40], [1, 9, 2, 50]) == pytest.approx(0.8)


@pytest.mark.parametrize("measure", [stats.pearson, stats.spearman])
@pytest.mark.parametrize("values", [([], []), ([1.0], [2.0]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5])])
def test_correlations_that_cannot_be_told_are_nan(measure, values):
    assert math.isnan(measure(*values))


@given(pairs)
def test_correlations_are_symmetric_and_change_sign(points):
    x, y = columns(points)
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    for measure in (stats.pearson, stats.spearman):
        assert measure(x, y) == pytest.approx(measure(y, x))
        assert measure(x, -y) == pytest.approx(-measure(x, y))
        assert measure(3 * x + 1, y) == pytest.approx(measure(x, y))


@settings(max_examples=40)
@given(pairs)
def test_correlations_are_those_of_scipy(points):
    scipy_stats = pytest.importorskip("scipy.stats")
    x, y = columns(points)
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    assert stats.pearson(x, y) == pytest.approx(scipy_stats.pearsonr(x, y)[0], abs=1e-9)
    assert stats.spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y)[0], abs=1e-9)
    assert stats.ranks(x).tolist() == scipy_stats.rankdata(x).tolist()


def test_ranks_of_ties_and_of_nothing():
    assert stats.ranks([5, 5, 5, 1]).tolist() == [3, 3, 3, 1]
    assert stats.ranks([]).tolist() == []


def test_slope_by_hand():
    # deviations of x -1.5 -.5 .5 1.5, of y -3 -1 0 4: 11 / 5
    assert stats.slope([0, 1, 2, 3], [0, 2, 3, 7]) == pytest.approx(2.2)
    assert math.isnan(stats.slope([2, 2], [1, 5]))
    assert math.isnan(stats.slope([2], [1]))


# --- the area under the curve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "area"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 1], [1, 1], 0.5),
        # of the six pairs 1<2, 1<4, 3<4 and 2<4 are right, 2 and 2 tie, 3 and 2 are wrong
        ([1, 2, 3], [2, 4], 4.5 / 6),
    ],
)
def test_roc_auc_by_hand(inside, outside, area):
    assert stats.roc_auc(inside, outside) == pytest.approx(area)


@pytest.mark.parametrize("scores", [([], [1.0]), ([1.0], []), ([], [])])
def test_roc_auc_of_an_empty_class_is_nan(scores):
    assert math.isnan(stats.roc_auc(*scores))


scores = st.lists(whole, min_size=1, max_size=30)


@given(scores, scores)
def test_roc_auc_of_exchanged_classes_is_the_complement(inside, outside):
    assert stats.roc_auc(inside, outside) == pytest.approx(1 - stats.roc_auc(outside, inside))


@given(scores, scores)
def test_roc_auc_depends_on_order_alone(inside, outside):
    changed = [np.exp(np.array(values) / 20) for values in (inside, outside)]
    assert stats.roc_auc(*changed) == pytest.approx(stats.roc_auc(inside, outside))


@given(scores, scores)
def test_roc_auc_is_the_statistic_of_mann_and_whitney(inside, outside):
    scipy_stats = pytest.importorskip("scipy.stats")
    statistic = scipy_stats.mannwhitneyu(outside, inside).statistic
    assert stats.roc_auc(inside, outside) == pytest.approx(statistic / (len(inside) * len(outside)))


# --- intervals -------------------------------------------------------------------------------------------------------


def test_bootstrap_of_a_constant_has_no_width():
    values = np.full(7, 3.0)
    assert stats.bootstrap(lambda of: values[of].mean(), 7) == (3, 3, 3)


def test_bootstrap_is_repeated_by_its_seed():
    values = np.arange(20.0)
    first, again, other = (stats.bootstrap(lambda of: values[of].mean(), 20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.low < first.value == 9.5 < first.high


def test_bootstrap_of_a_mean_has_the_width_that_theory_says():
    values = np.random.default_rng(0).normal(0, 2, 400)
    found = stats.bootstrap(lambda of: values[of].mean(), 400, n_boot=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_bootstrap_of_none_and_of_one_image():
    assert all(map(math.isnan, stats.bootstrap(lambda of: 1 / 0, 0)))
    value, low, high = stats.bootstrap(lambda of: 5.0, 1)
    assert value == 5
    assert math.isnan(low)
    assert math.isnan(high)


def test_bootstrap_leaves_out_resamples_without_a_value():
    found = stats.bootstrap(lambda of: NAN if len(set(of.tolist())) < 3 else 2.0, 3)
    assert found == (2, 2, 2)


# --- curves ----------------------------------------------------------------------------------------------------------


def test_binned_by_hand():
    curve = stats.binned([4, 1, 2, 3], [40, 10, 20, 60], n_bins=2)
    assert curve == [
        {"n": 2, "x": 1.5, "y_mean": 15, "y_q25": 12.5, "y_median": 15, "y_q75": 17.5},
        {"n": 2, "x": 3.5, "y_mean": 50, "y_q25": 45, "y_median": 50, "y_q75": 55},
    ]


def test_binned_of_nothing_and_of_one_value():
    assert stats.binned([], []) == []
    assert [one["n"] for one in stats.binned([2, 2, 2], [1, 2, 3])] == [3]


@given(pairs, st.integers(1, 12))
def test_bins_hold_every_point_once_in_order(points, n_bins):
    x, y = columns(points)
    curve = stats.binned(x, y, n_bins)
    assert 1 <= len(curve) <= n_bins
    assert sum(one["n"] for one in curve) == len(x)
    assert sum(one["n"] * one["y_mean"] for one in curve) == pytest.approx(y.sum(), abs=1e-6)
    assert all(first["x"] < second["x"] for first, second in itertools.pairwise(curve))
