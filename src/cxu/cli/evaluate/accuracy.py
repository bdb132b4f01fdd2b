"""``cxu evaluate accuracy``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption, WorkersOption
from cxu.cli._output import Output
from cxu.cli._tables import announce, titled
from cxu.cli.evaluate._corruption import (
    FigureOption,
    TableOutOption,
    counted,
    interval_text,
    plain_values,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from cxu.evaluation.accuracy import AccuracyReport, OrganSummary
    from cxu.evaluation.match import Matches
    from cxu.evaluation.truth import Truth

EXAMPLE = "cxu evaluate accuracy predictions/ truth.npz --figure accuracy.png"

MOST_LISTED: Final = 20
PredictionsArgument = Annotated[
    str,
    typer.Argument(metavar="PREDICTIONS", help="A .parquet table, a folder of predictions, or a table of the home."),
]
_STATES: Final = {
    "missing": "not annotated, or not in full",
    "empty_truth": "empty in the truth",
    "empty_prediction": "empty in the prediction",
    "both_empty": "empty on both sides",
}
_LANDMARK_TITLES: Final = {"mse_px2": "MSE px²", "distance_px": "distance px"}
_MASK_TITLES: Final = {
    "dice": "Dice",
    "hausdorff_px": "Hausdorff px",
    "hd95_px": "95 % Hausdorff px",
    "assd_px": "surface distance px",
}
_DECIMALS: Final = {"dice": 3, "mse_px2": 1}


def command(
    predictions: PredictionsArgument,
    truth: Annotated[
        str,
        typer.Argument(
            metavar="TRUTH", help="Landmarks: a table or an .npz in the 1024 model frame. Or a folder of mask images."
        ),
    ],
    out: TableOutOption = None,
    figure: FigureOption = None,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare predicted landmarks with a truth: squared error, distance, Dice, Hausdorff and surface distances."""
    from cxu.evaluation.accuracy import accuracy_rows, evaluate_accuracy, summarise_accuracy
    from cxu.evaluation.result_file import check_table_path, write_rows
    from cxu.evaluation.truth import open_truth, read_rows
    from cxu.plot.accuracy import draw_accuracy
    from cxu.plot.figure import check_figure_path
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if out:
        check_table_path(out)
    if figure:
        check_figure_path(figure)
    stored = store.open(predictions, frame=frame)
    announce(output, store, stored)
    opened = open_truth(store, truth, frame=frame)
    _announce_truth(output, opened)
    with output.progress("comparing", stored.rows, "images") as advance:
        report = evaluate_accuracy(read_rows(stored), opened, workers=workers, progress=advance)
        summary = summarise_accuracy(report)
    if out:
        write_rows(accuracy_rows(report), out)
    if figure:
        draw_accuracy(report, figure, title=f"{counted(len(report.results), 'image')}, {stored.name}")
    models = sorted(set(report.predictions.model_id))
    content = {
        "predictions": stored.name,
        "truth": truth,
        "truth_kind": report.truth_kind,
        "images": len(report.results),
        "model_ids": models,
        "unit": "px of the 1024 model frame",
        "organs": plain_values(summary),
        **unmatched_content(report.matches),
        "left_out": [list(one) for one in report.left_out],
        "table": out and str(out),
        "figure": figure and str(figure),
    }
    store.record_run("evaluate-accuracy", content)
    if len(models) > 1:
        output.warn(f"the predictions are of {len(models)} models: {', '.join(models)}; the numbers mix them")
    tell_unmatched(output, report.matches.lone_predictions, report.matches.lone_truths, truth)
    output.list_items(f"{counted(len(report.left_out), 'row')} left out:", report.left_out)
    _tell_states(output, report)
    written = [f"{name}: {path}" for name, path in (("table", out), ("figure", figure)) if path]
    output.result(content, *_parts(report, summary), *written)
    if report.matches.lone_predictions or report.left_out:
        raise typer.Exit(SOME_FAILED)


def unmatched_content(matches: Matches) -> dict[str, Any]:
    """Return how many ids of either side have no partner, and the first of them."""
    return {
        "predictions_without_truth": len(matches.lone_predictions),
        "first_predictions_without_truth": list(matches.lone_predictions[:MOST_LISTED]),
        "truths_without_prediction": len(matches.lone_truths),
        "first_truths_without_prediction": list(matches.lone_truths[:MOST_LISTED]),
    }


def tell_unmatched(output: Output, predictions: tuple[str, ...], truths: tuple[str, ...], name: str) -> None:
    """Say which ids of either side have no partner."""
    output.list_items(f"{counted(len(predictions), 'prediction')} without a truth, not compared:", predictions)
    output.list_items(f"{counted(len(truths), 'image')} of {name} without a prediction, not compared:", truths)


def _announce_truth(output: Output, truth: Truth) -> None:
    from cxu.evaluation.truth import LandmarkTruth

    count = counted(len(truth.image_id), "image")
    if isinstance(truth, LandmarkTruth):
        output.say(f"truth {truth.name}: landmarks of {count}")
        return
    kind = "label images" if truth.kind == "labels" else "a mask for each organ"
    output.say(f"truth {truth.name}: {kind}, {count}. Masks have no nodes: no squared error, no landmark distance")
    if truth.kind == "labels":
        output.say("label images hide lung under the heart: predictions are painted alike, lungs first, then the heart")


def _tell_states(output: Output, report: AccuracyReport) -> None:
    from cxu.anatomy import ORGANS
    from cxu.evaluation.accuracy import images_in_state

    for organ in ORGANS:
        for state, words in _STATES.items():
            ids = images_in_state(report, organ.name, state)  # type: ignore[arg-type]
            output.list_items(f"{organ.title}: {words} in {counted(len(ids), 'image')}", ids)


def _parts(report: AccuracyReport, summary: Mapping[str, OrganSummary]) -> list[RenderableType]:
    images = counted(len(report.results), "image")
    told = f"{images}, means (95 % intervals over images), px of the 1024 model frame"
    parts: list[RenderableType] = []
    if report.truth_kind == "landmarks":
        columns = ["organ", "images", "nodes", *_LANDMARK_TITLES.values()]
        rows = [
            [organ, of.measures["mse_px2"].images, of.nodes, *_cells(of, _LANDMARK_TITLES)]
            for organ, of in summary.items()
        ]
        parts += titled(f"Landmarks: {told}", columns, rows, gap=False)
    columns = ["organ", "images", *_MASK_TITLES.values()]
    rows = [[organ, of.measures["dice"].images, *_cells(of, _MASK_TITLES)] for organ, of in summary.items()]
    parts += titled(f"Masks: {told}", columns, rows, gap=bool(parts))
    return [*parts, "\nlungs: both as one mask. all, of masks: the mean of the three organs, where all three are known"]


def _cells(of: OrganSummary, titles: Mapping[str, str]) -> list[str]:
    return [interval_text(of.measures[name].interval, _DECIMALS.get(name, 2)) for name in titles]
