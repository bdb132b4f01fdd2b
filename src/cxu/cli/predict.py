"""``cxu predict``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._model import load_model, plain
from cxu.cli._options import SCHEDULER_HELP, SHARD_HELP, HomeOption, JsonOption, share_of, told_share
from cxu.cli._output import Output, make_table
from cxu.cli._tables import titled
from cxu.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.predict_crew import Crew
    from cxu.predict_plan import PredictPlan
    from cxu.predict_run import PredictReport
    from cxu.sharing import Share

EXAMPLE = "cxu predict films/ --out predictions/ --overlay --csv"

_WHAT = "What is predicted"
_WRITTEN = "What is written"
_HOW = "How"
_MOST_NAMED = 5


def command(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER|GLOB…", help="Radiographs: PNG, JPEG, TIFF, DICOM; folders, globs, zips."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the results.", show_default="predictions/ in the home"),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Samples behind mean and uncertainty.", rich_help_panel=_WHAT)
    ] = 50,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Seed; each image's own follows from its pixels.", rich_help_panel=_WHAT),
    ] = 0,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="bundled[:VARIANT]|PATH|HUB_ID",
            help="The network: that of cxu (its variants: igsc, no-skip), a file or folder, or a Hub model such as "
            "mcosarinsky/CheXmask-U:v1_skip.",
            rich_help_panel=_WHAT,
        ),
    ] = "bundled",
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Data set that the images are of: ids by its rule.",
            show_default="local: ids are paths",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    csv: Annotated[
        bool,
        typer.Option("--csv", help="Also write predictions.csv in the published columns.", rich_help_panel=_WRITTEN),
    ] = False,
    overlay: Annotated[
        bool,
        typer.Option("--overlay", help="Also draw each image with its uncertain contours.", rich_help_panel=_WRITTEN),
    ] = False,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also draw masks at each image's resolution.", rich_help_panel=_WRITTEN)
    ] = False,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Keep every sample (48 kB an image).", rich_help_panel=_WRITTEN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what the folder holds first.", rich_help_panel=_WRITTEN)
    ] = False,
    device: Annotated[
        str,
        typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where the network runs.", rich_help_panel=_HOW),
    ] = "auto",
    batch_size: Annotated[
        str,
        typer.Option("--batch-size", metavar="auto|N", help="Images at a time on the device.", rich_help_panel=_HOW),
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bf16"],
        typer.Option("--precision", help="Of the encoder's convolutions.", rich_help_panel=_HOW),
    ] = "float32",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            help="Processes that predict, each with its own network: one a GPU.",
            rich_help_panel=_HOW,
        ),
    ] = 1,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help=SHARD_HELP, rich_help_panel=_HOW)] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help=SCHEDULER_HELP, rich_help_panel=_HOW)
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find landmarks and their uncertainty in frontal chest radiographs.

    Writes predictions.parquet, the one table of cxu, in each image's own pixels. The same command again skips what is
    there and adds what is new. Files that cannot be read are listed and left out (exit 3). Research and education
    only; not a medical device.
    """
    from cxu.model.device import find_devices
    from cxu.predict import PredictOptions
    from cxu.predict_crew import Crew
    from cxu.predict_extras import Extras
    from cxu.predict_plan import plan_images
    from cxu.predict_run import predict_into
    from cxu.store import Home

    output, store, share = Output(as_json=as_json), Home(home), share_of(shard)
    options = PredictOptions(samples, seed, precision, keep_samples)
    # what devices a cluster has its workers find out
    batch, devices = _batch_size(batch_size), (device,) if scheduler else find_devices(device, workers)
    out = out or store.predictions_folder
    plan = plan_images(images, source)
    crew = Crew(load_model(output, weights), options, devices, batch, workers, scheduler)
    _announce(output, out, crew, plan)
    report = predict_into(
        out,
        plan,
        crew,
        extras=Extras(csv, overlay, masks),
        share=share,
        overwrite=overwrite,
        progress=lambda verb, total: output.progress(verb, total, "images"),
    )
    how = {"workers": workers, "shard": shard, "scheduler": scheduler}
    manifest = store.record_run("predict", {**_manifest(report, crew, images), **how})
    _tell(output, report, str(manifest))
    content, parts = _result(report) if share is None or report.is_whole else _result_of_share(report, share)
    _tell_quality(output, content)
    output.result(content, *parts)
    if report.rejected or report.beside.undrawn:
        raise typer.Exit(SOME_FAILED)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: expected auto, or a number from 1")
    return int(text)


def _announce(output: Output, out: Path, crew: Crew, plan: PredictPlan) -> None:
    from cxu.model.card import terms_of

    weights = crew.weights
    config = weights.model.config
    variant = "with" if config.use_skip else "without"
    output.say(
        f"{_counted(len(plan.images), 'image')} to {out} · weights {weights.origin} ({variant} skip connections, "
        f"{config.size} px, {weights.model_id[:12]}) · {crew}, {crew.options.precision}"
    )
    output.say(plain(terms_of(weights)))
    if plan.own:
        output.say(f"{_counted(len(plan.own), 'file')} that cxu wrote left out")
    if plan.others:
        named = ", ".join(file.relative.name for file in plan.others[:_MOST_NAMED])
        more = ", …" if len(plan.others) > _MOST_NAMED else ""
        output.say(f"{_counted(len(plan.others), 'file')} beside them, no image by name: {named}{more}")
    if crew.options.n_samples == 1:
        output.warn("with one sample there is no standard deviation: the rows have no uncertainty")


def _tell(output: Output, report: PredictReport, manifest: str) -> None:
    if report.skipped:
        output.say(f"{_counted(report.skipped, 'image')} already predicted")
    if report.predicted:
        rate = report.predicted / report.seconds
        output.say(f"{_counted(report.predicted, 'image')} predicted in {report.seconds:.1f} s, {rate:.2f} images/s")
    output.list_items(
        f"{_counted(len(report.turned), 'negative')} turned into a positive:",
        report.turned,
        elsewhere=f"see {manifest}",
    )
    output.list_items(
        f"{_counted(len(report.rejected), 'file')} without a row:", report.rejected, elsewhere=f"see {manifest}"
    )
    output.list_items("not drawn or written:", report.beside.undrawn, elsewhere=f"see {manifest}")
    for path in report.beside.outdated:
        output.warn(f"{path} is out of date: the table has rows that it lacks; give --csv or --masks again")


def _tell_quality(output: Output, content: dict[str, Any]) -> None:
    doubtful = content.get("doubtful", [])
    output.list_items(
        f"{_counted(len(doubtful), 'image')} to look at; cxu filter leaves out those to reject:",
        [f"{one['quality']}: {one['image_id']} {one['reason']} ({one['score']:.2f})" for one in doubtful],
        elsewhere=f"see quality_reason in {content['table']}",
    )


def _result(report: PredictReport) -> tuple[dict[str, Any], list[RenderableType]]:
    from cxu.predict_run import count_quality, describe_rows, doubtful_rows, organ_sigmas, rows_of

    # of many images only the scores: all their rows need not fit into memory
    few = ("image_id", "mean_sigma_model_px", "quality", "quality_score", "quality_reason")
    rows = rows_of(report.path, report.keys, None if len(report.keys) == 1 else few)
    content = {**_written(report), "rejected": [[one.file, one.reason] for one in report.rejected]}
    content |= {"quality": count_quality(rows), "doubtful": [vars(one) for one in doubtful_rows(rows)]}
    lines = [f"{name}: {path}" for name, path in _paths(report)]
    if len(rows) == 1:
        organs = organ_sigmas(rows, 0)
        score = rows["mean_sigma_model_px"][0].as_py()
        content |= {"image_id": rows["image_id"][0].as_py(), "image_score_px": score}
        content["organs"] = [vars(organ) for organ in organs]
        cells = [[organ.organ, organ.mean_px, organ.worst_px, f"{organ.worst_node}"] for organ in organs]
        title = f"{content['image_id']}: node uncertainty, px of the 1024 model frame"
        shown = titled(title, ["organ", "mean", "worst", "worst node"], cells, gap=False) if organs else []
        said = [f"image score {score:.2f} px"] if organs else []
        said += [f"quality {name}" for name in content["quality"]]
        return content, [*shown, *said, *lines]
    quantiles = describe_rows(rows)
    content["image_score_quantiles_px"] = quantiles
    cells = [["image score, px", *quantiles.values()]]
    quantile_table = [make_table("", ["", *quantiles], cells)] if quantiles else []
    counted = f"{_counted(len(rows), 'image')} with landmarks, {len(report.rejected):,} without"
    counts = ", ".join(f"{count:,} {name}" for name, count in content["quality"].items())
    judged = [f"quality: {counts}"] if counts else []
    return content, [counted, *quantile_table, *judged, *lines]


def _result_of_share(report: PredictReport, share: Share) -> tuple[dict[str, Any], list[RenderableType]]:
    done = _counted(len(report.keys), "image")
    sentence = told_share(share, done, report.images_finished, report.images, "images", "table")
    content = {**_written(report), "rejected": [[one.file, one.reason] for one in report.rejected]}
    content |= {"shard": str(share), "images": report.images, "images_finished": report.images_finished}
    return content, [sentence]


def _paths(report: PredictReport) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = [("table", f"{report.path} ({_counted(report.rows, 'row')})")]
    found += [("CSV", str(path)) for path in report.beside.csv]
    found += [("pictures", str(_common(report.beside.overlays)))] if report.beside.overlays else []
    found += [("masks", str(report.beside.masks))] if report.beside.masks else []
    return found


def _common(paths: list[Path]) -> Path:
    return paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))


def _written(report: PredictReport) -> dict[str, Any]:
    return {
        "table": str(report.path),
        "rows": report.rows,
        "predicted": report.predicted,
        "skipped": report.skipped,
        "csv": [str(path) for path in report.beside.csv],
        "overlays": [str(path) for path in report.beside.overlays],
        "masks": report.beside.masks and str(report.beside.masks),
        "turned": report.turned,
        "undrawn": report.beside.undrawn,
        "outdated": [str(path) for path in report.beside.outdated],
    }


def _manifest(report: PredictReport, crew: Crew, images: list[str]) -> dict[str, Any]:
    from cxu.predict_run import record_of

    content = _written(report)
    del content["overlays"]
    return {
        **content,
        "record": record_of(crew.weights, crew.options),
        # file names need not be UTF-8, but JSON is
        "images": [text.encode("utf-8", "backslashreplace").decode() for text in images],
        "device": ", ".join(crew.devices),
        "batch_size": report.batch_size,
        "seconds": round(report.seconds, 3),
        "failed": [[one.file, one.reason] for one in report.rejected],
    }
