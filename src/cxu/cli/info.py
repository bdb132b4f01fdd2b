"""``cxu info``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cxu.cli._model import load_model, model_parts
from cxu.cli._options import FrameOption, HomeOption, JsonOption, with_default
from cxu.cli._output import Output, make_table, percent
from cxu.cli._tables import announce, titled
from cxu.errors import UsageError

EXAMPLE = "cxu info mimic"

_QUANTILES = ("5 %", "25 %", "50 %", "75 %", "95 %")
_MOST_VALUES = 8
_COUNTED = {
    "source": "source",
    "frame": "frame",
    "model_id": "model",
    "n_samples": "samples of the model",
    "repo": "repository",
    "revision": "revision",
    "view": "view",
    "quality": "quality",
}
_FLAGS = {
    "without_sigma": "rows without uncertainty",
    "without_size": "rows without image size",
    "rca_swapped": "rows with RCA exchanged",
}
_BY_ROW = {
    "rca_mean": "RCA mean, Dice",
    "rca_max": "RCA max, Dice",
    "mean_sigma_model_px": "mean node uncertainty, model px",
}


class Command(TyperCommand):
    """``--model`` alone means ``--model bundled``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words behind ``cxu info``."""
        return super().parse_args(ctx, with_default(args, "--model", "bundled"))


def command(
    table: Annotated[
        str | None,
        typer.Argument(help="A selection, a source or a .parquet table.", show_default="the selection 'latest'"),
    ] = None,
    frame: FrameOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="[SPEC]",
            help="Describe a network instead: as --weights of cxu predict; alone, that of cxu.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a table: rows, sources, frames, uncertainty by organ, RCA, provenance. Or, with --model, a network."""
    output = Output(as_json=as_json)
    if model is not None:
        _describe_model(output, model, table, frame)
        return
    from cxu.info import describe_table
    from cxu.store import Home

    store = Home(home)
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    description = describe_table(stored)
    output.result(description, *_parts(description))


def _describe_model(output: Output, spec: str, table: str | None, frame: str | None) -> None:
    if table is not None or frame is not None:
        other = f"the table {table}" if table is not None else f"--frame {frame}"
        raise UsageError(f"--model {spec} describes a network, {other} asks for a table: give one of them")
    from cxu.model.card import describe_model

    description = describe_model(load_model(output, spec))
    output.result(description, *model_parts(description))


def _parts(description: dict[str, Any]) -> list[Any]:
    overview = make_table("", ["", ""], _overview(description))
    overview.show_header = False
    parts: list[Any] = [overview]
    sigma = [[name, *values] for name, values in description["sigma_model_px"].items()]
    if sigma:
        parts += titled("Node uncertainty, px of the 1024 model frame", ["organ", *_QUANTILES], sigma)
    by_row = [[title, *description[name]] for name, title in _BY_ROW.items() if description[name]]
    if by_row:
        parts += titled("By row", ["", *_QUANTILES], by_row)
    if description["rows"] and "nodes_confident" in description:
        shares = [
            [name, percent(share), percent(description["organs_usable"][name])]
            for name, share in description["nodes_confident"].items()
        ]
        parts += titled("Selection", ["organ", "nodes confident", "organs usable"], shares)
    return parts


def _overview(description: dict[str, Any]) -> list[list[object]]:
    partial = description["facts"].get("partial")
    rows: list[list[object]] = [["rows", f"{description['rows']:,}{' (partial: --limit-rows)' if partial else ''}"]]
    for name, title in _COUNTED.items():
        counts = description[name]
        if any(value is not None for value in counts):
            texts = [f"{'none' if value is None else value} ({count:,})" for value, count in counts.items()]
            rows.append([title, ", ".join(texts[:_MOST_VALUES]) + (", …" if len(texts) > _MOST_VALUES else "")])
    rows += [[title, description[name]] for name, title in _FLAGS.items()]
    return rows
