"""Which image files a folder, glob, list or zip holds, in a fixed order.

An :class:`ImageFile` is a name, not an open file: listing reads folders and the directories of zips, never an image.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import itertools
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, cast

from cxu.catalog import IMAGE_SUFFIXES, strip_image_suffix
from cxu.errors import FormatError, ImageError, MissingInputError, UsageError

logger = logging.getLogger(__name__)

ImageSpec = str | Path | Sequence[str | Path]

ZIP_SUFFIX: Final = ".zip"
LIST_SUFFIXES: Final = (".txt", ".csv", ".lst")
SKIPPED_FOLDER: Final = "__MACOSX"  # resource forks that macOS adds to its zips, named like the images
MAX_OPEN_ZIPS: Final = 8


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: a file below a folder, or a member of a zip below it.

    Attributes
    ----------
    root
        Absolute folder that was asked for.
    file
        Path below ``root`` with forward slashes, or the member's name inside the zip.
    archive
        Path of the zip below ``root``; empty for a plain file.

    Examples
    --------
    >>> ImageFile("/data", "train/b/2.png", archive="zips/part1.zip").relative.as_posix()
    'zips/train/b/2.png'
    """

    # Plain strings, not paths: an index holds hundreds of thousands of these, and they share their root.
    root: str
    file: str
    archive: str = ""

    @classmethod
    def at(cls, path: str | Path) -> ImageFile:
        """Return the plain file at ``path``; nothing is looked at."""
        whole = _absolute(path)
        return cls(str(whole.parent), whole.name)

    @property
    def path(self) -> Path:
        """The file, or the zip that holds it."""
        return Path(self.root, self.archive or self.file)

    @property
    def member(self) -> str | None:
        """The name inside the zip; None for a plain file."""
        return self.file if self.archive else None

    @property
    def is_image(self) -> bool:
        """Whether the name ends like an image's."""
        return self.file.lower().endswith(IMAGE_SUFFIXES)

    @property
    def relative(self) -> PurePosixPath:
        """Path below the folder asked for, without ``..``; a zip's members lie in the zip's own folder."""
        return PurePosixPath(*(part for part in self._below_root().split("/") if part not in {"", ".", ".."}))

    def stamp(self) -> tuple[str, int, int]:
        """Return path, size and time of change of the file, or of the zip that holds it; zeros where it is gone."""
        try:
            found = self.path.stat()
        except OSError:
            return (self.name, 0, 0)
        return (self.name, found.st_size, found.st_mtime_ns)

    @property
    def name(self) -> str:
        """The location for people: ``folder/file.png`` or ``folder/images.zip!member.png``."""
        text = f"{self.path}!{self.file}" if self.archive else str(self.path)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    def key(self, depth: int) -> str:
        """Return the last ``depth`` parts of the path, without image suffix: what ids are compared with."""
        parts = strip_image_suffix(self._below_root()).split("/")
        if len(parts) < depth:
            parts = [*self.root.replace(os.sep, "/").split("/"), *parts]
        return "/".join(parts[-depth:])

    def open(self) -> BinaryIO:
        """Open the image for reading; the caller closes it.

        Raises
        ------
        ImageError
            If the file is gone, is a folder or may not be read, or the zip is damaged or encrypted.
        """
        try:
            if self.archive:
                return cast("BinaryIO", _open_zip(str(self.path), self.stamp()[1:], os.getpid()).open(self.file))
            return self.path.open("rb")
        except FileNotFoundError:
            raise ImageError(f"{self.name} does not exist.") from None
        except IsADirectoryError:
            raise ImageError(f"{self.name} is a folder, not an image.") from None
        except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise ImageError(f"{self.name} cannot be opened: {error}.") from error

    def sha256(self) -> str:
        """Return the SHA-256 of the image file's bytes, in hexadecimal.

        Raises
        ------
        ImageError
            As :meth:`open`, and where reading fails.
        """
        with self.open() as stream:
            try:
                return hashlib.file_digest(cast("BufferedIOBase", stream), "sha256").hexdigest()
            except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise ImageError(f"{self.name} cannot be read: {error}.") from error

    def _below_root(self) -> str:
        if not self.archive:
            return self.file
        folder, slash, _ = self.archive.rpartition("/")
        return folder + slash + self.file.replace("\\", "/")  # zips made on Windows may hold backslashes


@lru_cache(maxsize=MAX_OPEN_ZIPS)
def _open_zip(path: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    # Reading a zip's directory takes as long as reading an image. A zip may be replaced, and a forked process would
    # share the file position with its parent, hence stamp and process in the key.
    del stamp, process
    return zipfile.ZipFile(path)


def spec_texts(spec: ImageSpec) -> list[str]:
    """Return each folder, glob, list, image or zip that ``spec`` names, as an absolute path."""
    several = [spec] if isinstance(spec, str | Path) else spec
    # no normal form: in a glob `*/..` is no detour
    return [str(Path(text).expanduser().absolute()) for text in several]


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def list_images(spec: str) -> Iterator[ImageFile]:
    """Yield the images that one text of :func:`spec_texts` names, in a fixed order.

    See :func:`cxu.image_index.build_index` for what it may name and what is raised.
    """
    return _list(spec, every=False)


def list_files(spec: str) -> Iterator[ImageFile]:
    """Yield what :func:`list_images` yields and all that it leaves out or stops at, as plain files.

    That is: the other files among the images of a folder, glob or zip; lines of a list that name no existing file; and
    archives and folders below that cannot be read.

    Raises
    ------
    UsageError
        If no line of a list names a file.
    """
    return _list(spec, every=True)


def _list(spec: str, *, every: bool) -> Iterator[ImageFile]:
    path = _absolute(spec)
    if not path.exists():
        if not glob.has_magic(spec):
            raise MissingInputError(f"{spec} does not exist; expected a folder, glob, image, zip or list of images.")
        return _list_glob(spec, every=every)
    if path.is_dir():
        return _walk(str(path), every=every)
    if path.suffix.lower() in LIST_SUFFIXES:
        return _list_lines(path, every=every)
    if not _is_listed(path.name):
        raise UsageError(f"{spec} is no folder, image ({', '.join(IMAGE_SUFFIXES)}), zip or list.")
    return _list_file(str(path.parent), path.name, every=every)


def _list_glob(pattern: str, *, every: bool) -> Iterator[ImageFile]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not matches:
        raise MissingInputError(f"nothing matches {pattern}.")
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    walked: set[Path] = set()
    for path in map(_absolute, matches):
        # `**` matches a folder and everything in it: once is enough
        if not walked or walked.isdisjoint((path, *path.parents)):
            if path.is_dir():
                walked.add(path)
            yield from _list_path(root, path, every=every)


def _list_lines(source: Path, *, every: bool) -> Iterator[ImageFile]:
    unusable: list[str] = []
    missing: list[ImageFile] = []
    n_listed = 0
    for number, line in enumerate(_read_lines(source), start=1):
        path = _absolute(source.parent / line)
        is_header = number == 1 and source.suffix.lower() == ".csv" and not _is_listed(line)
        if not line or (is_header and not path.is_file()):
            continue
        if path.is_dir() or (path.is_file() and (every or _is_listed(path.name))):
            n_listed += 1
            yield from _list_path(source.parent, path, every=every)
        else:
            unusable.append(f"line {number} {line!r}")
            missing.append(ImageFile.at(path))
    if every and not n_listed:
        raise UsageError(f"{source} is no list of images: none of its lines names a file.")
    if every:
        yield from missing
    elif unusable:
        logger.warning("%s: %d lines name no existing image; first: %s", source, len(unusable), unusable[0])


def _read_lines(path: Path) -> Iterator[str]:
    try:
        # surrogateescape: file names need not be UTF-8; the -sig form drops the mark that spreadsheets write
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            if path.suffix.lower() == ".csv":
                yield from (row[0].strip() if row else "" for row in csv.reader(stream))
            else:
                yield from (line.strip() for line in stream)
    except csv.Error as error:
        raise FormatError(f"{path} is no list of images: {error}.") from error
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {error.strerror}.") from error


def _list_path(root: Path, path: Path, *, every: bool) -> Iterator[ImageFile]:
    """List the folder or file at an absolute ``path``, which need not lie below ``root``."""
    base = root if path.is_relative_to(root) else Path(path.anchor)
    below = path.relative_to(base).as_posix()
    if not path.is_dir():
        return _list_file(str(base), below, every=every)
    return _walk(str(base), "" if path == base else f"{below}/", every=every)


def _walk(root: str, below: str = "", *, every: bool) -> Iterator[ImageFile]:
    entered = [Path(root, below).resolve()]
    pending = [below]
    while pending:
        folder = pending.pop()
        folders = []
        try:
            entries = _entries(f"{root}/{folder}")
        except MissingInputError:
            if not every or folder == below:
                raise
            yield ImageFile(root, folder.rstrip("/"))
            continue
        for entry in entries:
            kind = _entry_kind(entry)
            if kind == "file":
                yield from _list_file(root, f"{folder}{entry.name}", every=every)
            elif kind == "folder" and (not entry.is_symlink() or _enters_new(entry.path, entered)):
                folders.append(f"{folder}{entry.name}/")
        pending.extend(reversed(folders))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not _is_skipped(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise MissingInputError(f"the folder {folder} cannot be listed: {error.strerror}.") from error


def _entry_kind(entry: os.DirEntry[str]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link that leads in a circle or where we may not look
        return "other"


def _enters_new(link: str, entered: list[Path]) -> bool:
    """Return whether a linked folder leads out of all ``entered`` ones, and remember it: no circle, nothing twice."""
    target = Path(link).resolve()
    if entered[0].is_relative_to(target) or any(target.is_relative_to(known) for known in entered):
        return False
    entered.append(target)
    return True


def _list_file(root: str, below: str, *, every: bool) -> Iterator[ImageFile]:
    file = ImageFile(root, below)
    if not below.lower().endswith(ZIP_SUFFIX):
        yield from [file] if every or file.is_image else []
        return
    try:
        members = [ImageFile(root, name, archive=below) for name in _zip_members(file.path)]
    except ImageError:
        if not every:
            raise
        members = [file]
    yield from (member for member in members if every or member.is_image)


def _zip_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path} is no readable zip: {error}. Download or copy it again, or move it away.") from error
    return [
        name
        for name in names
        if not name.endswith(("/", "\\")) and not any(map(_is_skipped, name.replace("\\", "/").split("/")))
    ]


def _is_listed(name: str) -> bool:
    return name.lower().endswith((*IMAGE_SUFFIXES, ZIP_SUFFIX))


def _is_skipped(name: str) -> bool:
    return (name.startswith(".") and name not in {".", ".."}) or name == SKIPPED_FOLDER
