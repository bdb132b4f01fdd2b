"""The gallery: its pictures are those that the script makes, small enough to ship, and their commands are told."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxu.anatomy import ORGANS
from cxu.canvas import sigma_colours

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_gallery", ROOT / "scripts" / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_on_the_page_below_its_command(script):
    lines = (GALLERY / "index.md").read_text("utf-8").splitlines()
    for picture in script.PICTURES:
        command = lines.index(f"    {picture.command}")
        shown = next(number for number, line in enumerate(lines) if f"]({picture.name})" in line)
        assert command < shown
        assert not [line for line in lines[command + 1 : shown] if line.startswith("    ")]
    for command in script.SETUP:
        assert f"    {command}" in lines


def test_pictures_are_those_of_the_script_and_small(script):
    found = {path.name: path.stat().st_size for path in GALLERY.glob("*.png")}
    assert set(found) == {picture.name for picture in script.PICTURES}
    assert max(found.values()) <= script.MOST_BYTES


@pytest.mark.parametrize("name", ["overlay-uncertainty.png", "overlay-sheet.png"])
def test_few_colours_keep_those_that_mean_something(name):
    with Image.open(GALLERY / name) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    wanted = [*(organ.colour_rgb for organ in ORGANS), *sigma_colours(np.linspace(0, 24, 7)).tolist()]
    for colour in wanted:
        assert np.abs(pixels - colour).max(axis=1).min() <= 12, colour


def test_a_picture_is_reduced_to_what_fits(script, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (420, 420, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("RGB", (2000, 500), "white").save(tmp_path / "plain.png")
    assert len(script.reduced(tmp_path / "noise.png")) <= script.MOST_BYTES
    (tmp_path / "small.png").write_bytes(script.reduced(tmp_path / "plain.png"))
    with Image.open(tmp_path / "small.png") as picture:
        assert (picture.mode, picture.width) == ("RGB", script.MOST_PX)
