"""Shares of a run, and a file system that is one for all."""

import platform
import subprocess
import sys

import pytest

from cxu.errors import MissingInputError, OutputExistsError, UsageError
from cxu.sharing import Share, check_arrived, check_shared, held


@pytest.mark.parametrize("total", [1, 2, 3, 8, 50])
def test_every_block_is_of_one_share(total):
    shares = [Share(number, total) for number in range(1, total + 1)]
    assert all(sum(share.holds(block) for share in shares) == 1 for block in range(20))


@pytest.mark.parametrize("text", ["3/8", " 3 / 8 ", "03/08"])
def test_a_share_is_read_as_it_is_written(text):
    assert Share.parse(text) == Share(3, 8)
    assert Share.parse(str(Share(3, 8))) == Share(3, 8)


@pytest.mark.parametrize("text", ["9/8", "0/8", "0/0", "-1/8", "3", "3/", "/8", "3/8/2", "a/b", "", "1.5/8", "³/8"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError) as refused:
        Share.parse(text)
    assert str(refused.value) == f"--shard {text}: expected I/N with 1 ≤ I ≤ N, such as 3/8"
    assert refused.value.exit_code == 2


def test_what_a_worker_does_not_see_is_said_with_its_machine(tmp_path):
    check_shared([], "the images")
    check_shared([tmp_path / "gone", tmp_path], "the images")
    with pytest.raises(MissingInputError) as refused:
        check_shared((tmp_path / name for name in "ab"), "the images")
    assert str(refused.value) == (
        f"{tmp_path / 'a'} is not on {platform.node()}: the images must lie on a file system that all workers share"
    )


def test_what_a_worker_wrote_elsewhere_is_said(tmp_path):
    check_arrived(tmp_path)
    with pytest.raises(MissingInputError, match=f"a worker wrote {tmp_path / 'part'}, which is not on"):
        check_arrived(tmp_path / "part")


def test_one_run_at_a_time_holds_a_folder(tmp_path):
    out = tmp_path / "new/masks"
    with held(out):
        assert list(out.iterdir()) == []
        for shared in (False, True):
            with (
                pytest.raises(OutputExistsError, match="another cxu is writing into"),
                held(out, shared=shared),
            ):
                pass
    refused = pytest.raises(OutputExistsError, match="another cxu")
    with held(out, shared=True), held(out, shared=True), refused, held(out):
        pass
    with held(out):
        pass


def test_a_file_is_no_folder_to_hold(tmp_path):
    (tmp_path / "masks").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a file"), held(tmp_path / "masks"):
        pass


def test_what_holds_a_folder_ends_with_the_process(tmp_path):
    script = f"""
import pathlib, time
from cxu.sharing import held
with held(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        with pytest.raises(OutputExistsError), held(tmp_path):
            pass
        running.kill()
    with held(tmp_path):
        pass
