"""Tables to COCO files, read back by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from builders import chest, make_rows
from cxu import raster, store, table
from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, ORGANS
from cxu.errors import OutputExistsError
from cxu.export.coco import export_coco
from cxu.export.plan import ExportOptions, plan_export
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.rasterize import rasterize_table
from mask_helpers import last_corner, picture, store_rows, tiny_chest, tiny_rows

RIGHT_LUNG_PICTURE = picture("""
    000000000000
    011110000000
    011110000000
    011110000000
    011110000000
    011110000000
    011110000000
    000000000000
    000000000000
    000000000000
""")


def export(rows, path, *, group_rows=None, images=(), workers=1, overwrite=False, **options):
    """Export rows, a block of ``group_rows`` each, and return what the file says and the report."""
    stored = store_rows(path.parent / "rows.parquet", rows, group_rows=group_rows)
    plan = plan_export(stored, path, ExportOptions("coco", **options), images=tuple(map(str, images)))
    report = export_coco(plan, workers=workers, overwrite=overwrite)
    return json.loads(path.read_bytes()), report


def opened(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "x.json"


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_row_by_hand(path):
    content, report = export(tiny_rows(sigma=0.5, quality="ok"), path)
    assert list(content) == ["info", "licenses", "categories", "images", "annotations"]
    assert content["categories"] == [
        {"id": 1, "name": "right_lung", "supercategory": "lung"},
        {"id": 2, "name": "left_lung", "supercategory": "lung"},
        {"id": 3, "name": "heart", "supercategory": "heart"},
    ]
    assert content["images"] == [
        {
            "id": 1,
            "file_name": "image0000",
            "width": 12,
            "height": 10,
            "source": "chestxray8",
            "image_id": "image0000",
            "frame": "image",
            "unusable": [],
            "model_id": "published",
            "quality": "ok",
            "mean_sigma_model_px": round(0.5 * 1024 / 12, 4),
        }
    ]
    right, left, heart = content["annotations"]
    corners = right.pop("segmentation")
    assert right == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 24,
        "bbox": [1, 1, 4, 6],
        "usable": True,
        "crosses_itself": False,
        "mean_sigma_px": 0.5,
        "max_sigma_px": 0.5,
        "mean_sigma_model_px": round(0.5 * 1024 / 12, 4),
    }
    # 14 + 14 + 12 + 4 nodes on the corners, half a pixel from the pixel's corner
    assert corners == [[1.5, 1.5] * 14 + [4.5, 1.5] * 14 + [4.5, 6.5] * 12 + [1.5, 6.5] * 4]
    assert [one["id"] for one in (left, heart)] == [2, 3]
    assert [one["category_id"] for one in (left, heart)] == [2, 3]
    assert (report.account.rows, dict(report.account.organs)) == (1, {"right_lung": 1, "left_lung": 1, "heart": 1})
    assert (report.files, report.bytes) == (1, path.stat().st_size)


def test_rle_by_hand(path):
    content, _ = export(tiny_rows(), path, rle=True)
    segmentation = content["annotations"][0]["segmentation"]
    assert segmentation["size"] == [10, 12]
    np.testing.assert_array_equal(coco_mask.decode(segmentation), RIGHT_LUNG_PICTURE)


def test_info_says_how_the_table_was_made(path, tmp_path):
    limits = [{"source": "chestxray8", "model_id": "published", "px": {"heart": 5.0}}]
    made = {"kind": "selection", "thresholds": {"max_std": {"heart": "5 px"}}, "limits_px": limits}
    content, _ = export(table.with_facts(tiny_rows(), made), path, policy="full")
    told = content["info"]["cxu"]
    assert told["thresholds"] == {"max_std": {"heart": "5 px"}}
    assert told["limits_px"] == limits
    assert told["policy"] == "full"
    assert told["digest"] == store.open_table(path.parent / "rows.parquet").digest
    assert told["version"] == content["info"]["version"]


def test_unknown_uncertainty_is_null(path):
    rows = make_rows(1, landmarks_xy=tiny_chest()[None], height=10, width=12)
    content, _ = export(rows, path)
    names = ("mean_sigma_px", "max_sigma_px", "mean_sigma_model_px")
    assert {content["annotations"][0][name] for name in names} == {None}
    assert content["images"][0]["mean_sigma_model_px"] is None
    assert "NaN" not in path.read_text()


# --- its own reader --------------------------------------------------------------------------------------------------


def test_pycocotools_finds_images_and_organs(path):
    usable = np.array([[True, True, True], [True, False, True]])
    export(tiny_rows(2, usable=usable), path, group_rows=1)
    coco = opened(path)
    assert coco.getImgIds() == [1, 2]
    assert coco.getCatIds(supNms=["lung"]) == [1, 2]
    assert [one["category_id"] for one in coco.loadAnns(coco.getAnnIds(imgIds=[2]))] == [1, 3]
    # 12 columns, pixels are inside where their centre is
    drawn = coco.annToMask(coco.loadAnns([1])[0])
    assert drawn.shape == (10, 12)
    assert not (drawn & ~RIGHT_LUNG_PICTURE & 1).any()


coordinates = st.floats(-12, 52, width=32)


@settings(max_examples=60)
@given(points=st.lists(st.tuples(coordinates, coordinates), min_size=30, max_size=30))
@example(points=tiny_chest().tolist())
@example(points=[(-5.0, -5.0)])  # nothing of it is in the image
def test_pixels_are_those_of_rasterize_and_points_those_of_the_table(tmp_path_factory, points):
    folder = tmp_path_factory.mktemp("law")
    landmarks = np.resize(np.float32(points), (1, N_NODES, 2))
    rows = make_rows(1, landmarks_xy=landmarks, height=40, width=30, frame="image")
    export(rows, folder / "rle.json", rle=True)
    export(rows, folder / "polygons.json")
    masks, outlines = opened(folder / "rle.json"), opened(folder / "polygons.json")
    for organ in ORGANS:
        drawn = raster.fill_polygon(landmarks[0, organ.nodes], (40, 30))
        found, outline = masks.anns[organ.label], outlines.anns[organ.label]
        np.testing.assert_array_equal(masks.annToMask(found), drawn)
        encoded = coco_mask.encode(np.asfortranarray(drawn))
        assert found["segmentation"]["counts"] == encoded["counts"].decode()
        assert outline["area"] == found["area"] == int(coco_mask.area(encoded)) == drawn.sum()
        assert outline["bbox"] == found["bbox"] == coco_mask.toBbox(encoded).tolist()
        nodes = np.array(outline["segmentation"][0]).reshape(-1, 2) - 0.5
        np.testing.assert_allclose(nodes, landmarks[0, organ.nodes], rtol=0, atol=0.0006)
        outlines.annToMask(outline)  # pycocotools takes it


def test_polygons_drawn_by_pycocotools_lack_the_border_and_are_not_shifted(path):
    export(make_rows(1, landmarks_xy=chest()[None]), path)
    coco = opened(path)
    for organ in ORGANS:
        drawn = raster.fill_polygon(chest()[organ.nodes], (1024, 1024))
        theirs = coco.annToMask(coco.anns[organ.label])
        assert not (theirs & ~drawn & 1).any()
        assert 0 < drawn.sum() - theirs.sum() < 2000
        # the two have one middle: without the half pixel it moves by half of one
        for axis in (0, 1):
            ours, there = np.nonzero(drawn)[axis].mean(), np.nonzero(theirs)[axis].mean()
            assert abs(ours - there) < 0.2


def test_the_same_masks_as_cxu_rasterize(path, tmp_path):
    confident = ~last_corner(LEFT_LUNG)
    rows = tiny_rows(3, confident=np.stack([np.ones(120, bool), confident, confident]))
    content, _ = export(rows, path, rle=True)
    stored = store.open_table(path.parent / "rows.parquet")
    rasterize_table(plan_masks(stored, tmp_path / "masks", MaskOptions("confident", "rle"), Target()))
    masks = pq.read_table(tmp_path / "masks/masks/part-00000.parquet")
    ours = [one["segmentation"]["counts"] for one in content["annotations"]]
    assert ours == masks["rle_coco"].to_pylist()
    assert ours[1] != ours[4]


# --- what is left out ------------------------------------------------------------------------------------------------


def test_unusable_organs_are_left_out_named_and_counted(path):
    usable = np.array([[True, False, True], [False, False, False], [True, True, True]])
    content, report = export(tiny_rows(3, usable=usable), path)
    assert [(one["id"], one["unusable"]) for one in content["images"]] == [(1, ["left_lung"]), (3, [])]
    assert [one["id"] for one in content["annotations"]] == [1, 3, 7, 8, 9]
    account = report.account
    assert account.empty == [("chestxray8", "image0001")]
    assert account.unusable == {"left_lung": 2, "right_lung": 1, "heart": 1}
    assert (account.rows, account.seen, account.failures) == (2, 3, [])


def test_rows_that_cannot_be_drawn_are_listed_and_keep_their_number(path):
    landmarks = np.broadcast_to(tiny_chest(), (3, 120, 2)).copy()
    landmarks[1, 5] = np.inf
    rows = tiny_rows(3, landmarks_xy=landmarks, height=[10, 10, None])
    content, report = export(rows, path, group_rows=1)
    assert [one["id"] for one in content["images"]] == [1]
    reasons = [str(failure) for failure in report.account.failures]
    assert reasons[0].startswith("chestxray8 image0001: landmarks that are no number")
    assert reasons[1].startswith("chestxray8 image0002: the row does not know its height and width")
    first_gone = tiny_rows(2, landmarks_xy=landmarks[[1, 0]])
    content, _ = export(first_gone, path, group_rows=1, overwrite=True)
    assert [one["id"] for one in content["images"]] == [2]
    assert [one["id"] for one in content["annotations"]] == [4, 5, 6]


def test_a_table_without_rows_is_a_file_without_images(path):
    content, report = export(tiny_rows(0), path)
    assert content["images"] == content["annotations"] == []
    assert report.account.rows == 0
    opened(path)


def test_fewer_than_three_nodes_are_a_polygon_that_readers_take(path):
    confident = np.zeros((1, 120), bool)
    confident[0, [0, 20, 44]] = True
    content, report = export(tiny_rows(1, confident=confident, usable=np.ones((1, 3), bool)), path)
    right, left = content["annotations"]
    assert right["segmentation"] == [[1.5, 1.5, 4.5, 1.5, 4.5, 1.5]]
    assert left["segmentation"] == [[7.5, 1.5] * 3]
    assert content["images"][0]["unusable"] == ["heart"]  # no node of it is left
    assert report.account.unusable == {"heart": 1}
    coco = opened(path)
    assert coco.annToMask(right).shape == (10, 12)


def test_outlines_that_cross_themselves_are_said(path):
    landmarks = tiny_chest()[None].copy()
    landmarks[0, HEART.nodes] = np.repeat([[5, 5], [8, 8], [8, 5], [5, 8]], [8, 8, 6, 4], axis=0)
    content, report = export(tiny_rows(1, landmarks_xy=landmarks), path)
    assert [one["crosses_itself"] for one in content["annotations"]] == [False, False, True]
    assert report.account.crossing["heart"] == 1


# --- images ----------------------------------------------------------------------------------------------------------


def save(path, shape_hw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape_hw, 90, np.uint8)).save(path)


def test_with_images_outlines_are_in_their_pixels(path, tmp_path):
    save(tmp_path / "films/a/image0000.png", (20, 24))
    save(tmp_path / "films/image0001.png", (30, 20))
    content, report = export(tiny_rows(3, sigma=0.5), path, images=[tmp_path / "films"])
    (image,) = content["images"]
    assert (image["file_name"], image["width"], image["height"]) == ("a/image0000.png", 24, 20)
    right = content["annotations"][0]
    assert right["segmentation"][0][:2] == [2.5, 2.5]
    assert right["mean_sigma_px"] == 1.0
    assert right["mean_sigma_model_px"] == round(0.5 * 1024 / 12, 4)
    reasons = [failure.reason for failure in report.account.failures]
    assert "not the same image" in reasons[0]
    assert reasons[1] == "no image of this id among the images given"


def test_model_frame_rows_are_put_back_into_their_image(path, tmp_path):
    save(tmp_path / "films/image0000.png", (512, 256))
    rows = make_rows(1, source="mine", landmarks_xy=chest()[None])
    content, report = export(rows, path, images=[tmp_path / "films"])
    (image,) = content["images"]
    assert (image["width"], image["height"], image["frame"]) == (256, 512, "image")
    nodes = np.array(content["annotations"][0]["segmentation"][0]).reshape(-1, 2) - 0.5
    np.testing.assert_allclose(nodes, chest()[:44] / 2 - [128, 0], atol=1e-3)
    assert report.account.assumed == 1


def test_images_in_a_zip(path, tmp_path):
    save(tmp_path / "image0000.png", (10, 12))
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.write(tmp_path / "image0000.png", "x/image0000.png")
    content, _ = export(tiny_rows(), path, images=[tmp_path / "films.zip"])
    assert content["images"][0]["file_name"] == "x/image0000.png"


# --- files -----------------------------------------------------------------------------------------------------------


def test_blocks_and_workers_change_no_byte(tmp_path):
    rows = tiny_rows(5, usable=np.arange(15).reshape(5, 3) % 4 > 0)
    # the digest of the table is in the file, so it is one table
    stored = store_rows(tmp_path / "rows.parquet", rows, group_rows=1)
    contents = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.json"
        export_coco(plan_export(stored, out, ExportOptions("coco")), workers=workers)
        contents.append(out.read_bytes())
    whole, _ = export(rows, tmp_path / "whole/x.json")
    assert contents[0] == contents[1]
    assert json.loads(contents[0])["annotations"] == whole["annotations"]
    assert json.loads(contents[0])["images"] == whole["images"]


class Stopped(BaseException):
    pass


def stop_after(n_blocks):
    """Return what raises once so many blocks are done."""
    left = iter(range(n_blocks))

    def stop(_):
        if next(left, None) is None:
            raise Stopped

    return stop


def test_a_run_that_is_stopped_leaves_no_file_and_is_continued(path):
    rows = tiny_rows(5, usable=np.arange(15).reshape(5, 3) % 4 > 0, height=[10, 10, None, 10, 10])
    stored = store_rows(path.parent / "rows.parquet", rows, group_rows=1)
    plan = plan_export(stored, path, ExportOptions("coco"))
    whole = export_coco(plan_export(stored, path.with_name("whole.json"), ExportOptions("coco")))
    with pytest.raises(Stopped):
        export_coco(plan, progress=stop_after(3))
    found = sorted(one.name for one in path.parent.iterdir())
    assert found == ["rows.parquet", "whole.json", "x.json.parts"]
    report = export_coco(plan)
    assert path.read_bytes() == path.with_name("whole.json").read_bytes()
    assert report.account == whole.account
    assert report.resumed_rows == 3
    assert len(report.account.failures) == 1
    assert not path.with_name("x.json.parts").exists()


def test_parts_of_other_options_or_another_image_do_not_count(path, tmp_path):
    save(tmp_path / "films/image0000.png", (10, 12))
    save(tmp_path / "films/image0001.png", (10, 12))
    stored = store_rows(path.parent / "rows.parquet", tiny_rows(2), group_rows=1)

    def planned(**options):
        return plan_export(stored, path, ExportOptions("coco", **options), images=(str(tmp_path / "films"),))

    with pytest.raises(Stopped):
        export_coco(planned(), progress=stop_after(1))
    save(tmp_path / "films/image0000.png", (20, 24))
    report = export_coco(planned())
    assert report.resumed_rows == 1
    assert [image["width"] for image in json.loads(path.read_bytes())["images"]] == [24, 12]
    with pytest.raises(Stopped):
        export_coco(planned(), progress=stop_after(1), overwrite=True)
    assert export_coco(planned(rle=True), overwrite=True).resumed_rows == 0


def test_a_run_that_is_stopped_at_once_leaves_nothing(path, monkeypatch):
    plan = plan_export(store_rows(path.parent / "rows.parquet", tiny_rows()), path, ExportOptions("coco"))

    def fail(*_):
        raise Stopped

    monkeypatch.setattr("cxu.export.coco.draw_rows", fail)
    with pytest.raises(Stopped):
        export_coco(plan)
    assert [one.name for one in path.parent.iterdir()] == ["rows.parquet"]


def test_a_file_that_is_there_is_replaced_only_on_request(path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"x\.json is there: choose another --out, or .* --overwrite"):
        export(tiny_rows(), path)
    assert path.read_text() == "mine"
    export(tiny_rows(), path, overwrite=True)
    opened(path)
