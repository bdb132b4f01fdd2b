"""Blocks of a table → rows as outlines in the pixels of the export, and the account of what was left out."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import contour, table
from cxu.anatomy import ORGANS, Organ, OrganName
from cxu.catalog import FrameName
from cxu.errors import CxuError
from cxu.image_listing import ImageFile
from cxu.maskplan import Block
from cxu.masks import MaskOptions, OrganMask, Placement, RowShape, draw_organs, with_outline
from cxu.placing import KEY_COLUMNS, RowKey, Target, place_row
from cxu.rasterize import Failure

FloatArray = npt.NDArray[np.floating]

_FACT_COLUMNS: Final = ("model_id", "quality", "mean_sigma_model_px")
_COLUMNS: Final = (
    *KEY_COLUMNS,
    *_FACT_COLUMNS,
    "landmarks_xy",
    "sigma_xy",
    "sigma_model_px",
    "confident",
    "usable",
)
_MIN_RING_NODES: Final = 3
_DECIMALS: Final = 4  # of uncertainties, px


@dataclass
class Account:
    """What became of rows and organs.

    Attributes
    ----------
    rows
        Rows exported.
    organs, unusable, crossing
        By organ: exported ones, unusable ones, exported ones whose contour crosses itself.
    assumed
        Rows whose position in their image is assumed: their source says nothing of how it made the model frame.
    empty
        Source and id of rows left out because none of their organs is usable.
    failures
        Rows that could not be exported, and why.
    """

    rows: int = 0
    organs: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    crossing: Counter[str] = field(default_factory=Counter)
    assumed: int = 0
    empty: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def count(self, row: DrawnRow) -> None:
        """Count a row that is exported."""
        self.rows += 1
        self.assumed += not row.placement.exact
        self.unusable.update(row.unusable)
        for organ in row.usable:
            self.organs[organ.name] += 1
            self.crossing[organ.name] += row.crossing[organ.name]

    def leave_out(self, row: DrawnRow) -> None:
        """Count a row without a usable organ."""
        self.empty.append((row.key.source, row.key.image_id))
        self.unusable.update(row.unusable)

    def add(self, other: Account) -> None:
        """Add the account of further rows."""
        self.rows += other.rows
        self.organs.update(other.organs)
        self.unusable.update(other.unusable)
        self.crossing.update(other.crossing)
        self.assumed += other.assumed
        self.empty += other.empty
        self.failures += other.failures

    def as_json(self) -> dict[str, Any]:
        """Return the account as JSON holds it."""
        return {
            "rows": self.rows,
            "organs": dict(self.organs),
            "unusable": dict(self.unusable),
            "crossing": dict(self.crossing),
            "assumed": self.assumed,
            "empty": self.empty,
            "failures": [asdict(failure) for failure in self.failures],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the account that :meth:`as_json` made this of."""
        counts = {name: Counter(content[name]) for name in ("organs", "unusable", "crossing")}
        empty = [(source, image_id) for source, image_id in content["empty"]]
        failures = [Failure(**failure) for failure in content["failures"]]
        return cls(rows=content["rows"], assumed=content["assumed"], empty=empty, failures=failures, **counts)

    @property
    def seen(self) -> int:
        """Rows exported, left out and failed."""
        return self.rows + len(self.empty) + len(self.failures)


@dataclass(frozen=True)
class BlockTask:
    """One block to export: travels to a process.

    Attributes
    ----------
    first
        Number of the block's first row in the export, counted from 1.
    block, options, target
        Which rows, what is drawn of them, and where.
    settings
        What else the format needs to know.
    """

    first: int
    block: Block
    options: MaskOptions
    target: Target
    settings: Any = None


@dataclass(frozen=True, eq=False)
class DrawnRow:
    """One row in the pixels of the export.

    Attributes
    ----------
    number
        Its number in the export, counted from 1.
    key, image
        Which row, and its image where images were given.
    placement
        Where it lies in the pixels of the export.
    organs
        All three, unusable ones too.
    sigma_px, sigma_model_px
        Node uncertainty [120] in pixels of the export and in px of the 1024 model frame; NaN where unknown.
    confident
        bool [120].
    facts
        ``model_id``, ``quality`` and ``mean_sigma_model_px`` of the row, None where unknown.
    """

    number: int
    key: RowKey
    image: ImageFile | None
    placement: Placement
    organs: dict[OrganName, OrganMask]
    sigma_px: FloatArray
    sigma_model_px: FloatArray
    confident: npt.NDArray[np.bool_]
    facts: dict[str, Any]

    @functools.cached_property
    def crossing(self) -> dict[OrganName, bool]:
        """Which outlines cross themselves; of unusable organs this is not asked."""
        crosses = contour.crosses_itself([mask.polygon_xy for mask in self.organs.values()]).tolist()
        return {name: mask.usable and cross for (name, mask), cross in zip(self.organs.items(), crosses, strict=True)}

    @property
    def frame(self) -> FrameName:
        """The pixels of the export: ``image`` also where a row of the model frame was put back into its image."""
        return self.key.frame if self.image is None else "image"

    @property
    def usable(self) -> list[Organ]:
        """The usable organs."""
        return [organ for organ in ORGANS if self.organs[organ.name].usable]

    @property
    def unusable(self) -> list[OrganName]:
        """The names of the others."""
        return [name for name, mask in self.organs.items() if not mask.usable]

    def nodes_of(self, organ: Organ) -> list[int]:
        """Return the nodes that an organ's outline goes through, 0 to 119."""
        drawn = np.arange(organ.first, organ.stop)
        if len(self.organs[organ.name].polygon_xy) < len(drawn):
            drawn = drawn[self.confident[organ.nodes]]
        nodes: list[int] = drawn.tolist()
        return nodes

    def uncertainty(self, organ: Organ) -> dict[str, float | None]:
        """Return mean and largest node uncertainty of an organ, over all its nodes; None where unknown."""
        of_organ = self.sigma_px[organ.nodes]
        return {
            "mean_sigma_px": as_number(of_organ.mean()),
            "max_sigma_px": as_number(of_organ.max()),
            "mean_sigma_model_px": as_number(self.sigma_model_px[organ.nodes].mean()),
        }


def as_number(value: Any) -> float | None:
    """Return a value as JSON holds it, to four decimals; None where it is unknown."""
    return round(float(value), _DECIMALS) if value is not None and np.isfinite(value) else None


def draw_rows(task: BlockTask, account: Account) -> Iterator[DrawnRow]:
    """Yield the rows of a block that can be drawn, and count the others in ``account``."""
    rows = task.block.read(_COLUMNS)
    images = task.block.images or [None] * len(rows)
    columns = (
        RowKey.all_of(rows),
        images,
        RowShape.all_of(rows),
        table.list_column(rows, "sigma_model_px"),
        _facts(rows),
    )
    for number, (key, image, shape, sigma_model_px, facts) in enumerate(zip(*columns, strict=True), start=task.first):
        drawable = with_outline(shape, task.options.policy)
        try:
            placement = place_row(key, image, task.target)
            organs = draw_organs(drawable, placement, task.options)
        except CxuError as error:
            account.failures.append(Failure(key.source, key.image_id, str(error)))
            continue
        sigma_px = table.node_uncertainty(placement.sigmas(shape.sigma_xy))
        yield DrawnRow(number, key, image, placement, organs, sigma_px, sigma_model_px, shape.confident, facts)


def _facts(rows: pa.Table) -> list[dict[str, Any]]:
    columns = {name: rows[name].to_pylist() for name in _FACT_COLUMNS}
    columns["mean_sigma_model_px"] = [as_number(value) for value in columns["mean_sigma_model_px"]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def ring_of(mask: OrganMask) -> FloatArray:
    """Return the polygon [N, 2] of an organ with three nodes at least, the last one repeated: readers take no fewer."""
    missing = max(0, _MIN_RING_NODES - len(mask.polygon_xy))
    return np.concatenate([mask.polygon_xy, np.repeat(mask.polygon_xy[-1:], missing, axis=0)])
