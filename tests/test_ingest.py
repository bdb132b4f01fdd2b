from __future__ import annotations

import functools
import gzip
import io
import tempfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import PUBLISHED_COLUMNS, chest, join_numbers, plain_decode_rle, published_csv, published_row
from cxu import anatomy, codec, csv_reader, files, ingest, ingest_parts, raster, store, table
from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError, WorkerError
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.published import Provenance

# numpy's warnings here would be a user's: a bad row must not print one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

NIH = SOURCES["chestxray8"]
PAIRS = np.array2string(chest(), threshold=1000)  # 120 lines
assert PAIRS.count("\n") == 119


@pytest.fixture
def home(tmp_path):
    return store.Home(tmp_path / "home")


def write(path, content):
    """Write text or bytes, packed where the name says so; a lone surrogate \\udcXX stands for the byte XX."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def good_rows(n_rows, *, start=0, **fields):
    return [published_row(f"{index:08d}_000.png", **fields) for index in range(start, start + n_rows)]


def save_csv(folder, rows, *args, name="rows.csv", **how):
    return write(folder / name, published_csv(rows, *args, **how))


def run(path, home, source=NIH, **options):
    return import_file(path, source, home, ImportOptions(**options))


def read(home, source="chestxray8", frame="model"):
    return home.open_source(source, frame).read()


def ids(home, source="chestxray8", frame="model"):
    return read(home, source, frame)["image_id"].to_pylist()


def snapshot(root):
    """Return every file below a folder with its bytes, and every empty folder; locks come and go."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if "cache" not in path.relative_to(root).parts and (path.is_file() or not any(path.iterdir()))
    }


def assert_nothing_there(home):
    assert home.listings() == []
    assert snapshot(home.root) == {}


# -- real rows

REAL = {
    "chestxray8": ("ChestX-Ray8.csv", "Image Index"),
    "mimic": ("MIMIC-CXR-JPG.csv", "dicom_id"),
    "padchest": ("Padchest.csv", "ImageID"),
}


@pytest.fixture(scope="module", params=REAL)
def real(request, shared_data, tmp_path_factory):
    """A real published file: as pandas reads it, and as imported with its masks."""
    source = SOURCES[request.param]
    file_name, id_column = REAL[source.name]
    path = shared_data / "chexmask" / file_name
    published = pd.read_csv(path, dtype=str, keep_default_na=False)
    home = store.Home(tmp_path_factory.mktemp(source.name))
    report = import_file(path, source, home, ImportOptions("model", keep_rle=True))
    return source, path, published.assign(id=published[id_column]), report, read(home, source.name)


@pytest.mark.shared
def test_the_real_files_hold_149_rows(shared_data):
    counts = [
        len(pd.read_csv(path, usecols=[0], dtype=str)) for path in sorted((shared_data / "chexmask").glob("*.csv"))
    ]
    assert len(counts) == 3
    assert sum(counts) == 149


@pytest.mark.shared
def test_real_rows_import_without_loss(real):
    source, _, published, report, rows = real
    assert report.problems == []
    assert report.imported == len(rows) == len(published)
    assert rows["image_id"].to_pylist() == [text.removesuffix(".png") for text in published["id"]]
    expected = np.array([[int(word) for word in text.split(",")] for text in published["Landmarks"]])
    np.testing.assert_array_equal(table.landmarks_of(rows).reshape(-1, 240), expected)
    stated = published[["Dice RCA (Mean)", "Dice RCA (Max)"]].to_numpy().astype(float)
    got = np.stack([table.scalar_column(rows, name) for name in ("rca_mean", "rca_max")], axis=1)
    np.testing.assert_array_equal(got, np.sort(stated, axis=1).astype(np.float32))
    assert rows["rca_swapped"].to_pylist() == (stated[:, 1] < stated[:, 0]).tolist()
    assert set(rows["height"].to_pylist()) == set(rows["width"].to_pylist()) == {1024}
    assert rows["sigma_xy"].null_count == len(rows)
    if source.name == "chestxray8":
        assert rows["patient_id"].to_pylist() == [text[:8] for text in published["id"]]


@pytest.mark.shared
def test_the_known_defects_of_real_rows_are_counted(real):
    source, _, published, report, _ = real
    n_blank = int((published["Height"] == "").sum())
    assert n_blank == (30 if source.name == "padchest" else 0)
    assert report.notes["rca_swapped"] == report.notes["size_assumed"] == n_blank
    assert set(report.notes) <= {"rca_swapped", "size_assumed", "out_of_frame"}


@pytest.mark.shared
def test_real_rows_import_alike_without_a_frame_and_without_masks(real, tmp_path):
    source, path, _, report, rows = real
    home = store.Home(tmp_path)
    again = run(path, home, source)
    assert (again.imported, again.notes, again.problems) == (report.imported, report.notes, [])
    assert read(home, source.name).equals(rows.select(table.SCHEMA.names))


@pytest.mark.shared
@pytest.mark.parametrize("organ", anatomy.ORGANS, ids=lambda organ: organ.name)
def test_masks_of_real_rows_are_redrawn_character_for_character(real, organ):
    _, _, published, _, rows = real
    shipped = rows[f"rle_{organ.name}"].to_pylist()
    assert shipped == published[organ.published_column].tolist()
    for landmarks_xy, text in zip(table.landmarks_of(rows), shipped, strict=True):
        mask = raster.fill_polygon(landmarks_xy[organ.nodes], (1024, 1024))
        assert codec.encode_rle(mask) == text
        plain = plain_decode_rle(text, (1024, 1024))
        np.testing.assert_array_equal(codec.decode_rle(text, (1024, 1024)), plain)
        np.testing.assert_array_equal(mask, plain)


# -- good files


def test_a_published_file_becomes_a_source(tmp_path, home):
    path = save_csv(tmp_path, good_rows(3))
    report = run(path, home, frame="model")
    assert (report.file, report.source, report.frame, report.imported) == ("rows.csv", "chestxray8", "model", 3)
    assert (report.problems, report.notes, report.already_there) == ([], {}, False)
    rows = read(home)
    assert rows.schema.names == table.SCHEMA.names
    assert rows["image_id"].to_pylist() == ["00000000_000", "00000001_000", "00000002_000"]
    np.testing.assert_array_equal(table.landmarks_of(rows), [chest()] * 3)
    np.testing.assert_array_equal(table.sigmas_of(rows), np.full((3, 120, 2), 3.25))
    assert set(rows["file_sha256"].to_pylist()) == {files.sha256_of(path)}
    (file,) = home.listing("chestxray8", "model").files
    assert (file.name, file.sha256, file.rows, file.malformed) == ("rows.csv", files.sha256_of(path), 3, 0)


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text,
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("Image Index,Dice RCA (Mean)", '"Image Index","Dice RCA (Mean)"'),
        lambda text: "\ufeff" + text.replace("Image Index", '"Image Index"').replace("\n", "\r\n"),
    ],
    ids=["plain", "BOM", "CRLF", "no newline at the end", "quoted header", "Excel"],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_spellings_of_a_file_give_the_same_rows(tmp_path, home, spell, name):
    path = write(tmp_path / name, spell(published_csv(good_rows(3))))
    report = run(path, home)
    assert (report.imported, report.problems) == (3, [])
    assert ids(home) == ["00000000_000", "00000001_000", "00000002_000"]
    assert read(home)["width"].to_pylist() == [1024] * 3
    np.testing.assert_array_equal(table.landmarks_of(read(home)), [chest()] * 3)


@pytest.mark.parametrize(
    "landmarks",
    [PAIRS, PAIRS.replace("\n", "\r\n"), str(chest().tolist()), join_numbers(chest(), 3), join_numbers(chest())],
    ids=["numpy", "numpy, CRLF", "JSON", "decimals", "integers"],
)
def test_every_spelling_of_landmarks_is_read_between_good_rows(tmp_path, home, landmarks):
    rows = [*good_rows(1), *good_rows(2, start=1, **{"Landmarks (Mean)": landmarks}), *good_rows(1, start=3)]
    report = run(save_csv(tmp_path, rows), home)
    assert report.problems == []
    np.testing.assert_array_equal(table.landmarks_of(read(home)), [chest()] * 4)


def test_a_file_of_pandas_with_other_names_and_order(tmp_path, home):
    extra = {"Unnamed: 0": "0", "Mean": "0.8", "Avg std": "3.25", "latents": join_numbers(np.full(64, 0.25), 2)}
    columns = [*extra, *PUBLISHED_COLUMNS[::-1]]
    rename = {
        "Landmarks (Mean)": "Mean.1",
        "Landmarks (Std)": "Std",
        "Image Index": "Image",
        "Left Lung": "LL_Mean",
        "Right Lung": "RL_Mean",
        "Heart": "H_Mean",
    }
    rows = [{**row, **extra} for row in good_rows(2)]
    run(save_csv(tmp_path, rows, columns, rename=rename), home, keep_rle=True)
    table_rows = read(home)
    np.testing.assert_array_equal(table.landmarks_of(table_rows), [chest()] * 2)
    np.testing.assert_array_equal(table.sigmas_of(table_rows), np.full((2, 120, 2), 3.25))
    np.testing.assert_array_equal(table.list_column(table_rows, "latent_sigma"), np.full((2, 64), 0.25))
    assert table_rows["rle_left_lung"].to_pylist() == ["5 2"] * 2
    assert table_rows["rle_right_lung"].to_pylist() == ["1 3 9 4"] * 2
    assert table_rows["rle_heart"].to_pylist() == ["20 1"] * 2


def test_masks_are_kept_only_on_request(tmp_path, home):
    path = save_csv(tmp_path, good_rows(1))
    run(path, home)
    assert not set(table.RLE_COLUMNS) & set(read(home).column_names)
    run(path, home, keep_rle=True)
    assert [read(home)[name].to_pylist() for name in table.RLE_COLUMNS] == [["1 3 9 4"], ["5 2"], ["20 1"]]


def test_the_original_chexmask_without_std(tmp_path, home):
    columns = [name for name in PUBLISHED_COLUMNS if name != "Landmarks (Std)"]
    path = save_csv(tmp_path, good_rows(2), columns, rename={"Landmarks (Mean)": "Landmarks"})
    assert run(path, home).imported == 2
    assert read(home)["sigma_xy"].null_count == 2


def test_chexpert_ids_and_image_frames(tmp_path, home):
    rows = [
        published_row(
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg",
            Height="2021.0",
            Width="1704.0",
            **{"Landmarks (Mean)": join_numbers(chest(1704, 2021))},
        )
    ]
    run(save_csv(tmp_path, rows, rename={"Image Index": "Path"}), home, SOURCES["chexpert"], frame="image")
    row = read(home, "chexpert", "image").to_pylist()[0]
    assert row["image_id"] == "train/patient00001/study1/view1_frontal"
    assert row["patient_id"] == "patient00001"
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (2021, [-158, 0], True)
    assert row["max_sigma_model_px"] == pytest.approx(3.25 * 1024 / 2021)


def test_a_source_of_ones_own(tmp_path, home):
    path = save_csv(tmp_path, good_rows(2), rename={"Image Index": "image_id"})
    assert run(path, home, source_or_custom("my_hospital"), frame="image").imported == 2
    assert read(home, "my_hospital", "image")["source"].to_pylist() == ["my_hospital"] * 2


def test_blank_lines_are_skipped_and_counted(tmp_path, home):
    first, second = good_rows(2)
    report = run(save_csv(tmp_path, ["", first, "", "", second, ""]), home)
    assert (report.imported, report.problems, report.notes) == (2, [], {"blank_lines": 4})


def test_a_row_without_a_size_may_be_read_by_the_others(tmp_path, home):
    rows = [*good_rows(1, Height="", Width=""), *good_rows(1, start=1)]
    report = run(save_csv(tmp_path, rows), home)
    assert report.notes == {"size_assumed": 1}
    assert read(home)["height"].to_pylist() == [1024, 1024]


def test_progress_counts_every_row_once(tmp_path, home, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    done = []
    path = save_csv(tmp_path, [*good_rows(10), "too,short", *good_rows(5, start=10), "too,short"])
    report = import_file(path, NIH, home, ImportOptions(), progress=done.append)
    assert sum(done) == report.imported + len(report.problems) == 17
    assert len(done) > 2


# -- the frame


def test_without_a_frame_another_size_needs_a_choice(tmp_path, home):
    rows = [*good_rows(2), *good_rows(1, start=2, Height="2500", Width="2048")]
    path = save_csv(tmp_path, rows)
    with pytest.raises(UsageError, match=r"rows\.csv, line 4: 2500 × 2048 px .*--frame model.*--frame image"):
        run(path, home)
    assert_nothing_there(home)
    assert run(path, home, frame="image").imported == 3


def test_without_a_frame_some_size_must_be_stated(tmp_path, home):
    path = save_csv(tmp_path, good_rows(2, Height="", Width=""))
    with pytest.raises(UsageError, match=r"rows\.csv states no image size: say --frame model or --frame image"):
        run(path, home)
    assert_nothing_there(home)
    assert run(path, home, frame="model").notes == {"size_assumed": 2}


def test_a_wrong_size_is_malformed_where_the_frame_was_said(tmp_path, home):
    rows = [*good_rows(2), *good_rows(1, start=2, Height="2500", Width="2048")]
    report = run(save_csv(tmp_path, rows), home, frame="model")
    assert report.imported == 2
    assert [problem.line for problem in report.problems] == [4]
    assert "no model frame, expected 1024 × 1024; for original resolution use --frame image" in str(report.problems[0])


def test_a_preprocessed_file_imported_as_images_is_noted(tmp_path, home):
    path = save_csv(tmp_path, good_rows(2), rename={"Image Index": "dicom_id"})
    assert run(path, home, SOURCES["mimic"], frame="image").notes == {"looks_preprocessed": 2}


# -- malformed rows


def one_row(image_id, **fields):
    return published_csv([published_row(image_id, **fields)]).split("\n", 1)[1].rstrip("\n")


NUMBERS = join_numbers(chest())
# a row as it stands in the file → its id as reported, and how the reason starts
MALFORMED = {
    "few.png,0.8,0.9": ("", "3 fields, expected 10"),
    one_row("many.png") + ",7": ("", "11 fields, expected 10"),
    "just some words": ("", "1 fields, expected 10"),
    "   ": ("", "1 fields, expected 10"),
    '"one\ntext\nof lines"': ("", "1 fields on 3 lines, expected 10"),
    one_row("comma.png").replace('"', "", 2): ("", "249 fields, expected 10"),
    one_row("byte\udcff.png").rsplit(",", 1)[0]: ("", "9 fields, expected 10"),
    one_row(""): ("", "the id (Image Index) is blank"),
    one_row("\udcff.png"): ("\ufffd.png", "the id '\ufffd.png' is not UTF-8 text"),
    one_row("a", **{"Landmarks (Mean)": None}): ("a", "landmarks: is blank"),
    one_row("b", **{"Landmarks (Mean)": NUMBERS[:-4]}): ("b", "landmarks: 239 numbers, expected 240"),
    one_row("c", **{"Landmarks (Mean)": NUMBERS + ",1"}): ("c", "landmarks: 241 numbers, expected 240"),
    one_row("d", **{"Landmarks (Mean)": "x" + NUMBERS[3:]}): ("d", "landmarks: value 1 is 'x', not a number"),
    one_row("e", **{"Landmarks (Mean)": "inf" + NUMBERS[3:]}): ("e", "landmarks: value 1 is inf, not a finite"),
    one_row("f", **{"Landmarks (Mean)": "[[1 2]\n ...\n [3 4]]"}): ("f", "landmarks: was abbreviated with '...'"),
    one_row("g", **{"Landmarks (Mean)": "\udcff" + NUMBERS[3:]}): ("g", "landmarks: value 1 is '\ufffd', not a number"),
    one_row("h", **{"Landmarks (Mean)": "9999" + NUMBERS[3:]}): ("h", "landmarks reach from (150, 200) to (9999, 800)"),
    one_row("i", **{"Landmarks (Std)": ""}): ("i", "sigma: is blank"),
    one_row("j", **{"Landmarks (Std)": "1,2"}): ("j", "sigma: 2 numbers, expected 240"),
    one_row("k", **{"Landmarks (Std)": "-1," + "2," * 239}): ("k", "standard deviation -1 is negative"),
    one_row("l", **{"Dice RCA (Mean)": "high"}): ("l", "rca_mean is 'high', not a number"),
    one_row("m", **{"Dice RCA (Mean)": "7"}): ("m", "rca_mean is 7, not within 0 to 1"),
    one_row("n", **{"Dice RCA (Max)": "-0.5"}): ("n", "rca_max is -0.5, not within 0 to 1"),
    one_row("o", Height="tall"): ("o", "height is 'tall', not a number"),
    one_row("p", Width="0"): ("p", "size 1024 × 0 is no image size"),
    one_row("q", Width="1024.5"): ("q", "size 1024 × 1024.5 is no image size"),
    one_row("r", Height="inf"): ("r", "size inf × 1024 is no image size"),
    one_row("s", Height="512"): ("s", "512 × 1024 px (height × width) is no model frame"),
    ",".join(PUBLISHED_COLUMNS): ("Image Index", "landmarks: value 1 is 'Landmarks', not a number"),
}


def file_of(pieces, newline="\n"):
    """Join a header and rows of text; return the text and the line each row starts on."""
    lines, text = [], published_csv([], newline=newline)
    for piece in pieces:
        lines.append(text.count("\n") + 1)
        text += piece + newline
    return text, lines


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(("name", "block_bytes"), [("rows.csv", 1 << 20), ("rows.csv", 8000), ("rows.csv.gz", 8000)])
@pytest.mark.parametrize("keep_rle", [False, True])
def test_every_malformed_row_is_reported_with_its_line_and_the_others_kept(
    tmp_path, home, monkeypatch, newline, name, block_bytes, keep_rle
):
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", block_bytes)
    pieces = [one_row("first", **{"Landmarks (Mean)": PAIRS}), ""]
    for index, row in enumerate(MALFORMED):
        pieces += [row, one_row(f"good{index}", **({"Landmarks (Mean)": PAIRS} if index % 3 else {}))]
    pieces += [*MALFORMED][::-1]
    text, lines = file_of(pieces, newline)
    assert text.count("\n") > 4 * len(pieces)
    report = run(write(tmp_path / name, text), home, frame="model", keep_rle=keep_rle)
    found = [(problem.file, problem.line, problem.image_id, problem.reason) for problem in report.problems]
    expected = [
        (name, line, *MALFORMED[piece]) for line, piece in zip(lines, pieces, strict=True) if piece in MALFORMED
    ]
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row for row, (*_, reason) in zip(found, expected, strict=True) if not row[3].startswith(reason)] == []
    assert ids(home) == ["first", *(f"good{index}" for index in range(len(MALFORMED)))]
    assert report.imported == len(MALFORMED) + 1
    assert report.notes == {"blank_lines": 1}
    (file,) = home.listing("chestxray8", "model").files
    assert (file.rows, file.malformed) == (report.imported, 2 * len(MALFORMED))


kinds = st.sampled_from(["good", "brackets", "blank", "short", "long", "bad number", "comment", "lines"])


@settings(max_examples=40)
@given(
    st.lists(kinds, min_size=1, max_size=25), st.sampled_from([4096, 8000, 1 << 20]), st.sampled_from(["\n", "\r\n"])
)
def test_lines_are_those_of_the_text_whatever_the_file(kinds_of_rows, block_bytes, newline):
    columns = [*PUBLISHED_COLUMNS, "comment"]
    text, expected = published_csv([], columns, newline=newline), []
    for index, kind in enumerate(kinds_of_rows):
        line = text.count("\n") + 1
        row = {**published_row(f"id{index}"), "comment": "two\nlines" if kind == "comment" else ""}
        if kind == "brackets":
            row["Landmarks (Mean)"] = PAIRS
        if kind == "bad number":
            row["Landmarks (Mean)"] = "1,x"
        written = published_csv([row], columns, newline=newline).split(newline, 1)[1]
        special = {"blank": "", "short": "a,b", "long": "," * 30, "lines": '"a\nb\nc",d'}
        text += written if kind not in special else special[kind] + newline
        if kind in {"short", "long", "bad number", "lines"}:
            expected.append(line)
    n_good = sum(kind in {"good", "brackets", "comment"} for kind in kinds_of_rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "_BLOCK_BYTES", block_bytes)
        path, home = write(Path(folder) / "rows.csv", text), store.Home(Path(folder) / "home")
        if not n_good:
            message = f"{len(expected)} malformed" if expected else "holds no rows"
            with pytest.raises(FormatError, match=message):
                run(path, home)
            return
        report = run(path, home)
        assert report.imported == len(read(home)) == n_good
    assert [problem.line for problem in report.problems] == expected
    assert report.notes["blank_lines"] == kinds_of_rows.count("blank")


def test_foreign_bytes_in_a_mask_matter_only_where_masks_are_kept(tmp_path, home):
    path = save_csv(tmp_path, [*good_rows(1), *good_rows(1, start=1, Heart="1 \udcff")])
    assert run(path, home).problems == []
    (problem,) = run(path, home, keep_rle=True).problems
    assert (problem.line, problem.reason) == (3, "rle_heart is not UTF-8 text")
    assert ids(home) == ["00000000_000"]


def test_ids_may_hold_any_character(tmp_path, home):
    # the bytes of the second id stand on both sides of what is read at once
    names = ["été/Ünïcode", "\N{GRINNING FACE}" * 300_000]
    path = save_csv(tmp_path, [published_row(name) for name in names])
    assert run(path, home).problems == []
    assert ids(home) == names


def test_a_malformed_row_reads_as_a_sentence(tmp_path, home):
    report = run(save_csv(tmp_path, [*good_rows(1), "a,b", *good_rows(1, start=1, Height="x")]), home)
    assert [str(problem) for problem in report.problems] == [
        "rows.csv, line 3: 2 fields, expected 10",
        "rows.csv, line 4 (00000001_000.png): height is 'x', not a number",
    ]


def test_strict_stops_at_the_first_malformed_row(tmp_path, home):
    path = save_csv(tmp_path, [*good_rows(2), *good_rows(1, start=2, Height="x"), "a,b"])
    with pytest.raises(FormatError, match=r"rows\.csv, line 4 \(00000002_000\.png\): height .*--strict; nothing was"):
        run(path, home, strict=True)
    assert_nothing_there(home)
    with pytest.raises(FormatError, match=r"rows\.csv, line 2: 2 fields"):
        run(save_csv(tmp_path, ["a,b", *good_rows(1, Height="x")]), home, strict=True)
    assert run(save_csv(tmp_path, good_rows(2)), home, strict=True).imported == 2


def test_a_file_of_malformed_rows_only_fails(tmp_path, home):
    path = save_csv(tmp_path, [*good_rows(3, Height="x"), "a,b"])
    with pytest.raises(
        FormatError, match=r"no row imported, 4 malformed; the first: rows\.csv, line 2 .*height is 'x'"
    ):
        run(path, home)
    assert_nothing_there(home)


def test_a_quote_left_open_at_the_end_is_reported(tmp_path, home):
    text, lines = file_of([one_row("a"), one_row("b"), one_row("c")])
    report = run(write(tmp_path / "rows.csv", text[: text.rindex('"')]), home)
    assert ids(home) == ["a", "b"]
    assert [problem.line for problem in report.problems] == [lines[2]]
    assert report.problems[0].reason.endswith("expected 10: a quote is left open")


def test_a_quote_left_open_in_the_middle_costs_two_rows_and_says_so(tmp_path, home):
    broken = ",".join(one_row("b").rsplit('",', 1))
    pieces = [one_row("a", **{"Landmarks (Mean)": PAIRS}), broken, one_row("c"), one_row("d"), "x,y"]
    text, lines = file_of(pieces)
    report = run(write(tmp_path / "rows.csv", text), home)
    assert ids(home) == ["a", "d"]
    assert [problem.line for problem in report.problems] == [lines[1], lines[4]]
    assert "on 2 lines, expected 10: a quote is left open" in report.problems[0].reason


# -- files that are none


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is no published CSV: its first line is ''"),
        ("hello\nworld\n", "is no published CSV: its first line is 'hello"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "is no published CSV"),
        (b"PAR1" + bytes(1000), "is no published CSV"),
        (published_csv(good_rows(2), newline="\r"), "is no published CSV"),
        ("a,b\n1,2\n", "no column for the id of ChestX-ray8: expected 'Image Index' .*found 'a', 'b'"),
        ("Image Index,x\n1,2\n", "no column for the landmarks"),
        (published_csv([]), "holds no rows, only a header"),
        (published_csv([]).rstrip("\n"), "holds no rows, only a header"),
        (published_csv(["", ""]), "holds no rows, only a header"),
    ],
    ids=["empty", "text", "PNG", "Parquet", "CR", "other CSV", "no landmarks", "header", "header line", "blank lines"],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_what_is_no_published_file_is_refused(tmp_path, home, content, message, name):
    with pytest.raises(FormatError, match=rf"{name}.*{message}|{message}"):
        run(write(tmp_path / name, content), home)
    assert_nothing_there(home)


@functools.cache
def random_csv(n_rows):
    """Return a published CSV of random numbers, which hardly packs."""
    numbers = np.random.default_rng(5).integers(100, 900, (n_rows, 240)).astype(str).tolist()
    return published_csv(
        published_row(str(index), **{"Landmarks (Mean)": ",".join(row)}) for index, row in enumerate(numbers)
    )


@pytest.mark.parametrize("n_rows", [2, 3000])
@pytest.mark.parametrize("damage", ["truncated", "altered", "altered at the end", "not packed"])
def test_a_damaged_archive_is_refused(tmp_path, home, n_rows, damage):
    text = random_csv(n_rows)
    packed = bytearray(gzip.compress(text.encode(), 1))
    assert (len(packed) > csv_reader._MAX_HEADER_BYTES) == (n_rows == 3000)
    if damage == "truncated":
        packed = packed[:-50]
    elif damage == "not packed":
        packed = bytearray(text.encode())
    else:
        packed[-6 if damage == "altered at the end" else len(packed) // 2] ^= 0xFF
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(packed)
    with pytest.raises(FormatError, match=r"rows\.csv\.gz: .*|rows\.csv\.gz is no published CSV") as caught:
        run(path, home)
    assert "cannot be read past line" in str(caught.value)
    assert_nothing_there(home)


@pytest.mark.parametrize("name", ["missing.csv", "folder"])
def test_a_file_that_does_not_exist_is_a_missing_input(tmp_path, home, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingInputError, match=f"{name} does not exist or is no file"):
        run(tmp_path / name, home)


# -- duplicates


def test_an_id_that_stands_twice_is_an_error_with_its_lines(tmp_path, home):
    pieces = [one_row("a", **{"Landmarks (Mean)": PAIRS}), one_row("b.png"), "bad,row", one_row("c"), one_row("b")]
    text, lines = file_of([*pieces, one_row("a.jpg")])
    with pytest.raises(DuplicateIdError) as caught:
        run(write(tmp_path / "rows.csv", text), home)
    message = str(caught.value)
    assert message.startswith("rows.csv: 2 image ids of chestxray8 stand more than once: ")
    assert f"'a' on lines {lines[0]}, {lines[5]}" in message
    assert f"'b' on lines {lines[1]}, {lines[4]}" in message
    assert message.endswith(". Nothing was imported; leave one row of each and try again.")
    assert_nothing_there(home)


def test_of_many_duplicates_three_are_named(tmp_path, home):
    with pytest.raises(DuplicateIdError, match=r"5 image ids .*'00000002_000' on lines 4, 9 …\."):
        run(save_csv(tmp_path, [*good_rows(5), *good_rows(5)]), home)


def test_an_id_that_was_imported_before_is_an_error(tmp_path, home):
    run(save_csv(tmp_path, good_rows(3), name="first.csv"), home)
    before = snapshot(home.root)
    path = save_csv(tmp_path, good_rows(3, start=2), name="second.csv")
    with pytest.raises(DuplicateIdError, match=r"1 image ids .*'00000002_000', already imported from first\.csv"):
        run(path, home)
    assert snapshot(home.root) == before


def test_the_same_ids_in_another_frame_or_source_are_none(tmp_path, home):
    path = save_csv(tmp_path, good_rows(2))
    run(path, home, frame="model")
    run(path, home, frame="image")
    run(save_csv(tmp_path, good_rows(2), rename={"Image Index": "image_id"}), home, source_or_custom("my_hospital"))
    assert [(listing.source, listing.frame, listing.rows) for listing in home.listings()] == [
        ("chestxray8", "image", 2),
        ("chestxray8", "model", 2),
        ("my_hospital", "model", 2),
    ]


# -- importing again


def test_an_identical_file_again_changes_nothing(tmp_path, home):
    path = save_csv(tmp_path, [*good_rows(3), "bad,row"])
    run(path, home)
    before = snapshot(home.root)
    times = {path: path.stat().st_mtime_ns for path in home.root.rglob("*")}
    renamed = path.rename(tmp_path / "other name.csv")
    report = run(renamed, home)
    assert (report.already_there, report.imported) == (True, 3)
    assert snapshot(home.root) == before
    assert {path: path.stat().st_mtime_ns for path in home.root.rglob("*")} == times


def test_another_file_adds_its_rows(tmp_path, home):
    run(save_csv(tmp_path, good_rows(2), name="first.csv"), home)
    run(save_csv(tmp_path, good_rows(2, start=2), name="second.csv"), home, keep_rle=True)
    assert ids(home) == [f"0000000{index}_000" for index in range(4)]
    assert [file.name for file in home.listing("chestxray8", "model").files] == ["first.csv", "second.csv"]
    assert read(home)["rle_heart"].to_pylist() == [None, None, "20 1", "20 1"]


def test_asking_for_masks_later_replaces_the_rows_of_that_file_only(tmp_path, home):
    first = save_csv(tmp_path, good_rows(2), name="first.csv")
    run(first, home)
    run(save_csv(tmp_path, good_rows(2, start=2), name="second.csv"), home)
    report = run(first, home, keep_rle=True)
    assert (report.already_there, report.imported) == (False, 2)
    assert sorted(ids(home)) == [f"0000000{index}_000" for index in range(4)]
    kept = {file.name: file.rle_kept for file in home.listing("chestxray8", "model").files}
    assert kept == {"first.csv": True, "second.csv": False}
    assert run(first, home).already_there


def test_a_part_that_is_gone_is_imported_again(tmp_path, home):
    path = save_csv(tmp_path, good_rows(3))
    run(path, home)
    before = snapshot(home.root)
    next(home.source_folder("chestxray8", "model").glob("part-*")).unlink()
    assert not run(path, home).already_there
    assert snapshot(home.root) == before


def test_a_part_of_another_file_that_is_gone_is_named(tmp_path, home):
    run(save_csv(tmp_path, good_rows(3), name="first.csv"), home)
    next(home.source_folder("chestxray8", "model").glob("part-*")).unlink()
    with pytest.raises(MissingInputError, match=r"a part of .* is gone; import first\.csv again \(.*part-"):
        run(save_csv(tmp_path, good_rows(3, start=3), name="second.csv"), home)


def test_two_imports_give_the_same_bytes(tmp_path):
    path = save_csv(tmp_path, [*good_rows(5), "bad,row"])
    snapshots = []
    for name in ("one", "two"):
        home = store.Home(tmp_path / name)
        run(path, home, keep_rle=True)
        snapshots.append(snapshot(home.root))
    assert len(snapshots[0]) == 2
    assert snapshots[0] == snapshots[1]


# -- shards and limits


@pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 8, 10])
def test_parts_are_cut_at_the_shard_size(tmp_path, home, monkeypatch, n_rows):
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    run(save_csv(tmp_path, good_rows(n_rows)), home)
    parts = home.listing("chestxray8", "model").parts
    assert [part.rows for part in parts] == [4] * (n_rows // 4) + [n_rows % 4] * (n_rows % 4 > 0)
    assert [shard.rows for shard in home.open_source("chestxray8", "model").shards()] == [part.rows for part in parts]
    folder = home.source_folder("chestxray8", "model")
    assert [files.sha256_of(folder / part.name) for part in parts] == [part.sha256 for part in parts]
    assert ids(home) == [f"{index:08d}_000" for index in range(n_rows)]


def test_parts_do_not_depend_on_how_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 7)
    rows = [*good_rows(9), "bad,row", "", *good_rows(20, start=9, **{"Landmarks (Mean)": PAIRS}), *["x"] * 900]
    path = save_csv(tmp_path, rows)
    snapshots, lines = [], []
    for block_bytes in (4096, 10_000, 1 << 22):
        monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", block_bytes)
        home = store.Home(tmp_path / str(block_bytes))
        lines.append([problem.line for problem in run(path, home).problems])
        snapshots.append(snapshot(home.root))
    assert snapshots[0] == snapshots[1] == snapshots[2]
    assert lines[0] == lines[1] == lines[2]
    assert len(lines[0]) == 901


@pytest.mark.parametrize(("limit", "n_rows", "n_problems"), [(1, 1, 0), (3, 3, 1), (4, 4, 1), (99, 6, 2)])
@pytest.mark.parametrize("block_bytes", [4096, 1 << 20])
def test_limit_rows_takes_the_first(tmp_path, home, monkeypatch, limit, n_rows, n_problems, block_bytes):
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", block_bytes)
    path = save_csv(tmp_path, [*good_rows(2), "bad,row", *good_rows(4, start=2), "bad,row"])
    report = run(path, home, limit_rows=limit)
    assert (report.imported, len(report.problems)) == (n_rows, n_problems)
    assert ids(home) == [f"{index:08d}_000" for index in range(n_rows)]
    assert home.listing("chestxray8", "model").partial == limit


def test_a_limited_import_gives_way_to_the_whole_file(tmp_path, home):
    path = save_csv(tmp_path, good_rows(5))
    run(path, home, limit_rows=2)
    report = run(path, home)
    assert (report.already_there, report.imported) == (False, 5)
    assert home.listing("chestxray8", "model").partial is None
    alone = store.Home(tmp_path / "alone")
    run(path, alone)
    assert snapshot(home.root) == snapshot(alone.root)
    assert run(path, home, limit_rows=2).already_there


# -- failures in the middle


def count_conversions(monkeypatch):
    """Return a list that gets a name for every part that is converted rather than taken as it is."""
    convert, names = ingest_parts.convert_rows, []

    def counting(texts, *rest):
        names.append(texts["id"][0].as_py())
        return convert(texts, *rest)

    monkeypatch.setattr(ingest_parts, "convert_rows", counting)
    return names


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), WorkerError("killed")])
@pytest.mark.parametrize("before", [0, 3])
def test_an_interrupted_import_goes_on_with_the_parts_that_are_done(tmp_path, home, monkeypatch, error, before):
    alone = store.Home(tmp_path / "alone")
    for where in (home, alone):
        if before:
            run(save_csv(tmp_path, good_rows(before), name="first.csv"), where)
    monkeypatch.setattr(store, "SHARD_ROWS", 2)
    second = save_csv(
        tmp_path, [*good_rows(7, start=before), "bad,row", *good_rows(2, start=before + 7)], name="second.csv"
    )
    undisturbed = run(second, alone)
    there = [listing.rows for listing in home.listings()]
    write_table, written = store.write_table, []

    def fail_at_the_third(rows, path):
        written.append(path)
        if len(written) == 3:
            raise error
        write_table(rows, path)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_table", fail_at_the_third)
        with pytest.raises(type(error)):
            run(second, home)
    assert [listing.rows for listing in home.listings()] == there
    converted = count_conversions(monkeypatch)
    report = run(second, home)
    assert 0 < len(converted) <= 3  # while one part fails, the next may be finished
    assert (report.imported, report.problems, report.notes) == (9, undisturbed.problems, undisturbed.notes)
    assert snapshot(home.root) == snapshot(alone.root)


@pytest.mark.parametrize("error", [FormatError("no"), UsageError("no")])
def test_an_import_that_cannot_succeed_leaves_nothing(tmp_path, home, monkeypatch, error):
    monkeypatch.setattr(store, "SHARD_ROWS", 2)
    monkeypatch.setattr(ingest, "check_duplicates", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        run(save_csv(tmp_path, good_rows(9)), home)
    assert_nothing_there(home)


def test_what_an_interrupted_import_left_is_no_source_and_goes_with_the_next_one(tmp_path, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "check_duplicates", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(save_csv(tmp_path, good_rows(3)), home)
    assert home.listings() == []
    run(save_csv(tmp_path, good_rows(2), name="other.csv"), home)
    assert len(ids(home)) == 2
    assert not list(home.source_folder("chestxray8", "model").glob(f"{files.TEMP_PREFIX}*"))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_workers_change_nothing(tmp_path, home, monkeypatch, packed):
    monkeypatch.setattr(store, "SHARD_ROWS", 8)
    rows = [*good_rows(20), "bad,row", *good_rows(21, start=20), "", *good_rows(9, start=41, landmarks=PAIRS)]
    path = save_csv(tmp_path, rows, name=f"rows.csv{packed}")
    alone = store.Home(tmp_path / "alone")
    reports = [import_file(path, NIH, where, ImportOptions(), workers=n) for where, n in ((alone, 1), (home, 2))]
    assert reports[0] == reports[1]
    assert snapshot(home.root) == snapshot(alone.root)
    assert [part.rows for part in home.listing("chestxray8", "model").parts] == [8] * 5 + [
        7,
        3,
    ]  # a blank line took a place


def test_a_failure_while_publishing_leaves_what_counted_before(tmp_path, home, monkeypatch):
    run(save_csv(tmp_path, good_rows(3), name="first.csv"), home)
    second = save_csv(tmp_path, good_rows(2, start=3), name="second.csv")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run(second, home)
    assert ids(home) == [f"0000000{index}_000" for index in range(3)]
    run(second, home)
    alone = store.Home(tmp_path / "alone")
    for name in ("first.csv", "second.csv"):
        run(tmp_path / name, alone)
    assert snapshot(home.root) == snapshot(alone.root)


def test_malformed_rows_of_a_file_already_there_are_counted_again(tmp_path, home):
    path = save_csv(tmp_path, [*good_rows(3), "bad,row"])
    assert (run(path, home).malformed, run(path, home).malformed) == (1, 1)
    assert (run(path, home).already_there, run(path, home).problems) == (True, [])


def test_imports_into_one_source_wait_for_each_other(tmp_path, home, monkeypatch):
    """The first stops in the middle of its conversion until the second waits."""
    convert, started, waits = ingest.convert_stream, threading.Event(), threading.Event()

    def slow(stream, folder, report, *rest):
        if report.file == "first.csv":
            started.set()
            assert waits.wait(20)
        return convert(stream, folder, report, *rest)

    def warn(message, source):
        assert (message % source) == "waiting for another fetch or import of chestxray8"
        waits.set()

    monkeypatch.setattr(ingest, "convert_stream", slow)
    monkeypatch.setattr(store.logger, "warning", warn)
    first = save_csv(tmp_path, good_rows(2), name="first.csv")
    second = save_csv(tmp_path, good_rows(2, start=2), name="second.csv")
    thread = threading.Thread(target=run, args=(first, home))
    thread.start()
    assert started.wait(20)
    run(second, home)
    thread.join(20)
    assert [file.name for file in home.listing("chestxray8", "model").files] == ["first.csv", "second.csv"]
    assert len(ids(home)) == 4


def test_an_import_clears_what_a_killed_one_of_another_file_left(tmp_path, home):
    (home.staging("chestxray8", "model", "a" * 64) / "part-0.parquet").write_bytes(b"half")
    run(save_csv(tmp_path, good_rows(3)), home)
    names = sorted(path.name[:5] for path in home.source_folder("chestxray8", "model").iterdir())
    assert names == ["part-", "sourc"]


def test_what_a_killed_import_left_is_cleared_by_the_next(tmp_path, home):
    path = save_csv(tmp_path, good_rows(3))
    staged = home.staging("chestxray8", "model", files.sha256_of(path))
    (staged / "part-0.parquet").write_bytes(b"half")
    run(path, home)
    alone = store.Home(tmp_path / "alone")
    run(path, alone)
    assert snapshot(home.root) == snapshot(alone.root)


# -- streams


def test_a_stream_is_imported_with_its_provenance(home):
    stream = io.BytesIO(published_csv(good_rows(2)).encode())
    provenance = Provenance("f" * 64, "owner/repo", "main")
    report = ingest.import_stream(stream, "a/rows.csv", NIH, home, ImportOptions("image"), provenance)
    assert report.imported == 2
    row = read(home, frame="image").to_pylist()[1]
    assert (row["file_sha256"], row["repo"], row["revision"]) == ("f" * 64, "owner/repo", "main")
    (file,) = home.listing("chestxray8", "image").files
    assert (file.name, file.sha256, file.repo, file.revision) == ("a/rows.csv", "f" * 64, "owner/repo", "main")


def test_a_stream_may_take_the_place_of_what_was_there(tmp_path, home):
    run(save_csv(tmp_path, good_rows(3)), home, frame="image")
    stream = io.BytesIO(published_csv(good_rows(2)).encode())
    ingest.import_stream(stream, "new.csv", NIH, home, ImportOptions("image"), Provenance("e" * 64), replace=True)
    assert ids(home, frame="image") == ["00000000_000", "00000001_000"]
    assert len(list(home.source_folder("chestxray8", "image").glob("part-*"))) == 1


def test_a_failed_replacement_leaves_what_was_there(tmp_path, home):
    run(save_csv(tmp_path, good_rows(3)), home, frame="image")
    before = snapshot(home.root)
    stream = io.BytesIO(published_csv(["bad,row"]).encode())
    with pytest.raises(FormatError):
        ingest.import_stream(stream, "new.csv", NIH, home, ImportOptions("image"), Provenance("e" * 64), replace=True)
    assert snapshot(home.root) == before
