from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cxu import files
from cxu.errors import OutputExistsError

HOSTILE = [
    "..",
    "../../etc/passwd",
    "a/../../b",
    ".",
    "./.",
    "/etc/passwd",
    "//server/share",
    "C:",
    "C:\\temp",
    "C:/temp",
    "..\\..\\up",
    "\\\\server\\share",
    "nul\x00byte",
    "new\nline",
    "",
    "/",
    "///",
    "CON",
    "con.png",
    "CON.",
    "con .png",
    "Aux.tar.gz",
    "COM1",
    "lpt9.txt",
    "a/NUL/b",
    "trailing.",
    "trailing ",
    "a./b /c",
    " ",
    "...",
    "x" * 300,
    "\N{GRINNING FACE}" * 100,
    "%2E%2E",
    'a<b>c:d"e|f?g*h',
    ".cxu-tmp-1",
]
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in range(10))}

# text out of the pieces that are dangerous, as well as any text
pieces = st.sampled_from([*HOSTILE, "..", ".", "/", "\\", "a", " ", ":", "%", "~"])
identifiers = st.text() | st.lists(pieces, max_size=6).map("".join)


def assert_stays_inside(identifier):
    path = files.safe_relative(identifier)
    assert path.parts
    assert not path.is_absolute()
    assert not PureWindowsPath(str(path)).drive
    assert not PureWindowsPath(str(path)).root
    for name in path.parts:
        assert name not in {".", ".."}
        assert not set(name) & set('\0\\/:<>"|?*\r\n')
        assert len(name.encode()) <= 200
        assert name[-1] not in ". "
        assert name.split(".")[0].rstrip(" ").upper() not in RESERVED
    root = Path("/root/of/everything")
    assert Path(os.path.normpath(root / path)) == root / path


@pytest.mark.parametrize("identifier", HOSTILE)
def test_hostile_ids_stay_inside_their_folder(identifier):
    assert_stays_inside(identifier)


@given(identifiers)
def test_any_id_stays_inside_its_folder(identifier):
    assert_stays_inside(identifier)


@pytest.mark.parametrize("identifier", HOSTILE)
def test_files_can_be_written_under_hostile_ids(identifier, tmp_path):
    folder = tmp_path / "out"
    target = folder / f"{files.safe_relative(identifier)}.png"
    files.write_bytes(target, b"mask")
    assert target.read_bytes() == b"mask"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]
    assert target.resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    ("identifier", "path"),
    [
        ("train/patient00001/study1/view1_frontal", "train/patient00001/study1/view1_frontal"),
        ("00013310_001", "00013310_001"),
        ("été ünï", "été ünï"),
        ("../up", "%2E%2E/up"),
        ("a/./b", "a/%2E/b"),
        ("C:\\x", "C%3A%5Cx"),
        ("100%", "100%25"),
        ("con", "%63on"),
        ("NUL.png", "%4EUL.png"),
        ("con.", "%63on%2E"),
        ("a.", "a%2E"),
        ("a ", "a%20"),
        ("a\0b", "a%00b"),
        ("a//b/", "a/b"),
        ("", "%"),
    ],
)
def test_names_are_encoded_by_hand(identifier, path):
    assert str(files.safe_relative(identifier)) == path


def test_harmless_names_of_200_bytes_are_kept_and_longer_ones_end_in_a_hash():
    assert str(files.safe_relative("x" * 200)) == "x" * 200
    name = str(files.safe_relative("x" * 201))
    assert name.startswith("xxx")
    assert name.endswith("~" + hashlib.sha256(b"x" * 201).hexdigest()[:16])


@given(identifiers, identifiers)
@example("%2E%2E", "..")
@example("", "%")
@example("x" * 300, "x" * 301)
@example("con", "%63on")
@example("a.", "a%2E")
@example("\N{GRINNING FACE}" * 90, "\N{GRINNING FACE}" * 91)
def test_distinct_ids_stay_distinct_but_for_empty_parts(first, second):
    parts = [[part for part in identifier.split("/") if part] for identifier in (first, second)]
    same_path = files.safe_relative(first) == files.safe_relative(second)
    assert same_path == (parts[0] == parts[1])


# -- writing


def test_replacing_gives_a_name_beside_the_target_and_renames_it(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with files.replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(files.TEMP_PREFIX)
        temporary.write_text("whole")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    assert target.read_text() == "whole"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_replacing_leaves_the_old_file_when_it_fails(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half():
        with files.replacing(target) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_replacing_without_a_file_fails_and_leaves_the_old_one(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(target):
        pass
    assert target.read_text() == "old"


def test_write_bytes_and_json_replace_a_file(tmp_path):
    target = tmp_path / "file"
    files.write_bytes(target, b"1")
    files.write_bytes(target, b"2")
    assert target.read_bytes() == b"2"
    files.write_json(target, {"naïve": [1, None]})
    assert json.loads(target.read_text("utf-8")) == {"naïve": [1, None]}
    assert "naïve" in target.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporaries_of_the_folder_itself_are_removed(tmp_path):
    kept = [tmp_path / "file", tmp_path / "below" / f"{files.TEMP_PREFIX}2-file"]
    left_over = tmp_path / f"{files.TEMP_PREFIX}1-file"
    for path in (*kept, left_over):
        files.write_bytes(path, b"x")
    files.remove_temporaries(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.skipif(os.name != "posix", reason="processes are not looked for elsewhere")
def test_leftovers_go_unless_somebody_may_be_writing_them(tmp_path):
    own = files.temporary_name(tmp_path / "own")
    elsewhere, forgotten = (tmp_path / f"{files.TEMP_PREFIX}{number}@another-file" for number in (1, 2))
    gone, old_name = files.temporary_name(tmp_path / "gone"), tmp_path / f"{files.TEMP_PREFIX}99999999-file"
    gone = gone.with_name(gone.name.replace(f"{os.getpid()}@", "99999999@"))
    whole = tmp_path / "file"
    for path in (own, elsewhere, forgotten, gone, old_name, whole):
        path.write_bytes(b"x")
    two_hours_ago = time.time() - 7200
    os.utime(forgotten, (two_hours_ago, two_hours_ago))
    files.remove_leftovers(tmp_path, {"nothing"})
    assert len(list(tmp_path.iterdir())) == 6
    files.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, elsewhere, whole])


def test_processes_of_two_machines_write_under_names_of_their_own(tmp_path, monkeypatch):
    here = files.temporary_name(tmp_path / "file")
    monkeypatch.setattr("cxu.files._MACHINE", "other1")
    assert files.temporary_name(tmp_path / "file") != here
    assert here.name.startswith(files.TEMP_PREFIX)
    assert here.parent == tmp_path


# -- hashes


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # the example of FIPS 180-4
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of(tmp_path / "file") == expected


def test_hash_of_a_value_knows_its_content_not_its_order():
    assert files.hash_of({"a": 1, "b": [2, "ä"]}) == files.hash_of({"b": [2, "ä"], "a": 1})
    assert files.hash_of({"a": 1}) != files.hash_of({"a": "1"})
    assert files.hash_of([1, 2]) != files.hash_of([2, 1])
    # so that a hash written by one version is known to the next
    assert files.hash_of([]) == hashlib.sha256(b"[]").hexdigest()


@pytest.mark.parametrize(
    ("content", "held"), [(None, None), (b'{"a": 1}', {"a": 1}), (b'{"a"', {}), (b"[1]", {}), (b"\xff", {})]
)
def test_the_record_of_a_folder(tmp_path, content, held):
    if content is not None:
        (tmp_path / files.RECORD).write_bytes(content)
    assert files.read_record(tmp_path) == held


# --- what lies below a folder ----------------------------------------------------------------------------------------


def test_only_names_that_stay_below_the_folder_are_read(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    inside = ["a.png", "b/c.png", "..a/b..png"]
    outside = ["../a.png", "b/../../a.png", "/etc/passwd", "link/a.png", "", ".", "a\0.png", "..\\a.png", 5, None]
    (folder / "names.json").write_text(json.dumps([*inside, *outside]))
    assert files.read_names(folder / "names.json", folder) == inside


@pytest.mark.parametrize("content", ["", "{", "5", '{"a": 1}', "[" * 100_000])
def test_a_damaged_list_names_nothing(tmp_path, content):
    assert files.read_names(tmp_path / "none.json", tmp_path) == []
    (tmp_path / "names.json").write_text(content)
    assert files.read_names(tmp_path / "names.json", tmp_path) == []


def test_a_link_that_leads_files_out_is_refused(tmp_path):
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/inner").symlink_to("a")
    (tmp_path / "out/a/outer").symlink_to(tmp_path)
    files.check_below(tmp_path / "out", ["x.png", "new/x.png", "inner/x.png"])
    with pytest.raises(OutputExistsError, match="outer leads out of"):
        files.check_below(tmp_path / "out", ["x.png", "a/outer/x.png"])


def test_no_id_passes_for_an_unfinished_file():
    name = files.temporary_name(Path("a.png")).name
    assert str(files.safe_relative(name)) == f"%2E{name[1:]}"


def test_a_path_too_long_is_one_name():
    long = "/".join(["part"] * 400)
    (name,) = files.safe_relative(long).parts
    assert name.startswith("part~")
    assert files.safe_relative(f"{long}/a") != files.safe_relative(f"{long}/b")
