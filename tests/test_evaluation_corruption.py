"""Damage to the network's input, and what is recorded of the answers."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cxu
from builders import chest
from cxu import store
from cxu.errors import MissingExtraError, UsageError
from cxu.evaluation.corruption import DamageOptions, DamageReport, NodeResponse, Response, draw_images, measure_damage
from cxu.evaluation.corruption_damage import add_noise, choose_nodes, draw_squares, nodes_inside
from cxu.evaluation.corruption_pool import check_same_run, pool, read_damage_table
from cxu.evaluation.corruption_summary import correlations_within, pooled_correlation, summarize_damage
from cxu.evaluation.corruption_table import damage_rows
from cxu.evaluation.corruption_truth import match_truth
from cxu.evaluation.result_file import write_rows
from cxu.evaluation.truth import LandmarkTruth, open_truth, read_npz
from cxu.model.weight_source import load
from cxu.plot.corruption import draw_damage
from cxu.predict import PredictOptions, Predictor
from cxu.predict_plan import plan_images
from predict_helpers import write_film, write_weights

UNIT = hnp.arrays(np.float32, (4, 4), elements=st.floats(0, 1, width=32))
SEEDS = st.integers(0, 2**63 - 1)


# --- damage ----------------------------------------------------------------------------------------------------------


@given(UNIT, SEEDS)
def test_no_noise_leaves_the_frame(pixels, seed):
    assert (add_noise(pixels, 0.0, seed) == pixels).all()


@given(UNIT, st.floats(0, 500), SEEDS)
def test_noise_stays_in_the_range_of_the_input(pixels, sigma, seed):
    noisy = add_noise(pixels, sigma, seed)
    assert noisy.dtype == np.float32
    assert (noisy >= 0).all()
    assert (noisy <= 1).all()


def test_noise_has_the_sigma_in_8_bit_grey_levels():
    noise = add_noise(np.full((200, 200), 0.5, np.float32), 20.0, 3) - 0.5
    assert noise.std() == pytest.approx(20 / 255, rel=0.02)
    assert abs(noise.mean()) < 0.002


def test_noise_is_clipped_at_both_ends():
    for grey in (0.0, 1.0):
        noisy = add_noise(np.full((50, 50), grey, np.float32), 30.0, 1)
        assert 0.4 < (noisy == grey).mean() < 0.6


def test_each_sigma_draws_noise_of_its_own():
    grey = np.full((30, 30), 0.5, np.float32)
    one, two = (add_noise(grey, sigma, 5) - grey for sigma in (10.0, 20.0))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.2
    assert (add_noise(grey, 10.0, 5) - grey == one).all()
    assert (add_noise(grey, 10.0, 6) - grey != one).any()


def test_a_square_covers_what_it_says():
    # of 64 px a pixel is 16 px of the model frame: centre (16, 32), half a side 8
    damaged = draw_squares(np.ones((64, 64), np.float32), np.array([[256.0, 512.0]]), 128.0)
    expected = np.ones((64, 64))
    expected[24:40, 8:24] = 0
    assert (damaged == expected).all()


def test_squares_may_stand_over_the_edge_and_leave_the_frame_as_it_was():
    pixels = np.ones((64, 64), np.float32)
    damaged = draw_squares(pixels, np.array([[0.0, 1023.0], [-900.0, 5.0]]), 100.0)
    assert (pixels == 1).all()
    assert (damaged[58:, :6] == 0).all()
    assert (damaged == 0).sum() == 36


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 1023)), min_size=1, max_size=3),
    hnp.arrays(np.int64, (20, 2), elements=st.integers(0, 1023)),
    st.integers(1, 200),
)
def test_pixels_of_nodes_are_black_exactly_inside_squares(centres, points, half):
    damaged = draw_squares(np.ones((1024, 1024), np.float32), np.array(centres, float), float(half))
    inside = nodes_inside(points.astype(float), np.array(centres, float), float(half))
    for (x, y), covered in zip(points, inside, strict=True):
        # the square's last row and column are its edge: a node there counts as inside
        at_edge = any(half in (x - cx, y - cy) for cx, cy in centres)
        assert (damaged[y, x] == 0) == covered or (at_edge and covered)


def test_nodes_that_are_not_known_are_in_no_square_and_centre_of_none():
    points = chest()
    points[94:] = np.nan
    order = choose_nodes(points, 7)
    assert sorted(order) == list(range(94))
    assert not nodes_inside(points, points[:1], 3000.0)[94:].any()
    assert nodes_inside(points, points[:1], 3000.0)[:94].all()


def test_centres_are_drawn_by_the_seed():
    orders = [tuple(choose_nodes(chest(), seed)) for seed in range(20)]
    assert orders[3] == tuple(choose_nodes(chest(), 3))
    assert len(set(orders)) == 20
    assert len({order[0] for order in orders}) > 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"damage": "noise", "severities": (-1.0,)}, "--sigmas -1"),
        ({"damage": "noise", "severities": (float("nan"),)}, "--sigmas nan"),
        ({"damage": "occlusion", "severities": (1.5,)}, "--squares 1.5"),
        ({"damage": "occlusion", "severities": (121,)}, "--squares 121"),
        ({"damage": "occlusion", "half_size_px": 0.0}, "--half-size 0"),
    ],
)
def test_impossible_damage_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        DamageOptions(**options)


def test_steps_are_sorted_and_begin_undamaged():
    assert DamageOptions("noise", (50, 10, 10)).steps == (0, 10, 50)
    assert DamageOptions("occlusion").steps == (0, 1, 2, 4)
    assert DamageOptions("noise").steps[-1] == 190


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of three films and the tiny network."""
    folder = tmp_path_factory.mktemp("films")
    write_weights(folder / "tiny.safetensors")
    for seed, name in enumerate(("a", "b", "c")):
        write_film(folder / f"films/{name}.png", seed)
    return folder


def predictor(folder, batch_size=1, **options):
    weights = load(str(folder / "tiny.safetensors"))
    return Predictor(weights, PredictOptions(**{"n_samples": 5, **options}), torch.device("cpu"), batch_size)


def measure(folder, options, **more):
    plan = plan_images([folder / "films"])
    return measure_damage(plan, more.pop("predictor", None) or predictor(folder), options, **more)


def numbers(report):
    names = ("score_px", "latent_sigma", "drift_px", "error_px")
    return {one.image.image_id: np.stack([getattr(one, name) for name in names]) for one in report.responses}


def test_the_first_step_is_what_predict_finds(films):
    report = measure(films, DamageOptions("noise", (50,)))
    rows = cxu.predict_images(films / "films", weights=str(films / "tiny.safetensors"), n_samples=5)
    for one, row in zip(report.responses, rows.to_pylist(), strict=True):
        assert one.image.image_id == row["image_id"]
        assert one.score_px[0] == pytest.approx(row["mean_sigma_model_px"], rel=1e-5)
        assert one.latent_sigma[0] == pytest.approx(np.mean(row["latent_sigma"]), rel=1e-5)
        assert one.drift_px[0] == 0
        assert one.drift_px[1] > 0
        assert np.isnan(one.error_px).all()
        assert one.nodes is None


@pytest.mark.parametrize("options", [DamageOptions("noise", (10, 90)), DamageOptions("occlusion", (1, 3))])
def test_order_and_batch_change_nothing(films, options):
    first = numbers(measure(films, options))
    plan = plan_images([films / "films"])
    turned = measure_damage(plan, predictor(films, 4), options, images=plan.images[::-1])
    for name, values in numbers(turned).items():
        np.testing.assert_allclose(values, first[name], rtol=1e-4, atol=1e-3)
    again = numbers(measure(films, options))
    assert all((again[name] == first[name])[:3].all() for name in first)


def test_a_step_does_not_depend_on_the_others(films):
    alone, among = (numbers(measure(films, DamageOptions("noise", sigmas))) for sigmas in ((50,), (10, 50, 80)))
    for name, values in alone.items():
        assert (values[:3, 1] == among[name][:3, 2]).all()


def test_the_seed_matters(films):
    one, two = (
        numbers(measure(films, DamageOptions("noise", (50,)), predictor=predictor(films, seed=s))) for s in (0, 1)
    )
    assert all((one[name][:3] != two[name][:3]).any() for name in one)


def test_errors_are_distances_of_annotated_nodes(films):
    plan = plan_images([films / "films"])
    rows = cxu.predict_images(films / "films", weights=str(films / "tiny.safetensors"), n_samples=5)
    side, offset = (np.array(rows[name].to_pylist()) for name in ("frame_side", "frame_offset_xy"))
    found = (cxu.landmarks(rows) - offset[:, None]) * (1024 / side)[:, None, None]
    truth = found + np.array([3.0, 4.0])
    truth[:, 94:] = np.nan
    truths = dict(zip(plan.images, truth.astype(np.float32), strict=True))
    report = measure_damage(plan, predictor(films), DamageOptions("occlusion", (1,)), truths=truths)
    assert report.has_truth
    for one, true_xy in zip(report.responses, truth, strict=True):
        assert one.error_px[0] == pytest.approx(5, abs=1e-3)
        assert np.isnan(one.nodes.error_px[:, 94:]).all()
        # squares stand on true landmarks, and what is not annotated is neither inside nor outside
        assert not one.nodes.inside[0].any()
        assert one.nodes.inside[1].any()
        assert (one.nodes.inside[1] | one.nodes.outside[1])[:94].all()
        assert not (one.nodes.inside | one.nodes.outside)[:, 94:].any()
        (centre,) = true_xy[choose_nodes(true_xy, _seed_of(films, one))[:1]]
        assert (one.nodes.inside[1] == nodes_inside(true_xy, centre[None], 100.0)).all()


def _seed_of(films, response):
    from cxu.films import read_film
    from cxu.model.sampling import image_seed

    return image_seed(0, read_film(response.image.file).grey)


def test_more_squares_cover_what_fewer_cover(films):
    for one in measure(films, DamageOptions("occlusion", (1, 2, 4))).responses:
        inside = one.nodes.inside
        assert [row.any() for row in inside] == [False, True, True, True]
        assert all((more | ~fewer).all() for fewer, more in itertools.pairwise(inside))


def test_files_that_cannot_be_read_are_listed(films, tmp_path):
    write_film(tmp_path / "in/good.png")
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    seen = []
    plan = plan_images([tmp_path / "in"])
    report = measure_damage(plan, predictor(films), DamageOptions("noise", (10,)), advance=seen.append)
    assert [one.image.image_id for one in report.responses] == ["good.png"]
    assert [one.file for one in report.rejected] == [str(tmp_path / "in/bad.png")]
    assert seen == [1, 1]


def test_a_single_sample_has_no_uncertainty(films):
    with pytest.raises(UsageError, match="2 samples or more"):
        measure(films, DamageOptions("noise"), predictor=predictor(films, n_samples=1))


def test_a_smaller_limit_draws_some_of_the_same_images(tmp_path):
    for index in range(12):
        write_film(tmp_path / f"{index:02d}.png", size=64)
    images = plan_images([tmp_path]).images
    drawn = draw_images(images, 5, 0)
    assert len(drawn) == 5
    assert sorted(drawn, key=images.index) == drawn
    assert set(draw_images(images, 3, 0)) < set(drawn)
    assert set(draw_images(images[::-1], 5, 0)) == set(drawn)
    assert draw_images(images, 5, 1) != drawn
    assert draw_images(images, None, 0) == draw_images(images, 99, 0) == list(images)


# --- summaries -------------------------------------------------------------------------------------------------------


def response(image, score, error=None, nodes=None):
    score = np.array(score, np.float32)
    error = np.full(len(score), np.nan) if error is None else np.array(error, np.float32)
    return Response(image, score, 1 / score, score - score[0], error, nodes)


@pytest.fixture(scope="module")
def images(films):
    return plan_images([films / "films"]).images


def test_summary_of_noise_by_hand(images):
    responses = (
        response(images[0], [1, 2, 3], [10, 20, 30]),
        response(images[1], [2, 4, 6], [12, 30, 20]),
        response(images[2], [3, 1, 2], [11, 11, 11]),
    )
    summary = summarize_damage(DamageReport(DamageOptions("noise", (10, 20)), responses, (), True))
    assert summary.images == 3
    assert [step.severity for step in summary.steps] == [0, 10, 20]
    assert [step.score_px.median for step in summary.steps] == [2, 2, 3]
    assert summary.steps[1].score_px == (1.5, 2, 3)
    assert [step.error_px.median for step in summary.steps] == [11, 20, 20]
    assert [step.drift_px.median for step in summary.steps] == [0, 1, 2]
    # ranks over steps: 1, 1 and −0.5; of errors 1 and 0.5, and none where they never change
    assert summary.score_with_severity.value == pytest.approx(0.5)
    assert summary.latent_with_severity.value == pytest.approx(-0.5)
    assert summary.score_with_error_within.value == pytest.approx(0.75)
    assert summary.sigma_ratio is None
    assert summary.published_px["with skip connections"][50] == 65.9


def test_correlations_by_hand():
    score, error = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [4.0, 3.0]])
    assert correlations_within(score, error).tolist() == pytest.approx([1, -1])
    # ranks 1 2 3 4 against 1 2 4 3
    assert pooled_correlation(score, error, 0).value == pytest.approx(0.8)


def test_without_truth_there_is_no_error(images):
    report = DamageReport(DamageOptions("noise", (10,)), (response(images[0], [1, 2]),))
    summary = summarize_damage(report)
    assert summary.score_with_error is summary.score_with_error_within is None
    assert summary.steps[0].error_px is None


def test_no_image_gives_no_number():
    summary = summarize_damage(DamageReport(DamageOptions("occlusion"), ()))
    assert summary.images == 0
    assert np.isnan(summary.steps[0].score_px.median)
    assert np.isnan(summary.score_with_severity.value)
    assert summary.sigma_ratio is None


def nodes_of(inside_sigma, outside_sigma, error=None):
    """Return nodes of two steps: the first two are inside at the second, the last is in neither."""
    sigma = np.full((2, 120), 1, np.float32)
    sigma[1, 2:] = outside_sigma
    sigma[1, :2] = inside_sigma
    inside, outside = np.zeros((2, 120), bool), np.ones((2, 120), bool)
    inside[1, :2], outside[1, :2], outside[:, -1] = True, False, False
    return NodeResponse(sigma, np.full((2, 120), np.nan) if error is None else error, inside, outside)


def test_inside_against_outside_by_hand(images):
    error = np.full((2, 120), 2.0)
    error[1, :2] = 8.0
    error[:, -1] = np.nan
    responses = tuple(
        response(image, [1, 2], [2, 3], nodes_of(sigma, 2.0, error))
        for image, sigma in zip(images, (4, 6, 8), strict=True)
    )
    summary = summarize_damage(DamageReport(DamageOptions("occlusion", (1,)), responses, (), True))
    assert summary.steps[0].nodes is None
    found = summary.steps[1].nodes
    assert (found.n_inside, found.n_outside) == (6, 3 * 117)
    assert (found.sigma_inside_px, found.sigma_before_px, found.sigma_outside_px) == (6, 1, 2)
    assert found.sigma_ratio.value == summary.sigma_ratio.value == 3
    assert (found.sigma_ratio.low, found.sigma_ratio.high) == (2, 4)
    assert (found.error_inside_px, found.error_outside_px, found.error_ratio.value) == (8, 2, 4)
    assert summary.published_px == {}


# --- truth -----------------------------------------------------------------------------------------------------------


def truth_of(names, landmarks_xy):
    return LandmarkTruth("t.npz", tuple(names), np.asarray(landmarks_xy, float))


def test_truth_is_matched_by_id(films):
    truth = np.stack([chest(), np.full((120, 2), np.nan), chest() + 1, chest()])
    images = plan_images([films / "films"]).images
    # b is NaN throughout
    found = match_truth(images, truth_of(["c", "b", "elsewhere/a.png", "other"], truth))
    assert [image.image_id for image in found] == ["a.png", "c.png"]
    assert (found[images[0]] == chest() + 1).all()
    assert found[images[0]].dtype == np.float32


def test_truth_of_no_image_is_refused(films, tmp_path):
    images = plan_images([films / "films"]).images
    with pytest.raises(UsageError, match="no image is in both"):
        match_truth(images, truth_of(["z"], [chest()]))
    with pytest.raises(UsageError, match=r"--truth t\.npz has no annotated node"):
        match_truth(images, truth_of(["a"], [np.full((120, 2), np.nan)]))
    write_film(tmp_path / "masks/a.png")
    with pytest.raises(UsageError, match="is masks: expected landmarks"):
        match_truth(images, open_truth(store.Home(tmp_path), str(tmp_path / "masks")))


# --- files -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_report(films, tmp_path):
    used = predictor(films)
    report = measure(films, DamageOptions("occlusion", (1, 2)), predictor=used)
    rows = damage_rows(report, used)
    assert len(rows) == 9
    assert rows["severity"].to_pylist() == [0, 1, 2] * 3
    assert rows["error_px"].null_count == rows["error_inside_px"].null_count == 9
    assert rows["sigma_inside_px"].null_count == 3
    one = report.responses[1]
    assert rows["score_px"][4].as_py() == pytest.approx(float(one.score_px[1]))
    assert rows["nodes_inside"][4].as_py() == one.nodes.inside[1].sum()
    assert rows["sigma_inside_px"][4].as_py() == pytest.approx(float(one.nodes.sigma_px[1][one.nodes.inside[1]].mean()))
    write_rows(rows, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(rows)
    write_rows(rows, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 10
    assert lines[1].startswith('"local","a.png",0,')
    assert "nan" not in "".join(lines)


def damage_table(damage, *rows):
    names = ("image_id", "severity", "score_px", "error_px")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    facts = {"source": "local", "damage": damage, "model_id": "m", "seed": 0, "n_samples": 4}
    return pa.table(columns | {name: [value] * len(rows) for name, value in facts.items()})


def test_damage_is_pooled_by_hand():
    noise = damage_table(
        "noise", ("a", 0.0, 1.0, 1.0), ("a", 10.0, 3.0, 3.0), ("b", 0.0, 9.0, 9.0), ("c", 0.0, 5.0, None)
    )
    squares = damage_table("occlusion", ("c", 0.0, 5.0, None), ("a", 0.0, 1.0, 1.0), ("a", 1.0, 2.0, 4.0))
    pooled = pool([noise, squares])
    # b has no squares and c no truth; of a, scores 1, 3, 2 and errors 1, 3, 4: ranks 1, 3, 2 and 1, 2, 3
    assert pooled.images == 1
    assert pooled.damage == ("noise", "occlusion")
    assert pooled.score_with_error.value == pytest.approx(0.5)
    assert pool([noise]).images == 2


def test_tables_that_cannot_be_pooled_are_refused(tmp_path):
    noise = damage_table("noise", ("a", 0.0, 1.0, None))
    write_rows(noise, tmp_path / "blind.parquet")
    write_rows(noise.select(["image_id"]), tmp_path / "other.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    for name, said in (
        ("blind.parquet", "measured without --truth"),
        ("other.csv", "no table that cxu evaluate"),
        ("torn.parquet", "no table that cxu evaluate"),
        ("none.csv", "no such file"),
        ("a.txt", "expected a name that ends in"),
    ):
        with pytest.raises(UsageError, match=said):
            read_damage_table(tmp_path / name)
    for name in ("model_id", "seed", "n_samples"):
        with pytest.raises(UsageError, match=f"another {name}"):
            check_same_run({Path("t"): noise}, **{"model_id": "m", "seed": 0, "n_samples": 4, name: 7})


def test_rows_of_no_image(films):
    for damage in ("noise", "occlusion"):
        assert len(damage_rows(DamageReport(DamageOptions(damage), ()), predictor(films))) == 0


@pytest.mark.parametrize("damage", ["noise", "occlusion"])
@pytest.mark.parametrize("has_truth", [False, True])
def test_figures_are_drawn(images, tmp_path, damage, has_truth):
    error = [2, 3] if has_truth else None
    responses = tuple(
        response(image, [1 + index, 2], error, nodes_of(4, 2) if damage == "occlusion" else None)
        for index, image in enumerate(images)
    )
    report = DamageReport(DamageOptions(damage, (1,)), responses, (), has_truth)
    for name in ("a.png", "b.png", "a.svg"):
        draw_damage(report, summarize_damage(report), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert ("published, with skip connections" in drawn) == (damage == "noise")
    assert ("Drift from the undamaged prediction (no error)" in drawn) == (not has_truth)
    assert ("Score against error" in drawn) == has_truth
    empty = DamageReport(DamageOptions(damage), (), (), has_truth)
    draw_damage(empty, summarize_damage(empty), tmp_path / "empty.png")


def test_without_matplotlib_the_error_says_how_to_get_it(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = DamageReport(DamageOptions("noise", (1,)), (response(images[0], [1, 2]),))
    with pytest.raises(MissingExtraError, match=r"cxu\[plot\]"):
        draw_damage(report, summarize_damage(report), tmp_path / "a.png")


@pytest.mark.shared
def test_real_films_become_uncertain(shared_data):
    files = [shared_data / f"train/images/{name}.jpg" for name in ("JPCLN020", "JPCLN059")]
    plan = plan_images(files)
    truths = match_truth(plan.images, read_npz(shared_data / "train/landmarks.npz"))
    used = Predictor(load("bundled"), PredictOptions(10), torch.device("cpu"))
    noise = summarize_damage(measure_damage(plan, used, DamageOptions("noise", (100,)), truths=truths))
    assert noise.steps[0].error_px.median < 25
    assert noise.steps[1].score_px.median > 1.2 * noise.steps[0].score_px.median
    squares = summarize_damage(measure_damage(plan, used, DamageOptions("occlusion", (4,)), truths=truths))
    assert squares.sigma_ratio.value > 1.2
