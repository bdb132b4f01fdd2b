"""Accuracy: measures of one image worked out by hand, and what becomes of organs that are missing or empty."""

import math

import numpy as np
import pytest
from PIL import Image

from builders import make_rows
from cxu import raster
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from cxu.errors import ImageError, UsageError
from cxu.evaluation.accuracy import (
    GROUPS,
    accuracy_rows,
    compare_landmarks,
    compare_planes,
    compare_with_masks,
    evaluate_accuracy,
    images_in_state,
    summarise_accuracy,
)
from cxu.evaluation.truth import LandmarkTruth, model_rows
from cxu.evaluation.truth_masks import OrganPlanes, list_masks
from cxu.frame import ModelFrame
from mask_helpers import box_ring

pytest.importorskip("scipy")
NAN = float("nan")


def boxes(right=(100, 100, 199, 299), left=(300, 100, 399, 299), heart=(240, 240, 339, 339)):
    """Return landmarks [120, 2] of boxes left, top, right, bottom; a box of 0 to 99 is 100 px wide as a mask."""
    rings = [box_ring(organ, *box) for organ, box in ((RIGHT_LUNG, right), (LEFT_LUNG, left), (HEART, heart))]
    return np.concatenate(rings).astype(np.float64)


TRUE = boxes()


def numbers(result):
    return (result.nodes, result.mse_px2, result.distance_px)


def of_masks(result):
    return (result.dice, result.hausdorff_px, result.hd95_px, result.assd_px)


# --- landmarks -------------------------------------------------------------------------------------------------------


def test_the_truth_itself_is_perfect():
    for result in compare_landmarks(TRUE, TRUE).values():
        assert result.state == "compared"
        assert numbers(result)[1:] == (0, 0)
        assert of_masks(result) == (1, 0, 0, 0)


def test_a_shifted_heart_by_hand():
    found = boxes(heart=(243, 244, 342, 343))  # by 3 and 4 px
    results = compare_landmarks(found, TRUE)
    # (9 + 16) / 2 a node, distance 5
    assert numbers(results["heart"]) == (26, 12.5, 5)
    assert numbers(results["all"]) == (120, pytest.approx(12.5 * 26 / 120), pytest.approx(5 * 26 / 120))
    assert numbers(results["lungs"]) == (94, 0, 0)
    # 97 · 96 px in common of 100 · 100 each
    assert results["heart"].dice == pytest.approx(0.9312)
    assert results["heart"].hausdorff_px == 5
    # the mean of three organs, two of them perfect
    assert results["all"].dice == pytest.approx((2 + 0.9312) / 3)
    assert results["all"].hausdorff_px == pytest.approx(5 / 3)


def test_lungs_are_one_mask():
    # a lung of 100 · 200 px loses half; the other stays: 2 · 30,000 / (30,000 + 40,000)
    results = compare_landmarks(boxes(left=(300, 100, 399, 199)), TRUE)
    assert results["left_lung"].dice == pytest.approx(2 * 10_000 / 30_000)
    assert results["lungs"].dice == pytest.approx(6 / 7)
    assert results["left_lung"].hausdorff_px == results["lungs"].hausdorff_px == 100


def test_a_heart_that_is_not_annotated_counts_nowhere():
    true = TRUE.copy()
    true[HEART.nodes] = NAN
    results = compare_landmarks(boxes(right=(102, 100, 201, 299)), true)
    assert results["heart"].state == results["all"].state == "missing"
    assert results["heart"].nodes == 0
    assert all(
        map(math.isnan, (*numbers(results["heart"])[1:], *of_masks(results["heart"]), *of_masks(results["all"])))
    )
    assert numbers(results["all"]) == (94, pytest.approx(2 * 44 / 94), pytest.approx(2 * 44 / 94))
    assert results["lungs"].state == "compared"


def test_a_partly_annotated_organ_has_nodes_but_no_mask():
    true = TRUE.copy()
    true[94, 0] = NAN
    results = compare_landmarks(TRUE, true)
    assert results["heart"].state == "missing"
    assert numbers(results["heart"]) == (25, 0, 0)
    assert results["lungs"].state == "compared"


def test_an_organ_outside_the_frame_is_empty():
    outside = (2000, 2000, 2100, 2100)
    empty_found = compare_landmarks(boxes(heart=outside), TRUE)["heart"]
    empty_true = compare_landmarks(TRUE, boxes(heart=outside))["heart"]
    both = compare_landmarks(boxes(heart=outside), boxes(heart=outside))["heart"]
    assert [one.state for one in (empty_found, empty_true, both)] == ["empty_prediction", "empty_truth", "both_empty"]
    assert [one.dice for one in (empty_found, empty_true, both)] == [0, 0, 1]
    assert all(math.isnan(one.hausdorff_px) for one in (empty_found, empty_true, both))


# --- planes ----------------------------------------------------------------------------------------------------------


def test_ignored_pixels_count_on_neither_side():
    found, true = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    ignored = found.copy()
    found[0, :4], true[0, :8] = True, True
    state, overlap, _ = compare_planes(found, true, ignored)
    assert (state, overlap) == ("compared", pytest.approx(8 / 12))
    ignored[0, 6:] = True
    assert compare_planes(found, true, ignored)[1] == pytest.approx(8 / 10)
    ignored[0, :8] = True
    assert compare_planes(found, true, ignored)[:2] == ("both_empty", 1)
    ignored[0, :] = False
    ignored[0, :4] = True
    assert compare_planes(found, true, ignored)[:2] == ("empty_prediction", 0)


def planes(landmarks_xy, shape_hw, *, painted, scale=1.0, offset=(0.0, 0.0)):
    labels = np.zeros(shape_hw, np.uint8)
    alone = {}
    for organ in (RIGHT_LUNG, LEFT_LUNG, HEART):
        points = landmarks_xy[organ.nodes] * scale + np.asarray(offset)
        raster.paint_polygon(labels, points, organ.label)
        alone[organ.name] = raster.fill_polygon(points, shape_hw) > 0
    drawn = {organ.name: labels == organ.label for organ in (RIGHT_LUNG, LEFT_LUNG, HEART)} if painted else alone
    return OrganPlanes(shape_hw, drawn, {name: np.zeros(shape_hw, bool) for name in drawn})


MODEL = (1024, 1024)


@pytest.mark.parametrize("kind", ["labels", "organs"])
def test_predictions_are_drawn_as_the_masks_are(kind):
    true = planes(TRUE, MODEL, painted=kind == "labels")
    for result in compare_with_masks(TRUE, true, kind, None).values():
        assert of_masks(result) == (1, 0, 0, 0)
        assert (result.nodes, math.isnan(result.mse_px2)) == (0, True)
    other = compare_with_masks(TRUE, true, "organs" if kind == "labels" else "labels", None)
    assert other["left_lung"].dice < 1 == other["right_lung"].dice


def test_the_heart_covers_no_lung_where_the_truth_has_none():
    lungs = boxes(heart=(2000, 2000, 2100, 2100))
    true = planes(lungs, MODEL, painted=True)
    without = OrganPlanes(MODEL, {k: v for k, v in true.planes.items() if k != "heart"}, true.ignored)
    results = compare_with_masks(TRUE, without, "labels", None)
    assert results["left_lung"].dice == results["lungs"].dice == 1
    assert results["heart"].state == results["all"].state == "missing"


def test_distances_in_a_mask_of_the_image_are_px_of_the_model_frame():
    # two image px per model px, 100 px cut off at the left; a heart 10 model px to the right
    true = planes(TRUE, (2048, 1848), painted=False, scale=2.0, offset=(-100.0, 0.0))
    image = ((2048, 1848), ModelFrame(2048.0, (-100.0, 0.0)))
    result = compare_with_masks(boxes(heart=(250, 240, 349, 339)), true, "organs", image)["heart"]
    assert result.hausdorff_px == 10
    # 199 px a side: 100 model px end on pixel 198
    assert result.dice == pytest.approx((199 - 20) / 199)


def test_no_organ_at_all_is_missing_throughout():
    results = compare_with_masks(TRUE, OrganPlanes(MODEL, {}, {}), "labels", None)
    assert {result.state for result in results.values()} == {"missing"}
    assert tuple(results) == GROUPS


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ImageError, match="600 × 500"):
        compare_with_masks(TRUE, planes(TRUE, (500, 600), painted=False), "organs", None)


# --- images ----------------------------------------------------------------------------------------------------------


def predictions(*landmarks_xy, ids=None):
    names = ids or [f"image{index}" for index in range(len(landmarks_xy))]
    return model_rows(make_rows(len(names), image_id=names, landmarks_xy=np.stack(landmarks_xy)), "found")


def truth(*landmarks_xy, ids=None):
    names = ids or [f"image{index}" for index in range(len(landmarks_xy))]
    return LandmarkTruth("true", tuple(names), np.stack(landmarks_xy))


def without_heart():
    true = TRUE.copy()
    true[HEART.nodes] = NAN
    return true


def test_means_weigh_nodes_for_landmarks_and_images_for_masks():
    shifted = boxes((102, 100, 201, 299), (302, 100, 401, 299), (242, 240, 341, 339))
    report = evaluate_accuracy(predictions(shifted, TRUE), truth(TRUE, without_heart()))
    summary = summarise_accuracy(report)
    # 4 / 2 of 120 nodes, 0 of 94
    assert summary["all"].measures["mse_px2"].interval.value == pytest.approx(2 * 120 / 214)
    assert summary["all"].nodes == 214
    assert summary["heart"].measures["mse_px2"].images == summary["heart"].measures["dice"].images == 1
    assert summary["heart"].states == {"compared": 1, "missing": 1}
    assert summary["right_lung"].measures["dice"].interval.value == pytest.approx((0.98 + 1) / 2)
    assert images_in_state(report, "heart", "missing") == ["image1"]


def test_an_empty_organ_counts_for_dice_and_has_no_distance():
    report = evaluate_accuracy(predictions(boxes(heart=(2000, 2000, 2100, 2100)), TRUE), truth(TRUE, TRUE))
    heart = summarise_accuracy(report)["heart"]
    assert heart.states == {"compared": 1, "empty_prediction": 1}
    assert (heart.measures["dice"].interval.value, heart.measures["dice"].images) == (0.5, 2)
    assert (heart.measures["hd95_px"].interval.value, heart.measures["hd95_px"].images) == (0, 1)


def test_intervals_are_over_images():
    found = [TRUE + shift for shift in (0, 0, 0, 10)]
    measured = summarise_accuracy(evaluate_accuracy(predictions(*found), truth(*[TRUE] * 4)))["all"].measures
    value, low, high = measured["mse_px2"].interval
    assert (value, low) == (25, 0)
    assert high == pytest.approx(75)


def test_rows_that_are_no_positions_are_left_out_and_named():
    broken = TRUE.copy()
    broken[5] = NAN
    report = evaluate_accuracy(predictions(broken, TRUE, TRUE + 1e7), truth(TRUE, TRUE, TRUE))
    assert report.predictions.image_id == ("image1",)
    assert [one.image_id for one in report.left_out] == ["image0", "image2"]
    assert len(report.results) == 1


def test_images_without_a_partner_are_named():
    report = evaluate_accuracy(predictions(TRUE, TRUE, ids=["a", "b"]), truth(TRUE, TRUE, ids=["c", "b"]))
    assert report.matches.lone_predictions == ("a",)
    assert report.matches.lone_truths == ("c",)
    with pytest.raises(UsageError, match="no image is in both"):
        evaluate_accuracy(predictions(TRUE, ids=["a"]), truth(TRUE, ids=["b"]))


def test_workers_change_nothing():
    found, true = [TRUE + shift for shift in range(20)], [TRUE] * 20
    alone, many = (evaluate_accuracy(predictions(*found), truth(*true), workers=workers) for workers in (1, 2))
    assert accuracy_rows(alone).equals(accuracy_rows(many))
    done = []
    evaluate_accuracy(predictions(*found), truth(*true), progress=done.append)
    assert sum(done) == 20


def test_masks_of_a_folder(tmp_path):
    labels = np.zeros(MODEL, np.uint8)
    for organ in (RIGHT_LUNG, LEFT_LUNG, HEART):
        raster.paint_polygon(labels, TRUE[organ.nodes], organ.label)
    Image.fromarray(labels).save(tmp_path / "a.png")
    labels[:, 320:] = 255
    Image.fromarray(labels).save(tmp_path / "b.png")
    Image.fromarray(labels[:99]).save(tmp_path / "c.png")
    found = predictions(TRUE, boxes(left=(300, 100, 500, 299)), TRUE, ids=["a", "b", "c"])
    report = evaluate_accuracy(found, list_masks(tmp_path))
    assert [one["all"].dice for one in report.results] == [1, 1]
    assert [one.image_id for one in report.left_out] == ["c"]
    assert "1024 × 99" in report.left_out[0].reason
    assert tuple(summarise_accuracy(report)["all"].measures) == ("dice", "hausdorff_px", "hd95_px", "assd_px")


def test_rows_have_a_line_for_each_image_and_group():
    rows = accuracy_rows(evaluate_accuracy(predictions(TRUE, TRUE), truth(TRUE, without_heart())))
    assert rows["organ"].to_pylist() == [*GROUPS] * 2
    last = rows.to_pylist()[GROUPS.index("heart") + len(GROUPS)]
    assert last == {
        "source": "chestxray8",
        "image_id": "image1",
        "model_id": "published",
        "organ": "heart",
        "state": "missing",
        "nodes": 0,
        "mse_px2": None,
        "distance_px": None,
        "dice": None,
        "hausdorff_px": None,
        "hd95_px": None,
        "assd_px": None,
    }
