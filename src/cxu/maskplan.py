"""What is drawn where: every decision that can be made before the first mask is drawn.

``plan_masks`` finds each row's image and path, refuses what cannot work, and cuts the table into blocks;
``cxu.rasterize`` carries the plan out.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import cxu
from cxu import files, image_index, table
from cxu.catalog import FrameName, source_or_custom, strip_image_suffix
from cxu.errors import DuplicateIdError, UsageError
from cxu.image_listing import ImageFile, spec_texts
from cxu.maskfiles import part_path, row_suffixes
from cxu.masks import NEEDS_SIGMA, MaskOptions
from cxu.placing import Target
from cxu.sharing import Share
from cxu.store import Shard, StoredTable

BLOCK_ROWS: Final = 1024  # rows that one worker draws at a time: what an interruption may cost, and a step of progress
_PROVENANCE: Final = ("repo", "revision", "model_id", "seed")

Pair = tuple[str, str]  # source name, image id
Found = Mapping[Pair, ImageFile]


@dataclass(frozen=True)
class Block:
    """Rows of one shard that are drawn together.

    Attributes
    ----------
    name
        Unique in the plan.
    shard, rows
        The shard, and which of its rows.
    stems
        Each row's path below the output folder, without suffix.
    images
        Each row's image, None where it is missing; None where no images were given.
    """

    name: str
    shard: Shard
    rows: tuple[int, ...]
    stems: tuple[str, ...]
    images: tuple[ImageFile | None, ...] | None

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read the columns named; names that the table lacks are left out."""
        return self.shard.read(columns).take(pa.array(self.rows, pa.int64()))

    def only(self, positions: Sequence[int], name: str) -> Self:
        """Return the block with some of its rows alone, by their positions in it, under another name."""
        return replace(
            self,
            name=name,
            rows=tuple(self.rows[position] for position in positions),
            stems=tuple(self.stems[position] for position in positions),
            images=None if self.images is None else tuple(self.images[position] for position in positions),
        )

    def stamp(self) -> str | None:
        """Return a hash that changes when an image of the block is replaced; None without images."""
        if self.images is None:
            return None
        return files.hash_of([image and image.stamp() for image in self.images])

    def planned(self, options: MaskOptions) -> Iterator[str]:
        """Yield the files that the block may write, below the output folder."""
        part = part_path(options, self.name)
        if part:
            yield part
        yield from (f"{stem}{suffix}" for stem in self.stems for suffix in row_suffixes(options))


@dataclass(frozen=True)
class MaskPlan:
    """Everything decided before the first mask is drawn."""

    out: Path
    options: MaskOptions
    target: Target
    blocks: tuple[Block, ...]
    record: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows to draw."""
        return sum(len(block.rows) for block in self.blocks)

    @property
    def n_files(self) -> int:
        """Files that will be written, at most."""
        per_row = len(row_suffixes(self.options))
        return self.rows * per_row if per_row else len(self.blocks)

    def of_share(self, share: Share | None) -> tuple[Block, ...]:
        """Return the blocks of one job of an array; None: all."""
        return blocks_of_share(self.blocks, share)


def block_name(number: int) -> str:
    """Return the name of a plan's block, counted from 0."""
    return f"part-{number:05d}"


def blocks_of_share(blocks: tuple[Block, ...], share: Share | None) -> tuple[Block, ...]:
    """Return the blocks of one job of an array; None: all."""
    return tuple(block for number, block in enumerate(blocks) if share is None or share.holds(number))


def plan_masks(
    stored: StoredTable,
    out: Path,
    options: MaskOptions,
    target: Target,
    *,
    frame: FrameName | None = None,
    cache_folder: Path | None = None,
) -> MaskPlan:
    """Decide what is drawn where.

    Parameters
    ----------
    stored
        A selection, a source or any table in the schema.
    out
        Folder for the masks.
    options, target
        What is drawn, where and how large.
    frame
        Draw only the rows in this frame.
    cache_folder
        Where the listing of an image folder is kept for the next time; None keeps none.

    Raises
    ------
    UsageError
        If the policy needs what the rows do not have, no row is in the frame, two rows would take one path, or an
        image is found twice.
    DuplicateIdError
        If an image stands twice in the table.
    """
    shards = [_scan(shard, frame, options) for shard in stored.shards()]
    _check_rows(shards, stored, frame, options)
    found = _find_images(shards, target, cache_folder)
    blocks = tuple(_blocks(shards, found, target))
    if options.format != "rle":
        _check_paths(blocks)
    return MaskPlan(out, options, target, blocks, _record(stored, shards, options, target, frame))


@dataclass(frozen=True)
class _ScannedShard:
    """What the plan needs to know of a shard: its rows in the frame, and what of them the policy cannot draw."""

    shard: Shard
    rows: tuple[int, ...]
    pairs: tuple[Pair, ...]
    without_sigma: int
    provenance: dict[str, set[Any]]


def _scan(shard: Shard, frame: FrameName | None, options: MaskOptions) -> _ScannedShard:
    uncertainty = ("sigma_xy", "samples_xy") if options.policy in NEEDS_SIGMA else ()
    rows = shard.read(("source", "image_id", "frame", *_PROVENANCE, *uncertainty))
    chosen = np.arange(len(rows))
    if frame:
        chosen = np.flatnonzero(pc.equal(rows["frame"], frame).to_numpy())
        rows = rows.take(chosen)
    return _ScannedShard(
        shard,
        tuple(chosen.tolist()),
        tuple(zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True)),
        _count_without_sigma(rows, options) if uncertainty else 0,
        {name: set(pc.unique(rows[name]).to_pylist()) - {None} for name in _PROVENANCE},
    )


def _count_without_sigma(rows: pa.Table, options: MaskOptions) -> int:
    without = np.isnan(table.sigmas_of(rows)).any(axis=(1, 2))
    if options.policy == "probability" and "samples_xy" in rows.column_names:
        without &= rows["samples_xy"].is_null().to_numpy()
    return int(np.count_nonzero(without))


def _check_rows(
    shards: Sequence[_ScannedShard], stored: StoredTable, frame: FrameName | None, options: MaskOptions
) -> None:
    n_rows = sum(len(shard.rows) for shard in shards)
    if frame and not n_rows and stored.rows:
        raise UsageError(f"no row of {stored.name} is in the {frame} frame: leave --frame {frame} out")
    without = sum(shard.without_sigma for shard in shards)
    if without:
        raise UsageError(
            f"--policy {options.policy} needs standard deviations, and {without:,} of {n_rows:,} rows of {stored.name} "
            "have none (the original CheXmask has none); take --policy full"
        )
    counts = Counter(pair for shard in shards for pair in shard.pairs)
    twice = [pair for pair, count in counts.items() if count > 1]
    if twice:
        source, image_id = twice[0]
        raise DuplicateIdError(
            f"{len(twice):,} images stand more than once in {stored.name} ({source} {image_id} first); where they "
            "stand in both frames, choose with --frame model or --frame image"
        )


def _find_images(shards: Sequence[_ScannedShard], target: Target, cache_folder: Path | None) -> Found | None:
    if not target.images:
        return None
    names = {name for shard in shards for name, _ in shard.pairs}
    sources = {name: source_or_custom(name) for name in names}
    wanted = ((sources[name], image_id) for shard in shards for name, image_id in shard.pairs)
    found, _ = image_index.resolve(target.images, wanted, cache_folder)
    # an alias in the table names the same source
    return {(name, image_id): found[key] for shard in shards for name, image_id in shard.pairs
            if (key := (sources[name].name, image_id)) in found}  # fmt: skip


def _blocks(shards: Sequence[_ScannedShard], found: Found | None, target: Target) -> Iterator[Block]:
    number = itertools.count()
    for shard in shards:
        for start in range(0, len(shard.rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            pairs = shard.pairs[part]
            stems = tuple(_stem(pair, found, target) for pair in pairs)
            image_files = None if found is None else tuple(found.get(pair) for pair in pairs)
            yield Block(block_name(next(number)), shard.shard, shard.rows[part], stems, image_files)


def _stem(pair: Pair, found: Found | None, target: Target) -> str:
    if target.layout == "images" and found and pair in found:
        relative = str(found[pair].relative)
    else:
        relative = f"{pair[0]}/{pair[1]}"
    stem = files.safe_relative(strip_image_suffix(relative)).as_posix()
    # file names need not be UTF-8, but the index is
    return stem.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\\x", "%")


def _check_paths(blocks: Sequence[Block]) -> None:
    """Refuse two rows for one path, also where only some file systems take their paths for one."""
    taken: dict[str, str] = {}
    for stem in (stem for block in blocks for stem in block.stems):
        key = files.collision_key(stem)
        if key in taken:
            raise UsageError(
                f"two rows would be written to {stem} and {taken[key]}, one file on many systems: rename one, or "
                "rasterize them apart"
            )
        taken[key] = stem


def _record(
    stored: StoredTable,
    shards: Sequence[_ScannedShard],
    options: MaskOptions,
    target: Target,
    frame: FrameName | None,
) -> dict[str, Any]:
    """Return what ``cxu.json`` says: no clock times, so that the same command gives the same bytes."""
    n_rows = sum(len(shard.rows) for shard in shards)
    # seen from another folder, a relative path means other images
    places = [text.encode("utf-8", "backslashreplace").decode() for text in spec_texts(target.images)]
    wanted = {
        "command": "rasterize",
        "table": stored.digest,
        "frame": frame if n_rows < stored.rows else None,
        "options": asdict(options),
        "target": {**asdict(target), "images": places},
        "schema_version": table.SCHEMA_VERSION,
        # another version may draw other masks
        "cxu_version": cxu.__version__,
    }
    provenance = {name: sorted(set().union(*(shard.provenance[name] for shard in shards))) for name in _PROVENANCE}
    return {**wanted, "identity": files.hash_of(wanted), "table_name": stored.name, "provenance": provenance}
