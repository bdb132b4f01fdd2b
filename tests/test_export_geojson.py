"""Tables to GeoJSON, read back by shapely."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builders import make_rows
from cxu import store
from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGANS
from cxu.errors import OutputExistsError
from cxu.export.geojson import export_geojson
from cxu.export.plan import ExportOptions, plan_export
from mask_helpers import last_corner, store_rows, tiny_chest, tiny_rows


def export(rows, path, *, group_rows=None, images=(), workers=1, **options):
    """Export rows, a block of ``group_rows`` each, and return the features and the report."""
    stored = store_rows(path.parent / "rows.parquet", rows, group_rows=group_rows)
    plan = plan_export(stored, path, ExportOptions("geojson", **options), images=tuple(map(str, images)))
    report = export_geojson(plan, workers=workers, overwrite=True)
    if path.suffix == ".geojsonl":
        return [json.loads(line) for line in path.read_text().splitlines()], report
    return json.loads(path.read_bytes())["features"], report


def polygon(feature):
    return shapely.from_geojson(json.dumps(feature["geometry"]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "x.geojson"


def test_a_row_by_hand(path):
    features, report = export(tiny_rows(sigma=0.5, quality="review"), path)
    content = json.loads(path.read_bytes())
    assert list(content) == ["type", "cxu", "features"]
    assert content["type"] == "FeatureCollection"
    assert content["cxu"]["digest"] == store.open_table(path.parent / "rows.parquet").digest
    assert content["cxu"]["coordinates"].startswith("pixels x, y of the image")
    assert "crs" not in content
    right = features[0]
    assert right["type"] == "Feature"
    (ring,) = right["geometry"]["coordinates"]
    assert ring == [[1, 1]] * 14 + [[4, 1]] * 14 + [[4, 6]] * 12 + [[1, 6]] * 4 + [[1, 1]]
    sigma_model_px = round(0.5 * 1024 / 12, 4)
    assert right["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "right lung", "color": [86, 180, 233]},
        "source": "chestxray8",
        "image_id": "image0000",
        "organ": "right_lung",
        "usable": True,
        "crosses_itself": False,
        "frame": "image",
        "height": 10,
        "width": 12,
        "mean_sigma_px": 0.5,
        "max_sigma_px": 0.5,
        "mean_sigma_model_px": sigma_model_px,
        "model_id": "published",
        "quality": "review",
    }
    assert [feature["properties"]["organ"] for feature in features] == ["right_lung", "left_lung", "heart"]
    assert (report.account.rows, report.files) == (1, 1)


def test_shapely_reads_the_collection(path):
    export(tiny_rows(2), path)
    collection = shapely.from_geojson(path.read_text())
    assert len(collection.geoms) == 6
    assert shapely.bounds(collection.geoms[0]).tolist() == [1, 1, 4, 6]
    assert collection.geoms[0].area == 15


coordinates = st.floats(-300, 5000, width=32)


@settings(max_examples=60)
@given(points=st.lists(st.tuples(coordinates, coordinates), min_size=30, max_size=30))
def test_points_come_back_exactly(tmp_path_factory, points):
    landmarks = np.resize(np.float32(points), (1, N_NODES, 2))
    rows = make_rows(1, landmarks_xy=landmarks, frame="image", height=900, width=800)
    features, _ = export(rows, tmp_path_factory.mktemp("law") / "x.geojson", policy="full")
    for feature, organ in zip(features, ORGANS, strict=True):
        found = shapely.get_coordinates(polygon(feature)).astype(np.float32)
        assert np.array_equal(found[:-1], landmarks[0, organ.nodes])
        assert np.array_equal(found[-1], found[0])


def test_confident_nodes_are_named_with_their_uncertainty(path):
    sigma = np.tile(np.array([0.5, 1.0], np.float32), (120, 1))
    sigma[50] = [1, 2]
    confident = ~last_corner(LEFT_LUNG)
    features, _ = export(tiny_rows(1, sigma=sigma, confident=confident), path, nodes=True)
    right, left, heart = (feature["properties"] for feature in features)
    assert right["nodes"] == list(range(44))
    assert left["nodes"] == list(range(44, 90))
    assert heart["nodes"] == list(range(94, 120))
    assert left["sigma_px"] == [0.75] * 6 + [1.5] + [0.75] * 39
    # of all nodes, drawn or not
    assert left["mean_sigma_px"] == round((49 * 0.75 + 1.5) / 50, 4)
    assert left["max_sigma_px"] == 1.5
    assert len(features[1]["geometry"]["coordinates"][0]) == 46 + 1
    features, _ = export(tiny_rows(1, confident=confident), path, policy="full", nodes=True)
    assert features[1]["properties"]["nodes"] == list(range(44, 94))


def test_unusable_organs_are_there_and_say_so(path):
    usable = np.array([[True, False, True], [False, False, False]])
    features, report = export(tiny_rows(2, usable=usable, confident=~last_corner(LEFT_LUNG)), path)
    assert [feature["properties"]["usable"] for feature in features] == [True, False, True, False, False, False]
    left = features[1]
    assert left["properties"]["classification"]["name"] == "left lung (unusable)"
    assert shapely.get_coordinates(polygon(left))[:-1].tolist() == tiny_chest()[LEFT_LUNG.nodes].tolist()
    assert report.account.rows == 2
    assert report.account.organs == {"right_lung": 1, "heart": 1}
    assert report.account.unusable == {"left_lung": 2, "right_lung": 1, "heart": 1}
    assert report.account.empty == []


def test_unknown_uncertainty_is_null(path):
    rows = make_rows(1, landmarks_xy=tiny_chest()[None], height=10, width=12)
    features, _ = export(rows, path, nodes=True)
    assert features[0]["properties"]["mean_sigma_px"] is None
    assert features[0]["properties"]["sigma_px"] == [None] * 44


def test_rows_that_cannot_be_drawn_are_listed(path):
    landmarks = np.broadcast_to(tiny_chest(), (2, 120, 2)).copy()
    landmarks[0, 5] = np.nan
    features, report = export(tiny_rows(2, landmarks_xy=landmarks), path, group_rows=1)
    assert {feature["properties"]["image_id"] for feature in features} == {"image0001"}
    assert [failure.image_id for failure in report.account.failures] == ["image0000"]


def test_outlines_that_cross_themselves_say_so_as_shapely_does(path):
    landmarks = tiny_chest()[None].copy()
    landmarks[0, HEART.nodes] = np.repeat([[5, 5], [8, 8], [8, 5], [5, 8]], [8, 8, 6, 4], axis=0)
    features, _ = export(tiny_rows(1, landmarks_xy=landmarks), path)
    assert [feature["properties"]["crosses_itself"] for feature in features] == [False, False, True]
    assert [polygon(feature).is_valid for feature in features] == [True, True, False]


def test_fewer_than_three_nodes_are_a_ring_that_readers_take(path):
    confident = np.zeros((1, 120), bool)
    confident[0, [0, 20, 44]] = True
    features, _ = export(tiny_rows(1, confident=confident, usable=np.ones((1, 3), bool)), path, nodes=True)
    assert features[0]["geometry"]["coordinates"] == [[[1, 1], [4, 1], [4, 1], [1, 1]]]
    assert features[0]["properties"]["nodes"] == [0, 20]
    assert features[1]["geometry"]["coordinates"] == [[[7, 1]] * 4]
    assert (features[2]["properties"]["usable"], len(features[2]["properties"]["nodes"])) == (False, 26)
    assert all(polygon(feature) for feature in features)


def test_with_images_points_are_in_their_pixels(path, tmp_path):
    (tmp_path / "films").mkdir()
    Image.fromarray(np.full((20, 24), 90, np.uint8)).save(tmp_path / "films/image0000.png")
    features, _ = export(tiny_rows(), path, images=[tmp_path / "films"], nodes=True)
    assert polygon(features[0]).bounds == (2, 2, 8, 12)
    assert features[0]["properties"]["sigma_px"][0] == 1.0
    assert features[0]["properties"]["width"] == 24


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl"])
def test_blocks_and_workers_change_no_byte(tmp_path, suffix):
    stored = store_rows(tmp_path / "rows.parquet", tiny_rows(5), group_rows=1)
    contents = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}{suffix}"
        export_geojson(plan_export(stored, out, ExportOptions("geojson")), workers=workers)
        contents.append(out.read_text())
    assert contents[0] == contents[1]
    assert contents[0].count('"Feature"') == 15


def test_a_feature_a_line(tmp_path):
    features, report = export(tiny_rows(2), tmp_path / "x.geojsonl", group_rows=1)
    together, _ = export(tiny_rows(2), tmp_path / "x.json")
    assert features == together
    assert report.paths == [tmp_path / "x.geojsonl"]
    assert len((tmp_path / "x.geojsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("name", ["x.geojson", "x.geojsonl"])
def test_a_table_without_rows(tmp_path, name):
    features, _ = export(tiny_rows(0), tmp_path / name)
    assert features == []


def test_a_file_that_is_there_is_kept(path):
    stored = store_rows(path.parent / "rows.parquet", tiny_rows(1))
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        export_geojson(plan_export(stored, path, ExportOptions("geojson")))
    assert path.read_text() == "mine"
