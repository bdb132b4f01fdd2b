"""Rows to a CSV in the published columns, and back through the import."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import chest, make_rows, plain_decode_rle
from cxu import raster, table
from cxu.anatomy import ORGANS
from cxu.catalog import SOURCES, source_or_custom
from cxu.csv_reader import CsvReader
from cxu.csv_writer import COLUMNS, ORGAN_COLUMNS, write_published
from cxu.errors import FormatError, UsageError
from cxu.published import Provenance, convert_rows

CUSTOM = source_or_custom("mine")
REAL = {"chestxray8": "ChestX-Ray8.csv", "mimic": "MIMIC-CXR-JPG.csv", "padchest": "Padchest.csv"}


def read_back(path, source=CUSTOM, frame="image"):
    """Return the rows that the import makes of a file, none of them malformed."""
    with path.open("rb") as stream:
        batches = list(CsvReader(stream, path.name, source, keep_rle=True).batches())
    converted = [convert_rows(batch.texts, source, frame, Provenance()) for batch in batches]
    assert not [reason for _, reasons, _ in converted for reason in reasons if reason]
    assert not [broken for batch in batches for broken in batch.broken]
    return pa.concat_tables([rows for rows, _, _ in converted])


def cells(path):
    with path.open(encoding="utf-8", newline="") as stream:
        csv.field_size_limit(1 << 24)
        return list(csv.DictReader(stream))


def rows_of(n_rows, **columns):
    sigma = np.full((n_rows, 120, 2), 3.25, np.float32)
    return make_rows(n_rows, **{"source": "mine", "frame": "image", "sigma_xy": sigma, **columns})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "predictions.csv"


def test_the_columns_are_the_published_ones_in_order(path):
    assert write_published([rows_of(2)], path) == 2
    assert path.read_text().splitlines()[0] == (
        "image_id,Dice RCA (Mean),Dice RCA (Max),Landmarks (Mean),Landmarks (Std),"
        "Left Lung,Right Lung,Heart,Height,Width"
    )


def test_a_row_by_hand(path):
    points = np.broadcast_to(np.float32([1, 1]), (1, 120, 2)).copy()
    points[0, :4] = [[1, 1], [3, 1], [3, 2.004], [1.25, 2.5]]
    points[0, 4:44] = points[0, 3]
    sigma = np.full((1, 120, 2), 0.5, np.float32)
    sigma[0, 0] = [1.234, 0]
    write_published([rows_of(1, landmarks_xy=points, sigma_xy=sigma, height=4, width=5, image_id=["a"])], path)
    (row,) = cells(path)
    assert row["Landmarks (Mean)"].startswith("1,1,3,1,3,2,1.25,2.5,1.25,2.5,")
    assert row["Landmarks (Std)"].startswith("1.23,0.00,0.50,0.50,")
    assert (row["Right Lung"], row["Left Lung"], row["Heart"]) == ("7 3 12 3", "7 1", "7 1")
    assert (row["Dice RCA (Mean)"], row["Dice RCA (Max)"]) == ("", "")
    assert (row["Height"], row["Width"]) == ("4", "5")


def test_without_rows_there_is_a_header_only(path):
    for batches in ([], [rows_of(0)]):
        assert write_published(batches, path) == 0
        assert path.read_text() == ",".join(COLUMNS) + "\n"


def test_batches_of_any_size_give_the_same_file(tmp_path):
    rows = rows_of(5)
    write_published([rows], tmp_path / "one.csv")
    assert write_published([rows[:0], rows[:2], rows[2:2], rows[2:]], tmp_path / "more.csv") == 5
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "more.csv").read_bytes()


def test_rows_are_taken_one_batch_at_a_time(path):
    asked = []

    def batches():
        for index in range(3):
            asked.append([leftover.stat().st_size for leftover in path.parent.iterdir()])
            yield rows_of(40, image_id=[f"{index}-{row}" for row in range(40)])

    write_published(batches(), path)
    sizes = [size for (size,) in asked]
    assert sizes[0] == 0
    assert 0 < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"frame": "model"}, r"frame: image, model\).*a file for each"),
        ({"source": "theirs"}, r"source: mine, theirs\).*a file for each"),
        ({"sigma_xy": None}, r"standard deviations: some rows with and some without\)"),
    ],
)
def test_rows_that_one_file_could_not_tell_apart_are_refused(path, other, message):
    path.parent.mkdir()
    path.write_text("as before")
    mixed = rows_of(2), rows_of(1, **other)
    for batches in (mixed, mixed[::-1], [pa.concat_tables(mixed)]):
        with pytest.raises(UsageError, match=message):
            write_published(batches, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "as before"


def test_landmarks_that_are_no_number_are_named(path):
    points = chest()[None].copy()
    points[0, 7, 1] = np.nan
    with pytest.raises(FormatError, match="image0000: landmarks that are no number"):
        write_published([rows_of(1, landmarks_xy=points)], path)
    assert list(path.parent.iterdir()) == []


def test_rows_without_standard_deviations_have_no_column_for_them(path):
    write_published([rows_of(2, sigma_xy=None)], path)
    assert list(cells(path)[0]) == [name for name in COLUMNS if name != "Landmarks (Std)"]
    assert read_back(path)["sigma_xy"].null_count == 2


def test_a_row_of_unknown_size_has_no_masks(path):
    write_published([rows_of(1, height=None, width=None)], path)
    (row,) = cells(path)
    assert {row[name] for name in (*ORGAN_COLUMNS.values(), "Height", "Width")} == {""}
    assert read_back(path)["height"].null_count == 1


def test_uncertain_nodes_are_drawn_and_written_like_the_others(tmp_path):
    selection = rows_of(1, confident=np.zeros((1, 120), bool), usable=np.zeros((1, 3), bool))
    write_published([selection], tmp_path / "selection.csv")
    write_published([rows_of(1)], tmp_path / "all.csv")
    assert (tmp_path / "selection.csv").read_bytes() == (tmp_path / "all.csv").read_bytes()


AWKWARD = [
    "a,b",
    'say "x"',
    "two\nlines",
    "carriage\rreturn",
    "crlf\r\nx",
    "ü/é",
    "x.dcm",
    "x.png",
    "=1+1",
    "0012",
    "'",
    "a;b\tc",
]


def test_awkward_ids_survive(path):
    write_published([rows_of(len(AWKWARD), image_id=AWKWARD)], path)
    assert read_back(path)["image_id"].to_pylist() == AWKWARD


def test_ids_of_catalogued_sources_survive(path):
    for name, image_id in (("chexpert", "train/patient00001/study1/view1_frontal"), ("chestxray8", "00013310_001")):
        write_published([rows_of(1, source=name, image_id=[image_id])], path)
        rows = read_back(path, SOURCES[name])
        assert rows["image_id"].to_pylist() == [image_id]
        assert rows["patient_id"].to_pylist()[0] in image_id


# an id loses blanks at its ends and an image suffix where it is read, so the table holds none such
texts = st.text(st.characters(codec="utf-8", exclude_characters="�"), min_size=1, max_size=12)
ids = texts.map(str.strip).filter(bool).map(CUSTOM.canonical_id).filter(lambda text: text.strip() == text)


@settings(max_examples=40)
@given(
    image_ids=st.lists(ids, min_size=1, max_size=3, unique=True),
    size_wh=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    seed=st.integers(0, 2**32 - 1),
)
@example(image_ids=["a\rb"], size_wh=(40, 50), seed=1)
def test_what_is_written_is_read_back(tmp_path_factory, image_ids, size_wh, seed):
    path = tmp_path_factory.mktemp("law") / "a.csv"
    rng, n_rows, (width, height) = np.random.default_rng(seed), len(image_ids), size_wh
    points = rng.uniform(0, np.array(size_wh) - 1, (n_rows, 120, 2)).astype(np.float32)
    sigma = rng.uniform(0, 40, (n_rows, 120, 2)).astype(np.float32)
    rca = np.sort(rng.uniform(0, 1, (2, n_rows)).astype(np.float32), axis=0)
    rows = rows_of(
        n_rows,
        image_id=image_ids,
        landmarks_xy=points,
        sigma_xy=sigma,
        rca_mean=rca[0],
        rca_max=rca[1],
        height=height,
        width=width,
    )
    assert write_published([rows], path) == n_rows
    back = read_back(path)
    assert back["image_id"].to_pylist() == image_ids
    np.testing.assert_allclose(table.landmarks_of(back), points, rtol=0, atol=0.00502)
    np.testing.assert_allclose(table.sigmas_of(back), sigma, rtol=0, atol=0.00502)
    for name in ("rca_mean", "rca_max", "height", "width", "frame"):
        assert back[name].to_pylist() == rows[name].to_pylist()
    for organ in ORGANS:  # the masks are those that the import's own landmarks draw
        for text, landmarks_xy in zip(back[f"rle_{organ.name}"].to_pylist(), table.landmarks_of(back), strict=True):
            drawn = raster.fill_polygon(landmarks_xy[organ.nodes], (height, width))
            assert np.array_equal(plain_decode_rle(text, (height, width)), drawn)


def test_the_second_time_nothing_changes(tmp_path):
    rng = np.random.default_rng(5)
    points = chest() + rng.normal(0, 3, (4, 120, 2)).astype(np.float32)
    write_published([rows_of(4, landmarks_xy=points)], tmp_path / "one.csv")
    write_published([read_back(tmp_path / "one.csv")], tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


# --- precision -------------------------------------------------------------------------------------------------------

numbers = st.floats(-9, 99, width=32)


@settings(max_examples=40)
@given(
    xy=st.lists(numbers, min_size=12, max_size=12),
    std=st.lists(st.floats(0, 2.0**90, width=32), min_size=12, max_size=12),
)
def test_exact_rows_are_read_back_exactly(tmp_path_factory, xy, std):
    points, sigma = (np.tile(np.float32(values), 20).reshape(1, 120, 2) for values in (xy, std))
    path = tmp_path_factory.mktemp("law") / "a.csv"
    write_published(
        [rows_of(1, landmarks_xy=points, sigma_xy=sigma, height=90, width=90, model_id="m")], path, precision="exact"
    )
    back = read_back(path)
    assert np.array_equal(table.landmarks_of(back), points)
    assert np.array_equal(table.sigmas_of(back), sigma)


def test_predictions_are_rounded_as_published_ones_and_published_rows_stay(path):
    points = np.broadcast_to(np.float32([1.5, 2.0625]), (2, 120, 2))
    sigma = np.broadcast_to(np.float32([0.123456, 3.5]), (2, 120, 2))
    rows = rows_of(2, landmarks_xy=points, sigma_xy=sigma, model_id=["published", "abc"])
    write_published([rows], path, precision="published")
    published, predicted = cells(path)
    assert published["Landmarks (Mean)"].startswith("1.5,2.0625,1.5,")
    assert published["Landmarks (Std)"].startswith("0.123456,3.5,")
    assert predicted["Landmarks (Mean)"].startswith("2,2,2,")  # half to even, as the masks
    assert predicted["Landmarks (Std)"].startswith("0.12,3.50,0.12,")


def test_what_two_decimals_say_is_written_with_two(path):
    sigma = np.broadcast_to(np.float32([0.1, 3.25]), (1, 120, 2))
    write_published([rows_of(1, sigma_xy=sigma)], path, precision="exact")
    assert cells(path)[0]["Landmarks (Std)"].startswith("0.10,3.25,0.10,")


@pytest.mark.parametrize("precision", ["hundredths", "published", "exact"])
def test_the_masks_are_the_same_at_any_precision(tmp_path, precision):
    points = chest()[None] + np.float32([0.3, -0.2])
    write_published([rows_of(1, landmarks_xy=points, model_id="m")], tmp_path / "a.csv", precision=precision)
    (row,) = cells(tmp_path / "a.csv")
    for organ in ORGANS:
        drawn = plain_decode_rle(row[ORGAN_COLUMNS[organ.name]], (1024, 1024))
        assert np.array_equal(drawn, raster.fill_polygon(points[0, organ.nodes], (1024, 1024)))


def test_standard_deviations_that_are_no_number_are_named(path):
    sigma = np.full((1, 120, 2), 3.25, np.float32)
    sigma[0, 7, 1] = np.nan
    with pytest.raises(FormatError, match="image0000: standard deviations that are no number"):
        write_published([rows_of(1, sigma_xy=sigma)], path)


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_rows_are_written_as_they_were_published(name, shared_data, path):
    published = shared_data / "chexmask" / REAL[name]
    rows = read_back(published, SOURCES[name], "model")
    write_published([rows], path)
    again = read_back(path, SOURCES[name], "model")
    same = [column for column in rows.column_names if column != "rca_swapped"]  # they are written sorted
    assert again.select(same).equals(rows.select(same))
    theirs, ours = cells(published), cells(path)
    assert len(theirs) == len(ours) > 0
    for column in (*ORGAN_COLUMNS.values(),):
        assert [row[column] for row in ours] == [row[column] for row in theirs]
    assert [row["Landmarks (Mean)"] for row in ours] == [row["Landmarks"] for row in theirs]
