"""Which pictures of landmarks are drawn of a table, decided before the first one.

``plan_pictures`` finds each row's image by the rules of :mod:`cxu.maskplan`, chooses rows, and lays them out: a picture
a row, or pages of a contact sheet. ``cxu.pictures`` carries the plan out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa

from cxu import files, maskplan
from cxu.canvas import DEFAULT_VMAX_PX
from cxu.catalog import FrameName
from cxu.errors import UsageError
from cxu.image_listing import ImageFile
from cxu.maskplan import Block
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.rowchoice import Choice, choose_rows
from cxu.store import Shard, StoredTable

ColourBy = Literal["sigma", "radius", "organ"]

COMMAND: Final = "overlay"
PICTURE_PX: Final = 900
TILE_PX: Final = 320
COLUMNS: Final = 6
ROWS: Final = 4
_SIZES_PX: Final = (64, 4096)
_MOST_TILES: Final = 1000
# the calibrated radius is about 2.7 standard deviations of the bundled weights
_VMAX_PX: Final[dict[ColourBy, float]] = {"sigma": DEFAULT_VMAX_PX, "radius": 60.0, "organ": DEFAULT_VMAX_PX}
_VALUE: Final[dict[ColourBy, str]] = {
    "sigma": "mean_sigma_model_px",
    "radius": "radius90_px",
    "organ": "mean_sigma_model_px",
}


@dataclass(frozen=True)
class PictureOptions:
    """What pictures look like.

    Attributes
    ----------
    colour
        What the outlines' colour says: uncertainty, calibrated radius, or the organ.
    band
        Half-width of the band around an outline: in standard deviations, or in radii. 0 draws none.
    sheet
        Contact sheets instead of a picture a row.
    columns, rows
        Pictures on a page of a contact sheet.
    size
        Side of a picture in px; None takes 900, on a sheet 320.
    vmax_px
        End of the colour scale, px of the model frame; None takes 24 of uncertainty and 60 of a radius.
    """

    colour: ColourBy = "sigma"
    band: float = 1.0
    sheet: bool = False
    columns: int = COLUMNS
    rows: int = ROWS
    size: int | None = None
    vmax_px: float | None = None

    def __post_init__(self) -> None:
        if self.colour not in get_args(ColourBy):
            raise UsageError(f"--colour {self.colour}: expected one of {', '.join(get_args(ColourBy))}")
        if not 0 <= self.band < float("inf"):
            raise UsageError(f"--band {self.band:g}: expected 0 or more, such as 1")
        if self.columns < 1 or self.rows < 1 or self.columns * self.rows > _MOST_TILES:
            raise UsageError(
                f"--columns {self.columns} --rows {self.rows}: expected 1 or more of each, and at most {_MOST_TILES:,} "
                "pictures on a page"
            )
        low, high = _SIZES_PX
        if self.size is not None and not low <= self.size <= high:
            raise UsageError(f"--size {self.size}: expected {low} to {high:,} px")
        if self.vmax_px is not None and not 0 < self.vmax_px < float("inf"):
            raise UsageError(f"--vmax {self.vmax_px:g}: expected px above 0, such as {DEFAULT_VMAX_PX:g}")

    @property
    def side_px(self) -> int:
        """Side of a picture."""
        return self.size or (TILE_PX if self.sheet else PICTURE_PX)

    @property
    def scale_px(self) -> float:
        """End of the colour scale."""
        return self.vmax_px or _VMAX_PX[self.colour]


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """A row to draw: where it lies, and its image, None where it has none or none were given."""

    shard: Shard
    row: int
    image: ImageFile | None


@dataclass(frozen=True)
class Picture:
    """A file to draw: its path below the folder, the rows on it, and on a contact sheet the number of its page."""

    path: str
    rows: tuple[ChosenRow, ...]
    page: int = 0


@dataclass(frozen=True)
class PicturePlan:
    """Everything decided before the first picture is drawn.

    Attributes
    ----------
    out, options, target
        Where, how, and in whose pixels.
    pictures
        The files.
    index
        A line a row: ``source``, ``image_id``, ``path``, and ``row``, ``column`` on a sheet.
    table_name, table_rows
        What is drawn from.
    limits_px
        Limits of the colour's quantity that the table was filtered by.
    drops
        Whether nodes were dropped by a filter.
    without_image
        Rows that were passed over because they have no image.
    without_value
        Rows drawn that have nothing to be coloured by.
    record
        What ``cxu.json`` says.
    """

    out: Path
    options: PictureOptions
    target: Target
    pictures: tuple[Picture, ...]
    index: pa.Table
    table_name: str
    table_rows: int
    limits_px: tuple[float, ...]
    drops: bool
    without_image: int
    without_value: int
    record: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows to draw."""
        return len(self.index)

    @property
    def has_colours(self) -> bool:
        """Whether a scale of colours is shown."""
        return self.options.colour != "organ" and self.without_value < self.rows


def plan_pictures(
    stored: StoredTable,
    out: Path,
    options: PictureOptions,
    choice: Choice,
    images: Sequence[str] = (),
    *,
    frame: FrameName | None = None,
    cache_folder: Path | None = None,
) -> PicturePlan:
    """Decide which pictures are drawn of a table.

    Parameters
    ----------
    stored
        A selection, a source, predictions or any table in the schema.
    out
        Folder for the pictures.
    options, choice
        How, and which rows.
    images
        Folders, globs, lists or zips of the images; none draws on a blank frame.
    frame
        Only the rows in this frame.
    cache_folder
        Where the listing of an image folder is kept for the next time; None keeps none.

    Raises
    ------
    UsageError, DuplicateIdError
        As :func:`cxu.maskplan.plan_masks`; and if there is no row to draw, or none has a radius to be coloured by.
    MissingInputError
        If no row has an image.
    """
    target = Target(tuple(images))
    plan = maskplan.plan_masks(stored, out, MaskOptions("full"), target, frame=frame, cache_folder=cache_folder)
    found = choose_rows(plan, choice, value=_VALUE[options.colour])
    chosen = found.rows
    has_value = chosen["has_value"].to_numpy()
    if options.colour == "radius" and not has_value.any():
        raise UsageError(
            f"--colour radius: no row of {stored.name} has calibrated radii, only predictions of the weights that ship "
            "with cxu have some; take --colour sigma"
        )
    pictures, index = _lay_out(plan.blocks, chosen, options)
    return PicturePlan(
        out,
        options,
        target,
        pictures,
        index,
        Path(stored.name).name if stored.kind == "file" else stored.name,
        stored.rows,
        _limits_px(stored.facts, options.colour),
        _has_drops(stored),
        found.without_image,
        int(np.count_nonzero(~has_value)),
        _record(plan.record, options, choice, pictures),
    )


def _lay_out(
    blocks: Sequence[Block], chosen: pa.Table, options: PictureOptions
) -> tuple[tuple[Picture, ...], pa.Table]:
    """Return the files to draw, and the index."""
    rows: list[ChosenRow] = []
    stems: list[str] = []
    for number, position in zip(chosen["block"].to_pylist(), chosen["position"].to_pylist(), strict=True):
        block = blocks[number]
        image = None if block.images is None else block.images[position]
        rows.append(ChosenRow(block.shard, block.rows[position], image))
        stems.append(block.stems[position])
    places: dict[str, list[int]] = {}
    if options.sheet:
        per_page = options.columns * options.rows
        n_pages = -(-len(rows) // per_page)
        digits = max(3, len(str(n_pages)))
        pages = [f"sheet-{page + 1:0{digits}d}.png" for page in range(n_pages)]
        starts = range(0, len(rows), per_page)
        pictures = [
            Picture(name, tuple(rows[start : start + per_page]), page + 1)
            for page, (name, start) in enumerate(zip(pages, starts, strict=True))
        ]
        paths = [pages[index // per_page] for index in range(len(rows))]
        on_page = [divmod(index % per_page, options.columns) for index in range(len(rows))]
        places = {"row": [row + 1 for row, _ in on_page], "column": [column + 1 for _, column in on_page]}
    else:
        paths = [f"{stem}.png" for stem in stems]
        pictures = [Picture(path, (row,)) for path, row in zip(paths, rows, strict=True)]
    index = pa.table({"source": chosen["source"], "image_id": chosen["image_id"], "path": paths, **places})
    return tuple(pictures), index


def _limits_px(facts: Mapping[str, Any], colour: ColourBy) -> tuple[float, ...]:
    """Return the limits, in px of the model frame, that a selection was made with."""
    thresholds = facts.get("thresholds") or {}
    if thresholds.get("unit", "model") != "model":
        return ()
    if colour == "radius":
        found = list((thresholds.get("max_radius90") or {}).values())
    else:
        found = [limit for group in facts.get("limits_px", ()) for limit in group["px"].values()]
    return tuple(sorted({round(float(limit), 2) for limit in found if limit is not None}))


def _has_drops(stored: StoredTable) -> bool:
    if not stored.paths or "confident" not in stored.schema.names:
        return False
    shares = [*stored.facts.get("nodes_kept", {}).values(), *stored.facts.get("organs_kept", {}).values()]
    return not shares or min(shares) < 1


def _record(
    of_masks: Mapping[str, Any], options: PictureOptions, choice: Choice, pictures: Sequence[Picture]
) -> dict[str, Any]:
    """Return what ``cxu.json`` says: no clock times, so that the same command gives the same bytes."""
    images = [row.image and row.image.stamp() for picture in pictures for row in picture.rows]
    wanted = {
        **{name: of_masks[name] for name in ("table", "frame", "target", "schema_version", "cxu_version")},
        "command": COMMAND,
        "options": asdict(options),
        "choice": choice.record(),
        # an image that was replaced gives another picture
        "images": files.hash_of(images) if any(images) else None,
    }
    return {**wanted, "identity": files.hash_of(wanted), "table_name": of_masks["table_name"]}
