"""``cxu export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption, WorkersOption
from cxu.cli._output import Output, make_table
from cxu.cli._output import size as in_bytes
from cxu.cli._tables import announce, has_limits, warn_of_assumed, warn_of_no_limit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.export.blocks import ExportReport
    from cxu.export.plan import ExportPlan

EXAMPLE = "cxu export --format coco --out lungs.json --images /data/mimic-cxr-jpg/files"

_Format = Literal["coco", "csv", "dicomseg", "geojson"]
_NO_OVERLAY: Final = "Outlines are in the pixels of the rows; they do not overlay the original files without --images."


def command(
    format_: Annotated[
        _Format,
        typer.Option(
            "--format",
            help="coco: one JSON file. csv: the published columns. dicomseg: a segmentation a DICOM film. "
            "geojson: a feature an organ.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="The file; for dicomseg a folder, for csv either."),
    ],
    table: Annotated[
        str | None,
        typer.Argument(
            help="A selection, a source, predictions or a .parquet table.", show_default="the selection 'latest'"
        ),
    ] = None,
    policy: Annotated[
        Literal["confident", "full"] | None,
        typer.Option(
            "--policy",
            help="confident: outlines through confident nodes. full: through all.",
            show_default="confident; csv: full",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", help="Folder, glob, list or zip of the images: outlines in their pixels. dicomseg needs it."
        ),
    ] = None,
    rle: Annotated[
        bool, typer.Option("--rle", help="coco: run-length masks, exact to the pixel, in place of polygons.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="csv: predictions with all their digits, not rounded as published.")
    ] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="geojson: which nodes a ring goes through, and the uncertainty of each.")
    ] = False,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there under that name.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write landmarks and masks for other programs: COCO, published CSV, DICOM segmentations, GeoJSON.

    Unusable organs are left out of coco and dicomseg, marked in geojson, and counted. Without --images, outlines are in
    the pixels of the rows.
    """
    from cxu.export.plan import ExportOptions, plan_export
    from cxu.export.run import export_table
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    options = ExportOptions(format_, policy, rle=rle, exact=exact, nodes=nodes)
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    plan = plan_export(stored, out, options, images=tuple(images or ()), frame=frame, cache_folder=store.root / "cache")
    with output.progress("exporting", plan.rows) as advance:
        report = export_table(plan, workers=workers, overwrite=overwrite, progress=advance)
    content = _as_json(plan, report)
    manifest = store.record_run("export", {**content, **_details(plan, report), "workers": workers})
    elsewhere = f"see {manifest}"
    failures = report.account.failures
    output.list_items(f"{len(failures):,} rows could not be exported:", failures, elsewhere=elsewhere)
    empty = [f"{source} {image_id}" for source, image_id in report.account.empty]
    output.list_items(f"{len(empty):,} rows are left out, none of their organs is usable:", empty, elsewhere=elsewhere)
    _tell(output, plan, report, has_limits(stored))
    output.result(content, *_summary(plan, report))
    if not images and format_ != "csv":
        output.say(_NO_OVERLAY)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _tell(output: Output, plan: ExportPlan, report: ExportReport, is_limited: bool) -> None:
    account = report.account
    if report.resumed_rows:
        output.say(f"{report.resumed_rows:,} rows were already exported")
    if plan.options.drawn_policy == "confident" and not is_limited:
        warn_of_no_limit(output, plan.options.drawn_policy)
    warn_of_assumed(output, account.assumed)
    unusable = sum(account.unusable.values())
    if plan.options.format == "csv" and unusable:
        output.warn(
            f"{unusable:,} unusable organs are in the file like the others: its columns cannot say which they are"
        )
    crossing = ", ".join(f"{count:,} × {name}" for name, count in account.crossing.items() if count)
    if crossing:
        output.warn(f"outlines that cross themselves: {crossing}")


def _summary(plan: ExportPlan, report: ExportReport) -> list[RenderableType]:
    from cxu.anatomy import ORGAN_NAMES

    account = report.account
    rows = [[name, account.organs[name], account.unusable[name]] for name in ORGAN_NAMES]
    where = ", ".join(map(str, report.paths)) if len(report.paths) <= 3 else str(plan.out)
    written = f"{account.rows:,} rows, {report.files:,} file{'s' * (report.files != 1)}, {in_bytes(report.bytes)}"
    return [make_table("", ["organ", "usable", "unusable"], rows), f"\n{written} in {where}"]


def _as_json(plan: ExportPlan, report: ExportReport) -> dict[str, Any]:
    from cxu.anatomy import ORGAN_NAMES

    account = report.account
    return {
        "out": str(plan.out),
        "format": plan.options.format,
        "rows": account.rows,
        "files": report.files,
        "bytes": report.bytes,
        "paths": [str(path) for path in report.paths],
        "resumed_rows": report.resumed_rows,
        **{
            name: {organ: counts[organ] for organ in ORGAN_NAMES}
            for name, counts in (
                ("organs", account.organs),
                ("unusable", account.unusable),
                ("crossing", account.crossing),
            )
        },
        "assumed": account.assumed,
        "left_out": len(account.empty),
        "failures": len(account.failures),
        "overlays_images": bool(plan.masks.target.images),
    }


def _details(plan: ExportPlan, report: ExportReport) -> dict[str, Any]:
    failed = [[failure.source, failure.image_id, failure.reason] for failure in report.account.failures]
    return {
        "table": plan.masks.record["table_name"],
        "options": {**plan.facts, "rle": plan.options.rle, "exact": plan.options.exact, "nodes": plan.options.nodes},
        "left_out_rows": [list(pair) for pair in report.account.empty],
        "failed": failed,
    }
