"""Make docs/reference.md: every command with its arguments, options and defaults, as the command line itself has them.

    python scripts/make_reference.py

writes the page; `tests/test_docs_reference.py` fails where it is not what this script makes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import typer.main

from cxu import files
from cxu.cli import app

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference.md"
COMMANDS: Final = ROOT / "docs" / "commands"
INTRO: Final = """\
# Command reference

Every command with its arguments, options and defaults. `python scripts/make_reference.py` makes this page of the
command line itself; [the pages of the commands](commands/index.md) explain, with examples and output.

All commands print results to stdout and everything else to stderr, know `--help`, and end with the same
[exit codes](commands/index.md#exit-codes).
"""
# what a value is called where an option does not say it itself
_VALUES: Final = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def reference(root: Any, pages: Path) -> str:
    """Return the page as Markdown.

    Parameters
    ----------
    root
        The group of all commands, as click has it.
    pages
        The folder of the commands' own pages, for links and exit codes.
    """
    parts = [INTRO, "\n".join(command_part(root, "cxu", None))]
    parts += ["\n".join(command_part(command, name, pages)) for name, command in walk(root, "cxu")]
    return "\n".join(parts)


def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Give the commands of a group and of its groups with the words that call them, in the order of ``cxu --help``."""
    for name, command in group.commands.items():
        if getattr(command, "hidden", False):
            continue
        if getattr(command, "commands", None) is None:
            yield f"{prefix} {name}", command
        else:
            yield from walk(command, f"{prefix} {name}")


def command_part(command: Any, name: str, pages: Path | None) -> list[str]:
    """Return the lines about one command."""
    of = kinds(command)  # not those that typer adds: help, completion
    shown = [one for one in command.params if one.name in of and not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    words = [name, *(f"{one.opts[-1]} {value_of(one, of[one.name][0])}" for one in options if one.required)]
    words += ["[OPTIONS]", *(argument_name(one) for one in arguments)]
    if getattr(command, "commands", None) is not None:
        words.append("COMMAND")
    lines = [f"## {name}", "", *paragraphs(command.help), "```text", " ".join(words), "```", ""]
    lines += table(("argument", "default", "effect"), [argument_cells(one) for one in arguments])
    for panel, members in panels(options):
        lines += [] if panel is None else [f"**{panel}**", ""]
        lines += table(("option", "default", "effect"), [option_cells(one, *of[one.name]) for one in members])
    example = re.search(r"Example:\s+(cxu .*)", command.epilog or "")
    lines += ["For example:", "", f"    {example[1]}", ""] if example else []
    return lines + ([] if pages is None else exit_lines(name, pages))


def kinds(command: Any) -> dict[str, tuple[Any, Any]]:
    """Return what the function behind a command takes: name → the type without None and list, and typer's info."""
    found = {}
    for name, hint in get_type_hints(command.callback, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        kind, info = get_args(hint)[:2]
        while get_origin(kind) in (list, Union, UnionType):
            kind = next(one for one in get_args(kind) if one is not type(None))
        found[name] = kind, info
    return found


def panels(options: list[Any]) -> list[tuple[str | None, list[Any]]]:
    """Return the options by panel as ``--help`` groups them, those without one first."""
    found: dict[str | None, list[Any]] = {None: []}
    for option in options:
        found.setdefault(getattr(option, "rich_help_panel", None), []).append(option)
    return [(panel, members) for panel, members in found.items() if members]


def argument_name(argument: Any) -> str:
    """Return how an argument stands in the usage: in brackets where it may be left out, with dots where repeated."""
    name = (argument.metavar or argument.name.upper()).strip("[]")
    if argument.nargs == -1 and not name.endswith(("...", "…")):
        name += "…"
    return name if argument.required else f"[{name}]"


def argument_cells(argument: Any) -> list[str]:
    """Return the cells of an argument."""
    return [f"`{bar(argument_name(argument))}`", default_of(argument, has_value=True), prose(argument.help)]


def option_cells(option: Any, kind: Any, info: Any) -> list[str]:
    """Return the cells of an option."""
    value = value_of(option, kind)
    name = "/".join([option.opts[-1], *option.secondary_opts])
    dots = "…" if value and option.multiple else ""
    cell = f"`{bar(f'{name} {value}'.rstrip())}`{dots}"
    return [
        cell,
        default_of(option, has_value=bool(value)) or default_switch(option),
        prose(option.help) + bounds(info.min, info.max),
    ]


def value_of(option: Any, kind: Any) -> str:
    """Return what an option takes: its own word for it, its choices, or the kind of value; empty for a switch."""
    if option.metavar or kind is bool:
        return str(option.metavar or "")
    return "|".join(map(str, get_args(kind))) or _VALUES[kind]


def bounds(least: float | None, most: float | None) -> str:
    """Return a sentence of the least and greatest value, where there are any."""
    told = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    return f" {' and '.join(told).capitalize()}." if told else ""


def default_of(parameter: Any, *, has_value: bool) -> str:
    """Return the default, as a value or in the words that ``--help`` has for it; *required* where there is none."""
    if parameter.required:
        return "*required*"
    shown = getattr(parameter, "show_default", None)
    told = ""
    if isinstance(shown, str):
        told = bar(shown)
    elif shown is not False and has_value and isinstance(parameter.default, str | int | float):
        told = f"`{bar(written(parameter.default))}`"
    variable = getattr(parameter, "envvar", None)
    return f"`{variable}`, else {told}" if variable and told else told


def default_switch(option: Any) -> str:
    """Return which of the two names of a switch is the default; nothing where it has but one."""
    names = option.opts if option.default else option.secondary_opts
    return f"`{names[-1]}`" if option.secondary_opts else ""


def written(value: Any) -> str:
    """Return a default as one would type it."""
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def paragraphs(text: str | None) -> list[str]:
    """Return the help of a command, a paragraph a line."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc((text or "").replace("\b", "")).strip())
    return [line for block in blocks if block for line in (prose(block), "")]


def prose(text: str | None) -> str:
    """Return help as Markdown: options as code, nothing else with a meaning of its own."""
    plain = re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join((text or "").split()))
    return re.sub(r"(?<![\w-])--[a-z][a-z0-9-]*", lambda found: f"`{found[0]}`", plain)


def bar(text: str) -> str:
    """Return text for code in a cell of a table."""
    return text.replace("|", "\\|")


def table(titles: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table; nothing without rows."""
    if not rows:
        return []
    lines = [titles, ["---"] * len(titles), *rows]
    return [*(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines), ""]


def exit_lines(name: str, pages: Path) -> list[str]:
    """Return where a command is explained, and the exit codes that its page lists."""
    page = f"{name.removeprefix('cxu ').replace(' ', '-')}.md"
    path = pages / page
    if not path.is_file():
        return []
    section = re.search(r"^## Exit codes\n(.*?)(?=^## |\Z)", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    codes = re.findall(r"^\| (\d+) \|", section[1], re.MULTILINE) if section else []
    told = f" Exit codes [{', '.join(codes)}](commands/{page}#exit-codes)." if codes else ""
    return [f"Explained at [`{name}`](commands/{page}).{told}", ""]


def current() -> str:
    """Return the page as it should be now."""
    return reference(typer.main.get_command(app), COMMANDS)


if __name__ == "__main__":
    files.write_bytes(PAGE, current().encode())
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
