"""What is said of rows and of sources, from numbers put together by hand; which rows are looked at."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import make_rows
from cxu import store
from cxu.check.findings import FALSE_ALARMS, find_in_sources, is_too_many
from cxu.check.folder import check_rows, worst_first
from cxu.check.geometry import UNKNOWN, Fit
from cxu.check.plan import choose, plan_check, similar_names, tables_to_check
from cxu.check.rows import LIMITS, Comparison, RowCheck, Sizes, compare_sizes
from cxu.check.verdict import MEANING, VERDICTS, judge
from cxu.errors import MissingInputError, UsageError
from cxu.store import Home

SAME = Sizes("same", (1000, 800), (1000, 800), 1.0)
FAR = LIMITS.residual_px + 20
FITS = Comparison(Fit((1.0, -2.0), (1.0, 1.0), 4.0), Fit((0.0, 0.0), (1.0, 1.0), FAR), side_odds=3.0, quality="ok")


def said(sizes=SAME, comparison=FITS, **more):
    return judge(sizes, comparison, **more)[0]


def fit(x=0.0, y=0.0, scale=1.0, residual=4.0):
    return Fit((x, y), (scale, scale), residual)


# --- one row ---------------------------------------------------------------------------------------------------------


def test_sizes_by_hand():
    assert compare_sizes((1000, 800), (1000, 800)).kind == "same"
    assert compare_sizes((1000, 800), (500, 400)) == Sizes("resized", (1000, 800), (500, 400), 0.5)
    assert compare_sizes((1001, 800), (500, 400)).kind == "resized"  # half a pixel is lost
    assert compare_sizes((1000, 800), (800, 1000)) == Sizes("exchanged", (1000, 800), (800, 1000), 1.0)
    assert compare_sizes((1000, 800), (1000, 790)).kind == "other"
    assert compare_sizes(None, (1000, 790)).kind == "unknown"


@given(st.integers(50, 4000), st.integers(50, 4000), st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_a_resized_copy_is_never_taken_for_a_cropped_one(height, width, factor):
    copy = (max(round(height * factor), 1), max(round(width * factor), 1))
    assert compare_sizes((height, width), copy).kind in ("same", "resized")
    assert compare_sizes((width, height), copy).kind != "other"


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("ok", {}),
        ("ok", {"quality": "reject", "reason": "looks unlike training films"}),  # where the two agree, no doubt
        ("unsure", {"quality": "reject", "reason": "looks unlike training films", "fit": fit(residual=FAR)}),
        ("unsure", {"fit": UNKNOWN, "mirrored": UNKNOWN}),
        ("turned", {"quality": "reject", "reason": "seems upside down", "fit": fit(residual=FAR)}),
        ("unlike", {"fit": fit(residual=FAR)}),
        ("shifted", {"fit": fit(x=LIMITS.shift_px + 1)}),
        ("shifted", {"fit": fit(y=-LIMITS.shift_px - 1)}),
        ("scaled", {"fit": fit(scale=1.01 + LIMITS.scale)}),
        ("mirrored", {"fit": fit(residual=FAR), "mirrored": fit(), "is_mirrored": True}),
        ("mirrored", {"fit": fit(residual=FAR), "mirrored": fit(), "names_exchanged": True}),
        ("sides", {"names_exchanged": True}),
        ("sides", {"is_mirrored": True}),
        # a mirrored film whose table was mirrored with it: right is right
        ("ok", {"is_mirrored": True, "names_exchanged": True}),
        ("ok", {"side_odds": 0.0}),
    ],
)
def test_what_a_network_sees(expected, changes):
    verdict, reason = judge(SAME, replace(FITS, **changes))
    assert verdict == expected
    assert bool(reason) == (verdict != "ok")


def test_what_is_certain_comes_first():
    wrong = replace(FITS, fit=fit(residual=FAR))
    assert said(compare_sizes((1000, 800), (800, 1000)), wrong) == "size"
    assert said(compare_sizes((1000, 800), (900, 800)), wrong) == "size"
    assert said(SAME, wrong, problem="a black border") == "unplaced"
    assert judge(SAME, wrong, problem="x", unreadable="it is empty") == ("unreadable", "it is empty")
    assert said(SAME, Comparison()) == "ok"


def test_reasons_say_how_far():
    assert judge(SAME, replace(FITS, fit=fit(x=-60.2, y=3)))[1] == (
        "the chest lies 60 px further left and 3 px further down than the table says"
    )
    assert judge(compare_sizes((9, 5), (7, 5)), FITS)[1] == (
        "the image is 7 × 5 px (height × width), the table says 9 × 5: cropped, padded, or another image"
    )


def test_every_verdict_has_a_meaning():
    assert set(VERDICTS) == set(MEANING)


# --- a source --------------------------------------------------------------------------------------------------------


def rows_of(*comparisons, source="own", sizes=SAME):
    return [
        RowCheck(source, f"{index}", f"{index}.png", *judge(sizes, one), sizes, one)
        for index, one in enumerate(comparisons)
    ]


def findings(rows, source="own"):
    (found,) = find_in_sources(rows, {source: (len(rows), len(rows))})
    return found


def faults(rows, source="own"):
    return {finding.kind: finding.sentence for finding in findings(rows, source).findings if finding.is_fault}


def test_a_shift_of_all_rows_is_found_where_none_of_them_is_wrong_by_itself():
    rng = np.random.default_rng(0)
    shifted = [replace(FITS, fit=fit(x=3 * rng.standard_normal(), y=12 + 5 * rng.standard_normal())) for _ in range(50)]
    found = findings(rows_of(*shifted))
    assert found.verdicts == {"ok": 50}
    assert found.intervals["shift_y"].low < 12 < found.intervals["shift_y"].high
    assert set(faults(rows_of(*shifted))) == {"shift"}
    assert "13 px further down" in faults(rows_of(*shifted))["shift"]
    assert faults(rows_of(*[FITS] * 50)) == {}
    # so few rows say nothing of all
    assert faults(rows_of(*shifted[:5])) == {}


def test_advice_is_of_the_source():
    shifted = [replace(FITS, fit=fit(y=12.0))] * 20
    assert "--frame model" in faults(rows_of(*shifted, source="mimic"), "mimic")["shift"]
    assert "--frame image" in faults(rows_of(*shifted))["shift"]
    assert "use the originals" in faults(rows_of(*shifted, source="chexpert"), "chexpert")["shift"]


@pytest.mark.parametrize(
    ("scale_xy", "advice"), [((1.1, 1.1), "cut off"), ((0.9, 0.9), "border was likely added"), ((1.1, 0.95), "stretch")]
)
def test_scales(scale_xy, advice):
    scaled = [replace(FITS, fit=Fit((0.0, 0.0), scale_xy, 4.0))] * 20
    assert advice in faults(rows_of(*scaled))["scale"]


def test_sizes_are_told_as_they_are():
    resized = rows_of(*[FITS] * 3, sizes=compare_sizes((1000, 800), (500, 400)))
    (finding,) = findings(resized).findings
    assert (finding.sentence, finding.is_fault) == (
        "all 3 images are 0.5 times the recorded size: fine, cxu rescales",
        False,
    )
    both = resized + rows_of(FITS, sizes=compare_sizes((1000, 800), (1000, 700)))
    assert faults(both)["aspect"].startswith("1 of 4 images have another aspect than the table records")
    assert [finding.is_fault for finding in findings(both).findings] == [True, False]


def test_mirrored_rows_are_a_fault_and_a_lone_mistake_of_the_network_is_none():
    mirrored = replace(FITS, fit=fit(residual=FAR), mirrored=fit(), is_mirrored=True)
    assert "mirrored" in faults(rows_of(*[mirrored] * 20))
    assert faults(rows_of(mirrored, *[FITS] * 99)) == {}


def test_many_unsure_rows_are_told():
    unsure = replace(FITS, quality="reject", reason="looks unlike training films", fit=fit(residual=FAR))
    assert set(faults(rows_of(*[unsure] * 6, *[FITS] * 4))) == {"unsure"}
    assert faults(rows_of(*[unsure] * 4, *[FITS] * 6)) == {}


def test_a_source_without_rows_has_none():
    (found,) = find_in_sources([], {"own": (7, 0)})
    assert (found.rows, found.looked, found.findings) == (7, 0, ())
    assert found.as_json()["shift_x"] == [None, None, None]


@given(st.integers(1, 300), st.integers(0, 300))
def test_more_alarms_are_never_fewer(n, count):
    count = min(count, n)
    assert is_too_many(count, n, 0.05) <= is_too_many(min(count + 1, n), n, 0.05)


@pytest.mark.parametrize("rate", sorted(set(FALSE_ALARMS.values())))
def test_alarms_at_the_rate_of_false_ones_are_none(rate):
    drawn = np.random.default_rng(0).binomial(200, rate, 2000)
    assert np.mean([is_too_many(int(count), 200, rate) for count in drawn]) <= 0.01 + 0.005
    assert is_too_many(1, 1, 0.001)
    assert not is_too_many(900, 20_000, 0.05)
    assert is_too_many(1100, 20_000, 0.05)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_worst_come_first():
    far, near = replace(FITS, fit=fit(x=90.0)), replace(FITS, fit=fit(x=LIMITS.shift_px + 1))
    rows = rows_of(FITS, near, replace(FITS, names_exchanged=True), far)
    assert [rows[place].verdict for place in worst_first(rows)] == ["sides", "shifted", "shifted", "ok"]
    assert worst_first(rows)[1] == 3


def test_unknown_numbers_are_null():
    table = check_rows(rows_of(Comparison(), sizes=compare_sizes(None, (5, 6))))
    assert table["shift_x_px"].to_pylist() == [None]
    assert table["recorded_height"].to_pylist() == [None]
    assert table["height"].to_pylist() == [5]
    assert table["names_exchanged"].to_pylist() == [False]


# --- which rows ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 5))
def test_sources_have_as_even_shares_as_they_allow(sources, n_rows, seed):
    chosen = choose(sources, n_rows, seed)
    assert len(chosen) == len(set(chosen)) == min(n_rows, len(sources))
    shares = {name: sum(sources[place] == name for place in chosen) for name in set(sources)}
    full = [share for name, share in shares.items() if share == sources.count(name)]
    others = [share for name, share in shares.items() if share < sources.count(name)]
    assert not others or max(others) - min(others) <= 1
    assert not others or all(share <= max(others) + 1 for share in full)
    assert [sources[place] for place in chosen] == sorted(sources[place] for place in chosen)


def test_a_source_is_sampled_alike_whatever_stands_beside_it():
    alone = choose(["a"] * 100, 10, 0)
    beside = choose(["a"] * 100 + ["b"] * 100, 20, 0)
    assert [place for place in beside if place < 100] == alone
    assert choose(["a"] * 100, 10, 1) != alone


def test_names_that_hold_the_id():
    assert [one.file for one in similar_names([("own", "AB-12.34x")], ["q.png", "d/pre_ab1234X.jpg"])] == [
        "d/pre_ab1234X.jpg"
    ]
    assert similar_names([("own", "ab1")], ["ab12.png"]) == []  # too short to say


def test_the_tables_of_a_home(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(MissingInputError, match="holds nothing to check: start with cxu fetch"):
        tables_to_check(home, None)
    path = tmp_path / "rows.parquet"
    store.write_table(make_rows(1), path)
    assert [stored.paths for stored in tables_to_check(home, str(path))] == [(path,)]
    with pytest.raises(UsageError, match="--rows 0: expected 1 or more"):
        plan_check([store.open_table(path)], [str(tmp_path)], n_rows=0)


def test_limits_are_plain_numbers():
    assert all(math.isfinite(value) for value in vars(LIMITS).values())
