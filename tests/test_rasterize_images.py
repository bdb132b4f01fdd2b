"""Masks on the users' own images: each source's ids and frame, and a contour that comes back to where it was."""

import io
import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from builders import ellipse, make_rows
from cxu import image_index
from cxu.anatomy import ORGANS
from cxu.errors import OutputExistsError, UsageError
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.rasterize import estimate_bytes, rasterize_table
from mask_helpers import read_png, store_rows, tree

MIMIC_ID = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
PADCHEST_ID = "216840111366964013217898866992011332134237003_01-031-075"
VINDR_ID = "50a418190bc3fb1ef1633bf9678929b3"
CHEXPERT_ID = "train/patient00001/study1/view1_frontal"
NIH_ID = "00013310_001"


# Boxes left, top, right, bottom for each organ, in pixels of an image of 240 × 300 px (height × width).
BOXES = {"right_lung": (60, 50, 120, 170), "left_lung": (170, 50, 230, 170), "heart": (110, 120, 190, 200)}
IMAGE_HW = (240, 300)


def box_outline(left, top, right, bottom, n_nodes):
    """Return nodes along a box, its corners among them."""
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], float)
    at = np.unique(np.concatenate([np.arange(4), np.linspace(0, 4, n_nodes - 3, endpoint=False)]))[:n_nodes]
    at = np.sort(np.concatenate([at, np.linspace(0.1, 0.2, n_nodes - len(at))]))
    whole = at.astype(int)
    return corners[whole] + (corners[whole + 1] - corners[whole]) * (at - whole)[:, None]


def outlines(scale=1.0):
    """Return the boxes as landmarks [120, 2] in pixels of the image."""
    return np.concatenate([box_outline(*BOXES[organ.name], organ.n_nodes) for organ in ORGANS]) * scale


def expected_plane(name, scale=1):
    """Return the mask of a box at the image's own size, times ``scale``."""
    plane = np.zeros((IMAGE_HW[0] * scale, IMAGE_HW[1] * scale), np.uint8)
    left, top, right, bottom = (value * scale for value in BOXES[name])
    plane[top : bottom + 1, left : right + 1] = 1
    return plane


def to_model(points, left, top, width, height):
    """Map image pixels to the model frame, from the description: crop, pad to a centred square, resize to 1024."""
    side = max(width, height)
    pad = np.array([(side - width) // 2, (side - height) // 2])
    return (points - [left, top] + pad) * 1024 / side


def film(border=(0, 0, 0, 0), shape_hw=IMAGE_HW, level=120):
    """Return grey pixels with a black border: left, top, right, bottom."""
    left, top, right, bottom = border
    grey = np.zeros(shape_hw, np.uint8)
    grey[top : shape_hw[0] - bottom, left : shape_hw[1] - right] = level
    return grey


def save(path, grey, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, **options)
    return path


def png_bytes(grey):
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def save_dicom(path, height, width):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = height, width
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def table_of(folder, source, ids, landmarks, frame="model", shape_hw=(1024, 1024), **columns):
    n_rows = len(ids)
    landmarks = np.broadcast_to(np.asarray(landmarks, np.float32), (n_rows, 120, 2))
    height, width = shape_hw
    rows = make_rows(
        n_rows, source=source, image_id=ids, frame=frame, height=height, width=width, landmarks_xy=landmarks, **columns
    )
    return store_rows(folder / "rows.parquet", rows)


def plan(stored, out, images, *, format_="organs", layout="ids", cache=None):
    target = Target(tuple(map(str, images)), layout=layout)
    return plan_masks(stored, out, MaskOptions("full", format_), target, cache_folder=cache)


def draw(stored, out, *images, workers=1, overwrite=False, **others):
    return rasterize_table(plan(stored, out, images, **others), workers=workers, overwrite=overwrite)


def check_planes(out, stem, scale=1):
    for name in BOXES:
        np.testing.assert_array_equal(read_png(out / f"{stem}.{name}.png"), expected_plane(name, scale))


# --- a contour known in image pixels comes back to them --------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
def test_chexpert_pads(tmp_path, scale):
    grey = film(shape_hw=(IMAGE_HW[0] * scale, IMAGE_HW[1] * scale))
    save(tmp_path / f"CheXpert-v1.0-small/{CHEXPERT_ID}.jpg", grey)
    save(tmp_path / "CheXpert-v1.0-small/train/patient00001/study2/view1_frontal.jpg", grey[:100])
    stored = table_of(tmp_path, "chexpert", [CHEXPERT_ID], to_model(outlines(), 0, 0, 300, 240))
    assert draw(stored, tmp_path / "out", tmp_path / "CheXpert-v1.0-small").failures == []
    check_planes(tmp_path / "out", f"chexpert/{CHEXPERT_ID}", scale)


@pytest.mark.parametrize("suffix", [".dicom", ".dcm", ".png"])
def test_vindr_pads(tmp_path, suffix):
    path = tmp_path / f"images/train/{VINDR_ID}{suffix}"
    if suffix == ".png":
        save(path, film())
    else:
        save_dicom(path, *IMAGE_HW)
    stored = table_of(tmp_path, "vindr", [VINDR_ID], to_model(outlines(), 0, 0, 300, 240))
    assert draw(stored, tmp_path / "out", tmp_path / "images").failures == []
    check_planes(tmp_path / "out", f"vindr/{VINDR_ID}")


@pytest.mark.parametrize("border", [(0, 0, 0, 0), (40, 16, 24, 32), (0, 0, 64, 0), (8, 0, 0, 24)])
def test_mimic_crops_and_pads(tmp_path, border):
    left, top, right, bottom = border
    path = tmp_path / f"files/p10/p10000032/s50414267/{MIMIC_ID}.jpg"
    save(path, film(border), quality=95)
    assert (np.array(Image.open(path))[:, : max(left - 8, 0)] == 0).all()
    model = to_model(outlines(), left, top, 300 - left - right, 240 - top - bottom)
    stored = table_of(tmp_path, "mimic", [MIMIC_ID], model)
    assert draw(stored, tmp_path / "out", tmp_path / "files").failures == []
    check_planes(tmp_path / "out", f"mimic/{MIMIC_ID}")


def test_padchest_crops_16_bit_images_in_a_zip(tmp_path):
    # up to 511 counts as black: 8-bit grey above 1 is content
    grey = np.full(IMAGE_HW, 511, np.uint16)
    grey[20:230, 31:280] = 30_000
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        archive.writestr(f"{PADCHEST_ID}.png", png_bytes(grey))
    stored = table_of(tmp_path, "padchest", [PADCHEST_ID], to_model(outlines(), 31, 20, 249, 210))
    assert draw(stored, tmp_path / "out", tmp_path / "0.zip").failures == []
    check_planes(tmp_path / "out", f"padchest/{PADCHEST_ID}")


@pytest.mark.parametrize("side", [1024, 512])
def test_chestxray8_is_native_and_may_be_smaller(tmp_path, side):
    save(tmp_path / f"images_001/images/{NIH_ID}.png", film(shape_hw=(side, side)))
    stored = table_of(tmp_path, "chestxray8", [NIH_ID], outlines(2.0))
    assert draw(stored, tmp_path / "out", tmp_path).failures == []
    plane = read_png(tmp_path / f"out/chestxray8/{NIH_ID}.heart.png")
    expected = np.zeros((side, side), np.uint8)
    left, top, right, bottom = (value * 2 * side // 1024 for value in BOXES["heart"])
    expected[top : bottom + 1, left : right + 1] = 1
    np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize(("width", "height"), [(301, 240), (300, 241), (299, 480), (1001, 778)])
def test_odd_sizes_lose_less_than_half_a_pixel(tmp_path, width, height):
    # the odd pixel of the pad stands at the end
    save(tmp_path / f"images/{VINDR_ID}.png", film(shape_hw=(height, width)))
    rng = np.random.default_rng(width)
    centre = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    in_image = np.concatenate([ellipse(centre, np.array([width, height]) * 0.3, organ.n_nodes) for organ in ORGANS])
    model = to_model(in_image, 0, 0, width, height)
    stored = table_of(tmp_path, "vindr", [VINDR_ID], model)
    assert draw(stored, tmp_path / "out", tmp_path / "images").failures == []
    for organ in ORGANS:
        rows, columns = np.nonzero(read_png(tmp_path / f"out/vindr/{VINDR_ID}.{organ.name}.png"))
        extent = [columns.min(), rows.min(), columns.max(), rows.max()]
        points = in_image[organ.nodes]
        np.testing.assert_allclose(extent, [*points.min(axis=0), *points.max(axis=0)], atol=0.5)
        # the centroid of an ellipse is its centre
        assert abs(columns.mean() - points[:, 0].mean()) < 0.5
        assert abs(rows.mean() - points[:, 1].mean()) < 0.5


def test_a_source_of_ones_own_is_assumed_to_pad_and_counted(tmp_path):
    save(tmp_path / "images/a/1.png", film())
    stored = table_of(tmp_path, "mine", ["a/1"], to_model(outlines(), 0, 0, 300, 240))
    report = draw(stored, tmp_path / "out", tmp_path / "images")
    assert (report.failures, report.assumed) == ([], 1)
    check_planes(tmp_path / "out", "mine/a/1")
    assert draw(stored, tmp_path / "out", tmp_path / "images").assumed == 1


# --- rows in the image's own pixels ----------------------------------------------------------------------------------


def in_image_pixels(folder, ids, source="chexpert", **columns):
    return table_of(folder, source, ids, outlines(), "image", IMAGE_HW, **columns)


def test_image_rows_on_their_image_its_copies_and_others(tmp_path):
    ids = [f"train/patient0000{n}/study1/view1_frontal" for n in range(1, 7)]
    images = tmp_path / "CheXpert-v1.0"
    save(images / f"{ids[0]}.jpg", film())
    save(images / f"{ids[1]}.jpg", film(shape_hw=(480, 600)))
    save(images / f"{ids[2]}.jpg", film(shape_hw=(300, 240)))
    save(images / f"{ids[3]}.jpg", film(shape_hw=(240, 290)))
    (images / ids[4]).parent.mkdir(parents=True)
    (images / f"{ids[4]}.jpg").write_bytes(b"\xff\xd8\xff and no more")
    report = draw(in_image_pixels(tmp_path, ids), tmp_path / "out", images)
    check_planes(tmp_path / "out", f"chexpert/{ids[0]}")
    check_planes(tmp_path / "out", f"chexpert/{ids[1]}", 2)
    assert report.rows == 2
    reasons = {failure.image_id: failure.reason for failure in report.failures}
    assert list(reasons) == ids[2:]
    assert "300 × 240 px (height × width), the row says 240 × 300" in reasons[ids[2]]
    assert "240 × 290" in reasons[ids[3]]
    assert "is damaged or truncated" in reasons[ids[4]]
    assert reasons[ids[5]] == "no image of this id among the images given"
    drawn = {name.split(".")[0] for name in tree(tmp_path / "out") if name.startswith("chexpert/")}
    assert drawn == {f"chexpert/{ids[0]}", f"chexpert/{ids[1]}"}


def test_published_image_rows_on_a_bordered_film_are_listed_with_advice(tmp_path):
    save(tmp_path / f"files/{MIMIC_ID}.jpg", film((40, 0, 0, 0)), quality=95)
    report = draw(in_image_pixels(tmp_path, [MIMIC_ID], "mimic"), tmp_path / "out", tmp_path / "files")
    (failure,) = report.failures
    assert "has a black border (40 px left)" in failure.reason
    assert "fetch or import mimic with --frame model" in failure.reason
    # a prediction is in the pixels of the film itself
    predicted = in_image_pixels(tmp_path / "b", [MIMIC_ID], "mimic", model_id="abc")
    assert draw(predicted, tmp_path / "out2", tmp_path / "files").failures == []
    check_planes(tmp_path / "out2", f"mimic/{MIMIC_ID}")


# --- how images are found --------------------------------------------------------------------------------------------


@pytest.fixture
def nih(tmp_path):
    """Three rows of three images in two folders."""
    for name in ("a/x1.png", "a/b/c/d/x2.PNG", "e/x3.png"):
        save(tmp_path / "images" / name, film(shape_hw=(1024, 1024)), format="PNG")
    return table_of(tmp_path, "chestxray8", ["x1", "x2", "x3"], outlines())


def specs(folder, kind):
    images = folder / "images"
    if kind == "folder":
        return [images]
    if kind == "glob":
        return [images / "**/*.[pP]*"]
    if kind == "two folders":
        return [images / "a", images / "e"]
    if kind == "zip":
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for path in images.rglob("x*"):
                archive.write(path, path.relative_to(images))
        return [folder / "all.zip"]
    listing = folder / f"list.{kind}"
    header = "Path,View\n" if kind == "csv" else ""
    comma = ",PA" if kind == "csv" else ""
    listing.write_text(header + "".join(f"{path.relative_to(folder)}{comma}\n" for path in images.rglob("x*")))
    return [listing]


@pytest.mark.parametrize("kind", ["folder", "glob", "two folders", "zip", "txt", "csv"])
def test_images_of_any_kind_of_place(nih, tmp_path, kind):
    report = draw(nih, tmp_path / "out", *specs(tmp_path, kind), format_="labels")
    assert (report.rows, report.failures) == (3, [])
    assert {f"chestxray8/x{n}.png" for n in (1, 2, 3)} <= set(tree(tmp_path / "out"))


@pytest.mark.parametrize(
    ("kind", "stems"),
    [
        ("folder", ["a/b/c/d/x2", "a/x1", "e/x3"]),
        ("zip", ["a/b/c/d/x2", "a/x1", "e/x3"]),
        ("txt", ["images/a/b/c/d/x2", "images/a/x1", "images/e/x3"]),
    ],
)
@pytest.mark.parametrize("format_", ["labels", "npz"])
def test_the_image_tree_is_mirrored(nih, tmp_path, kind, stems, format_):
    draw(nih, tmp_path / "out", *specs(tmp_path, kind), format_=format_, layout="images")
    suffix = {"labels": ".png", "npz": ".npz"}[format_]
    names = [name for name in sorted(tree(tmp_path / "out")) if name.endswith(suffix)]
    assert names == [f"{stem}{suffix}" for stem in stems]


def test_a_row_without_image_has_no_place_in_the_tree_but_is_listed(nih, tmp_path):
    (tmp_path / "images/e/x3.png").unlink()
    report = draw(nih, tmp_path / "out", tmp_path / "images", format_="labels", layout="images")
    assert [failure.image_id for failure in report.failures] == ["x3"]
    assert {name for name in tree(tmp_path / "out") if name.endswith(".png")} == {"a/x1.png", "a/b/c/d/x2.png"}


def test_two_images_for_one_place_in_the_tree_are_refused(tmp_path):
    save(tmp_path / "images/1.png", film())
    rows = [table_of(tmp_path / source, source, ["1"], outlines()).read() for source in ("mine", "other")]
    stored = store_rows(tmp_path / "rows.parquet", pa.concat_tables(rows))
    with pytest.raises(UsageError, match="two rows would be written to 1 and 1"):
        plan(stored, tmp_path / "out", [tmp_path / "images"], layout="images")
    assert draw(stored, tmp_path / "out", tmp_path / "images").rows == 2


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_folder_whose_name_is_no_text_is_mirrored(nih, tmp_path):
    (tmp_path / "images/e").rename(os.fsdecode(os.fsencode(tmp_path / "images") + b"/\xe9"))
    report = draw(nih, tmp_path / "out", tmp_path / "images", format_="labels", layout="images")
    assert (report.rows, report.failures) == (3, [])
    assert "%e9/x3.png" in tree(tmp_path / "out")


def test_a_stem_that_is_found_twice_is_an_error(nih, tmp_path):
    save(tmp_path / "images/z/x1.jpg", film())
    with pytest.raises(UsageError, match=r"1 image id.* with more than one file: 'x1'"):
        plan(nih, tmp_path / "out", [tmp_path / "images"])
    assert not (tmp_path / "out").exists()


def test_the_listing_is_cached(nih, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    draw(nih, tmp_path / "out", tmp_path / "images", cache=cache)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(image_index, "build_index", None)
    report = draw(nih, tmp_path / "out2", tmp_path / "images", cache=cache)
    assert (report.rows, report.failures) == (3, [])


# --- coming back -----------------------------------------------------------------------------------------------------


def test_a_row_whose_image_came_later_is_drawn_then(nih, tmp_path):
    cache, image = tmp_path / "cache", tmp_path / "images/e/x3.png"
    content = image.read_bytes()
    image.unlink()
    first = draw(nih, tmp_path / "out", tmp_path / "images", cache=cache)
    assert (first.rows, len(first.failures)) == (2, 1)
    image.write_bytes(content)
    second = draw(nih, tmp_path / "out", tmp_path / "images", cache=cache)
    assert (second.rows, second.failures) == (3, [])
    draw(nih, tmp_path / "whole", tmp_path / "images")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert draw(nih, tmp_path / "out", tmp_path / "images", cache=cache).resumed_rows == 3


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_row_whose_image_has_changed_is_drawn_again(nih, tmp_path, kind):
    draw(nih, tmp_path / "out", *specs(tmp_path, kind))
    save(tmp_path / "images/a/x1.png", film(shape_hw=(512, 512)))
    again = draw(nih, tmp_path / "out", *specs(tmp_path, kind))
    assert (again.rows, again.resumed_rows) == (3, 0)
    assert read_png(tmp_path / "out/chestxray8/x1.heart.png").shape == (512, 512)
    assert (
        draw(nih, tmp_path / "out", tmp_path / "images" if kind == "folder" else tmp_path / "all.zip").resumed_rows == 3
    )


def test_other_images_are_another_command_and_the_same_place_is_not(nih, tmp_path, monkeypatch):
    draw(nih, tmp_path / "out", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert draw(nih, tmp_path / "out", "images/").resumed_rows == 3
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere/images/x1.png", film(shape_hw=(1024, 1024)))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(OutputExistsError, match=r"images was .*now .*elsewhere/images"):
        draw(nih, tmp_path / "out", "images/")


def test_images_and_two_workers(nih, tmp_path):
    stored = store_rows(tmp_path / "small.parquet", nih.read(), group_rows=1)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "images").rglob("x*"):
            archive.write(path, path.name)
    one = draw(stored, tmp_path / "one", tmp_path / "all.zip")
    assert draw(stored, tmp_path / "two", tmp_path / "all.zip", workers=2) == one
    assert one.rows == 3
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_estimate_passes_over_rows_that_cannot_be_drawn(nih, tmp_path):
    (tmp_path / "images/a/x1.png").unlink()
    planned = plan(nih, tmp_path / "out", [tmp_path / "images"], format_="labels")
    rasterize_table(planned)
    assert estimate_bytes(planned) == 3 * (tmp_path / "out/chestxray8/x2.png").stat().st_size
