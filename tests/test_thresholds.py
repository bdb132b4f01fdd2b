"""Limits, the rules of confident and usable, and percentiles."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGAN_NAMES, ORGANS, RIGHT_LUNG
from cxu.contour import longest_gap
from cxu.errors import UsageError
from cxu.thresholds import (
    Limit,
    OrganLimits,
    Thresholds,
    confident_nodes,
    has_usable,
    limits_for,
    parse_max_std,
    parse_organs,
    percentiles_asked,
    resolve_limits,
    usable_organs,
)

PX = {"right_lung": 5.0, "left_lung": 5.0, "heart": 8.0}


def resolved(max_std, sigma, **options):
    """Return the limits in px for one source and model with these node uncertainties [n, 120]."""
    thresholds = Thresholds(max_std=parse_max_std(max_std), **options)
    found = {}
    for percent, organs in percentiles_asked(thresholds):
        nodes = np.concatenate([np.arange(organ.first, organ.stop) for organ in ORGANS if organ.name in organs])
        found[percent, organs] = float(np.quantile(sigma[:, nodes], [percent / 100])[0])
    (limits,) = resolve_limits(thresholds, {("mimic", "m"): found})
    return limits


def flat(limits):
    return {organ: (limit.value, limit.percentile) for organ, limit in limits.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", dict.fromkeys(ORGAN_NAMES, (5.0, False))),
        ("5.", dict.fromkeys(ORGAN_NAMES, (5.0, False))),
        (".5", dict.fromkeys(ORGAN_NAMES, (0.5, False))),
        ("0", dict.fromkeys(ORGAN_NAMES, (0.0, False))),
        (" 5.25 ", dict.fromkeys(ORGAN_NAMES, (5.25, False))),
        ("p80", dict.fromkeys(ORGAN_NAMES, (80.0, True))),
        ("p99.5", dict.fromkeys(ORGAN_NAMES, (99.5, True))),
        ("p100", dict.fromkeys(ORGAN_NAMES, (100.0, True))),
        ("heart=8,lungs=5", {organ: (value, False) for organ, value in PX.items()}),
        ("heart=p80, lungs=5", {"right_lung": (5.0, False), "left_lung": (5.0, False), "heart": (80.0, True)}),
        ("heart=8", {"heart": (8.0, False)}),
        ("right_lung = 3,left_lung=4", {"right_lung": (3.0, False), "left_lung": (4.0, False)}),
    ],
)
def test_max_std_spellings(text, expected):
    assert flat(parse_max_std(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no limit"),
        ("five", "'five' is no limit; expected px such as 5, or a percentile such as p80"),
        ("-1", "'-1' is no limit"),
        ("p101", "'p101' is no limit"),
        ("p", "'p' is no limit"),
        ("nan", "'nan' is no limit"),
        ("1e3", "'1e3' is no limit"),
        ("5,", "'' is no limit"),
        ("=5", "unknown organ ''"),
        (" =5", "unknown organ ''"),
        ("lung=5", "unknown organ 'lung'; expected one of right_lung, left_lung, lungs, heart"),
        ("lungs==5", "unknown organ 'lungs='"),
        ("heart,lungs=5", "'heart' is no limit"),
        ("lungs=5,left_lung=4", "left_lung is limited twice"),
        ("heart=5,5", "heart is limited twice"),
    ],
)
def test_max_std_errors_name_the_value(text, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_max_std(text)


def test_organs_come_in_the_order_of_the_organs():
    assert parse_organs("heart, lungs") == ORGAN_NAMES
    assert parse_organs("heart,heart") == ("heart",)
    for text in ("", "heart,", "Heart"):
        with pytest.raises(UsageError, match="unknown organ"):
            parse_organs(text)


def test_all_is_a_group_on_demand():
    assert parse_organs("all", also_all=True) == ORGAN_NAMES
    assert parse_organs("heart,right_lung", also_all=True) == ("right_lung", "heart")
    with pytest.raises(UsageError, match=r"unknown organ 'all'; expected one of right_lung, left_lung, lungs, heart$"):
        parse_organs("all")
    with pytest.raises(UsageError, match=r"unknown organ 'lung'; expected one of .*, heart, all$"):
        parse_organs("lung", also_all=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("min_confident", 1.5, "min_confident is 1.5; expected a share from 0 to 1"),
        ("min_confident", float("nan"), "min_confident is nan"),
        ("min_rca", -0.1, "min_rca is -0.1"),
        ("min_rca_max", 70.0, "min_rca_max is 70"),
        ("max_gap", -1, "max_gap is -1; expected 0 or more"),
        ("max_mean_std", -1.0, "max_mean_std is -1"),
        ("max_mean_std", float("nan"), "max_mean_std is nan"),
        ("unit", "px", "unit is 'px'; expected model or image"),
        ("organs", (), "no organ decides"),
    ],
)
def test_thresholds_refuse_values_without_a_meaning(field, value, message):
    with pytest.raises(UsageError, match=message):
        Thresholds(**{field: value})


@pytest.mark.parametrize("value", [5.0, 0.1, 4.123456789, 1e-7])
def test_a_limit_as_text_keeps_its_value(value):
    assert float(str(Limit(value)).removesuffix(" px")) == value
    assert float(str(Limit(value, percentile=True)).removeprefix("p")) == value


def test_thresholds_as_json():
    thresholds = Thresholds(max_std=parse_max_std("heart=p80,lungs=5"), min_rca=0.7, organs=("heart",))
    assert thresholds.as_json() == {
        "max_std": {"right_lung": "5 px", "left_lung": "5 px", "heart": "p80"},
        "unit": "model",
        "min_confident": 0.5,
        "max_gap": 4,
        "min_rca": 0.7,
        "min_rca_max": None,
        "max_mean_std": None,
        "max_radius90": {},
        "quality": "review",
        "organs": ["heart"],
        "mix_models": False,
    }


@pytest.mark.parametrize(
    ("thresholds", "compares"),
    [
        (Thresholds(), False),
        (Thresholds(max_std=parse_max_std("5")), True),
        (Thresholds(max_std=parse_max_std("p80")), False),
        (Thresholds(max_std=parse_max_std("heart=p80,lungs=5")), True),
        (Thresholds(max_mean_std=4.0), True),
        (Thresholds(min_rca=0.7), False),
    ],
)
def test_only_limits_in_px_compare_models(thresholds, compares):
    assert thresholds.compares_models is compares


def test_a_node_at_the_limit_is_confident():
    sigma = np.float32([[5.1] * 60 + [np.nextafter(np.float32(5.1), np.float32(9))] * 60])
    confident = confident_nodes(sigma, np.full(N_NODES, 5.1))
    assert confident[0, :60].all()
    assert not confident[0, 60:].any()


def test_an_unknown_uncertainty_is_confident_only_without_limit():
    sigma = np.full((1, N_NODES), np.nan, np.float32)
    limits = OrganLimits("mimic", "m", {"right_lung": 5.0, "left_lung": None}).by_node()
    assert confident_nodes(sigma, limits)[0].tolist() == [False] * 44 + [True] * 76


def test_limits_by_node():
    limits = OrganLimits("mimic", "m", PX).by_node()
    assert limits.tolist() == [5.0] * 94 + [8.0] * 26


def all_but(organ, *nodes):
    """Return one row in which only these nodes of the organ, counted within it, are not confident."""
    confident = np.ones((1, N_NODES), bool)
    confident[0, [organ.first + node for node in nodes]] = False
    return confident


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_half_of_the_nodes_are_enough(organ):
    column = ORGANS.index(organ)
    every_second = all_but(organ, *range(0, organ.n_nodes, 2))
    assert usable_organs(every_second)[0].all()
    one_less = every_second.copy()
    one_less[0, organ.first + 1] = False  # a gap of 3 now, and one node below the half
    assert usable_organs(one_less)[0].tolist() == [index != column for index in range(3)]


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
@pytest.mark.parametrize("start", [7, -2, 0], ids=["inside", "across the end", "at the start"])
def test_a_gap_of_four_is_bridged_and_one_of_five_is_not(organ, start):
    run = [(start + step) % organ.n_nodes for step in range(5)]
    column = ORGANS.index(organ)
    assert usable_organs(all_but(organ, *run[:4]))[0, column]
    assert not usable_organs(all_but(organ, *run))[0, column]
    assert usable_organs(all_but(organ, *run), max_gap=5)[0, column]


def test_a_gap_ends_at_the_organ():
    # the last nodes of the right lung and the first of the left are no neighbours
    confident = np.ones((1, N_NODES), bool)
    confident[0, RIGHT_LUNG.stop - 3 : LEFT_LUNG.first + 3] = False
    assert usable_organs(confident)[0].all()


def test_share_and_gap_that_are_asked_for():
    ten_of_26 = all_but(HEART, *[node for node in range(26) if node % 13 > 4])
    assert usable_organs(ten_of_26, min_confident=10 / 26, max_gap=8)[0, 2]
    assert not usable_organs(ten_of_26, min_confident=11 / 26, max_gap=8)[0, 2]
    assert not usable_organs(all_but(HEART, 3), max_gap=0)[0, 2]
    assert usable_organs(np.zeros((1, N_NODES), bool), min_confident=0, max_gap=50)[0].all()
    assert usable_organs(np.zeros((0, N_NODES), bool)).shape == (0, 3)


def test_only_the_deciding_organs_keep_a_row():
    usable = np.array([[True, True, False], [False, False, True], [False, False, False]])
    assert has_usable(usable).tolist() == [True, True, False]
    assert has_usable(usable, ("heart",)).tolist() == [False, True, False]
    assert has_usable(usable, ("left_lung", "heart")).tolist() == [True, True, False]


sigmas = hnp.arrays(np.float32, (3, N_NODES), elements=st.floats(0, 16, width=16))


@given(sigmas, st.floats(0, 16), st.floats(0, 16))
def test_a_higher_limit_keeps_what_a_lower_one_does(sigma, one, other):
    low, high = (confident_nodes(sigma, np.full(N_NODES, limit)) for limit in sorted((one, other)))
    assert (high | ~low).all()
    assert (usable_organs(high) | ~usable_organs(low)).all()
    assert (has_usable(usable_organs(high)) | ~has_usable(usable_organs(low))).all()


def plain_usable(confident, min_confident, max_gap):
    """Return which organs are usable as the definition reads."""
    rings = [confident[:, organ.nodes] for organ in ORGANS]
    return np.stack([(ring.mean(axis=1) >= min_confident) & (longest_gap(ring) <= max_gap) for ring in rings], axis=1)


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(0, 4), st.just(N_NODES))),
    st.sampled_from([0.0, 0.3, 0.5, 25 / 44, 13 / 26, 1.0]),
    st.integers(0, 60),
)
def test_organs_are_usable_as_the_definition_reads(confident, min_confident, max_gap):
    found = usable_organs(confident, min_confident=min_confident, max_gap=max_gap)
    np.testing.assert_array_equal(found, plain_usable(confident, min_confident, max_gap))


@pytest.mark.parametrize("max_gap", [0, 1, 2, 3, 4, 5, 25, 26, 43, 44, 49, 50])
def test_gaps_of_any_length_anywhere_on_the_ring_are_seen(max_gap):
    confident = []
    for organ in ORGANS:
        for length in {0, max_gap, max_gap + 1, organ.n_nodes}:
            for start in range(organ.n_nodes):
                nodes = np.ones(N_NODES, bool)
                nodes[organ.first + (start + np.arange(min(length, organ.n_nodes))) % organ.n_nodes] = False
                confident.append(nodes)
    confident = np.array(confident)
    found = usable_organs(confident, min_confident=0, max_gap=max_gap)
    np.testing.assert_array_equal(found, plain_usable(confident, 0, max_gap))


@given(sigmas, st.floats(0, 100))
def test_a_percentile_keeps_its_share_of_the_nodes(sigma, percentile):
    limits = resolved(f"p{percentile:.4f}", sigma)
    share = confident_nodes(sigma, limits.by_node()).mean()
    assert share >= float(f"{percentile:.4f}") / 100 - 1 / sigma.size


@pytest.fixture
def sigma():
    return np.random.default_rng(4).gamma(4, 1.2, (40, N_NODES)).astype(np.float32)


def percentile_of(sigma, nodes, percentile):
    return pytest.approx(np.percentile(sigma.astype(np.float64)[:, nodes], percentile), abs=1e-5)


LUNGS = slice(0, 94)


def test_one_percentile_is_taken_over_all_organs_together(sigma):
    limits = resolved("p80", sigma)
    assert limits.px == dict.fromkeys(ORGAN_NAMES, percentile_of(sigma, slice(None), 80))


def test_organs_named_apart_have_percentiles_of_their_own(sigma):
    limits = resolved("heart=p80,lungs=p80", sigma)
    assert limits.px["right_lung"] == limits.px["left_lung"] == percentile_of(sigma, LUNGS, 80)
    assert limits.px["heart"] == percentile_of(sigma, HEART.nodes, 80)


def test_a_percentile_beside_px_and_an_organ_without_limit(sigma):
    limits = resolved("heart=p80,left_lung=5", sigma)
    assert limits.px == {"right_lung": None, "left_lung": 5.0, "heart": percentile_of(sigma, HEART.nodes, 80)}


def test_only_deciding_organs_share_a_percentile(sigma):
    limits = resolved("p80", sigma, organs=("left_lung", "heart"))
    assert limits.px["left_lung"] == limits.px["heart"] == percentile_of(sigma, slice(44, 120), 80)
    assert limits.px["right_lung"] == percentile_of(sigma, RIGHT_LUNG.nodes, 80)


def test_every_source_and_model_has_limits_of_its_own():
    thresholds = Thresholds(max_std=parse_max_std("heart=p50,lungs=4"))
    (asked,) = percentiles_asked(thresholds)
    assert asked == (50.0, ("heart",))
    found = {("mimic", "m"): {asked: 2.5}, ("vindr", "m"): {asked: 3.5}, ("vindr", "n"): {asked: 0.0}}
    limits = resolve_limits(thresholds, found)
    assert [(one.source, one.model_id, one.px["heart"], one.px["left_lung"]) for one in limits] == [
        ("mimic", "m", 2.5, 4.0),
        ("vindr", "m", 3.5, 4.0),
        ("vindr", "n", 0.0, 4.0),
    ]


def test_what_is_asked_twice_is_computed_once():
    both = parse_max_std("heart=p80,lungs=p80")
    assert percentiles_asked(Thresholds(max_std=both)) == [(80.0, ("heart",)), (80.0, ("right_lung", "left_lung"))]
    assert percentiles_asked(Thresholds(max_std=parse_max_std("p80"))) == [(80.0, ORGAN_NAMES)]
    assert percentiles_asked(Thresholds(max_std=parse_max_std("5"))) == []
    assert percentiles_asked(Thresholds()) == []


def test_the_hundredth_percentile_keeps_every_node(sigma):
    limits = resolved("p100", sigma)
    assert confident_nodes(sigma, limits.by_node()).all()


MIMIC, VINDR = OrganLimits("mimic", "m", PX), OrganLimits("vindr", "m", PX)


def test_limits_of_the_same_source_and_model_come_first():
    other = dataclasses.replace(VINDR, px=dict.fromkeys(ORGAN_NAMES, 1.0))
    assert limits_for([other, MIMIC], "mimic", "m").px == PX
    assert limits_for([MIMIC, VINDR], "padchest", "m") == dataclasses.replace(MIMIC, source="padchest")


@pytest.mark.parametrize(
    ("limits", "source", "model"),
    [
        ([], "mimic", "m"),
        ([MIMIC], "mimic", "other"),
        ([MIMIC, dataclasses.replace(VINDR, px=dict.fromkeys(ORGAN_NAMES, 1.0))], "padchest", "m"),
    ],
    ids=["none", "another model", "they differ"],
)
def test_limits_that_do_not_apply_are_refused(limits, source, model):
    with pytest.raises(UsageError, match="filter these rows with their own --max-std"):
        limits_for(limits, source, model)


def test_models_may_be_mixed_where_that_is_asked_for():
    assert limits_for([MIMIC], "mimic", "other", mix_models=True).px == PX


def test_limits_may_be_written_as_python_writes_small_floats():
    assert parse_max_std(str(1e-5))["heart"] == Limit(1e-5)
