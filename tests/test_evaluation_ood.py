"""Images of another kind against those known: splits, scores, thresholds, agreement with RCA."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import make_rows
from cxu import store, table
from cxu.errors import DuplicateIdError, MissingExtraError, UsageError
from cxu.evaluation import ood_fit
from cxu.evaluation.ood import measure_ood, threshold_of
from cxu.evaluation.ood_fit import choose_forest, density, forest_score
from cxu.evaluation.ood_rca import measure_rca
from cxu.evaluation.ood_rows import bootstrap_groups, read_rows, share_of, split_in, split_out
from cxu.plot.ood import draw_ood, draw_rca
from cxu.stats import roc_auc


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(ood_fit, "_TREES", (10, 30))


def rows_of(n_rows, *, score=None, latent=0.5, seed=0, order=None, path=None, tmp_path=None, **columns):
    """Return rows whose image scores and latent sigmas are given, read from a table in that order."""
    rng = np.random.default_rng(seed)
    score = rng.normal(10, 1, n_rows) if score is None else np.asarray(score, float)
    sigma = np.repeat(score[:, None, None], 120, axis=1).repeat(2, axis=2).astype(np.float32)
    if latent is not None:
        columns["latent_sigma"] = (latent + 0.05 * rng.standard_normal((n_rows, 64))).astype(np.float32)
    columns.setdefault("image_id", [f"image{seed}-{index:04d}" for index in range(n_rows)])
    rows = make_rows(n_rows, **table.sigma_columns(sigma), **columns)
    if order is not None:
        rows = rows.take(order)
    store.write_table(rows, tmp_path / "t.parquet")
    return read_rows(store.open_table(tmp_path / "t.parquet", name=f"t{seed}"))


# --- rows and splits -------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(0, 2**32))
def test_shares_are_of_text_and_seed_alone(text, seed):
    assert 0 <= share_of(text, seed) < 1
    assert share_of(text, seed) == share_of(text, seed)


def test_shares_are_even():
    shares = np.array([share_of(f"image{index}", 0) for index in range(4000)])
    counts, _ = np.histogram(shares, 10, (0, 1))
    assert counts.min() > 330
    assert abs(np.corrcoef(shares, [share_of(f"image{index}", 1) for index in range(4000)])[0, 1]) < 0.05


def test_splits_have_their_sizes():
    groups = np.array([f"image{index}" for index in range(5000)], object)
    inside, outside = split_in(groups, 0), split_out(groups, 0, set())
    assert [np.mean(inside == name) for name in ("train", "validation", "test")] == pytest.approx(
        [0.6, 0.2, 0.2], abs=0.02
    )
    assert [np.mean(outside == name) for name in ("train", "validation", "test")] == pytest.approx(
        [0, 0.5, 0.5], abs=0.02
    )


def test_outside_rows_stay_with_inside_rows_of_their_patient():
    groups = np.array([f"patient{index}" for index in range(300)], object)
    inside = split_in(groups, 3)
    both = split_out(groups, 3, set(groups[:200]))
    assert (both[:200] == inside[:200]).all()
    assert "train" in both[:200]
    assert "train" not in both[200:]


def test_images_of_a_patient_stay_together(tmp_path):
    patients = [f"p{index // 4}" for index in range(200)]
    rows = rows_of(200, patient_id=patients, tmp_path=tmp_path)
    assert len(set(rows.group)) == 50
    split = split_in(rows.group, 0)
    assert all(len(set(split[rows.group == group])) == 1 for group in set(rows.group))
    # a patient of the same name elsewhere is another one
    elsewhere = rows_of(200, patient_id=patients, source="mimic", tmp_path=tmp_path)
    assert set(rows.group).isdisjoint(elsewhere.group)


def test_rows_are_read_in_order_of_id_without_those_of_no_sigma(tmp_path):
    score = np.array([3.0, np.nan, 1.0, 2.0])
    rows = rows_of(
        4, score=score, image_id=["d", "c", "b", "a"], rca_max=np.array([0.1, 0.2, np.nan, 0.4]), tmp_path=tmp_path
    )
    assert rows.image_id.tolist() == ["a", "b", "d"]
    assert rows.score_px.tolist() == [2, 1, 3]
    np.testing.assert_allclose(rows.rca_max, [0.4, np.nan, 0.1], rtol=1e-6)
    assert rows.without_sigma == 1
    assert rows.model_ids == ("published",)


def test_an_image_that_stands_there_twice_is_refused(tmp_path):
    with pytest.raises(DuplicateIdError, match="'a' of chestxray8 stands there twice"):
        rows_of(2, image_id=["a", "a"], tmp_path=tmp_path)


def test_bootstrap_draws_groups_whole():
    groups = np.array(["a", "b", "a", "c"], object)
    sizes = []

    def count(of):
        sizes.append((len(of), np.count_nonzero(of == 0), np.count_nonzero(of == 2)))
        return float(len(of))

    assert bootstrap_groups(count, groups, 0).value == 4
    assert all(first == second for _, first, second in sizes)
    assert {size for size, *_ in sizes} == {3, 4, 5, 6}


def test_bootstrap_of_single_images_is_that_of_stats():
    from cxu.stats import bootstrap

    values = np.random.default_rng(0).normal(size=30)
    groups = np.array([f"{index:02d}" for index in range(30)], object)
    mean = lambda of: float(values[of].mean())  # noqa: E731
    assert bootstrap_groups(mean, groups, 5) == bootstrap(mean, 30, seed=5)


# --- thresholds ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_threshold_keeps_its_share_and_no_lower_score_does(scores, kept):
    values = np.array(scores)
    threshold = threshold_of(values, kept)
    assert threshold in values
    assert np.mean(values <= threshold) >= kept
    assert all(np.mean(values <= lower) < kept for lower in values[values < threshold])


def test_auc_and_points_by_hand(tmp_path):
    inside = rows_of(400, score=np.arange(400), latent=None, tmp_path=tmp_path)
    outside = rows_of(100, score=np.full(100, 1000.0), latent=None, seed=1, tmp_path=tmp_path)
    report = measure_ood(inside, outside)
    (detector,) = report.detectors
    assert detector.name == "image score"
    assert detector.auc == (1, 1, 1)
    split = split_in(inside.group, 0)
    chosen, tested = (inside.score_px[split == name] for name in ("validation", "test"))
    for point, kept in zip(detector.points, (0.9, 0.95, 0.99), strict=True):
        assert point.kept == kept
        assert point.threshold == np.sort(chosen)[int(np.ceil(kept * len(chosen))) - 1]
        assert point.kept_test == np.mean(tested <= point.threshold)
        assert point.sensitivity == (1, 1, 1)
    assert (detector.test_in == tested).all()
    assert report.counts["in"]["test"] == len(tested)
    assert report.remarks == ("t0 has no latent sigmas: only the image score is measured",)


# --- two tables ------------------------------------------------------------------------------------------------------


def test_the_forest_sees_what_the_score_does_not(tmp_path):
    inside = rows_of(300, tmp_path=tmp_path)
    outside = rows_of(120, latent=0.6, seed=1, tmp_path=tmp_path)
    report = measure_ood(inside, outside)
    score, forest = report.detectors
    assert 0.3 < score.auc.value < 0.7
    assert forest.auc.value > 0.95
    assert score.auc.low < score.auc.value < score.auc.high
    assert set(forest.settings) == {"n_estimators", "max_samples", "max_features"}
    assert forest.published_auc == {"with skip connections": 0.93, "without skip connections": 0.89}
    assert report.remarks == ()
    assert report.rows.column_names == ["source", "image_id", "set", "split", "score_px", "forest_score"]
    assert len(report.rows) == 420


def test_nothing_depends_on_the_order_of_rows(tmp_path):
    turned = np.random.default_rng(9).permutation(100)
    reports = [
        measure_ood(rows_of(100, order=order, tmp_path=tmp_path), rows_of(60, latent=0.55, seed=1, tmp_path=tmp_path))
        for order in (None, turned)
    ]
    assert reports[0].rows.equals(reports[1].rows)
    assert [one.auc for one in reports[0].detectors] == [one.auc for one in reports[1].detectors]


def test_test_images_have_no_say_in_the_forest(tmp_path):
    inside, outside = rows_of(150, tmp_path=tmp_path), rows_of(60, latent=0.55, seed=1, tmp_path=tmp_path)
    first = measure_ood(inside, outside)
    in_test = split_in(inside.group, 0) == "test"
    inside.latent_sigma[in_test] = 5.0
    second = measure_ood(inside, outside)
    assert first.detectors[1].settings == second.detectors[1].settings
    kept = [row["split"] != "test" or row["set"] == "out" for row in first.rows.to_pylist()]
    scores = [np.array(one.rows["forest_score"].to_pylist())[kept] for one in (first, second)]
    assert (scores[0] == scores[1]).all()


def test_the_chosen_forest_is_the_best_on_validation_images():
    rng = np.random.default_rng(0)
    train, inside, outside = (rng.normal(mean, 1, (80, 4)) for mean in (0, 0, 1))
    forest, settings = choose_forest(train, inside, outside, 0)
    best = roc_auc(forest_score(forest, inside), forest_score(forest, outside))
    assert best > 0.7
    assert settings["max_samples"] == 80
    from sklearn.ensemble import IsolationForest

    for trees in (10, 30):
        other = IsolationForest(n_estimators=trees, max_samples=80, random_state=0).fit(train)
        assert roc_auc(forest_score(other, inside), forest_score(other, outside)) <= best


def test_few_images_are_warned_of(tmp_path):
    report = measure_ood(rows_of(40, tmp_path=tmp_path), rows_of(10, seed=1, tmp_path=tmp_path))
    assert len(report.remarks) == 1
    assert report.remarks[0].startswith("fewer than 20 images in a split, whose numbers say little: ")
    assert "validation of out" in report.remarks[0]


def test_rows_without_latent_sigmas_are_left_to_the_score(tmp_path):
    inside = rows_of(150, tmp_path=tmp_path)
    inside.latent_sigma[::3] = np.nan
    report = measure_ood(inside, rows_of(80, seed=1, tmp_path=tmp_path))
    assert report.without_latent == {"in": 50, "out": 0}
    assert report.rows["forest_score"].null_count == 50
    score, forest = report.detectors
    assert len(forest.test_in) < len(score.test_in)


@pytest.mark.parametrize("n_out", [1, 2])
def test_too_few_for_a_forest_is_said(tmp_path, n_out):
    report = measure_ood(rows_of(100, tmp_path=tmp_path), rows_of(n_out, seed=1, tmp_path=tmp_path))
    if len(report.detectors) == 1:
        assert "with latent sigmas: only the image score is measured" in report.remarks[-1]
    lone = measure_ood(rows_of(1, tmp_path=tmp_path), rows_of(1, seed=1, tmp_path=tmp_path))
    assert len(lone.detectors) == 1


def test_models_are_not_mixed_unless_wanted(tmp_path):
    inside = rows_of(30, model_id="a" * 64, tmp_path=tmp_path)
    outside = rows_of(30, seed=1, model_id="b" * 64, tmp_path=tmp_path)
    with pytest.raises(UsageError, match=r"t0 and t1: rows of 2 models \(aaaaaaaaaaaa, bbbbbbbbbbbb\).*--mix-models"):
        measure_ood(inside, outside)
    assert measure_ood(inside, outside, mix_models=True).detectors


def test_a_common_image_and_an_empty_side_are_refused(tmp_path):
    rows = rows_of(5, tmp_path=tmp_path)
    with pytest.raises(UsageError, match="5 images are in both"):
        measure_ood(rows, rows)
    with pytest.raises(UsageError, match="t1 has no row with uncertainty"):
        measure_ood(rows, rows_of(2, score=[np.nan] * 2, seed=1, tmp_path=tmp_path))


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("sklearn.ensemble", lambda: choose_forest(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)), 0)),
        ("scipy.stats", lambda: density(np.arange(3.0), np.arange(3.0))),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cxu\[science\]'"):
        call()


def test_densities_are_densities():
    at = np.linspace(-10, 10, 2001)
    curve = density(np.array([-1.0, 0.0, 1.0]), at)
    assert curve.sum() * 0.01 == pytest.approx(1, abs=1e-6)
    assert density(np.array([1.0]), at) is density(np.array([1.0, 1.0]), at) is None


# --- agreement with RCA ----------------------------------------------------------------------------------------------


def test_agreement_with_rca_by_hand(tmp_path):
    rca = np.array([0.9, 0.8, 0.7, 0.6, np.nan], np.float32)
    rows = rows_of(5, score=[1, 2, 4, 3, 9], rca_max=rca, latent=None, tmp_path=tmp_path)
    report = measure_rca(rows, 0.7)
    (one,) = report.agreements
    # 0.7 itself is not below; of the three above one has the higher score
    assert (one.source, one.n_in, one.n_out) == ("chestxray8", 3, 1)
    assert one.auc.value == pytest.approx(2 / 3)
    assert one.spearman.value == pytest.approx(-0.8)
    assert report.without_rca == 1
    assert one.points[0].threshold == 4
    assert one.points[0].sensitivity.value == 0
    assert report.rows["set"].to_pylist() == ["in", "in", "in", "out"]
    assert "chestxray8 (1 below, 3 not)" in report.remarks[0]


def test_sources_are_told_apart_and_together(tmp_path):
    rng = np.random.default_rng(0)
    rca = rng.uniform(0.4, 0.95, 200)
    source = ["mimic", "chexpert"] * 100
    # of one source the score follows the RCA, of the other it does not
    score = np.where(np.array(source) == "mimic", 20 - 10 * rca, rng.uniform(5, 15, 200))
    report = measure_rca(rows_of(200, score=score, rca_max=rca, source=source, tmp_path=tmp_path), 0.7)
    found = {one.source: one for one in report.agreements}
    assert list(found) == ["chexpert", "mimic", "all"]
    assert found["mimic"].spearman.value == pytest.approx(-1)
    assert found["mimic"].auc == (1, 1, 1)
    assert abs(found["chexpert"].spearman.value) < 0.3
    assert found["all"].n_in + found["all"].n_out == 200
    assert sum(step["n"] for step in found["all"].curve) == 200
    assert report.remarks == ()


@pytest.mark.parametrize("below", [0, -1, 1.5])
def test_a_limit_that_is_no_dice_is_refused(tmp_path, below):
    with pytest.raises(UsageError, match="--rca-below"):
        measure_rca(rows_of(2, tmp_path=tmp_path), below)


def test_rows_without_rca_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no row with both uncertainty and RCA"):
        measure_rca(rows_of(2, tmp_path=tmp_path), 0.7)


def test_one_side_alone_has_no_auc(tmp_path):
    report = measure_rca(rows_of(3, rca_max=np.full(3, 0.1), tmp_path=tmp_path), 0.7)
    assert np.isnan(report.agreements[0].auc.value)
    assert report.agreements[0].points == ()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_drawn(tmp_path):
    inside, outside = rows_of(60, tmp_path=tmp_path), rows_of(40, latent=0.6, seed=1, tmp_path=tmp_path)
    report = measure_ood(inside, outside)
    for name in ("a.png", "b.png", "a.svg"):
        draw_ood(report, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert "isolation forest" in drawn
    assert "IN t0, OUT t1" in drawn


def test_figures_of_next_to_nothing_are_drawn(tmp_path):
    one = rows_of(1, score=[3], latent=None, tmp_path=tmp_path)
    other = rows_of(1, score=[4], latent=None, seed=1, tmp_path=tmp_path)
    draw_ood(measure_ood(one, other), tmp_path / "a.png")
    rca = rows_of(2, score=[3, 3], rca_max=np.array([0.5, 0.9]), latent=None, tmp_path=tmp_path)
    draw_rca(measure_rca(rca, 0.7), tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_figure_of_rca_says_what_it_is(tmp_path):
    rca = np.random.default_rng(0).uniform(0.4, 0.95, 60)
    rows = rows_of(60, score=20 - 10 * rca, rca_max=rca, source=["mimic", "chexpert"] * 30, tmp_path=tmp_path)
    draw_rca(measure_rca(rows, 0.7), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "Agreement with another automatic score" in drawn
    assert "accuracy" not in drawn
