"""Filtering tables: a table worked out by hand, mixed models, labels, the file that is written."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_rows
from cxu import store, table
from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGAN_NAMES, RIGHT_LUNG
from cxu.catalog import SOURCES
from cxu.cli._tables import describe_thresholds
from cxu.criteria import Criteria, criteria_like
from cxu.errors import DuplicateIdError, FormatError, OutputExistsError, UsageError
from cxu.flow import FilterReport, LevelCount, Step, flow_facts
from cxu.labels import IdList, Labels, parse_condition
from cxu.selection import excluded_path, filter_rows, filter_tables
from cxu.thresholds import Limit, Thresholds, parse_max_std


def with_sigma(node_sigma, side=None, **columns):
    """Return rows with these node uncertainties [n, 120], the same along x and y, in px of their frame."""
    sigma = np.asarray(node_sigma, np.float32)
    of_frame = table.sigma_columns(np.repeat(sigma[..., None], 2, axis=2), side)
    return make_rows(len(sigma), **{**of_frame, "n_samples": 50, **columns})


def asking(max_std=None, *, where=(), **thresholds):
    """Return criteria from options as they are typed."""
    limits = {"max_std": parse_max_std(max_std)} if max_std else {}
    options = {name: thresholds.pop(name) for name in ("sources", "frame", "ids", "labels") if name in thresholds}
    conditions = tuple(parse_condition(text) for text in where)
    return Criteria(Thresholds(**limits, **thresholds), where=conditions, **options)


def ids_of(rows):
    return rows["image_id"].to_pylist()


def random_rows(n_rows, seed=0, **columns):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.5, 2.5, (n_rows, 1))
    rca = {"rca_mean": rng.uniform(0.4, 1, n_rows), "rca_max": rng.uniform(0.4, 1, n_rows)}
    return with_sigma(level * rng.gamma(4, 0.6, (n_rows, N_NODES)), **{**rca, **columns})


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes rows as a Parquet table and opens it."""

    def save(rows, name="table"):
        path = tmp_path / f"{name}.parquet"
        store.write_table(rows, path)
        return store.open_table(path)

    return save


# --- three rows by hand ----------------------------------------------------------------------------------------------
#
#        right lung (44)                left lung (50)        heart (26)
# a      all at 2 px                    all at 2 px           nodes 0-3 at 9 px: a gap of 4, 22 confident
# b      every second at 9 px: 22       all at 5 px: at limit nodes 24, 25, 0, 1, 2 at 9 px: a gap of 5 over the end
# c      every second and node 1: 21    nodes 7-11: gap of 5  every second and node 1 at 9 px: 12 of 26 confident


@pytest.fixture
def three():
    sigma = np.full((3, N_NODES), 2.0)
    sigma[0, 94:98] = 9
    sigma[1, 0:44:2] = 9
    sigma[1, 44:94] = 5
    sigma[1, [118, 119, 94, 95, 96]] = 9
    sigma[2, [*range(0, 44, 2), 1]] = 9
    sigma[2, 51:56] = 9
    sigma[2, [*range(94, 120, 2), 95]] = 9
    return with_sigma(sigma, image_id=["a", "b", "c"])


@pytest.fixture
def three_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("Image Index,ViewPosition,Age\na.png,PA,41\nb.png,PA,52\nc.png,AP,63\nzz.png,AP,1\n")
    return Labels(path, SOURCES["chestxray8"])


def test_three_rows_by_hand(three, three_labels):
    selected, excluded, report = filter_rows(three, asking("5", labels=(three_labels,)))

    assert ids_of(selected) == ["a", "b"]
    assert selected["ViewPosition"].to_pylist() == ["PA", "PA"]
    assert selected["Age"].to_pylist() == [41, 52]
    assert table.usable_of(selected).tolist() == [[True, True, True], [True, True, False]]
    unconfident = [np.flatnonzero(~row).tolist() for row in table.confident_of(selected)]
    assert unconfident == [
        [94, 95, 96, 97],
        [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 94, 95, 96, 118, 119],
    ]
    assert excluded.to_pylist() == [{"source": "chestxray8", "image_id": "c", "reason": "max_std"}]

    assert flow_facts(report)["flow"] == [
        {"reason": "scale_unknown", "rows_in": 3, "rows_out": 3, "by_source": {"chestxray8": [3, 3]}},
        {"reason": "max_std", "rows_in": 3, "rows_out": 2, "by_source": {"chestxray8": [3, 2]}},
    ]
    assert (report.rows_in, report.rows_out, report.few_rows_left) == (3, 2, False)
    # of a and b: right 44 + 22 of 88, left all, heart 22 + 21 of 52
    assert report.nodes_kept == {"right_lung": 0.75, "left_lung": 1.0, "heart": 43 / 52}
    assert report.organs_kept == {"right_lung": 1.0, "left_lung": 1.0, "heart": 0.5}
    assert report.levels == [
        LevelCount("Age", "41", 1, 1),
        LevelCount("Age", "52", 1, 1),
        LevelCount("Age", "63", 1, 0),
        LevelCount("ViewPosition", "AP", 1, 0),
        LevelCount("ViewPosition", "PA", 2, 2),
    ]
    (match,) = report.labels
    assert (match.lines, match.lines_unmatched, match.rows, match.rows_unmatched) == (4, 1, 3, 0)


def test_three_rows_by_hand_have_these_quantiles(three):
    _, _, report = filter_rows(three, asking("5"))
    # at 9 px: right 0 + 22 + 23 of 132, left 0 + 0 + 5 of 150 (50 at 5), heart 4 + 5 + 14 of 78; the rest at 2;
    # of all 360: 237 at 2, 50 at 5, 73 at 9
    assert report.sigma_quantiles == {
        "right_lung": [2, 2, 2, 9, 9],
        "left_lung": [2, 2, 2, 5, 5],
        "heart": [2, 2, 2, 9, 9],
        "all": [2, 2, 2, 5, 9],
    }
    assert report.keep_thresholds == {
        "right_lung": [2, 9, 9],
        "left_lung": [2, 5, 5],
        "heart": [2, 9, 9],
        "all": [2, 9, 9],
    }


def test_the_gap_that_may_be_bridged_decides(three):
    selected, _, report = filter_rows(three, asking("5", max_gap=5))
    # b's heart has 21 of 26, c's left lung 45 of 50
    assert ids_of(selected) == ["a", "b", "c"]
    assert table.usable_of(selected).tolist() == [[True, True, True], [True, True, True], [False, True, False]]
    assert report.organs_kept == {"right_lung": 2 / 3, "left_lung": 1.0, "heart": 2 / 3}


def test_only_deciding_organs_keep_a_row(three):
    selected, excluded, _ = filter_rows(three, asking("5", organs=("heart",)))
    assert ids_of(selected) == ["a"]
    assert excluded["reason"].to_pylist() == ["max_std", "max_std"]
    # the organs that do not decide have their limits all the same
    assert table.usable_of(selected).tolist() == [[True, True, True]]


def test_an_organ_without_limit_is_confident(three):
    selected, _, report = filter_rows(three, asking("lungs=5"))
    assert report.limits[0].px == {"right_lung": 5.0, "left_lung": 5.0, "heart": None}
    assert table.confident_of(selected)[:, HEART.nodes].all()
    assert ids_of(selected) == ["a", "b", "c"]
    assert table.usable_of(selected)[2].tolist() == [False, False, True]


def test_a_selection_keeps_all_nodes_and_columns(three):
    selected, _, _ = filter_rows(three, asking("5"))
    assert selected.select(three.column_names).equals(three.slice(0, 2))
    assert selected.column_names == [*three.column_names, "confident", "usable"]
    table.check_table(selected, "selection")


# --- reasons and order -----------------------------------------------------------------------------------------------


def test_each_row_has_its_first_failing_reason():
    sigma = np.full((6, N_NODES), 2.0)
    sigma[4:] = 9
    rows = with_sigma(
        sigma,
        view=["PA", "AP", None, "PA", "PA", "PA"],
        rca_mean=np.array([0.8, 0.2, 0.8, np.nan, 0.8, 0.6]),
        rca_max=np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9]),
    )
    criteria = asking("5", where=("view=PA",), min_rca=0.7, min_rca_max=0.9)
    selected, excluded, report = filter_rows(rows, criteria)
    assert ids_of(selected) == ["image0000"]
    # a row without RCA fails --min-rca; the last row fails two steps
    assert excluded["reason"].to_pylist() == ["where view=PA", "where view=PA", "min_rca", "max_std", "min_rca"]
    flow = [(step.reason, sum(step.rows_in.values()), sum(step.rows_out.values())) for step in report.steps]
    assert flow == [
        ("where view=PA", 6, 4),
        ("min_rca", 4, 2),
        ("min_rca_max", 2, 2),
        ("scale_unknown", 2, 2),
        ("max_std", 2, 1),
    ]


def test_the_flow_is_counted_by_source():
    rows = random_rows(6, source=pa.array(["vindr", "mimic", "mimic", "vindr", "mimic", "vindr"]), rca_mean=RCA)
    _, _, report = filter_rows(rows, asking(min_rca=0.7))
    assert report.steps == [Step("min_rca", {"vindr": 3, "mimic": 3}, {"vindr": 1, "mimic": 2})]


RCA = np.array([0.1, 0.7, 0.8, 0.9, 0.2, 0.3])


def test_rca_at_the_limit_stays():
    rows = random_rows(3, rca_mean=np.array([0.7, np.nextafter(np.float32(0.7), np.float32(0)), 0.71]))
    assert ids_of(filter_rows(rows, asking(min_rca=0.7))[0]) == ["image0000", "image0002"]


def test_mean_uncertainty_at_the_limit_stays():
    rows = with_sigma(np.repeat([[3.1], [3.0], [3.2]], N_NODES, axis=1))
    selected, excluded, _ = filter_rows(rows, asking(max_mean_std=3.1))
    assert ids_of(selected) == ["image0000", "image0001"]
    assert excluded["reason"].to_pylist() == ["max_mean_std"]


def test_nothing_asked_keeps_everything():
    rows = random_rows(5)
    selected, excluded, report = filter_rows(rows, asking())
    assert (len(selected), len(excluded)) == (5, 0)
    assert [step.reason for step in report.steps] == ["nothing asked"]
    assert table.confident_of(selected).all()
    assert table.usable_of(selected).all()


def test_few_rows_are_those_below_a_fifth():
    def report(rows_in, rows_out):
        return FilterReport([Step("max_std", {"mimic": rows_in}, {"mimic": rows_out})])

    assert report(10, 1).few_rows_left
    assert not report(10, 2).few_rows_left
    assert not report(0, 0).few_rows_left


@pytest.mark.parametrize("criteria", [asking(), asking("5"), asking("p80"), asking(min_rca=0.7)], ids=str)
def test_no_rows_give_an_empty_selection(criteria):
    selected, excluded, report = filter_rows(random_rows(3).slice(0, 0), criteria)
    assert (len(selected), len(excluded), report.rows_in, report.rows_out) == (0, 0, 0, 0)
    assert "usable" in selected.column_names
    assert report.sigma_quantiles == {}


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_percentile_is_of_the_rows_that_reach_the_step():
    rows = random_rows(40, rca_mean=np.linspace(0, 1, 40))
    _, _, report = filter_rows(rows, asking("heart=p80,lungs=5", min_rca=0.5))
    sigma = table.list_column(rows, "sigma_model_px").astype(np.float64)[20:]
    (limits,) = report.limits
    assert limits.px["heart"] == pytest.approx(np.percentile(sigma[:, HEART.nodes], 80), abs=1e-5)
    assert (limits.px["right_lung"], limits.px["left_lung"]) == (5.0, 5.0)


def test_a_percentile_is_per_source_and_model():
    sources, models = ["vindr", "mimic", "mimic", "vindr"] * 5, ["m", "m", "n", "m"] * 5
    rows = random_rows(20, source=pa.array(sources), model_id=pa.array(models))
    _, _, report = filter_rows(rows, asking("p60"))
    sigma = table.list_column(rows, "sigma_model_px").astype(np.float64)
    groups = [("mimic", "m"), ("mimic", "n"), ("vindr", "m")]
    assert [(limits.source, limits.model_id) for limits in report.limits] == groups
    for limits in report.limits:
        of_group = [key == (limits.source, limits.model_id) for key in zip(sources, models, strict=True)]
        assert limits.px["heart"] == pytest.approx(np.percentile(sigma[of_group], 60), abs=1e-5)


def test_quantiles_and_limits_that_keep_a_share_equal_numpy():
    rows = random_rows(30)
    _, _, report = filter_rows(rows, asking("5"))
    sigma = table.list_column(rows, "sigma_model_px").astype(np.float64)
    for name, nodes in {"right_lung": RIGHT_LUNG.nodes, "left_lung": LEFT_LUNG.nodes, "all": slice(None)}.items():
        expected = np.quantile(sigma[:, nodes], [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(report.sigma_quantiles[name], expected, atol=1e-4)
        np.testing.assert_allclose(
            report.keep_thresholds[name], np.quantile(sigma[:, nodes], [0.5, 0.8, 0.95]), atol=1e-4
        )


def test_a_limit_that_keeps_a_share_of_the_nodes_does():
    rows = random_rows(30)
    _, _, report = filter_rows(rows, asking("5"))
    sigma = table.list_column(rows, "sigma_model_px")
    for limit, share in zip(report.keep_thresholds["all"], (0.5, 0.8, 0.95), strict=True):
        assert (sigma <= limit + 1e-4).mean() == pytest.approx(share, abs=1 / sigma.size + 1e-3)


@settings(max_examples=25)
@given(st.floats(0, 12), st.floats(0, 12), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 6))
def test_a_higher_limit_keeps_the_rows_of_a_lower_one(one, other, min_confident, max_gap):
    rows, low, high = random_rows(12), *sorted((one, other))
    options = {"min_confident": min_confident, "max_gap": max_gap}
    kept = [set(ids_of(filter_rows(rows, asking(f"{limit:.6f}", **options))[0])) for limit in (low, high)]
    assert kept[0] <= kept[1]


# --- pixels ----------------------------------------------------------------------------------------------------------

IN_IMAGE = {"frame": "image", "height": 2500, "width": 2048}


def test_limits_are_in_the_model_frame_whatever_the_frame_of_the_rows():
    # 10 px of an image whose side is 2500 are 4.096 px of the model frame
    side = np.full(2, 2500.0)
    rows = with_sigma(np.repeat([[10.0], [12.3]], N_NODES, axis=1), side, frame_side=side, **IN_IMAGE)
    assert ids_of(filter_rows(rows, asking("5"))[0]) == ["image0000"]
    assert ids_of(filter_rows(rows, asking("4.096"))[0]) == ["image0000"]
    assert ids_of(filter_rows(rows, asking("4.09"))[0]) == []


@pytest.mark.parametrize("side", [2500.0, 1777.0, 3001.0, 997.0])
def test_limits_in_image_px_are_exact_for_rows_in_the_image_frame(side):
    # there and back through the model frame, 5.01 would not always be at most 5.01
    known = np.full(2, side)
    rows = with_sigma(np.repeat([[5.01], [5.02]], N_NODES, axis=1), known, frame_side=known, **IN_IMAGE)
    selected, _, report = filter_rows(rows, asking("5.01", unit="image"))
    assert ids_of(selected) == ["image0000"]
    assert report.sigma_quantiles["all"] == pytest.approx([5.01, 5.01, 5.015, 5.02, 5.02], abs=1e-4)


def test_limits_in_image_px_of_rows_in_the_model_frame():
    rows = with_sigma(np.full((2, N_NODES), 4.0), frame_side=np.array([2048.0, 1024.0]))
    assert ids_of(filter_rows(rows, asking("5", unit="image"))[0]) == ["image0001"]
    assert len(filter_rows(rows, asking("8", unit="image"))[0]) == 2


def test_image_px_of_an_unknown_scale_are_refused():
    rows = with_sigma(np.full((3, N_NODES), 4.0), frame_side=np.array([2048.0, np.nan, np.nan]))
    with pytest.raises(
        UsageError, match=r"--unit image: rows of chestxray8 do not know .* take --unit model"
    ) as caught:
        filter_rows(rows, asking("5", unit="image"))
    assert caught.value.exit_code == 2
    # rows that do not reach the step are not asked, nor is anyone without --max-std
    rows = rows.set_column(rows.column_names.index("rca_mean"), "rca_mean", pa.array([0.9, 0.1, 0.1], pa.float32()))
    assert len(filter_rows(rows, asking("5", unit="image", min_rca=0.5))[0]) == 0
    assert len(filter_rows(rows, asking(unit="image"))[0]) == 3


def test_rows_in_the_image_frame_without_size():
    side = np.array([2048.0, np.nan])
    rows = with_sigma(np.full((2, N_NODES), 4.0), side, frame_side=side, frame="image", height=side, width=side)
    _, excluded, _ = filter_rows(rows, asking("5"))
    assert excluded["reason"].to_pylist() == ["scale_unknown"]
    # their own pixels they know
    assert len(filter_rows(rows, asking("5", unit="image"))[0]) == 2


# --- models and missing uncertainty ----------------------------------------------------------------------------------


@pytest.fixture
def two_models():
    return random_rows(8, model_id=pa.array(["one", "two"] * 4), rca_mean=np.array([0.9, 0.1] * 4))


@pytest.mark.parametrize(
    "options", [{"max_std": "5"}, {"max_std": "heart=p80,lungs=5"}, {"max_mean_std": 5.0}], ids=str
)
def test_one_limit_for_several_models_is_refused(two_models, options):
    with pytest.raises(UsageError, match=r"one limit in px over 2 models \(one, two\): .* or --mix-models") as caught:
        filter_rows(two_models, asking(**options))
    assert caught.value.exit_code == 2
    _, _, report = filter_rows(two_models, asking(**options, mix_models=True))
    assert report.rows_in == 8


def test_models_are_mixed_even_where_only_one_passes():
    sigma = np.repeat([[2.0], [9.0]], N_NODES, axis=1)
    rows = with_sigma(sigma, model_id=pa.array(["one", "two"]))
    with pytest.raises(UsageError, match="over 2 models"):
        filter_rows(rows, asking(max_mean_std=5.0))


@pytest.mark.parametrize("options", [{"max_std": "p80"}, {"min_rca": 0.5}, {"max_std": "5", "min_rca": 0.5}], ids=str)
def test_several_models_may_have_percentiles_or_be_told_apart_before(two_models, options):
    _, _, report = filter_rows(two_models, asking(**options))
    assert report.rows_in == 8


@pytest.fixture
def without_std():
    return make_rows(3, source=pa.array(["mimic", "mimic", "vindr"]), rca_mean=np.array([0.9, 0.6, np.nan]))


@pytest.mark.parametrize("options", [{"max_std": "5"}, {"max_std": "p80"}, {"max_mean_std": 5.0}], ids=str)
def test_limits_for_rows_without_std_are_a_clear_error(without_std, options):
    with pytest.raises(UsageError, match=r"rows of mimic, vindr have no standard deviations .* --min-rca") as caught:
        filter_rows(without_std, asking(**options))
    assert caught.value.exit_code == 2


def test_rows_without_std_may_be_asked_for_their_rca(without_std):
    selected, excluded, report = filter_rows(without_std, asking(min_rca=0.7))
    assert ids_of(selected) == ["image0000"]
    assert excluded["reason"].to_pylist() == ["min_rca", "min_rca"]
    assert (report.sigma_quantiles, report.keep_thresholds) == ({}, {})


def test_predictions_are_filtered_like_published_rows():
    side = np.full(4, 3000.0)
    rows = random_rows(4, source="my-study", model_id="sha256-0123", frame="image", frame_side=side, n_samples=50)
    rows = rows.drop_columns(["rca_mean"]).append_column(table.field_of("rca_mean"), pa.nulls(4, pa.float32()))
    selected, _, report = filter_rows(rows, asking("p80"))
    assert [(limits.source, limits.model_id) for limits in report.limits] == [("my-study", "sha256-0123")]
    assert len(selected) > 0
    assert len(filter_rows(rows, asking(min_rca=0.1))[0]) == 0


# --- frames and duplicates -------------------------------------------------------------------------------------------


def test_an_image_in_two_frames_is_an_error_until_one_is_chosen():
    rows = random_rows(3, image_id=["a", "b", "a"], frame=["model", "model", "image"])
    with pytest.raises(
        UsageError, match=r"1 images are there in both frames \(chestxray8 a first\): choose with --frame"
    ):
        filter_rows(rows, asking(min_rca=0.0))
    selected, excluded, _ = filter_rows(rows, asking(frame="image"))
    assert ids_of(selected) == ["a"]
    assert excluded["reason"].to_pylist() == ["frame", "frame"]


def test_an_image_that_stands_twice_is_an_error():
    rows = random_rows(3, image_id=["a", "b", "a"])
    for criteria in (asking("5"), asking("5", frame="model")):
        with pytest.raises(DuplicateIdError, match="1 images stand more than once"):
            filter_rows(rows, criteria)


def test_the_same_id_in_two_sources_is_no_duplicate():
    rows = random_rows(2, image_id=["a", "a"], source=pa.array(["mimic", "vindr"]))
    assert len(filter_rows(rows, asking("100"))[0]) == 2


def test_sources_that_are_chosen():
    rows = random_rows(4, image_id=["a", "a", "b", "c"], source=pa.array(["mimic", "mimic", "vindr", "vindr"]))
    selected, excluded, _ = filter_rows(rows, asking(sources=("vindr",)))
    assert ids_of(selected) == ["b", "c"]
    assert excluded["reason"].to_pylist() == ["source", "source"]


# --- ids and labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_ids_choose_rows_and_are_counted(write):
    ids = IdList(write("ids.txt", "Image Index\nimage0001.png\nimage0003\nnone.png\n"))
    selected, excluded, report = filter_rows(random_rows(4), asking(ids=ids))
    assert ids_of(selected) == ["image0001", "image0003"]
    assert excluded["reason"].to_pylist() == ["ids", "ids"]
    assert report.ids_unmatched == ["none.png"]


def labelled(write, name, source, text):
    return Labels(write(name, text), SOURCES[source])


def test_labels_of_several_sources_share_columns(write):
    rows = random_rows(4, source=pa.array(["mimic", "vindr", "vindr", "padchest"]))
    labels = (
        labelled(write, "m.csv", "mimic", "dicom_id,Age,View\nimage0000,58,PA\nother,3,AP\n"),
        labelled(write, "v.csv", "vindr", "image_id,Age,Sex\nimage0001.dicom,058Y,F\nmore,1,M\neven,2,M\n"),
    )
    selected, _, report = filter_rows(rows, asking(labels=labels))
    # numbers in one file and text in the other become text
    assert selected.select(["Age", "View", "Sex"]).to_pylist() == [
        {"Age": "58", "View": "PA", "Sex": None},
        {"Age": "058Y", "View": None, "Sex": "F"},
        {"Age": None, "View": None, "Sex": None},
        {"Age": None, "View": None, "Sex": None},
    ]
    counts = [(one.source, one.lines, one.lines_unmatched, one.rows, one.rows_unmatched) for one in report.labels]
    assert counts == [("mimic", 2, 1, 1, 0), ("vindr", 3, 2, 2, 1)]


def test_several_label_files_of_one_source(write):
    labels = (
        labelled(write, "views.csv", "chestxray8", "Image Index,View\nimage0000,PA\nimage0001,AP\n"),
        labelled(write, "ages.csv", "chestxray8", "Image Index,Age\nimage0001,58\n"),
    )
    selected, _, _ = filter_rows(random_rows(2), asking(labels=labels, where=("Age>50", "View=AP")))
    assert selected.select(["View", "Age"]).to_pylist() == [{"View": "AP", "Age": 58}]


def test_conditions_on_labels_and_own_columns(write):
    text = "Image Index,view,Age\nimage0000,PA,10\nimage0001,AP,20\nimage0002,,30\n"
    labels = labelled(write, "labels.csv", "chestxray8", text)
    rows = random_rows(4, view=["LL", "PA", "PA", "PA"], rca_mean=np.array([0.7, 0.7, 0.8, 0.7]), rca_swapped=False)

    def kept(*where):
        return ids_of(filter_rows(rows, asking(where=where, labels=(labels,)))[0])

    assert kept("label_view=PA,AP") == ["image0000", "image0001"]
    assert kept("label_view!=PA") == ["image0001"]
    assert kept("view=PA", "Age>=20") == ["image0001", "image0002"]
    assert kept("rca_mean=0.7", "rca_swapped=false") == ["image0000", "image0001", "image0003"]
    with pytest.raises(UsageError, match=r"column 'Aeg' is not there; expected one of source, .*Age"):
        kept("Aeg>=20")


def test_label_levels_are_compared_among_the_rows_that_were_asked(write):
    sigma = np.repeat([[2.0], [2.0], [9.0], [9.0], [2.0]], N_NODES, axis=1)
    lines = ["image0000,PA,Edema,M", "image0001,PA,,M", "image0002,AP,Edema,M", "image0003,AP,,F"]
    labels = labelled(write, "labels.csv", "chestxray8", "\n".join(["Image Index,View,Finding,Sex", *lines]))
    _, _, report = filter_rows(with_sigma(sigma), asking("5", labels=(labels,), where=("Sex=M",)))
    # the row of a woman was not asked for, and the row without a line says nothing
    assert report.levels == [
        LevelCount("Finding", "(blank)", 1, 1),
        LevelCount("Finding", "Edema", 2, 1),
        LevelCount("Sex", "M", 3, 2),
        LevelCount("View", "AP", 1, 0),
        LevelCount("View", "PA", 2, 2),
    ]
    assert [[level.column for level in levels] for levels in report.unequal_levels] == [["View"] * 2, ["Finding"] * 2]


def test_a_row_counts_once_in_a_column_that_two_files_have(write):
    labels = tuple(
        labelled(write, f"{name}.csv", "chestxray8", "Image Index,View\nimage0000,PA\nimage0001,AP\n") for name in "ab"
    )
    _, _, report = filter_rows(random_rows(2), asking(labels=labels))
    assert report.levels == [LevelCount("View", "AP", 1, 1), LevelCount("View", "PA", 1, 1)]


@pytest.mark.parametrize(("kept", "unequal"), [(95, True), (96, False)])
def test_unequal_is_five_points_apart(kept, unequal):
    levels = [LevelCount("View", "AP", 100, kept), LevelCount("View", "PA", 20, 20)]
    report = FilterReport([Step("max_std")], levels=levels)
    assert bool(report.unequal_levels) is unequal


def test_conditions_on_columns_that_only_some_tables_have(saved):
    plain = random_rows(2, image_id=["a", "b"])
    more = random_rows(2, image_id=["c", "d"]).append_column("Site", pa.array(["x", "y"]))
    numbers = random_rows(2, image_id=["e", "f"]).append_column("Site", pa.array([1, 2]))
    inputs = [saved(rows, f"t{number}") for number, rows in enumerate((plain, more, numbers))]
    out = Path(inputs[0].name).with_name("out.parquet")
    filter_tables(inputs, asking(where=("Site=y,2",)), out)
    assert store.open_table(out).read(["image_id", "Site"]).to_pylist() == [
        {"image_id": "d", "Site": "y"},
        {"image_id": "f", "Site": "2"},
    ]


# --- a selection as input --------------------------------------------------------------------------------------------


def test_filtering_a_selection_only_narrows_it(three):
    first, _, _ = filter_rows(three, asking("5", max_gap=5))
    again, excluded, _ = filter_rows(first, asking(min_rca=0.0))
    assert len(again) == 0
    assert excluded["reason"].to_pylist() == ["min_rca"] * 3

    same, _, report = filter_rows(first, asking())
    assert same.select(["confident", "usable"]).equals(first.select(["confident", "usable"]))
    assert report.organs_kept == {"right_lung": 2 / 3, "left_lung": 1.0, "heart": 2 / 3}

    wider, _, _ = filter_rows(first, asking("100", min_confident=0, max_gap=50))
    assert wider.select(["confident", "usable"]).equals(first.select(["confident", "usable"]))

    stricter, _, _ = filter_rows(first, asking("5", max_gap=4))
    assert ids_of(stricter) == ["a", "b"]


def test_organs_decide_over_a_selection_too(three):
    first, _, _ = filter_rows(three, asking("5"))
    selected, excluded, _ = filter_rows(first, asking(organs=("heart",)))
    assert ids_of(selected) == ["a"]
    assert excluded.to_pylist() == [{"source": "chestxray8", "image_id": "b", "reason": "organ"}]


def test_labels_of_a_selection_are_kept_and_new_ones_replace_them(write):
    text = "Image Index,View,Age\nimage0000,PA,1\nimage0001,AP,2\n"
    first, _, _ = filter_rows(random_rows(3), asking(labels=(labelled(write, "a.csv", "chestxray8", text),)))
    assert ids_of(filter_rows(first, asking(where=("View=AP",)))[0]) == ["image0001"]
    newer = labelled(write, "b.csv", "chestxray8", "Image Index,View\nimage0001,LL\n")
    selected, _, _ = filter_rows(first, asking(labels=(newer,)))
    assert selected.select(["View", "Age"]).to_pydict() == {"View": ["PA", "LL", None], "Age": [1, 2, None]}


# --- like ------------------------------------------------------------------------------------------------------------


def like(rows_of_training, *, mix=False, **options):
    selected, _, _ = filter_rows(rows_of_training, asking(**options))
    return criteria_like(table.decode_metadata(selected.schema), asking(mix_models=mix))


@pytest.mark.parametrize("max_std", ["4.123456789", "p70", "heart=p80,lungs=4.2", "heart=p33.3"])
def test_like_takes_the_limits_of_another_selection(max_std):
    training, test = random_rows(30), random_rows(30, seed=1)
    of_training = filter_rows(training, asking(max_std, min_confident=0.8, min_rca=0.5))[2].limits
    criteria = like(training, max_std=max_std, min_confident=0.8, min_rca=0.5)
    assert (criteria.thresholds.min_confident, criteria.thresholds.min_rca) == (0.8, 0.5)
    _, _, report = filter_rows(test, criteria)
    assert report.limits == of_training
    assert [step.reason for step in report.steps] == ["min_rca", "scale_unknown", "max_std"]


def test_like_keeps_the_exact_value_of_a_limit():
    assert like(random_rows(3), max_std="4.123456789").thresholds.max_std["heart"] == Limit(4.123456789)


def test_like_without_max_std_asks_the_rest():
    criteria = like(make_rows(2, rca_mean=np.array([0.9, 0.1])), min_rca=0.5)
    assert len(filter_rows(make_rows(2, rca_mean=np.array([0.9, 0.1])), criteria)[0]) == 1


def test_like_serves_another_source_of_the_same_model_only():
    training = random_rows(10)
    criteria = like(training, max_std="p80")
    _, _, report = filter_rows(random_rows(10, source="vindr"), criteria)
    assert [(limits.source, limits.px) for limits in report.limits] == [("vindr", report.limits[0].px)]
    other = random_rows(10, model_id="other")
    with pytest.raises(
        UsageError, match=r"resolved for chestxray8 \(published\); there is no single one for chestxray8 "
    ):
        filter_rows(other, criteria)
    mixed = like(training, mix=True, max_std="p80")
    assert filter_rows(other, mixed)[2].limits[0].px == report.limits[0].px


def test_like_is_a_selection():
    with pytest.raises(UsageError, match="--like names no selection"):
        criteria_like({"digest": "0"}, asking())


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_of_two():
    return random_rows(
        23, source=pa.array(["mimic", "vindr"] * 11 + ["mimic"]), view=["PA", "AP", None] * 7 + ["PA", "AP"]
    )


OPTIONS = {"max_std": "heart=p80,lungs=4", "min_rca": 0.5, "where": ("view=PA,AP",)}


def test_tables_on_disk_and_in_memory_give_the_same(saved, rows_of_two, tmp_path):
    in_memory, left_out, expected = filter_rows(rows_of_two, asking(**OPTIONS))
    report = filter_tables([saved(rows_of_two)], asking(**OPTIONS), tmp_path / "s.parquet")
    written = store.open_table(tmp_path / "s.parquet")
    assert written.read().equals(in_memory)
    assert pq.read_table(excluded_path(tmp_path / "s.parquet")).equals(left_out)
    assert report == expected
    facts = table.decode_metadata(in_memory.schema)
    for key in ("kind", "thresholds", "limits_px", "where", "flow", "levels", "sigma_quantiles", "organs_kept"):
        assert written.facts[key] == facts[key], key
    # in memory nothing tells these rows from others
    assert "digest" not in facts


@pytest.mark.parametrize("shard_rows", [1, 4, 7, 1000])
def test_the_size_of_a_shard_changes_nothing(saved, rows_of_two, tmp_path, monkeypatch, shard_rows):
    expected, left_out, _ = filter_rows(rows_of_two, asking(**OPTIONS))
    monkeypatch.setattr(store, "SHARD_ROWS", shard_rows)
    stored = saved(rows_of_two)
    done = []
    filter_tables([stored], asking(**OPTIONS), tmp_path / "s.parquet", progress=done.append)
    assert sum(done) == 23
    assert len(done) == len(stored.shards()) == -(-23 // shard_rows)
    written = store.open_table(tmp_path / "s.parquet")
    assert written.read().equals(expected)
    assert pq.read_table(excluded_path(tmp_path / "s.parquet")).equals(left_out)
    # shards that were thinned out are filled up again
    sizes = [shard.rows for shard in written.shards()]
    assert sizes[:-1] == [shard_rows] * (len(sizes) - 1)


def test_the_order_of_tables_decides_the_order_of_rows_only(saved, rows_of_two, tmp_path):
    parts = [saved(rows_of_two.slice(0, 9), "one"), saved(rows_of_two.slice(9), "two")]
    first = filter_tables(parts, asking(**OPTIONS), tmp_path / "f.parquet")
    second = filter_tables(parts[::-1], asking(**OPTIONS), tmp_path / "s.parquet")
    assert first == second
    rows = [store.open_table(tmp_path / name).read().sort_by("image_id") for name in ("f.parquet", "s.parquet")]
    assert rows[0].equals(rows[1])


def test_the_same_filter_gives_the_same_bytes(saved, rows_of_two, tmp_path, write):
    labels = write(
        "labels.csv", "dicom_id,Age,Sex\n" + "".join(f"image{row:04d},{row},{'MF'[row % 2]}\n" for row in range(9))
    )
    content = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        criteria = asking(**OPTIONS, labels=(Labels(labels, SOURCES["mimic"]),), ids=IdList(labels))
        filter_tables([saved(rows_of_two)], criteria, tmp_path / name / "s.parquet")
        content.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert len(content[0]) == 2
    assert content[0] == content[1]


def test_a_selection_says_how_it_was_made(saved, rows_of_two, tmp_path, write):
    stored = saved(rows_of_two)
    labels = Labels(write("labels.csv", "dicom_id,Age\nimage0000,3\n"), SOURCES["mimic"])
    criteria = asking("heart=p80,lungs=4", where=("view=PA",), labels=(labels,))
    report = filter_tables([stored], criteria, tmp_path / "s.parquet")
    made = store.open_table(tmp_path / "s.parquet")
    assert (made.kind, made.facts["kind"]) == ("selection", "selection")
    assert made.facts["thresholds"] == criteria.thresholds.as_json()
    assert made.facts["limits_px"] == [
        {"source": limits.source, "model_id": "published", "px": limits.px} for limits in report.limits
    ]
    assert made.facts["inputs"] == [{"name": "table.parquet", "rows": 23, "digest": stored.digest}]
    assert [(one["name"], one["source"]) for one in made.facts["labels"]] == [("labels.csv", "mimic")]
    assert made.facts["where"] == ["view=PA"]
    assert not any(str(tmp_path) in str(value) for value in made.facts.values())


def test_the_digest_knows_what_was_asked_and_of_which_rows(saved, rows_of_two, tmp_path, write):
    def digest(criteria, rows=rows_of_two, name="table"):
        filter_tables([saved(rows, name)], criteria, tmp_path / "s.parquet")
        return store.open_table(tmp_path / "s.parquet").facts["digest"]

    first = digest(asking("5"))
    assert digest(asking("5"), name="moved") == first
    labels = [Labels(write("l.csv", f"dicom_id,Age\nimage0000,{age}\n"), SOURCES["mimic"]) for age in (3,)]
    others = [
        digest(asking("5.0001")),
        digest(asking("5", max_gap=5)),
        digest(asking("5", where=("view=PA",))),
        digest(asking("5"), rows_of_two.slice(1)),
        digest(asking("5", labels=labels)),
        digest(asking("5", labels=labels * 2)),
        digest(asking("5", ids=IdList(write("ids.txt", "image0001\n")))),
    ]
    assert len({first, *others}) == 8


def test_a_selection_of_a_partial_source_is_partial(saved, rows_of_two, tmp_path):
    stored = dataclasses.replace(saved(rows_of_two), facts={"partial": 23})
    filter_tables([stored], asking("5"), tmp_path / "s.parquet")
    assert store.open_table(tmp_path / "s.parquet").facts["partial"] is True


def test_the_thresholds_of_a_filtered_selection_are_not_forgotten(saved, rows_of_two, tmp_path):
    filter_tables([saved(rows_of_two)], asking("5"), tmp_path / "first.parquet")
    filter_tables([store.open_table(tmp_path / "first.parquet")], asking(min_rca=0.5), tmp_path / "second.parquet")
    (source,) = store.open_table(tmp_path / "second.parquet").facts["inputs"]
    assert source["thresholds"]["max_std"]["heart"] == "5 px"


def test_shipped_masks_and_samples(saved, tmp_path):
    rows = random_rows(4)
    rows = rows.append_column(table.field_of("rle_heart"), pa.array(["1 2"] * 4, pa.large_string()))
    samples = [[1.0, 2.0], [], None, [3.0]]
    rows = rows.append_column(table.field_of("samples_xy"), pa.array(samples, pa.list_(pa.float32())))
    filter_tables([saved(rows)], asking(), tmp_path / "s.parquet")
    written = store.open_table(tmp_path / "s.parquet").read()
    assert "rle_heart" not in written.column_names
    assert written["samples_xy"].to_pylist() == samples


def test_tables_without_rows(saved, tmp_path):
    empty = saved(random_rows(2).slice(0, 0))
    report = filter_tables([empty], asking("5"), tmp_path / "s.parquet")
    assert (report.rows_in, report.rows_out) == (0, 0)
    again = filter_tables([store.open_table(tmp_path / "s.parquet")], asking("p80"), tmp_path / "s.parquet")
    assert again.rows_out == 0
    assert store.open_table(tmp_path / "s.parquet").rows == 0


def test_nothing_to_filter(tmp_path):
    with pytest.raises(UsageError, match="nothing to filter"):
        filter_tables([], asking("5"), tmp_path / "s.parquet")


def test_an_interrupted_filter_leaves_the_old_selection(saved, rows_of_two, tmp_path, monkeypatch):
    home = tmp_path / "selections"
    out = home / "latest.parquet"
    monkeypatch.setattr(store, "SHARD_ROWS", 5)
    stored = saved(rows_of_two)
    filter_tables([stored], asking("5"), out)
    before = {path.name: path.read_bytes() for path in home.iterdir()}

    def interrupt(rows_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_tables([stored], asking("3"), out, progress=interrupt)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_a_refused_filter_writes_nothing(saved, without_std, tmp_path):
    with pytest.raises(UsageError):
        filter_tables([saved(without_std)], asking("5"), tmp_path / "new" / "s.parquet")
    assert not (tmp_path / "new").exists()


def test_only_a_selection_is_replaced(saved, rows_of_two, tmp_path):
    stored = saved(rows_of_two)
    with pytest.raises(OutputExistsError, match=r"table.parquet is there and is no selection"):
        filter_tables([stored], asking("5"), stored.paths[0])
    (tmp_path / "notes.parquet").write_text("mine")
    with pytest.raises(OutputExistsError, match="is no selection"):
        filter_tables([stored], asking("5"), tmp_path / "notes.parquet")
    for max_std in ("5", "4"):
        filter_tables([stored], asking(max_std), tmp_path / "s.parquet")
    assert store.open_table(tmp_path / "s.parquet").facts["thresholds"]["max_std"]["heart"] == "4 px"


def test_a_selection_may_replace_itself(saved, rows_of_two, tmp_path):
    out = tmp_path / "s.parquet"
    filter_tables([saved(rows_of_two)], asking(), out)
    report = filter_tables([store.open_table(out)], asking(where=("view=PA",)), out)
    assert store.open_table(out).rows == report.rows_out == 8


@pytest.fixture
def read(monkeypatch):
    """Return a list to which the columns of every read of a shard are added."""
    read, of_shard = [], store.Shard.read
    monkeypatch.setattr(
        store.Shard,
        "read",
        lambda shard, columns=None, **options: read.append(columns) or of_shard(shard, columns, **options),
    )
    return read


def test_rows_are_read_by_column(saved, rows_of_two, tmp_path, read):
    filter_tables([saved(rows_of_two)], asking("5", where=("rca_mean>0.5",)), tmp_path / "s.parquet", workers=1)
    scalars, sigma, told, others = read
    assert "sigma_model_px" not in scalars
    assert scalars.count("rca_mean") == 1
    assert sigma == ["sigma_model_px"]
    assert "sigma_model_px" in told
    assert "landmarks_xy" in others
    # nothing that the selection copies is read twice
    assert not set(told) & set(others)
    assert not {name for columns in read for name in columns if name.startswith("rle_")}


def test_lists_are_read_only_where_a_row_is_left(saved, rows_of_two, tmp_path, read):
    filter_tables([saved(rows_of_two)], asking("5", where=("view=LL",)), tmp_path / "s.parquet", workers=1)
    assert not {"sigma_model_px", "sigma_xy", "landmarks_xy"} & {name for columns in read for name in columns}
    read.clear()
    filter_tables([saved(rows_of_two)], asking("0"), tmp_path / "s.parquet", workers=1)
    assert "landmarks_xy" not in {name for columns in read for name in columns}


@pytest.mark.parametrize("shard_rows", [3, 1000])
def test_any_number_of_workers_gives_the_same_bytes(saved, rows_of_two, tmp_path, write, monkeypatch, shard_rows):
    monkeypatch.setattr(store, "SHARD_ROWS", shard_rows)
    lines = "".join(f"image{row:04d},{row},{'MF'[row % 2]}\n" for row in range(9))
    labels = write("labels.csv", f"dicom_id,Age,Sex\n{lines}")
    stored, content, reports = saved(rows_of_two), [], []
    for workers in (1, 2, 5):
        folder = tmp_path / str(workers)
        criteria = asking(
            "p70", min_rca=0.5, labels=(Labels(labels, SOURCES["mimic"]),), ids=IdList(write("ids.txt", IDS))
        )
        reports.append(filter_tables([stored], criteria, folder / "s.parquet", workers=workers))
        content.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert content[0] == content[1] == content[2]
    assert reports[0] == reports[1] == reports[2]
    assert 0 < reports[0].rows_out < 20


IDS = "".join(f"image{row:04d}\n" for row in range(20)) + "none\n"


def test_an_interrupted_filter_leaves_no_thread_and_the_old_selection(saved, rows_of_two, tmp_path, monkeypatch):
    out = tmp_path / "selections" / "latest.parquet"
    monkeypatch.setattr(store, "SHARD_ROWS", 2)
    stored = saved(rows_of_two)
    filter_tables([stored], asking("5"), out)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    threads = set(threading.enumerate())

    def interrupt(rows_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_tables([stored], asking("3"), out, workers=3, progress=interrupt)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("workers", [1, 3])
def test_what_goes_wrong_in_a_shard_comes_through_and_nothing_is_written(saved, rows_of_two, tmp_path, workers):
    inputs = [saved(rows_of_two.slice(3 * part, 3), f"part{part}") for part in range(7)]
    broken = inputs[4].paths[0]
    content = bytearray(broken.read_bytes())
    content[4:2000] = bytes(1996)
    broken.write_bytes(content)
    with pytest.raises((FormatError, OSError)):
        filter_tables(inputs, asking("5"), tmp_path / "new" / "s.parquet", workers=workers)
    assert not (tmp_path / "new").exists()


def test_workers_are_one_or_more(saved, tmp_path):
    with pytest.raises(UsageError, match="--workers 0: expected 1 or more"):
        filter_tables([saved(random_rows(3))], asking("5"), tmp_path / "s.parquet", workers=0)


def test_only_a_list_of_excluded_rows_is_replaced(saved, rows_of_two, tmp_path):
    out = tmp_path / "mine.parquet"
    excluded_path(out).write_text("another's")
    with pytest.raises(OutputExistsError, match="lists no excluded rows"):
        filter_tables([saved(random_rows(3))], asking("5"), out)
    assert excluded_path(out).read_text() == "another's"
    excluded_path(out).unlink()
    for _ in range(2):
        filter_tables([saved(random_rows(3))], asking("5"), out)


def test_like_refuses_a_chain_of_thresholds(saved, tmp_path):
    first, second, third = (tmp_path / f"{name}.parquet" for name in "abc")
    filter_tables([saved(random_rows(9))], asking("5"), first)
    filter_tables([store.open_table(first)], asking(), second)
    filter_tables([store.open_table(second)], asking(min_rca=0.5), third)
    with pytest.raises(UsageError, match=r"a\.parquet, which has thresholds of its own"):
        criteria_like(store.open_table(third).facts, asking())
    assert "max_std 5 px" in describe_thresholds(store.open_table(third))


# --- the gate and the radii ------------------------------------------------------------------------------------------


def judged(*verdicts, **columns):
    return make_rows(len(verdicts), quality=pa.array(verdicts, pa.string()), **columns)


@pytest.mark.parametrize(
    ("quality", "kept"),
    [("ok", [0]), ("review", [0, 1, 3]), ("any", [0, 1, 2, 3])],
)
def test_the_worst_verdict_that_stays(quality, kept):
    rows = judged("ok", "review", "reject", None)
    selected, excluded, _ = filter_rows(rows, asking(quality=quality))
    assert ids_of(selected) == [f"image{index:04}" for index in kept]
    assert set(excluded["reason"].to_pylist()) <= {"quality"}


def test_rejects_are_left_out_by_default_and_the_flow_says_so():
    _, _, report = filter_rows(judged("ok", "reject"), asking())
    assert [(step.reason, sum(step.rows_out.values())) for step in report.steps] == [("quality", 1)]


def test_a_gate_that_left_nothing_out_is_not_told_unless_asked_for():
    assert [step.reason for step in filter_rows(judged("ok", None), asking())[2].steps] == ["nothing asked"]
    assert [step.reason for step in filter_rows(judged("ok"), asking(quality="ok"))[2].steps] == ["quality"]


def with_radii(radius, **columns):
    radius = np.asarray(radius, np.float32)
    return make_rows(len(radius), radius90_px=radius.repeat(N_NODES // radius.shape[1], axis=1), **columns)


def test_a_radius_at_the_limit_is_confident():
    rows = with_radii([[20.0], [20.5], [19.0]])
    selected, excluded, report = filter_rows(rows, asking(max_radius90=dict.fromkeys(ORGAN_NAMES, 20.0)))
    assert ids_of(selected) == ["image0000", "image0002"]
    assert excluded["reason"].to_pylist() == ["max_radius90"]
    assert [step.reason for step in report.steps] == ["radius_scale_unknown", "max_radius90"]


def test_radii_in_image_pixels_are_compared_in_the_model_frame():
    columns = {"frame": "image", "frame_side": 2048.0, "height": 2048, "width": 2048}
    rows = with_radii([[40.0]], **columns)
    limit = dict.fromkeys(ORGAN_NAMES, 20.0)
    assert len(filter_rows(rows, asking(max_radius90=limit))[0]) == 1
    assert len(filter_rows(rows, asking(max_radius90=limit, unit="image"))[0]) == 0


def test_radius_and_sigma_may_be_asked_together():
    rows = with_radii([[10.0], [10.0], [30.0]], **table.sigma_columns(np.full((3, N_NODES, 2), 4, np.float32)))
    limits = dict.fromkeys(ORGAN_NAMES, 20.0)
    _, excluded, _ = filter_rows(rows, asking("5", max_radius90=limits))
    assert excluded.to_pylist() == [
        {"source": "chestxray8", "image_id": "image0002", "reason": "max_std or max_radius90"}
    ]


def test_rows_without_radii_cannot_be_asked_for_them():
    with pytest.raises(UsageError, match="no calibrated radii"):
        filter_rows(make_rows(2), asking(max_radius90={"heart": 20.0}))


def test_like_takes_radius_and_quality_along():
    rows = with_radii([[10.0]] * 2, quality=pa.array(["ok", "review"]))
    criteria = like(rows, max_radius90={"heart": 20.0}, quality="ok")
    assert (criteria.thresholds.max_radius90, criteria.thresholds.quality) == ({"heart": 20.0}, "ok")
