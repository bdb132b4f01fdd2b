from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu import catalog
from cxu.anatomy import N_NODES, ORGAN_GROUPS, ORGAN_NAMES, ORGANS
from cxu.errors import CxuError, UsageError

# -- anatomy


def test_organs_divide_the_120_nodes_in_order():
    assert [(organ.name, organ.label, organ.first, organ.stop, organ.n_nodes) for organ in ORGANS] == [
        ("right_lung", 1, 0, 44, 44),
        ("left_lung", 2, 44, 94, 50),
        ("heart", 3, 94, 120, 26),
    ]
    assert [node for organ in ORGANS for node in range(N_NODES)[organ.nodes]] == list(range(120))
    assert tuple(organ.name for organ in ORGANS) == ORGAN_NAMES


def test_organ_groups_name_known_organs():
    assert ORGAN_GROUPS["lungs"] == ("right_lung", "left_lung")
    assert {name for names in ORGAN_GROUPS.values() for name in names} == set(ORGAN_NAMES)
    assert [organ.title for organ in ORGANS] == ["right lung", "left lung", "heart"]


# -- the catalogue


@pytest.mark.parametrize(
    ("name", "title", "id_column", "rows", "framing"),
    [
        ("mimic", "MIMIC-CXR-JPG", "dicom_id", 243_334, "crop_pad"),
        ("chexpert", "CheXpert", "Path", 187_825, "pad"),
        ("chestxray8", "ChestX-ray8", "Image Index", 112_120, "native"),
        ("padchest", "PadChest", "ImageID", 96_184, "crop_pad"),
        ("vindr", "VinDr-CXR", "image_id", 18_000, "pad"),
    ],
)
def test_sources_are_those_of_the_published_tables(name, title, id_column, rows, framing):
    source = catalog.SOURCES[name]
    assert (source.title, source.id_column, source.rows_expected, source.framing) == (title, id_column, rows, framing)
    assert source.id_columns[0] == id_column
    assert len(set(source.id_columns)) == len(source.id_columns)


def test_the_published_rows_sum_up():
    assert sum(source.rows_expected for source in catalog.SOURCES.values()) == 657_463


def test_the_cropped_sources_are_reliable_in_the_model_frame_only():
    in_model_frame = {name for name, source in catalog.SOURCES.items() if source.reference_frame == "model"}
    assert in_model_frame == {name for name, source in catalog.SOURCES.items() if source.framing == "crop_pad"}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("mimic", "mimic"),
        ("MIMIC", "mimic"),
        ("MIMIC-CXR-JPG", "mimic"),
        ("mimic_cxr_jpg", "mimic"),
        ("CheXpert", "chexpert"),
        ("ChestX-ray8", "chestxray8"),
        ("ChestX-Ray8", "chestxray8"),
        ("NIH", "chestxray8"),
        ("nih", "chestxray8"),
        ("Padchest", "padchest"),
        ("PadChest", "padchest"),
        ("VinDr-CXR", "vindr"),
        ("VinDr", "vindr"),
        ("VinBigData", "vindr"),
    ],
)
def test_sources_are_found_by_every_alias(spelling, name):
    assert catalog.find_source(spelling).name == name
    assert catalog.source_or_custom(spelling) is catalog.SOURCES[name]


def test_an_unknown_source_names_the_known_ones_and_the_closest():
    with pytest.raises(UsageError) as caught:
        catalog.find_source("chexprt")
    assert "'chexprt' (did you mean 'chexpert'?)" in str(caught.value)
    assert "mimic, chexpert, chestxray8, padchest, vindr" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="unknown source 'brain'; known"):
        catalog.find_source("brain")


def test_a_table_of_ones_own_keeps_its_ids():
    source = catalog.source_or_custom("my_hospital-2")
    assert (source.name, source.framing, source.rows_expected) == ("my_hospital-2", "unknown", 0)
    assert source.canonical_id("ward/7/a.b.png") == "ward/7/a.b"
    assert source.patient_id("patient00001/x") is None


@pytest.mark.parametrize("name", ["chexprt", "Mimick", "", "Ward", "../up", "a/b", "a b", "9ward", "w" * 65])
def test_slips_and_names_that_are_no_identifiers_are_no_sources(name):
    with pytest.raises(UsageError):
        catalog.source_or_custom(name)


# -- ids

CHEXPERT = catalog.SOURCES["chexpert"]
CHEXPERT_ID = "train/patient00001/study1/view1_frontal"


@pytest.mark.parametrize(
    "text",
    [
        CHEXPERT_ID,
        f"{CHEXPERT_ID}.jpg",
        f"CheXpert-v1.0/{CHEXPERT_ID}.jpg",
        f"CheXpert-v1.0-small/{CHEXPERT_ID}.jpg",
        f"/data/x/{CHEXPERT_ID}.png",
        f"  {CHEXPERT_ID}.jpg\n",
        CHEXPERT_ID.replace("/", "\\"),
    ],
)
def test_chexpert_ids_lose_prefix_and_suffix(text):
    assert CHEXPERT.canonical_id(text) == CHEXPERT_ID


def test_chexpert_ids_of_the_validation_part_and_without_a_part():
    assert CHEXPERT.canonical_id("x/valid/patient64541/study1/view1_frontal.jpg").startswith("valid/patient64541")
    assert CHEXPERT.canonical_id("patient1/study1/view1.jpg") == "patient1/study1/view1"
    # a folder that only ends like the part is none
    assert CHEXPERT.canonical_id("mytrain/patient1/a.jpg") == "mytrain/patient1/a"


@pytest.mark.parametrize(
    ("source", "text", "image_id"),
    [
        ("chestxray8", "00013310_001.png", "00013310_001"),
        ("chestxray8", "00013310_001", "00013310_001"),
        ("padchest", "2168_01-031-075.png", "2168_01-031-075"),
        ("mimic", "66049acc-ee1e6b29-1298f53b-32d453b3-41377f10", "66049acc-ee1e6b29-1298f53b-32d453b3-41377f10"),
        ("vindr", "0123456789abcdef0123456789abcdef.dicom", "0123456789abcdef0123456789abcdef"),
        ("vindr", "000434271f63a053c4128a0ba6352c7f", "000434271f63a053c4128a0ba6352c7f"),
    ],
)
def test_ids_of_the_other_sources_lose_their_suffix(source, text, image_id):
    assert catalog.SOURCES[source].canonical_id(text) == image_id


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".DICOM"])
def test_image_suffixes_are_stripped(suffix):
    assert catalog.strip_image_suffix(f"1.2.840{suffix}") == "1.2.840"


@pytest.mark.parametrize("text", ["1.2.840.113", "name.txt", ".png", "png", "", "a.png.gz"])
def test_other_dots_are_part_of_the_id(text):
    assert catalog.strip_image_suffix(text) == text


@given(st.sampled_from(sorted(catalog.SOURCES)), st.from_regex(r"[A-Za-z0-9_/-]{1,30}", fullmatch=True))
def test_a_canonical_id_stays_as_it_is(name, text):
    source = catalog.SOURCES[name]
    image_id = source.canonical_id(text)
    assert source.canonical_id(image_id) == image_id
    assert source.canonical_id(f"{image_id}.png") == image_id


@pytest.mark.parametrize(
    ("source", "image_id", "patient"),
    [
        ("chexpert", CHEXPERT_ID, "patient00001"),
        ("chexpert", "elsewhere", None),
        ("chestxray8", "00013310_001", "00013310"),
        ("chestxray8", "13310_001", None),
        ("mimic", "66049acc-ee1e6b29-1298f53b-32d453b3-41377f10", None),
        ("padchest", "216840111366964013217898866992011332134237003_01-031-075", None),
        ("vindr", "000434271f63a053c4128a0ba6352c7f", None),
    ],
)
def test_patients_are_read_where_the_id_tells_them(source, image_id, patient):
    assert catalog.SOURCES[source].patient_id(image_id) == patient


def test_usage_errors_refine_a_builtin():
    assert issubclass(UsageError, ValueError)
    assert issubclass(UsageError, CxuError)
