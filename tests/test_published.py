from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import PUBLISHED_COLUMNS, chest, join_numbers, make_texts
from cxu import published, table
from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import FormatError
from cxu.published import Provenance

# numpy's warnings here would be a user's: a bad row must not print one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

NIH, MIMIC, CHEXPERT, PADCHEST = (SOURCES[name] for name in ("chestxray8", "mimic", "chexpert", "padchest"))
OWN = source_or_custom("my_hospital")
LANDMARKS = join_numbers(chest())
SIGMA = join_numbers(np.full(240, 3.25), 2)
LATENT = join_numbers(np.full(64, 0.5), 2)
VALUES = {
    "id": "00000001_000.png",
    "rca_mean": "0.8",
    "rca_max": "0.9",
    "landmarks": LANDMARKS,
    "sigma": SIGMA,
    "latent": LATENT,
    "height": "1024",
    "width": "1024",
    "rle_right_lung": "1 2 3 4",
    "rle_left_lung": "5 6",
    "rle_heart": "7 8",
    "other": "12.5",
}


def resolve(roles, names, source=NIH):
    """Resolve columns of which each holds a value fit for the role named."""
    return published.resolve_columns(names, [VALUES[role] for role in roles], source)


def convert(frame="model", source=NIH, **columns):
    """Convert rows of good values, some replaced by the columns given."""
    n_rows = max([len(texts) for texts in columns.values() if texts is not None], default=1)
    defaults = {
        "id": [f"0000000{row}_000.png" for row in range(n_rows)],
        "landmarks": [LANDMARKS] * n_rows,
        "sigma": [SIGMA] * n_rows,
        "rca_mean": ["0.8"] * n_rows,
        "rca_max": ["0.9"] * n_rows,
        "height": ["1024"] * n_rows,
        "width": ["1024"] * n_rows,
    }
    texts = {role: values for role, values in {**defaults, **columns}.items() if values is not None}
    return published.convert_rows(make_texts(**texts), source, frame, Provenance())


def only_reason(*args, **columns):
    """Return why the one row given is malformed."""
    rows, reasons, _ = convert(*args, **columns)
    assert len(rows) == 0
    assert len(reasons) == 1
    return reasons[0]


def values_of(rows, name):
    return rows[name].to_pylist()


# -- columns


def test_the_published_columns_are_found_in_any_order():
    roles = ["id", "rca_mean", "rca_max", "landmarks", "sigma"]
    roles += ["rle_left_lung", "rle_right_lung", "rle_heart", "height", "width"]
    names = list(PUBLISHED_COLUMNS)
    assert resolve(roles, names) == {role: index for index, role in enumerate(roles)}
    backwards = resolve(roles[::-1], names[::-1])
    assert backwards == {role: index for index, role in enumerate(roles[::-1])}


@pytest.mark.parametrize(
    ("role", "name"),
    [
        *(
            ("landmarks", name)
            for name in ("Landmarks (Mean)", "Landmark (Mean)", "Landmarks", "Mean", "landmarks_mean")
        ),
        *(("sigma", name) for name in ("Landmarks (Std)", "Landmark (Std)", "Std", "LANDMARKS (STD)")),
        *(("rle_left_lung", name) for name in ("Left Lung", "LL_Mean", "left_lung")),
        *(("rle_right_lung", name) for name in ("Right Lung", "RL_Mean")),
        *(("rle_heart", name) for name in ("Heart", "H_Mean")),
        *(("rca_mean", name) for name in ("Dice RCA (Mean)", "dice rca mean")),
        *(("rca_max", name) for name in ("Dice RCA (Max)", "Dice RCA(Max)")),
        *(("height", name) for name in ("Height", "height")),
        ("width", "Width"),
        ("latent", "latents"),
        ("landmarks", "Mean.1"),
        ("sigma", "Std.2"),
        ("height", "Height.1"),
    ],
)
def test_every_alias_of_a_column_is_found(role, name):
    names, roles = ["Unnamed: 0", "Image Index", "Avg std"], ["other", "id", "other"]
    if role != "landmarks":
        names, roles = [*names, "Landmarks (Mean)"], [*roles, "landmarks"]
    found = resolve([*roles, role], [*names, name])
    assert found[role] == len(names)
    assert found["id"] == 1
    assert set(found) == {"id", "landmarks", role}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mimic", "dicom_id"),
        ("chexpert", "Path"),
        ("chestxray8", "Image Index"),
        ("padchest", "ImageID"),
        ("vindr", "image_id"),
        *((source, "Image") for source in ("mimic", "chexpert", "chestxray8", "padchest", "vindr")),
        ("chexpert", "image_id"),
    ],
)
def test_the_id_column_is_that_of_the_source_or_a_usual_name(source, name):
    assert resolve(["landmarks", "id"], ["Landmarks", name], SOURCES[source]) == {"landmarks": 0, "id": 1}


def test_the_sources_own_id_column_comes_first():
    assert resolve(["id", "id", "landmarks"], ["Image", "dicom_id", "Landmarks"], MIMIC)["id"] == 1


@pytest.mark.parametrize("names", [["Mean", "Mean.1"], ["Mean", "Mean"]])
def test_among_columns_of_one_name_the_one_that_holds_landmarks_is_taken(names):
    # as pandas writes them after a merge: the mean of the Dice scores and the mean landmarks
    assert resolve(["id", "rca_mean", "landmarks"], ["Image Index", *names])["landmarks"] == 2
    assert resolve(["id", "landmarks", "rca_mean"], ["Image Index", *names])["landmarks"] == 1
    stds = ["Std", "Std.1"]
    found = resolve(["id", "landmarks", "rca_mean", "other", "sigma"], ["Image Index", "Landmarks", "Mean", *stds])
    assert (found["landmarks"], found["sigma"]) == (1, 4)


def test_landmarks_in_brackets_look_like_landmarks():
    text = np.array2string(chest(), threshold=1000)
    assert published.resolve_columns(["Image", "Mean", "Mean.1"], ["a", "0.5", text], NIH)["landmarks"] == 2


def test_names_decide_where_the_first_row_is_blank_or_short():
    names = ["Image Index", "Landmarks", "Height"]
    for first_row in ([], ["", "", ""], ["a"]):
        assert published.resolve_columns(names, first_row, NIH) == {"id": 0, "landmarks": 1, "height": 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Path", "Landmarks"], "no column for the id of ChestX-ray8: expected 'Image Index' or 'image_id' or 'Image'"),
        (["Image Index", "x"], "no column for the landmarks of ChestX-ray8: expected 'Landmarks .Mean.'"),
    ],
)
def test_without_id_or_landmarks_the_error_lists_the_columns_found(names, message):
    with pytest.raises(FormatError, match=message) as caught:
        published.resolve_columns(names, ["a", "b"], NIH)
    assert str(caught.value).endswith("found " + ", ".join(map(repr, names)))


# -- good rows


def test_a_row_of_the_model_frame_by_hand():
    landmarks_xy = chest() + 0.5
    sigma_xy = np.tile([2.0, 5.0], (120, 1))
    sigma_xy[3] = [10, 30]
    rows, reasons, notes = published.convert_rows(
        make_texts(
            id=["66049acc-ee1e6b29-1298f53b-32d453b3-41377f10"],
            landmarks=[join_numbers(landmarks_xy, 1)],
            sigma=[join_numbers(sigma_xy, 2)],
            latent=[LATENT],
            rca_mean=["0.75"],
            rca_max=["0.875"],
            height=["1024"],
            width=["1024"],
            rle_heart=["1 2"],
        ),
        MIMIC,
        "model",
        Provenance("abc", "owner/repo", "v1"),
    )
    assert reasons == [""]
    assert not notes
    table.check_table(rows, "rows")
    row = rows.to_pylist()[0]
    np.testing.assert_array_equal(table.landmarks_of(rows)[0], landmarks_xy)
    np.testing.assert_array_equal(table.sigmas_of(rows)[0], sigma_xy)
    assert row["sigma_model_px"][2:5] == [3.5, 20, 3.5]
    assert row["mean_sigma_model_px"] == np.float32((119 * 3.5 + 20) / 120)
    assert {name: row[name] for name in row if np.ndim(row[name]) == 0 and row[name] is not None} == {
        "source": "mimic",
        "image_id": "66049acc-ee1e6b29-1298f53b-32d453b3-41377f10",
        "height": 1024,
        "width": 1024,
        "frame": "model",
        "mean_sigma_model_px": row["mean_sigma_model_px"],
        "max_sigma_model_px": 20,
        "rca_mean": 0.75,
        "rca_max": 0.875,
        "rca_swapped": False,
        "model_id": "published",
        "n_samples": 50,
        "repo": "owner/repo",
        "revision": "v1",
        "file_sha256": "abc",
        "rle_heart": "1 2",
    }
    assert row["latent_sigma"] == [0.5] * 64


def test_the_original_chexmask_has_no_std():
    rows, _, _ = convert(sigma=None)
    row = rows.to_pylist()[0]
    names = ("sigma_xy", "sigma_model_px", "mean_sigma_model_px", "max_sigma_model_px", "n_samples", "latent_sigma")
    assert [row[name] for name in names] == [None] * 6


def test_ids_become_canonical_and_tell_patients():
    ids = ["CheXpert-v1.0/train/patient00007/study1/view1_frontal.jpg", "valid/patient64541/study1/view1_frontal"]
    rows, _, _ = convert(source=CHEXPERT, id=ids)
    assert values_of(rows, "image_id") == ["train/patient00007/study1/view1_frontal", ids[1]]
    assert values_of(rows, "patient_id") == ["patient00007", "patient64541"]
    assert values_of(convert(id=["00013310_001.PNG"])[0], "patient_id") == ["00013310"]
    assert values_of(convert(source=OWN, id=["12.5"])[0], "image_id") == ["12.5"]


def test_nothing_to_convert_gives_no_rows():
    rows, reasons, notes = convert(id=[], landmarks=[], sigma=[], rca_mean=[], rca_max=[], height=[], width=[])
    assert len(rows) == 0
    assert rows.schema.names == table.SCHEMA.names
    assert (reasons, notes) == ([], {})


# -- RCA


def test_exchanged_rca_is_sorted_flagged_and_counted():
    rows, reasons, notes = convert(rca_mean=["0.75", "0.5", "0.5"], rca_max=["0.5", "0.75", "0.5"])
    assert reasons == ["", "", ""]
    assert values_of(rows, "rca_mean") == [0.5, 0.5, 0.5]
    assert values_of(rows, "rca_max") == [0.75, 0.75, 0.5]
    assert values_of(rows, "rca_swapped") == [True, False, False]
    assert notes == {"rca_swapped": 1}


@pytest.mark.parametrize("blank", ["", " ", "nan", "NaN", "None", "null", "NA", "n/a", None])
def test_blank_rca_is_null(blank):
    rows, reasons, _ = convert(rca_mean=[blank, "0.5"], rca_max=["0.5", blank])
    assert reasons == ["", ""]
    assert values_of(rows, "rca_mean") == [None, 0.5]
    assert values_of(rows, "rca_max") == [0.5, None]
    assert values_of(rows, "rca_swapped") == [False, False]


def test_rca_columns_may_be_missing():
    rows, _, _ = convert(rca_mean=None, rca_max=None)
    assert values_of(rows, "rca_mean") == values_of(rows, "rca_max") == [None]


@given(st.floats(0, 1), st.floats(0, 1))
def test_rca_is_sorted_whatever_the_order(mean, highest):
    rows, reasons, notes = convert(rca_mean=[repr(mean)], rca_max=[repr(highest)])
    assert reasons == [""]
    assert values_of(rows, "rca_mean") == [np.float32(min(mean, highest))]
    assert values_of(rows, "rca_max") == [np.float32(max(mean, highest))]
    assert values_of(rows, "rca_swapped") == [highest < mean]
    assert notes.total() == (highest < mean)


# -- sizes and frames


@pytest.mark.parametrize(
    ("height", "width", "side", "offset_xy"),
    [
        (2021, 1704, 2021, [-158, 0]),  # 317 columns padded: 158 before, 159 after
        (1703, 2020, 2020, [0, -158]),
        (2500, 2048, 2500, [-226, 0]),
        (900, 901, 901, [0, 0]),  # one row padded: at the end
        (899, 901, 901, [0, -1]),
        (640, 640, 640, [0, 0]),
    ],
)
def test_the_model_frame_of_a_padded_image_by_hand(height, width, side, offset_xy):
    sigma_xy = np.tile([2.0, 5.0], (120, 1))
    rows, reasons, notes = convert(
        "image",
        CHEXPERT,
        height=[str(height)],
        width=[f"{width}.0"],
        landmarks=[join_numbers(chest(width, height))],
        sigma=[join_numbers(sigma_xy, 2)],
    )
    assert reasons == [""]
    assert not notes
    row = rows.to_pylist()[0]
    assert (row["frame"], row["height"], row["width"]) == ("image", height, width)
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (side, offset_xy, True)
    np.testing.assert_array_equal(table.sigmas_of(rows)[0], sigma_xy)
    assert row["sigma_model_px"] == pytest.approx([3.5 * 1024 / side] * 120, rel=1e-6)
    assert row["max_sigma_model_px"] == pytest.approx(3.5 * 1024 / side, rel=1e-6)


@pytest.mark.parametrize(("source", "exact"), [(MIMIC, False), (PADCHEST, False), (CHEXPERT, True), (OWN, False)])
def test_only_padded_sources_know_where_their_model_frame_lies(source, exact):
    # the border of MIMIC and PadChest was cropped away before: the place in the image is assumed
    rows, _, _ = convert("image", source, height=["800"], width=["600"], landmarks=[join_numbers(chest(600, 800))])
    row = rows.to_pylist()[0]
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (800, [-100, 0], exact)


def test_model_frame_rows_do_not_know_their_image():
    rows, _, _ = convert("model", CHEXPERT)
    row = rows.to_pylist()[0]
    assert (row["height"], row["width"], row["frame"]) == (1024, 1024, "model")
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (None, None, None)
    assert row["max_sigma_model_px"] == 3.25


@pytest.mark.parametrize("frame", ["model", "image", None])
def test_a_native_source_is_its_own_model_frame(frame):
    rows, reasons, notes = convert(frame, NIH)
    assert reasons == [""]
    assert not notes
    row = rows.to_pylist()[0]
    assert row["frame"] == (frame or "model")
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (1024, [0, 0], True)
    assert row["max_sigma_model_px"] == 3.25


@pytest.mark.parametrize("blank", ["", "nan", " ", "None"])
@pytest.mark.parametrize(("frame", "source"), [("model", MIMIC), (None, MIMIC), ("image", NIH), ("model", PADCHEST)])
def test_blank_sizes_are_1024_where_the_frame_says_so(frame, source, blank):
    rows, reasons, notes = convert(frame, source, height=[blank, "1024"], width=[blank, "1024"])
    assert reasons == ["", ""]
    assert values_of(rows, "height") == values_of(rows, "width") == [1024, 1024]
    assert notes == {"size_assumed": 1}


@pytest.mark.parametrize(("height", "width"), [("", ""), ("600", ""), ("", "600")])
def test_blank_sizes_of_an_image_frame_leave_the_scale_unknown(height, width):
    rows, reasons, notes = convert("image", CHEXPERT, height=[height], width=[width], landmarks=[LANDMARKS])
    assert reasons == [""]
    assert notes == {"size_blank": 1}
    row = rows.to_pylist()[0]
    assert row["sigma_xy"] == [3.25] * 240
    assert (row["height"], row["width"]) == (int(height or 0) or None, int(width or 0) or None)
    unknown = ("frame_side", "frame_offset_xy", "sigma_model_px", "mean_sigma_model_px", "max_sigma_model_px")
    assert [row[name] for name in unknown] == [None] * 5


def test_size_columns_may_be_missing():
    rows, _, notes = convert("image", CHEXPERT, height=None, width=None)
    assert values_of(rows, "height") == [None]
    assert notes == {"size_blank": 1}


@pytest.mark.parametrize("frame", ["model", None])
@pytest.mark.parametrize(
    ("height", "width", "stated"),
    [("2048", "1024", "2048 × 1024"), ("1024", "1000.0", "1024 × 1000"), ("2048", "", "2048 × nan")],
)
def test_other_sizes_are_no_model_frame(frame, height, width, stated):
    reason = only_reason(frame, MIMIC, height=[height], width=[width])
    assert reason.startswith(f"{stated} px (height × width) is no model frame, expected 1024 × 1024")
    assert "--frame image" in reason


def test_exchanged_sizes_are_put_right_by_the_landmarks():
    landmarks = join_numbers(chest(2000, 1000))
    assert chest(2000, 1000)[:, 0].max() > 1000
    rows, reasons, notes = convert(
        "image", CHEXPERT, height=["2000", "1000"], width=["1000", "2000"], landmarks=[landmarks] * 2
    )
    assert reasons == ["", ""]
    assert values_of(rows, "height") == [1000, 1000]
    assert values_of(rows, "width") == [2000, 2000]
    assert values_of(rows, "frame_offset_xy") == [[0, -500]] * 2
    assert notes == {"size_exchanged": 1}


def test_sizes_are_kept_where_both_ways_fit():
    landmarks = join_numbers(chest(500, 500))
    rows, _, notes = convert("image", CHEXPERT, height=["1000"], width=["800"], landmarks=[landmarks])
    assert (values_of(rows, "height"), values_of(rows, "width")) == ([1000], [800])
    assert not notes


@pytest.mark.parametrize(
    ("right", "fate"),
    [
        (1026, "good"),  # a few pixels outside happen
        (1048, "good"),  # (1048 - 1023) / 1024 is below 2.5 %
        (1049, "noted"),
        (1279, "noted"),  # just below a quarter of the side
        (1280, "rejected"),
    ],
)
def test_landmarks_may_leave_the_image_by_a_few_pixels(right, fate):
    landmarks_xy = chest()
    landmarks_xy[60, 0] = right
    rows, reasons, notes = convert(landmarks=[join_numbers(landmarks_xy)])
    if fate == "rejected":
        assert reasons[0].startswith(f"landmarks reach from (150, 200) to ({right}, 800), far outside the 1024 × 1024")
        assert not notes
    else:
        assert len(rows) == 1
        assert notes == ({"out_of_frame": 1} if fate == "noted" else {})


@pytest.mark.parametrize("node_xy", [[-30, 500], [500, -30], [500, 1060]])
def test_landmarks_may_leave_the_image_on_every_side(node_xy):
    landmarks_xy = chest()
    landmarks_xy[60] = node_xy
    assert convert(landmarks=[join_numbers(landmarks_xy)])[2] == {"out_of_frame": 1}


def test_image_frame_rows_of_1024_px_look_preprocessed():
    assert convert("image", MIMIC)[2] == {"looks_preprocessed": 1}
    assert convert("image", NIH)[2] == {}
    assert convert("image", OWN)[2] == {}
    assert convert("model", MIMIC)[2] == {}


def test_every_note_has_a_text():
    assert set(published.NOTE_TEXTS) == {
        "rca_swapped",
        "size_exchanged",
        "size_blank",
        "size_assumed",
        "out_of_frame",
        "blank_lines",
        "looks_preprocessed",
    }


# -- malformed rows


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("id", "", "the id (Image Index) is blank"),
        ("id", "  ", "the id (Image Index) is blank"),
        ("id", None, "the id (Image Index) is blank"),
        ("id", b"a\xff.png", "the id 'a\ufffd.png' is not UTF-8 text"),
        ("landmarks", "", "landmarks: is blank"),
        ("landmarks", join_numbers(range(238)), "landmarks: 238 numbers, expected 240"),
        ("landmarks", LANDMARKS + ",7", "landmarks: 241 numbers, expected 240"),
        ("landmarks", "x" + LANDMARKS[3:], "landmarks: value 1 is 'x', not a number"),
        ("landmarks", "nan" + LANDMARKS[3:], "landmarks: value 1 is nan, not a finite number"),
        ("landmarks", "[[1 2]\n [3 4]\n ...\n [5 6]]", "landmarks: was abbreviated with '...' when it was written"),
        ("sigma", "", "sigma: is blank"),
        ("sigma", SIGMA[5:], "sigma: 239 numbers, expected 240"),
        ("sigma", "-0.5" + SIGMA[4:], "standard deviation -0.5 is negative"),
        ("sigma", "inf" + SIGMA[4:], "sigma: value 1 is inf, not a finite number"),
        ("latent", "1,2,3", "latent: 3 numbers, expected 64"),
        ("rca_mean", "good", "rca_mean is 'good', not a number"),
        ("rca_mean", "-0.1", "rca_mean is -0.1, not within 0 to 1"),
        ("rca_max", "1.01", "rca_max is 1.01, not within 0 to 1"),
        ("rca_max", "inf", "rca_max is inf, not within 0 to 1"),
        ("height", "1_024", "height is '1_024', not a number"),
        ("height", "tall", "height is 'tall', not a number"),
        ("height", "0", "size 0 × 1024 is no image size"),
        ("width", "-5", "size 1024 × -5 is no image size"),
        ("width", "10.5", "size 1024 × 10.5 is no image size"),
        ("height", "inf", "size inf × 1024 is no image size"),
        ("height", "70000", "size 70000 × 1024 is no image size"),
        ("height", "1e300", "size 1e+300 × 1024 is no image size"),
        ("rle_heart", b"1 \xff", "rle_heart is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("frame", ["model", "image"])
def test_a_malformed_row_says_why_and_leaves_the_others(frame, column, text, reason):
    good = {**VALUES, "id": "00000002_000.png"}[column]
    rows, reasons, notes = convert(frame, **{column: [good, text, good]}, rle_left_lung=["1 2", "3 4", "5 6"])
    assert reasons[1].startswith(reason)
    assert (reasons[0], reasons[2]) == ("", "")
    assert values_of(rows, "rle_left_lung") == ["1 2", "5 6"]
    assert not notes


def test_a_row_with_several_defects_gives_the_first():
    assert only_reason(id=[""], landmarks=["x"], rca_mean=["y"]) == "the id (Image Index) is blank"


def test_notes_count_good_rows_only():
    rows, _, notes = convert(rca_mean=["0.9", "0.9"], rca_max=["0.8", "0.8"], landmarks=[LANDMARKS, "x"])
    assert len(rows) == 1
    assert notes == {"rca_swapped": 1}
