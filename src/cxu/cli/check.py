"""``cxu check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output, make_table, percent
from cxu.cli._tables import announce, titled
from cxu.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.check.findings import SourceFindings
    from cxu.check.plan import CheckPlan
    from cxu.check.run import CheckReport
    from cxu.stats import Interval

EXAMPLE = "cxu check mimic --images /data/mimic-cxr-jpg/files"
KEPT = "Nothing was written, or a part of it; the same command writes it anew."

_LISTED = 3  # films of each verdict


def command(
    images: Annotated[list[str], typer.Option("--images", help="Folder, glob, list or zip of the images.")],
    table: Annotated[
        str | None,
        typer.Argument(
            help="A selection, a source, predictions or a .parquet table.",
            show_default="the selection 'latest', else all sources",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Look at that many rows, of every source as many.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of their choice.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the numbers and the contact sheets.")
    ] = Path("check"),
    pages: Annotated[
        int, typer.Option("--pages", min=0, help="Contact sheets of 24 films, the worst first; 0 for none.")
    ] = 2,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Let the bundled network look, or compare sizes alone.")
    ] = True,
    frame: FrameOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a table fits your own image files: sizes, shifts, mirrored films, exchanged sides.

    A network looks at a sample of the films, and what it sees is compared with the table's outlines. Research and
    education only; not a medical device.
    """
    from cxu.check import folder
    from cxu.check.plan import plan_check, tables_to_check
    from cxu.check.run import check_images
    from cxu.cli._model import load_model
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    if not all(text.strip() for text in images):
        raise UsageError("--images is blank: name a folder, glob, list or zip")
    folder.claim_folder(out)
    tables = tables_to_check(store, table, frame)
    for stored in tables:
        announce(output, store, stored)
    plan = plan_check(tables, images, n_rows=rows, seed=seed, frame=frame, cache_folder=store.root / "cache")
    _say_before(output, plan)
    weights = load_model(output, "bundled") if model else None
    with output.progress("looking", len(plan.rows), "films") as advance:
        report = check_images(plan, weights, progress=advance)
    with output.progress("drawing", min(len(plan.rows), pages * folder.COLUMNS * folder.ROWS), "films") as advance:
        written = folder.write_check(report, plan, out, pages=pages, progress=advance)
    content = folder.as_json(report, plan)
    store.record_run("check", {**content, "out": str(out)})
    _list_doubtful(output, report, str(written[0]))
    output.result({**content, "written": [str(path) for path in written]}, *_parts(report))
    output.say(f"written: {', '.join(map(str, written))}")
    if not report.fits:
        raise typer.Exit(SOME_FAILED)


def _say_before(output: Output, plan: CheckPlan) -> None:
    from cxu.check.plan import told_other_name

    for source, (n_rows, found) in plan.counts.items():
        if found < n_rows:
            output.say(f"{source}: {n_rows - found:,} of {n_rows:,} rows have no image among those given")
    if plan.other_names:
        output.warn(told_other_name(plan.other_names[0]))


def _list_doubtful(output: Output, report: CheckReport, where: str) -> None:
    """List some films of each verdict but ok."""
    items: list[str] = []
    for verdict in _verdicts():
        rows = [row for row in report.rows if row.verdict == verdict]
        items += [f"{verdict}: {row.source} {row.image_id}, {row.reason}" for row in rows[:_LISTED]]
        items += [f"{verdict}: {len(rows) - _LISTED:,} more"] if len(rows) > _LISTED else []
    doubtful = sum(row.verdict != "ok" for row in report.rows)
    output.list_items(f"{doubtful:,} of {len(report.rows):,} films to look at (see {where}):", items, elsewhere=where)


def _parts(report: CheckReport) -> list[RenderableType]:
    names = [name for name in ("ok", *_verdicts()) if any(source.verdicts.get(name) for source in report.sources)]
    cells = [
        [source.source, source.looked, *(_part(source.verdicts.get(name, 0), source.looked) for name in names)]
        for source in report.sources
    ]
    parts: list[RenderableType] = [make_table("", ["source", "films", *names], cells)]
    measured = [source for source in report.sources if source.measured]
    if measured:
        columns = ["source", "films", "right", "down", "width", "height"]
        title = "Where the chest lies against the table, median and 95 % interval, px of the 1024 model frame"
        parts += titled(title, columns, [[source.source, source.measured, *_place(source)] for source in measured])
    for source in report.sources:
        if source.looked:
            said = [finding.sentence for finding in source.findings]
            if not any(finding.is_fault for finding in source.findings):
                said.append(_fine(report, source))
            parts += ["", *(f"{source.source}: {sentence}." for sentence in said)]
    return parts


def _verdicts() -> tuple[str, ...]:
    from cxu.check.verdict import VERDICTS

    return tuple(name for name in VERDICTS if name != "ok")


def _part(count: int, n: int) -> str:
    return percent(count / n) if n else "-"


def _fine(report: CheckReport, source: SourceFindings) -> str:
    if source.verdicts.get("ok", 0) < source.looked:
        return "no more films stand out than a network takes wrongly for others: look at those alone"
    if report.with_network:
        return "nothing speaks against these images"
    return "nothing of the sizes speaks against these images; without --no-model a network looks at them too"


def _place(source: SourceFindings) -> list[str]:
    decimals = {"shift_x": 1, "shift_y": 1, "scale_x": 3, "scale_y": 3}
    return [_interval(source.intervals[name], n) for name, n in decimals.items()]


def _interval(interval: Interval, decimals: int) -> str:
    # adding zero turns -0.0 into 0.0
    value, low, high = (f"{round(one, decimals) + 0.0:.{decimals}f}" for one in interval)
    return f"{value} ({low} to {high})"
