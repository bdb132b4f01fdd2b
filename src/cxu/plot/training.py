"""The curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cxu.plot.figure import new_figure, save_figure

# panel title → the columns whose names begin so
_PANELS: Final = {
    "loss": "loss_",
    "squared error, px²": "val_mse_px2",
    "Dice": "val_dice",
    "sigma against error": "val_pearson",
}
_LOGARITHMIC: Final = ("loss", "squared error, px²")


def draw_curves(lines: Sequence[Mapping[str, float | int | None]], path: Path) -> None:
    """Draw the metrics of a training run over its steps into a PNG.

    Parameters
    ----------
    lines
        The table of metrics: ``step`` and columns that begin with ``loss_`` or ``val_``.
    path
        The file.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    figure = new_figure(12, 8)
    for axes, (title, prefix) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for name in dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            # a logarithmic axis has no place for parts without a weight, nor for a log-likelihood
            if points and (title not in _LOGARITHMIC or all((value or 0) > 0 for _, value in points)):
                axes.plot(*zip(*points, strict=True), label=name.removeprefix("val_").removeprefix("loss_"))
        axes.set(title=title, xlabel="step", yscale="log" if title in _LOGARITHMIC else "linear")
        if axes.lines:
            axes.legend(fontsize="small")
    save_figure(figure, path)
