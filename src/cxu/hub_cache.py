"""The Hugging Face cache on disk: where its files lie, whether they are what they should be, what may go.

Layout of a repository in it: ``blobs/<hash>`` holds each content once, ``snapshots/<commit>/<path>`` links to it,
``refs/<revision>`` names the commit. The environment is read at each call, so that it may change after import.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cxu.errors import CxuError, DiskSpaceError, HubConnectionError, HubError, IntegrityError, UsageError
from cxu.hub_retry import RepoType

_BLOCK: Final = 1 << 20
ONLINE: Final = "Run the same command once without --offline and HF_HUB_OFFLINE to download it."


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: path, size in bytes, and its published hash.

    ``sha256`` stands for files in large-file storage, ``git_oid`` (sha1 of the git blob) for the others; both are
    None only in an offline listing of a cache without symbolic links.
    """

    path: str
    size: int
    sha256: str | None
    git_oid: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit; ``revision`` is the name that led to it."""

    repo: str
    repo_type: RepoType
    revision: str
    commit: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True)
class Download:
    """A verified file in the cache: where, its sha256, whether it was there before, and its commit's folder."""

    path: Path
    sha256: str
    was_cached: bool
    snapshot: Path


def parse_entry(entry: dict[str, Any]) -> HubFile:
    """Return a file as the Hub's listing describes it.

    Raises
    ------
    ValueError
        If its path leads out of the repository, or its hash is none.
    """
    path = entry["path"]
    if "\\" in path or not set(path.split("/")).isdisjoint({"", ".", ".."}):
        raise ValueError(f"{path!r} leads out of the repository")
    if lfs := entry.get("lfs"):
        return HubFile(path, int(lfs["size"]), checked_hash(lfs["oid"], 64), None)
    return HubFile(path, int(entry["size"]), None, checked_hash(entry["oid"], 40))


def checked_hash(text: str, length: int) -> str:
    """Return ``text`` if it is a hash: it becomes a file name in the cache."""
    if not re.fullmatch(f"[0-9a-f]{{{length}}}", text):
        raise ValueError(f"{text!r} is no hash of {length} digits")
    return text


def cache_folder() -> Path:
    """Return the folder of the Hugging Face cache (``HF_HUB_CACHE``, or ``HF_HOME`` and ``hub``)."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(name):
            return (Path(os.path.expandvars(value)).expanduser() / below).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def repo_folder(repo: str, repo_type: RepoType) -> Path:
    """Return the folder of ``repo`` in the cache.

    Raises
    ------
    UsageError
        If ``repo`` is no repository name.
    """
    parts = repo.split("/")
    well_formed = all(re.fullmatch(r"\w([\w.-]*\w)?", part, re.ASCII) for part in parts)
    if len(parts) > 2 or not well_formed or len(repo) > 96 or re.search(r"--|\.\.|\.git$", repo):
        raise UsageError(f"{repo!r} is no repository name. Expected OWNER/NAME.")
    return cache_folder() / "--".join((f"{repo_type}s", *parts))


def snapshot_folder(listing: Listing) -> Path:
    """Return the folder that holds the files of the listing's commit under their own paths."""
    return repo_folder(listing.repo, listing.repo_type) / "snapshots" / listing.commit


def cached_file(listing: Listing, file: HubFile) -> Path | None:
    """Return where ``file`` lies in the cache, or None; its content may still be damaged."""
    path = snapshot_folder(listing) / file.path
    return path if path.is_file() else None


def blob_path(listing: Listing, file: HubFile) -> Path:
    """Return where the content of ``file`` belongs in the cache: its name there is its hash."""
    name = file.sha256 or file.git_oid
    if name is None:
        raise HubConnectionError(f"{file.path} of {listing.repo!r} was listed offline, without its hash. {ONLINE}")
    return repo_folder(listing.repo, listing.repo_type) / "blobs" / name


def partial_path(blob: Path) -> Path:
    """Return where an unfinished download of ``blob`` lies; huggingface_hub knows and cleans up such names."""
    return blob.with_name(f"{blob.name}.incomplete")


def lock_path(blob: Path) -> Path:
    """Return the lock that huggingface_hub takes, too, while it writes ``blob``."""
    folder = blob.parent.parent
    return folder.parent / ".locks" / folder.name / f"{blob.name}.lock"


def missing_bytes(listing: Listing, file: HubFile) -> int:
    """Return how many bytes of ``file`` are still to be downloaded: 0 when cached, less what can be resumed."""
    if cached_file(listing, file) is not None or (blob := blob_path(listing, file)).exists():
        return 0
    partial = partial_path(blob)
    return max(0, file.size - (partial.stat().st_size if partial.exists() else 0))


def list_cached(repo: str, repo_type: RepoType, revision: str) -> Listing:
    """List what the cache holds of ``repo`` at ``revision``.

    Raises
    ------
    HubConnectionError
        If it holds nothing.
    """
    root = repo_folder(repo, repo_type)
    ref = root / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = root / "snapshots" / commit
    found = sorted(snapshot.rglob("*")) if re.fullmatch("[0-9a-f]{40}", commit) else []
    files = tuple(_describe(path, snapshot) for path in found if path.is_file())
    if not files:
        raise HubConnectionError(
            f"offline, and nothing of {repo_type} repository {repo!r} (revision {revision}) is in the cache "
            f"({cache_folder()}). {ONLINE}"
        )
    return Listing(repo, repo_type, revision, commit, files)


def _describe(path: Path, snapshot: Path) -> HubFile:
    name = blob_of(path).name if path.is_symlink() else ""
    sha256 = name if re.fullmatch("[0-9a-f]{64}", name) else None
    git_oid = name if re.fullmatch("[0-9a-f]{40}", name) else None
    return HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size, sha256, git_oid)


def verify(path: Path, file: HubFile, listing: Listing) -> str:
    """Read the file at ``path`` and return its sha256 if size and hash are those of ``file``.

    Raises
    ------
    IntegrityError
        If they are not; the message says what was found and what was expected.
    """
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha256.update(block)
            if file.git_oid is not None:
                git.update(block)
    found = sha256.hexdigest() if file.sha256 is not None or file.git_oid is None else git.hexdigest()
    expected = file.sha256 or file.git_oid or found
    if (size, found) != (file.size, expected):
        raise IntegrityError(
            f"{file.path} of {listing.repo!r} at commit {listing.commit[:12]} is damaged: {size} bytes with hash "
            f"{found}, expected {file.size} bytes with hash {expected}. Run the same command again, online, to "
            "download it anew; if that does not help, the server or a proxy on the way alters it."
        )
    return sha256.hexdigest()


def record_ref(listing: Listing) -> None:
    """Note in the cache which commit ``listing.revision`` names, so that it is found offline."""
    if listing.revision == listing.commit or ".." in listing.revision.split("/"):
        return
    ref = repo_folder(listing.repo, listing.repo_type) / "refs" / listing.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    temporary.write_text(listing.commit, encoding="utf-8")
    temporary.replace(ref)


def blob_of(pointer: Path) -> Path:
    """Return the file that a pointer of the cache links to; itself where links are not supported."""
    return Path(os.path.normpath(pointer.parent / pointer.readlink())) if pointer.is_symlink() else pointer


def remove_cached(pointer: Path) -> None:
    """Remove a damaged file: the pointer, its blob, and what the blob may link to in turn."""
    for path in (pointer.resolve(), blob_of(pointer), pointer):
        path.unlink(missing_ok=True)


def forget(download: Download) -> None:
    """Remove what ``download`` brought into the cache; what was there before, or serves other revisions, stays."""
    if download.was_cached:
        return
    pointer, snapshots = download.path, download.snapshot.parent
    blob = blob_of(pointer)
    pointer.unlink(missing_ok=True)
    others = (other for other in snapshots.rglob("*") if other.is_symlink() and blob_of(other) == blob)
    if next(others, None) is None:
        blob.unlink(missing_ok=True)
    folder = pointer.parent
    while folder != snapshots and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
    if not download.snapshot.exists():
        _remove_refs(snapshots.parent / "refs", download.snapshot.name)


def discard(listing: Listing, file: HubFile) -> None:
    """Remove ``file`` from the cache, or what an interrupted download left of it; what serves other revisions stays."""
    if file.sha256 or file.git_oid:
        partial_path(blob_path(listing, file)).unlink(missing_ok=True)
    snapshot = snapshot_folder(listing)
    forget(Download(snapshot / file.path, file.sha256 or "", was_cached=False, snapshot=snapshot))


def _remove_refs(refs: Path, commit: str) -> None:
    # a ref without its snapshot makes `hf cache` report a broken cache
    for ref in refs.rglob("*"):
        if ref.is_file() and ref.read_text(encoding="utf-8").strip() == commit:
            ref.unlink()


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that ``needed`` bytes of ``what`` fit on the disk of ``folder``, which need not exist yet.

    Raises
    ------
    DiskSpaceError
        If they do not; the message says how much is needed and how much is free.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise DiskSpaceError(
            f"not enough disk space for {what}: {_readable(needed)} needed, {_readable(free)} free in {folder}. "
            "Free some space, or choose a folder on a larger disk (--home; HF_HOME for downloads)."
        )


def on_same_disk(one: Path, other: Path) -> bool:
    """Tell whether two folders, which need not exist yet, share one disk and its free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def writing(file: HubFile) -> Iterator[None]:
    """Turn the system's errors while ``file`` is written to the cache into ours."""
    try:
        yield
    except CxuError:
        raise
    except OSError as error:
        folder = cache_folder()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskSpaceError(
                f"the disk of {folder} filled up while {file.path} ({_readable(file.size)}) was downloaded. Free some "
                "space, or set HF_HOME to a folder on a larger disk; the same command then continues."
            ) from error
        raise HubError(
            f"cannot write {file.path} to the cache {folder}: {error.strerror or error}. "
            "Set HF_HOME to a folder that you may write to."
        ) from error


def _readable(size: int) -> str:
    """Return a number of bytes in the unit a person would choose.

    Examples
    --------
    >>> _readable(999), _readable(4_321_000_000)
    ('999 B', '4.3 GB')
    """
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
