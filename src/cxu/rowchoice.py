"""Which rows of a table are drawn: those of a list of ids, so many by chance, the most uncertain first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import files
from cxu.errors import MissingInputError, UsageError
from cxu.labels import IdList
from cxu.maskplan import Block, MaskPlan, block_name

Order = Literal["table", "uncertain"]


@dataclass(frozen=True)
class Choice:
    """Which rows are drawn, and in which order.

    Attributes
    ----------
    ids
        Only these images.
    limit, seed
        Only so many of them: drawn by chance, of those that have an image; or the most uncertain.
    order
        As in the table, or the most uncertain first.
    """

    ids: IdList | None = None
    limit: int | None = None
    seed: int = 0
    order: Order = "table"

    def record(self) -> dict[str, Any]:
        """Return what ``cxu.json`` says of the choice."""
        return {
            "ids": self.ids and files.hash_of(self.ids.ids),
            "limit": self.limit,
            "seed": self.seed if self.limit is not None else None,
            "order": self.order,
        }


@dataclass(frozen=True)
class Chosen:
    """The rows that are drawn.

    Attributes
    ----------
    rows
        A line for each, in the order in which they are drawn: ``source``, ``image_id``, ``has_value``, and with
        ``block`` and ``position`` the place in the plan.
    without_image
        Rows that were passed over because they have no image.
    """

    rows: pa.Table
    without_image: int

    def keys(self) -> list[list[str]]:
        """Return source and id of each row."""
        columns = (self.rows[name].to_pylist() for name in ("source", "image_id"))
        return [list(key) for key in zip(*columns, strict=True)]


def choose_rows(plan: MaskPlan, choice: Choice, *, value: str = "mean_sigma_model_px") -> Chosen:
    """Choose among the rows of a plan; ``value`` is the column of which ``has_value`` tells.

    Raises
    ------
    UsageError
        If there is no row to draw.
    MissingInputError
        If images were given, and no row has one.
    """
    found = _candidates(plan.blocks, choice.ids, value)
    if not len(found):
        raise UsageError(f"no row to draw: {_nothing(plan, choice.ids)}")
    with_image = found["has_image"].to_numpy()
    if not with_image.any():
        raise MissingInputError(
            f"none of the {len(found):,} rows has an image in {', '.join(plan.target.images)} (first: "
            f"{found['source'][0]} {found['image_id'][0]}): are these the images of that data set?"
        )
    # drawn at random, rows without an image would leave gaps; all of them asked for, each is missed and told
    passed_over = int(np.count_nonzero(~with_image)) if choice.limit is not None else 0
    chosen = _chosen(found.filter(pa.array(with_image)) if passed_over else found, choice)
    return Chosen(chosen, passed_over)


def _nothing(plan: MaskPlan, ids: IdList | None) -> str:
    table_name = plan.record["table_name"]
    if ids is not None and plan.rows:
        return f"none of the {len(ids.ids):,} ids of --ids is in {table_name}"
    return f"{table_name} is empty"


def _candidates(blocks: Sequence[Block], ids: IdList | None, value: str) -> pa.Table:
    """Return a line for each row that may be drawn: its keys, score, block and position there, and what it has."""
    parts = []
    for number, block in enumerate(blocks):
        rows = block.read(tuple(dict.fromkeys(("source", "image_id", "mean_sigma_model_px", value))))
        images = block.images
        has_image = [True] * len(rows) if images is None else [image is not None for image in images]
        part = pa.table(
            {
                "source": rows["source"],
                "image_id": rows["image_id"],
                "score": rows["mean_sigma_model_px"],
                "has_value": rows[value].is_valid(),
                "has_image": pa.array(has_image, pa.bool_()),
                "block": pa.array(np.full(len(rows), number), pa.int32()),
                "position": pa.array(np.arange(len(rows)), pa.int32()),
            }
        )
        parts.append(part.filter(pa.array(ids.among(rows))) if ids is not None else part)
    return pa.concat_tables(parts).combine_chunks() if parts else pa.table({"source": pa.array([], pa.string())})


def _chosen(found: pa.Table, choice: Choice) -> pa.Table:
    """Return the rows that are drawn, in the order in which they are."""
    places: npt.NDArray[np.int64] = np.arange(len(found))
    if choice.order == "uncertain":
        score = found["score"].to_numpy().astype(np.float64)
        places = np.argsort(-np.nan_to_num(score, nan=-1.0), kind="stable")[: choice.limit]
    elif choice.limit is not None and choice.limit < len(found):
        places = np.sort(np.random.default_rng(choice.seed).choice(len(found), choice.limit, replace=False))
    return found.take(pa.array(places))


def chosen_blocks(plan: MaskPlan, chosen: Chosen, block_rows: int) -> Iterator[Block]:
    """Yield blocks of the chosen rows alone, in the order of the table, of at most ``block_rows`` and none empty."""
    block, position = (chosen.rows[name].to_numpy() for name in ("block", "position"))
    number = itertools.count()
    for index in np.unique(block):
        positions = np.sort(position[block == index]).tolist()
        for start in range(0, len(positions), block_rows):
            yield plan.blocks[index].only(positions[start : start + block_rows], block_name(next(number)))
