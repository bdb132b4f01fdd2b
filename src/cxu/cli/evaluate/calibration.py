"""``cxu evaluate calibration``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import HomeOption, JsonOption
from cxu.cli._output import Output
from cxu.cli._tables import announce, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.evaluation.coverage import CoverageReport
    from cxu.stats import Interval

EXAMPLE = "cxu evaluate calibration predictions/ landmarks.npz --by index.csv:dataset --figure calibration.png"


def command(
    predictions: Annotated[str, typer.Argument(help="Predictions: a folder, a .parquet table, or a name of the home.")],
    truth: Annotated[str, typer.Argument(help="Annotated landmarks: an .npz file or a table.")],
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="FILE:COLUMN",
            help="Table that says each image's data set; its first column has the ids.",
            show_default="the rows' source",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write every node to this .parquet or .csv file.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw it: .png, .svg or .pdf.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how often the calibrated radii hold the truth, and what sigma is worth as a standard deviation."""
    from cxu.evaluation.calibrated import compare
    from cxu.evaluation.coverage import NOMINAL, measure_coverage, node_table
    from cxu.evaluation.result_file import check_table_path, write_rows
    from cxu.plot.coverage import draw_coverage
    from cxu.plot.figure import check_figure_path
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if out:
        check_table_path(out)
    if figure:
        check_figure_path(figure)
    stored = store.open(predictions)
    announce(output, store, stored)
    compared = compare(stored, store, truth, by=by)
    report = measure_coverage(compared.pairs)
    if len(compared.model_ids) > 1:
        output.warn(f"rows of {len(compared.model_ids)} models are taken together: their sigmas do not compare")
    if not report.radii:
        output.warn("the rows have no calibrated radii: only predictions of the weights that ship with cxu have some")
        if figure:
            output.warn(f"{figure} is not drawn: it shows radii")
    if out:
        write_rows(node_table(compared.pairs), out)
    if figure and report.radii:
        draw_coverage(report, NOMINAL, figure)
    failed = {"without truth": list(compared.lone_predictions), "left out": list(compared.left_out)}
    content = {**asdict(report), "nominal": NOMINAL, "model_ids": compared.model_ids, **failed}
    output.result(content, *_parts(report))
    for title, items in failed.items():
        output.list_items(f"{len(items)} rows {title}:", items)
    if compared.lone_truths:
        output.say(f"{len(compared.lone_truths)} annotated images have no prediction")
    if any(failed.values()):
        raise typer.Exit(SOME_FAILED)


def _parts(report: CoverageReport) -> list[RenderableType]:
    parts = []
    if report.radii:
        rows = [
            [one.name, one.images, one.nodes, _percent(one.share), one.radius_px, one.sigma_px] for one in report.radii
        ]
        columns = ["of", "images", "nodes", "within radius90", "radius px", "sigma px"]
        parts += titled("Nodes within their radius; 90 % promised", columns, rows, gap=False)
    scales = [[one.name, one.images, one.nodes, _number(one.scale)] for one in report.scales]
    parts += titled("Errors in units of sigma; 1 is right", ["of", "images", "nodes", "factor on sigma"], scales)
    shares = [[f"{one.expected:.0%}", _percent(one.observed)] for one in report.shares]
    parts += titled("Sigma as a Gaussian says it", ["expected within", "observed"], shares)
    return parts


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f}–{100 * value.high:.1f})"


def _number(value: Interval) -> str:
    return f"{value.value:.2f} ({value.low:.2f}–{value.high:.2f})"
