"""Tables to DICOM segmentations, read back by highdicom and pydicom."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from builders import chest, make_rows
from cxu import raster
from cxu.anatomy import LEFT_LUNG, ORGANS
from cxu.errors import MissingExtraError, OutputExistsError, UsageError
from cxu.export.dicomseg import export_dicomseg
from cxu.export.plan import ExportOptions, plan_export
from film_helpers import DX, save_film
from mask_helpers import last_corner, store_rows, tiny_chest, tiny_rows, tree

POSITION = {
    "FrameOfReferenceUID": "1.2.3.9",
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.2, 0.2],
    "SliceThickness": 1,
}


def film_rows(n_rows=1, **columns):
    return tiny_rows(n_rows, **{"source": "mine", "image_id": [f"{index}.dcm" for index in range(n_rows)], **columns})


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    for index in range(3):
        save_film(folder / f"{index}.dcm")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def export(rows, out, films, *, group_rows=None, workers=1, overwrite=False, **options):
    stored = store_rows(out.parent / "rows.parquet", rows, group_rows=group_rows)
    plan = plan_export(stored, out, ExportOptions("dicomseg", **options), images=(str(films),))
    return export_dicomseg(plan, workers=workers, overwrite=overwrite)


def planes_of(path, film):
    """Return the pixels [H, W, segments] that highdicom finds for a film."""
    segmentation = hd.seg.segread(path)
    (planes,) = segmentation.get_pixels_by_source_instance([pydicom.dcmread(film).SOPInstanceUID])
    return planes


# --- its own readers -------------------------------------------------------------------------------------------------


def test_highdicom_and_pydicom_read_the_same_pixels(out, films):
    report = export(film_rows(), out, films)
    planes = planes_of(out / "mine/0.dcm", films / "0.dcm")
    frames = pydicom.dcmread(out / "mine/0.dcm").pixel_array
    assert planes.shape == (10, 12, 3)
    for index, organ in enumerate(ORGANS):
        drawn = raster.fill_polygon(tiny_chest()[organ.nodes], (10, 12))
        np.testing.assert_array_equal(planes[..., index], drawn)
        np.testing.assert_array_equal(frames[index], drawn)
    assert (planes.sum(axis=-1) > 1).any()  # lung and heart overlap
    assert (report.account.rows, report.files) == (1, 1)
    assert report.bytes == (out / "mine/0.dcm").stat().st_size


def test_segments_say_which_organ_and_who_found_it(out, films):
    export(film_rows(model_id="abc"), out, films)
    segmentation = hd.seg.segread(out / "mine/0.dcm")
    assert segmentation.segmentation_type == hd.seg.SegmentationTypeValues.BINARY
    assert segmentation.SegmentsOverlap == "YES"
    told = []
    for number in segmentation.segment_numbers:
        segment = segmentation.get_segment_description(number)
        kind, category = segment.segmented_property_type, segment.segmented_property_category
        told.append((segment.segment_label, kind.value, kind.scheme_designator))
        assert (category.value, category.scheme_designator) == ("123037004", "SCT")
        assert segment.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        algorithm = segment.algorithm_identification
        assert (algorithm.name, algorithm.version) == ("cxu", segmentation.SoftwareVersions)
        assert algorithm.parameters == {"model_id": "abc", "policy": "confident"}
    assert told == [("Right lung", "3341006", "SCT"), ("Left lung", "44029006", "SCT"), ("Heart", "80891009", "SCT")]


def test_patient_study_and_references_are_those_of_the_film(out, films):
    export(film_rows(), out, films)
    made, film = pydicom.dcmread(out / "mine/0.dcm"), pydicom.dcmread(films / "0.dcm")
    for name in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
        *("StudyID", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet"),
    ):
        assert made[name].value == film[name].value, name
    (source,) = made.SourceImageSequence
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (DX, film.SOPInstanceUID)
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == film.SeriesInstanceUID
    assert made.SeriesInstanceUID != film.SeriesInstanceUID
    assert made.SOPInstanceUID != film.SOPInstanceUID


# --- nothing invented, nothing needless ------------------------------------------------------------------------------


def elements_of(dataset):
    """Return the names of all elements, in sequences too."""
    names = set()
    for element in dataset.iterall():
        names.add(element.keyword)
    return names


GEOMETRY = {"FrameOfReferenceUID", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"}


@pytest.mark.parametrize("missing", [None, *POSITION])
def test_geometry_is_copied_whole_or_not_at_all(out, tmp_path, missing):
    elements = {name: value for name, value in POSITION.items() if name != missing}
    save_film(tmp_path / "films/0.dcm", **elements, ImagerPixelSpacing=[0.1, 0.1])
    export(film_rows(), out, tmp_path / "films")
    made = pydicom.dcmread(out / "mine/0.dcm")
    assert elements_of(made) & GEOMETRY == (set() if missing else GEOMETRY)
    assert "ImagerPixelSpacing" not in elements_of(made)
    if missing is None:
        assert made.FrameOfReferenceUID == "1.2.3.9"
        (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        assert measures.PixelSpacing == [0.2, 0.2]
    else:
        assert made["PatientOrientation"].is_empty
    assert planes_of(out / "mine/0.dcm", tmp_path / "films/0.dcm").shape == (10, 12, 3)


def test_which_way_the_film_lies_is_copied(out, tmp_path):
    save_film(tmp_path / "films/0.dcm", PatientOrientation=["L", "F"])
    export(film_rows(), out, tmp_path / "films")
    assert pydicom.dcmread(out / "mine/0.dcm").PatientOrientation == ["L", "F"]


def test_no_more_of_the_patient_than_every_object_has(out, tmp_path):
    extras = {
        "OtherPatientIDs": "X9",
        "PatientAddress": "1 Road",
        "PatientAge": "070Y",
        "PatientComments": "tall",
        "StudyDescription": "chest",
        "InstitutionName": "Clinic",
        "Manufacturer": "Maker",
        "StationName": "Room",
        "OperatorsName": "Op^Er",
        "PatientIdentityRemoved": "NO",
    }
    save_film(tmp_path / "films/0.dcm", **extras)
    export(film_rows(), out, tmp_path / "films")
    made = pydicom.dcmread(out / "mine/0.dcm")
    assert elements_of(made) & set(extras) == {"Manufacturer", "PatientIdentityRemoved"}
    assert "Maker" not in {item.Manufacturer for item in made.get("ContributingEquipmentSequence", ())}
    assert (made.Manufacturer, made.PatientIdentityRemoved) == ("cxu", "NO")


def test_what_a_film_does_not_say_is_blank(out, tmp_path):
    missing = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    save_film(tmp_path / "films/0.dcm", without=(*missing, "ReferringPhysicianName", "SpecificCharacterSet"))
    assert export(film_rows(), out, tmp_path / "films").account.failures == []
    made = pydicom.dcmread(out / "mine/0.dcm")
    assert {made[name].value or None for name in missing} == {None}


def test_names_of_patients_are_not_shown(out, tmp_path, recwarn, capsys):
    save_film(tmp_path / "films/0.dcm", PatientName="one component")
    export(film_rows(), out, tmp_path / "films")
    assert "one component" not in "".join(str(warning.message) for warning in recwarn)
    assert "one component" not in "".join(capsys.readouterr())


# --- rows without an object ------------------------------------------------------------------------------------------


def test_rows_without_a_dicom_are_listed(out, films, tmp_path):
    Image.fromarray(np.full((10, 12), 9, np.uint8)).save(films / "p.png")
    save_film(films / "size.dcm", shape_hw=(10, 20))
    save_film(films / "study.dcm", without=("StudyInstanceUID",))
    save_film(films / "sex.dcm", PatientSex="Female")
    save_film(films / "class.dcm", SOPClassUID="1.2.3.4")
    (films / "cut.dcm").write_bytes((films / "0.dcm").read_bytes()[:150])
    ids = ["0.dcm", "p.png", "gone.dcm", "size.dcm", "study.dcm", "sex.dcm", "class.dcm", "cut.dcm"]
    report = export(film_rows(8, image_id=ids), out, films)
    assert report.account.rows == 1
    reasons = {failure.image_id: failure.reason for failure in report.account.failures}
    assert list(reasons) == ids[1:]
    assert "p.png is a PNG file: a segmentation belongs to a DICOM file" in reasons["p.png"]
    assert reasons["gone.dcm"] == "no image of this id among the images given"
    assert "not the same image" in reasons["size.dcm"]
    assert "study.dcm lacks StudyInstanceUID: it does not say which study" in reasons["study.dcm"]
    assert "no segmentation can be made for it, a Digital X-Ray" in reasons["sex.dcm"]
    assert "no segmentation can be made for it, a 1.2.3.4" in reasons["class.dcm"]
    assert [path.name for path in (out / "mine").iterdir()] == ["0.dcm"]


def test_a_header_that_breaks_the_standard_is_a_row_that_failed(out, films):
    damaged = (films / "0.dcm").read_bytes().replace(b"19500101", b"1950-bad")
    (films / "0.dcm").write_bytes(damaged)
    report = export(film_rows(2), out, films)
    assert [failure.image_id for failure in report.account.failures] == ["0.dcm"]
    assert "put the file right, or leave it out" in report.account.failures[0].reason
    assert not list((out / "mine").glob("*0.dcm"))


def test_class_and_object_may_stand_in_the_files_head_only(out, tmp_path):
    path = tmp_path / "films/0.dcm"
    save_film(path)
    film = pydicom.dcmread(path)
    number = film.SOPInstanceUID
    del film.SOPInstanceUID, film.SOPClassUID
    film.save_as(path)
    export(film_rows(), out, tmp_path / "films")
    (source,) = pydicom.dcmread(out / "mine/0.dcm").SourceImageSequence
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (DX, number)


def test_unusable_organs_have_no_segment(out, films):
    usable = np.array([[True, False, True], [False, False, False], [True, True, True]])
    confident = np.ones((3, 120), bool)
    confident[2] = ~last_corner(LEFT_LUNG)
    report = export(film_rows(3, usable=usable, confident=confident), out, films)
    segmentation = hd.seg.segread(out / "mine/0.dcm")
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["Right lung", "Heart"]
    assert planes_of(out / "mine/0.dcm", films / "0.dcm").shape == (10, 12, 2)
    triangle = tiny_chest()[LEFT_LUNG.nodes][:46]
    drawn = raster.fill_polygon(triangle, (10, 12))
    np.testing.assert_array_equal(planes_of(out / "mine/2.dcm", films / "2.dcm")[..., 1], drawn)
    assert not (out / "mine/1.dcm").exists()
    account = report.account
    assert (account.rows, account.empty, account.failures) == (2, [("mine", "1.dcm")], [])
    assert account.unusable == {"right_lung": 1, "left_lung": 2, "heart": 1}


def test_an_organ_outside_of_the_film_has_an_empty_segment(out, films):
    landmarks = tiny_chest()[None].copy()
    landmarks[0, :44] -= 20
    export(film_rows(landmarks_xy=landmarks), out, films)
    planes = planes_of(out / "mine/0.dcm", films / "0.dcm")
    assert planes.any(axis=(0, 1)).tolist() == [False, True, True]


def test_model_frame_rows_lie_in_their_film(out, tmp_path):
    save_film(tmp_path / "films/0.dcm", shape_hw=(512, 256))
    rows = make_rows(1, source="mine", image_id=["0.dcm"], landmarks_xy=chest()[None])
    report = export(rows, out, tmp_path / "films")
    planes = planes_of(out / "mine/0.dcm", tmp_path / "films/0.dcm")
    drawn = raster.fill_polygon(chest()[:44] / 2 - [128, 0], (512, 256))
    np.testing.assert_array_equal(planes[..., 0], drawn)
    assert report.account.assumed == 1


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_index_names_every_object(out, films):
    usable = np.array([[True, True, True], [True, False, True], [False, False, False]])
    export(film_rows(3, usable=usable), out, films)
    index = pq.read_table(out / "index.parquet")
    assert index["path"].to_pylist() == ["mine/0.dcm"] * 3 + ["mine/1.dcm", None, "mine/1.dcm"] + [None] * 3
    assert index["usable"].to_pylist() == usable.ravel().tolist()


def test_the_same_command_continues(out, films):
    usable = np.array([[True, True, True], [True, False, True], [False, False, False]])
    rows = film_rows(3, usable=usable)
    first = export(rows, out, films, group_rows=1)
    before = tree(out)
    again = export(rows, out, films, group_rows=1)
    assert tree(out) == before
    assert again.resumed_rows == 2
    assert again.account == first.account
    (out / "mine/1.dcm").unlink()
    third = export(rows, out, films, group_rows=1)
    assert (third.resumed_rows, third.account) == (1, first.account)
    assert (out / "mine/0.dcm").read_bytes() == before["mine/0.dcm"]


def without_times(path):
    made = pydicom.dcmread(path)
    for name in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
        made.pop(name, None)
    for item in made.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    return made


def test_the_same_export_names_the_same_object(tmp_path, films):
    rows = film_rows(2)
    for name, workers in (("one", 1), ("two", 2)):
        export(rows, tmp_path / name, films, group_rows=1, workers=workers)
    for index in range(2):
        one, two = (without_times(tmp_path / name / f"mine/{index}.dcm") for name in ("one", "two"))
        assert one == two
    export(rows, tmp_path / "full", films, policy="full")
    assert without_times(tmp_path / "full/mine/0.dcm").SOPInstanceUID != one.SOPInstanceUID


def test_an_image_that_has_changed_is_exported_anew(out, films):
    rows = film_rows(2)
    export(rows, out, films, group_rows=1)
    save_film(films / "1.dcm", PatientID="P8", PatientName="Another^Name")
    again = export(rows, out, films, group_rows=1)
    assert again.resumed_rows == 1
    assert pydicom.dcmread(out / "mine/1.dcm").PatientID == "P8"


def test_another_command_is_refused_and_replaces_on_request(out, films):
    export(film_rows(2), out, films)
    with pytest.raises(OutputExistsError, match='policy was null, now "full"'):
        export(film_rows(2), out, films, policy="full")
    export(film_rows(1), out, films, policy="full", overwrite=True)
    assert [path.name for path in (out / "mine").iterdir()] == ["0.dcm"]


def test_files_of_others_are_never_replaced(films):
    (films / "mine").mkdir()
    (films / "mine/0.dcm").write_bytes(b"mine")
    save_film(films.parent / "others/0.dcm")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError):
            export(film_rows(), films, films.parent / "others", overwrite=overwrite)
    assert (films / "mine/0.dcm").read_bytes() == b"mine"


# --- the request -----------------------------------------------------------------------------------------------------


def test_without_highdicom_it_says_what_to_install(out, films, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"needs highdicom: pip install 'cxu\[dicomseg\]'"):
        export(film_rows(), out, films)
    assert not out.exists()


def test_two_rows_for_one_object_are_refused(out, films):
    with pytest.raises(UsageError, match="two rows would be written to"):
        export(film_rows(2, image_id=["0.dcm", "0.DCM"]), out, films)


@pytest.mark.shared
def test_real_films(shared_data, out):
    paths = sorted((shared_data / "demo").glob("*.dcm"))
    if not paths:
        pytest.skip("no DICOM films in ../shared/data/demo")
    rows = make_rows(
        len(paths),
        source="local",
        image_id=[path.name for path in paths],
        frame="image",
        landmarks_xy=np.broadcast_to(chest(), (len(paths), 120, 2)),
    )
    report = export(rows, out, shared_data / "demo/*.dcm")
    assert (report.account.rows, report.account.failures) == (len(paths), [])
    for path in paths:
        planes = planes_of(out / "local" / path.name, path)
        for index, organ in enumerate(ORGANS):
            np.testing.assert_array_equal(planes[..., index], raster.fill_polygon(chest()[organ.nodes], (1024, 1024)))


def test_the_table_is_left_alone(out, films, tmp_path):
    rows = film_rows(2)
    export(rows, out, films)
    assert pa.Table.equals(pq.read_table(tmp_path / "rows.parquet"), rows)
