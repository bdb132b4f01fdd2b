"""``MaskDataset``: image and mask lie on each other, whatever the image's shape; nothing is refused silently."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from builders import ellipse, make_rows
from cxu import frame as frames
from cxu import table
from cxu.anatomy import HEART, IGNORE_LABEL, LEFT_LUNG, ORGAN_NAMES, RIGHT_LUNG
from cxu.catalog import SOURCES
from cxu.datasets import MaskDataset
from cxu.errors import ImageError, MissingInputError, UsageError
from cxu.masks import MaskOptions

BACKGROUND, BRIGHT = 40, 240
SIZE = 256
IDS = {"chexpert": "train/patient00001/study1/view1_frontal"}


def disc_landmarks(centre_xy, radius, shape_hw):
    """Return landmarks [120, 2] in image pixels: the heart a disc, the lungs small rings elsewhere in the image."""
    height, width = shape_hw
    angle = 2 * np.pi * np.arange(HEART.n_nodes) / HEART.n_nodes
    heart = np.asarray(centre_xy) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    right = ellipse((0.15 * width, 0.15 * height), (0.05 * width, 0.05 * height), RIGHT_LUNG.n_nodes)
    left = ellipse((0.85 * width, 0.15 * height), (0.05 * width, 0.05 * height), LEFT_LUNG.n_nodes)
    return np.concatenate([right, left, heart])


def paint_disc(shape_hw, centre_xy, radius, border=(0, 0, 0, 0)):
    """Return an image uint8 [H, W] with a bright disc, and a black border (left, top, right, bottom)."""
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]]
    inside = np.clip(radius + 0.5 - np.hypot(x - centre_xy[0], y - centre_xy[1]), 0, 1)
    image = BACKGROUND + (BRIGHT - BACKGROUND) * inside
    left, top, right, bottom = border
    image[:top], image[shape_hw[0] - bottom :] = 0, 0
    image[:, :left], image[:, shape_hw[1] - right :] = 0, 0
    return np.rint(image).astype(np.uint8)


def centroid(weights):
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def disc_distance(item):
    """Return the distance in px of ``SIZE`` between the disc's centre in the image and in the mask."""
    bright = np.clip(item["image"][0].numpy() * 255 - (BACKGROUND + 1), 0, None)
    return np.hypot(*(centroid(bright) - centroid((item["mask"].numpy() == HEART.label).astype(float))))


def place(folder, source, picture, *, bits=8):
    """Write an image where the source's id rule finds it, and return its id."""
    image_id = IDS.get(source, f"{source}_1")
    path = folder / f"{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture if bits == 8 else picture.astype(np.uint16) * 257).save(path)
    return image_id


SHAPES = {"landscape": (500, 721), "portrait": (801, 600), "square": (640, 640)}
BORDER = (37, 12, 90, 55)


def make_case(tmp_path, source, frame, shape_hw, border=(0, 0, 0, 0), *, copy_scale=1.0, bits=8):
    """Return the row of an image with a disc, the disc's image written below ``tmp_path``."""
    height, width = shape_hw
    centre_xy = np.array([0.47 * width, 0.55 * height])
    radius = 0.17 * min(shape_hw)
    copy_hw = tuple(round(side * copy_scale) for side in shape_hw)
    picture = paint_disc(copy_hw, centre_xy * copy_scale, radius * copy_scale, border)
    image_id = place(tmp_path, source, picture, bits=bits)
    landmarks = disc_landmarks(centre_xy, radius, shape_hw)
    if frame == "model":
        left, top, right, bottom = border
        crops = SOURCES[source].framing == "crop_pad"
        box = frames.Box(left, top, width - right, height - bottom) if crops else frames.Box(0, 0, width, height)
        landmarks, shape_hw = frames.padded_frame(box).to_model(landmarks), (frames.MODEL_SIZE, frames.MODEL_SIZE)
    return make_rows(
        1,
        source=source,
        image_id=[image_id],
        frame=frame,
        height=shape_hw[0],
        width=shape_hw[1],
        landmarks_xy=landmarks[None].astype(np.float32),
        sigma_xy=np.full((1, 240), 4.0, np.float32),
    )


FULL = MaskOptions("full")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [(0, 0, 0, 0), BORDER], ids=["plain", "bordered"])
@pytest.mark.parametrize("source", ["mimic", "padchest", "chexpert", "vindr"])
def test_model_frame_mask_lies_on_the_image(tmp_path, source, border, shape):
    rows = make_case(tmp_path, source, "model", SHAPES[shape], border)
    [item] = MaskDataset(rows, tmp_path, size=SIZE, options=FULL)
    assert item["image"].shape == (1, SIZE, SIZE)
    assert item["mask"].shape == (SIZE, SIZE)
    assert disc_distance(item) < 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("source", "border"), [("mimic", (0, 0, 0, 0)), ("vindr", (0, 0, 0, 0)), ("chexpert", BORDER)])
def test_image_frame_mask_lies_on_the_image(tmp_path, source, border, shape):
    rows = make_case(tmp_path, source, "image", SHAPES[shape], border)
    [item] = MaskDataset(rows, tmp_path, size=SIZE, options=FULL)
    assert disc_distance(item) < 0.5


@pytest.mark.parametrize(("source", "frame"), [("chestxray8", "image"), ("chestxray8", "model"), ("vindr", "image")])
def test_a_resized_copy_of_the_image_will_do(tmp_path, source, frame):
    rows = make_case(tmp_path, source, frame, (1024, 1024), copy_scale=0.5)
    [item] = MaskDataset(rows, tmp_path, size=SIZE, options=FULL)
    assert disc_distance(item) < 0.5


def test_an_enlarged_image_and_sixteen_bits(tmp_path):
    rows = make_case(tmp_path, "mimic", "model", (120, 171), (8, 0, 0, 5), bits=16)
    [item] = MaskDataset(rows, tmp_path, size=512, options=FULL)
    assert item["image"].dtype == torch.float32
    assert item["image"].max() == pytest.approx(BRIGHT / 255, abs=1e-3)
    assert disc_distance(item) < 0.5


def test_mask_is_the_size_of_the_disc(tmp_path):
    rows = make_case(tmp_path, "vindr", "model", (640, 640))
    [item] = MaskDataset(rows, tmp_path, size=SIZE, options=FULL)
    radius = 0.17 * SIZE
    # a polygon of 26 corners with the border included
    polygon = 13 * radius**2 * np.sin(2 * np.pi / 26)
    assert (item["mask"] == HEART.label).sum() == pytest.approx(polygon + np.pi * radius, rel=0.02)


def test_item_names_its_row(tmp_path):
    rows = make_case(tmp_path, "chexpert", "model", SHAPES["landscape"])
    [item] = MaskDataset(rows, tmp_path, size=64)
    assert (item["source"], item["image_id"]) == ("chexpert", IDS["chexpert"])
    assert item["mask"].dtype == torch.int64
    assert item["usable"].tolist() == [True, True, True]
    assert set(np.unique(item["mask"])) == {0, 1, 2, 3}


@pytest.fixture
def five(tmp_path):
    """Return five rows of one source, their images below ``tmp_path``: all but the last."""
    names = [f"image{index}" for index in range(5)]
    for index, name in enumerate(names[:4]):
        Image.fromarray(np.full((60, 50), 50 + index, np.uint8)).save(tmp_path / f"{name}.png")
    return make_rows(5, source="vindr", image_id=names, sigma_xy=np.full((5, 240), 12.0, np.float32))


def test_missing_images_are_an_error(tmp_path, five):
    with pytest.raises(MissingInputError, match=r"1 of 5 rows .*'image4'.*missing=\"skip\""):
        MaskDataset(five, tmp_path)


def test_missing_images_are_skipped_on_request_and_listed(tmp_path, five):
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    assert pairs.missing == [("vindr", "image4")]
    assert len(pairs) == 4
    assert [item["image_id"] for item in pairs] == ["image0", "image1", "image2", "image3"]


def test_rows_and_images_stay_together_after_a_skip(tmp_path, five):
    (tmp_path / "image1.png").unlink()
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    assert [item["image_id"] for item in pairs] == ["image0", "image2", "image3"]
    middles = [round(float(item["image"][0, 16, 16]) * 255) for item in pairs]
    assert middles == [50, 52, 53]


def test_index_may_count_from_the_end_and_not_beyond(tmp_path, five):
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    assert pairs[-1]["image_id"] == "image3"
    for index in (4, -5):
        with pytest.raises(IndexError):
            pairs[index]


def test_two_images_of_one_id_are_an_error(tmp_path, five):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/image0.png").write_bytes((tmp_path / "image0.png").read_bytes())
    with pytest.raises(UsageError, match="image0"):
        MaskDataset(five, tmp_path, missing="skip")


def test_no_row_with_an_image(tmp_path, five):
    rows = five.slice(4)
    pairs = MaskDataset(rows, tmp_path, missing="skip")
    assert len(pairs) == 0
    assert list(pairs) == []


def test_works_in_a_loader_with_workers(tmp_path, five):
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    batches = list(DataLoader(pairs, batch_size=2, num_workers=2, multiprocessing_context="fork"))
    assert [batch["image_id"] for batch in batches] == [["image0", "image1"], ["image2", "image3"]]
    assert batches[0]["image"].shape == (2, 1, 32, 32)
    assert batches[0]["mask"].shape == (2, 32, 32)
    assert batches[0]["usable"].tolist() == [[True] * 3] * 2
    for number, batch in enumerate(batches):
        for place_in_batch in range(2):
            alone = pairs[2 * number + place_in_batch]
            assert torch.equal(batch["image"][place_in_batch], alone["image"])
            assert torch.equal(batch["mask"][place_in_batch], alone["mask"])


def test_travels_to_a_spawned_worker(tmp_path, five):
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    arrived = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(arrived[2]["mask"], pairs[2]["mask"])


def test_probability_is_the_full_mask_from_one_half_up(tmp_path, five):
    soft = MaskDataset(five, tmp_path, size=64, options=MaskOptions("probability", "organs"), missing="skip")
    hard = MaskDataset(five, tmp_path, size=64, options=FULL, missing="skip")
    planes, labels = soft[0]["mask"], hard[0]["mask"]
    assert planes.shape == (3, 64, 64)
    assert planes.dtype == torch.float32
    assert planes.min() >= 0
    assert planes.max() <= 1
    assert torch.equal(planes[2] >= 0.5, labels == HEART.label)
    assert ((planes > 0.02) & (planes < 0.98)).any()


def with_flags(rows, *, confident=True, heart_usable=True):
    """Return rows as a selection has them: every node confident or none, the lungs usable."""
    usable = np.tile([True, True, heart_usable], (len(rows), 1))
    for name, values in {"confident": np.full((len(rows), 120), confident), "usable": usable}.items():
        field = table.field_of(name)
        rows = rows.append_column(field, table.lists_from_numpy(values, field.type))
    return rows


def test_an_unusable_organ_is_ignored_or_nan(tmp_path, five):
    rows = with_flags(five, heart_usable=False)
    labels = MaskDataset(rows, tmp_path, size=64, missing="skip")[0]
    assert labels["usable"].tolist() == [True, True, False]
    assert set(np.unique(labels["mask"])) == {0, 1, 2, IGNORE_LABEL}
    left_out = MaskDataset(rows, tmp_path, size=64, options=MaskOptions(unusable="background"), missing="skip")[0]
    assert set(np.unique(left_out["mask"])) == {0, 1, 2}
    soft = MaskDataset(rows, tmp_path, size=64, options=MaskOptions("probability", "npz"), missing="skip")[0]
    assert soft["mask"].isnan().all(dim=(1, 2)).tolist() == [False, False, True]
    assert len(ORGAN_NAMES) == len(soft["mask"])


def test_the_band_scales_with_the_mask(tmp_path, five):
    rows = with_flags(five, confident=False)

    def ignored(size):
        pairs = MaskDataset(rows, tmp_path, size=size, options=MaskOptions("ignore"), missing="skip")
        return (pairs[0]["mask"] == IGNORE_LABEL).float().mean().item()

    assert 0.05 < ignored(128) == pytest.approx(ignored(512), rel=0.1)


def test_image_frame_rows_on_a_bordered_film_are_refused(tmp_path):
    rows = make_case(tmp_path, "mimic", "image", SHAPES["landscape"], BORDER)
    pairs = MaskDataset(rows, tmp_path, size=64)
    with pytest.raises(ImageError, match=r"black border.*--frame model"):
        pairs[0]


def test_image_frame_rows_on_a_film_with_a_border_along_its_shorter_side_are_refused(tmp_path):
    # the crop moves the padded square by 50 px, though its side stays the same
    rows = make_case(tmp_path, "mimic", "image", (700, 1000), (0, 100, 0, 0))
    with pytest.raises(ImageError, match="black border"):
        MaskDataset(rows, tmp_path, size=64)[0]


def test_an_image_of_another_shape_is_refused(tmp_path):
    rows = make_case(tmp_path, "vindr", "image", SHAPES["landscape"])
    place(tmp_path, "vindr", np.full((300, 300), 9, np.uint8))
    with pytest.raises(ImageError, match="not the same image"):
        MaskDataset(rows, tmp_path, size=64)[0]


def test_a_damaged_image_is_an_error_also_in_a_loader(tmp_path, five):
    content = (tmp_path / "image1.png").read_bytes()
    (tmp_path / "image1.png").write_bytes(content[: len(content) // 2])
    pairs = MaskDataset(five, tmp_path, size=32, missing="skip")
    with pytest.raises(ImageError, match=r"image1\.png is damaged"):
        list(DataLoader(pairs, batch_size=2))


@pytest.mark.parametrize("policy", ["ignore", "probability"])
def test_policies_that_need_sigma_refuse_rows_without(tmp_path, five, policy):
    rows = make_rows(1, source="vindr", image_id=["image0"])
    pairs = MaskDataset(rows, tmp_path, size=32, options=MaskOptions(policy, "organs"))
    with pytest.raises(UsageError, match="standard deviations"):
        pairs[0]


def test_listing_is_cached_on_request(tmp_path, five):
    cache = tmp_path / "cache"
    MaskDataset(five, tmp_path, size=32, missing="skip", cache_folder=cache)
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_a_source_may_be_spelled_as_an_alias(tmp_path, five):
    rows = make_rows(4, source="VinDr-CXR", image_id=five["image_id"].to_pylist()[:4])
    assert [item["image_id"] for item in MaskDataset(rows, tmp_path, size=32)] == [f"image{n}" for n in range(4)]
