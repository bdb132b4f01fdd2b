"""``kill -9`` at any moment, then the same command again: the same bytes as if nothing had happened."""

import os

import pytest

from kill_jobs import JOBS, kill_and_continue

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
KILLS = 13  # of each of 16 commands: 208 in all
NEEDS = {"export dicomseg": "highdicom"}


def test_killed_and_continued(tmp_path):
    kill_and_continue(tmp_path, JOBS["rasterize labels"], kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_often_and_continued(tmp_path, name, record_property):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    kill_and_continue(tmp_path, JOBS[name], KILLS, seed=100)
    record_property("kills", KILLS)
