"""``cxu evaluate ood``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output, percent
from cxu.cli._tables import announce, titled
from cxu.cli.evaluate._corruption import (
    FigureOption,
    TableOutOption,
    counted,
    interval_text,
    plain_values,
)
from cxu.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from rich.console import RenderableType

    from cxu.evaluation.ood import OodReport, OperatingPoint
    from cxu.evaluation.ood_rca import RcaReport
    from cxu.evaluation.ood_rows import OodRows

EXAMPLE = "cxu evaluate ood predictions/ others/ --figure ood.png"

_WHAT = "What is measured"


def command(
    inside: Annotated[
        str,
        typer.Argument(
            metavar="IN|TABLE", help="Predictions of images of the known kind; or, with --rca-below, a table."
        ),
    ],
    outside: Annotated[
        str | None, typer.Argument(metavar="[OUT]", help="Predictions of images of another kind.", show_default=False)
    ] = None,
    rca_below: Annotated[
        float | None,
        typer.Option(
            "--rca-below",
            metavar="DICE",
            help="Of one published table: rows with an RCA-Dice (max) below are out.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of splits, forest and resampling.", rich_help_panel=_WHAT)
    ] = 0,
    mix_models: Annotated[
        bool,
        typer.Option("--mix-models", help="Compare rows of different models all the same.", rich_help_panel=_WHAT),
    ] = False,
    out: TableOutOption = None,
    figure: FigureOption = None,
    frame: FrameOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well image score and latent uncertainty tell images of another kind (OUT) from those known (IN).

    Each is a table of predictions: a folder, a .parquet file, a name of the home. With --rca-below and one published
    table: how the image score agrees with RCA, another automatic score.
    """
    from cxu.evaluation.ood_fit import check_density
    from cxu.evaluation.ood_rows import read_rows
    from cxu.evaluation.result_file import check_table_path, write_rows
    from cxu.plot.figure import check_figure_path
    from cxu.store import Home

    if (outside is None) == (rca_below is None):
        raise UsageError(
            "expected two tables, IN and OUT, or one with --rca-below, such as: cxu evaluate ood mimic --rca-below 0.7"
        )
    output, store = Output(as_json=as_json), Home(home)
    if out:
        check_table_path(out)
    if figure:
        check_figure_path(figure)
        check_density()

    def read(name: str) -> OodRows:
        stored = store.open(name, frame=frame)
        announce(output, store, stored)
        return read_rows(stored)

    if outside is not None:
        found = _measure_ood(output, read(inside), read(outside), seed, mix_models)
    else:
        assert rca_below is not None, "one of the two is given"
        found = _measure_rca(output, read(inside), rca_below, seed, mix_models)
    if out:
        write_rows(found.rows, out)
    if figure:
        found.draw(figure)
    written = {name: str(path) for name, path in (("table", out), ("figure", figure)) if path}
    content = found.content | {"seed": seed, "table": written.get("table"), "figure": written.get("figure")}
    store.record_run("evaluate-ood", content)
    output.result(content, *found.parts, *(f"{name}: {path}" for name, path in written.items()))


class _Found(NamedTuple):
    """What was measured: as JSON, as text, as rows, and how it is drawn."""

    content: dict[str, Any]
    parts: list[RenderableType]
    rows: pa.Table
    draw: Callable[[Path], None]


def _measure_ood(output: Output, inside: OodRows, outside: OodRows, seed: int, mix_models: bool) -> _Found:
    from cxu.evaluation.ood import measure_ood
    from cxu.plot.ood import draw_ood

    report = measure_ood(inside, outside, seed=seed, mix_models=mix_models)
    for name, side in ((report.name_in, "in"), (report.name_out, "out")):
        _say_left_out(output, report.without_sigma[side], f"row of {name}", "uncertainty left out")
        if len(report.detectors) > 1:
            _say_left_out(output, report.without_latent[side], f"row of {name}", "latent sigmas: not for the forest")
    for remark in report.remarks:
        output.warn(remark)
    content = plain_values(report, ("rows", "test_in", "test_out"))
    return _Found(content, _ood_parts(report), report.rows, lambda path: draw_ood(report, path))


def _measure_rca(output: Output, rows: OodRows, below: float, seed: int, mix_models: bool) -> _Found:
    from cxu.evaluation.ood_rca import measure_rca
    from cxu.plot.ood import draw_rca

    report = measure_rca(rows, below, seed=seed, mix_models=mix_models)
    _say_left_out(output, report.without_sigma, "row", "uncertainty left out")
    _say_left_out(output, report.without_rca, "row", "RCA left out")
    for remark in report.remarks:
        output.warn(remark)
    content = plain_values(report, ("rows",))
    return _Found(content, _rca_parts(report), report.rows, lambda path: draw_rca(report, path))


def _say_left_out(output: Output, number: int, noun: str, what: str) -> None:
    if number:
        words = noun.split(" ", 1)
        output.say(f"{counted(number, words[0])} {' '.join(words[1:])}{' ' if words[1:] else ''}without {what}")


def _ood_parts(report: OodReport) -> list[RenderableType]:
    rows = [[name, *counts.values()] for name, counts in (("IN", report.counts["in"]), ("OUT", report.counts["out"]))]
    parts = titled("Images", ["", *report.counts["in"]], rows, gap=False)
    aucs = [
        [one.name, interval_text(one.auc), f"{one.auc_validation:.2f}", *_published(one.published_auc)]
        for one in report.detectors
    ]
    columns = ["detector", "test images", "validation", "published: with skip", "without skip"]
    parts += titled("ROC-AUC, OUT against IN", columns, aucs)
    for one in report.detectors:
        parts += _points(f"Thresholds of the {one.name}, by IN of validation, measured on test images", one.points)
        if one.settings:
            parts.append("forest: " + ", ".join(f"{name} {value:g}" for name, value in one.settings.items()))
    parts.append("\npublished numbers are of other films and other weights, with OUT an RCA-Dice below 0.7")
    return parts


def _published(auc: Mapping[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in auc.values()]


def _points(title: str, points: Sequence[OperatingPoint]) -> list[RenderableType]:
    cells = [
        [percent(one.kept), f"{one.threshold:.3f}", percent(one.kept_test), interval_text(one.sensitivity)]
        for one in points
    ]
    return titled(title, ["IN to keep", "threshold", "IN kept", "OUT found"], cells) if cells else []


def _rca_parts(report: RcaReport) -> list[RenderableType]:
    limit = f"{report.below:g}"
    columns = ["source", f"RCA from {limit}", f"below {limit}", "ROC-AUC", "Spearman of score and RCA"]
    cells = [
        [one.source, one.n_in, one.n_out, interval_text(one.auc), interval_text(one.spearman)]
        for one in report.agreements
    ]
    parts = titled("Agreement of image score and RCA (max)", columns, cells, gap=False)
    for one in report.agreements:
        parts += _points(f"Thresholds of the image score, {one.source}", one.points)
    parts.append("\nRCA is another automatic score and no truth: this is agreement, not accuracy")
    return parts
