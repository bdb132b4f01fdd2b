"""``cxu measure``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from cxu.cli._output import Output
from cxu.cli._tables import announce, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.measure.account import MeasureReport
    from cxu.sharing import Share

EXAMPLE = "cxu measure mimic --out measures.parquet"
KEPT = "With --out, what is finished is kept: the same command continues."

_QUANTILES = ("5 %", "25 %", "50 %", "75 %", "95 %")
_BLANK = {
    "not_finite": "landmarks not finite",
    "unconfident": "nodes unconfident",
    "unusable": "organ unusable",
    "no_size": "image size unknown",
    "no_spacing": "pixel spacing unknown",
    "no_extent": "no extent",
}
_METHODS = {"samples": "from kept samples", "simulated": "simulated", None: "none: no standard deviations"}
_SCALES = {
    "fitted": "standard deviations times factors fitted for this model",
    "assumed": "standard deviations times an assumed factor",
    "none": "standard deviations as they are, not calibrated",
}
_FLAGS = {
    "touches_border": "a node within 1 px of the border, or outside",
    "lungs_swapped": "right lung on the right of the image",
    "heart_on_image_left": "heart left of the middle of the thorax",
}


def command(
    table: Annotated[
        str | None,
        typer.Argument(
            help="A selection, a source, predictions or a .parquet table.", show_default="the selection 'latest'"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the measures to this .parquet or .csv file.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="[SOURCE=]FILE",
            help="Label table (csv, csv.gz, parquet), joined by image id, its columns kept. May be repeated.",
        ),
    ] = None,
    frame: FrameOption = None,
    workers: WorkersOption = 1,
    shard: ShardOption = None,
    scheduler: SchedulerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure lungs and heart: cardiothoracic ratio, widths, areas, tilt, each with a 90 % interval.

    The outline of the lungs stands in for the inner border of the ribs. All 120 nodes are measured; where the outermost
    nodes of a length are not confident, it is blank. Research and education only; not a medical device.
    """
    from cxu.labels import open_labels
    from cxu.measure.bulk import measure_table, rows_of_share, sources_of
    from cxu.store import Home

    output, store, share = Output(as_json=as_json), Home(home), share_of(shard)
    stored = store.open(table, frame=frame)
    announce(output, store, stored)
    opened = [open_labels(text, sources_of(stored)) for text in labels or ()]
    with output.progress("measuring", rows_of_share(stored, share)) as advance:
        report = measure_table(
            stored, out, labels=opened, workers=workers, scheduler=scheduler, share=share, progress=advance
        )
    content = _as_json(report, out, share)
    failures = [str(failure) for failure in report.failures]
    elsewhere = "see --json"
    if out is not None:
        how = {"table": stored.name, "workers": workers, "shard": shard, "scheduler": scheduler}
        elsewhere = f"see {store.record_run('measure', {**content, **how})}"
    if report.is_whole:
        _tell_of_labels(output, report)
    if report.implausible_mm:
        output.warn(
            f"by the pixel spacing of the file, the thorax is narrower than 15 cm or wider than 45 cm in "
            f"{report.implausible_mm:,} of {report.rows:,} rows. Were files resized and their spacing left as it was? "
            "Then trust no value in mm"
        )
    output.result(content, *_summary(report, share))
    output.list_items(f"{len(failures):,} rows could not be measured:", failures, elsewhere=elsewhere)
    if out is not None and report.is_whole:
        output.say(f"{report.rows:,} rows in {out}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def _as_json(report: MeasureReport, out: Path | None, share: Share | None) -> dict[str, Any]:
    content = {
        "out": None if out is None else str(out),
        "rows": report.rows,
        "failures": [[failure.source, failure.image_id, failure.reason] for failure in report.failures],
        "quantiles": report.quantiles,
        "blank": {name: dict(counts) for name, counts in report.blank.items() if counts},
        "interval_method": _spelled(report.methods),
        "sigma_scale_source": _spelled(report.scale_sources),
        "flags": dict(report.flags),
        "implausible_mm": report.implausible_mm,
        "view": _spelled(report.views),
        "labels": [asdict(match) for match in report.labels],
        "first_rows": report.first_rows,
    }
    if share is not None:
        content |= {"shard": str(share), "blocks": report.shards, "blocks_finished": report.shards_finished}
    return content


def _spelled(counts: Mapping[str | None, int]) -> dict[str, int]:
    return {name or "null": count for name, count in counts.items()}


def _tell_of_labels(output: Output, report: MeasureReport) -> None:
    for match in report.labels:
        output.say(
            f"labels {match.file}: {match.rows_unmatched:,} of {match.rows:,} {match.source} rows have no line, "
            f"{match.lines_unmatched:,} of {match.lines:,} lines have no row"
        )
        if match.lines_unmatched == match.lines:
            output.warn(
                f"no line of {match.file} has a row: does it label {match.source}? else say --labels SOURCE=FILE"
            )


def _summary(report: MeasureReport, share: Share | None) -> list[RenderableType]:
    if share is not None and not report.is_whole:
        return [told_share(share, f"{report.rows:,} rows", report.shards_finished, report.shards, "blocks", "file")]
    parts: list[RenderableType] = []
    for source, of_measure in report.quantiles.items():
        rows = [
            [name, found["n"], *(_short(value) for value in found["quantiles"])] for name, found in of_measure.items()
        ]
        parts += titled(f"Measures of {source}", ["measure", "rows", *_QUANTILES], rows, gap=bool(parts))
    parts += _blank(report)
    parts += titled("90 % intervals", ["found", "rows"], _interval_rows(report))
    flags = [[_FLAGS[name], count] for name, count in report.flags.items()]
    parts += titled("Flags", ["flag", "rows"], flags)
    if report.first_rows:
        rows = [
            [row["source"], row["image_id"], _ratio(row), ", ".join(name for name in _FLAGS if row[name])]
            for row in report.first_rows
        ]
        parts += titled("Cardiothoracic ratio", ["source", "image", "ratio, 90 % interval", "flags"], rows)
    return parts


def _blank(report: MeasureReport) -> list[RenderableType]:
    """Return how many values are blank and why; those in mm only where any row has some."""
    has_mm = any(name.endswith("_mm") for of_measure in report.quantiles.values() for name in of_measure)
    shown = {
        name: counts
        for name, counts in report.blank.items()
        if counts and (has_mm or not name.endswith(("_mm", "_mm2")))
    }
    reasons = [reason for reason in _BLANK if any(counts[reason] for counts in shown.values())]
    parts: list[RenderableType] = []
    if reasons:
        rows = [[name, *(counts[reason] for reason in reasons)] for name, counts in shown.items()]
        parts += titled("Blank, and why", ["measure", *(_BLANK[reason] for reason in reasons)], rows)
    if report.rows and not has_mm:
        parts.append("\nNothing in mm: no row is in image pixels of known spacing.")
    return parts


def _interval_rows(report: MeasureReport) -> list[list[object]]:
    rows: list[list[object]] = [[_METHODS[name], report.methods[name]] for name in _METHODS if report.methods[name]]
    rows += [
        [_SCALES.get(name, name), count]
        for name, count in sorted(report.scale_sources.items(), key=str)
        if name is not None
    ]
    return rows


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ctr"] is None:
        return f"blank: {_BLANK[row['ctr_blank']]}"
    interval = "" if row["ctr_low"] is None else f" ({row['ctr_low']:.3f} to {row['ctr_high']:.3f})"
    return f"{row['ctr']:.3f}{interval}"


def _short(value: float) -> str:
    """Return a number in the digits that tell: three decimals of a share, none of an area."""
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
