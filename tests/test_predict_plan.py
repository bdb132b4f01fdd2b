"""Which images are predicted, under which ids."""

import os
import zipfile

import pytest

from cxu.errors import DuplicateIdError, MissingInputError, UsageError
from cxu.predict_plan import plan_images

DICOM_HEAD = bytes(128) + b"DICM"


def touch(folder, *names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def ids(*specs, source=None):
    return [image.image_id for image in plan_images(specs, source).images]


def test_a_folder_gives_paths_below_it_in_order(tmp_path):
    touch(tmp_path, "b.png", "a/2.jpg", "a/1.dcm", "a/b/c.TIFF")
    assert sorted(ids(tmp_path)) == ["a/1.dcm", "a/2.jpg", "a/b/c.TIFF", "b.png"]
    assert ids(tmp_path) == ids(tmp_path)
    assert {image.source.name for image in plan_images([tmp_path]).images} == {"local"}


def test_a_file_gives_its_name_whatever_its_suffix(tmp_path):
    touch(tmp_path, "film.png", "scan.raw", "sub/IM0001")
    assert ids(tmp_path / "film.png", tmp_path / "scan.raw", tmp_path / "sub/IM0001") == [
        "film.png",
        "scan.raw",
        "IM0001",
    ]


def test_a_glob_gives_paths_below_its_fixed_part(tmp_path):
    touch(tmp_path, "p1/a.png", "p2/b.png", "p2/c.txt")
    assert ids(f"{tmp_path}/p*/*.png") == ["p1/a.png", "p2/b.png"]


def test_a_zip_gives_its_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.writestr("x/a.png", b"x")
        archive.writestr("x/IM1", DICOM_HEAD)
        archive.writestr("notes.md", b"x")
    plan = plan_images([tmp_path / "films.zip"])
    assert [image.image_id for image in plan.images] == ["x/a.png", "x/IM1"]
    assert [file.file for file in plan.others] == ["notes.md"]


def test_a_zip_that_cannot_be_read_stops_nothing(tmp_path):
    touch(tmp_path, "a.png", "bad.zip")
    plan = plan_images([tmp_path])
    assert [image.image_id for image in plan.images] == ["a.png"]
    ((_, reason),) = plan.unusable
    assert reason.endswith("bad.zip is no readable zip: download or copy it again, or move it away.")


def test_a_folder_that_cannot_be_listed_stops_nothing(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")
    scan = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    plan = plan_images([tmp_path])
    assert [image.image_id for image in plan.images] == ["a.png"]
    ((_, reason),) = plan.unusable
    assert reason.endswith("closed cannot be listed: see to its permissions.")
    with pytest.raises(MissingInputError, match="cannot be listed"):
        plan_images([tmp_path / "closed"])


def test_lines_of_a_list_without_a_file_are_unusable(tmp_path):
    touch(tmp_path, "films/a.png", "films/IM1", content=DICOM_HEAD)
    (tmp_path / "films.txt").write_text("films/a.png\n\nfilms/gone.png\nfilms/IM1\n")
    plan = plan_images([tmp_path / "films.txt"])
    assert [image.image_id for image in plan.images] == ["films/a.png", "films/IM1"]
    assert [reason for _, reason in plan.unusable] == [f"{tmp_path}/films/gone.png does not exist."]
    (tmp_path / "notes.txt").write_text("bring milk\n")
    with pytest.raises(UsageError, match=r"notes\.txt is no list of images"):
        plan_images([tmp_path / "notes.txt"])


@pytest.mark.parametrize("spec", ["", "**/*.png"])
def test_what_cxu_wrote_is_left_out(tmp_path, spec):
    touch(tmp_path, "a.png", "out/b.png", "out/overlays/local/a.png", "out/masks/local/a.png", "drawn/local/a.png")
    touch(tmp_path, "out/cxu.json", "out/predictions.parquet", "drawn/cxu.json", "masks/c.png")
    plan = plan_images([f"{tmp_path}/{spec}"])
    assert sorted(image.image_id for image in plan.images) == ["a.png", "masks/c.png", "out/b.png"]
    assert sum(file.is_image for file in plan.own) == 3
    assert ids(tmp_path / "drawn/local/a.png") == ["a.png"]  # named itself


def test_the_contents_of_a_disc_are_no_image(tmp_path):
    touch(tmp_path, "DICOMDIR", "IM1", content=DICOM_HEAD)
    assert ids(tmp_path) == ["IM1"]


def test_other_files_are_named_and_bare_dicom_is_found(tmp_path):
    touch(tmp_path, "a.png", "notes.txt", "IM0002", "1.2.840.99")
    touch(tmp_path, "IM0001", "1.2.840.113", content=DICOM_HEAD)
    plan = plan_images([tmp_path])
    assert sorted(image.image_id for image in plan.images) == ["1.2.840.113", "IM0001", "a.png"]
    assert sorted(file.file for file in plan.others) == ["1.2.840.99", "IM0002", "notes.txt"]


def test_the_same_file_named_twice_is_one_image(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    assert ids(tmp_path / "a.png", tmp_path / "a.png") == ["a.png"]
    assert sorted(ids(tmp_path, f"{tmp_path}/*.png")) == ["a.png", "b.png"]


def test_two_files_of_one_id_are_refused_by_name(tmp_path):
    touch(tmp_path, "x/a.png", "y/a.png")
    with pytest.raises(DuplicateIdError, match=r"x/a\.png and .*y/a\.png would both be image 'a\.png' of local"):
        plan_images([tmp_path / "x", tmp_path / "y"])
    touch(tmp_path, "z/b.png", "z/b.jpg")
    assert ids(tmp_path / "z") == ["b.jpg", "b.png"]
    with pytest.raises(DuplicateIdError):
        plan_images([tmp_path / "z"], "nih")


def test_a_source_gives_ids_by_its_rule(tmp_path):
    touch(tmp_path, "p10/p1000/s5/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg")
    assert ids(tmp_path, source="mimic") == ["02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"]
    touch(tmp_path, "chexpert/train/patient00001/study1/view1_frontal.jpg")
    assert ids(tmp_path / "chexpert", source="CheXpert") == ["train/patient00001/study1/view1_frontal"]
    below = tmp_path / "chexpert/train/patient00001"
    assert ids(below, source="CheXpert") == ["train/patient00001/study1/view1_frontal"]
    assert ids(below / "study1/view1_frontal.jpg", source="CheXpert") == ["train/patient00001/study1/view1_frontal"]


def test_a_source_of_ones_own_keeps_the_folders(tmp_path):
    touch(tmp_path, "p1/a.png", "p2/a.png")
    assert ids(tmp_path, source="hospital") == ["p1/a", "p2/a"]


def test_nothing_to_predict(tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        plan_images([tmp_path / "none.png"])
    touch(tmp_path, "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match=r"no image in .*empty; expected files ending in \.png"):
        plan_images([tmp_path / "empty"])
    with pytest.raises(MissingInputError, match="nothing matches"):
        plan_images([f"{tmp_path}/*.png"])


def test_a_source_name_that_is_a_slip(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="did you mean 'padchest'"):
        plan_images([tmp_path], "padchets")
