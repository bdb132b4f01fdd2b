"""``cxu crop``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import (
    FrameOption,
    HomeOption,
    JsonOption,
    ShardOption,
    WorkersOption,
    share_of,
    told_share,
)
from cxu.cli._output import Output, counted, make_table
from cxu.cli._output import size as in_bytes
from cxu.cli._tables import announce, has_limits, warn_of_assumed, warn_of_no_limit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.cropplan import CropPlan
    from cxu.crops import CropReport
    from cxu.labels import IdList
    from cxu.sharing import Share

EXAMPLE = "cxu crop --images /data/mimic-cxr-jpg/files --organ lungs --margin 5% --out crops/"

_ROWS = "Which rows"
_BOX = "Where and how large"


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the crops and their boxes.")],
    images: Annotated[list[str], typer.Option("--images", help="Folder, glob, list or zip of the images.")],
    table: Annotated[
        str | None,
        typer.Argument(
            help="A selection, a source, predictions or a .parquet table.", show_default="the selection 'latest'"
        ),
    ] = None,
    organ: Annotated[
        str,
        typer.Option(
            "--organ",
            help="Organs that a crop holds, all of them: right_lung, left_lung, lungs, heart, all.",
            rich_help_panel=_BOX,
        ),
    ] = "lungs",
    margin: Annotated[
        str,
        typer.Option(
            "--margin",
            metavar="N%|PX",
            help="Added on each side: percent of the box's width and height, or pixels of the image.",
            rich_help_panel=_BOX,
        ),
    ] = "5%",
    square: Annotated[
        bool,
        typer.Option(
            "--square",
            help="Grow the shorter side; moved to stay in the image, black only where that is too small.",
            rich_help_panel=_BOX,
        ),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PX",
            help="Resize: longer side of a crop; the aspect stays.",
            show_default="pixels of the image",
            rich_help_panel=_BOX,
        ),
    ] = None,
    blank: Annotated[
        Literal["outside"] | None,
        typer.Option("--blank", help="outside: black where the organs are not.", rich_help_panel=_BOX),
    ] = None,
    policy: Annotated[
        Literal["confident", "full"],
        typer.Option(
            "--policy",
            help="confident: organs drawn through confident nodes. full: through all.",
            rich_help_panel=_BOX,
        ),
    ] = "confident",
    unusable: Annotated[
        Literal["skip", "full"],
        typer.Option(
            "--unusable",
            help="Rows in which one of the organs is unusable. skip: left out. full: with its full polygon.",
            rich_help_panel=_ROWS,
        ),
    ] = "skip",
    ids: Annotated[
        Path | None, typer.Option("--ids", help="File of ids to crop, one a line.", rich_help_panel=_ROWS)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Crop that many rows, chosen by --seed among those that have an image.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice.", rich_help_panel=_ROWS)] = 0,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    shard: ShardOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the crops that are in this folder first, and start afresh.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Crop images around organs, and write the boxes as a table.

    Crops are PNG files with the grey values and bits of their images. The same command into the same folder continues
    where it stopped; another one is refused. Research and education only; not a medical device.
    """
    from cxu.cropping import CropShape, parse_margin
    from cxu.cropplan import CropOptions, plan_crops
    from cxu.crops import crop_table
    from cxu.labels import IdList
    from cxu.rowchoice import Choice
    from cxu.store import Home
    from cxu.thresholds import parse_organs

    output, store, share = Output(as_json=as_json), Home(home), share_of(shard)
    shape = CropShape(parse_margin(margin), square, size)
    options = CropOptions(parse_organs(organ, also_all=True), shape, policy, unusable, blank)
    wanted = IdList(ids) if ids else None
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    choice = Choice(wanted, limit, seed)
    plan = plan_crops(stored, out, images, options, choice, frame=frame, cache_folder=store.root / "cache")
    _say_before(output, plan)
    with output.progress("cropping", sum(len(block.rows) for block in plan.of_share(share))) as advance:
        report = crop_table(plan, workers=workers, share=share, overwrite=overwrite, progress=advance)
    manifest = store.record_run("crop", _manifest(plan, report, share))
    if policy == "confident" and not has_limits(stored):
        warn_of_no_limit(output, policy)
    _say_after(output, report, wanted, str(manifest))
    output.result(_as_json(plan, report, wanted, share), *_summary(plan, report, share))
    if report.failures or report.failed_elsewhere or (wanted is not None and wanted.unmatched()):
        raise typer.Exit(SOME_FAILED)


def _say_before(output: Output, plan: CropPlan) -> None:
    from cxu.crops import MANY_FILES, estimate_bytes

    if plan.without_image:
        output.say(f"{plan.without_image:,} rows have no image among those given: not chosen from")
    if plan.rows > MANY_FILES:
        output.say(
            f"{plan.rows:,} files, about {in_bytes(estimate_bytes(plan))}: --size makes them smaller, --limit takes "
            "some"
        )


def _say_after(output: Output, report: CropReport, wanted: IdList | None, manifest: str) -> None:
    if report.resumed_rows:
        output.say(f"{report.resumed_rows:,} rows were already cropped")
    warn_of_assumed(output, report.assumed)
    if report.negative:
        output.warn(
            f"{counted(report.negative, 'image')} with bright lungs, clearly negatives: their crops keep the values, "
            "and boxes.csv says which they are (negative)"
        )
    elsewhere = f"see {manifest}"
    output.list_items(f"{counted(len(report.left_out), 'row')} left out:", report.left_out, elsewhere=elsewhere)
    output.list_items(f"{counted(len(report.failures), 'row')} without a crop:", report.failures, elsewhere=elsewhere)
    if report.failed_elsewhere:
        output.say(f"{counted(report.failed_elsewhere, 'row')} of other shares without a crop: their jobs list them")
    missing = wanted.unmatched() if wanted else []
    output.list_items(f"{counted(len(missing), 'id')} of --ids not found:", missing, elsewhere="see --json")


def _summary(plan: CropPlan, report: CropReport, share: Share | None) -> list[RenderableType]:
    if share is not None and not report.is_whole:
        done = counted(report.rows, "crop")
        return [told_share(share, done, report.blocks_finished, report.blocks, "blocks", "table of boxes")]
    reasons = report.reasons()
    parts: list[RenderableType] = [make_table("", ["left out", "rows"], reasons.items()), ""] if reasons else []
    edges = [f"{count:,} {what}" for what, count in (("clipped", report.clipped), ("padded", report.padded)) if count]
    crops = ", ".join([counted(report.rows, "crop"), *edges, in_bytes(report.bytes)])
    return [*parts, f"{crops} in {plan.out}; boxes.csv says where they lie"]


def _as_json(plan: CropPlan, report: CropReport, wanted: IdList | None, share: Share | None) -> dict[str, Any]:
    content = {
        "out": str(plan.out),
        "organs": list(plan.options.organs),
        "rows": report.rows,
        "files": report.files,
        "bytes": report.bytes,
        "resumed_rows": report.resumed_rows,
        "clipped": report.clipped,
        "padded": report.padded,
        "negative": report.negative,
        "without_image": plan.without_image,
        "assumed": report.assumed,
        "left_out": dict(report.reasons()),
        "failures": [[one.source, one.image_id, one.reason] for one in report.failures],
        "ids_unmatched": wanted.unmatched() if wanted else [],
    }
    if share is not None:
        content |= {
            "shard": str(share),
            "blocks": report.blocks,
            "blocks_finished": report.blocks_finished,
            "failed_elsewhere": report.failed_elsewhere,
        }
    return content


def _manifest(plan: CropPlan, report: CropReport, share: Share | None) -> dict[str, Any]:
    rows = [[one.source, one.image_id, one.reason] for one in report.left_out]
    return {**_as_json(plan, report, None, share), "left_out_rows": rows, "record": plan.record}
