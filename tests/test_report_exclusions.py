"""The flow of exclusions: worked out by hand, adding up at every step, and unknown where it is not recorded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxu import table
from cxu.criteria import Criteria
from cxu.report.exclusions import Input, selections_of, stage_json, stage_of, stages_of, unfiltered_stage
from cxu.report.words import condition_words, exclusion_words, listed, node_limits, ordinal, table_words
from cxu.selection import filter_rows
from cxu.thresholds import Thresholds, parse_max_std
from report_helpers import rows_of

STEP = {"reason": "min_rca", "rows_in": 5, "rows_out": 4, "by_source": {"mimic": [3, 2], "vindr": [2, 2]}}
LAST = {"reason": "max_std", "rows_in": 4, "rows_out": 1, "by_source": {"mimic": [2, 0], "vindr": [2, 1]}}
NO_SCALE = {"reason": "scale_unknown", "rows_in": 4, "rows_out": 4, "by_source": {"mimic": [2, 2], "vindr": [2, 2]}}
ASKED = {"thresholds": {"min_rca": 0.7, "max_std": dict.fromkeys(("right_lung", "left_lung", "heart"), "5 px")}}


def test_steps_are_read_as_they_are():
    stage = stage_of("strict", {**ASKED, "flow": [STEP, NO_SCALE, LAST]}, [Input("mimic/model", 3)], None, None)
    assert (stage.total_in, stage.total_out) == (5, 1)
    assert [step.reason for step in stage.steps] == ["min_rca", "max_std"]
    assert [step.excluded for step in stage.steps] == [{"mimic": 1, "vindr": 0}, {"mimic": 2, "vindr": 1}]
    assert [step.said for step in stage.steps] == [
        "mean RCA below 0.7, or unknown",
        "no usable organ (limit: node uncertainty 5 px)",
    ]
    assert stage.steps[1].brief == "no usable organ"


@pytest.mark.parametrize("reason", ["scale_unknown", "radius_scale_unknown", "quality", "nothing asked"])
def test_steps_that_nobody_asked_for_are_told_where_they_left_something_out(reason):
    silent = {"reason": reason, "rows_in": 2, "rows_out": 2, "by_source": {"mimic": [2, 2]}}
    told = {"reason": reason, "rows_in": 2, "rows_out": 1, "by_source": {"mimic": [2, 1]}}
    assert stage_of("a", {**ASKED, "flow": [silent]}, [], None, None).steps == ()
    assert len(stage_of("a", {**ASKED, "flow": [told]}, [], None, None).steps) == 1


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        (None, "no flow table"),
        ([], "no flow table"),
        ([{"reason": "ids"}], "cannot be read"),
        ([{**STEP, "by_source": {"mimic": [3]}}], "cannot be read"),
        ([STEP, {**LAST, "by_source": {"mimic": [3, 0], "vindr": [2, 1]}}], "does not add up"),
        ([{**STEP, "by_source": {"mimic": [3, 4], "vindr": [2, 2]}}], "does not add up"),
    ],
)
def test_a_flow_that_cannot_be_relied_on_is_unknown(flow, why):
    facts = ASKED if flow is None else {**ASKED, "flow": flow}
    stage = stage_of("strict", facts, [Input("a", 3), Input("b", 4)], {"mimic": 2}, 2)
    assert stage.steps is None
    assert why in stage.unknown
    assert (stage.total_in, stage.total_out, stage.rows_out) == (7, 2, {"mimic": 2})
    assert stage_json(stage)["steps"] is None
    assert stage_of("strict", facts, [], None, None).total_in is None


def test_a_table_that_is_no_selection_leaves_nothing_out():
    stage = unfiltered_stage("mimic/model", {}, {"mimic": 3}, {"mimic": 2})
    assert (stage.total_in, stage.total_out, stage.steps, stage.is_filter) == (3, 3, (), False)
    assert (stage.patients_at(0), stage.patients_at(-1)) == (2, 2)


def test_the_chain_comes_in_order():
    first = stage_of("first", {**ASKED, "flow": [STEP]}, [Input("mimic/model", 5)], None, None)
    second = stage_of("second", {**ASKED, "flow": [LAST]}, [Input("first", 4, first)], None, None)
    assert [stage.name for stage in stages_of(second)] == ["first", "second"]
    assert list(selections_of(second)) == [first, second]
    assert stage_json(second)["inputs"][0]["made"]["steps"][0]["excluded"] == 1


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["5", "p50", "heart=4,lungs=p80"]), st.booleans())
def test_rows_in_less_excluded_is_rows_out_at_every_step(seed, max_std, by_rca):
    rng = np.random.default_rng(seed)
    n_rows = int(rng.integers(1, 12))
    rows = rows_of(
        "vindr",
        [f"i{index}" for index in range(n_rows)],
        rng.gamma(3, 2, n_rows),
        rca_mean=rng.uniform(0.4, 1, n_rows),
        quality=list(rng.choice(["ok", "reject"], n_rows)),
    )
    asked = Thresholds(max_std=parse_max_std(max_std), min_rca=0.7 if by_rca else None)
    selected, excluded, _ = filter_rows(rows, Criteria(asked))
    facts = table.decode_metadata(selected.schema)
    stage = stage_of("latest", facts, [], None, None)
    told = stage_json(stage)
    assert (told["rows_in"], told["rows_out"]) == (n_rows, len(selected))
    assert sum(step["excluded"] for step in told["steps"]) == len(excluded)
    before = told["rows_in"]
    for step in told["steps"]:
        assert step["rows_in"] == before
        assert step["rows_in"] - step["excluded"] == step["rows_out"]
        assert [sum(column) for column in zip(*step["by_source"].values(), strict=True)] == [
            step["rows_in"],
            step["rows_out"],
        ]
        before = step["rows_out"]
    assert before == told["rows_out"]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "facts", "said"),
    [
        ("source", {"sources": ["mimic", "mine"]}, "source other than MIMIC-CXR-JPG or mine"),
        ("frame", {"frame": "image"}, "landmarks not in the image frame"),
        ("ids", {}, "not on the list of ids"),
        ("where view=PA,AP", {}, "view not PA or AP, or unknown"),
        ("quality", {"thresholds": {"quality": "ok"}}, "not judged ok by the quality gate"),
        ("quality", {"thresholds": {"quality": "review"}}, "rejected by the quality gate"),
        ("min_rca_max", {"thresholds": {"min_rca_max": 0.65}}, "maximal RCA below 0.65, or unknown"),
        ("max_mean_std", {"thresholds": {"max_mean_std": 8.5}}, "mean node uncertainty above 8.5 px, or unknown"),
        ("min_rca", {}, "mean RCA below an unknown limit, or unknown"),
        ("scale_unknown", {"thresholds": {"unit": "image"}}, "node uncertainty unknown in px of the image"),
        ("radius_scale_unknown", {}, "calibrated radius unknown in px of the 1024 px model frame"),
        ("organ", {"thresholds": {"organs": ["heart"]}}, "no usable heart"),
        ("organ", {"thresholds": {"organs": ["right_lung", "left_lung"]}}, "no usable right lung or left lung"),
        (
            "max_std or max_radius90",
            {"thresholds": {"max_std": {"heart": "5 px"}, "max_radius90": {"heart": 20.0}, "organs": ["heart"]}},
            (
                "no usable heart (limit: node uncertainty 5 px (heart; lungs without a limit); calibrated radius 20 px "
                "(heart; lungs without a limit))"
            ),
        ),
        ("a step of the future", {}, "a step of the future"),
    ],
)
def test_reasons_in_words(reason, facts, said):
    assert exclusion_words(reason, facts) == said


@pytest.mark.parametrize(
    ("text", "stays", "goes"),
    [
        ("Age<18", "Age was below 18", "Age not below 18, or unknown"),
        ("Age>90", "Age was above 90", "Age not above 90, or unknown"),
        ("view!=LATERAL,OTHER", "view was not LATERAL or OTHER", "view LATERAL or OTHER, or unknown"),
        ("nonsense", "nonsense held", "not nonsense, or unknown"),
    ],
)
def test_conditions_in_words(text, stays, goes):
    assert condition_words(text) == (stays, goes)


def test_percentiles_come_with_their_px():
    facts = {
        "thresholds": {"max_std": {"right_lung": "p80", "left_lung": "p80", "heart": "8 px"}},
        "limits_px": [
            {"source": source, "model_id": "m", "px": {"right_lung": px, "left_lung": px, "heart": 8.0}}
            for source, px in (("mimic", 5.25), ("vindr", 4.125))
        ],
    }
    assert node_limits(facts) == "node uncertainty p80 = 4.12 to 5.25 px (lungs) and 8 px (heart)"
    assert node_limits({**facts, "limits_px": []}) == "node uncertainty p80 (lungs) and 8 px (heart)"
    assert node_limits({}) == ""


def test_small_words():
    assert listed([]) == ""
    assert ordinal("3") == "3rd"
    assert table_words("a/b/c.parquet") == "c.parquet"
