import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cxu import table
from cxu.anatomy import HEART, N_NODES
from cxu.cli import app
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.evaluation.coverage import Pairs, measure_coverage, node_table
from cxu.evaluation.groups import groups_of, read_groups
from cxu.stats import Interval


def pairs(error, sigma=5.0, radius=10.0, groups=None):
    error = np.broadcast_to(np.asarray(error, float), (len(error), N_NODES)).copy()
    full = [np.broadcast_to(np.asarray(values, float), error.shape).copy() for values in (sigma, radius)]
    return Pairs(error, *full, groups or ["mine"] * len(error), [f"film{index}" for index in range(len(error))])


def named(parts):
    return {one.name: one for one in parts}


def test_coverage_by_hand():
    # of four images one lies outside, and half of another
    error = np.full((4, N_NODES), 9.0)
    error[0] = 11.0
    error[1, ::2] = 11.0
    report = measure_coverage(pairs(error))
    found = named(report.radii)
    assert found["all"].share.value == (0 + 0.5 + 1 + 1) / 4
    assert (found["all"].images, found["all"].nodes, found["all"].radius_px) == (4, 480, 10)
    assert found["heart"].nodes == 4 * HEART.n_nodes
    assert "mine" not in found


def test_a_node_on_its_radius_is_within():
    assert named(measure_coverage(pairs([[10.0]])).radii)["all"].share.value == 1


def test_data_sets_are_told_apart():
    found = named(measure_coverage(pairs([[9.0], [11.0], [11.0]], groups=["a", "b", "b"])).radii)
    assert (found["a"].share.value, found["b"].share.value, found["b"].images) == (1, 0, 2)


def test_nodes_without_truth_do_not_count():
    error = np.full((2, N_NODES), 9.0)
    error[0, HEART.nodes] = np.nan
    found = named(measure_coverage(pairs(error)).radii)
    assert (found["heart"].images, found["heart"].nodes, found["all"].nodes) == (1, 26, 214)


def test_the_scale_by_hand():
    # distances of sigma · √2 are those of two coordinates of one sigma each
    error = [[5 * np.sqrt(2)], [10 * np.sqrt(2)]]
    scale = named(measure_coverage(pairs(error)).scales)["all"].scale
    assert scale.value == pytest.approx(np.sqrt((1 + 4) / 2))
    assert (scale.low, scale.high) == pytest.approx((1, 2))


def test_gaussian_errors_have_the_shares_of_a_gaussian():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(2, 20, (300, N_NODES))
    error = np.linalg.norm(sigma[..., None] * rng.standard_normal((300, N_NODES, 2)), axis=-1)
    report = measure_coverage(pairs(error, sigma))
    for one in report.shares:
        assert one.observed.value == pytest.approx(one.expected, abs=0.01)
        assert one.observed.low < one.expected < one.observed.high
    assert named(report.scales)["all"].scale.value == pytest.approx(1, abs=0.01)


def test_deciles_are_tenths_of_the_nodes_by_sigma():
    sigma = np.arange(10 * N_NODES, dtype=float).reshape(10, N_NODES) + 1
    report = measure_coverage(pairs(np.full((10, N_NODES), 30.0), sigma, sigma * 0.1))
    found = named(report.radii)
    assert [found[f"sigma decile {index}"].nodes for index in range(1, 11)] == [120] * 10
    assert found["sigma decile 1"].share.value == 0
    assert found["sigma decile 10"].share.value == 1


def test_one_image_has_no_interval():
    share = named(measure_coverage(pairs([[9.0]])).radii)["all"].share
    assert share.value == 1
    assert np.isnan([share.low, share.high]).all()


def test_rows_without_radii_still_say_what_sigma_is_worth():
    report = measure_coverage(pairs([[9.0], [9.0]], radius=np.nan))
    assert report.radii == ()
    assert len(report.shares) == 5


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UsageError, match="nothing to compare"):
        measure_coverage(pairs([[np.nan]]))
    with pytest.raises(UsageError, match="nothing to compare"):
        measure_coverage(pairs([[1.0]], sigma=np.nan))


def test_the_table_has_a_row_for_each_annotated_node():
    error = np.full((2, N_NODES), np.nan)
    error[1, [3, 7]] = 2.0, 4.0
    rows = node_table(pairs(error, radius=np.nan))
    assert rows.to_pydict() == {
        "image_id": ["film1", "film1"],
        "group": ["mine", "mine"],
        "node": [3, 7],
        "error_model_px": [2.0, 4.0],
        "sigma_model_px": [5.0, 5.0],
        "radius90_model_px": [None, None],
    }


def test_groups_are_found_by_id_or_its_last_part(tmp_path):
    (tmp_path / "index.csv").write_text("name,dataset\n0012.png,JSRT\nb,Shenzhen\nc,\n")
    groups = read_groups(f"{tmp_path}/index.csv:dataset")
    assert groups == {"0012": "JSRT", "b": "Shenzhen"}
    assert groups_of(["0012", "x/b.jpg", "c"], groups, ["u"] * 3) == ["JSRT", "Shenzhen", "u"]


def test_wrong_groups_are_refused(tmp_path):
    (tmp_path / "index.csv").write_text("name,dataset\na,b\n")
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(UsageError, match="FILE:COLUMN"):
        read_groups("index.csv")
    with pytest.raises(UsageError, match=r"no column 'split'; .* has name, dataset"):
        read_groups(f"{tmp_path}/index.csv:split")
    with pytest.raises(MissingInputError, match="does not exist"):
        read_groups(f"{tmp_path}/none.csv:dataset")
    with pytest.raises(FormatError, match="no table"):
        read_groups(f"{tmp_path}/broken.parquet:dataset")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve predictions of which the last two have no truth, in image pixels twice those of the model frame."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = rng.uniform(200, 800, (10, N_NODES, 2)).astype(np.float32)
    found = np.concatenate([truth, truth[:2]])
    found[..., 0] += 6
    rows = table.build_table(
        {
            "source": "custom",
            "image_id": [f"film{index}" for index in range(12)],
            "frame": "image",
            "height": 2048,
            "width": 2048,
            "frame_side": 2048.0,
            "frame_offset_xy": np.zeros((12, 2), np.float32),
            "landmarks_xy": (found * 2).reshape(12, -1),
            **table.sigma_columns(np.full((12, N_NODES, 2), 8, np.float32), np.full(12, 2048.0)),
            "radius90_px": np.repeat([[14.0], [10.0]], 6, axis=0).repeat(N_NODES, axis=1).astype(np.float32),
            "model_id": "m",
            "n_samples": 50,
        },
        12,
    )
    pq.write_table(rows, "predictions.parquet")
    np.savez("truth.npz", name=[f"film{index}" for index in range(10)], landmarks_xy=truth)
    (tmp_path / "index.csv").write_text("name,dataset\n" + "".join(f"film{i},{'ab'[i >= 6]}\n" for i in range(12)))
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, ["evaluate", "calibration", *words])


def test_the_command_measures_in_the_model_frame(folder):
    # an error of 6 px there: within 14 / 2 of the first six, not within 10 / 2 of the four others
    done = run("predictions.parquet", "truth.npz", "--by", "index.csv:dataset", "--json", "--out", "nodes.csv")
    assert done.exit_code == 3, done.output
    content = json.loads(done.stdout)
    shares = {one["name"]: one["share"][0] for one in content["radii"]}
    assert (shares["all"], shares["a"], shares["b"]) == (0.6, 1, 0)
    assert content["without truth"] == ["film10", "film11"]
    assert len((folder / "nodes.csv").read_text().splitlines()) == 1 + 10 * N_NODES


def test_the_command_prints_and_draws(folder):
    pq.write_table(pq.read_table("predictions.parquet").slice(0, 10), "predictions.parquet")
    done = run("predictions.parquet", "truth.npz", "--figure", "coverage.png")
    assert done.exit_code == 0, done.output
    assert "60.0 %" in done.stdout
    assert "Errors in units of sigma" in done.stdout
    assert (folder / "coverage.png").stat().st_size > 10_000


def test_a_figure_without_radii_is_not_drawn_and_that_is_said(folder):
    rows = pq.read_table("predictions.parquet").slice(0, 10)
    at = rows.column_names.index("radius90_px")
    pq.write_table(rows.set_column(at, rows.field(at), pa.nulls(10, rows.field(at).type)), "predictions.parquet")
    done = run("predictions.parquet", "truth.npz", "--figure", "coverage.png")
    assert done.exit_code == 0, done.output
    assert "coverage.png is not drawn" in done.stderr
    assert not (folder / "coverage.png").exists()


def test_wrong_requests_exit_with_2(folder):
    assert run("predictions.parquet", "truth.npz", "--out", "nodes.txt").exit_code == 2
    assert run("predictions.parquet", "truth.npz", "--figure", "a.bmp").exit_code == 2
    assert run("predictions.parquet", "none.npz").exit_code == 2
    np.savez("other.npz", name=["else"], landmarks_xy=np.zeros((1, N_NODES, 2)))
    done = run("predictions.parquet", "other.npz")
    assert done.exit_code == 2
    assert "no image is in both" in done.output


def test_the_interval_is_over_images():
    found = named(measure_coverage(pairs([[9.0]] * 5 + [[11.0]] * 5)).radii)["all"].share
    assert isinstance(found, Interval)
    assert found.low == pytest.approx(0.2, abs=0.11)
    assert found.high == pytest.approx(0.8, abs=0.11)
