"""Where the image file of an id lies: folders, globs, lists and zips of images, listed once and looked up by key.

The key of a file is the end of its path without the image suffix, as many parts as the id has: for most sources the
stem, for CheXpert the last four parts. Keys are compared exactly, case included. Listing a large folder on a network
disk takes minutes, so a listing can be cached; :func:`resolve` says when a cached one is trusted.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cxu.catalog import IMAGE_SUFFIXES, SOURCES, Source, strip_image_suffix
from cxu.errors import MissingInputError, UsageError
from cxu.files import hash_of, write_bytes
from cxu.image_listing import ImageFile, ImageSpec, list_images, spec_texts

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # source name, image id

CACHE_VERSION: Final = 1
DUPLICATES_NAMED: Final = 3


class ImageIndex:
    """Image files that can be found by id.

    Parameters
    ----------
    files
        The files, in the order of the listing.
    cached
        Whether the listing came from a cache and may be out of date.
    """

    def __init__(self, files: Iterable[ImageFile], *, cached: bool = False) -> None:
        self.files = tuple(files)
        self.cached = cached
        self._tables: dict[int, tuple[dict[str, ImageFile], dict[str, list[ImageFile]]]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[ImageFile]:
        return iter(self.files)

    def find(self, source: Source, image_id: str) -> ImageFile | None:
        """Return the file of a canonical ``image_id`` by the source's id rule, or None.

        The first call builds a table of keys; further calls are look-ups.

        Raises
        ------
        UsageError
            If two different files have the id's key; the message names them.
        """
        found, _ = self.find_all(source, [image_id])
        return found.get(image_id)

    def find_all(self, source: Source, ids: Iterable[str]) -> tuple[dict[str, ImageFile], list[str]]:
        """Return the files of canonical ``ids``, and the ids without one in the order given.

        Raises
        ------
        UsageError
            If an id's key belongs to two different files; the message names the first three such ids and the count.
        """
        found, missing = _find_pairs(self, [(source, image_id) for image_id in ids])
        return {image_id: file for (_, image_id), file in found.items()}, [image_id for _, image_id in missing]

    def candidates(self, source: Source, image_id: str) -> list[ImageFile]:
        """Return every file whose key is that of ``image_id``: none, one, or several in the listing's order.

        An id of no catalogued source may have an image suffix, as paths of one's own files do: files with that one.
        """
        stem = strip_image_suffix(image_id)
        if stem != image_id and source.name not in SOURCES:
            ending = image_id[len(stem) :]
            return [file for file in self.candidates(source, stem) if file.file.endswith(ending)]
        depth = source.id_depth if source.name in SOURCES else image_id.count("/") + 1
        if depth not in self._tables:
            self._tables[depth] = _key_tables(self.files, depth)
        single, several = self._tables[depth]
        if image_id in several:
            return several[image_id]
        return [single[image_id]] if image_id in single else []


def _key_tables(files: Iterable[ImageFile], depth: int) -> tuple[dict[str, ImageFile], dict[str, list[ImageFile]]]:
    """Return the first file of each key, and all files of the keys that have more than one."""
    single: dict[str, ImageFile] = {}
    several: dict[str, list[ImageFile]] = {}
    for file in files:
        key = file.key(depth)
        first = single.setdefault(key, file)
        if first is file:
            continue
        known = several.get(key, [first])
        # overlapping specs list one file twice: that is no duplicate
        if all((file.path, file.member) != (other.path, other.member) for other in known):
            several[key] = [*known, file]
    return single, several


def _find_pairs(index: ImageIndex, wanted: Iterable[tuple[Source, str]]) -> tuple[dict[Pair, ImageFile], list[Pair]]:
    found: dict[Pair, ImageFile] = {}
    missing: list[Pair] = []
    duplicates: dict[str, list[ImageFile]] = {}
    for source, image_id in wanted:
        files = index.candidates(source, image_id)
        if not files:
            missing.append((source.name, image_id))
        elif len(files) > 1:
            duplicates[image_id] = files
        else:
            found[source.name, image_id] = files[0]
    if duplicates:
        raise _duplicate_error(duplicates)
    return found, missing


def _duplicate_error(duplicates: dict[str, list[ImageFile]]) -> UsageError:
    named = [
        f"{image_id!r} ({' and '.join(file.name for file in files[:2])})"
        for image_id, files in itertools.islice(duplicates.items(), DUPLICATES_NAMED)
    ]
    more = f", and {len(duplicates) - len(named)} more" if len(duplicates) > len(named) else ""
    return UsageError(
        f"{len(duplicates)} image id(s) with more than one file: {', '.join(named)}{more}. "
        "Name a folder or glob that holds each image once."
    )


def build_index(spec: ImageSpec) -> ImageIndex:
    """List the images that ``spec`` names.

    Parameters
    ----------
    spec
        One or several of: a folder, walked however deep (linked folders and files followed, hidden ones and
        ``__MACOSX`` skipped, zips inside opened); a glob, ``**`` included, of files and folders; an image; a zip; a
        list (``.txt``, ``.lst`` one path a line, ``.csv`` the path in the first field), paths relative to the list's
        folder. Only files with a known image suffix count. Lines of a list without such a file are logged.

    Raises
    ------
    MissingInputError
        If a spec does not exist, matches nothing or cannot be read, or there is no image at all.
    UsageError
        If a spec is a file of another kind.
    ImageError
        If a zip is damaged.
    """
    specs = spec_texts(spec)
    index = ImageIndex(file for text in specs for file in list_images(text))
    if not index.files:
        raise MissingInputError(
            f"no image in {', '.join(specs)}; looked for files with the suffixes {', '.join(IMAGE_SUFFIXES)}."
        )
    logger.info("listed %d images in %s", len(index), ", ".join(specs))
    return index


def load_index(spec: ImageSpec, cache_folder: Path | None, *, refresh: bool = False) -> ImageIndex:
    """Return the index of ``spec``, from the listing cached in ``cache_folder`` where there is one.

    A cached listing is used as it is, except that a changed list or zip named in ``spec`` itself is listed again;
    images added to or taken from a folder since are not noticed. ``refresh`` lists anew and replaces the cache. A
    cache that cannot be read is rebuilt; a folder that cannot be written is logged and does without.

    Raises
    ------
    CxuError
        As :func:`build_index`.
    """
    if cache_folder is None:
        return build_index(spec)
    specs = spec_texts(spec)
    state = {"version": CACHE_VERSION, "specs": specs, "stamps": [_stamp(Path(text)) for text in specs]}
    cache = Path(cache_folder) / f"images-{hash_of(specs)[:32]}.json"
    files = None if refresh else _read_cache(cache, state)
    if files:
        return ImageIndex(files, cached=True)
    index = build_index(spec)
    _write_cache(cache, state, index.files)
    return index


def resolve(
    spec: ImageSpec, wanted: Iterable[tuple[Source, str]], cache_folder: Path | None = None
) -> tuple[dict[Pair, ImageFile], list[Pair]]:
    """Return the files of ``wanted`` (source, canonical image id), and the pairs that have none.

    The cached listing is trusted until it fails: where an id is missing, a file is gone or an id has two files, the
    images are listed again, once. So call this once with all ids rather than shard by shard.

    Returns
    -------
    found, missing
        Files by (source name, image id), and the (source name, image id) without a file, in the order given.

    Raises
    ------
    CxuError
        As :func:`build_index` and :meth:`ImageIndex.find_all`.
    """
    pairs = list(wanted)
    index = load_index(spec, cache_folder)
    if index.cached and not _serves(index, pairs):
        logger.info("the cached list of images is out of date: listing again")
        index = load_index(spec, cache_folder, refresh=True)
    return _find_pairs(index, pairs)


def _serves(index: ImageIndex, pairs: Iterable[tuple[Source, str]]) -> bool:
    candidates = [index.candidates(source, image_id) for source, image_id in pairs]
    if any(len(files) != 1 for files in candidates):
        return False
    return all(path.is_file() for path in {files[0].path for files in candidates})


def _stamp(spec: Path) -> list[int] | None:
    """Return what tells whether a list or zip named as a spec has changed; a folder or glob cannot tell."""
    if not spec.is_file():
        return None
    status = spec.stat()
    return [status.st_mtime_ns, status.st_size]


def _read_cache(cache: Path, state: dict[str, object]) -> list[ImageFile] | None:
    try:
        content = json.loads(cache.read_bytes())
        if content["state"] != state:
            return None
        return [ImageFile(root, file, archive) for root, archive, files in content["listing"] for file in files]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.info("the cached list of images %s is unreadable (%s): listing again", cache, error)
        return None


def _write_cache(cache: Path, state: dict[str, object], files: Iterable[ImageFile]) -> None:
    groups = itertools.groupby(files, key=lambda file: (file.root, file.archive))
    listing = [[root, archive, [file.file for file in group]] for (root, archive), group in groups]
    try:
        write_bytes(cache, json.dumps({"state": state, "listing": listing}).encode("ascii"))
    except OSError as error:
        logger.warning("the list of images is not cached: %s", error)
