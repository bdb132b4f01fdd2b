"""Where weights come from: shipped with cxu, a local file or folder, or a model repository on the Hub.

``find_weights`` brings the file here and says which it is; ``load`` reads it as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cxu import hub
from cxu.errors import HubConnectionError, HubNotFoundError, MissingInputError, UsageError
from cxu.hub import HubFile, Listing
from cxu.hub_cache import ONLINE
from cxu.model.weights import (
    BUNDLED,
    CONFIG_NAME,
    WEIGHT_NAMES,
    WEIGHT_SUFFIXES,
    Weights,
    bundled_path,
    find_weight_file,
    load_weights,
)

Progress = Callable[[int], None]

_EXPECTED: Final = "expected 'bundled', a file or folder, or a Hub model such as mcosarinsky/CheXmask-U:v1_skip"
_HUB_SPEC: Final = re.compile(r"(?P<repo>[^:@]*)(?:@(?P<revision>[^:]*))?(?::(?P<folder>.*))?", re.DOTALL)


@dataclass(frozen=True)
class WeightFile:
    """A weight file on this machine, and where it came from.

    Attributes
    ----------
    path, config_path
        The file, and the ``config.json`` beside it, None where there is none.
    origin
        ``bundled`` with its variant where one was named; path; or repository, file and commit: for people.
    repo, revision
        Hub repository and commit; None for a local file.
    """

    path: Path
    config_path: Path | None
    origin: str
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class _HubModel:
    """A folder of a model repository; the empty folder is the repository itself, revision None its main branch."""

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        at, below = f"@{self.revision}" if self.revision else "", f":{self.folder}" if self.folder else ""
        return f"{self.repo}{at}{below}"


def find_weights(spec: str, *, offline: bool = False, progress: Progress = lambda _: None) -> WeightFile:
    """Return the weight file that ``spec`` means, downloading it if need be.

    Parameters
    ----------
    spec
        ``bundled`` or ``bundled:variant``; a file or folder, which wins over a repository of that name; or a Hub model
        ``owner/name[@revision][:folder]``. A folder is searched for ``model.safetensors``, then ``pytorch_model.bin``.
    offline
        Use only what the Hugging Face cache holds.
    progress
        Called with the bytes that each step of a download adds.

    Raises
    ------
    MissingInputError
        If there is no such file or folder, or this version ships no weights.
    UsageError
        If ``spec`` is neither a path nor the name of a Hub model, or no such variant ships with cxu.
    HubNotFoundError
        If repository, revision or folder do not exist, or hold no weights: the message names the folders that do.
    HubAccessError, HubConnectionError, IntegrityError, DiskSpaceError
        As for :func:`cxu.hub.download`.
    """
    name, colon, variant = spec.partition(":")
    if name == BUNDLED:
        return WeightFile(bundled_path(variant) if colon else bundled_path(), None, spec)
    if (path := _local_path(spec)) is not None:
        file = find_weight_file(path)
        config = file.with_name(CONFIG_NAME)
        return WeightFile(file, config if config.is_file() else None, str(file))
    return _from_hub(_parse_hub_model(spec), offline, progress)


def load(spec: str, *, offline: bool = False, progress: Progress = lambda _: None) -> Weights:
    """Find the weights that ``spec`` means and load them.

    Raises
    ------
    FormatError
        If what was found is no weight file of a HybridGNet; see :func:`cxu.model.weights.load_weights`.
    CxuError
        As for :func:`find_weights`.
    """
    file = find_weights(spec, offline=offline, progress=progress)
    weights = load_weights(file.path, config_path=file.config_path, origin=file.origin)
    return replace(weights, repo=file.repo, revision=file.revision)


def _local_path(spec: str) -> Path | None:
    """Return ``spec`` as a path if one exists there, None if it may name a Hub model.

    Raises
    ------
    MissingInputError
        If it can only be a path, and there is none.
    """
    path = Path(spec).expanduser() if spec.startswith("~") else Path(spec)
    try:
        if spec and path.exists():
            return path
    except (OSError, ValueError):  # a name too long, or one that holds a NUL: no path
        pass
    name = re.split("[@:]", spec, maxsplit=1)[0]
    if spec.startswith((".", "/", "~")) or "\\" in spec or name.count("/") > 1 or name.endswith(WEIGHT_SUFFIXES):
        raise MissingInputError(f"weights {spec}: no such file or folder; {_EXPECTED}")
    return None


def _parse_hub_model(spec: str) -> _HubModel:
    match = _HUB_SPEC.fullmatch(spec)
    repo, revision, folder = match.group("repo", "revision", "folder") if match else ("", None, None)
    if repo.count("/") != 1 or revision == "" or folder == "":
        raise UsageError(f"weights {spec!r}: no such file or folder, and no name of a Hub model; {_EXPECTED}")
    return _HubModel(repo, revision, (folder or "").strip("/"))


def _from_hub(model: _HubModel, offline: bool, progress: Progress) -> WeightFile:
    listing = hub.list_files(model.repo, repo_type="model", revision=model.revision, offline=offline)
    by_path = {file.path: file for file in listing.files}
    prefix = f"{model.folder}/" if model.folder else ""
    file = next((by_path[prefix + name] for name in WEIGHT_NAMES if prefix + name in by_path), None)
    if file is None:
        raise _no_weights(model, listing, offline)
    config = by_path.get(prefix + CONFIG_NAME)
    missing = sum(hub.missing_bytes(listing, wanted) for wanted in (file, config) if wanted is not None)
    hub.check_space(hub.cache_folder(), missing, f"the weights {model}")

    def fetch(wanted: HubFile) -> Path:
        return hub.download(listing, wanted, offline=offline, progress=progress).path

    origin = f"{file.path} of {model.repo} at commit {listing.commit[:12]}"
    return WeightFile(fetch(file), fetch(config) if config else None, origin, listing.repo, listing.commit)


def _no_weights(model: _HubModel, listing: Listing, offline: bool) -> HubNotFoundError | HubConnectionError:
    """Say what the repository has instead of the weights that were asked for."""
    names = " nor ".join(WEIGHT_NAMES)
    where = f"folder {model.folder!r} of {model.repo!r}" if model.folder else f"model repository {model.repo!r}"
    said = f"{where} (revision {listing.revision}) holds neither {names}"
    folders = sorted({_folder_of(file) for file in listing.files if file.path.rsplit("/", 1)[-1] in WEIGHT_NAMES})
    if folders:
        above = [folder for folder in folders if model.folder.startswith(f"{folder}/")]
        close = above or difflib.get_close_matches(model.folder, folders, n=1) or folders[:1]
        named = ", ".join(folder or "the repository itself" for folder in folders)
        said += f"; weights lie in: {named}. Did you mean {replace(model, folder=close[0])}?"
    if hub.is_offline(offline):
        return HubConnectionError(f"offline, and in the cache {said}{'' if folders else '.'} {ONLINE}")
    return HubNotFoundError(said if folders else f"{said}, nor does any folder in it. Check its name and revision.")


def _folder_of(file: HubFile) -> str:
    return file.path.rpartition("/")[0]
