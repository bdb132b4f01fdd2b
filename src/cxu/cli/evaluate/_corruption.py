"""What ``cxu evaluate noise``, ``occlusion`` and ``ood`` share: options, the run, and how numbers are shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._model import load_model, plain
from cxu.cli._output import Output
from cxu.cli._tables import titled
from cxu.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.evaluation.corruption import DamageOptions, DamageReport
    from cxu.evaluation.corruption_pool import Pooled
    from cxu.evaluation.corruption_summary import DamageSummary, Step
    from cxu.predict import Predictor
    from cxu.predict_plan import PlannedImage

_WHAT: Final = "What is measured"
_WRITTEN: Final = "What is written"
_HOW: Final = "How"

ImagesArgument = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE|FOLDER|GLOB…", help="Radiographs: PNG, JPEG, TIFF, DICOM; folders, globs, zips."),
]
TruthOption = Annotated[
    str | None,
    typer.Option(
        "--truth",
        metavar="FILE.npz|TABLE",
        help="Annotated landmarks: an .npz in the 1024 model frame, or a table. Adds errors.",
        show_default="none",
        rich_help_panel=_WHAT,
    ),
]
PoolOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--pool",
        metavar="FILE.parquet|.csv",
        help="A table that --out wrote of the same images under other damage: score against error over both.",
        show_default="none",
        rich_help_panel=_WHAT,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Take that many of the images, drawn by --seed.", rich_help_panel=_WHAT),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", min=2, help="Samples behind mean and uncertainty.", rich_help_panel=_WHAT)
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, help="Of samples, damage, draw and resampling.", rich_help_panel=_WHAT),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="bundled[:VARIANT]|PATH|HUB_ID",
        help="The network, as for cxu predict.",
        rich_help_panel=_WHAT,
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="NAME",
        help="Data set that the images are of: ids by its rule.",
        show_default="local: ids are paths",
        rich_help_panel=_WHAT,
    ),
]
TableOutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.parquet|.csv", help="Table of what was measured.", rich_help_panel=_WRITTEN),
]
FigureOption = Annotated[
    Path | None,
    typer.Option("--figure", metavar="FILE.png|.svg|.pdf", help="Figure of it.", rich_help_panel=_WRITTEN),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where the network runs.", rich_help_panel=_HOW),
]
BatchOption = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="auto|N",
        help="Damaged copies of an image at a time on the device.",
        rich_help_panel=_HOW,
    ),
]


@dataclass(frozen=True)
class DamageRequest:
    """What was asked for on the command line, beside the damage itself."""

    images: list[str]
    truth: str | None
    pool: list[Path]
    limit: int | None
    samples: int
    seed: int
    weights: str
    source: str | None
    out: Path | None
    figure: Path | None
    device: str
    batch_size: str
    home: Path | None
    as_json: bool


def run_damage(request: DamageRequest, options: DamageOptions) -> None:
    """Measure damage as asked, write and print what was found."""
    from cxu.evaluation.corruption import draw_images, measure_damage
    from cxu.evaluation.corruption_pool import check_same_run, pool, read_damage_table
    from cxu.evaluation.corruption_summary import summarize_damage
    from cxu.evaluation.corruption_table import damage_rows
    from cxu.evaluation.corruption_truth import match_truth
    from cxu.evaluation.result_file import check_table_path, write_rows
    from cxu.evaluation.truth import open_truth
    from cxu.model.device import find_device
    from cxu.plot.corruption import draw_damage
    from cxu.plot.figure import check_figure_path
    from cxu.predict import PredictOptions, Predictor
    from cxu.predict_plan import plan_images
    from cxu.store import Home

    output, store = Output(as_json=request.as_json), Home(request.home)
    if request.out:
        check_table_path(request.out)
    if request.figure:
        check_figure_path(request.figure)
    if request.pool and request.truth is None:
        raise UsageError("--pool needs --truth: without it there is no error to pool")
    others = {path: read_damage_table(path) for path in request.pool}
    batch, device = _batch_size(request.batch_size), find_device(request.device)
    truth = None if request.truth is None else open_truth(store, request.truth)
    plan = plan_images(request.images, request.source)
    truths = None if truth is None else match_truth(plan.images, truth)
    missing = [] if truths is None else [image for image in plan.images if image not in truths]
    chosen = draw_images(plan.images if truths is None else [*truths], request.limit, request.seed)
    weights = load_model(output, request.weights)
    predictor = Predictor(weights, PredictOptions(request.samples, request.seed), device, batch)
    check_same_run(others, weights.model_id, request.seed, request.samples)
    _announce(output, predictor, options, chosen, missing)
    with output.progress("damaging", len(chosen), "images") as advance:
        report = measure_damage(plan, predictor, options, images=chosen, truths=truths, advance=advance)
        summary = summarize_damage(report, seed=request.seed)
        rows = damage_rows(report, predictor)
        pooled = pool([rows, *others.values()], seed=request.seed) if others else None
    facts = _facts(predictor, options)
    if request.out:
        write_rows(rows, request.out)
    if request.figure:
        draw_damage(report, summary, request.figure, title=_title(summary, predictor))
    content = {
        **plain_values(summary),
        **facts,
        "pooled": plain_values(pooled),
        "without_truth": [image.file.name for image in missing],
        "rejected": [[one.file, one.reason] for one in report.rejected],
        "table": request.out and str(request.out),
        "figure": request.figure and str(request.figure),
    }
    store.record_run(f"evaluate-{options.damage}", {"images": _texts(request.images), "result": content})
    output.list_items(f"{counted(len(missing), 'image')} without truth left out:", [one.image_id for one in missing])
    output.list_items(f"{counted(len(report.rejected), 'file')} not measured:", report.rejected)
    output.result(content, *_parts(summary, report, request, pooled))
    if report.rejected or missing:
        raise typer.Exit(SOME_FAILED)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def numbers_of(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of a comma list.

    Examples
    --------
    >>> numbers_of("0, 10,20", "--sigmas")
    (0.0, 10.0, 20.0)
    """
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers with commas between them, such as 1,2,4") from None


def plain_values(value: Any, leave_out: Collection[str] = ()) -> Any:
    """Return a result as plain JSON values: dataclasses and named tuples as objects, less some fields, NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [name for name in value.__dataclass_fields__ if name not in leave_out]
        return {name: plain_values(getattr(value, name), leave_out) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain_values(value._asdict(), leave_out)
    if isinstance(value, Mapping):
        return {str(key): plain_values(one, leave_out) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_values(one, leave_out) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def interval_text(interval: tuple[float, float, float] | None, decimals: int = 2) -> str:
    """Return a value with its bounds.

    Examples
    --------
    >>> interval_text((0.5, 0.4, 0.6)), interval_text((0.5, math.nan, math.nan)), interval_text(None)
    ('0.50 (0.40 to 0.60)', '0.50', '-')
    """
    if interval is None or not math.isfinite(interval[0]):
        return "-"
    value, low, high = (f"{number:.{decimals}f}" for number in interval)
    return f"{value} ({low} to {high})" if math.isfinite(interval[1]) else value


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: expected auto, or a number from 1")
    return int(text)


def _announce(
    output: Output,
    predictor: Predictor,
    options: DamageOptions,
    chosen: Sequence[PlannedImage],
    missing: Sequence[PlannedImage],
) -> None:
    weights = predictor.weights
    output.say(
        f"{counted(len(chosen), 'image')}, {counted(len(options.steps), 'prediction')} each · weights {weights.origin} "
        f"({weights.model_id[:12]}) · {predictor.device}"
    )
    if missing:
        output.warn(f"{counted(len(missing), 'image')} without truth left out")


def _facts(predictor: Predictor, options: DamageOptions) -> dict[str, Any]:
    facts = {
        "model_id": predictor.weights.model_id,
        "weights": predictor.weights.origin,
        "n_samples": predictor.options.n_samples,
        "seed": predictor.options.seed,
        "device": str(predictor.device),
    }
    return facts | ({"half_size_px": options.half_size_px} if options.damage == "occlusion" else {})


def _title(summary: DamageSummary, predictor: Predictor) -> str:
    origin = plain(str(predictor.weights.origin))
    return f"{counted(summary.images, 'image')}, weights {origin}, px of the 1024 model frame"


def _texts(images: Sequence[str]) -> list[str]:
    # file names need not be UTF-8, but JSON is
    return [text.encode("utf-8", "backslashreplace").decode() for text in images]


_STEP_TITLES: Final = {
    "score_px": "score px",
    "latent_sigma": "latent sigma",
    "drift_px": "drift px",
    "error_px": "error px",
}


def _parts(
    summary: DamageSummary, report: DamageReport, request: DamageRequest, pooled: Pooled | None
) -> list[RenderableType]:
    noise = summary.damage == "noise"
    names = [name for name in _STEP_TITLES if name != "error_px" or report.has_truth]
    rows = [[f"{step.severity:g}", *(_quartiles(step, name) for name in names)] for step in summary.steps]
    title = f"Median (quartiles) over {counted(summary.images, 'image')}, px of the 1024 model frame"
    columns = ["sigma" if noise else "squares", *(_STEP_TITLES[name] for name in names)]
    parts = [*titled(title, columns, rows, gap=False), *_node_parts(summary, report.has_truth)]
    parts.append("\ndrift is the distance from the undamaged prediction, which may be wrong itself: no error")
    parts += [f"{name}: {interval_text(value)}" for name, value in _correlations(summary).items() if value]
    if pooled is not None:
        kinds, images = " and ".join(pooled.damage), counted(pooled.images, "image")
        told = interval_text(pooled.score_with_error)
        parts.append(f"Spearman of score and error, {kinds} pooled, {images}: {told}")
    if noise:
        cells = [[variant, *scores.values()] for variant, scores in summary.published_px.items()]
        sigmas = next(iter(summary.published_px.values()))
        told = "Published median scores by sigma, of other films and other weights"
        parts += titled(told, ["", *map(str, sigmas)], cells)
    return parts + [f"{name}: {path}" for name, path in (("table", request.out), ("figure", request.figure)) if path]


def _quartiles(step: Step, name: str) -> str:
    low, median, high = getattr(step, name)
    decimals = 3 if name == "latent_sigma" else 1
    return "-" if math.isnan(median) else f"{median:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"


def _node_parts(summary: DamageSummary, has_truth: bool) -> list[RenderableType]:
    steps = [(step.severity, step.nodes) for step in summary.steps if step.nodes is not None]
    if not steps:
        return []
    columns = ["squares", "nodes inside", "sigma inside", "before", "outside", "inside / outside"]
    rows: list[list[object]] = [
        [
            f"{severity:g}",
            nodes.n_inside,
            nodes.sigma_inside_px,
            nodes.sigma_before_px,
            nodes.sigma_outside_px,
            interval_text(nodes.sigma_ratio),
        ]
        for severity, nodes in steps
    ]
    if has_truth:
        columns += ["error inside", "outside", "inside / outside"]
        for row, (_, nodes) in zip(rows, steps, strict=True):
            row += [nodes.error_inside_px, nodes.error_outside_px, interval_text(nodes.error_ratio)]
    return titled("Nodes inside and outside the squares, medians, px of the 1024 model frame", columns, rows)


def _correlations(summary: DamageSummary) -> dict[str, Any]:
    return {
        "Spearman of score and severity, within images": summary.score_with_severity,
        "Spearman of latent sigma and severity, within images": summary.latent_with_severity,
        "Spearman of score and error, all images and severities": summary.score_with_error,
        "Spearman of score and error, within images": summary.score_with_error_within,
        "node uncertainty inside / outside, all squares": summary.sigma_ratio,
    }
