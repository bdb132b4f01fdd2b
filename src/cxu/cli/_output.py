"""The sink of every command: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 120
_PLAIN_SECONDS = 30.0
_MOST_LISTED = 20


class Output:
    """Prints results and remarks.

    Parameters
    ----------
    as_json
        Print results as JSON instead of text.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def result(self, content: Any, *parts: RenderableType) -> None:
        """Print a result: ``content`` as JSON if that was asked for, else the parts one after the other."""
        if self.as_json:
            sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
            return
        for part in parts:
            self._out.print(part, soft_wrap=isinstance(part, str))

    def say(self, sentence: str) -> None:
        """Print a remark on stderr."""
        self._err.print(Text(sentence), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print a warning on stderr."""
        self._err.print(Text.assemble(("warning: ", "yellow"), sentence), soft_wrap=True)

    def list_items(self, title: str, items: Sequence[object], *, elsewhere: str = "") -> None:
        """Print up to 20 items on stderr, and how many more there are and where."""
        if not items:
            return
        self.say(title)
        for item in items[:_MOST_LISTED]:
            self.say(f"  {item}")
        if len(items) > _MOST_LISTED:
            self.say(f"  … and {len(items) - _MOST_LISTED} more{f': {elsewhere}' if elsewhere else ''}")

    @contextmanager
    def progress(self, verb: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
        """Give a function that takes how much more is done; shows count, rate and time left on stderr.

        A bar on a terminal; elsewhere a line every half minute.
        """
        if self._err.is_terminal and not os.environ.get("NO_COLOR"):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(unit),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._err, transient=True) as bar:
                task = bar.add_task(verb, total=total)
                yield lambda more: bar.advance(task, more)
            return
        lines = _ProgressLines(self, verb, total, unit)
        yield lines.advance


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:,.0f} {self._unit}/s" if task.speed else "")


class _ProgressLines:
    """Progress where there is no terminal."""

    def __init__(self, output: Output, verb: str, total: int | None, unit: str) -> None:
        self._output, self._verb, self._total, self._unit = output, verb, total, unit
        self._start = self._told = time.monotonic()
        self._done = 0

    def advance(self, more: int) -> None:
        self._done += more
        now = time.monotonic()
        if now - self._told < _PLAIN_SECONDS:
            return
        self._told = now
        rate = self._done / (now - self._start)
        of_total = f" of {self._total:,}" if self._total else ""
        left = f", {(self._total - self._done) / rate:,.0f} s left" if self._total and rate else ""
        self._output.say(f"{self._verb}: {self._done:,}{of_total} {self._unit}, {rate:,.0f} {self._unit}/s{left}")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; columns whose cells are all numbers or percentages are set flush right."""
    cells = [[_cell(value) for value in row] for row in rows]
    made = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = all(row[index].lstrip("-")[:1].isdigit() or row[index] in ("", "-") for row in cells)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def size(n_bytes: float) -> str:
    """Return a number of bytes in kB, MB or GB."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= scale:
            return f"{n_bytes / scale:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.1f} kB"


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as ``1 row`` or ``1,024 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def age(seconds: float) -> str:
    """Return a time span in its largest fitting unit."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
