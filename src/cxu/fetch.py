"""Fetch published tables from the Hub into a home: prepare a plan, then carry it out.

::

    plan = prepare_fetch(["mimic"], home, FetchOptions())   # asks the Hub for its listing, downloads nothing
    report = carry_out(plan, home)

Every source becomes whole or stays as it was. What is interrupted continues: the download in the Hugging Face cache
where it stopped, the conversion from its beginning, with the same bytes at the end.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from cxu import fetch_plan, files, hub
from cxu.catalog import DATASET_REPO, Source
from cxu.errors import CxuError
from cxu.fetch_plan import FetchItem, FetchOptions, FetchPlan, Held
from cxu.hub import HubFile, Listing
from cxu.ingest import ImportReport, import_stream
from cxu.ingest_parts import ImportOptions
from cxu.published import Provenance
from cxu.store import Home

_MB: Final = 1_000_000
# Bytes of the table for a byte of CSV, on the safe side: without the masks, with them; and of CSV for one of .csv.gz.
_TABLE_SHARE: Final = 0.1
_TABLE_SHARE_WITH_RLE: Final = 0.35
_UNPACKED: Final = 4.0


# Shows how a piece of work goes on: given what it is, how much of it there is and the unit, it gives a function that
# takes how much more is done.
Progress = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def no_progress(_verb: str, _total: int | None, _unit: str) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda _: None


@dataclass(frozen=True)
class FetchResult:
    """What came of one source.

    Attributes
    ----------
    item, rows
        The item of the plan, and the rows that are here now.
    partial
        To how many rows they are limited, or None.
    sha256
        Hash of the file that was converted, where all of it was.
    report
        None where nothing was converted.
    """

    item: FetchItem
    rows: int
    partial: int | None = None
    sha256: str | None = None
    report: ImportReport | None = None

    @property
    def malformed(self) -> int:
        """Rows that could not be converted."""
        return len(self.report.problems) if self.report else 0

    @property
    def unexpected_count(self) -> str | None:
        """A warning where a complete file does not hold the rows that its source is known to have."""
        source = self.item.source
        if self.report is None or self.partial or self.rows + self.malformed == source.rows_expected:
            return None
        return (
            f"{self.report.file} holds {self.rows + self.malformed:,} rows; the published table of {source.title} is "
            f"known to have {source.rows_expected:,}"
        )


@dataclass
class FetchReport:
    """What came of a plan, and where its manifest lies."""

    results: list[FetchResult] = field(default_factory=list)
    manifest: Path | None = None


def list_repository(repo: str = DATASET_REPO, *, revision: str | None = None, offline: bool = False) -> Listing:
    """Return the files of a dataset repository; see :func:`cxu.hub.list_files` for what is raised."""
    return hub.list_files(repo, revision=revision, offline=offline)


def read_held(home: Home) -> Held:
    """Return what a home holds, by source and frame; a source of which a part is gone does not count."""
    listings = home.readable_listings()
    return {
        (held.source, held.frame): held
        for held in listings
        if all((home.source_folder(held.source, held.frame) / part.name).is_file() for part in held.parts)
    }


def prepare_fetch(
    sources: tuple[Source, ...],
    home: Home,
    options: FetchOptions,
    *,
    repo: str = DATASET_REPO,
    revision: str | None = None,
) -> FetchPlan:
    """Ask the Hub for the listing of ``repo`` and plan; offline, ask the home first, and the cache for the rest.

    Parameters
    ----------
    sources, options
        What to fetch; :func:`cxu.fetch_plan.select_sources` makes the first out of names.
    home
        Where it goes.
    repo, revision
        Dataset repository, and a branch, tag or commit of it; None means main.

    Raises
    ------
    HubError, OutputExistsError
        See :func:`cxu.hub.list_files` and :func:`cxu.fetch_plan.plan_fetch`.
    """
    held = read_held(home)
    here: dict[str, FetchItem] = {}
    options = replace(options, offline=hub.is_offline(options.offline))
    if options.offline:
        items = (fetch_plan.held_item(source, repo, revision, options, held) for source in sources)
        here = {item.source.name: item for item in items if item is not None}
    rest = [source for source in sources if source.name not in here]
    if not rest:
        return FetchPlan(repo, None, tuple(here.values()), options)
    listing = list_repository(repo, revision=revision, offline=options.offline)
    plan = fetch_plan.plan_fetch(listing, rest, options, held, lambda file: hub.missing_bytes(listing, file))
    planned = here | {item.source.name: item for item in plan.items}
    return FetchPlan(repo, listing, tuple(planned[source.name] for source in sources), options)


def carry_out(
    plan: FetchPlan,
    home: Home,
    *,
    progress: Progress = no_progress,
    done: Callable[[FetchResult], None] = lambda _: None,
) -> FetchReport:
    """Do what ``plan`` says, source after source, and write a manifest of what was done, also if one fails.

    ``done`` is called with the result of each source.

    Raises
    ------
    DiskSpaceError
        If there is not enough space for it; checked before anything is downloaded.
    HubError, FormatError, DuplicateIdError
        See :func:`cxu.hub.download` and :func:`cxu.ingest.import_stream`. The sources before are kept.
    """
    _check_disk(plan, home)
    report, error = FetchReport(), None
    try:
        for item in plan.items:
            report.results.append(_Fetch(plan, item, home, progress).run())
            done(report.results[-1])
    except CxuError as raised:
        error = str(raised)
        raise
    finally:
        if report.results or error:
            report.manifest = home.record_run("fetch", _manifest(plan, report, error))
    return report


def _check_disk(plan: FetchPlan, home: Home) -> None:
    """Check the disks of the cache and of the home for what is complete; the beginning of a file needs little."""
    items = [(item, item.file) for item in plan.items if item.action == "fetch" and item.file is not None]
    if plan.options.limit_rows is not None or not items:
        return
    downloads = [item.to_download for item, _ in items]
    download = sum(downloads) if plan.options.keep_csv else max(downloads)
    tables = sum(_table_bytes(file, plan.options) for _, file in items)
    names, cache = ", ".join(item.source.name for item, _ in items), hub.cache_folder()
    if hub.on_same_disk(cache, home.root):
        hub.check_space(home.root, download + tables, f"the download and the tables of {names}")
    else:
        hub.check_space(cache, download, f"the download of {names}")
        hub.check_space(home.root, tables, f"the tables of {names}")


def _table_bytes(file: HubFile, options: FetchOptions) -> int:
    share = _TABLE_SHARE_WITH_RLE if options.keep_rle else _TABLE_SHARE
    return int(file.size * share * (_UNPACKED if _is_packed(file) else 1))


def _is_packed(file: HubFile) -> bool:
    return file.path.lower().endswith(".gz")


class _Fetch:
    """The work on one source.

    ``brought`` is a file that lists what this home brought into the cache and has not removed yet. It outlives a killed
    run: only by it does a later one tell its own CSV from one that the user keeps there.
    """

    def __init__(self, plan: FetchPlan, item: FetchItem, home: Home, progress: Progress) -> None:
        self.listing, self.options = plan.listing, plan.options
        self.item, self.home, self.progress = item, home, progress
        self.brought = home.root / "cache" / "fetch" / f"{item.source.name}-{item.frame}.json"

    def run(self) -> FetchResult:
        """Fetch the source, unless it is here, and remove what stands in the cache only for that."""
        source, frame = self.item.source.name, self.item.frame
        with self.home.lock(source, frame):
            self.home.tidy(source, frame)
            result = self._fetch() if self._is_needed() else self._already()
            self._clear_cache()
        return result

    def _is_needed(self) -> bool:
        """Decide again: while this one waited, another process may have fetched the source."""
        if self.item.action != "fetch" or self.item.file is None or self.listing is None:
            return False
        current = read_held(self.home).get((self.item.source.name, self.item.frame))
        return current is None or fetch_plan.decide(self.item.file, current, self.listing, self.options)[0] == "fetch"

    def _already(self) -> FetchResult:
        held = self.home.listing(self.item.source.name, self.item.frame)
        return FetchResult(replace(self.item, action="already"), held.rows, held.partial)

    def _fetch(self) -> FetchResult:
        file, listing = self.item.file, self.listing
        assert file is not None
        assert listing is not None
        if self.options.limit_rows is not None:
            with hub.open_stream(listing, file, offline=self.options.offline) as stream:
                return self._convert(stream, file, Provenance(None, listing.repo, listing.commit))
        self._note_brought(listing, file)
        with self.progress(f"downloading {Path(file.path).name}", file.size // _MB, "MB") as advance:
            bar = _in_units(advance, _MB)
            download = hub.download(listing, file, offline=self.options.offline, progress=bar)
        with download.path.open("rb", buffering=0) as stream:
            return self._convert(stream, file, Provenance(download.sha256, listing.repo, listing.commit))

    def _convert(self, stream: BinaryIO, file: HubFile, provenance: Provenance) -> FetchResult:
        item, limit = self.item, self.options.limit_rows
        options = ImportOptions(item.frame, keep_rle=self.options.keep_rle, limit_rows=limit)
        unpacked: Any = gzip.GzipFile(fileobj=stream) if _is_packed(file) else stream
        with self.progress(f"converting {item.source.name}", limit or item.source.rows_expected, "rows") as advance:
            report = import_stream(
                unpacked, file.path, item.source, self.home, options, provenance, replace=True, progress=advance
            )
        return FetchResult(item, report.imported, limit, provenance.sha256, report)

    def _note_brought(self, listing: Listing, file: HubFile) -> None:
        """Note that ``file`` is about to be brought into the cache, unless it is there."""
        if hub.cached_file(listing, file) is None and not hub.is_offline(self.options.offline):
            entry = {"repo": listing.repo, "commit": listing.commit, "file": asdict(file)}
            files.write_json(self.brought, [*(known for known in self._read_brought() if known != entry), entry])

    def _read_brought(self) -> list[Any]:
        return json.loads(self.brought.read_text("utf-8")) if self.brought.is_file() else []

    def _clear_cache(self) -> None:
        """Remove from the cache what this home brought there, now that the source is here."""
        if self.options.limit_rows is not None:
            return
        for entry in self._read_brought():
            file = HubFile(**entry["file"])
            listing = Listing(entry["repo"], "dataset", entry["commit"], entry["commit"], (file,))
            if not (self.options.keep_csv and file == self.item.file):
                hub.discard(listing, file)
        self.brought.unlink(missing_ok=True)


def _in_units(advance: Callable[[int], None], unit: int) -> Callable[[int], None]:
    """Return a function that passes on how many whole units were completed."""
    done = told = 0

    def add(more: int) -> None:
        nonlocal done, told
        done += more
        advance(done // unit - told)
        told = done // unit

    return add


def describe_result(result: FetchResult) -> dict[str, Any]:
    """Return a result as JSON-able facts, without the malformed rows themselves."""
    item, file = result.item, result.item.file
    return {
        "source": item.source.name,
        "frame": item.frame,
        "action": item.action,
        "file": file.path if file else None,
        "bytes": file.size if file else None,
        "sha256": result.sha256,
        "rows": result.rows,
        "partial": result.partial,
        "malformed": result.malformed,
        "notes": dict(result.report.notes) if result.report else {},
        "remarks": list(item.notes),
    }


def _manifest(plan: FetchPlan, report: FetchReport, error: str | None) -> dict[str, Any]:
    sources = []
    for result in report.results:
        problems = [str(problem) for problem in result.report.problems] if result.report else []
        sources.append({**describe_result(result), "problems": problems})
    listing = plan.listing
    return {
        "repo": plan.repo,
        "revision": listing.revision if listing else None,
        "commit": listing.commit if listing else None,
        "options": asdict(plan.options),
        "sources": sources,
        "error": error,
    }
