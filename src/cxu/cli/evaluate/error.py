"""``cxu evaluate error``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output
from cxu.cli._tables import announce, titled
from cxu.cli.evaluate._corruption import (
    FigureOption,
    TableOutOption,
    counted,
    interval_text,
    plain_values,
)
from cxu.cli.evaluate.accuracy import PredictionsArgument, tell_unmatched, unmatched_content
from cxu.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from cxu.catalog import FrameName
    from cxu.evaluation.error import ErrorReport, ErrorSummary
    from cxu.evaluation.relation import Relation
    from cxu.evaluation.truth import LandmarkTruth
    from cxu.stats import Interval
    from cxu.store import Home

EXAMPLE = "cxu evaluate error predictions/ first.npz second.npz --figure error.png"

_ERROR_COLUMNS = ("organ", "nodes", "error", "std", "Pearson", "Spearman", "slope", "error / std")
_BETWEEN_COLUMNS = ("organ", "nodes", "mean", "median", "Pearson with std", "Spearman with std", "mean / std")


def command(
    predictions: PredictionsArgument,
    truths: Annotated[
        list[str],
        typer.Argument(
            metavar="TRUTH…", help="Landmarks, one for each annotator: tables, or .npz files in the 1024 model frame."
        ),
    ],
    out: TableOutOption = None,
    figure: FigureOption = None,
    mix_models: Annotated[
        bool, typer.Option("--mix-models", help="Go on where the predictions are of different models.")
    ] = False,
    frame: FrameOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Relate the error of each node to its uncertainty, for one annotator or several, and compare these."""
    from cxu.evaluation.error import error_rows, evaluate_error, summarise_error
    from cxu.evaluation.result_file import check_table_path, write_rows
    from cxu.evaluation.truth import read_rows
    from cxu.plot.error import draw_error
    from cxu.plot.figure import check_figure_path
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if out:
        check_table_path(out)
    if figure:
        check_figure_path(figure)
    stored = store.open(predictions, frame=frame)
    announce(output, store, stored)
    opened = [_open_landmarks(output, store, name, frame) for name in truths]
    report = evaluate_error(read_rows(stored), opened, mix_models=mix_models)
    summary = summarise_error(report)
    if out:
        write_rows(error_rows(report), out)
    if figure:
        draw_error(report, summary, figure, title=f"{counted(len(report.predictions), 'image')}, {stored.name}")
    content = {"predictions": stored.name, "truths": truths, **_content(report, summary)}
    content |= {"table": out and str(out), "figure": figure and str(figure)}
    store.record_run("evaluate-error", content)
    _tell(output, report)
    written = [f"{name}: {path}" for name, path in (("table", out), ("figure", figure)) if path]
    output.result(content, *_parts(summary), *written)
    if report.lone_predictions or report.left_out:
        raise typer.Exit(SOME_FAILED)


def _open_landmarks(output: Output, store: Home, name: str, frame: FrameName | None) -> LandmarkTruth:
    from cxu.evaluation.truth import LandmarkTruth, open_truth

    truth = open_truth(store, name, frame=frame)
    if not isinstance(truth, LandmarkTruth):
        raise UsageError(f"{name} holds masks, which have no nodes; expected landmarks: a table or an .npz")
    output.say(f"annotator {name}: landmarks of {counted(len(truth.image_id), 'image')}")
    return truth


def _content(report: ErrorReport, summary: ErrorSummary) -> dict[str, Any]:
    from cxu.evaluation.error import GAUSSIAN_SLOPE, PUBLISHED_PEARSON

    return {
        "images": len(report.predictions),
        "model_ids": sorted(set(report.predictions.model_id)),
        "unit": "px of the 1024 model frame",
        **plain_values(summary),
        "calibrated_gaussian_slope": GAUSSIAN_SLOPE,
        "published_pearson": list(PUBLISHED_PEARSON),
        "predictions_without_truth": list(report.lone_predictions),
        "matching": {name: unmatched_content(pairs) for name, pairs in report.matches.items()},
        "left_out": [list(one) for one in report.left_out],
    }


def _tell(output: Output, report: ErrorReport) -> None:
    models = sorted(set(report.predictions.model_id))
    if len(models) > 1:
        output.warn(f"standard deviations of {len(models)} models are mixed: {', '.join(models)}")
    for name, pairs in report.matches.items():
        some = tuple(one for one in pairs.lone_predictions if one not in set(report.lone_predictions))
        output.list_items(f"{counted(len(some), 'prediction')} that {name} has no truth of, but others do:", some)
        tell_unmatched(output, (), pairs.lone_truths, name)
    tell_unmatched(output, report.lone_predictions, (), "")
    output.list_items(f"{counted(len(report.left_out), 'row')} left out:", report.left_out)


def _parts(summary: ErrorSummary) -> list[RenderableType]:
    from cxu.evaluation.error import GAUSSIAN_SLOPE, MEAN, PUBLISHED_PEARSON

    tables = {f"Error against {name}": of for name, of in summary.annotators.items()}
    if summary.mean_annotator is not None:
        tables[f"Error against the {MEAN}, nodes that two or more annotated"] = summary.mean_annotator
    parts: list[RenderableType] = []
    for title, relations in tables.items():
        parts += titled(_titled(title, relations), _ERROR_COLUMNS, _error_rows(relations), gap=bool(parts))
    if summary.between is not None:
        title = _titled("Distance between annotators, the same nodes", summary.between)
        parts += titled(title, _BETWEEN_COLUMNS, _between_rows(summary.between))
    published = " and ".join(f"{value:g}" for value in PUBLISHED_PEARSON)
    told = f"a calibrated Gaussian has error / std {GAUSSIAN_SLOPE:.2f}; published Pearson of all nodes: {published}"
    return [*parts, f"\n{told}, of other films and other weights"]


def _titled(title: str, relations: Mapping[str, Relation]) -> str:
    return f"{title}: {counted(relations['all'].images, 'image')}, px of the 1024 model frame"


def _error_rows(relations: Mapping[str, Relation]) -> list[Sequence[object]]:
    return [
        [
            group,
            of.nodes,
            plain_values(of.mean_px.value),
            plain_values(of.mean_sigma_px.value),
            *_intervals(of.pearson, of.spearman, of.slope, of.ratio),
        ]
        for group, of in relations.items()
    ]


def _between_rows(relations: Mapping[str, Relation]) -> list[Sequence[object]]:
    return [
        [
            group,
            of.nodes,
            interval_text(of.mean_px),
            plain_values(of.median_px),
            *_intervals(of.pearson, of.spearman, of.ratio),
        ]
        for group, of in relations.items()
    ]


def _intervals(*intervals: Interval) -> list[str]:
    return [interval_text(one) for one in intervals]
