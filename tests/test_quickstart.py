"""``cxu quickstart``: the main job, offline, as a user runs it."""

import json
import os
import shlex
import subprocess
import sys
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import cxu
from cxu import store
from cxu.catalog import source_or_custom
from cxu.cli import app
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.quickstart import SAMPLE, STEPS, draw_sheet, run_quickstart


def quickstart(*arguments, cwd, **environment):
    """Run ``cxu quickstart`` in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "cxu", "quickstart", *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def masks_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("masks", "masks-ignore")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def check_sheet(path):
    """Check that a contact sheet is large and shows something in every quarter."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    height, width = pixels.shape
    assert height > 1000
    assert width > 1000
    for quarter in (pixels[: height // 2], pixels[height // 2 :]):
        for part in (quarter[:, : width // 2], quarter[:, width // 2 :]):
            assert part.std() > 10


def test_a_named_folder_and_the_same_commands_typed_by_hand(tmp_path, monkeypatch):
    cwd, elsewhere = tmp_path / "cwd", tmp_path / "someone's home"
    cwd.mkdir()
    done = quickstart("first masks", cwd=cwd, CXU_HOME=str(elsewhere))
    folder = cwd / "first masks"
    assert done.returncode == 0, done.stderr
    assert not elsewhere.exists()
    assert [path.name for path in cwd.iterdir()] == ["first masks"]

    # what it says
    printed = [line.removeprefix("$ ") for line in done.stderr.splitlines() if line.startswith("$ ")]
    assert printed == [step.command_line for step in STEPS]
    assert [shlex.split(line)[1] for line in printed] == ["import", "filter", "rasterize", "rasterize"]
    assert str(folder.relative_to(cwd) / "quickstart.png") in done.stdout
    assert "synthetic" in done.stdout.splitlines()[-1]

    # the picture says that nothing is real
    said = {}
    with monkeypatch.context() as patch:
        patch.setattr("cxu.sheet.contact_sheet", lambda tiles, **texts: said.update(texts, n_tiles=len(tiles)))
        draw_sheet(folder)
    assert said["n_tiles"] == 24
    assert "synthetic" in said["title"]
    assert "No row describes a person" in said["subtitle"]
    assert "synthetic" in STEPS[0].title

    # what it leaves
    names = {path.name for path in folder.iterdir()}
    assert names == {SAMPLE, "cxu-data", "masks", "masks-ignore", "quickstart.png"}
    check_sheet(folder / "quickstart.png")
    rows = cxu.read_table("synthetic", home=folder / "cxu-data")
    assert len(rows) == 24
    assert set(rows["source"].to_pylist()) == {"synthetic"}
    assert all(image_id.startswith("synthetic_") for image_id in rows["image_id"].to_pylist())
    selected = cxu.read_table(home=folder / "cxu-data")
    assert 12 < len(selected) < 24
    excluded = pq.read_table(folder / "cxu-data/selections/latest.excluded.parquet")
    assert len(selected) + len(excluded) == 24
    masks = masks_below(folder)
    assert len([name for name in masks if name.endswith(".png")]) == 2 * len(selected)
    values = {value for path in (folder / "masks-ignore").rglob("*.png") for value in np.unique(Image.open(path))}
    assert values == {0, 1, 2, 3, 255}

    # by hand
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    (by_hand / SAMPLE).write_bytes((folder / SAMPLE).read_bytes())
    monkeypatch.chdir(by_hand)
    for line in printed:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert masks_below(by_hand) == masks


@pytest.mark.slow
def test_without_a_folder_and_again_in_the_same_one(tmp_path):
    first = quickstart(cwd=tmp_path, TMPDIR=str(tmp_path))
    assert first.returncode == 0, first.stderr
    [folder] = tmp_path.iterdir()
    assert folder.name.startswith("cxu-quickstart-")
    assert f"cd {folder}" in first.stderr
    assert f"Look at {folder / 'quickstart.png'}" in first.stdout
    masks, sheet = masks_below(folder), (folder / "quickstart.png").read_bytes()

    second = quickstart(str(folder), cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "already imported" in second.stdout
    assert second.stderr.count("rows were already drawn") == 2
    assert masks_below(folder) == masks
    assert (folder / "quickstart.png").read_bytes() == sheet


@pytest.mark.slow
def test_json_is_all_that_stdout_holds(tmp_path):
    done = quickstart("here", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["folder"] == "here"
    assert content["commands"] == [step.command_line for step in STEPS]
    assert Path(tmp_path, content["sheet"]).is_file()


def test_a_command_that_fails_ends_it_with_an_error(tmp_path):
    (tmp_path / "cxu-data").write_text("a file where the home should be")
    with pytest.raises(cxu.CxuError, match=r"cxu import .* exit code 1"):
        run_quickstart(tmp_path, lambda _: None)
    assert not (tmp_path / "quickstart.png").exists()


def test_a_folder_with_other_sources_is_left_alone(tmp_path):
    home = store.Home(tmp_path / "cxu-data")
    path = tmp_path / "mine.csv"
    path.write_bytes((package_files("cxu") / "data" / SAMPLE).read_bytes())
    import_file(path, source_or_custom("mine"), home, ImportOptions("model"))
    done = quickstart(".", cwd=tmp_path)
    assert done.returncode == 2
    assert "mine" in done.stderr
    assert home.selections() == []


@pytest.mark.slow
def test_a_module_of_the_user_is_not_taken_for_python_s(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "random.py").write_text("raise SystemExit('not this one')")
    assert quickstart("here", cwd=tmp_path).returncode == 0
