"""Which crops are cut of a table's images, decided before the first one; ``cxu.crops`` carries the plan out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from cxu import files
from cxu.anatomy import ORGAN_GROUPS, ORGAN_NAMES, OrganName
from cxu.catalog import FrameName
from cxu.cropping import CropShape
from cxu.errors import UsageError
from cxu.maskplan import Block, blocks_of_share, plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.rowchoice import Choice, Chosen, choose_rows, chosen_blocks
from cxu.sharing import Share
from cxu.store import StoredTable

CropPolicy = Literal["confident", "full"]
UnusableRows = Literal["skip", "full"]
Blank = Literal["outside"]

COMMAND: Final = "crop"
SUFFIX: Final = ".png"
BLOCK_ROWS: Final = 64  # an image takes a tenth of a second: what an interruption may cost, and a step of progress


@dataclass(frozen=True)
class CropOptions:
    """What is cut out, and what becomes of it.

    Attributes
    ----------
    organs
        The organs that a crop holds, all of them.
    shape
        Margin, square and size.
    policy
        ``confident`` draws the organs through their confident nodes, ``full`` through all.
    unusable
        Rows in which one of the organs is unusable: ``skip`` leaves them out, ``full`` takes its full polygon.
    blank
        ``outside`` makes black what does not belong to the organs; None leaves all.
    """

    organs: tuple[OrganName, ...] = ORGAN_GROUPS["lungs"]
    shape: CropShape = field(default_factory=CropShape)
    policy: CropPolicy = "confident"
    unusable: UnusableRows = "skip"
    blank: Blank | None = None

    def __post_init__(self) -> None:
        if not self.organs or not set(self.organs) <= set(ORGAN_NAMES):
            raise UsageError(f"--organ {','.join(self.organs)}: expected one or more of {', '.join(ORGAN_NAMES)}")
        for name, choices in (("policy", CropPolicy), ("unusable", UnusableRows)):
            if getattr(self, name) not in get_args(choices):
                raise UsageError(f"--{name} {getattr(self, name)}: expected {' or '.join(get_args(choices))}")
        if self.blank not in (None, *get_args(Blank)):
            raise UsageError(f"--blank {self.blank}: expected {' or '.join(get_args(Blank))}")

    def record(self) -> dict[str, Any]:
        """Return what ``cxu.json`` says of the options."""
        return {
            "organ": ",".join(self.organs),
            "margin": str(self.shape.margin),
            "square": self.shape.square,
            "size": self.shape.size,
            "policy": self.policy,
            "unusable": self.unusable,
            "blank": self.blank,
        }


@dataclass(frozen=True)
class CropPlan:
    """Everything decided before the first image is read.

    Attributes
    ----------
    out, options, target
        Where, what, and from which images.
    blocks
        Rows that are cut together; none is empty.
    without_image
        Rows that were passed over because they have no image.
    record
        What ``cxu.json`` says.
    """

    out: Path
    options: CropOptions
    target: Target
    blocks: tuple[Block, ...]
    without_image: int
    record: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows to crop, at most: those with an unusable organ may be left out."""
        return sum(len(block.rows) for block in self.blocks)

    def of_share(self, share: Share | None) -> tuple[Block, ...]:
        """Return the blocks of one job of an array; None: all."""
        return blocks_of_share(self.blocks, share)

    def planned(self) -> Iterator[str]:
        """Yield the files that may be written, below the output folder."""
        for block in self.blocks:
            yield from crop_paths(block)


def crop_paths(block: Block) -> list[str]:
    """Return the path of each row's crop, below the output folder."""
    return [f"{stem}{SUFFIX}" for stem in block.stems]


def plan_crops(
    stored: StoredTable,
    out: Path,
    images: Sequence[str],
    options: CropOptions,
    choice: Choice,
    *,
    frame: FrameName | None = None,
    cache_folder: Path | None = None,
) -> CropPlan:
    """Decide which crops are cut.

    Parameters
    ----------
    stored
        A selection, a source, predictions or any table in the schema.
    out
        Folder for the crops.
    images
        Folders, globs, lists or zips of the images.
    options, choice
        What is cut out of them, and of which rows.
    frame
        Only the rows in this frame.
    cache_folder
        Where the listing of an image folder is kept for the next time; None keeps none.

    Raises
    ------
    UsageError, DuplicateIdError
        As :func:`cxu.maskplan.plan_masks`; and if no image is named or there is no row to crop.
    MissingInputError
        If no row has an image.
    """
    if not images:
        raise UsageError("a crop is cut out of an image: name a folder, glob, list or zip with --images")
    target = Target(tuple(images))
    masks = plan_masks(stored, out, MaskOptions(options.policy), target, frame=frame, cache_folder=cache_folder)
    chosen = choose_rows(masks, choice)
    record = _record(masks.record, options, choice, chosen)
    blocks = tuple(chosen_blocks(masks, chosen, BLOCK_ROWS))
    return CropPlan(out, options, target, blocks, chosen.without_image, record)


def _record(of_masks: dict[str, Any], options: CropOptions, choice: Choice, chosen: Chosen) -> dict[str, Any]:
    """Return what ``cxu.json`` says: no clock times, so that the same command gives the same bytes."""
    wanted = {
        **{name: of_masks[name] for name in ("table", "frame", "target", "schema_version", "cxu_version")},
        "command": COMMAND,
        "options": options.record(),
        "choice": choice.record(),
        # which rows a limit takes depends on which of them have an image
        "rows": None if choice.limit is None else files.hash_of(chosen.keys()),
    }
    rest = {name: of_masks[name] for name in ("table_name", "provenance")}
    return {**wanted, "identity": files.hash_of(wanted), **rest}
