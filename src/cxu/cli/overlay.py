"""``cxu overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption, WorkersOption
from cxu.cli._output import Output, counted
from cxu.cli._output import size as in_bytes
from cxu.cli._tables import announce, describe_thresholds, warn_of_assumed
from cxu.errors import UsageError

if TYPE_CHECKING:
    from cxu.labels import IdList
    from cxu.pictureplan import PicturePlan
    from cxu.pictures import PictureReport

EXAMPLE = "cxu overlay predictions --images films/ --out overlays/ --sheet --order uncertain --limit 48"

_ROWS = "Which rows"
_LOOKS = "What they look like"
_SHEET = "Contact sheets"


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    table: Annotated[
        str | None,
        typer.Argument(
            help="A selection, a source, predictions or a .parquet table.", show_default="the selection 'latest'"
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", help="Folder, glob, list or zip of the images. Without, outlines are on a blank frame."
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", help="File of ids to draw, one a line.", rich_help_panel=_ROWS),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Draw that many rows: chosen by --seed among those that have an image, or the most uncertain.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice.", rich_help_panel=_ROWS)] = 0,
    order: Annotated[
        Literal["table", "uncertain"],
        typer.Option("--order", help="As in the table, or the most uncertain first.", rich_help_panel=_ROWS),
    ] = "table",
    frame: FrameOption = None,
    colour: Annotated[
        Literal["sigma", "radius", "organ"],
        typer.Option(
            "--colour",
            help="Of the outlines, by uncertainty, calibrated radius, or organ.",
            rich_help_panel=_LOOKS,
        ),
    ] = "sigma",
    band: Annotated[
        float,
        typer.Option(
            "--band",
            help="Half-width of the band around an outline, in standard deviations (or radii); 0 for none.",
            rich_help_panel=_LOOKS,
        ),
    ] = 1.0,
    vmax: Annotated[
        float | None,
        typer.Option(
            "--vmax",
            metavar="PX",
            help="End of the colour scale, px of the 1024 model frame.",
            show_default="24, of radii 60",
            rich_help_panel=_LOOKS,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PX",
            help="Side of a picture.",
            show_default="900, on a sheet 320",
            rich_help_panel=_LOOKS,
        ),
    ] = None,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Contact sheets instead of a picture a row.", rich_help_panel=_SHEET)
    ] = False,
    columns: Annotated[
        int | None,
        typer.Option("--columns", min=1, help="Pictures side by side.", show_default="6", rich_help_panel=_SHEET),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Rows of pictures on a page.", show_default="4", rich_help_panel=_SHEET),
    ] = None,
    workers: WorkersOption = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the pictures that are in this folder first.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw outlines over images: coloured by uncertainty, wider where less certain, dropped nodes hollow.

    A picture a row, or contact sheets. The same command into the same folder continues where it stopped; another one
    is refused. Research and education only; not a medical device.
    """
    from cxu.labels import IdList
    from cxu.pictureplan import COLUMNS, ROWS, PictureOptions, plan_pictures
    from cxu.pictures import draw_pictures
    from cxu.rowchoice import Choice
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if not sheet and (columns is not None or rows is not None):
        raise UsageError("--columns and --rows are of a contact sheet: give them with --sheet")
    options = PictureOptions(colour, band, sheet, columns or COLUMNS, rows or ROWS, size, vmax)
    wanted = IdList(ids) if ids else None
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    choice = Choice(wanted, limit, seed, order)
    plan = plan_pictures(stored, out, options, choice, images or (), frame=frame, cache_folder=store.root / "cache")
    _say_before(output, plan)
    with output.progress("drawing", plan.rows) as advance:
        report = draw_pictures(
            plan, note=describe_thresholds(stored), workers=workers, overwrite=overwrite, progress=advance
        )
    manifest = store.record_run("overlay", _manifest(plan, report))
    _say_after(output, plan, report, wanted, str(manifest))
    output.result(_as_json(plan, report, wanted), _summary(plan, report))
    if report.failures or (wanted is not None and wanted.unmatched()):
        raise typer.Exit(SOME_FAILED)


def _say_before(output: Output, plan: PicturePlan) -> None:
    from cxu.pictures import MANY_FILES

    if plan.without_image:
        output.say(f"{plan.without_image:,} rows have no image among those given: not chosen from")
    if plan.without_value and plan.options.colour != "organ":
        what = "calibrated radii" if plan.options.colour == "radius" else "standard deviations of known scale"
        output.warn(f"{plan.without_value:,} of {plan.rows:,} rows have no {what}: drawn in the colours of the organs")
    if not plan.options.sheet and len(plan.pictures) > MANY_FILES:
        output.say(
            f"{len(plan.pictures):,} pictures, about half a megabyte each: --sheet puts many on a page, --limit takes "
            "some"
        )


def _say_after(output: Output, plan: PicturePlan, report: PictureReport, wanted: IdList | None, manifest: str) -> None:
    if report.resumed_rows:
        output.say(f"{report.resumed_rows:,} rows were already drawn")
    warn_of_assumed(output, report.assumed)
    lost = len(report.failures)
    output.list_items(
        f"{counted(lost, 'row')} {'has' if lost == 1 else 'have'} no picture:",
        report.failures,
        elsewhere=f"see {manifest}",
    )
    missing = wanted.unmatched() if wanted else []
    title = f"{counted(len(missing), 'id')} of --ids {'was' if len(missing) == 1 else 'were'} not found:"
    output.list_items(title, missing, elsewhere="see --json")
    if not plan.target.images:
        output.say("The outlines are on a blank frame: --images draws them over the images.")


def _summary(plan: PicturePlan, report: PictureReport) -> str:
    files = counted(report.files, "page" if plan.options.sheet else "picture")
    where = f"in {plan.out}; index.csv says which is where"
    return f"{counted(report.rows, 'row')} on {files}, {in_bytes(report.bytes)} {where}"


def _as_json(plan: PicturePlan, report: PictureReport, wanted: IdList | None) -> dict[str, Any]:
    return {
        "out": str(plan.out),
        "rows": report.rows,
        "files": report.files,
        "bytes": report.bytes,
        "resumed_rows": report.resumed_rows,
        "without_image": plan.without_image,
        "without_colour": 0 if plan.options.colour == "organ" else plan.without_value,
        "assumed": report.assumed,
        "failures": [[one.source, one.image_id, one.reason] for one in report.failures],
        "ids_unmatched": wanted.unmatched() if wanted else [],
        "over_images": bool(plan.target.images),
    }


def _manifest(plan: PicturePlan, report: PictureReport) -> dict[str, Any]:
    return {**_as_json(plan, report, None), "record": plan.record}
