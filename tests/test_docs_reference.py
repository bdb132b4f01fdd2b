"""The command reference is what its script makes of the command line, and has everything in it."""

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
import typer.main

from cxu.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_current(script):
    assert PAGE.read_text("utf-8") == script.current(), "out of date: python scripts/make_reference.py writes it anew"


def test_every_command_and_option_is_there(script):
    sections = dict(re.findall(r"^## (cxu[\w ]*)\n(.*?)(?=^## |\Z)", script.current(), re.MULTILINE | re.DOTALL))
    commands = dict(script.walk(typer.main.get_command(app), "cxu"))
    assert set(sections) == {"cxu", *commands}
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert {one for one in options - {"--help"} if not re.search(rf"`{one}[ `/]", sections[name])} == set()
        assert "\n    cxu " in sections[name], f"{name}: no example"


SMALL = typer.Typer()


@SMALL.callback()
def _root():
    """Root."""


@SMALL.command("draw", epilog="Example:  cxu draw a.png --out b.png")
def _draw(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, or lists_of_them.")],
    out: Annotated[Path, typer.Option("--out", help="Not with --fast.")],
    target: Annotated[str | None, typer.Argument(help="Where.", show_default="here")] = None,
    shape: Annotated[Literal["round", "flat"], typer.Option("--shape", help="Which | what.")] = "round",
    n: Annotated[int, typer.Option("--n", min=1, help="How many.", rich_help_panel="How")] = 3,
    share: Annotated[float, typer.Option("--share", metavar="SHARE", rich_help_panel="How")] = 1e-5,
    fast: Annotated[bool, typer.Option("--fast", help="Be quick.", rich_help_panel="How")] = False,
    colour: Annotated[bool, typer.Option("--colour/--grey", rich_help_panel="How")] = True,
    name: Annotated[list[str] | None, typer.Option("--name", help="May be repeated.")] = None,
    home: Annotated[Path | None, typer.Option("--home", envvar="CXU_HOME", show_default="./cxu-data")] = None,
    secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
):
    """Draw it.

    A second paragraph,
    of two lines.
    """


EXPECTED = """\
## cxu draw

Draw it.

A second paragraph, of two lines.

```text
cxu draw --out PATH [OPTIONS] IMAGE... [TARGET]
```

| argument | default | effect |
| --- | --- | --- |
| `IMAGE...` | *required* | Images, or lists\\_of\\_them. |
| `[TARGET]` | here | Where. |

| option | default | effect |
| --- | --- | --- |
| `--out PATH` | *required* | Not with `--fast`. |
| `--shape round\\|flat` | `round` | Which \\| what. |
| `--name TEXT`… | | May be repeated. |
| `--home PATH` | `CXU_HOME`, else ./cxu-data | |

**How**

| option | default | effect |
| --- | --- | --- |
| `--n N` | `3` | How many. At least 1. |
| `--share SHARE` | `1e-05` | |
| `--fast` | | Be quick. |
| `--colour/--grey` | `--colour` | |

For example:

    cxu draw a.png --out b.png

Explained at [`cxu draw`](commands/draw.md). Exit codes [0, 3](commands/draw.md#exit-codes).
"""


def test_a_small_command_in_full(script, tmp_path):
    (tmp_path / "draw.md").write_text(
        "# cxu draw\n\n## Exit codes\n\n| code | when |\n|---|---|\n| 0 | a |\n| 3 | b |\n"
    )
    ((name, command),) = script.walk(typer.main.get_command(SMALL), "cxu")
    assert "\n".join(script.command_part(command, name, tmp_path)) == EXPECTED


def test_a_command_without_a_page_has_no_link(script, tmp_path):
    assert script.exit_lines("cxu draw", tmp_path) == []
