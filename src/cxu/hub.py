"""One verified download from the Hugging Face Hub: list a repository at one commit, fetch, check, forget.

The Hub is reached with huggingface_hub's session, headers and cache, and files end where ``hf_hub_download`` puts
them. The bytes themselves are read here: ``hf_hub_download`` (2.x) throws an interrupted file away and waits as
long as a server asks, whereas a table of gigabytes must resume, and waiting must have an end.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlsplit, urlunsplit

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it re-exports them without saying so
    WeakFileLock,
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from cxu import hub_cache
from cxu.errors import CxuError, HubConnectionError, HubError, IntegrityError, UsageError
from cxu.hub_cache import (
    Download,
    HubFile,
    Listing,
    cache_folder,
    cached_file,
    check_space,
    discard,
    forget,
    missing_bytes,
    on_same_disk,
)
from cxu.hub_retry import DEFAULT_RETRY, RepoType, RetryPolicy, Target, Tries

__all__ = [
    "DEFAULT_RETRY",
    "Download",
    "HubFile",
    "Listing",
    "RepoType",
    "RetryPolicy",
    "cache_folder",
    "cached_file",
    "check_space",
    "discard",
    "download",
    "forget",
    "is_offline",
    "list_files",
    "locked",
    "missing_bytes",
    "on_same_disk",
    "open_stream",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]

_BLOCK: Final = 1 << 14  # what is lost at most when a connection breaks
# A body that ended early, a link that could not be made, and the HTTP library's errors, whichever it is: requests
# below huggingface_hub 1.0, then httpx, then httpx2.
_FAILURES: Final[tuple[type[Exception], ...]] = (
    EOFError,
    LocalEntryNotFoundError,
    *(base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base not in OSError.__mro__),
)
# What those libraries raise when a body ends before its announced length.
_CUT_SHORT: Final = {"RemoteProtocolError", "ChunkedEncodingError"}


def is_offline(offline: bool = False) -> bool:
    """Tell whether the Hub may not be asked: ``offline``, or ``HF_HUB_OFFLINE`` in the environment."""
    variable = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return offline or variable or constants.HF_HUB_OFFLINE


def list_files(
    repo: str,
    *,
    repo_type: RepoType = "dataset",
    revision: str | None = None,
    offline: bool = False,
    retry: RetryPolicy = DEFAULT_RETRY,
) -> Listing:
    """List all files of ``repo`` at the commit that ``revision`` (branch, tag or commit; default main) names now.

    Offline (or with ``HF_HUB_OFFLINE``) the listing holds what the local cache holds of that revision.

    Raises
    ------
    HubNotFoundError, HubAccessError
        If repository or revision do not exist, or are not ours to read.
    HubConnectionError
        If the Hub cannot be reached or keeps failing, or, offline, if nothing is cached.
    UsageError
        If ``repo`` is no repository name, or ``HF_ENDPOINT`` no address.
    """
    revision = revision or constants.DEFAULT_REVISION
    if is_offline(offline):
        return hub_cache.list_cached(repo, repo_type, revision)
    hub_cache.repo_folder(repo, repo_type)  # refuses what is no name before it becomes an address
    target = Target(_endpoint(), repo, repo_type, revision)
    api = f"{target.endpoint}/api/{repo_type}s/{repo}"
    try:
        commit = hub_cache.checked_hash(
            _get(f"{api}/revision/{quote(revision, safe='')}", target, retry).json()["sha"], 40
        )
        files = tuple(_list_tree(f"{api}/tree/{commit}?recursive=true", target, retry))
    except CxuError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HubError(
            f"{target.host} answered the request for {target} with something that is no file listing. "
            "Check HF_ENDPOINT, and whether a proxy or login page stands in between."
        ) from error
    return Listing(repo, repo_type, revision, commit, files)


def download(
    listing: Listing,
    file: HubFile,
    *,
    offline: bool = False,
    retry: RetryPolicy = DEFAULT_RETRY,
    progress: Progress = lambda _: None,
) -> Download:
    """Bring ``file`` into the Hugging Face cache, resuming what an earlier call left, and verify size and hash.

    A cached file is verified as well; a damaged one is removed and, unless offline, downloaded once more.
    ``progress`` is called with the bytes that each step adds, those of an earlier call first.

    Raises
    ------
    IntegrityError
        If what arrived is not what the listing says. An altered file is removed, so that the next call starts afresh.
    HubNotFoundError, HubAccessError, HubConnectionError
        As for `list_files`; offline also if the file is not cached.
    DiskSpaceError
        If the disk fills up on the way. What has arrived is kept and resumed.
    """
    snapshot = hub_cache.snapshot_folder(listing)
    if (cached := hub_cache.cached_file(listing, file)) is not None:
        try:
            return Download(cached, hub_cache.verify(cached, file, listing), True, snapshot)
        except IntegrityError as error:
            if is_offline(offline):
                raise
            logger.warning("in the cache: %s Downloading it anew.", error)
            hub_cache.remove_cached(cached)
    _refuse_offline(listing, file, offline)
    with hub_cache.writing(file):
        blob, sha256 = _fetch_blob(listing, file, retry, progress)
        _link(listing, file)
        pointer = snapshot / file.path
        if pointer.resolve() != blob.resolve():  # the Hub named the blob differently, or links are not supported
            sha256 = hub_cache.verify(pointer, file, listing)
            blob.unlink(missing_ok=True)
        hub_cache.record_ref(listing)
    return Download(pointer, sha256, False, snapshot)


@contextmanager
def open_stream(
    listing: Listing, file: HubFile, *, offline: bool = False, retry: RetryPolicy = DEFAULT_RETRY
) -> Iterator[BinaryIO]:
    """Yield ``file`` as a binary stream from its beginning; leaving early stops the transfer.

    A cached file is read from the cache. Nothing is verified: the hash is one of the whole file.

    Raises
    ------
    HubNotFoundError, HubAccessError, HubConnectionError, IntegrityError
        As for `download`, on entering or while reading.
    """
    cached = hub_cache.cached_file(listing, file)
    if cached is not None and cached.stat().st_size == file.size:
        with cached.open("rb") as stored:
            yield stored
        return
    _refuse_offline(listing, file, offline)
    with io.BufferedReader(_ChunkReader(_chunks(listing, file, 0, retry))) as stream:
        stream.peek(1)  # so that a refusal is raised here, not at the first read
        yield stream


def _refuse_offline(listing: Listing, file: HubFile, offline: bool) -> None:
    if is_offline(offline):
        raise HubConnectionError(
            f"offline, and {_target(listing, file)} is not in the cache ({cache_folder()}). {hub_cache.ONLINE}"
        )


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; ``on_wait`` is called if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(path, timeout=0.1))
        except TimeoutError:
            on_wait()
            held.enter_context(WeakFileLock(path))
        yield


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        shown = re.sub("//[^/]*@", "//***@", endpoint)
        raise UsageError(f"HF_ENDPOINT={shown} is no address. Expected one like https://huggingface.co.")
    return endpoint


def _target(listing: Listing, file: HubFile) -> Target:
    return Target(_endpoint(), listing.repo, listing.repo_type, listing.revision, file.path)


@contextmanager
def _response(url: str, first_byte: int = 0) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Yield the answer to one GET and its body in chunks; nothing is retried here."""
    headers = build_hf_headers(library_name="cxu") | {"Accept-Encoding": "identity"}  # ranges count the file's bytes
    if not (authorization := headers.get("authorization", "")).isascii() or not authorization.isprintable():
        raise UsageError("the token (HF_TOKEN, or `hf auth login`) holds characters that no token has. Set it anew.")
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield response, response.iter_bytes()
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            hf_raise_for_status(response)
            yield response, response.iter_content(_BLOCK)


def _get(url: str, target: Target, retry: RetryPolicy) -> Any:
    tries = Tries(target, retry)
    while True:
        try:
            with _response(url) as (response, _):
                # the body must be read before the connection closes; the response keeps it
                response.read() if hasattr(response, "read") else response.content
                return response
        except _FAILURES as error:
            tries.again(error)


def _list_tree(url: str | None, target: Target, retry: RetryPolicy) -> Iterator[HubFile]:
    while url:
        page = _get(url, target, retry)
        yield from (hub_cache.parse_entry(entry) for entry in page.json() if entry["type"] == "file")
        following = page.links.get("next", {}).get("url")
        # only path and query are taken: a mirror may name the original host, which the token is not for
        url = following and urlunsplit(urlsplit(target.endpoint)[:2] + urlsplit(following)[2:])


def _chunks(listing: Listing, file: HubFile, start: int, retry: RetryPolicy) -> Iterator[bytes]:
    """Yield the bytes of ``file`` from ``start``, reconnecting where the connection broke."""
    url = hf_hub_url(
        listing.repo, file.path, repo_type=listing.repo_type, revision=listing.commit, endpoint=_endpoint()
    )
    tries, position = Tries(_target(listing, file), retry), start
    while position < file.size:
        try:
            with _response(url, position) as (response, chunks):
                known = position - _first_byte(response)
                for chunk in _until_cut(chunks):
                    fresh, known = chunk[known:], max(0, known - len(chunk))
                    if fresh:
                        position, tries.failures = position + len(fresh), 0
                        yield fresh
                    if position > file.size:
                        return  # the size check finds it; the rest need not be read
            if position < file.size:
                raise EOFError(f"{position} of {file.size} bytes")
        except _FAILURES as error:
            tries.again(error)


def _first_byte(response: Any) -> int:
    """Return where the body begins in the file; a server that ignores ranges begins at 0."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if response.status_code == 206 and match else 0


def _until_cut(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except _FAILURES as error:
        if type(error).__name__ not in _CUT_SHORT:
            raise


class _ChunkReader(io.RawIOBase):
    """A readable file over an iterator of chunks, which is closed with it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._rest = self._rest or memoryview(next(self._chunks, b""))
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed and hasattr(self._chunks, "close"):
            self._chunks.close()
        super().close()


def _fetch_blob(listing: Listing, file: HubFile, retry: RetryPolicy, progress: Progress) -> tuple[Path, str]:
    """Return the verified blob of ``file`` and its sha256, downloading what is missing of it."""
    blob = hub_cache.blob_path(listing, file)
    partial, lock = hub_cache.partial_path(blob), hub_cache.lock_path(blob)
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another revision's
            try:
                return blob, hub_cache.verify(blob, file, listing)
            except IntegrityError:
                hub_cache.remove_cached(blob)
        resumed = partial.exists()
        try:
            sha256 = _complete(listing, file, partial, retry, progress)
        except IntegrityError:
            if not resumed or partial.exists():
                raise
            sha256 = _complete(listing, file, partial, retry, progress)
        partial.replace(blob)
    return blob, sha256


def _complete(listing: Listing, file: HubFile, partial: Path, retry: RetryPolicy, progress: Progress) -> str:
    """Append to ``partial`` what is missing and return its sha256; remove it if it is not what it should be."""
    start = partial.stat().st_size if partial.exists() else 0
    progress(start)
    with partial.open("ab") as sink:
        for chunk in _chunks(listing, file, start, retry):
            sink.write(chunk)
            progress(len(chunk))
    try:
        return hub_cache.verify(partial, file, listing)
    except IntegrityError:
        progress(-partial.stat().st_size)
        partial.unlink()
        raise


def _link(listing: Listing, file: HubFile) -> None:
    """Let huggingface_hub enter the blob, which it finds under its hash, into the snapshot."""
    try:
        hf_hub_download(
            listing.repo,
            file.path,
            repo_type=listing.repo_type,
            revision=listing.commit,
            cache_dir=cache_folder(),
            endpoint=_endpoint(),
            library_name="cxu",
        )
    except _FAILURES as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        once = RetryPolicy(attempts=1)  # huggingface_hub has retried this request itself
        Tries(_target(listing, file), once).again(cause if isinstance(cause, Exception) else error)
