"""Conditions, id lists and label tables."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_rows
from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError
from cxu.labels import Condition, IdList, Labels, common_type, label_columns, open_labels, parse_condition, satisfies

NIH, CHEXPERT, PADCHEST = SOURCES["chestxray8"], SOURCES["chexpert"], SOURCES["padchest"]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text file and returns its path."""

    def write_file(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write_file


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("view=PA", Condition("view", "=", ("PA",))),
        ("view==PA", Condition("view", "=", ("PA",))),
        (" AP/PA = PA , AP ", Condition("AP/PA", "=", ("PA", "AP"))),
        ("Patient Age>=18", Condition("Patient Age", ">=", ("18",))),
        ("rca_mean<0.8", Condition("rca_mean", "<", ("0.8",))),
        ("a<=1", Condition("a", "<=", ("1",))),
        ("a>1", Condition("a", ">", ("1",))),
        ("sex!=M", Condition("sex", "!=", ("M",))),
    ],
)
def test_conditions_are_read(text, expected):
    assert parse_condition(text) == expected


@pytest.mark.parametrize("text", ["", "view", "view=", "=PA", "view=PA,", "view=,PA", "view!"])
def test_conditions_without_column_operator_or_value_are_refused(text):
    with pytest.raises(UsageError, match="expected column, operator"):
        parse_condition(text)


def test_a_list_has_no_size():
    with pytest.raises(UsageError, match=r"--where 'Age<3,4': a list of values goes with = and != only"):
        parse_condition("Age<3,4")


def which(condition, **columns):
    """Return the numbers of the rows of these columns that satisfy the condition."""
    return np.flatnonzero(satisfies(pa.table(columns), parse_condition(condition))).tolist()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("view=PA", [0, 3]),
        ("view=PA,AP", [0, 1, 3]),
        ("view!=PA", [1, 4]),
        ("view!=PA,AP", [4]),
        ("view=XX", []),
        ("view>=LL", [0, 3]),
    ],
)
def test_text_conditions_leave_blank_rows_out(condition, rows):
    assert which(condition, view=["PA", "AP", None, "PA", "LA"]) == rows


@pytest.mark.parametrize(
    ("condition", "rows"),
    [("age=7", [0, 3]), ("age!=7", [1]), ("age<30", [0, 3]), ("age>=7", [0, 1, 3]), ("age=7.0,30", [0, 1, 3])],
)
@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.decimal128(22, 1)], ids=str)
def test_number_conditions_compare_numbers(condition, rows, kind):
    assert which(condition, age=pa.array([7, 30, None, 7], pa.decimal128(20)).cast(kind)) == rows


def test_a_typed_decimal_equals_a_stored_float32():
    column = pa.array([0.7, np.nextafter(np.float32(0.7), np.float32(0)), 0.8], pa.float32())
    assert which("rca_mean=0.7", rca_mean=column) == [0]
    assert which("rca_mean>=0.7", rca_mean=column) == [0, 2]
    assert which("rca_mean<0.7", rca_mean=column) == [1]


@pytest.mark.parametrize(("text", "rows"), [("true", [0]), ("True", [0]), ("1", [0]), ("yes", [0]), ("no", [1])])
def test_truth_has_several_spellings(text, rows):
    assert which(f"flag={text}", flag=[True, False, None]) == rows


def test_dates_and_categories_compare_as_text():
    days = pa.array(["2019-12-31", "2020-01-01"]).cast(pa.date32())
    assert which("day>=2020-01-01", day=days) == [1]
    assert which("view=PA", view=pa.array(["PA", "AP", None]).dictionary_encode()) == [0]
    assert which("size>=10", size=pa.array([9, 10]).dictionary_encode()) == [1]
    assert which("nothing=1", nothing=pa.nulls(2)) == []


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("veiw=PA", "column 'veiw' is not there; expected one of age, flag"),
        ("lists=1", "column 'lists' holds lists; expected one of age, flag"),
        ("age=old", "age holds numbers, 'old' is none"),
        ("flag=maybe", "flag holds true and false, 'maybe' is neither"),
    ],
)
def test_conditions_that_cannot_be_asked(condition, message):
    with pytest.raises(UsageError, match=message):
        which(condition, age=[1], flag=[True], lists=[[1]])


# --- id lists --------------------------------------------------------------------------------------------------------


def nih(*ids):
    return make_rows(len(ids), image_id=list(ids))


@pytest.mark.parametrize(
    "text",
    [
        "00000001_000\n00000003_000\n",
        "00000001_000.png\r\n00000003_000.PNG",
        "\ufeffImage Index\n00000001_000.png\n00000003_000.png\n",
        "image_id\n00000001_000\n\n  00000003_000  \n",
        '"Image Index","Finding Labels"\n"00000001_000.png","No, none"\n"00000003_000.png",Mass\n',
        "00000001_000.png,Mass\n00000003_000.png,Nodule\n",
        ",ImageID,Age\n0,00000001_000.png,3\n1,00000003_000.png,4\n",
    ],
    ids=["plain", "suffixes", "header", "blank lines", "csv", "csv without header", "id column further on"],
)
def test_ids_are_read_from_lists_and_tables(write, text):
    ids = IdList(write("ids.txt", text))
    assert ids.among(nih("00000001_000", "00000002_000", "00000003_000")).tolist() == [True, False, True]
    assert ids.unmatched() == []


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0/", "CheXpert-v1.0-small/", "/data/CheXpert-v1.0/"])
def test_chexpert_ids_match_behind_any_prefix(write, prefix):
    ids = IdList(write("ids.txt", f"Path\n{prefix}train/patient00001/study1/view1_frontal.jpg\n"))
    rows = make_rows(1, source="chexpert", image_id=["train/patient00001/study1/view1_frontal"])
    assert ids.among(rows).tolist() == [True]


def test_unmatched_ids_are_told_as_they_are_written(write):
    ids = IdList(write("ids.txt", "b.png\nzz.png\na\nyy\n"))
    ids.among(nih("a", "x"))
    ids.among(nih("b"))
    assert ids.unmatched() == ["zz.png", "yy"]


def test_ids_of_no_rows_are_all_unmatched(write):
    ids = IdList(write("ids.txt", "a\nb\n"))
    assert ids.among(nih()).tolist() == []
    assert ids.unmatched() == ["a", "b"]


def test_every_source_has_its_own_rule_for_ids(write):
    ids = IdList(write("ids.txt", "x/train/a/b/c.jpg\n"))
    rows = make_rows(2, source=pa.array(["chexpert", "vindr"]), image_id=["train/a/b/c", "train/a/b/c"])
    assert ids.among(rows).tolist() == [True, False]


def test_id_files_that_cannot_be_used(write, tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        IdList(tmp_path / "none.txt")
    with pytest.raises(FormatError, match="holds no id"):
        IdList(write("empty.txt", "Image Index\n\n"))
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"a\n"))
    with pytest.raises(FormatError, match="is no text file"):
        IdList(tmp_path / "packed.txt")


# --- label tables ----------------------------------------------------------------------------------------------------

CSV = "Image Index,View,Age,Score,Seen,Note\n" + "".join(
    [
        "00000001_000.png,PA,58,0.5,True,\n",
        '00000002_000.png,AP,,1,False,"two\nlines"\n',
        "00000009_000.png,PA,3,2,True,x\n",
    ]
)


@pytest.fixture(params=["csv", "csv.gz", "parquet"])
def label_file(request, write, tmp_path):
    path = tmp_path / f"labels.{request.param}"
    if request.param == "csv":
        return write(path.name, CSV)
    if request.param == "csv.gz":
        path.write_bytes(gzip.compress(CSV.encode()))
        return path
    columns = {
        "Image Index": ["00000001_000.png", "00000002_000.png", "00000009_000.png"],
        "View": pa.array(["PA", "AP", "PA"]).dictionary_encode(),
        "Age": [58, None, 3],
        "Score": [0.5, 1.0, 2.0],
        "Seen": [True, False, True],
        "Note": [None, "two\nlines", "x"],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_labels_keep_columns_and_types(label_file):
    labels = Labels(label_file, NIH)
    columns, matched = labels.take(nih("00000002_000", "00000007_000", "00000001_000"))
    assert matched.tolist() == [True, False, True]
    assert columns.to_pydict() == {
        "View": ["AP", None, "PA"],
        "Age": [None, None, 58],
        "Score": [1.0, None, 0.5],
        "Seen": [False, None, True],
        "Note": ["two\nlines", None, None],
    }
    assert [str(field.type) for field in columns.schema] == ["string", "int64", "double", "bool", "string"]
    assert (labels.n_lines, labels.n_unmatched) == (3, 1)


def test_labels_belong_to_one_source(label_file):
    labels = Labels(label_file, NIH)
    _, matched = labels.take(make_rows(1, source="vindr", image_id=["00000001_000"]))
    assert not matched.any()
    assert labels.n_unmatched == 3


def test_ids_of_digits_stay_text(write):
    digits = "216840111366964013217898866992011332134237003"
    path = write("labels.csv", f"imageid,View\n{digits},PA\n007,AP\n")
    columns, _ = Labels(path, PADCHEST).take(make_rows(2, source="padchest", image_id=["007", digits]))
    assert columns["View"].to_pylist() == ["AP", "PA"]


def test_names_that_are_taken_get_a_prefix(write):
    path = write("labels.csv", "Image Index,view,height,label_view,Sex,Sex\na,1,2,3,M,F\n")
    assert Labels(path, NIH).columns.to_pydict() == {
        "label_view": [1],
        "label_height": [2],
        "label_label_view": [3],
        "Sex": ["M"],
        "label_Sex": ["F"],
    }


def test_columns_that_change_their_kind_far_down_are_read(write):
    lines = "".join(f"{number:08d},\n" for number in range(200_000))
    path = write("labels.csv", f"Image Index,Note\n{lines}last,late\n")
    columns, _ = Labels(path, NIH).take(nih("last", "00000000"))
    assert columns["Note"].to_pylist() == ["late", None]


def test_one_to_many_is_refused(write):
    path = write("labels.csv", "Image Index,Box\na.png,1\nb.png,1\na,2\na,3\n")
    with pytest.raises(DuplicateIdError, match="2 lines repeat an id, 'a' first"):
        Labels(path, NIH)


def test_lines_without_id_match_nothing(write):
    labels = Labels(write("labels.csv", "Image Index,View\n,PA\n,AP\na,PA\n"), NIH)
    _, matched = labels.take(nih("a", ""))
    assert matched.tolist() == [True, False]
    assert labels.n_unmatched == 2


def test_columns_with_levels(write):
    many = "".join(f"i{number},{number},PA,1,{'x' if number else ''}\n" for number in range(13))
    labels = Labels(write("labels.csv", f"Image Index,Number,Same,One,Blank\n{many}"), NIH)
    assert labels.level_columns == ("Blank",)
    few = "".join(f"i{number},{number}\n" for number in range(12))
    assert Labels(write("few.csv", f"Image Index,Number\n{few}"), NIH).level_columns == ("Number",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "labels.csv",
            b"file,View\na,PA\n",
            "no id column of ChestX-ray8; expected Image Index or .* found file, View",
        ),
        ("labels.csv", b"", "is empty"),
        ("labels.csv", b"Image Index,View\na,PA,extra\n", "cannot be read"),
        ("labels.csv", "Image Index,Note\na,grün\n".encode("latin-1"), "column 'Note' is not UTF-8"),
        ("labels.csv.gz", b"Image Index,View\na,PA\n", "cannot be read"),
        ("labels.parquet", b"Image Index,View\na,PA\n", "cannot be read"),
        ("labels.xlsx", b"PK", r"expected a file .csv, .csv.gz, .parquet"),
    ],
    ids=["no id", "empty", "ragged", "latin-1", "no gzip", "no parquet", "suffix"],
)
def test_label_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        Labels(tmp_path / name, NIH)


def test_a_missing_label_file(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        label_columns(tmp_path / "labels.csv")


# --- which source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sources", "expected"),
    [
        ("{}", ["chestxray8", "chexpert"], "chestxray8"),
        ("{}", ["chestxray8"], "chestxray8"),
        ("NIH={}", ["chestxray8", "vindr"], "chestxray8"),
        ("{}", ["chestxray8", "mimic", "padchest"], "chestxray8"),
    ],
)
def test_the_id_column_or_the_name_tells_the_source(write, text, sources, expected):
    path = write("labels.csv", "Image Index,View\na,PA\n")
    assert open_labels(text.format(path), sources).source == SOURCES[expected]


def test_the_spelling_of_the_id_column_tells_sources_apart(write):
    for name, column in (("padchest", "ImageID"), ("vindr", "image_id")):
        path = write(f"{name}.csv", f"{column},View\na,PA\n")
        assert open_labels(str(path), ["mimic", "padchest", "vindr"]).source == SOURCES[name]


def test_a_plain_id_column_serves_the_only_source(write):
    path = write("labels.csv", "image_id,View\na,PA\n")
    assert open_labels(str(path), ["my-study"]).source == source_or_custom("my-study")


def test_an_equals_sign_in_a_path_is_no_source(write, monkeypatch):
    path = write("view=PA.csv", "Image Index,View\na,PA\n")
    monkeypatch.chdir(path.parent)
    assert open_labels("view=PA.csv", ["chestxray8"]).path == path.relative_to(path.parent)


@pytest.mark.parametrize(
    ("text", "sources", "message"),
    [
        ("{}", ["mimic", "padchest"], "which of mimic, padchest does it label"),
        ("{}", [], "which of no source"),
        ("mimic={}", ["chestxray8"], "there are no rows of mimic, only of chestxray8"),
        ("mimik={}", ["mimic"], "did you mean 'mimic'"),
    ],
)
def test_labels_of_no_source(write, text, sources, message):
    path = write("labels.csv", "image_id,View\na,PA\n")
    with pytest.raises(UsageError, match=message):
        open_labels(text.format(path), sources)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.int64(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.int32(), pa.int64(), pa.float64()),
        (pa.null(), pa.int64(), pa.int64()),
        (pa.string(), pa.null(), pa.string()),
        (pa.int64(), pa.string(), pa.string()),
        (pa.bool_(), pa.int64(), pa.string()),
    ],
    ids=str,
)
def test_common_types(first, second, expected):
    assert common_type(first, second) == expected


def test_blank_and_unnamed_columns_have_no_levels(write):
    labels = Labels(write("labels.csv", "Image Index,View,Empty,\na,PA,,\nb,AP,,\n"), NIH)
    assert labels.level_columns == ("View",)


def test_whole_numbers_beyond_float64_compare_exactly():
    numbers = [2**53 + 1, 2**53, None]
    assert which(f"number={2**53}", number=pa.array(numbers)) == [1]
    assert which("number>=1", number=pa.array(numbers)) == [0, 1]
    assert which("number>0.5", number=pa.array(numbers)) == [0, 1]
    assert which("number<1e30", number=pa.array(numbers)) == [0, 1]
    assert which("number>=1", number=pa.array([2**64 - 1], pa.uint64())) == [0]


def test_nan_is_no_number_to_compare_with():
    with pytest.raises(UsageError, match="'nan' is none"):
        which("rca_mean>=nan", rca_mean=[0.7])
