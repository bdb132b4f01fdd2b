"""Which source and frame a file of the repository holds, by its path alone.

Paths are matched loosely, for they changed from release to release: the folder by ``Preprocessed`` or
``OriginalResolution``, the file by a name of the source, both without regard to case, punctuation and a version suffix.

Source: the published tables and their known spellings, ``docs/datasets.md``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from cxu.catalog import FRAME_FOLDERS, SOURCES, FrameName, Source
from cxu.hub import HubFile

Version = tuple[int, ...]


@dataclass(frozen=True)
class PublishedFile:
    """A file of the repository that holds a source in a frame, and the versions its folder and its name state."""

    file: HubFile
    source: Source
    frame: FrameName
    version: tuple[Version, Version] = ((), ())


def _spelled(name: str) -> str:
    """Return a pattern of ``name`` in any punctuation."""
    return r"[\W_]*".join(re.escape(character) for character in name if character.isalnum())


def _any_alias(source: Source) -> str:
    names = sorted({source.name, *source.aliases}, key=len, reverse=True)
    return "|".join(_spelled(name) for name in names)


_VERSION: Final = r"(?:(?:[\W_]+(?:v(?:er(?:sion)?)?[\W_]*)?|v)(\d+(?:[\W_]+\d+)*))?[\W_]*"
_SUFFIX: Final = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
_FRAMES: Final[dict[FrameName, re.Pattern[str]]] = {
    frame: re.compile(rf"(?<![a-z]){_spelled(folder)}(?![a-z])", re.IGNORECASE)
    for frame, folder in FRAME_FOLDERS.items()
}
_SOURCES: Final = {
    name: re.compile(rf"[\W_]*(?:{_any_alias(source)}){_VERSION}", re.IGNORECASE) for name, source in SOURCES.items()
}


def is_table(file: HubFile) -> bool:
    """Tell whether the file's name is that of a CSV, packed or not."""
    return bool(_SUFFIX.search(file.path))


def recognise(file: HubFile) -> PublishedFile | None:
    """Return the source and frame that the file's path names, or None where it names no such pair.

    The frame is that of the nearest folder, or of the file's own name; the rest of the name has to be the source's,
    but for a version.

    Examples
    --------
    >>> found = recognise(HubFile("data/original-resolution/CheXpert_v2.CSV.gz", 0, None, None))
    >>> found.source.name, found.frame, found.version
    ('chexpert', 'image', ((), (2,)))
    >>> recognise(HubFile("Preprocessed/MIMIC-IV.csv", 0, None, None)) is None
    True
    """
    if not is_table(file):
        return None
    path = PurePosixPath(file.path)
    stem = _SUFFIX.sub("", path.name)
    in_name = _take_frame(stem)
    frame, rest = in_name or _nearest_frame(path.parts[:-1]) or (None, "")
    folder_version = () if in_name else _version_of(re.fullmatch(_VERSION, rest, re.IGNORECASE))
    if frame is None or folder_version is None:
        return None
    for name, pattern in _SOURCES.items():
        version = _version_of(pattern.fullmatch(in_name[1] if in_name else stem))
        if version is not None:
            return PublishedFile(file, SOURCES[name], frame, (folder_version, version))
    return None


def _nearest_frame(folders: Sequence[str]) -> tuple[FrameName, str] | None:
    return next(filter(None, map(_take_frame, reversed(folders))), None)


def _take_frame(name: str) -> tuple[FrameName, str] | None:
    """Return the frame that ``name`` states, and the name without it."""
    found = [(frame, pattern.sub("_", name)) for frame, pattern in _FRAMES.items() if pattern.search(name)]
    return found[0] if len(found) == 1 else None


def _version_of(match: re.Match[str] | None) -> Version | None:
    return None if match is None else tuple(int(number) for number in re.findall(r"\d+", match[1] or ""))
