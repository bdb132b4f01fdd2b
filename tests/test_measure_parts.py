"""Measures that wait beside their file: found again after an interruption, by other jobs, and by nobody else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builders import chest, make_rows
from cxu.errors import OutputExistsError, UsageError
from cxu.measure import bulk, measure_table, rows
from cxu.measure.parts import Parts
from cxu.sharing import Share
from mask_helpers import store_rows, tree


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def some_rows(number, **columns):
    rng = np.random.default_rng(5)
    points = chest() + rng.normal(0, 8, (number, 120, 2)).astype(np.float32)
    return make_rows(number, landmarks_xy=points, sigma_xy=np.full((number, 120, 2), 4.0, np.float32), **columns)


class Stop(Exception):
    pass


def stop_after(number):
    """Return a progress that raises once that many shards are measured."""
    seen = []

    def progress(_):
        seen.append(1)
        if len(seen) == number:
            raise Stop

    return progress


def test_a_part_comes_back_as_it_was():
    made = some_rows(6, height=[1024, None] * 3)
    texts = pa.array(["a", None, "b", "a", "a", "b"]).dictionary_encode()
    extras = {
        "ctr": pa.array([1, None, 3, 4, 5, 6], pa.int8()),
        "rows.x": texts,
        "list": [[1.5], [], None, [2], [3], [4]],
    }
    for name, column in extras.items():
        made = made.append_column(name, pa.array(column) if isinstance(column, list) else column)
    measured = rows.measure(made)
    parts = Parts.beside(Path("out.parquet"), "k" * 64)
    parts.begin()
    parts.write(3, measured)
    back = parts.read(3)
    assert back.rows.equals(measured.rows, check_metadata=True)
    assert back.extras.equals(measured.extras.replace_schema_metadata(None), check_metadata=True)
    assert back.reasons.keys() == measured.reasons.keys()
    for name, codes in measured.reasons.items():
        np.testing.assert_array_equal(back.reasons[name], codes)
        assert back.reasons[name].dtype == codes.dtype
    assert parts.folder == Path.cwd() / "out.parquet.parts"
    with pytest.raises(FileNotFoundError):
        parts.read(4)


def test_an_interrupted_run_goes_on_with_what_it_has(monkeypatch):
    stored = store_rows(Path("t.parquet"), some_rows(30), group_rows=5)
    measure_table(stored, Path("whole.parquet"))
    with pytest.raises(Stop):
        measure_table(stored, Path("out.parquet"), progress=stop_after(4))
    assert not Path("out.parquet").exists()
    assert len(tree(Path("out.parquet.parts"))) == 4
    measured = []
    monkeypatch.setattr(bulk.rows, "measure", lambda rows, measure=rows.measure: measured.append(1) or measure(rows))
    measure_table(stored, Path("out.parquet"))
    assert len(measured) == 2
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "t.parquet", "whole.parquet"]


def test_parts_of_a_table_that_has_changed_are_not_taken():
    stored = store_rows(Path("t.parquet"), some_rows(20), group_rows=5)
    with pytest.raises(Stop):
        measure_table(stored, Path("out.csv"), progress=stop_after(3))
    stored = store_rows(Path("t.parquet"), some_rows(20, view="AP"), group_rows=5)
    measure_table(stored, Path("whole.csv"))
    measure_table(stored, Path("out.csv"))
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("out.csv.parts").exists()


def test_nothing_is_left_beside_a_file_that_could_not_be_begun():
    stored = store_rows(Path("t.parquet"), some_rows(4))
    Path("out.parquet").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        measure_table(stored, Path("out.parquet"))
    lists = some_rows(4).append_column("list", pa.array([[1]] * 4))
    with pytest.raises(UsageError, match="a CSV cannot hold the lists of list"):
        measure_table(store_rows(Path("l.parquet"), lists), Path("out.csv"), share=Share(1, 2))
    broken = some_rows(4).append_column("samples_xy", pa.array([[1.0]] * 4, pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="samples_xy has 1 numbers"):
        measure_table(store_rows(Path("b.parquet"), broken), Path("new.parquet"))
    assert not list(Path().glob("*.parts"))


def test_what_was_being_removed_when_a_run_was_killed_goes():
    parts = Parts.beside(Path("out.parquet"), "k" * 64)
    doomed = Path(".cxu-tmp-99999999@abcdef-out.parquet.parts")
    doomed.mkdir()
    (doomed / "part-k-00000.arrow").write_bytes(b"x")
    parts.begin()
    assert not doomed.exists()
    parts.remove()
    parts.remove()
    assert not parts.folder.exists()


def test_another_job_may_join_the_parts_first(monkeypatch):
    stored = store_rows(Path("t.parquet"), some_rows(20), group_rows=5)
    measure_table(stored, Path("whole.parquet"))
    measure_table(stored, Path("out.parquet"), share=Share(1, 2))
    join, joins = bulk._Layout.join, []

    def joined_by_another(self, measured, out):
        joins.append(out)
        if out is not None and len(joins) == 2:
            # between this job's look and its reading
            measure_table(stored, out, share=Share(1, 2))
        return join(self, measured, out)

    monkeypatch.setattr(bulk._Layout, "join", joined_by_another)
    report = measure_table(stored, Path("out.parquet"), share=Share(2, 2))
    assert (report.is_whole, report.rows, report.shards_finished, report.shards) == (False, 10, 4, 4)
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "t.parquet", "whole.parquet"]


def test_parts_may_go_while_a_job_reads_its_own(monkeypatch):
    stored = store_rows(Path("t.parquet"), some_rows(20), group_rows=5)
    measure_table(stored, Path("whole.parquet"))
    for number in (1, 2):
        with pytest.raises(Stop):
            measure_table(stored, Path("out.parquet"), share=Share(number, 2), progress=stop_after(2))
    read = []

    def remove_and_read(self, index, read_part=Parts.read):
        read.append(index)
        if len(read) == 2:
            self.remove()  # another job has joined them
        return read_part(self, index)

    monkeypatch.setattr(Parts, "read", remove_and_read)
    report = measure_table(stored, Path("out.parquet"), share=Share(1, 2))
    assert (report.is_whole, report.rows, report.shards_finished) == (False, 10, 4)


def test_ctrl_c_says_that_finished_measures_are_kept():
    code = (
        "import signal, os, cxu.measure.bulk as bulk\n"
        "write = bulk.Parts.write\n"
        "def stop(self, index, measured):\n"
        "    write(self, index, measured)\n"
        "    os.kill(os.getpid(), signal.SIGINT) if index == 2 else None\n"
        "bulk.Parts.write = stop\n"
        "import sys; sys.argv = ['cxu', 'measure', 't.parquet', '--out', 'out.parquet']\n"
        "from cxu.__main__ import main; main()\n"
    )
    store_rows(Path("t.parquet"), some_rows(30), group_rows=5)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted. With --out, what is finished is kept: the same command continues." in ended.stderr
    assert [name.rpartition("-")[2] for name in tree(Path("out.parquet.parts"))] == [f"0000{n}.arrow" for n in range(3)]
    assert not Path("out.parquet").exists()
