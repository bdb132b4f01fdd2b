"""What the demo remembers, in memory and on disk, and that it goes."""

import os
import subprocess
import sys
import time

import pytest

from cxu.demo import folder
from cxu.demo.sessions import Session, Sessions


def test_the_page_used_longest_ago_goes_first():
    sessions = Sessions(most=2)
    for key in "abc":
        sessions.put(key, Session(None))
        sessions.get("a")
    assert sessions.get("a")
    assert sessions.get("c")
    assert sessions.get("b") is None
    assert len(sessions) == 2


def test_idle_pages_are_forgotten():
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    sessions.put("a", Session(None))
    sessions.put("b", Session(None))
    now[0] = 50.0
    sessions.get("b")
    now[0] = 101.0
    assert sessions.expire(100.0) == ["a"]
    assert sessions.get("b")


def test_the_folder_is_private_and_goes(tmp_path):
    def be_interrupted():
        with folder.private_folder(tmp_path) as made:
            (made / "a" / "b").mkdir(parents=True)
            (made / "a" / "b" / "film.png").write_bytes(b"x")
            assert folder.size_of(made) == 1
            assert os.name != "posix" or made.stat().st_mode & 0o777 == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="processes are told by signal 0")
def test_folders_of_killed_processes_are_removed_and_those_of_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"{folder.PREFIX}{ended.pid}-a", f"{folder.PREFIX}{os.getpid()}-a", f"{folder.PREFIX}x-a", "other"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "film.png").write_bytes(b"x")
    with folder.private_folder(tmp_path) as made:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], made.name])


def test_old_uploads_go_and_new_ones_stay(tmp_path):
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "film.png").write_bytes(b"x")
    folder.remove_old(tmp_path, 60)
    assert (tmp_path / "hash" / "film.png").is_file()
    time.sleep(0.02)
    folder.remove_old(tmp_path, 0.01)
    time.sleep(0.02)
    folder.remove_old(tmp_path, 0.01)
    assert list(tmp_path.iterdir()) == []
