"""Error against uncertainty: relations by hand and as plain resampling gives them, and several annotators."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import chest, make_rows
from cxu import stats, table
from cxu.anatomy import HEART
from cxu.errors import UsageError
from cxu.evaluation.error import (
    GAUSSIAN_SLOPE,
    MEAN,
    annotator_names,
    between_annotators,
    error_rows,
    evaluate_error,
    mean_annotation,
    summarise_error,
)
from cxu.evaluation.relation import relate
from cxu.evaluation.truth import LandmarkTruth, model_rows

NAN = float("nan")
TRUE = chest().astype(np.float64)


# --- relations -------------------------------------------------------------------------------------------------------


def test_a_relation_by_hand():
    # nodes (1, 2), (2, 4) of one image and (3, 9) of another; a fourth is not annotated
    found = relate(np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[2.0, 4.0], [9.0, NAN]]))
    assert (found.images, found.nodes) == (2, 3)
    assert (found.mean_px.value, found.median_px) == (5, 4)
    assert (found.mean_sigma_px.value, found.median_sigma_px) == (2, 2)
    assert found.ratio.value == 2.5
    # deviations -1 0 1 and -3 -1 4: covariance 7, variances 2 and 26
    assert found.slope.value == pytest.approx(3.5)
    assert found.pearson.value == pytest.approx(7 / math.sqrt(52))
    assert found.spearman.value == pytest.approx(1)
    assert found.mean_px.low == 3
    assert found.mean_px.high == 9
    assert [one["n"] for one in found.curve] == [1, 1, 1]


def test_a_relation_of_nothing():
    found = relate(np.full((3, 2), NAN), np.ones((3, 2)))
    assert (found.images, found.nodes, found.curve) == (0, 0, ())
    numbers = (found.mean_px.value, found.median_px, found.pearson.value, found.spearman.value, found.slope.value)
    assert all(map(math.isnan, numbers))


def test_a_constant_uncertainty_has_no_correlation():
    found = relate(np.full((4, 3), 7.1), np.arange(12.0).reshape(4, 3), n_boot=50)
    for one in (found.pearson, found.spearman, found.slope):
        assert all(map(math.isnan, one))
    assert found.ratio.value == pytest.approx(5.5 / 7.1)


whole = st.integers(0, 6).map(float) | st.just(NAN)


@st.composite
def nodes_of_images(draw):
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return [
        np.array(draw(st.lists(whole, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape)
        for _ in range(2)
    ]


@settings(max_examples=60)
@given(nodes_of_images())
def test_intervals_are_those_of_plain_resampling(arrays):
    sigma, value = arrays
    found = relate(sigma, value, n_boot=20, seed=4)
    known = np.isfinite(sigma) & np.isfinite(value)
    kept = np.flatnonzero(known.any(axis=1))

    def plain(measure):
        def of_images(of):
            x = np.concatenate([sigma[kept[i]][known[kept[i]]] for i in of])
            y = np.concatenate([value[kept[i]][known[kept[i]]] for i in of])
            return measure(x, y)

        return stats.bootstrap(of_images, len(kept), n_boot=20, seed=4)

    expected = {
        "pearson": plain(stats.pearson),
        "spearman": plain(stats.spearman),
        "slope": plain(stats.slope),
        "mean_px": plain(lambda x, y: y.mean()),
        "mean_sigma_px": plain(lambda x, y: x.mean()),
        "ratio": plain(lambda x, y: y.mean() / x.mean() if x.mean() > 0 else NAN),
    }
    for name, interval in expected.items():
        np.testing.assert_allclose(getattr(found, name), interval, atol=1e-7, err_msg=name)


def test_a_calibrated_gaussian_has_the_slope_that_is_drawn():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(2, 20, (200, 120))
    error = np.linalg.norm(rng.normal(0, 1, (200, 120, 2)) * sigma[..., None], axis=-1)
    found = relate(sigma, error, n_boot=50)
    assert found.slope.value == pytest.approx(GAUSSIAN_SLOPE, rel=0.02)
    assert found.ratio.value == pytest.approx(GAUSSIAN_SLOPE, rel=0.01)
    assert round(GAUSSIAN_SLOPE, 4) == 1.2533


# --- annotators ------------------------------------------------------------------------------------------------------


def test_mean_and_distance_of_annotators_by_hand():
    # three annotators of three nodes: all three, two and one of them annotated
    true_xy = np.array([[[[0, 0], [0, 0], [1, 1]]], [[[6, 0], [0, 8], [NAN, 1]]], [[[0, 8], [NAN, NAN], [NAN, NAN]]]])
    np.testing.assert_allclose(mean_annotation(true_xy), [[[2, 8 / 3], [0, 4], [NAN, NAN]]])
    np.testing.assert_allclose(between_annotators(true_xy), [[(6 + 8 + 10) / 3, 8, NAN]])


def test_names_of_annotators():
    assert annotator_names(["a/first.npz", "b/second.parquet", "third"]) == ("first", "second", "third")
    assert annotator_names(["a/truth.npz", "b/truth.npz"]) == ("a/truth.npz", "b/truth.npz")
    assert annotator_names([f"x/{MEAN}.npz", "y.npz"]) == (f"x/{MEAN}.npz", "y.npz")
    with pytest.raises(UsageError, match=r"a\.npz is given twice"):
        annotator_names(["a.npz", "b.npz", "a.npz"])


# --- reports ---------------------------------------------------------------------------------------------------------


def predictions(n_rows, sigma=None, **columns):
    sigma = np.arange(1.0, 1 + n_rows) if sigma is None else np.array(sigma, float)
    sigma_xy = np.broadcast_to(sigma[:, None, None], (n_rows, 120, 2)).astype(np.float32)
    return model_rows(make_rows(n_rows, **table.sigma_columns(sigma_xy), **columns), "found")


def truth(name, shifts, ids=None):
    """Annotate images by shapes moved to the right, a shift each."""
    names = ids or [f"image{index:04d}" for index in range(len(shifts))]
    return LandmarkTruth(name, tuple(names), np.stack([TRUE + np.array([shift, 0]) for shift in shifts]))


def test_one_annotator():
    report = evaluate_error(predictions(3), [truth("t.npz", [2, 4, 6])])
    summary = summarise_error(report)
    assert tuple(summary.annotators) == ("t",)
    assert (summary.mean_annotator, summary.between) == (None, None)
    found = summary.annotators["t"]["all"]
    assert (found.images, found.nodes, found.mean_px.value) == (3, 360, 4)
    assert (found.pearson.value, found.slope.value, found.ratio.value) == pytest.approx((1, 2, 2))
    assert summary.annotators["t"]["heart"].nodes == 3 * HEART.n_nodes


def test_two_annotators_and_their_mean():
    report = evaluate_error(predictions(2), [truth("a.npz", [2, 4]), truth("b.npz", [-4, -2])])
    summary = summarise_error(report)
    assert [summary.annotators[name]["all"].mean_px.value for name in ("a", "b")] == [3, 3]
    # means at -1 and 1
    assert summary.mean_annotator["all"].mean_px.value == pytest.approx(1)
    assert (summary.between["all"].mean_px.value, summary.between["all"].median_px) == (6, 6)


def test_annotators_of_different_images():
    first, second = truth("a.npz", [1, 1], ["image0000", "image0001"]), truth("b.npz", [4, 4], ["image0001", "other"])
    report = evaluate_error(predictions(4), [first, second])
    assert report.predictions.image_id == ("image0000", "image0001")
    assert report.lone_predictions == ("image0002", "image0003")
    assert report.matches["b"].lone_truths == ("other",)
    summary = summarise_error(report)
    assert [summary.annotators[name]["all"].images for name in ("a", "b")] == [2, 1]
    assert (summary.between["all"].images, summary.between["all"].mean_px.value) == (1, 3)
    assert summary.mean_annotator["all"].mean_px.value == 2.5


def test_nodes_that_are_not_annotated_do_not_count():
    true = truth("t.npz", [3])
    true.landmarks_xy[:, HEART.nodes] = NAN
    summary = summarise_error(evaluate_error(predictions(1), [true]))
    assert summary.annotators["t"]["all"].nodes == 94
    assert summary.annotators["t"]["heart"].nodes == 0


def test_rows_without_uncertainty_are_left_out_and_named():
    report = evaluate_error(predictions(2, sigma=[NAN, 2]), [truth("t.npz", [1, 1])])
    assert report.predictions.image_id == ("image0001",)
    assert [str(one) for one in report.left_out] == ["image0000: without standard deviations"]
    with pytest.raises(UsageError, match="no row of found has standard deviations"):
        evaluate_error(predictions(1, sigma=[NAN]), [truth("t.npz", [1])])


def test_models_are_not_mixed_unless_asked_for():
    mixed = predictions(2, model_id=["m", "n"])
    with pytest.raises(UsageError, match=r"2 models \(m, n\).*--mix-models"):
        evaluate_error(mixed, [truth("t.npz", [1, 1])])
    assert len(evaluate_error(mixed, [truth("t.npz", [1, 1])], mix_models=True).predictions) == 2


def test_rows_are_nodes_of_annotators():
    first, second = truth("a.npz", [2]), truth("b.npz", [4])
    second.landmarks_xy[:, HEART.nodes] = NAN
    rows = error_rows(evaluate_error(predictions(1, sigma=[7]), [first, second])).to_pylist()
    assert [sum(row["annotator"] == name for row in rows) for name in ("a", "b", MEAN)] == [120, 94, 94]
    assert rows[0] == {
        "annotator": "a",
        "source": "chestxray8",
        "image_id": "image0000",
        "model_id": "published",
        "node": 0,
        "organ": "right_lung",
        "sigma_px": 7,
        "error_px": 2,
        "between_annotators_px": None,
    }
    assert (rows[-1]["node"], rows[-1]["organ"], rows[-1]["error_px"]) == (93, "left_lung", 3)
    assert rows[-1]["between_annotators_px"] == 2
    assert rows[119]["organ"] == "heart"
