"""A figure without a display, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cxu import files
from cxu.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
# Blue, orange and green of Okabe and Ito's palette, which people with any colour vision tell apart.
ORGAN_COLOURS: Final = {"right_lung": "#0072B2", "left_lung": "#009E73", "heart": "#D55E00"}


def new_figure(width_inch: float, height_inch: float) -> Figure:
    """Return an empty figure.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("figures need matplotlib: pip install 'cxu[plot]'") from None
    return Figure(figsize=(width_inch, height_inch), layout="constrained")


def check_figure_path(path: Path) -> None:
    """Check that a figure can be written under that name, before there is one.

    Raises
    ------
    UsageError
        If the suffix is none of PNG, SVG or PDF.
    MissingExtraError
        If matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"figure {path}: expected a name that ends in {', '.join(FORMATS)}")
    new_figure(1, 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the suffix says the format. The same figure gives the same bytes."""
    kind = path.suffix.lower().removeprefix(".")
    # no time of writing
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    from matplotlib import rc_context  # noqa: PLC0415 - an optional extra

    # names of SVG elements are hashes of their content and a salt, which is random unless set
    with files.replacing_output(path) as temporary, rc_context({"svg.hashsalt": "cxu"}):
        figure.savefig(temporary, format=kind, dpi=110, metadata=metadata)


def plain_log_ticks(axes: Axes) -> None:
    """Write the ticks of a logarithmic x axis as numbers that people read: 5, 10, 20."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415 - an optional extra

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
