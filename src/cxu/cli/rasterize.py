"""``cxu rasterize``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import (
    FrameOption,
    HomeOption,
    JsonOption,
    SchedulerOption,
    ShardOption,
    WorkersOption,
    share_of,
    told_share,
)
from cxu.cli._output import Output, make_table
from cxu.cli._output import size as in_bytes
from cxu.cli._tables import announce, has_limits, warn_of_assumed, warn_of_no_limit
from cxu.errors import UsageError

if TYPE_CHECKING:
    from cxu.maskplan import MaskPlan
    from cxu.placing import Target
    from cxu.rasterize import MaskReport
    from cxu.sharing import Share

EXAMPLE = "cxu rasterize --out masks/ --policy ignore --images /data/mimic-cxr-jpg/files --workers 2"

_Policy = Literal["confident", "full", "ignore", "probability"]
_Format = Literal["labels", "organs", "npz", "rle", "tar"]


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks.")],
    table: Annotated[
        str | None,
        typer.Argument(help="A selection, a source or a .parquet table.", show_default="the selection 'latest'"),
    ] = None,
    policy: Annotated[
        _Policy,
        typer.Option(
            "--policy",
            help="confident: polygon through confident nodes. full: through all. ignore: full, with 255 around "
            "uncertain edges. probability: of belonging to the organ, in 1/255.",
        ),
    ] = "confident",
    format_: Annotated[
        _Format,
        typer.Option(
            "--format",
            help="labels: one PNG (0, 1 right lung, 2 left lung, 3 heart, 255 ignore). organs: a PNG an organ. "
            "npz, rle (Parquet), tar (WebDataset).",
        ),
    ] = "labels",
    band: Annotated[float, typer.Option("--band", help="Half-width of the ignore band, in standard deviations.")] = 2.8,
    unusable: Annotated[
        Literal["ignore", "background"],
        typer.Option("--unusable", help="What labels hold where an organ is unusable: 255, or background."),
    ] = "ignore",
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", help="Folder, glob, list or zip of the images: masks at their resolution, overlaying."
        ),
    ] = None,
    layout: Annotated[
        Literal["ids", "images"], typer.Option("--layout", help="Paths by image id, or mirroring the image tree.")
    ] = "ids",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="N|HxW", help="Size of the masks: longer side N, or height x width."),
    ] = None,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    shard: ShardOption = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the masks that are in this folder first, and start afresh.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw masks of the lungs and the heart.

    Without --images, masks are in the pixels of the rows and do not overlay the original files. The same command into
    the same folder continues where it stopped; another one is refused.
    """
    from cxu.maskplan import plan_masks
    from cxu.masks import MaskOptions
    from cxu.rasterize import rasterize_table
    from cxu.store import Home

    output, store, share = Output(as_json=as_json), Home(home), share_of(shard)
    options = MaskOptions(policy, format_, band, unusable)
    target = _target(images, size, layout)
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    plan = plan_masks(stored, out, options, target, frame=frame, cache_folder=store.root / "cache")
    _warn_of_many(output, plan)
    with output.progress("drawing", sum(len(block.rows) for block in plan.of_share(share))) as advance:
        report = rasterize_table(
            plan, workers=workers, scheduler=scheduler, share=share, overwrite=overwrite, progress=advance
        )
    how = {"workers": workers, "shard": shard, "scheduler": scheduler}
    manifest = store.record_run("rasterize", {**_manifest(plan, report, share), **how})
    output.list_items(f"{len(report.failures):,} rows have no mask:", report.failures, elsewhere=f"see {manifest}")
    _tell(output, report, has_limits(stored), policy)
    output.result(_as_json(plan, report, share), *_summary(plan, report, share))
    if not images:
        output.say(
            "These masks are in the pixels of the rows; they do not overlay the original files without --images."
        )
    if report.failures or report.failed_elsewhere:
        raise typer.Exit(SOME_FAILED)


def _warn_of_many(output: Output, plan: MaskPlan) -> None:
    from cxu.rasterize import MANY_FILES, estimate_bytes

    if plan.n_files > MANY_FILES:
        output.say(
            f"{plan.n_files:,} files, about {in_bytes(estimate_bytes(plan))}: many file systems suffer; "
            "--format tar packs them"
        )


def _target(images: list[str] | None, size: str | None, layout: Literal["ids", "images"]) -> Target:
    from cxu.placing import Target

    if size is None:
        return Target(tuple(images or ()), layout=layout)
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", size)
    if not match:
        raise UsageError(f"--size {size!r}: expected a number such as 512, or height x width such as 512x448")
    if match[2]:
        return Target(tuple(images or ()), size_hw=(int(match[1]), int(match[2])), layout=layout)
    return Target(tuple(images or ()), longest=int(match[1]), layout=layout)


def _tell(output: Output, report: MaskReport, is_limited: bool, policy: str) -> None:
    if report.resumed_rows:
        output.say(f"{report.resumed_rows:,} rows were already drawn")
    if report.failed_elsewhere:
        output.say(f"{report.failed_elsewhere:,} rows of other shares have no mask: their jobs list them")
    if policy in ("confident", "ignore") and not is_limited:
        warn_of_no_limit(output, policy)
    warn_of_assumed(output, report.assumed)
    crossing = ", ".join(f"{count:,} × {name}" for name, count in report.crossing.items() if count)
    if crossing:
        output.warn(f"contours that cross themselves: {crossing}; listed in index.parquet as crosses_itself")


def _summary(plan: MaskPlan, report: MaskReport, share: Share | None) -> list[Any]:
    if share is not None and not report.is_whole:
        done = f"{report.rows:,} rows"
        return [told_share(share, done, report.blocks_finished, report.blocks, "blocks", "index")]
    rows = [[name, report.rows - count, count] for name, count in report.unusable.items()]
    table = make_table("", ["organ", "usable", "unusable"], rows)
    return [table, f"\n{report.rows:,} rows, {report.files:,} files, {in_bytes(report.bytes)} in {plan.out}"]


def _as_json(plan: MaskPlan, report: MaskReport, share: Share | None) -> dict[str, Any]:
    content = {
        "out": str(plan.out),
        "rows": report.rows,
        "files": report.files,
        "bytes": report.bytes,
        "resumed_rows": report.resumed_rows,
        "unusable": dict(report.unusable),
        "crossing": dict(report.crossing),
        "assumed": report.assumed,
        "failures": len(report.failures) + report.failed_elsewhere,
        "overlays_images": bool(plan.target.images),
    }
    if share is not None:
        content |= {"shard": str(share), "blocks": report.blocks, "blocks_finished": report.blocks_finished}
    return content


def _manifest(plan: MaskPlan, report: MaskReport, share: Share | None) -> dict[str, Any]:
    failures = [[failure.source, failure.image_id, failure.reason] for failure in report.failures]
    return {**_as_json(plan, report, share), "record": plan.record, "failed": failures}
