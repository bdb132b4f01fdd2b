"""Whose an output folder is, what of it counts as finished, and what is taken away again."""

import json
import os

import pyarrow as pa
import pytest

from cxu import files
from cxu.blockfolder import BlockFacts, difference
from cxu.errors import OutputExistsError
from cxu.maskfolder import INDEX_SCHEMA, MaskFolder
from mask_helpers import tree

RECORD = {
    "command": "rasterize",
    "table": "abc",
    "table_name": "latest",
    "frame": None,
    "options": {"policy": "full", "band": 2.8},
    "target": {"images": [], "size_hw": None},
    "schema_version": "1",
    "cxu_version": "1.0",
    "identity": "one",
}
OTHER = {**RECORD, "identity": "two", "options": {"policy": "ignore", "band": 2.8}}


def lines(*paths):
    """Return lines of the index, one for each path."""
    columns = {
        "source": ["mine"] * len(paths),
        "image_id": [str(number) for number in range(len(paths))],
        "organ": ["heart"] * len(paths),
        "path": list(paths),
        "usable": [path is not None for path in paths],
        "area_ratio": [1.0] * len(paths),
        "crosses_itself": [False] * len(paths),
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def write(folder, *names):
    for name in names:
        path = folder.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture
def folder(tmp_path):
    """A folder with one finished block of two files."""
    made = MaskFolder(tmp_path / "out")
    made.claim(RECORD, [], overwrite=False)
    made.begin("part-00000", ["mine/a/1.png", "mine/2.png", "mine/3.png"])
    write(made, "mine/a/1.png", "mine/2.png")
    made.finish("part-00000", lines("mine/a/1.png", "mine/2.png", None), BlockFacts(3, n_bytes=22))
    made.write_index(["part-00000"])
    return made


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_missing_or_empty_folder_is_claimed(tmp_path):
    for out in (tmp_path / "a/b", tmp_path / "c"):
        (tmp_path / "c").mkdir(exist_ok=True)
        MaskFolder(out).claim(RECORD, [], overwrite=False)
        assert json.loads((out / "cxu.json").read_text()) == RECORD


def test_the_same_command_comes_back_to_its_folder(folder):
    before = tree(folder.out)
    folder.claim(RECORD, [], overwrite=False)
    assert tree(folder.out) == before


def test_jobs_of_an_array_may_claim_a_folder_at_the_same_time(tmp_path, monkeypatch):
    looks = {"occupied": MaskFolder._holds_anything, "record": files.read_record}
    begun = []

    def looking(name, argument):
        """Look, and the first time let another job claim the folder and begin right after the look."""
        found = looks[name](argument)
        if not begun:
            begun.append(name)
            other = MaskFolder(tmp_path)
            other.claim(RECORD, [], overwrite=False)
            other.begin("part-00001", ["mine/9.png"])
            write(other, "mine/9.png")
        return found

    monkeypatch.setattr(MaskFolder, "_holds_anything", lambda self: looking("occupied", self))
    monkeypatch.setattr("cxu.files.read_record", lambda out: looking("record", out))
    MaskFolder(tmp_path).claim(RECORD, [], overwrite=False)
    assert begun
    assert list(tree(tmp_path)) == [".cxu/part-00001.json", "cxu.json", "mine/9.png"]


def test_another_command_is_refused_with_the_difference(folder):
    before = tree(folder.out)
    with pytest.raises(OutputExistsError, match=r'policy was "full", now "ignore".*--overwrite') as refused:
        folder.claim(OTHER, [], overwrite=False)
    assert refused.value.exit_code == 2
    assert tree(folder.out) == before


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"", b"null"])
def test_a_damaged_record_is_refused_and_replaced_on_demand(folder, content):
    (folder.out / "cxu.json").write_bytes(content)
    with pytest.raises(OutputExistsError, match=r"its cxu\.json is damaged"):
        folder.claim(RECORD, [], overwrite=False)
    folder.claim(RECORD, [], overwrite=True)
    assert list(tree(folder.out)) == ["cxu.json"]


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="not empty and was not made by cxu rasterize"):
        MaskFolder(tmp_path).claim(RECORD, [], overwrite=False)
    MaskFolder(tmp_path).claim(RECORD, [], overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_killed_run_left_unfinished_is_nobodys(tmp_path):
    # killed between making the folder and naming the record
    (tmp_path / ".cxu-tmp-99999999-cxu.json").write_text("{")
    MaskFolder(tmp_path).claim(RECORD, [], overwrite=False)
    assert list(tree(tmp_path)) == ["cxu.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_of_another_command_is_refused_also_where_it_is_to_be_replaced(folder, overwrite):
    before = tree(folder.out)
    with pytest.raises(OutputExistsError, match="was made by cxu rasterize: choose another --out"):
        folder.claim({**OTHER, "command": "export"}, [], overwrite=overwrite)
    assert tree(folder.out) == before


def test_an_index_of_somebody_else_stays(tmp_path):
    (tmp_path / "index.parquet").write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"index\.parquet is there and was not written by cxu rasterize"):
        MaskFolder(tmp_path).claim(RECORD, [], overwrite=True)
    assert tree(tmp_path) == {"index.parquet": b"precious"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is a file"):
            MaskFolder(tmp_path / "out").claim(RECORD, [], overwrite=overwrite)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"policy": "full", "band": 1.0}}, "band was 1.0, now 2.8"),
        ({"options": {"policy": "full"}}, "band was null, now 2.8"),
        ({"target": {"images": ["/data"], "size_hw": None}}, 'images was ["/data"], now []'),
        ({"frame": "image"}, 'frame was "image", now null'),
        ({"target": []}, "images was null, now []"),
        ({"cxu_version": "0.9"}, 'cxu_version was "0.9", now "1.0"'),
        ({"command": "predict"}, 'command was "predict", now "rasterize"'),
        ({"table": "def"}, "the table latest has changed"),
        ({"table": "def", "table_name": "strict"}, "the table was strict, now latest"),
    ],
)
def test_every_difference_has_a_name(changes, said):
    assert difference({**RECORD, **changes}, RECORD) == said


# --- what is finished ------------------------------------------------------------------------------------------------


def test_a_block_is_finished_once_its_files_and_lines_are_there(folder):
    assert folder.finished("part-00000") == BlockFacts(3, n_bytes=22)
    assert folder.finished("part-00001") is None
    (folder.out / "mine/2.png").unlink()
    assert folder.finished("part-00000") is None


def test_a_block_with_failures_is_tried_again(folder):
    folder.finish("part-00000", lines("mine/a/1.png", "mine/2.png"), BlockFacts(2, failures=1))
    assert folder.finished("part-00000") is None


def test_a_block_of_one_file_needs_that_file_also_where_no_organ_is_in_it(folder):
    folder.finish("part-00001", lines(None), BlockFacts(1, part="masks/part-00001.tar"))
    assert folder.finished("part-00001") is None
    write(folder, "masks/part-00001.tar")
    assert folder.finished("part-00001") is not None


def test_a_block_under_way_notes_its_files_and_tidies_up_after_an_earlier_attempt(folder):
    folder.begin("part-00001", ["mine/4.png", "mine/5.png"])
    assert folder.finished("part-00001") is None
    write(folder, "mine/4.png", "mine/.cxu-tmp-99999999-5.png", "mine/.cxu-tmp-99999998-6.png")
    folder.begin("part-00001", ["mine/4.png", "mine/5.png"])
    left = {path.name for path in (folder.out / "mine").iterdir() if path.is_file()}
    # number 6 belongs to another block, whose worker may be writing it right now
    assert left == {"2.png", "4.png", ".cxu-tmp-99999998-6.png"}


@pytest.mark.skipif(os.name != "posix", reason="processes are not looked for elsewhere")
def test_what_a_running_process_is_writing_stays(folder):
    folder.begin("part-00001", ["mine/4.png"])
    own = [f"{part}.cxu-tmp-{os.getpid()}-{name}" for part, name in (("mine/", "4.png"), ("", "index.parquet"))]
    write(folder, *own)
    folder.begin("part-00001", ["mine/4.png"])
    folder.claim(RECORD, [], overwrite=False)
    assert all((folder.out / name).exists() for name in own)


def test_a_mask_that_a_row_no_longer_has_goes(folder):
    folder.begin("part-00000", ["mine/a/1.png", "mine/2.png", "mine/3.png"])
    folder.finish("part-00000", lines("mine/a/1.png"), BlockFacts(1, failures=1))
    assert [name for name in tree(folder.out) if name.endswith("png")] == ["mine/a/1.png"]


def test_finishing_twice_leaves_the_same_bytes(folder):
    before = tree(folder.out)
    # killed after the lines were written and before the note of planned files went
    (folder.out / ".cxu/part-00000.json").write_text('["mine/a/1.png", "mine/2.png"]')
    assert folder.finished("part-00000") is not None
    assert tree(folder.out) == before


def test_the_index_is_all_lines_in_order_and_counts_them(folder):
    write(folder, "mine/9!.png")
    folder.finish("part-00001", lines("mine/9!.png"), BlockFacts(1, n_bytes=11))
    contents = folder.write_index(["part-00001", "part-00000"])
    assert (contents.files, contents.n_bytes, dict(contents.unusable)) == (
        3,
        33,
        {"right_lung": 0, "left_lung": 0, "heart": 1},
    )
    paths = pa.parquet.read_table(folder.out / "index.parquet")["path"].to_pylist()
    assert paths == ["mine/9!.png", "mine/a/1.png", "mine/2.png", None]


def test_blocks_are_counted_without_an_index(folder):
    folder.finish("part-00001", lines(None), BlockFacts(1, failures=2, assumed=1, part="masks/part-00001.tar"))
    contents = folder.count(["part-00000", "part-00001"])
    assert (contents.rows, contents.failures, contents.assumed, contents.files, contents.n_bytes) == (4, 2, 1, 3, 22)
    assert folder.lines_path("part-00001").is_file()
    assert not folder.lines_path("part-00002").is_file()


# --- what is taken away ----------------------------------------------------------------------------------------------


def test_overwriting_takes_away_what_was_written_and_nothing_else(folder):
    folder.begin("part-00001", ["other/4.png", "other/5.png"])
    write(folder, "other/4.png", "other/.cxu-tmp-99999999-5.png", "mine/notes.txt", "a file.txt", "mine/7.png")
    (folder.out / "empty").mkdir()
    folder.claim(OTHER, ["mine/2.png"], overwrite=True)
    assert list(tree(folder.out)) == ["a file.txt", "cxu.json", "mine/7.png", "mine/notes.txt"]
    assert sorted(path.name for path in folder.out.iterdir()) == ["a file.txt", "cxu.json", "empty", "mine"]
    assert json.loads((folder.out / "cxu.json").read_text()) == OTHER


def test_overwriting_never_replaces_a_file_of_somebody_else(folder):
    write(folder, "mine/7.png")
    with pytest.raises(OutputExistsError, match=r"7\.png is there and was not written by cxu rasterize"):
        folder.claim(OTHER, ["mine/1.png", "mine/7.png"], overwrite=True)
    assert (folder.out / "mine/7.png").read_bytes() == b"mine/7.png"


def test_the_same_command_starts_afresh_when_told_to_overwrite(folder):
    folder.claim(RECORD, ["mine/2.png"], overwrite=True)
    assert list(tree(folder.out)) == ["cxu.json"]


def test_a_block_of_one_file_is_taken_away(folder):
    write(folder, "masks/part-00001.tar")
    folder.finish("part-00001", lines("masks/part-00001.tar!mine/1.png"), BlockFacts(1, part="masks/part-00001.tar"))
    folder.claim(OTHER, [], overwrite=True)
    assert list(tree(folder.out)) == ["cxu.json"]


def test_killed_while_overwriting_the_rest_is_still_ours(folder, monkeypatch):
    def killed(*_):
        raise SystemExit

    monkeypatch.setattr("cxu.blockfolder._files_of", killed)
    with pytest.raises(SystemExit):
        folder.claim(OTHER, [], overwrite=True)
    monkeypatch.undo()
    folder.claim(OTHER, ["mine/2.png"], overwrite=True)
    assert list(tree(folder.out)) == ["cxu.json"]
