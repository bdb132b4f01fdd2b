import collections

import numpy as np
import pytest

from cxu.errors import FormatError, ImageError, MissingInputError
from cxu.films import film_frame, model_input, read_film
from cxu.image_listing import ImageFile
from cxu.training.data import held_out_split, load_images, read_folder
from training_helpers import ROWS, make_folder, write_index, write_landmarks


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path)
    return tmp_path


def test_rows_with_disagreeing_labels_are_used_for_nothing(folder):
    read = read_folder(folder)
    assert read.disagreeing == ("digital05",)
    assert [row.name for row in read.rows] == [name for name in ROWS if name != "digital05"]
    assert read.landmarks_xy.shape == (9, 120, 2)


def test_a_part_has_the_rows_and_landmarks_of_its_split(folder):
    whole, part = read_folder(folder), read_folder(folder).part("val")
    assert [row.name for row in part.rows] == ["film03", "digital04"]
    np.testing.assert_array_equal(part.landmarks_xy, whole.landmarks_xy[[2, 7]])
    assert part.has_heart.tolist() == [True, False]
    assert whole.counts() == {
        "JSRT": {"train": 2, "val": 1, "test": 1},
        "Shenzhen": {"train": 3, "val": 1, "test": 1},
    }


def test_without_a_split_the_hash_of_the_name_decides():
    counts = collections.Counter(held_out_split(f"image{number}") for number in range(4000))
    assert counts["test"] / 4000 == pytest.approx(0.15, abs=0.02)
    assert counts["val"] / 4000 == pytest.approx(0.15, abs=0.02)
    # pinned: another rule would mix what was trained on with what is reported
    assert [held_out_split(name) for name in ("a", "b", "d", "image9")] == ["train", "val", "test", "val"]


def test_hashed_splits_do_not_depend_on_other_rows(folder):
    write_index(folder, columns=("name", "dataset"))
    read = read_folder(folder)
    assert {row.name: row.split for row in read.rows} == {name: held_out_split(name) for name in ROWS}


def test_images_are_those_of_prediction(folder):
    film = read_film(ImageFile.at(folder / "images" / "film02.png"))
    expected = np.rint(model_input(film, film_frame(film), 96) * 255)
    drawn = load_images(folder, ["film01", "film02"], 96)
    assert drawn.shape == (2, 1, 96, 96)
    np.testing.assert_array_equal(drawn[1, 0].numpy(), expected)
    assert expected.min() == 0
    assert expected.max() == 255


# --- what is wrong with a folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["landmarks.npz", "index.csv"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(MissingInputError, match=name):
        read_folder(folder)


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (["film01", "film02"], (2, 119, 2), r"landmarks_xy is \[2, 119, 2\], expected \[2, 120, 2\]"),
        (["film01"], (2, 120, 2), "a row a name"),
        (["film01", "film01"], (2, 120, 2), "'film01' stands there twice"),
        (["film01", "other"], (2, 120, 2), "no row for 'other'"),
    ],
)
def test_landmarks_of_another_form_are_refused(folder, names, shape, message):
    write_landmarks(folder, names, np.zeros(shape, np.float32))
    with pytest.raises(FormatError, match=message):
        read_folder(folder)


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_damaged_archive_is_named(folder, content):
    (folder / "landmarks.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"landmarks\.npz"):
        read_folder(folder)


def test_an_index_with_a_name_twice_is_refused(folder):
    with (folder / "index.csv").open("a") as stream:
        stream.write("film02,JSRT,test,\n")
    with pytest.raises(FormatError, match="line 12: 'film02' stands there twice"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("name", "split"), ("train",), "no column 'dataset'"),
        (("name", "dataset", "split"), ("JSRT", "training"), "line 2: split 'training'; expected train, val, test"),
        (
            ("name", "dataset", "split", "label_agreement"),
            ("JSRT", "", "good"),
            "line 2: could not convert string to float: 'good'",
        ),
        (("name", "dataset", "split", "label_agreement"), ("JSRT", "", "nan"), "line 2: label_agreement 'nan'"),
    ],
)
def test_an_index_of_another_form_is_refused(folder, columns, row, message):
    write_index(folder, {"film01": row}, columns)
    with pytest.raises(FormatError, match=message):
        read_folder(folder)


def test_a_name_without_an_image_is_refused(folder):
    (folder / "images" / "film02.png").unlink()
    with pytest.raises(MissingInputError, match="no file for 'film02'"):
        load_images(folder, ["film01", "film02"], 64)


def test_a_name_with_two_images_is_refused(folder):
    (folder / "images" / "film02.jpg").write_bytes(b"")
    with pytest.raises(MissingInputError, match=r"two files for 'film02': film02\.jpg and film02\.png"):
        load_images(folder, ["film02"], 64)


def test_a_damaged_image_is_named(folder):
    (folder / "images" / "film02.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"film02\.png"):
        load_images(folder, ["film02"], 64)


@pytest.mark.shared
def test_the_real_folder(shared_data):
    read = read_folder(shared_data / "train")
    counts = read.counts()
    assert len(read.disagreeing) == 34
    assert counts["JSRT"] == {"train": 174, "val": 21, "test": 51}
    assert sum(counts["Montgomery"].values()) == 138
    assert min(*counts["Montgomery"].values(), *counts["Shenzhen"].values()) >= 15
    assert int(read.has_heart.sum()) == 246
