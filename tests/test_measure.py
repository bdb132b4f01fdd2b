"""Measures of organs: worked out by hand, laws, blanks, intervals, and real rows."""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import chest, make_rows
from cxu import store, table
from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG
from cxu.api import import_csv
from cxu.contour import polygon_area
from cxu.errors import DuplicateIdError, FormatError, OutputExistsError, UsageError
from cxu.labels import open_labels
from cxu.measure import intervals, rows
from cxu.measure.bulk import measure_table
from cxu.measure.geometry import MEASURED, measure_nodes, overlap_fraction, tilt
from cxu.measure.rows import MEASURES, SCHEMA, measure, measure_rows
from cxu.shape import load_shape_model, sample_shapes, sample_sigmas

# left, top, right, bottom
RECTANGLES = {RIGHT_LUNG: (100, 100, 400, 700), LEFT_LUNG: (500, 100, 900, 600), HEART: (350, 400, 700, 600)}


def rectangle(corners, n_nodes):
    """Return n_nodes nodes around a rectangle: all but two along its upper edge, from left to right."""
    left, top, right, bottom = corners
    upper = np.stack([np.linspace(left, right, n_nodes - 2), np.full(n_nodes - 2, top)], axis=1)
    return np.concatenate([upper, [[right, bottom], [left, bottom]]])


def boxes():
    return np.concatenate([rectangle(corners, organ.n_nodes) for organ, corners in RECTANGLES.items()])


def made(n_rows=1, **columns):
    """Return the measures of rows of boxes, as a dict of lists."""
    columns.setdefault("landmarks_xy", np.broadcast_to(boxes(), (n_rows, 120, 2)))
    return measure_rows(make_rows(n_rows, **columns)).to_pydict()


def one(**columns):
    return {name: values[0] for name, values in made(**columns).items()}


@functools.cache
def shapes(n_rows=12, seed=0):
    rng = np.random.default_rng(seed)
    return sample_shapes(load_shape_model(), n_rows, rng), sample_sigmas(n_rows, rng)


def selection(confident=None, usable=(True, True, True), **columns):
    confident = np.ones(120, bool) if confident is None else confident
    return {"confident": confident[None], "usable": np.array([usable]), **columns}


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_every_measure_of_three_boxes():
    found = one()
    expected = {
        "ctr": 350 / 800,
        "heart_width_px": 350,
        "thorax_width_px": 800,
        "right_lung_width_px": 300,
        "left_lung_width_px": 400,
        "heart_height_px": 200,
        "right_lung_height_px": 600,
        "left_lung_height_px": 500,
        "right_lung_area_px2": 180_000,
        "left_lung_area_px2": 200_000,
        "heart_area_px2": 70_000,
        "right_lung_image_fraction": 180_000 / 1024**2,
        "left_lung_image_fraction": 200_000 / 1024**2,
        "heart_image_fraction": 70_000 / 1024**2,
        "right_lung_thorax_fraction": 18 / 45,
        "left_lung_thorax_fraction": 20 / 45,
        "heart_thorax_fraction": 7 / 45,
        "lung_area_ratio": 0.9,
        "heart_lung_overlap": 250 / 350,
    }
    assert {name: found[name] for name in expected} == {name: pytest.approx(value) for name, value in expected.items()}
    assert set(MEASURES) == {*expected, "tilt_deg"} | {name for name in MEASURES if name.endswith(("_mm", "_mm2"))}


def test_the_ratio_is_exact_and_not_clipped():
    points = boxes()
    points[HEART.nodes, 0] *= 3
    assert one(landmarks_xy=points[None])["ctr"] == np.float32(1050 / 800)


def test_the_nodes_that_the_ratio_rests_on():
    found = one()
    names = ("heart_min_x_node", "heart_max_x_node", "thorax_min_x_node", "thorax_max_x_node")
    assert [found[name] for name in names] == [94, 117, 0, 91]


@pytest.mark.parametrize("degrees", [-30, -2, 0, 10, 45])
def test_tilt_is_how_far_the_film_is_turned_clockwise(degrees):
    x, y = np.zeros(120), np.zeros(120)
    x[[0, 44]], y[[0, 44]] = [-10, 30], 20
    x[[21, 65]], y[[21, 65]] = [-50, 70], 500
    assert tilt(x, y) == pytest.approx(0)
    angle = np.radians(degrees)
    # x to the right and y down: this turns clockwise as displayed
    turned = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    assert tilt(*turned) == pytest.approx(degrees)


@pytest.mark.parametrize("annotated", range(3))
def test_tilt_of_real_films_is_small(shared_data, annotated):
    with np.load(shared_data / "train" / "landmarks.npz") as stored:
        points = stored["landmarks_xy"][annotated::3].astype(float)
    degrees = tilt(points[..., 0].T, points[..., 1].T)
    assert abs(np.median(degrees)) < 2
    assert np.std(degrees) < 2


def test_areas_are_those_of_the_shoelace_formula():
    points, _ = shapes()
    found = measure_nodes(points[..., 0].T, points[..., 1].T)
    for organ in ORGANS:
        areas = [polygon_area(of_row[organ.nodes]) for of_row in points]
        np.testing.assert_allclose(found[f"{organ.name}_area"], areas, rtol=1e-4)


def plain_overlap(points):
    lungs = shapely.union(
        *(shapely.make_valid(shapely.Polygon(points[lung.nodes])) for lung in (RIGHT_LUNG, LEFT_LUNG))
    )
    heart = shapely.make_valid(shapely.Polygon(points[HEART.nodes]))
    return shapely.area(shapely.intersection(heart, lungs)) / shapely.area(heart)


def test_overlap_counts_what_lies_in_both_lungs_once():
    points = boxes()
    points[LEFT_LUNG.nodes, 0] -= 250
    assert overlap_fraction(points[None])[0] == pytest.approx(plain_overlap(points))
    assert overlap_fraction(points[None])[0] == pytest.approx(300 / 350)


def test_overlap_of_rings_that_cross_themselves():
    points = boxes()
    # a bow tie of two triangles, one of them over the right lung
    points[HEART.nodes] = rectangle(RECTANGLES[HEART], 26)[:, ::1]
    points[[118, 119]] = points[[119, 118]]
    assert overlap_fraction(points[None])[0] == pytest.approx(plain_overlap(points))


def test_overlap_of_drawn_chests():
    points, _ = shapes()
    np.testing.assert_allclose(
        overlap_fraction(points.astype(float)), [plain_overlap(one) for one in points], atol=1e-9
    )


# --- laws ------------------------------------------------------------------------------------------------------------

ANY_CHEST = st.integers(0, 11).map(lambda index: shapes()[0][index].astype(np.float64))


@given(points=ANY_CHEST, shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)))
def test_moving_changes_nothing(points, shift):
    moved = points + shift
    before, after = measure_nodes(*points.T), measure_nodes(*moved.T)
    assert {name: pytest.approx(value, rel=1e-9) for name, value in before.items()} == after
    assert overlap_fraction(moved[None]) == pytest.approx(overlap_fraction(points[None]), abs=1e-9)


@given(points=ANY_CHEST, factor=st.floats(0.1, 10))
def test_scaling_leaves_ratios_and_scales_lengths_and_areas(points, factor):
    before, after = measure_nodes(*points.T), measure_nodes(*(factor * points).T)
    for name in MEASURED:
        by = factor**2 if name.endswith("_area") else factor if name.endswith(("width", "height")) else 1
        assert after[name] == pytest.approx(by * before[name], rel=1e-9)


@given(points=ANY_CHEST)
def test_a_mirror_changes_the_sign_of_the_tilt_and_exchanges_no_size(points):
    before, after = measure_nodes(*points.T), measure_nodes(*(points * [-1, 1]).T)
    assert after.pop("tilt_deg") == pytest.approx(-before.pop("tilt_deg"))
    assert {name: pytest.approx(value) for name, value in before.items()} == after


@settings(max_examples=10)
@given(order=st.permutations(range(12)))
def test_no_row_depends_on_the_others(order):
    points, sigma = shapes()
    table_of = lambda where: make_rows(  # noqa: E731
        len(where), image_id=[str(index) for index in where], landmarks_xy=points[where], sigma_xy=sigma[where]
    )
    together = measure_rows(table_of(list(range(12))))
    assert measure_rows(table_of(list(order))).equals(together.take(pa.array(order)))
    alone = pa.concat_tables([measure_rows(table_of([index])) for index in order[:2]])
    assert alone.equals(together.take(pa.array(order[:2])))


# --- blanks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "blank"),
    [
        (94, {"ctr", "heart_width_px", "heart_height_px"}),  # the leftmost of the heart, upper edge
        (95, {"ctr", "heart_width_px", "heart_height_px"}),  # its neighbour
        (119, {"ctr", "heart_width_px", "heart_height_px"}),  # the same around the end of the ring
        (0, {"ctr", "thorax_width_px", "right_lung_width_px", "right_lung_height_px", "tilt_deg"}),
        (42, {"right_lung_width_px", "right_lung_height_px", "ctr", "thorax_width_px"}),
        (55, {"left_lung_height_px"}),  # on the upper edge, where every node is as far up
        (66, {"left_lung_height_px", "tilt_deg"}),  # beside the costophrenic node
    ],
)
def test_a_length_is_blank_where_its_outermost_nodes_or_their_neighbours_are_unconfident(node, blank):
    confident = np.ones(120, bool)
    confident[node] = False
    found = measure(make_rows(1, landmarks_xy=boxes()[None], **selection(confident)))
    reasons = {name for name, codes in found.reasons.items() if rows.REASONS[codes[0]] == "unconfident"}
    assert {name for name in reasons if not name.endswith("_mm")} == blank
    assert {name for name in blank if found.rows[name][0].is_valid} == set()
    assert found.rows["ctr_blank"][0].as_py() == ("unconfident" if "ctr" in blank else None)


def test_an_unconfident_node_inside_changes_no_value():
    points, confident = chest(), np.ones(120, bool)
    confident[110] = False  # a node of the heart at neither end of either axis
    inside = one(landmarks_xy=points[None], **selection(confident))
    whole = one(landmarks_xy=points[None], **selection())
    assert 110 not in (whole["heart_min_x_node"], whole["heart_max_x_node"])
    assert inside["ctr"] == whole["ctr"]
    assert inside["heart_area_px2"] == whole["heart_area_px2"]


def test_areas_are_blank_where_their_organ_is_unusable():
    found = one(**selection(usable=(False, True, True)))
    blank = {name for name in MEASURES if found[name] is None and not name.endswith(("_mm", "_mm2"))}
    assert blank == {
        "right_lung_area_px2",
        "right_lung_image_fraction",
        *(f"{organ.name}_thorax_fraction" for organ in ORGANS),
        "lung_area_ratio",
        "heart_lung_overlap",
    }
    assert found["ctr"] == pytest.approx(350 / 800)


def test_mm_needs_the_image_frame_and_its_spacing():
    spacing = {"spacing_mm_xy": np.array([[0.5, 0.2]], np.float32), "sigma_xy": np.full((1, 120, 2), 3, np.float32)}
    known = one(frame="image", **spacing)
    expected = {"heart_width_mm": 175, "heart_height_mm": 40, "thorax_width_mm": 400, "heart_area_mm2": 7000}
    assert {name: known[name] for name in expected} == {name: pytest.approx(value) for name, value in expected.items()}
    half_px = known["heart_width_px_high"] - known["heart_width_px"]
    assert known["heart_width_mm_high"] - known["heart_width_mm"] == pytest.approx(half_px / 2, rel=1e-4)
    assert known["ctr"] == pytest.approx(350 / 800)
    for unknown in (one(frame="model", **spacing), one(frame="image")):
        assert {unknown[name] for name in MEASURES if name.endswith(("_mm", "_mm2"))} == {None}


def test_fractions_of_the_image_need_its_size():
    found = one(height=None)
    assert (found["heart_image_fraction"], found["touches_border"]) == (None, None)
    assert found["heart_thorax_fraction"] == pytest.approx(7 / 45)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_without_finite_landmarks_is_blank_and_harms_no_other(value):
    points = np.stack([boxes()] * 3)
    points[1, 50, 1] = value
    found = made(3, landmarks_xy=points, sigma_xy=np.full((3, 120, 2), 2.0, np.float32))
    kept = {name for name in SCHEMA.names if found[name][1] is not None}
    assert kept == {"source", "image_id", "frame", "model_id", "ctr_blank"}
    assert found["ctr_blank"] == [None, "not_finite", None]
    assert found["ctr"][0] == found["ctr"][2] == pytest.approx(350 / 800)
    assert found["ctr_low"][0] == found["ctr_low"][2] is not None


def test_organs_without_extent_are_blank_not_infinite():
    found = one(landmarks_xy=np.full((1, 120, 2), 5.0))
    assert (found["ctr"], found["ctr_blank"]) == (None, "no_extent")
    assert (found["lung_area_ratio"], found["heart_lung_overlap"]) == (None, None)
    assert found["heart_width_px"] == 0


def test_no_rows():
    found = measure_rows(make_rows(0))
    assert len(found) == 0
    assert found.schema.equals(SCHEMA)


def test_what_is_no_table_is_refused():
    with pytest.raises(FormatError, match="no schema_version"):
        measure_rows(pa.table({"ctr": [0.5]}))


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "touches"),
    [((0, 0), False), ((-98, 0), False), ((-99, 0), True), ((121, 0), False), ((122, 0), True), ((0, -120), True)],
)
def test_touching_the_border(change, touches):
    assert one(landmarks_xy=boxes()[None] + change)["touches_border"] is touches


def test_a_mirrored_film_is_flagged():
    mirrored = boxes() * [-1, 1] + [1023, 0]
    straight, turned = one(), one(landmarks_xy=mirrored[None])
    assert (straight["lungs_swapped"], turned["lungs_swapped"]) == (False, True)
    assert (straight["heart_on_image_left"], turned["heart_on_image_left"]) == (False, True)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_correlation_is_one():
    correlation = intervals.node_correlation()
    np.testing.assert_array_equal(correlation, correlation.T)
    np.testing.assert_array_equal(np.diag(correlation), 1)
    assert np.linalg.eigvalsh(correlation).min() > -1e-9
    assert 0.6 < np.mean([correlation[2 * node, 2 * node + 2] for node in range(43)]) < 0.99


def test_draws_have_the_moments_they_stand_for():
    draws = np.stack(intervals.error_draws(), axis=-1).astype(float)  # [120, S, 2]
    flat = draws.transpose(1, 0, 2).reshape(intervals.N_DRAWS, 240)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-5)
    away = flat.T @ flat / len(flat) - intervals.node_correlation()
    # as many free draws would be off by 1 / sqrt(128) = 0.09
    assert np.sqrt(np.mean(away**2)) < 0.03


def test_simulated_intervals_cover_nine_truths_in_ten():
    """Truths drawn about the means with the correlation lie within; drawn by numpy's own sampler, not by our draws."""
    points, sigma = shapes(40, 3)
    found = measure_rows(make_rows(40, landmarks_xy=points, sigma_xy=sigma, model_id="m"))
    rng = np.random.default_rng(8)
    errors = rng.multivariate_normal(np.zeros(240), intervals.node_correlation(), 2000, method="eigh")
    names = {
        "ctr": "ctr",
        "heart_width": "heart_width_px",
        "thorax_width": "thorax_width_px",
        "heart_area": "heart_area_px2",
        "right_lung_area": "right_lung_area_px2",
        "left_lung_area": "left_lung_area_px2",
        "lung_area_ratio": "lung_area_ratio",
        "tilt_deg": "tilt_deg",
    }
    covered = dict.fromkeys(names, 0.0)
    for index in range(len(points)):
        truths = points[index] + errors.reshape(-1, 120, 2) * sigma[index]
        values = measure_nodes(truths[..., 0].T, truths[..., 1].T)
        for name, column in names.items():
            low, high = (found[f"{column}_{end}"][index].as_py() for end in ("low", "high"))
            covered[name] += np.mean((values[name] >= low) & (values[name] <= high)) / len(points)
    assert covered == {name: pytest.approx(0.9, abs=0.015) for name in names}


def test_independent_nodes_would_be_far_too_certain():
    """The reason for the correlation: an area of independent nodes has less than half of its true spread."""
    points, sigma = shapes()
    together = intervals.simulated_spread(points, sigma)["heart_area"]
    gradient = (np.roll(points[:, HEART.nodes], -1, axis=1) - np.roll(points[:, HEART.nodes], 1, axis=1))[..., ::-1] / 2
    apart = np.sqrt(np.sum((gradient * sigma[:, HEART.nodes]) ** 2, axis=(1, 2)))
    assert np.all(together > 2 * apart)


def test_an_area_has_the_spread_of_the_linear_formula():
    """An independent reference: the exact variance of the area linearised in the nodes."""
    points, sigma = shapes()
    ring = points[:, HEART.nodes].astype(float)
    following, before = np.roll(ring, -1, axis=1), np.roll(ring, 1, axis=1)
    gradient = np.stack([following[..., 1] - before[..., 1], before[..., 0] - following[..., 0]], axis=-1) / 2
    weighted = (gradient * sigma[:, HEART.nodes]).reshape(len(points), -1)
    nodes = slice(2 * HEART.first, 2 * HEART.stop)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", weighted, intervals.node_correlation()[nodes, nodes], weighted))
    np.testing.assert_allclose(intervals.simulated_spread(points, sigma)["heart_area"], expected, rtol=0.06)


def test_published_rows_are_widened_by_an_assumed_factor():
    points, sigma = shapes()
    columns = {"landmarks_xy": points, "sigma_xy": sigma}
    own, published = made(12, model_id="m", **columns), made(12, **columns)
    widths = [np.subtract(found["ctr_high"], found["ctr_low"]) for found in (own, published)]
    np.testing.assert_allclose(widths[1] / widths[0], 1.7, rtol=0.05)
    assert set(own["sigma_scale_source"]) == {"none"}
    assert set(published["sigma_scale_source"]) == {"assumed"}
    assert set(own["interval_method"]) == {"simulated"}


def with_samples(n_samples, seed=0):
    points, sigma = shapes()
    rng = np.random.default_rng(seed)
    errors = rng.multivariate_normal(np.zeros(240), intervals.node_correlation(), (12, n_samples), method="eigh")
    errors -= errors.mean(axis=1, keepdims=True)
    samples = points[:, None] + errors.reshape(12, n_samples, 120, 2) * sigma[:, None]
    return {
        "landmarks_xy": points,
        "sigma_xy": samples.std(axis=1).astype(np.float32),
        "samples_xy": [row.ravel() for row in samples.astype(np.float32)],
        "model_id": "m",
    }


def test_kept_samples_give_the_interval():
    columns = with_samples(400)
    found = made(12, **columns)
    assert set(found["interval_method"]) == {"samples"}
    simulated = made(12, **{name: values for name, values in columns.items() if name != "samples_xy"})
    for name in ("ctr", "heart_area_px2", "tilt_deg"):
        half = [np.subtract(one[f"{name}_high"], one[name]) for one in (found, simulated)]
        np.testing.assert_allclose(half[0], half[1], rtol=0.2)
    # the spread of the samples themselves, to the digit
    samples = np.array(columns["samples_xy"][3]).reshape(-1, 120, 2).astype(float)
    widths = np.ptp(samples[:, HEART.nodes, 0], axis=1)
    value = np.ptp(columns["landmarks_xy"][3, HEART.nodes, 0].astype(float))
    half_width = 1.645 * np.sqrt(np.mean((widths - value) ** 2))
    assert found["heart_width_px_high"][3] - found["heart_width_px"][3] == pytest.approx(half_width, rel=1e-3)


def test_samples_are_inflated_by_the_calibration_too(monkeypatch):
    columns = with_samples(50)
    plain = made(12, **columns)
    monkeypatch.setattr(rows, "sigma_scales", lambda of: (np.full((len(of), 3), 2.0, np.float32), ["fitted"] * len(of)))
    wide = made(12, **columns)
    ratio = np.subtract(wide["heart_area_px2_high"], wide["heart_area_px2"]) / np.subtract(
        plain["heart_area_px2_high"], plain["heart_area_px2"]
    )
    np.testing.assert_allclose(ratio, 2, rtol=0.05)
    assert set(wide["sigma_scale_source"]) == {"fitted"}


def test_few_samples_do_not_give_an_interval_of_their_own():
    columns = with_samples(20)
    columns["samples_xy"][:4] = [values[: 19 * 240] for values in columns["samples_xy"][:4]]
    columns["samples_xy"][4] = None
    assert made(12, **columns)["interval_method"] == ["simulated"] * 5 + ["samples"] * 7


def test_broken_samples_are_refused_by_name():
    columns = with_samples(20)
    columns["samples_xy"][2] = columns["samples_xy"][2][:-1]
    with pytest.raises(FormatError, match="image0002: samples_xy has 4799 numbers"):
        made(12, **columns)


def test_rows_without_standard_deviations_have_no_interval():
    points, sigma = shapes()
    sigma = sigma.copy()
    sigma[2], sigma[5, 7, 1] = np.nan, -1
    found = made(12, landmarks_xy=points, sigma_xy=sigma)
    assert [index for index, low in enumerate(found["ctr_low"]) if low is None] == [2, 5]
    assert found["interval_method"][2] is found["sigma_scale_source"][2] is None
    assert None not in found["ctr"]


def test_a_blank_value_has_no_interval():
    confident = np.ones(120, bool)
    confident[94] = False
    found = one(sigma_xy=np.full((1, 120, 2), 3, np.float32), **selection(confident))
    assert (found["ctr"], found["ctr_low"], found["ctr_high"]) == (None, None, None)
    assert found["thorax_width_px_low"] < 800 < found["thorax_width_px_high"]


# --- tables on disk --------------------------------------------------------------------------------------------------


def stored_shapes(path, n_rows=12, shard=5, **columns):
    points, sigma = shapes(n_rows)
    made_rows = make_rows(n_rows, **{"landmarks_xy": points, "sigma_xy": sigma, "view": "PA", **columns})
    with store.table_writer(path, made_rows.schema) as writer:
        for start in range(0, n_rows, shard):
            writer.write(made_rows.slice(start, shard))
    return store.open_table(path), made_rows


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stored_table_gives_the_same_bytes_however_it_is_cut(tmp_path, suffix, workers):
    whole, made_rows = stored_shapes(tmp_path / "whole.parquet", shard=12)
    cut, _ = stored_shapes(tmp_path / "cut.parquet")
    assert len(cut.shards()) == 3
    measure_table(cut, tmp_path / f"first{suffix}", workers=workers)
    measure_table(cut, tmp_path / f"second{suffix}")
    measure_table(whole, tmp_path / f"whole-out{suffix}")
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()
    if suffix == ".csv":
        assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "whole-out.csv").read_bytes()
    else:
        assert pa.parquet.read_table(tmp_path / "first.parquet").equals(measure_rows(made_rows))


def test_a_csv_holds_the_same_values(tmp_path):
    stored, made_rows = stored_shapes(tmp_path / "rows.parquet")
    measure_table(stored, tmp_path / "out.csv")
    lines = pa.csv.read_csv(tmp_path / "out.csv")
    assert lines.column_names == SCHEMA.names
    np.testing.assert_array_equal(lines["ctr"].cast(pa.float32()), measure_rows(made_rows)["ctr"])


def test_the_account_of_a_table(tmp_path):
    points, _ = shapes()
    points = points.copy()
    points[3, 0, 0] = np.nan
    stored, made_rows = stored_shapes(
        tmp_path / "rows.parquet", landmarks_xy=points, source=["a"] * 6 + ["b"] * 6, view=["PA"] * 10 + [None] * 2
    )
    advanced = []
    report = measure_table(stored, progress=advanced.append)
    assert (report.rows, advanced) == (12, [5, 5, 2])
    assert [str(failure) for failure in report.failures] == [
        "a image0003: a landmark is no finite number; predict or import this image again"
    ]
    assert report.blank["ctr"] == {"not_finite": 1}
    assert report.blank["heart_width_mm"] == {"not_finite": 1, "no_spacing": 11}
    assert report.methods == {"simulated": 11, None: 1}
    assert report.views == {"PA": 10, None: 2}
    expected = measure_rows(made_rows).filter(pc.equal(made_rows["source"], "b"))["ctr"]
    assert report.quantiles["b"]["ctr"]["n"] == 6
    assert report.quantiles["b"]["ctr"]["quantiles"][2] == pytest.approx(np.median(expected), abs=1e-5)
    assert report.quantiles["a"]["ctr"]["n"] == 5
    assert "heart_width_mm" not in report.quantiles["b"]
    assert [row["image_id"] for row in report.first_rows] == made_rows["image_id"].to_pylist()


def test_rows_are_listed_only_where_they_are_few(tmp_path):
    many, _ = stored_shapes(tmp_path / "many.parquet", n_rows=21)
    assert measure_table(many).first_rows == []


def test_labels_join_and_those_of_a_selection_stay(tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("Image Index,Age,ctr,view\nimage0001.png,41,0.9,LL\nimage0099.png,7,0.1,AP\n")
    points, sigma = shapes()
    base = make_rows(12, landmarks_xy=points, sigma_xy=sigma)
    base = base.append_column("Age", pa.array([30.5] * 12)).append_column("ward", pa.array(["west"] * 12))
    store.write_table(base, tmp_path / "rows.parquet")
    opened = open_labels(str(labels), ["chestxray8"])
    report = measure_table(store.open_table(tmp_path / "rows.parquet"), tmp_path / "out.parquet", labels=[opened])
    found = pa.parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*SCHEMA.names, "Age", "ward", "label_ctr", "label_view"]
    assert found["Age"].to_pylist()[:3] == [30.5, 41, 30.5]
    assert found["label_ctr"].to_pylist()[:3] == [None, 0.9, None]
    assert (report.labels[0].rows_unmatched, report.labels[0].lines_unmatched) == (11, 1)
    assert measure_rows(base).column_names == [*SCHEMA.names, "Age", "ward"]


def test_an_image_that_stands_twice_is_refused(tmp_path):
    stored, _ = stored_shapes(tmp_path / "rows.parquet", image_id=["same"] * 12)
    with pytest.raises(DuplicateIdError, match="same"):
        measure_table(stored, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_only_measures_are_replaced(tmp_path):
    stored, _ = stored_shapes(tmp_path / "rows.parquet")
    for name in ("out.parquet", "out.csv"):
        measure_table(stored, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        measure_table(stored, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "notes.csv").write_text("source,image_id\n")
    (tmp_path / "notes.parquet").write_text("no parquet")
    for name in ("rows.parquet", "notes.csv", "notes.parquet"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputExistsError, match="holds no measures"):
            measure_table(stored, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(UsageError, match="expected a file"):
        measure_table(stored, tmp_path / "out.xlsx")


def test_a_csv_cannot_hold_lists(tmp_path):
    points, _ = shapes()
    base = make_rows(12, landmarks_xy=points).append_column("findings", pa.array([["a"]] * 12))
    store.write_table(base, tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="lists of findings"):
        measure_table(store.open_table(tmp_path / "rows.parquet"), tmp_path / "out.csv")


def test_spacing_of_another_file_shows(tmp_path):
    spacing = np.full((12, 2), 0.139, np.float32)
    spacing[5:] = 0.4
    stored, _ = stored_shapes(tmp_path / "rows.parquet", frame="image", spacing_mm_xy=spacing)
    assert measure_table(stored).implausible_mm == 5


# --- real rows -------------------------------------------------------------------------------------------------------

REAL = {"ChestX-Ray8": "chestxray8", "MIMIC-CXR-JPG": "mimic", "Padchest": "padchest"}


@pytest.fixture(scope="module")
def real_rows(shared_data, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name, source in REAL.items():
        import_csv(shared_data / "chexmask" / f"{name}.csv", source, frame="model", home=home)
    tables = [store.Home(home).open(source).read() for source in REAL.values()]
    return pa.concat_tables(tables)


def test_real_rows_have_plausible_ratios_without_intervals(real_rows):
    found = measure_rows(real_rows)
    ratios = found["ctr"].to_numpy()
    assert len(ratios) == 149
    assert ratios.min() > 0.35
    assert ratios.max() < 0.75
    assert found["ctr_low"].null_count == found["interval_method"].null_count == 149
    assert pc.sum(found["lungs_swapped"]).as_py() == 0
    assert 0 <= pc.min(found["heart_lung_overlap"]).as_py() <= pc.max(found["heart_lung_overlap"]).as_py() < 0.25


def test_a_real_row_by_hand(real_rows):
    """The first row of PadChest, read off its text: heart and lungs by plain Python."""
    row = real_rows.filter(pc.equal(real_rows["source"], "padchest")).slice(0, 1)
    x = row["landmarks_xy"][0].as_py()[::2]
    lungs, heart = x[:94], x[94:]
    expected = (max(heart) - min(heart)) / (max(lungs) - min(lungs))
    found = measure_rows(row)
    assert found["ctr"][0].as_py() == np.float32(expected)
    assert x[found["heart_max_x_node"][0].as_py()] == max(heart)
    assert x[found["thorax_min_x_node"][0].as_py()] == min(lungs)


def test_a_table_of_the_schema_is_all_it_takes():
    assert set(rows.READ) <= {*table.SCHEMA.names, *table.OPTIONAL.names}


def test_the_page_names_every_column():
    page = (Path(__file__).parents[1] / "docs" / "commands" / "measure.md").read_text("utf-8")
    names = {name.removesuffix("_low").removesuffix("_high") for name in SCHEMA.names}
    names = {name.replace("_mm2", "_px2").replace("_mm", "_px") for name in names}
    assert {name for name in names if f"`{name}`" not in page} == set()
