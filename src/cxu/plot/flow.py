"""The flow of exclusions in boxes, in the manner of STARD: what is kept goes down, what is left out to the side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cxu.plot.figure import new_figure, save_figure
from cxu.report.words import listed, number, percent, source_and_frame, table_words, title_of

if TYPE_CHECKING:
    from cxu.report.exclusions import Counts, Exclusion, Stage

_FONT_PT: Final = 9.0
_LINE: Final = 0.175  # inch, as all lengths below
_PAD: Final = 0.11
_BETWEEN: Final = 0.32  # boxes one below the other
_BESIDE: Final = 0.4
_MARGIN: Final = 0.15
_LEAST_WIDTH: Final = 2.2
_WRAP: Final = 46  # characters
_MOST_SOURCES: Final = 12
_NUMBER_GAP: Final = 0.18
_HINTING: Final = 1.07  # glyphs are drawn on whole pixels, and so wider than their outlines
_FILLS: Final = {"main": "white", "out": "#f3f3f3", "kept": "#e3eef7"}


Line = tuple[str, str]  # what is told, and a number set flush right, or nothing


@dataclass
class _Box:
    """A box of text; ``x``, ``y`` are its left upper corner, y downwards."""

    title: str
    lines: list[Line] = field(default_factory=list)
    kind: str = "main"
    x: float = 0.0
    y: float = 0.0
    width: float = _LEAST_WIDTH

    @property
    def height(self) -> float:
        return _LINE * (1 + len(self.lines)) + 2 * _PAD

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class _Column:
    """A stage drawn from top to bottom, and the columns that it was made from above it.

    Attributes
    ----------
    above
        The columns of the selections that it read, side by side.
    main, out
        Boxes of what goes on, and beside the way from each to the next of what does not.
    """

    above: list[_Column]
    main: list[_Box]
    out: list[_Box]

    def boxes(self) -> list[_Box]:
        return [box for column in self.above for box in column.boxes()] + self.main + self.out

    @property
    def last(self) -> _Box:
        return self.main[-1]


def draw_flow(stage: Stage, path: Path, *, kept: Sequence[Line] = ()) -> None:
    """Draw the flow of exclusions of a table, and of all that it was made from, into a PNG, SVG or PDF.

    Parameters
    ----------
    stage
        How the table was made.
    path
        Its suffix says the format.
    kept
        What else is told of the rows kept, in the last box: words, and a number or nothing.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    new_figure(1, 1)  # says what to install, where matplotlib is not
    column = _column(stage)
    column.last.kind = "kept"
    column.last.lines += kept
    boxes = column.boxes()
    counts = _counts_width(boxes)
    width = max(_LEAST_WIDTH, counts + 2 * _PAD, *(_text_width(box) + 2 * _PAD for box in boxes))
    for box in boxes:
        box.width = width
    across, down = _place(column, _MARGIN, _MARGIN)
    figure = new_figure(across + _MARGIN, down + _MARGIN)
    figure.set_layout_engine("none")  # everything has its place
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across + _MARGIN), ylim=(down + _MARGIN, 0))
    axes.set_axis_off()
    _draw_ways(axes, column)
    for box in boxes:
        _draw_box(axes, box, counts)
    save_figure(figure, path)


# --- what stands in the boxes ---------------------------------------------------------------------------------------


def _column(stage: Stage) -> _Column:
    above = [_column(one.stage) for one in stage.inputs if one.stage is not None]
    main, out = _first_boxes(stage, above), []
    if stage.steps is None:
        unknown = None if stage.total_in is None or stage.total_out is None else stage.total_in - stage.total_out
        out.append(_Box(_counted("Left out", unknown), _wrapped("the reasons are not known"), "out"))
        main.append(_kept_box(stage))
    for index, step in enumerate(stage.steps or ()):
        out.append(_out_box(stage, step, index))
        is_last = index + 1 == len(stage.steps or ())
        main.append(_kept_box(stage) if is_last else _between_box(stage, step, index))
    if stage.is_filter and not out:
        main.append(_kept_box(stage))
    return _Column(above, main, out)


def _first_boxes(stage: Stage, above: Sequence[_Column]) -> list[_Box]:
    """Return the box of what was read; none where it is what the one selection above kept."""
    if len(above) == 1 and len(stage.inputs) == 1:
        return []
    title = _counted("Read" if stage.is_filter else f"Table {table_words(stage.name)}", stage.total_in)
    # the names of sources stand before their rows
    tables = [table_words(one.name) for one in stage.inputs if not source_and_frame(one.name)]
    told = _wrapped(f"from {listed(tables)}") if tables else []
    return [_Box(title, [*told, *_by_source(stage.rows_in), *_patients(stage, stage.patients_at(0))])]


def _out_box(stage: Stage, step: Exclusion, index: int) -> _Box:
    excluded = {name: count for name, count in step.excluded.items() if count}
    before, after = stage.patients_at(index), stage.patients_at(index + 1)
    lost = None if before is None or after is None else before - after
    told = [*_wrapped(step.said), *(_by_source(excluded) if len(step.rows_in) > 1 else [])]
    told += _patients(stage, lost, "patients lost", of_sources=False)
    return _Box(_counted("Left out", sum(excluded.values())), told, "out")


def _between_box(stage: Stage, step: Exclusion, index: int) -> _Box:
    return _Box(_counted("", sum(step.rows_out.values())), _patients(stage, stage.patients_at(index + 1)))


def _kept_box(stage: Stage) -> _Box:
    share = f" ({percent(stage.total_out, stage.total_in)})" if stage.total_out is not None and stage.total_in else ""
    title = f"{_counted('Kept', stage.total_out)}{share}"
    counts = [*_by_source(stage.rows_out), *_patients(stage, stage.patients_at(-1))]
    return _Box(title, [*_wrapped(f"selection {table_words(stage.name)}"), *counts])


def _counted(what: str, count: int | None) -> str:
    told = "n unknown" if count is None else f"n = {number(count)}"
    return f"{what}: {told}" if what else told


def _by_source(counts: Counts | None) -> list[Line]:
    shown = [(title_of(name), number(count)) for name, count in sorted((counts or {}).items()) if count]
    more = len(shown) - _MOST_SOURCES
    return shown if more <= 0 else [*shown[:_MOST_SOURCES], (f"and {more} more sources", "")]


def _patients(stage: Stage, count: int | None, what: str = "patients", *, of_sources: bool = True) -> list[Line]:
    if count is None:
        return []
    named, sources = len(stage.patients or {}), len(stage.rows_in or {})
    of = f" ({named} of {sources} sources)" if of_sources and named < sources else ""
    return [(f"{what}{of}", number(count))]


def _wrapped(text: str) -> list[Line]:
    return [(line, "") for line in textwrap.wrap(text, _WRAP)]


# --- where they stand -----------------------------------------------------------------------------------------------


def _text_width(box: _Box) -> float:
    """Return the width of the widest line that has no number of its own, inch."""
    return max([_width_of(box.title, "bold"), *(_width_of(text) for text, count in box.lines if not count)])


def _counts_width(boxes: Sequence[_Box]) -> float:
    """Return the width of the lines of two parts, whose second parts end at one place in every box, inch."""
    pairs = [line for box in boxes for line in box.lines if line[1]]
    if not pairs:
        return 0.0
    return max(_width_of(text) for text, _ in pairs) + _NUMBER_GAP + max(_width_of(count) for _, count in pairs)


def _width_of(text: str, weight: str = "normal") -> float:
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415 - an optional extra
    from matplotlib.textpath import TextPath  # noqa: PLC0415 - an optional extra

    if not text.strip():
        return 0.0
    # a dollar sign is a dollar sign, not mathematics
    outline = TextPath((0, 0), text.replace("$", "S"), size=_FONT_PT, prop=FontProperties(weight=weight))
    return float(outline.get_extents().width) / 72 * _HINTING


def _place(column: _Column, left: float, top: float) -> tuple[float, float]:
    """Place the boxes of a column and of those above it; return how far they reach to the right and down."""
    right, below = left, top
    for one in column.above:
        reached, lowest = _place(one, right, top)
        right, below = reached + _BESIDE, max(below, lowest)
    width = column.last.width
    column_width = width * 2 + _BESIDE if column.out else width
    right = max(right - _BESIDE if column.above else left, left + column_width)
    x = column.above[0].last.x if len(column.above) == 1 else left + (right - left - column_width) / 2
    y = below + (_BETWEEN if column.above and len(column.main) > len(column.out) else 0.0)
    # where the first box is the last one of the column above, what is left out begins below that one
    boxes = column.main if len(column.main) > len(column.out) or not column.out else [None, *column.main]
    for index, box in enumerate(boxes):
        if box is not None:
            box.x, box.y = x, y
            y = box.bottom
        if index < len(column.out):
            out = column.out[index]
            out.x, out.y = x + width + _BESIDE, y + _BETWEEN / 2
            y = out.bottom + _BETWEEN / 2
        elif index + 1 < len(boxes):
            y += _BETWEEN
    return right, y


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw_ways(axes: Any, column: _Column) -> None:
    first = column.main[0]
    for one in column.above:
        _draw_ways(axes, one)
        if column.main and one.last.middle == first.middle:
            _arrow(axes, (one.last.middle, one.last.bottom), (first.middle, first.y))
        else:
            level = first.y - _BETWEEN / 2
            axes.plot([one.last.middle] * 2, [one.last.bottom, level], color="black", linewidth=1)
            axes.plot([one.last.middle, first.middle], [level, level], color="black", linewidth=1)
            _arrow(axes, (first.middle, level), (first.middle, first.y))
    for above, below in zip(column.main[:-1], column.main[1:], strict=True):
        _arrow(axes, (above.middle, above.bottom), (below.middle, below.y))
    for out in column.out:
        level = out.y + out.height / 2
        _arrow(axes, (out.x - _BESIDE - out.width / 2, level), (out.x, level))


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def _draw_box(axes: Any, box: _Box, counts_width: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - an optional extra

    axes.add_patch(
        Rectangle((box.x, box.y), box.width, box.height, facecolor=_FILLS[box.kind], edgecolor="black", linewidth=1)
    )
    left, right = box.x + _PAD, box.x + _PAD + counts_width
    style: dict[str, Any] = {"fontsize": _FONT_PT, "va": "center_baseline", "parse_math": False}
    for index, (text, count) in enumerate([(box.title, ""), *box.lines]):
        y = box.y + _PAD + (index + 0.5) * _LINE
        axes.text(left, y, text, fontweight="bold" if index == 0 else "normal", **style)
        if count:
            axes.text(right, y, count, ha="right", **style)
