"""``cxu plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from cxu.cli._errors import NOTHING_KEPT
from cxu.cli._options import FrameOption, HomeOption, JsonOption, WorkersOption
from cxu.cli._output import Output, percent
from cxu.cli._tables import announce, titled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import RenderableType

    from cxu.store import Home, StoredTable

EXAMPLE = "cxu plot kept mimic vindr --out kept.png"
KEPT: Final = NOTHING_KEPT

_Kind = Literal["nodes", "sigma", "kept", "rca", "ctr"]
_SCANS: Final[dict[_Kind, int]] = {"nodes": 2, "sigma": 2, "kept": 3, "rca": 1, "ctr": 1}


def command(
    kind: Annotated[
        _Kind,
        typer.Argument(
            metavar="nodes|sigma|kept|rca|ctr",
            help="nodes: which anatomy is uncertain. sigma: its distribution by organ. kept: what --max-std keeps. "
            "rca: image score against RCA. ctr: cardiothoracic ratio with intervals.",
            show_default=False,
        ),
    ],
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]...",
            help="Selections, sources, predictions or .parquet tables.",
            show_default="the selection 'latest'; kept: every source of the home",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The figure: .png, .svg or .pdf.", show_default=False)
    ] = None,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw figures of tables, by source: uncertainty, what a limit keeps, scores, ratios.

    Tables are read shard by shard, so that hundreds of thousands of rows take seconds to minutes. --json prints the
    numbers behind the figure.
    """
    from cxu.errors import UsageError
    from cxu.plot.figure import check_figure_path
    from cxu.store import Home

    if out is None:
        raise UsageError("--out: expected the figure's file, such as --out figure.png, .svg or .pdf")
    check_figure_path(out)
    output, store = Output(as_json=as_json), Home(home)
    stored = _open(store, kind, tables, frame)
    for one in stored:
        announce(output, store, one)
    measure, draw, tell = _functions(kind)
    with output.progress("reading", _SCANS[kind] * sum(one.rows for one in stored)) as advance:
        report = measure(stored, workers=workers, progress=advance)
    content = {"figure": str(out), **report.content()}
    draw(report, out)
    store.record_run(f"plot-{kind}", {"tables": [one.name for one in stored], **content})
    for name, what in _LEFT_OUT.items():
        if content.get(name):
            output.say(f"{content[name]:,} row{'' if content[name] == 1 else 's'} without {what} left out")
    output.result(content, *tell(content), f"\nfigure: {out}")


_LEFT_OUT: Final = {
    "rows_without_sigma": "standard deviations of known scale",
    "rows_without_score_or_rca": "image score or RCA",
}


def _open(store: Home, kind: _Kind, names: list[str] | None, frame: Any) -> list[StoredTable]:
    """Return the tables named; else the latest selection, or what a filter would be given."""
    from cxu.errors import MissingInputError

    if names:
        return [store.open(name, frame=frame) for name in names]
    if kind != "kept":
        return [store.open(None, frame=frame)]
    listings = [listing for listing in store.listings() if frame in (None, listing.frame)]
    if not listings:
        raise MissingInputError(f"{store.root} holds no source: start with cxu fetch or cxu import, or name a table")
    return [store.open_source(listing.source, listing.frame) for listing in listings]


def _functions(
    kind: _Kind,
) -> tuple[Callable[..., Any], Callable[[Any, Path], None], Callable[[Mapping[str, Any]], list[RenderableType]]]:
    """Return what measures, what draws and what tells the numbers of a kind of figure."""
    match kind:
        case "nodes":
            from cxu.plot.nodes import draw_nodes, measure_nodes

            return measure_nodes, draw_nodes, _tell_nodes
        case "sigma":
            from cxu.plot.sigma import draw_sigma, measure_sigma

            return measure_sigma, draw_sigma, _tell_sigma
        case "kept":
            from cxu.plot.kept import draw_kept, measure_kept

            return measure_kept, draw_kept, _tell_kept
        case "rca":
            from cxu.plot.rca import draw_rca, measure_rca

            return measure_rca, draw_rca, _tell_rca
        case "ctr":
            from cxu.plot.ctr import draw_ctr, measure_ctr

            return measure_ctr, draw_ctr, _tell_ctr


def _named(group: Mapping[str, Any]) -> list[object]:
    return [group["source"], group["model_id"][:12]]


def _tell_nodes(content: Mapping[str, Any]) -> list[RenderableType]:
    groups = content["groups"]
    means = {name: sum(group["regions"][name]["median_px"] for group in groups) for name in groups[0]["regions"]}
    order = sorted(means, key=means.__getitem__, reverse=True)
    rows = [[name, *(group["regions"][name]["median_px"] for group in groups)] for name in order]
    columns = ["stretch of outline", *(_group_name(group, groups) for group in groups)]
    return titled("Median node uncertainty, px of the 1024 model frame", columns, rows, gap=False)


def _group_name(group: Mapping[str, Any], groups: list[Mapping[str, Any]]) -> str:
    several = sum(one["source"] == group["source"] for one in groups) > 1
    return f"{group['source']} {group['model_id'][:8]}" if several else str(group["source"])


def _tell_sigma(content: Mapping[str, Any]) -> list[RenderableType]:
    rows = [
        [*_named(group), name, *organ["quantiles_px"].values()]
        for group in content["groups"]
        for name, organ in group["organs"].items()
    ]
    columns = ["source", "model", "organ", *(f"{share} %" for share in ("5", "25", "50", "75", "95"))]
    return titled("Node uncertainty, px of the 1024 model frame", columns, rows, gap=False)


def _tell_kept(content: Mapping[str, Any]) -> list[RenderableType]:
    groups = content["groups"]
    rows = [[*_named(group), *group["max_std_for_percent_of_nodes"].values()] for group in groups]
    title = "--max-std that would keep this share of the nodes, px of the 1024 model frame"
    return titled(title, ["source", "model", "50 %", "80 %", "95 %"], rows, gap=False) + titled(
        "What cxu filter --max-std keeps",
        ["source", "model", "--max-std", "nodes within", "rows kept", "of all rows"],
        [
            [*_named(group), f"{one['max_std']:g}", percent(one["nodes_within"]["all"]), one["rows_kept"], share]
            for group in groups
            for one, share in _few_limits(group)
        ],
    )


def _few_limits(group: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Return the limits next above those that keep 50, 80 and 95 % of the nodes, and the share of rows they keep."""
    found: list[Mapping[str, Any]] = []
    for limit in group["max_std_for_percent_of_nodes"].values():
        above = [one for one in group["limits"] if one["max_std"] >= limit]
        if above and (not found or above[0] is not found[-1]):
            found.append(above[0])
    return [(one, percent(one["rows_kept"] / max(group["rows"], 1))) for one in found]


def _tell_rca(content: Mapping[str, Any]) -> list[RenderableType]:
    rows = [
        [*_named(group), name, group[name]["rows"], group[name]["spearman"]]
        for group in content["groups"]
        for name in ("rca_mean", "rca_max")
    ]
    title = "Image score against RCA, another automatic score"
    return titled(title, ["source", "model", "RCA", "rows", "Spearman"], rows, gap=False)


def _tell_ctr(content: Mapping[str, Any]) -> list[RenderableType]:
    limit = content["limit"]
    rows = []
    for group in content["groups"]:
        quantiles = (group["ratio_quantiles"] or {}).get("50")
        shown = "-" if quantiles is None else f"{quantiles:.3f}"
        blank = sum(group["blank"].values())
        rows.append([*_named(group), group["rows"], blank, shown, *group["intervals"].values()])
    columns = ["source", "model", "rows", "blank", "median", f"below {limit:g}", "undecided", "above", "no interval"]
    return titled(f"Cardiothoracic ratio, and where 90 % intervals lie to {limit:g}", columns, rows, gap=False)
