"""The command line: one file a command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import cxu
from cxu.cli import fetch, filter_, import_, info, ls, predict, quickstart, rasterize, train
from cxu.cli._errors import guarded

app = typer.Typer(
    name="cxu",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


@app.callback(
    invoke_without_command=True,
    epilog="Start with:  cxu quickstart   Then:  cxu fetch mimic · cxu filter --max-std 5 · cxu rasterize --out masks/ "
    "· cxu predict image.png",
)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: as JSON.")] = False,
) -> None:
    """Landmarks, uncertainty and masks of CheXmask-U.

    Fetch or import the published landmarks, keep what is certain, draw masks. Research and education only; not a
    medical device.
    """
    if version:
        typer.echo(json.dumps({"version": cxu.__version__}) if as_json else f"cxu {cxu.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


for name, module in (
    ("quickstart", quickstart),
    ("fetch", fetch),
    ("import", import_),
    ("filter", filter_),
    ("rasterize", rasterize),
    ("predict", predict),
    ("ls", ls),
    ("info", info),
    ("train", train),
):
    app.command(name, cls=getattr(module, "Command", None), epilog=f"Example:  {module.EXAMPLE}")(
        guarded(module.command)
    )
