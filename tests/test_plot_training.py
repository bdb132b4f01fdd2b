import sys

import numpy as np
import pytest
from PIL import Image

from cxu.errors import MissingExtraError
from cxu.plot.training import draw_curves

LINES = [
    {"step": 10, "loss_points": 0.1, "val_mse_px2": 500.0, "val_dice_heart": None, "val_pearson": 0.1},
    {"step": 20, "loss_points": 0.01, "val_mse_px2": 300.0, "val_dice_heart": 0.9, "val_pearson": None},
]


def picture(path):
    with Image.open(path) as image:
        return np.array(image.convert("L"))


def test_curves_are_drawn(tmp_path):
    draw_curves(LINES, tmp_path / "curves.png")
    draw_curves([], tmp_path / "empty.png")
    drawn, empty = picture(tmp_path / "curves.png"), picture(tmp_path / "empty.png")
    assert drawn.shape == empty.shape
    assert (drawn != empty).mean() > 0.005


def test_the_same_lines_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(LINES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cxu\[plot\]'"):
        draw_curves(LINES, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
