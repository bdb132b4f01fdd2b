"""``cxu import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output
from cxu.errors import CxuError

if TYPE_CHECKING:
    from cxu.ingest import ImportReport

EXAMPLE = "cxu import OriginalResolution/VinDr-CXR.csv --source vindr --frame image"


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Published CSV files (.csv or .csv.gz).")],
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="Data set of the rows: mimic, chexpert, chestxray8, padchest, vindr, or a name of your own.",
        ),
    ],
    frame: FrameOption = None,
    keep_rle: Annotated[bool, typer.Option("--keep-rle", help="Keep the shipped masks too, as columns rle_*.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that convert.", show_default="threads, up to 4"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Convert on a Dask cluster: its scheduler's address."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row; import nothing.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert published CSV files (CheXmask-U or CheXmask) to the one table.

    Malformed rows are listed with file, line and reason, and left out (exit 3). --frame may be left out only where
    every size is 1024. The same file again changes nothing.
    """
    from cxu.catalog import source_or_custom
    from cxu.ingest import import_file
    from cxu.ingest_parts import ImportOptions
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    of_source = source_or_custom(source)
    output.say(f"home {store.root}")
    options = ImportOptions(frame, keep_rle=keep_rle, strict=strict)
    reports: list[ImportReport] = []
    error = None
    try:
        for path in files:
            with output.progress(f"importing {path.name}", None) as advance:
                reports.append(
                    import_file(path, of_source, store, options, progress=advance, workers=workers, scheduler=scheduler)
                )
            tell_report(output, reports[-1], f"the manifest in {store.root / 'runs'}")
    except CxuError as raised:
        error = str(raised)
        for report in reports:
            output.say(_sentence(report, store.root))
        raise
    finally:
        if reports:
            entries = [_as_json(report, everything=True) for report in reports]
            store.record_run("import", {"files": entries, "error": error})
    output.result([_as_json(report) for report in reports], *[_sentence(report, store.root) for report in reports])
    if any(report.malformed for report in reports):
        raise typer.Exit(SOME_FAILED)


def tell_report(output: Output, report: ImportReport, manifest: str) -> None:
    """Say what was noticed in a file, and list its malformed rows."""
    from cxu.published import NOTE_TEXTS

    for name, count in sorted(report.notes.items()):
        output.say(f"{report.file}: {count:,} × {NOTE_TEXTS[name]}")
    if report.problems:
        title = f"{len(report.problems):,} malformed rows were left out:"
        output.list_items(title, report.problems, elsewhere=f"see {manifest}")


def _sentence(report: ImportReport, root: Path) -> str:
    if report.already_there:
        left_out = f"; {report.malformed:,} malformed were left out" if report.malformed else ""
        return f"{report.file}: already imported ({report.imported:,} rows of {report.source}{left_out}); nothing to do"
    return (
        f"{report.file}: {report.imported:,} rows into {root}/sources/{report.source}/{report.frame}, "
        f"{report.malformed:,} malformed"
    )


def _as_json(report: ImportReport, *, everything: bool = False) -> dict[str, object]:
    content: dict[str, object] = {
        "file": report.file,
        "source": report.source,
        "frame": report.frame,
        "imported": report.imported,
        "malformed": report.malformed,
        "notes": dict(report.notes),
        "already_there": report.already_there,
    }
    if everything:
        content["problems"] = [str(problem) for problem in report.problems]
    return content
