"""``cxu filter``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output, counted, percent
from cxu.cli._tables import announce, describe_limits, describe_thresholds, titled
from cxu.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.criteria import Criteria
    from cxu.flow import FilterReport, Step
    from cxu.store import Home, StoredTable
    from cxu.thresholds import Thresholds

EXAMPLE = (
    "cxu filter --max-std heart=8,lungs=5 --min-rca 0.7 --labels metadata.csv --where ViewPosition=PA --name train"
)

_QUANTILES = ("5 %", "25 %", "50 %", "75 %", "95 %")
_SHARES = ("50 %", "80 %", "95 %")
_MOST_COLUMNS = 8
# steps that nobody asked for: told where they left something out
_UNASKED = ("impossible", "scale_unknown", "radius_scale_unknown", "quality")
_THRESHOLDS = "Thresholds"
_ROWS = "Which rows"


def command(
    table: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE", help="Tables to filter instead of the fetched sources.", show_default=False),
    ] = None,
    max_std: Annotated[
        str | None,
        typer.Option(
            "--max-std",
            help="Most uncertain a confident node may be: px (5), a percentile (p80), or by organ (heart=8,lungs=5).",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    unit: Annotated[
        Literal["model", "image"],
        typer.Option(
            "--unit",
            help="Pixels of --max-std and --max-radius90: those of the 1024 model frame, or the image's own.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = "model",
    min_confident: Annotated[
        float,
        typer.Option(
            "--min-confident",
            help="Share of its nodes that must be confident in a usable organ.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = 0.5,
    max_gap: Annotated[
        int,
        typer.Option(
            "--max-gap",
            help="Longest run of neighbours that may be unconfident in a usable organ.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = 4,
    organ: Annotated[
        str | None,
        typer.Option(
            "--organ",
            help="Organs that decide whether a row stays: right_lung, left_lung, lungs, heart.",
            show_default="all",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    min_rca: Annotated[
        float | None, typer.Option("--min-rca", help="Least mean RCA Dice, 0 to 1.", rich_help_panel=_THRESHOLDS)
    ] = None,
    min_rca_max: Annotated[
        float | None, typer.Option("--min-rca-max", help="Least maximal RCA Dice.", rich_help_panel=_THRESHOLDS)
    ] = None,
    max_mean_std: Annotated[
        float | None,
        typer.Option(
            "--max-mean-std",
            help="Most mean node uncertainty of a row, px of the 1024 frame.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    max_radius90: Annotated[
        str | None,
        typer.Option(
            "--max-radius90",
            metavar="LIMIT",
            help="Largest calibrated radius of a confident node, px of --unit: 20, or heart=25,lungs=15.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    quality: Annotated[
        Literal["ok", "review", "any"],
        typer.Option(
            "--quality",
            help="Worst verdict of the gate that stays; rows without one stay unless ok is asked.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = "review",
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="SELECTION",
            help="Same thresholds as this selection, percentiles as they came out there.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    mix_models: Annotated[
        bool,
        typer.Option(
            "--mix-models", help="Allow one px limit for rows of different models.", rich_help_panel=_THRESHOLDS
        ),
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="These sources only. May be repeated.", rich_help_panel=_ROWS),
    ] = None,
    frame: FrameOption = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids", help="File of ids to keep, one a line, with or without image suffix.", rich_help_panel=_ROWS
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="[SOURCE=]FILE",
            help="Label table (csv, csv.gz, parquet), joined by image id, its columns kept. May be repeated.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Condition on a column, such as ViewPosition=PA,AP or Age>=18. May be repeated: all must hold.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the selection.", show_default="latest")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the selection to this .parquet file instead.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Threads to use; the result is the same.", show_default="one a processor, up to 4"
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep what is certain: write a selection of rows, with the confident nodes and usable organs of each.

    A node is confident when its uncertainty (sigma_x + sigma_y) / 2 is at most --max-std.
    An organ is usable when enough of its nodes are confident and no long run is not.
    A row without a usable organ is left out.
    """
    from cxu.anatomy import ORGAN_NAMES
    from cxu.criteria import Criteria
    from cxu.labels import IdList, open_labels, parse_condition
    from cxu.selection import filter_tables
    from cxu.store import Home
    from cxu.thresholds import Thresholds, parse_max_radius90, parse_max_std, parse_organs

    output, store = Output(as_json=as_json), Home(home)
    thresholds = Thresholds(
        max_std=None if max_std is None else parse_max_std(max_std),
        unit=unit,
        min_confident=min_confident,
        max_gap=max_gap,
        min_rca=min_rca,
        min_rca_max=min_rca_max,
        max_mean_std=max_mean_std,
        max_radius90=None if max_radius90 is None else parse_max_radius90(max_radius90),
        quality=quality,
        organs=ORGAN_NAMES if organ is None else parse_organs(organ),
        mix_models=mix_models,
    )
    conditions = tuple(parse_condition(text) for text in where or ())
    target = _target(store, name, out)
    inputs = _inputs(store, table, source, frame)
    for stored in inputs:
        announce(output, store, stored)
    sources = _sources_of(inputs, source) if labels or (table and source) else []
    criteria = Criteria(
        thresholds,
        # of the home's own sources, only those that were asked for are read at all
        sources=tuple(sources) if table and source else (),
        frame=frame if table else None,
        ids=IdList(ids) if ids else None,
        labels=tuple(open_labels(text, sources) for text in labels or ()),
        where=conditions,
    )
    if like is not None:
        criteria = _like(output, store, like, criteria)
    with output.progress("filtering", sum(stored.rows for stored in inputs)) as advance:
        report = filter_tables(inputs, criteria, target, workers=workers, progress=advance)
    _finish(output, store, target, report, criteria)


def _target(store: Home, name: str | None, out: Path | None) -> Path:
    from cxu.store import LATEST

    if out is None:
        return store.selection_path(name or LATEST)
    if name is not None or out.suffix != ".parquet":
        raise UsageError(f"--out {out}: expected a .parquet file, and no --name beside it")
    return out


def _inputs(store: Home, tables: list[str] | None, sources: list[str] | None, frame: Any) -> list[StoredTable]:
    """Return the tables named, or the sources of the home that are asked for."""
    from cxu.catalog import source_or_custom
    from cxu.errors import MissingInputError

    if tables:
        return [store.open(name, frame=frame) for name in tables]
    wanted = {source_or_custom(name).name for name in sources or ()}
    listings = [listing for listing in store.listings(wanted or None) if frame in (None, listing.frame)]
    if wanted:
        missing = wanted - {listing.source for listing in listings}
        if missing:
            in_frame = f" in the {frame} frame" if frame else ""
            raise MissingInputError(
                f"{store.root} has no {' or '.join(sorted(missing))}{in_frame}: fetch or import it first, or take "
                f"{' or '.join(sorted({listing.source for listing in store.readable_listings()})) or 'another home'}"
            )
    if not listings:
        what = f"source in the {frame} frame" if frame and store.listings() else "source"
        raise MissingInputError(f"{store.root} holds no {what} to filter: start with cxu fetch or cxu import")
    return [store.open_source(listing.source, listing.frame) for listing in listings]


def _sources_of(inputs: list[StoredTable], wanted: list[str] | None) -> list[str]:
    """Return the sources of the rows, or those of them that are asked for."""
    from cxu.catalog import source_or_custom
    from cxu.errors import MissingInputError

    found = {name for stored in inputs for shard in stored.shards() for name in _unique_sources(shard)}
    asked = {source_or_custom(name).name for name in wanted or ()}
    if asked - found:
        there = ", ".join(sorted(found)) or "no rows"
        raise MissingInputError(f"--source {', '.join(sorted(asked - found))}: not in these tables, which hold {there}")
    return sorted(asked or found)


def _unique_sources(shard: Any) -> list[str]:
    names: list[str] = shard.read(["source"])["source"].unique().to_pylist()
    return names


def _like(output: Output, store: Home, like: str, criteria: Criteria) -> Criteria:
    from cxu.criteria import criteria_like
    from cxu.thresholds import Thresholds

    if criteria.thresholds != Thresholds(mix_models=criteria.thresholds.mix_models):
        raise UsageError("--like brings its own thresholds: give it without --max-std, --min-rca and the like")
    model = store.open(like)
    resolved = criteria_like(model.facts, criteria)
    output.say(f"thresholds of {model.name}: {describe_thresholds(model, conditions=False)}")
    return resolved


def _finish(output: Output, store: Home, target: Path, report: FilterReport, criteria: Criteria) -> None:
    """Record the run and tell what came of it."""
    from cxu.selection import excluded_path
    from cxu.store import open_table

    content = {
        "selection": str(target),
        "excluded": str(excluded_path(target)),
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
        "few_rows_left": report.few_rows_left,
        **open_table(target).facts,
        "ids_unmatched": report.ids_unmatched,
    }
    manifest = store.record_run("filter", content)
    _warn(output, report, criteria)
    output.result(content, *_summary(report, criteria.thresholds))
    output.say(f"{report.rows_out:,} rows in {target}; the others with their reason in {excluded_path(target)}")
    if report.ids_unmatched:
        title = f"{len(report.ids_unmatched):,} ids of --ids were not found:"
        output.list_items(title, report.ids_unmatched, elsewhere=f"see {manifest}")
        raise typer.Exit(SOME_FAILED)


def _warn(output: Output, report: FilterReport, criteria: Criteria) -> None:
    from cxu.thresholds import Thresholds

    default, thresholds = Thresholds(), criteria.thresholds
    names = ("unit", "min_confident", "max_gap")
    idle = [f"--{name.replace('_', '-')}" for name in names if getattr(thresholds, name) != getattr(default, name)]
    if idle and not thresholds.max_std:
        output.warn(f"{', '.join(idle)} changes nothing without --max-std")
    steps = [step for step in report.steps if step.reason == "impossible"]
    impossible = sum(sum(step.rows_in.values()) - sum(step.rows_out.values()) for step in steps)
    if impossible:
        output.warn(
            f"{counted(impossible, 'row')} left out as impossible: landmarks or standard deviations that are no finite "
            "number, or negative. Import or predict these images again"
        )
    if report.few_rows_left:
        output.warn(
            f"only {report.rows_out:,} of {report.rows_in:,} rows remain; what is left may not stand for the whole"
            + (". The summary lists limits that keep 50, 80 and 95 % of the nodes" if report.keep_thresholds else "")
        )
    for match in report.labels:
        output.say(
            f"labels {match.file}: {match.rows_unmatched:,} of {match.rows:,} {match.source} rows have no line, "
            f"{match.lines_unmatched:,} of {match.lines:,} lines have no row"
        )
        if match.lines_unmatched == match.lines:
            output.warn(
                f"no line of {match.file} has a row: does it label {match.source}? else say --labels SOURCE=FILE"
            )


def _summary(report: FilterReport, thresholds: Thresholds) -> list[RenderableType]:
    pixels = f"px of the {'image' if thresholds.max_std and thresholds.unit == 'image' else '1024 model frame'}"
    parts = _flow(report, thresholds)
    if report.limits:
        rows = [[limits.source, limits.model_id[:12], *limits.px.values()] for limits in report.limits]
        parts += titled(f"Limit of a confident node, {pixels}", ["source", "model", *report.limits[0].px], rows)
    if report.sigma_quantiles:
        quantiles = [[name, *values] for name, values in report.sigma_quantiles.items()]
        parts += titled(f"Node uncertainty before --max-std, {pixels}", ["organ", *_QUANTILES], quantiles)
        keeping = [[name, *values] for name, values in report.keep_thresholds.items()]
        parts += titled(f"--max-std that would keep this share of the nodes, {pixels}", ["organ", *_SHARES], keeping)
    return [*parts, *_kept(report, thresholds), *_unequal(report)]


def _kept(report: FilterReport, thresholds: Thresholds) -> list[RenderableType]:
    """Return the shares of nodes and organs that were kept, unless nothing could leave any out."""
    if not report.rows_out or (not thresholds.max_std and min(report.nodes_kept.values()) == 1):
        return []
    title = "Of the rows kept"
    if thresholds.max_std:
        least = percent(thresholds.min_confident)
        title += f" (usable: at least {least} of its nodes, no gap above {thresholds.max_gap})"
    rows = [[name, percent(share), percent(report.organs_kept[name])] for name, share in report.nodes_kept.items()]
    return titled(title, ["organ", "nodes confident", "organs usable"], rows)


def _flow(report: FilterReport, thresholds: Thresholds) -> list[RenderableType]:
    steps = [step for step in report.steps if step.reason not in _UNASKED or step.rows_in != step.rows_out]
    asked = [_asked(step, thresholds) for step in steps]
    totals = [(sum(step.rows_in.values()), sum(step.rows_out.values())) for step in steps]
    rows = [[text, *counts] for text, counts in zip(asked, totals, strict=True)]
    parts = titled("Rows", ["asked", "rows in", "rows out"], rows, gap=False)
    sources = sorted(report.steps[0].rows_in)
    if len(sources) > 1:
        by_source = [["rows read", *(report.steps[0].rows_in[name] for name in sources)]]
        by_source += [
            [text, *(step.rows_out[name] for name in sources)] for text, step in zip(asked, steps, strict=True)
        ]
        parts += titled("Rows out by source", ["asked", *sources], by_source)
    return parts


def _asked(step: Step, thresholds: Thresholds) -> str:
    """Return what a step asked as the option that made it."""
    reason = step.reason
    if reason in ("min_rca", "min_rca_max", "max_mean_std", "quality"):
        value = getattr(thresholds, reason)
        return f"--{reason.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
    limits: dict[str, str] = {
        organ: str(limit).removesuffix(" px") for organ, limit in (thresholds.max_std or {}).items()
    }
    max_std, known = f"--max-std {describe_limits(limits)}", "scale known"
    texts = {
        "max_std": max_std,
        "max_radius90": _radii(thresholds),
        "max_std or max_radius90": f"{max_std} {_radii(thresholds)}",
        "organ": f"--organ {','.join(thresholds.organs)}",
        "impossible": "numbers possible",
        "scale_unknown": known,
        "radius_scale_unknown": known,
        "nothing asked": "nothing asked",
    }
    return texts.get(reason, f"--{reason}")


def _radii(thresholds: Thresholds) -> str:
    limits: dict[str, str] = {organ: f"{limit:g}" for organ, limit in (thresholds.max_radius90 or {}).items()}
    return f"--max-radius90 {describe_limits(limits)}"


def _unequal(report: FilterReport) -> list[RenderableType]:
    columns = report.unequal_levels
    if not columns:
        return []
    rows = [
        [level.column, level.level, level.rows_in, percent(level.excluded)]
        for levels in columns[:_MOST_COLUMNS]
        for level in levels
    ]
    parts = titled("Left out unequally by the thresholds", ["column", "level", "rows", "left out"], rows)
    if len(columns) > _MOST_COLUMNS:
        parts.append(f"… and {len(columns) - _MOST_COLUMNS} more columns: see --json")
    parts.append("Filtering selects against some of these groups: report it, or filter within each.")
    return parts
