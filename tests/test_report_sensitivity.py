"""What other limits keep: the numbers of ``cxu filter`` and ``cxu measure``, found shard by shard."""

import itertools
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import chest
from cxu import store, table
from cxu.anatomy import N_NODES, ORGANS
from cxu.criteria import Criteria
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.measure import measure_rows
from cxu.report.layout import sensitivity_text
from cxu.report.ratios import RatioSummary, ratios_of
from cxu.report.sensitivity import plan_sensitivity
from cxu.selection import excluded_path, filter_rows
from cxu.thresholds import Thresholds, parse_max_std
from report_helpers import Desk, rows_of

IDS = [f"0000000{index // 2}_00{index % 2}" for index in range(10)]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path / "home")


def random_rows(source, ids, seed, **columns):
    """Return rows of chests of several widths of the heart, whose nodes are as uncertain as published ones."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.5, 2.5, (len(ids), 1)) * rng.gamma(4, 0.6, (len(ids), N_NODES))
    points = np.stack([chest()] * len(ids))
    heart = ORGANS[2].nodes
    points[:, heart, 0] = 560 + (points[:, heart, 0] - 560) * rng.uniform(0.8, 1.4, (len(ids), 1))
    own = {"landmarks_xy": points.astype(np.float32), "rca_mean": rng.uniform(0.5, 1, len(ids))}
    return rows_of(source, ids, sigma.round(2), **{**own, **columns})


def told(found):
    """Return name → rows, confident nodes, usable organs, median ratio."""
    return {
        level.name: (
            level.total,
            sum(level.nodes.values()),
            sum(level.organs.values()),
            level.ratio.quartiles and level.ratio.quartiles[1],
        )
        for level in found.levels
    }


def expected(rows, asked, name):
    """Return the same by filtering and measuring all rows in memory."""
    limits = {} if name == "unfiltered" else {"max_std": parse_max_std(name)}
    kept, _, _ = filter_rows(rows, Criteria(Thresholds(**limits, **asked)))
    ratios = measure_rows(kept)["ctr"].drop_null().to_numpy()
    # a mean of two in the middle may round either way
    median = pytest.approx(float(np.median(ratios)), abs=2e-6) if len(ratios) else None
    return len(kept), int(table.confident_of(kept).sum()), int(table.usable_of(kept).sum()), median


# --- worked out by hand ----------------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(desk):
    # every node of row i is 1 + i px uncertain; rows of the chest of builders: (720 - 400) / (870 - 150)
    desk.put(rows_of("chestxray8", IDS, range(1, 11)))
    found = desk.report(desk.select(["chestxray8"], max_std="3"), sensitivity=True).sensitivity
    assert found.came == {"chestxray8": 10}
    rows = {level.name: level.total for level in found.levels}
    # ten values, 120 times each: the 60th percentile lies at 0.6 · 1199 = 719.4, between the last 6 and the first 7
    assert rows == {"as selected": 3, "p60": 6, "p80": 8, "p95": 10, "unfiltered": 10}
    for level, px in zip(found.levels[1:4], (6.4, 8.2, 10.0), strict=True):
        assert dict(level.limits[0].px) == pytest.approx(dict.fromkeys(("right_lung", "left_lung", "heart"), px))
    by_name = {level.name: level for level in found.levels}
    assert by_name["p60"].nodes == {"right_lung": 6 * 44, "left_lung": 6 * 50, "heart": 6 * 26}
    assert by_name["p60"].organs == dict.fromkeys(("right_lung", "left_lung", "heart"), 6)
    assert by_name["p60"].ratio == RatioSummary(6, {}, (0.444444,) * 3, 0.0)
    assert by_name["unfiltered"].limits == ()


def test_blank_ratios_are_counted_by_reason(desk):
    sigma = np.full((4, N_NODES), 2.0)
    sigma[1, 94:] = 9  # the heart
    points = np.stack([chest()] * 4)
    points[2, 3] = np.nan
    points[3] = 5.0
    desk.put(rows_of("chestxray8", IDS[:4], sigma, landmarks_xy=points.astype(np.float32)))
    found = desk.report(desk.select(["chestxray8"], max_std="5"), sensitivity=True).sensitivity
    selected, unfiltered = found.levels[0], found.levels[-1]
    # the row whose landmarks are no numbers is in no selection
    assert selected.ratio == RatioSummary(1, {"unconfident": 1, "no_extent": 1}, (0.444444,) * 3, 0.0)
    assert unfiltered.ratio.blank == {"no_extent": 1}
    assert "blank" in sensitivity_text(found)


def test_shares_above_a_half():
    points = np.stack([chest()] * 3)
    heart = ORGANS[2].nodes
    points[1:, heart, 0] = 560 + (points[1:, heart, 0] - 560) * np.array([[1.2], [1.5]])
    ratios = ratios_of(rows_of("vindr", "abc", [1, 1, 1], landmarks_xy=points.astype(np.float32)))
    np.testing.assert_allclose(ratios.values, [320 / 720, 384 / 720, 480 / 720], atol=1e-6)
    summary = RatioSummary.of([ratios.of(np.array([True, True, False])), ratios.of(np.array([False, False, True]))])
    assert summary.share_large == pytest.approx(2 / 3)
    assert summary.quartiles == (0.488889, 0.533333, 0.6)
    assert RatioSummary.of([]) == RatioSummary(0, {}, None, None)
    assert RatioSummary.of([]).as_json() == {"n": 0, "blank": {}, "quartiles": None, "share_above_0.5": None}


# --- the same as filter and measure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "max_std"),
    [
        ({}, "3"),
        ({"min_confident": 0.8, "max_gap": 1}, "p70"),
        ({"organs": ("heart",)}, "heart=3"),
        ({"organs": ("right_lung", "left_lung")}, "p50"),
        ({}, None),
    ],
)
def test_limits_and_rows_are_those_of_filter(desk, asked, max_std):
    shards = [random_rows("chestxray8", IDS[:4], 1), random_rows("chestxray8", IDS[4:], 2)]
    stored = desk.put(*shards)
    limits = {"max_std": max_std} if max_std else {}
    found = desk.report(desk.select([stored], **limits, **asked), sensitivity=True).sensitivity
    rows = pa.concat_tables(shards)
    for name in ("p60", "p80", "p95", "unfiltered"):
        assert told(found)[name] == expected(rows, asked, name), name
        if name != "unfiltered":
            report = filter_rows(rows, Criteria(Thresholds(max_std=parse_max_std(name), **asked)))[2]
            assert found.levels[[level.name for level in found.levels].index(name)].limits == report.limits


def test_limits_are_by_source_and_model(desk):
    desk.put(random_rows("chestxray8", IDS, 1))
    desk.put(random_rows("vindr", "abcdefgh", 2, model_id=["m"] * 4 + ["n"] * 4))
    found = desk.report(desk.select(["chestxray8", "vindr"], max_std="p80"), sensitivity=True).sensitivity
    selected, _, p80, *_ = found.levels
    assert [(one.source, one.model_id) for one in p80.limits] == [
        ("chestxray8", "published"),
        ("vindr", "m"),
        ("vindr", "n"),
    ]
    assert (selected.limits, selected.rows, selected.nodes, selected.ratio) == (
        p80.limits,
        p80.rows,
        p80.nodes,
        p80.ratio,
    )
    assert found.came == {"chestxray8": 10, "vindr": 8}
    assert set(p80.ratio_by_source) <= {"chestxray8", "vindr"}
    assert "By source: rows kept, CTR median" in sensitivity_text(found)


def test_all_other_criteria_hold_without_their_files(desk, tmp_path):
    ids, labels = tmp_path / "ids.txt", tmp_path / "labels.csv"
    ids.write_text("\n".join(IDS[:8]))
    labels.write_text(
        "Image Index,ViewPosition\n" + "\n".join(f"{one},{'PA' if one[-1] == '0' else 'AP'}" for one in IDS)
    )
    rows = random_rows("chestxray8", IDS, 5, quality=["ok"] * 6 + ["reject"] + ["ok"] * 3)
    desk.put(rows.slice(0, 3), rows.slice(3))
    stored = desk.select(
        ["chestxray8"], ids=ids, labels=[labels], where=["ViewPosition=PA"], min_rca=0.55, max_mean_std=6.0, max_std="4"
    )
    ids.unlink()
    labels.unlink()
    found = desk.report(stored, sensitivity=True).sensitivity
    came = [
        index
        for index in (0, 2, 4, 6)
        if rows["rca_mean"][index].as_py() >= np.float32(0.55)
        and rows["mean_sigma_model_px"][index].as_py() <= 6
        and rows["quality"][index].as_py() == "ok"
    ]
    assert len(came) in (1, 2, 3)
    assert found.came == {"chestxray8": len(came)}
    left = rows.take(came)
    assert told(found) == {
        name: expected(left, {}, name if name != "as selected" else "4")
        for name in ("as selected", "p60", "p80", "p95", "unfiltered")
    }


def test_rows_in_both_frames_are_told_apart(desk):
    ids = list("abcdef")
    model = random_rows("mimic", ids, 1)
    image = random_rows("mimic", ids, 2, frame="image", frame_side=np.full(6, 1024.0))
    inputs = [desk.put(image, frame="image"), desk.put(model)]
    stored = desk.select(inputs, frame="image", max_std="4")
    found = desk.report(stored, sensitivity=True).sensitivity
    assert found.came == {"mimic": 6}
    assert told(found)["unfiltered"] == expected(image, {}, "unfiltered")
    assert told(found)["p80"] == expected(image, {}, "p80")


def test_other_sources_are_left_out_as_before(desk):
    mixed = pa.concat_tables(
        [random_rows("mimic", "ab", 1), random_rows("vindr", "ab", 2), random_rows("mimic", "c", 3)]
    )
    found = desk.report(desk.select([desk.put(mixed)], sources=["mimic"], max_std="4"), sensitivity=True).sensitivity
    assert found.came == {"mimic": 3}


def test_image_px_and_radii_are_kept(desk):
    side = np.full(10, 2048.0)
    rows = random_rows("mine", IDS, 4, frame="image", frame_side=side, model_id="m")
    radius = np.repeat(np.linspace(5, 50, 10)[:, None], N_NODES, axis=1).astype(np.float32)
    rows = rows.set_column(
        rows.column_names.index("radius90_px"), "radius90_px", table.lists_from_numpy(radius, rows["radius90_px"].type)
    )
    desk.put(rows, frame="image")
    asked = {"unit": "image", "max_radius90": {organ.name: 30.0 for organ in ORGANS}}
    stored = desk.select(["mine"], unit="image", max_std="4", max_radius90="30")
    found = desk.report(stored, sensitivity=True).sensitivity
    assert found.came == {"mine": 10}
    for name in ("p60", "unfiltered"):
        assert told(found)[name] == expected(rows, asked, name)


def test_rows_of_unknown_scale_count_without_a_limit_only(desk):
    sigma = table.sigma_columns(np.full((2, N_NODES, 2), 3.0, np.float32), np.array([1024.0, np.nan]))
    rows = rows_of("mine", "ab", [3, 3], frame="image", **sigma)
    desk.put(rows, frame="image")
    found = desk.report(desk.select(["mine"], max_std="5"), sensitivity=True).sensitivity
    assert {level.name: level.total for level in found.levels} == {
        "as selected": 1,
        "p60": 1,
        "p80": 1,
        "p95": 1,
        "unfiltered": 2,
    }


def test_what_an_earlier_selection_asked_holds_in_every_line(desk):
    desk.put(random_rows("chestxray8", IDS, 6))
    desk.select(["chestxray8"], "wide", max_std="5")
    wide = desk.home.open("wide").read()
    report = desk.report(desk.select(["wide"], "strict", max_std="3"), sensitivity=True)
    assert told(report.sensitivity)["unfiltered"] == expected(wide, {}, "unfiltered")
    assert told(report.sensitivity)["p80"] == expected(wide, {}, "p80")
    assert report.notes[-1] == (
        "Sensitivity: limits of the selections that strict was made from hold in every line of the table."
    )


def test_a_table_that_is_no_selection(desk):
    rows = random_rows("vindr", "abcdef", 7)
    desk.put(rows)
    found = desk.report("vindr", sensitivity=True).sensitivity
    assert [level.name for level in found.levels] == ["p60", "p80", "p95", "unfiltered"]
    assert told(found)["p80"] == expected(rows, {}, "p80")


def test_a_selection_without_rows(desk):
    desk.put(rows_of("vindr", "ab", [5, 6], rca_mean=np.array([0.1, 0.1])))
    found = desk.report(desk.select(["vindr"], min_rca=0.7, max_std="3"), sensitivity=True).sensitivity
    assert found.came == {}
    assert {level.total for level in found.levels} == {0}
    assert " -" in sensitivity_text(found)


def test_workers_change_nothing(desk):
    desk.put(*(random_rows("chestxray8", [f"{seed}_{index}" for index in range(5)], seed) for seed in range(4)))
    stored = desk.select(["chestxray8"], max_std="4")
    alone = desk.report(stored, sensitivity=True)
    assert desk.report(stored, sensitivity=True, workers=2).as_json() == alone.as_json()


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 29), max_size=4), max_std=st.sampled_from(["2", "p40"]))
def test_however_the_rows_are_cut_into_shards(tmp_path_factory, seed, cuts, max_std):
    desk = Desk(tmp_path_factory.mktemp("cut") / "home")
    rows = random_rows("chestxray8", [f"{index:08d}_000" for index in range(30)], seed)
    ends = sorted({0, 30, *cuts})
    desk.put(*(rows.slice(first, last - first) for first, last in itertools.pairwise(ends)))
    found = desk.report(desk.select(["chestxray8"], min_rca=0.6, max_std=max_std), sensitivity=True).sensitivity
    good = rows.filter(pa.array(rows["rca_mean"].to_numpy() >= np.float32(0.6)))
    assert sum(found.came.values()) == len(good)
    for name in ("p60", "p95", "unfiltered"):
        assert told(found)[name] == expected(good, {}, name)
    assert told(found)["as selected"] == expected(good, {}, max_std)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_inputs_that_are_gone_or_changed_are_named(desk):
    desk.put(rows_of("vindr", "ab", [2, 6]))
    desk.put(rows_of("mimic", "ab", [2, 6]))
    stored = desk.select(["vindr", "mimic"], max_std="5")
    desk.put(rows_of("vindr", "abc", [2, 6, 6]))
    shutil.rmtree(desk.home.source_folder("mimic", "model"))
    with pytest.raises(MissingInputError) as refused:
        plan_sensitivity(stored, desk.home)
    assert refused.value.exit_code == 2
    assert "vindr/model is not what it was then, mimic/model is gone" in str(refused.value)


def test_a_selection_made_in_memory_has_no_inputs(desk, tmp_path):
    selected, _, _ = filter_rows(rows_of("vindr", "ab", [2, 6]), Criteria(Thresholds(max_std=parse_max_std("5"))))
    store.write_table(selected, tmp_path / "memory.parquet")
    stored = store.open_table(tmp_path / "memory.parquet")
    with pytest.raises(MissingInputError, match="does not say which tables it was made from"):
        plan_sensitivity(stored, desk.home)
    report = desk.report(stored)
    assert (report.stage.total_in, report.stage.total_out) == (2, 1)


def test_the_list_of_excluded_rows_must_be_there_and_fit(desk):
    rows = rows_of("vindr", "abcd", [2, 6, 7, 8], rca_mean=np.array([0.8, 0.8, 0.1, 0.8]))
    desk.put(rows.slice(0, 2), rows.slice(2))
    stored = desk.select(["vindr"], min_rca=0.7, max_std="5")
    path = excluded_path(stored.paths[0])
    whole = pq.read_table(path)
    for other in (whole.slice(1), pa.concat_tables([whole, whole.slice(0, 1)]), whole.take([2, 1, 0])):
        pq.write_table(other, path)
        with pytest.raises(FormatError, match="does not list what the selection beside it leaves out"):
            desk.report(stored, sensitivity=True)
    path.unlink()
    with pytest.raises(MissingInputError, match="needs the list of rows that latest leaves out"):
        desk.report(stored, sensitivity=True)


def test_rows_without_standard_deviations_are_refused(desk):
    bare = {"sigma_xy": None, "sigma_model_px": None, "mean_sigma_model_px": None, "n_samples": None}
    desk.put(rows_of("vindr", "ab", [2, 2], **bare))
    with pytest.raises(UsageError, match="rows of vindr have no standard deviations"):
        desk.report(desk.select(["vindr"], min_rca=0.5), sensitivity=True)
