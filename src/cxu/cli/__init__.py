"""The command line: one file a command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import cxu
from cxu.cli import (
    check,
    crop,
    demo,
    export,
    fetch,
    filter_,
    import_,
    info,
    ls,
    measure,
    overlay,
    plot,
    predict,
    quickstart,
    rasterize,
    report,
    train,
)
from cxu.cli._errors import KEPT, NOTHING_KEPT, guarded
from cxu.cli.evaluate import accuracy, calibration, error, noise, occlusion, ood

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
    ("overlay", overlay),
    ("check", check),
    ("crop", crop),
    ("export", export),
    ("predict", predict),
    ("measure", measure),
    ("plot", plot),
    ("report", report),
    ("ls", ls),
    ("info", info),
    ("train", train),
    ("demo", demo),
):
    app.command(name, cls=getattr(module, "Command", None), epilog=f"Example:  {module.EXAMPLE}")(
        guarded(module.command, kept=getattr(module, "KEPT", KEPT))
    )

evaluate = typer.Typer(
    help="Measure what landmarks and uncertainty are worth, on images and tables of your own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(evaluate, name="evaluate", epilog="Example:  cxu evaluate accuracy predictions/ truth.npz")

for name, module in (
    ("accuracy", accuracy),
    ("error", error),
    ("noise", noise),
    ("occlusion", occlusion),
    ("ood", ood),
    ("calibration", calibration),
):
    evaluate.command(name, epilog=f"Example:  {module.EXAMPLE}")(guarded(module.command, kept=NOTHING_KEPT))
