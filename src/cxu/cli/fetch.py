"""``cxu fetch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxu.catalog import DATASET_REPO
from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import FrameOption, HomeOption, JsonOption
from cxu.cli._output import Output, make_table, size
from cxu.cli.import_ import tell_report

if TYPE_CHECKING:
    from cxu.catalog import Source
    from cxu.fetch import FetchReport, FetchResult
    from cxu.fetch_plan import FetchItem, FetchOptions, FetchPlan, ListedFile
    from cxu.hub import Listing
    from cxu.store import Home

EXAMPLE = "cxu fetch mimic vindr --limit-rows 1000"


def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="mimic, chexpert, chestxray8, padchest, vindr, or all.",
            show_default=False,
        ),
    ] = None,
    frame: FrameOption = None,
    list_: Annotated[bool, typer.Option("--list", help="List the repository's files; fetch nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; fetch nothing.")] = False,
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Dataset repository on the Hub.")] = (
        DATASET_REPO
    ),
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of it.", show_default="main")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is here and in the cache.")] = False,
    limit_rows: Annotated[
        int | None,
        typer.Option("--limit-rows", min=1, metavar="N", help="Only the first N rows, to look at: marked partial."),
    ] = None,
    keep_csv: Annotated[
        bool, typer.Option("--keep-csv", help="Keep the downloaded CSV in the Hugging Face cache.")
    ] = False,
    keep_rle: Annotated[bool, typer.Option("--keep-rle", help="Keep the shipped masks too, as columns rle_*.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch again what is here, and replace what was imported by hand.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download published tables from the Hugging Face Hub and convert them to the one table.

    What is interrupted continues when the same command runs again. Without --frame, each source comes in the frame
    whose positions are reliable. Malformed rows are listed and left out (exit 3).
    """
    from cxu.fetch import carry_out, prepare_fetch
    from cxu.fetch_plan import FetchOptions, select_sources
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    options = FetchOptions(frame, limit_rows, keep_csv, keep_rle, force, offline)
    wanted = () if list_ and not sources else select_sources(sources or ())
    output.say(f"home {store.root} · repository {repo}, revision {revision or 'main'}")
    if list_:
        _list(output, store, wanted, repo, revision, options)
        return
    plan = prepare_fetch(wanted, store, options, repo=repo, revision=revision)
    _tell_plan(output, plan)
    if dry_run:
        output.result(_plan_as_json(plan), _plan_table(plan))
        output.say("nothing was downloaded (--dry-run)")
        return
    report = carry_out(plan, store, progress=output.progress, done=lambda result: _tell_result(output, result, store))
    _tell(output, report)
    if as_json:
        output.result({**_origin(plan.listing, repo), "home": str(store.root), "sources": _results(report)})
    if any(result.malformed for result in report.results):
        raise typer.Exit(SOME_FAILED)


def _list(
    output: Output, store: Home, sources: tuple[Source, ...], repo: str, revision: str | None, options: FetchOptions
) -> None:
    from cxu.fetch import list_repository, read_held
    from cxu.fetch_plan import list_published

    listing = list_repository(repo, revision=revision, offline=options.offline)
    output.say(f"commit {listing.commit}, {len(listing.files):,} files")
    listed = list_published(listing, read_held(store), sources)
    rows = [[file.path, size(file.size), file.source, file.frame, file.state] for file in listed]
    files = [_listed_as_json(file) for file in listed]
    output.result(
        {**_origin(listing, repo), "files": files}, make_table("", ["file", "size", "source", "frame", "here"], rows)
    )


def _listed_as_json(file: ListedFile) -> dict[str, object]:
    return {
        "path": file.path,
        "bytes": file.size,
        "source": file.source,
        "frame": file.frame,
        "state": file.state or None,
    }


def _tell_plan(output: Output, plan: FetchPlan) -> None:
    if plan.listing is not None:
        output.say(f"commit {plan.listing.commit}")
    for item in plan.items:
        for note in item.notes:
            output.say(f"{item.source.name}: {note}")


def _plan_table(plan: FetchPlan) -> Any:
    rows = [
        [
            item.source.name,
            item.frame,
            item.file.path if item.file else None,
            size(item.file.size) if item.file else None,
            size(item.to_download),
            item.action,
        ]
        for item in plan.items
    ]
    return make_table("", ["source", "frame", "file", "size", "to download", "action"], rows)


def _plan_as_json(plan: FetchPlan) -> dict[str, object]:
    return {**_origin(plan.listing, plan.repo), "plan": [_item_as_json(item) for item in plan.items]}


def _item_as_json(item: FetchItem) -> dict[str, object]:
    return {
        "source": item.source.name,
        "frame": item.frame,
        "file": item.file.path if item.file else None,
        "bytes": item.file.size if item.file else None,
        "to_download": item.to_download,
        "action": item.action,
    }


def _origin(listing: Listing | None, repo: str) -> dict[str, object]:
    return {
        "repo": repo,
        "revision": listing.revision if listing else None,
        "commit": listing.commit if listing else None,
    }


def _tell(output: Output, report: FetchReport) -> None:
    for result in report.results:
        if result.report is not None:
            tell_report(output, result.report, str(report.manifest))
        if result.unexpected_count:
            output.warn(result.unexpected_count)


def _results(report: FetchReport) -> list[dict[str, Any]]:
    from cxu.fetch import describe_result

    return [describe_result(result) for result in report.results]


def _tell_result(output: Output, result: FetchResult, store: Home) -> None:
    if not output.as_json:
        output.result(None, _sentence(result, store))


def _sentence(result: FetchResult, store: Home) -> str:
    item = result.item
    where = f"{store.root}/sources/{item.source.name}/{item.frame}"
    partial = ", partial" if result.partial else ""
    if result.report is None:
        return f"{item.source.name}: already here ({result.rows:,} rows{partial} in {where}); nothing to do"
    return f"{item.source.name}: {result.rows:,} rows{partial} into {where}, {result.malformed:,} malformed"
