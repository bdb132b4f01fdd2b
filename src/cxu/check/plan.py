"""Which rows are looked at, and where their images lie: decided before the first image is opened."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from cxu import image_index
from cxu.catalog import IMAGE_SUFFIXES, SOURCES, FrameName, source_or_custom, strip_image_suffix
from cxu.errors import MissingInputError, UsageError
from cxu.image_listing import ImageFile
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.store import LATEST, Home, Shard, StoredTable

DEFAULT_ROWS: Final = 200
_COMPARED_IDS: Final = 10
_LEAST_PART: Final = 6  # letters and digits: shorter parts are in too many names


class SampledRow(NamedTuple):
    """A row to look at: its shard, its place there, its keys, and its image."""

    shard: Shard
    row: int
    source: str
    image_id: str
    image: ImageFile


class OtherName(NamedTuple):
    """An id that has no image, and a file that may be it under another name."""

    source: str
    image_id: str
    file: str


@dataclass(frozen=True)
class CheckPlan:
    """What is looked at.

    Attributes
    ----------
    tables
        The tables, by name.
    images
        Folders, globs, lists or zips of the images.
    rows
        The sample, by source and then in the order of the tables.
    counts
        Source → rows, and how many of them have an image.
    other_names
        Ids without an image, and files whose names hold the id: named otherwise, perhaps.
    seed
        Of the sample.
    """

    tables: tuple[str, ...]
    images: tuple[str, ...]
    rows: tuple[SampledRow, ...]
    counts: dict[str, tuple[int, int]]
    other_names: tuple[OtherName, ...]
    seed: int

    @property
    def total(self) -> int:
        """Rows of the tables."""
        return sum(n_rows for n_rows, _ in self.counts.values())

    @property
    def with_image(self) -> int:
        """Rows that have an image."""
        return sum(found for _, found in self.counts.values())


def tables_to_check(home: Home, name: str | None, frame: FrameName | None = None) -> list[StoredTable]:
    """Return the table of that name; without one the selection ``latest``, or where there is none, all sources.

    A source that is there in both frames is taken in its reference frame, unless ``frame`` chooses.

    Raises
    ------
    MissingInputError, UsageError
        As :meth:`cxu.store.Home.open`, and if the home holds nothing.
    """
    if name is not None or home.selection_path(LATEST).is_file():
        return [home.open(name, frame=frame)]
    listings = [listing for listing in home.listings() if frame in (None, listing.frame)]
    several = {name for name, count in Counter(one.source for one in listings).items() if count > 1}
    kept = [one for one in listings if one.source not in several or one.frame == _reference_frame(one.source)]
    if not kept:
        raise MissingInputError(
            f"{home.root} holds nothing{f' in the {frame} frame' if frame else ''} to check: start with cxu fetch or "
            "cxu import, or name a table"
        )
    return [home.open_source(one.source, one.frame) for one in kept]


def _reference_frame(source: str) -> FrameName:
    return SOURCES[source].reference_frame if source in SOURCES else "model"


def plan_check(
    tables: Sequence[StoredTable],
    images: Sequence[str],
    *,
    n_rows: int = DEFAULT_ROWS,
    seed: int = 0,
    frame: FrameName | None = None,
    cache_folder: Path | None = None,
) -> CheckPlan:
    """Decide which rows are looked at: by chance among those that have an image, of every source as many.

    Parameters
    ----------
    tables
        Selections, sources, predictions or any tables in the schema.
    images
        Folders, globs, lists or zips of the images.
    n_rows, seed
        How many rows, and the seed of the choice. A source that has fewer leaves its share to the others.
    frame
        Only the rows in this frame.
    cache_folder
        Where the listing of an image folder is kept for the next time; None keeps none.

    Raises
    ------
    UsageError, DuplicateIdError
        As :func:`cxu.maskplan.plan_masks`, and if there is no row or ``n_rows`` is below 1.
    MissingInputError
        If no row has an image; the message shows an id and a file.
    """
    if n_rows < 1:
        raise UsageError(f"--rows {n_rows}: expected 1 or more, such as {DEFAULT_ROWS}")
    target, found, counts = Target(tuple(images)), list[SampledRow](), dict[str, tuple[int, int]]()
    missing: list[tuple[str, str]] = []
    for stored in tables:
        plan = plan_masks(stored, Path(), MaskOptions("full"), target, frame=frame, cache_folder=cache_folder)
        for block in plan.blocks:
            keys = block.read(("source", "image_id"))
            pairs = zip(keys["source"].to_pylist(), keys["image_id"].to_pylist(), strict=True)
            for row, (source, image_id), image in zip(block.rows, pairs, block.images or (), strict=True):
                name = source_or_custom(source).name
                of_source = counts.get(name, (0, 0))
                counts[name] = of_source[0] + 1, of_source[1] + (image is not None)
                if image is None:
                    missing.append((name, image_id))
                else:
                    found.append(SampledRow(block.shard, row, name, image_id, image))
    names = tuple(stored.name for stored in tables)
    if not counts:
        raise UsageError(f"{', '.join(names)}: no row to check")
    other_names = _other_names(missing, images, cache_folder) if len(missing) > len(found) else ()
    if not found:
        raise MissingInputError(_nothing_found(missing, images, other_names))
    chosen = choose([row.source for row in found], n_rows, seed)
    return CheckPlan(names, tuple(images), tuple(found[place] for place in chosen), counts, other_names, seed)


def choose(sources: Sequence[str], n_rows: int, seed: int) -> list[int]:
    """Return the places of the rows chosen: by source, as evenly as they allow, and in order within each.

    Parameters
    ----------
    sources
        The source of every row.
    n_rows, seed
        How many rows, at most, and the seed. What is chosen of a source depends on its own rows alone.

    Examples
    --------
    >>> choose(["b", "a", "b", "b", "b"], 3, seed=0)[0]
    1
    """
    places: dict[str, list[int]] = {}
    for place, source in enumerate(sources):
        places.setdefault(source, []).append(place)
    chosen: dict[str, list[int]] = {}
    left = n_rows
    for number, source in enumerate(sorted(places, key=lambda name: (len(places[name]), name))):
        share = min(len(places[source]), -(-left // (len(places) - number)))
        # its own stream: a further source changes nothing of this one's order
        order = np.random.default_rng((seed, zlib.crc32(source.encode()))).permutation(len(places[source]))
        chosen[source] = sorted(places[source][at] for at in order[:share].tolist())
        left -= share
    return [place for source in sorted(chosen) for place in chosen[source]]


def _other_names(
    missing: Sequence[tuple[str, str]], images: Sequence[str], cache_folder: Path | None
) -> tuple[OtherName, ...]:
    """Return files whose names hold an id that has no image, for a few ids spread over them."""
    step = -(-len(missing) // _COMPARED_IDS)
    few = missing[::step]
    files = list(image_index.load_index(list(images), cache_folder))
    return tuple(similar_names(few, [plain_text(file.relative.as_posix()) for file in files]))


def similar_names(wanted: Iterable[tuple[str, str]], files: Sequence[str]) -> list[OtherName]:
    """Return for each (source, image id) the first file whose path holds the id, or is held by it; letters and digits.

    Examples
    --------
    >>> similar_names([("vindr", "00ab12cd34")], ["x/9f.png", "x/00AB12CD34_512.png"])
    [OtherName(source='vindr', image_id='00ab12cd34', file='x/00AB12CD34_512.png')]
    """
    bare = [(_bare(name), _bare(name.rpartition("/")[2]), name) for name in files]
    found = []
    for source, image_id in wanted:
        whole, last = _bare(image_id), _bare(image_id.rpartition("/")[2])
        for path, name, file in bare:
            if min(len(whole), len(path)) >= _LEAST_PART and (
                whole in path or (len(name) >= _LEAST_PART and name in last)
            ):
                found.append(OtherName(source, image_id, file))
                break
    return found


def plain_text(text: str) -> str:
    """Return a file's name as text: names need not be UTF-8, but what is written and printed is."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", strip_image_suffix(text).lower())


def _nothing_found(missing: Sequence[tuple[str, str]], images: Sequence[str], other_names: Sequence[OtherName]) -> str:
    source, image_id = missing[0]
    where = plain_text(", ".join(images))
    said = f"none of the {len(missing):,} rows has an image in {where} (first: {source} {image_id})"
    if other_names:
        return f"{said}: {told_other_name(other_names[0])}"
    depth = source_or_custom(source).id_depth
    rule = "the last 4 parts of the path" if depth > 1 else "the file's name"
    return (
        f"{said}: expected {rule} to be the id, with a suffix such as {IMAGE_SUFFIXES[0]}; are these the images of "
        "that data set?"
    )


def told_other_name(one: OtherName) -> str:
    """Return what to do about files that are named otherwise, in a sentence.

    Examples
    --------
    >>> told_other_name(OtherName("vindr", "00ab12", "00AB12_small.png"))
    "the files seem to be named otherwise: '00AB12_small.png' may be '00ab12'; rename them to the id"
    """
    return f"the files seem to be named otherwise: {one.file!r} may be {one.image_id!r}; rename them to the id"
