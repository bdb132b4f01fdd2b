"""Where rows lie: keys, sizes, and whether an image is the row's own."""

import numpy as np
import pytest
from PIL import Image

from builders import make_rows
from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import FormatError, ImageError, UsageError
from cxu.image_listing import ImageFile
from cxu.masks import Placement
from cxu.placing import RowKey, Target, place_in_image, place_row


def key(source="chexpert", frame="image", shape_hw=(100, 200), **others):
    return RowKey(source, "a", frame, shape_hw, **others)


def save(path, grey):
    Image.fromarray(grey).save(path)
    return ImageFile.at(path)


def blank(path, height, width, level=90):
    return save(path, np.full((height, width), level, np.uint8))


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [{"longest": 5}, {"size_hw": (5, 6)}, {"longest": 0}])
def test_a_size_does_not_go_with_images(size):
    with pytest.raises(UsageError, match="--size does not go with --images"):
        Target(("/data",), **size)


def test_mirroring_the_image_tree_needs_images():
    with pytest.raises(UsageError, match="needs --images"):
        Target(layout="images")
    assert Target(("/data",), layout="images").layout == "images"


@pytest.mark.parametrize("size", [{"longest": 0}, {"size_hw": (0, 5)}, {"size_hw": (5, 9000)}, {"longest": 10**9}])
def test_sizes_have_limits(size):
    with pytest.raises(UsageError, match=r"--size .*: expected sides of 1 to 8,944 px"):
        Target(**size)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_of_rows():
    rows = make_rows(3, frame="image", height=7, width=np.array([9, np.nan, 0]), model_id=["published", "abc", "abc"])
    assert RowKey.all_of(rows) == [
        RowKey("chestxray8", "image0000", "image", (7, 9), True),
        RowKey("chestxray8", "image0001", "image", None, False),
        RowKey("chestxray8", "image0002", "image", None, False),
    ]
    assert RowKey.of(rows, 1) == RowKey.all_of(rows)[1]


# --- without images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(), Placement((100, 200))),
        (Target(longest=100), Placement((50, 100), (0.5, 0.5))),
        (Target(longest=3), Placement((2, 3), (0.015, 0.02))),
        (Target(longest=1), Placement((1, 1), (0.005, 0.01))),
        (Target(size_hw=(300, 50)), Placement((300, 50), (0.25, 3.0))),
    ],
)
def test_a_row_lies_in_its_frame_or_the_size_asked_for(target, expected):
    assert place_row(key(), None, target) == expected


def test_a_row_needs_a_size(tmp_path):
    image = blank(tmp_path / "a.png", 100, 200)
    for given, target in ((None, Target()), (image, Target(("/data",)))):
        with pytest.raises(FormatError, match="does not know its height and width"):
            place_row(key(shape_hw=None), given, target)


# --- in its own image ------------------------------------------------------------------------------------------------


def test_a_row_without_its_image_is_refused():
    with pytest.raises(ImageError, match="no image of this id among the images given"):
        place_row(key(), None, Target(("/data",)))


@pytest.mark.parametrize(
    ("shape_hw", "scale_xy"),
    [
        ((100, 200), (1.0, 1.0)),
        ((50, 100), (0.5, 0.5)),
        ((300, 600), (3.0, 3.0)),
        # to a pixel: a third of 100 is 33.3
        ((33, 67), (0.335, 0.33)),
        ((34, 67), (0.335, 0.34)),
        # twice as fine an image: the row's own sides are known to a pixel of the row
        ((202, 400), (2.0, 2.02)),
    ],
)
def test_the_same_image_or_a_resized_copy_is_accepted(tmp_path, shape_hw, scale_xy):
    image = blank(tmp_path / "a.png", *shape_hw)
    assert place_in_image(image, SOURCES["chexpert"], key()) == Placement(shape_hw, scale_xy)


@pytest.mark.parametrize("shape_hw", [(200, 100), (90, 200), (103, 200), (100, 210), (47, 100), (310, 600), (100, 100)])
def test_another_shape_is_refused(tmp_path, shape_hw):
    image = blank(tmp_path / "a.png", *shape_hw)
    with pytest.raises(ImageError, match=f"is {shape_hw[0]} × {shape_hw[1]} px .*the row says 100 × 200"):
        place_in_image(image, SOURCES["chexpert"], key())


def test_an_unreadable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="is no PNG"):
        place_in_image(ImageFile.at(tmp_path / "a.png"), SOURCES["vindr"], key(frame="model"))


def test_a_source_that_says_nothing_of_its_frame_is_assumed_to_pad(tmp_path):
    image, model = blank(tmp_path / "a.png", 100, 200), {"frame": "model", "shape_hw": (1024, 1024)}
    known = place_in_image(image, SOURCES["vindr"], key("vindr", **model))
    assumed = place_in_image(image, source_or_custom("mine"), key("mine", **model))
    assert (known.exact, assumed.exact) == (True, False)
    assert known.offset_xy == assumed.offset_xy == (0, -50)
    assert known.scale_xy == (200 / 1024, 200 / 1024)


def test_native_rows_need_a_square(tmp_path):
    model = key("chestxray8", "model", (1024, 1024))
    assert place_in_image(blank(tmp_path / "a.png", 512, 512), SOURCES["chestxray8"], model).scale_xy == (0.5, 0.5)
    with pytest.raises(ImageError, match="the row says 1024 × 1024"):
        place_in_image(blank(tmp_path / "b.png", 512, 400), SOURCES["chestxray8"], model)


# --- films with a black border ---------------------------------------------------------------------------------------


def film(path, height, width, left=0, top=0, right=0, bottom=0):
    grey = np.zeros((height, width), np.uint8)
    grey[top : height - bottom, left : width - right] = 90
    return save(path, grey)


@pytest.mark.parametrize("source", ["mimic", "padchest"])
@pytest.mark.parametrize("border", [{"left": 9}, {"top": 9}, {"right": 9}, {"bottom": 9}, {"left": 50, "right": 50}])
def test_published_rows_forget_a_border(tmp_path, source, border):
    image = film(tmp_path / "a.png", 100, 200, **border)
    with pytest.raises(ImageError, match=f"black border .*import {source} with --frame model") as refused:
        place_in_image(image, SOURCES[source], key(source))
    assert ", ".join(f"{size} px {side}" for side, size in border.items()) in str(refused.value)


def test_predicted_rows_are_in_the_image_border_and_all(tmp_path):
    image = film(tmp_path / "a.png", 100, 200, left=50)
    assert place_in_image(image, SOURCES["mimic"], key("mimic", is_published=False)) == Placement((100, 200))


def test_a_border_below_the_resolution_of_the_landmarks_is_fine(tmp_path):
    # a pixel of the model frame is 2 px of this image
    size = {"shape_hw": (1500, 2048)}
    image = film(tmp_path / "a.png", 1500, 2048, left=1, top=1)
    assert place_in_image(image, SOURCES["mimic"], key("mimic", **size)) == Placement((1500, 2048))
    with pytest.raises(ImageError, match="3 px left"):
        place_in_image(film(tmp_path / "b.png", 1500, 2048, left=3), SOURCES["mimic"], key("mimic", **size))


def test_a_border_is_no_matter_where_the_source_does_not_crop(tmp_path):
    image = film(tmp_path / "a.png", 100, 200, left=50)
    assert place_in_image(image, SOURCES["chexpert"], key()) == Placement((100, 200))
