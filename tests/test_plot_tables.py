"""Figures of tables: the numbers behind them, worked out by hand or by the plain way, and that something is drawn."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builders import chest, make_rows
from cxu import measure, table
from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGANS, RIGHT_LUNG
from cxu.criteria import Criteria
from cxu.errors import UsageError
from cxu.plot import ctr, kept, nodes, rca, sigma
from cxu.plot.groups import MOST_GROUPS, Group, names_of
from cxu.plot.regions import REGIONS
from cxu.plot.spread import ALL_NODES, BY_ORGAN, measure_spread
from cxu.selection import filter_rows
from cxu.shape import load_shape_model, sample_rca, sample_shapes, sample_sigmas
from cxu.thresholds import Thresholds, parse_max_std, usable_organs
from mask_helpers import store_rows

VINDR = Group("vindr", "published")


def with_sigma(of_nodes, **columns):
    """Return rows with these node uncertainties [n, 120]."""
    values = np.asarray(of_nodes, np.float32)
    sigma_xy = np.repeat(values[..., None], 2, axis=2)
    return make_rows(len(values), **{"source": "vindr", **table.sigma_columns(sigma_xy), **columns})


def made_up(n_rows, seed=0, source="vindr", **columns):
    """Return synthetic rows with uncertainty and RCA."""
    rng = np.random.default_rng(seed)
    sigma_xy = sample_sigmas(n_rows, rng)
    scores = sample_rca(table.node_uncertainty(sigma_xy), rng)
    return make_rows(
        n_rows,
        source=source,
        landmarks_xy=sample_shapes(load_shape_model(), n_rows, rng),
        rca_mean=scores[:, 0],
        rca_max=scores[:, 1],
        **{**table.sigma_columns(sigma_xy), **columns},
    )


@pytest.fixture
def stored(tmp_path):
    """A function that stores rows as a table of several shards."""
    return lambda rows, name="t": store_rows(tmp_path / f"{name}.parquet", rows, group_rows=7)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).astype(int)


# --- groups and regions ----------------------------------------------------------------------------------------------


def test_sources_of_one_model_go_by_their_name():
    names = names_of([Group("vindr", "published"), Group("mine", "aaaaaaaaaaaa"), Group("mine", "bbbbbbbbbbbb")])
    assert [*names.values()] == ["mine (model aaaaaaaa)", "mine (model bbbbbbbb)", "vindr"]


def test_regions_are_a_partition_of_the_nodes_along_the_rings():
    assert sorted(node for nodes in REGIONS.values() for node in nodes) == list(range(N_NODES))
    for name, of_region in REGIONS.items():
        (organ,) = [organ for organ in ORGANS if organ.first <= of_region[0] < organ.stop]
        place = np.array(of_region) - organ.first
        assert (place >= 0).all(), name
        assert (np.diff(place) % organ.n_nodes == 1).all(), name


# --- spread ----------------------------------------------------------------------------------------------------------


def test_quantiles_means_and_counts_are_those_of_numpy(stored):
    rng = np.random.default_rng(3)
    values = np.exp(rng.normal(2, 0.8, (41, N_NODES))).astype(np.float32)
    values[0, :3] = [0.0, 1e-4, 9000.0]  # beyond the ranges that are counted apart
    shares = [0.0, 0.05, 0.5, 0.8, 0.999, 1.0]
    report = measure_spread([stored(with_sigma(values))], [BY_ORGAN, ALL_NODES + 3], shares)
    found = report.groups[VINDR]
    lanes = [values[:, organ.nodes] for organ in ORGANS] + [values]
    assert (found.rows, report.rows_without) == (41, 0)
    assert found.counts.sum(axis=1).tolist() == [lane.size for lane in lanes]
    np.testing.assert_allclose(found.means, [lane.mean(dtype=np.float64) for lane in lanes], rtol=1e-12)
    for lane, quantiles in zip(lanes, found.quantiles, strict=True):
        np.testing.assert_array_equal(quantiles, np.quantile(lane, shares).astype(np.float64))


def test_nodes_that_count_nowhere_are_left_out(stored):
    values = np.tile(np.arange(1, N_NODES + 1), (2, 1))
    lanes = np.where(np.arange(N_NODES) < 4, 0, -1)
    found = measure_spread([stored(with_sigma(values))], [lanes], [0.5]).groups[VINDR]
    assert found.counts.sum() == 8
    assert found.quantiles.tolist() == [[2.5]]


def test_groups_are_kept_apart_and_rows_without_uncertainty_counted(stored):
    rows = pa.concat_tables(
        [
            with_sigma(np.full((9, N_NODES), 2.0)),
            with_sigma(np.full((5, N_NODES), 6.0), source="mimic", image_id=[f"m{n}" for n in range(5)]),
            make_rows(3, source="vindr", image_id=["x", "y", "z"]),
        ]
    )
    report = measure_spread([stored(rows)], [ALL_NODES], [0.5])
    assert {group.source: (one.rows, one.quantiles.item()) for group, one in report.groups.items()} == {
        "mimic": (5, 6.0),
        "vindr": (9, 2.0),
    }
    assert report.rows_without == 3


def test_workers_change_nothing(stored):
    tables = [stored(made_up(30)), stored(made_up(20, 1, "mimic"), "u")]
    one, two = (sigma.measure_sigma(tables, workers=workers).content() for workers in (1, 2))
    assert one == two


def test_a_table_without_uncertainty_or_rows_is_refused(stored):
    for measure_figure in (nodes.measure_nodes, sigma.measure_sigma, rca.measure_rca):
        with pytest.raises(UsageError, match=r"no row of .* ha(s|s both) standard deviations"):
            measure_figure([stored(make_rows(3))])
        with pytest.raises(UsageError, match=r"no rows to plot: .* is empty"):
            measure_figure([stored(make_rows(0))])
    with pytest.raises(UsageError, match="have no standard deviations"):
        kept.measure_kept([stored(make_rows(3))])


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_medians_of_nodes_and_regions(stored, tmp_path):
    values = np.array([[1.0], [2.0], [9.0]]) * np.ones((3, N_NODES))
    values[:, list(REGIONS["left costophrenic angle"])] += 10
    report = nodes.measure_nodes([stored(with_sigma(values))])
    medians = report.medians(VINDR)
    assert medians[65] == 12.0
    assert medians[0] == 2.0
    regions = report.content()["groups"][0]["regions"]
    assert regions["left costophrenic angle"]["median_px"] == 12.0
    assert regions["left costophrenic angle"]["mean_px"] == 14.0
    assert regions["heart, apex"]["p90_px"] == 9.0  # fifteen values: a third of them each
    nodes.draw_nodes(report, tmp_path / "nodes.png")
    assert picture(tmp_path / "nodes.png").std() > 20


def test_the_uncertain_node_is_the_large_light_one(stored, tmp_path):
    drawn = []
    for node in (65, 21):
        values = np.full((2, N_NODES), 3.0)
        values[:, node] = 30.0
        report = nodes.measure_nodes([stored(with_sigma(values), f"t{node}")])
        nodes.draw_nodes(report, tmp_path / f"{node}.png")
        with Image.open(tmp_path / f"{node}.png") as image:
            drawn.append(np.asarray(image.convert("RGB")).astype(int))
    yellow = [(np.abs(one - [255, 236, 118]).max(axis=2) < 12) for one in drawn]
    where = [np.argwhere(one[: one.shape[0] * 4 // 5])[:, 1].mean() for one in yellow]
    assert where[0] > where[1] + 100  # the left lung is on the right


# --- sigma -----------------------------------------------------------------------------------------------------------


def test_quantiles_and_histograms_of_organs(stored, tmp_path):
    values = np.full((4, N_NODES), 4.0)
    values[:, HEART.nodes] = 8.0
    report = sigma.measure_sigma([stored(with_sigma(values))])
    organs = report.content()["groups"][0]["organs"]
    assert organs["right_lung"]["quantiles_px"] == dict.fromkeys(("5", "25", "50", "75", "95"), 4.0)
    assert organs["heart"]["mean_px"] == 8.0
    assert organs["all"]["nodes"] == 4 * N_NODES
    heart = organs["heart"]["histogram"]
    assert heart["counts"] == [4 * HEART.n_nodes]
    assert heart["edges_px"] == [8.0, 9.0]
    assert sum(organs["all"]["histogram"]["counts"]) == 4 * N_NODES
    sigma.draw_sigma(report, tmp_path / "sigma.svg")
    assert "<svg" in (tmp_path / "sigma.svg").read_text("utf-8")[:400]


def test_bins_of_a_histogram_hold_what_lies_between_their_edges(stored):
    rows = made_up(60)
    values = table.list_column(rows, "sigma_model_px")[:, LEFT_LUNG.nodes]
    counts, edges = sigma.histogram(sigma.measure_sigma([stored(rows)]).spread.groups[VINDR], 1)
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    assert counts.sum() == values.size


# --- kept ------------------------------------------------------------------------------------------------------------


def of_filter(rows, limit):
    """Return what ``cxu filter --max-std`` reports."""
    _, _, report = filter_rows(rows, Criteria(Thresholds(max_std=parse_max_std(f"{limit:g}"))))
    return report


def at_limit(report, group, limit):
    return report.at(report.groups[group], int(np.argmin(np.abs(kept.LIMITS_PX - limit))))


@pytest.mark.parametrize("limit", [0, 1.85, 2.5, 3.3, 4.95, 5, 5.05, 8, 12.35, 30, 99.95])
def test_what_is_kept_is_what_the_filter_reports(stored, limit):
    rows = made_up(400)
    report = of_filter(rows, limit)
    found = at_limit(kept.measure_kept([stored(rows)]), VINDR, limit)
    assert found["rows_kept"] == report.rows_out
    assert found["nodes_kept"] == report.nodes_kept
    assert found["organs_kept"] == report.organs_kept


def test_a_selection_is_narrowed_as_the_filter_narrows_it(stored):
    selected, _, _ = filter_rows(made_up(400), Criteria(Thresholds(max_std=parse_max_std("heart=4,lungs=6"))))
    report = kept.measure_kept([stored(selected)])
    for limit in (3.0, 4.5, 6.0, 50.0):
        expected = of_filter(selected, limit)
        found = at_limit(report, VINDR, limit)
        assert (found["rows_kept"], found["nodes_kept"]) == (expected.rows_out, expected.nodes_kept)


def test_sources_are_counted_apart_and_rejects_left_out(stored):
    quality = np.array(["ok", "review", "reject", None] * 50, object)
    first = made_up(200, 1, quality=pa.array(quality, pa.string()))
    second = made_up(100, 2, "mimic", image_id=[f"m{number}" for number in range(100)])
    report = kept.measure_kept([stored(first), stored(second, "u")])
    assert report.groups[VINDR].rows == 150
    for rows, group in ((first, VINDR), (second, Group("mimic", "published"))):
        expected = of_filter(rows, 5.0)
        found = at_limit(report, group, 5.0)
        assert (found["rows_kept"], found["nodes_kept"]) == (expected.rows_out, expected.nodes_kept)


def test_percentiles_are_the_limits_that_the_filter_resolves(stored):
    rows = made_up(200)
    found = kept.measure_kept([stored(rows)]).groups[VINDR].limit_for_px
    for text, limit in zip(("p50", "p80", "p95"), found, strict=True):
        _, _, report = filter_rows(rows, Criteria(Thresholds(max_std=parse_max_std(text))))
        assert set(report.limits[0].px.values()) == {limit}


def test_shares_by_hand():
    values = np.full((2, N_NODES), 1.0, np.float32)
    values[1] = 20.0  # a row that only a high limit keeps
    values[0, HEART.first : HEART.first + 5] = 3.0  # a gap of five: the heart waits for 3 px
    found = kept.count_kept(values, np.ones((2, 3), bool))
    at = {limit: kept.KeptReport.at(found, 20 * limit) for limit in (0, 1, 3, 20)}
    assert [at[limit]["rows_kept"] for limit in (0, 1, 3, 20)] == [0, 1, 1, 2]
    assert at[1]["organs_kept"] == {"right_lung": 1.0, "left_lung": 1.0, "heart": 0.0}
    assert at[1]["nodes_kept"]["heart"] == 21 / 26
    assert at[1]["nodes_within"] == {"right_lung": 0.5, "left_lung": 0.5, "heart": 21 / 52, "all": 115 / 240}
    assert at[3]["organs_kept"]["heart"] == 1.0
    assert at[20]["nodes_kept"] == dict.fromkeys(("right_lung", "left_lung", "heart"), 1.0)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([0, 1, 4, 25, 60]))
def test_an_organ_is_usable_from_its_least_limit_on(seed, min_confident, max_gap):
    values = np.random.default_rng(seed).integers(0, 12, (4, N_NODES)).astype(np.float32)
    least = kept.least_limits(values, min_confident=min_confident, max_gap=max_gap)
    for limit in range(-1, 13):
        usable = usable_organs(values <= limit, min_confident=min_confident, max_gap=max_gap)
        np.testing.assert_array_equal(usable, least <= limit)


def test_numbers_of_limits_are_told_every_quarter_px(stored, tmp_path):
    report = kept.measure_kept([stored(made_up(60))])
    content = report.content()
    limits = [one["max_std"] for one in content["groups"][0]["limits"]]
    np.testing.assert_allclose(np.diff(limits), 0.25)
    assert json.loads(json.dumps(content)) == content
    kept.draw_kept(report, tmp_path / "kept.pdf")
    assert (tmp_path / "kept.pdf").read_bytes().startswith(b"%PDF")


# --- RCA -------------------------------------------------------------------------------------------------------------


def test_medians_of_rca_in_bins_of_the_score():
    score = np.repeat([4.0, 5.0, 16.0], [30, 40, 5])
    agreement = np.concatenate([np.linspace(0.8, 0.9, 30), np.full(40, 0.7), np.full(5, 0.2)])
    curve = rca.binned_by_octave(score, agreement)
    assert [one["rows"] for one in curve] == [30, 40]  # five are too few
    assert [one["score_px"] for one in curve] == [4.0, 5.0]
    assert [one["rca_median"] for one in curve] == pytest.approx([0.85, 0.7])
    assert [one["rca_q25"] for one in curve] == pytest.approx([0.825, 0.7])
    assert rca.binned_by_octave(np.array([]), np.array([])) == []
    assert [one["rows"] for one in rca.binned_by_octave(score[-5:], agreement[-5:])] == [5]


def test_scores_and_rca_of_rows_that_have_both(stored, tmp_path):
    falling = np.linspace(0.9, 0.35, 12).astype(np.float32)
    some = [*falling[:-2].tolist(), None, None]
    rows = with_sigma(
        np.arange(1, 13)[:, None] * np.ones(N_NODES), rca_max=falling, rca_mean=pa.array(some, pa.float32())
    )
    lacking = make_rows(2, source="vindr", image_id=["x", "y"], rca_max=0.5)
    report = rca.measure_rca([stored(pa.concat_tables([rows, lacking]))])
    found = report.content()["groups"][0]
    assert report.rows_without == 2
    assert (found["rca_max"]["rows"], found["rca_mean"]["rows"]) == (12, 10)
    assert found["rca_max"]["spearman"] == pytest.approx(-1.0)
    rca.draw_rca(report, tmp_path / "rca.png")
    assert picture(tmp_path / "rca.png").std() > 10


def test_predictions_have_no_rca(stored):
    with pytest.raises(UsageError, match="has both standard deviations and RCA: published rows"):
        rca.measure_rca([stored(with_sigma(np.ones((2, N_NODES))))])


# --- cardiothoracic ratio --------------------------------------------------------------------------------------------


def test_ratios_and_intervals_are_those_of_measure(stored, tmp_path):
    rows = made_up(20)
    report = ctr.measure_ctr([stored(rows)])
    expected = measure.measure_rows(rows)
    found = report.groups[VINDR]
    np.testing.assert_array_equal(found.ratio, expected["ctr"].to_numpy())
    np.testing.assert_array_equal(found.low, expected["ctr_low"].to_numpy())
    assert [one["image_id"] for one in report.content()["groups"][0]["each"]] == rows["image_id"].to_pylist()
    ctr.draw_ctr(report, tmp_path / "few.png")
    assert picture(tmp_path / "few.png").std() > 10


def test_where_intervals_lie():
    low, high = (np.array(ends, np.float32) for ends in ([0.40, 0.45, 0.51, np.nan], [0.49, 0.55, 0.60, np.nan]))
    found = ctr.CtrGroup(None, (low + high) / 2, low, high, ctr.Counter())
    assert found.verdicts == {"below": 1, "undecided": 1, "above": 1, "without_interval": 1}


def test_many_rows_are_a_distribution(stored, tmp_path):
    report = ctr.measure_ctr([stored(made_up(90)), stored(made_up(30, 1, "mimic"), "u")])
    assert report.rows == 120
    content = report.content()
    histogram = content["groups"][1]["histogram"]
    ratio = report.groups[VINDR].ratio
    assert sum(histogram["counts"]) == 90
    np.testing.assert_array_equal(histogram["counts"], np.histogram(ratio, np.array(histogram["edges"], np.float32))[0])
    assert content["groups"][1]["ratio_quantiles"]["50"] == pytest.approx(np.median(ratio))
    assert content["groups"][1]["each"] is None
    ctr.draw_ctr(report, tmp_path / "many.png")
    assert picture(tmp_path / "many.png").std() > 10


def test_blank_ratios_are_counted_and_none_at_all_refused(stored):
    rows = made_up(4)
    confident = np.ones((4, N_NODES), bool)
    confident[1] = False
    kind = table.field_of("confident").type
    some = rows.append_column("confident", table.lists_from_numpy(confident, kind))
    report = ctr.measure_ctr([stored(some)])
    assert report.rows == 3
    assert report.content()["groups"][0]["blank"] == {"unconfident": 1}
    none = rows.append_column("confident", table.lists_from_numpy(np.zeros_like(confident), kind))
    with pytest.raises(UsageError, match=r"no row has a cardiothoracic ratio \(4 unconfident\)"):
        ctr.measure_ctr([stored(none, "none")])


def test_rows_without_uncertainty_have_ratios_without_intervals(stored, tmp_path):
    rows = make_rows(3, landmarks_xy=np.broadcast_to(chest(), (3, 120, 2)))
    report = ctr.measure_ctr([stored(rows)])
    assert report.content()["groups"][0]["intervals"]["without_interval"] == 3
    ctr.draw_ctr(report, tmp_path / "plain.png")


# --- all of them -----------------------------------------------------------------------------------------------------

KINDS = {
    "nodes": (nodes.measure_nodes, nodes.draw_nodes),
    "sigma": (sigma.measure_sigma, sigma.draw_sigma),
    "kept": (kept.measure_kept, kept.draw_kept),
    "rca": (rca.measure_rca, rca.draw_rca),
    "ctr": (ctr.measure_ctr, ctr.draw_ctr),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_enough_and_the_same_table_gives_the_same_bytes(kind, stored, tmp_path):
    measure_figure, draw = KINDS[kind]
    report = measure_figure([stored(made_up(1))])
    content = report.content()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    for name in ("a.svg", "b.svg"):
        draw(report, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_more_sources_than_can_be_told_apart_are_refused(kind, stored, tmp_path):
    measure_figure, draw = KINDS[kind]
    tables = [stored(made_up(1, number, f"s{number:02d}"), f"t{number}") for number in range(MOST_GROUPS + 1)]
    with pytest.raises(UsageError, match=r"13 sources and models, s00 to s12: a figure shows up to 12"):
        draw(measure_figure(tables), tmp_path / "many.png")
    assert not (tmp_path / "many.png").exists()


def test_a_node_is_right_lung_where_it_says_so():
    assert BY_ORGAN[[RIGHT_LUNG.first, RIGHT_LUNG.stop - 1, LEFT_LUNG.first, HEART.first]].tolist() == [0, 0, 1, 2]
