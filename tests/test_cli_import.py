"""``cxu import`` as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from builders import published_csv, published_row
from cxu.cli import app
from cxu.store import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def cxu(home):
    """Return a function that imports files into the home and returns the result."""

    def run(*arguments, exit_code=0):
        line = ["import", *map(str, arguments), "--source", "chestxray8", "--home", str(home.root)]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def good_and_bad(tmp_path):
    """A file of two good rows and a malformed one."""
    path = tmp_path / "first.csv"
    path.write_text(published_csv([published_row("a.png"), "bad,row", published_row("b.png")]))
    return path


def manifests(home):
    return [json.loads(path.read_text()) for path in sorted((home.root / "runs").glob("*.json"))]


def test_malformed_rows_are_listed(cxu, home, good_and_bad):
    result = cxu(good_and_bad, exit_code=3)
    assert "first.csv: 2 rows into" in result.stdout
    assert "1 malformed rows were left out:\n  first.csv, line 3" in result.stderr
    (manifest,) = manifests(home)
    assert (manifest["error"], len(manifest["files"][0]["problems"])) == (None, 1)


def test_a_file_that_fails_does_not_hide_the_malformed_rows_before_it(cxu, home, good_and_bad, tmp_path):
    result = cxu(good_and_bad, tmp_path / "none.csv", exit_code=2)
    assert "first.csv, line 3" in result.stderr
    assert "first.csv: 2 rows into" in result.stderr
    assert "none.csv does not exist" in result.stderr
    (manifest,) = manifests(home)
    assert "first.csv, line 3" in manifest["files"][0]["problems"][0]
    assert "none.csv does not exist" in manifest["error"]


def test_the_same_file_again_still_tells_of_its_malformed_rows(cxu, good_and_bad):
    cxu(good_and_bad, exit_code=3)
    result = cxu(good_and_bad, exit_code=3)
    assert "already imported (2 rows of chestxray8; 1 malformed were left out); nothing to do" in result.stdout
    (entry,) = json.loads(cxu(good_and_bad, "--json", exit_code=3).stdout)
    assert (entry["already_there"], entry["malformed"]) == (True, 1)


def test_a_good_file_again_is_fine(cxu, tmp_path):
    (tmp_path / "good.csv").write_text(published_csv([published_row("a.png")]))
    cxu(tmp_path / "good.csv")
    assert "(1 rows of chestxray8); nothing to do" in cxu(tmp_path / "good.csv").stdout
