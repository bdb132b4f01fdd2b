"""What a fetch has to do: which published file serves which source and frame, and what the home holds already.

Pure functions of a listing and of what is held; :mod:`cxu.fetch` carries the plan out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cxu.catalog import FRAME_FOLDERS, SOURCES, FrameName, Source, find_source
from cxu.errors import HubError, HubNotFoundError, OutputExistsError, UsageError
from cxu.fetch_match import PublishedFile, is_table, recognise
from cxu.hub import HubFile, Listing
from cxu.store import SourceFile, SourceListing

ALL: Final = "all"
_MOST_NAMED: Final = 20

FetchAction = Literal["fetch", "already"]
Held = Mapping[tuple[str, FrameName], SourceListing]


@dataclass(frozen=True)
class FetchOptions:
    """What is asked of every source. ``frame`` None: the source's reference frame, or the one that is published."""

    frame: FrameName | None = None
    limit_rows: int | None = None
    keep_csv: bool = False
    keep_rle: bool = False
    force: bool = False
    offline: bool = False


@dataclass(frozen=True)
class FetchItem:
    """What is to be done for one source.

    Attributes
    ----------
    source, frame
        What the rows are of, and the frame that they are stored as.
    action
        ``fetch`` (download or stream, then convert), or ``already`` (what is asked for is here, or more than that).
    file
        The file that serves them; None where what the home holds was enough to decide.
    to_download
        Bytes still to be downloaded, as far as that is known before: 0 with ``limit_rows``.
    notes
        What a user has to know, in sentences.
    """

    source: Source
    frame: FrameName
    action: FetchAction
    file: HubFile | None
    to_download: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchPlan:
    """What is to be done. ``listing`` is None where the repository need not be asked."""

    repo: str
    listing: Listing | None
    items: tuple[FetchItem, ...]
    options: FetchOptions

    @property
    def to_download(self) -> int:
        """Bytes still to be downloaded."""
        return sum(item.to_download for item in self.items)


def select_sources(names: Iterable[str]) -> tuple[Source, ...]:
    """Return the sources that ``names`` mean, each once; ``all`` means every catalogued one.

    Raises
    ------
    UsageError
        If there is no name, or one that is unknown; the message names the known sources.
    """
    found: dict[str, Source] = {}
    for name in names:
        for source in SOURCES.values() if name.lower() == ALL else (find_source(name),):
            found.setdefault(source.name, source)
    if not found:
        raise UsageError(f"name at least one source: {', '.join(SOURCES)}, or {ALL}; --list shows what there is")
    return tuple(found.values())


def plan_fetch(
    listing: Listing,
    sources: Sequence[Source],
    options: FetchOptions,
    held: Held,
    missing: Callable[[HubFile], int] = lambda file: file.size,
) -> FetchPlan:
    """Decide which file serves each source, and what is to be done with it.

    Parameters
    ----------
    listing
        The repository's files at one commit.
    sources, options
        What is asked for.
    held
        What the home holds, by source and frame.
    missing
        How many bytes of a file are not downloaded yet.

    Raises
    ------
    HubNotFoundError
        If the repository has no file of a source, or none in the frame asked for; the message names what is there.
    HubError
        If several files could be meant.
    OutputExistsError
        If rows that were imported by hand are in the way.
    """
    published = [found for found in map(recognise, listing.files) if found is not None]
    items = [_plan_source(source, listing, published, options, held, missing) for source in sources]
    return FetchPlan(listing.repo, listing, tuple(items), options)


def _plan_source(
    source: Source,
    listing: Listing,
    published: Sequence[PublishedFile],
    options: FetchOptions,
    held: Held,
    missing: Callable[[HubFile], int],
) -> FetchItem:
    of_source = [found for found in published if found.source == source]
    frame, candidates, frame_notes = _choose_frame(source, of_source, listing, options)
    chosen, choice_notes = _choose_file(candidates, listing)
    current = held.get((source.name, frame), SourceListing(source.name, frame))
    action, action_notes = decide(chosen, current, listing, options)
    needed = missing(chosen) if action == "fetch" and options.limit_rows is None else 0
    return FetchItem(source, frame, action, chosen, needed, (*frame_notes, *choice_notes, *action_notes))


def _choose_frame(
    source: Source, published: Sequence[PublishedFile], listing: Listing, options: FetchOptions
) -> tuple[FrameName, list[PublishedFile], tuple[str, ...]]:
    """Return the frame to store, the files that serve it, and what to say about that."""
    wanted = options.frame or source.reference_frame
    files = [found for found in published if found.frame == wanted]
    if files:
        return wanted, files, ()
    if not published:
        raise HubNotFoundError(_nothing_published(source, listing, options))
    others = list(published)
    other = others[0].frame
    if source.framing == "native":
        note = f"{source.title} is published as frame {other} only; its images are 1024 × 1024 px, so that both frames"
        return wanted, others, (f"{note} coincide: stored as frame {wanted}",)
    if options.frame is None:
        note = (
            f"{source.title} is published as frame {other} only: taken, though frame {wanted} is its more reliable one"
        )
        return other, others, (note,)
    raise HubNotFoundError(
        f"{_place(listing)} has no {source.title} in frame {wanted} ({FRAME_FOLDERS[wanted]}), only in frame {other}: "
        f"{_named(found.file for found in others)}. Leave --frame out, or use --frame {other}."
    )


def _choose_file(candidates: Sequence[PublishedFile], listing: Listing) -> tuple[HubFile, tuple[str, ...]]:
    """Return the file of the newest version; of a table packed and unpacked, the smaller one."""
    newest = max(found.version for found in candidates)
    files = sorted(
        (found.file for found in candidates if found.version == newest), key=lambda file: (file.size, file.path)
    )
    names = {re.sub(r"\.gz$", "", file.path.lower()) for file in files}
    contents = {file.sha256 or file.git_oid for file in files}
    if len(names) > 1 and len(contents) > 1:
        source, frame = candidates[0].source, candidates[0].frame
        raise HubError(
            f"{_place(listing)} has several files that could be {source.title} in frame {frame}: {_named(files)}. "
            f"Download the right one with `hf download {listing.repo} FILE --repo-type dataset`, then run "
            f"`cxu import FILE --source {source.name} --frame {frame}`."
        )
    left = [found.file for found in candidates if found.file != files[0]]
    return files[0], (f"{files[0].path} is taken, as the newest; left: {_named(left)}",) if left else ()


def decide(
    file: HubFile, current: SourceListing, listing: Listing, options: FetchOptions
) -> tuple[FetchAction, tuple[str, ...]]:
    """Return what is to be done with ``file`` where the home holds ``current``, and why.

    Raises
    ------
    OutputExistsError
        If ``current`` holds rows that did not come from the Hub, and ``options`` do not force it.
    """
    if options.force or not current.files:
        return "fetch", ()
    if options.limit_rows is not None:
        return _decide_beginning(file, current, listing, options)
    if current.partial is not None:
        return "fetch", (f"replaces the first {current.partial:,} rows, fetched with --limit-rows",)
    same = [known for known in current.files if is_same(known, file, listing)]
    if any(known.rle_kept >= options.keep_rle for known in same):
        by_hand = "" if same[0].repo else ", imported from a file of the same content"
        return "already", (f"{_here(current)} already{by_hand}; --force fetches it again",)
    _refuse_imported(current)
    if same:
        return "fetch", ("fetched before without the published masks: fetched again because of --keep-rle",)
    return "fetch", (f"replaces {current.rows:,} rows of {_named_revisions(current)}",)


def _decide_beginning(
    file: HubFile, current: SourceListing, listing: Listing, options: FetchOptions
) -> tuple[FetchAction, tuple[str, ...]]:
    if current.partial is None:
        return "already", (f"{_here(current)} completely: kept, --limit-rows changes nothing",)
    known = current.files[0]
    same_place = (known.repo, known.revision, known.name) == (listing.repo, listing.commit, file.path)
    if same_place and current.partial == options.limit_rows and known.rle_kept >= options.keep_rle:
        return "already", (f"the first {current.partial:,} rows are here already",)
    return "fetch", (f"replaces the first {current.partial:,} rows, fetched before",)


def is_same(known: SourceFile, file: HubFile, listing: Listing) -> bool:
    """Tell whether a file that was converted is this one: by its hash, or by its place where the hash is not listed."""
    if file.sha256 is not None:
        return known.sha256 == file.sha256
    return (known.repo, known.revision, known.name) == (listing.repo, listing.commit, file.path)


def _refuse_imported(current: SourceListing) -> None:
    imported = [known.name for known in current.files if known.repo is None]
    if imported:
        raise OutputExistsError(
            f"{current.source} in frame {current.frame} ({current.rows:,} rows) was imported from "
            f"{', '.join(imported[:3])}{' …' if len(imported) > 3 else ''}, not fetched. Use --force to replace these "
            "rows, or another --home to keep them."
        )


def held_item(source: Source, repo: str, revision: str | None, options: FetchOptions, held: Held) -> FetchItem | None:
    """Return the item of a source of which the home alone shows that it is fetched; None where a listing is needed.

    It is, if it came from ``repo``, and from the commit ``revision`` if that names one. Where the Hub may not be asked,
    this answers without it, long after the CSV has gone from the cache.
    """
    frames = (
        [options.frame] if options.frame else sorted(FRAME_FOLDERS, key=lambda name: name != source.reference_frame)
    )
    for current in (held[source.name, frame] for frame in frames if (source.name, frame) in held):
        fits = current.partial in (None, options.limit_rows) and any(
            known.repo == repo
            and (revision in (None, "main") or known.revision == revision)
            and known.rle_kept >= options.keep_rle
            for known in current.files
        )
        if fits and not options.force:
            note = f"{_here(current)} already, of {_named_revisions(current)}; offline, so no newer one was looked for"
            return FetchItem(source, current.frame, "already", None, notes=(note,))
    return None


@dataclass(frozen=True)
class ListedFile:
    """A file of the repository, as ``cxu fetch --list`` shows it.

    ``state`` is ``fetched``, ``partial``, ``another file`` (the source is here, from that), ``no``; or ``""`` where
    the file is no published table.
    """

    path: str
    size: int
    source: str | None
    frame: FrameName | None
    state: str


def list_published(listing: Listing, held: Held, sources: Sequence[Source] = ()) -> list[ListedFile]:
    """Return the repository's files, or only those of ``sources``, with what they hold and whether that is here."""
    listed = []
    for file in listing.files:
        found = recognise(file)
        if found is None:
            listed += [] if sources else [ListedFile(file.path, file.size, None, None, "")]
        elif not sources or found.source in sources:
            state = _state(found, listing, held)
            listed.append(ListedFile(file.path, file.size, found.source.name, found.frame, state))
    return listed


def _state(found: PublishedFile, listing: Listing, held: Held) -> str:
    frames = FRAME_FOLDERS if found.source.framing == "native" else (found.frame,)
    current = [held[found.source.name, frame] for frame in frames if (found.source.name, frame) in held]
    if any(is_same(known, found.file, listing) for entry in current if entry.partial is None for known in entry.files):
        return "fetched"
    if any(entry.partial is not None for entry in current):
        return "partial"
    return "another file" if current else "no"


def _nothing_published(source: Source, listing: Listing, options: FetchOptions) -> str:
    tables = [file for file in listing.files if is_table(file)]
    cached = " in the cache (offline)" if options.offline else ""
    return (
        f"{_place(listing)} has no file of {source.title}{cached}: expected a CSV called {' or '.join(source.aliases)} "
        f"in a folder {' or '.join(FRAME_FOLDERS.values())}; there is: {_named(tables or listing.files) or 'nothing'}. "
        f"If one of these is it, download it and use `cxu import FILE --source {source.name}`."
    )


def _place(listing: Listing) -> str:
    return f"repository {listing.repo!r} at commit {listing.commit[:12]}"


def _named(files: Iterable[HubFile]) -> str:
    paths = [file.path for file in files]
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(paths[:_MOST_NAMED]) + more


def _here(current: SourceListing) -> str:
    return f"frame {current.frame} ({current.rows:,} rows) is here"


def _named_revisions(current: SourceListing) -> str:
    known = sorted({f"commit {file.revision[:12]}" if file.revision else file.name for file in current.files})
    return " and ".join(known)
