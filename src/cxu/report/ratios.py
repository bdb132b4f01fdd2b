"""Cardiothoracic ratios of many rows, as :mod:`cxu.measure` has them, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import table
from cxu.measure.geometry import measure_nodes, well_founded

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

QUARTILES: Final = (0.25, 0.5, 0.75)
LARGE: Final = 0.5  # the heart is called large beyond
# why a ratio is blank, the first that holds; the names are those of cxu measure
_BLANK: Final = ("not_finite", "unconfident", "no_extent")


@dataclass(frozen=True, eq=False)
class Ratios:
    """Cardiothoracic ratios of n rows.

    Attributes
    ----------
    values
        float32 [n]; NaN where blank.
    blank
        uint8 [n]: 0 where there is a value, else 1 + the index of the reason.
    """

    values: FloatArray
    blank: npt.NDArray[np.uint8]

    def of(self, where: BoolArray) -> Ratios:
        """Return those of some rows, bool [n]."""
        return Ratios(self.values[where], self.blank[where])


def ratios_of(rows: pa.Table) -> Ratios:
    """Return the ratio of rows of the one table, blank where a node that it rests on or its neighbour is unconfident.

    The same as ``ctr`` of :func:`cxu.measure.measure_rows`, without all else that is measured there.
    """
    points = table.landmarks_of(rows).astype(np.float64)
    finite = np.all(np.isfinite(points), axis=(1, 2))
    points[~finite] = 0.0
    x, y = np.ascontiguousarray(points.transpose(2, 1, 0))
    founded = well_founded(x, y, table.confident_of(rows).T, table.usable_of(rows).T)["ctr"]
    values = measure_nodes(x, y)["ctr"]
    blank = np.select([~finite, ~founded, ~np.isfinite(values)], range(1, len(_BLANK) + 1), 0).astype(np.uint8)
    return Ratios(np.where(blank == 0, values, np.nan).astype(np.float32), blank)


@dataclass(frozen=True)
class RatioSummary:
    """What ratios come to.

    Attributes
    ----------
    n
        Rows that have one.
    blank
        Rows without, by reason.
    quartiles
        25, 50 and 75 %; None without a value.
    share_large
        Share of those that have one above 0.5.
    """

    n: int
    blank: Mapping[str, int]
    quartiles: tuple[float, float, float] | None
    share_large: float | None

    @classmethod
    def of(cls, parts: Sequence[Ratios]) -> RatioSummary:
        """Return what the ratios of some parts come to together."""
        counts = Counter[int]()
        for part in parts:
            counts.update({code: int(count) for code, count in enumerate(np.bincount(part.blank)) if count})
        blank = {reason: counts[code] for code, reason in enumerate(_BLANK, 1) if counts[code]}
        values = np.concatenate([np.empty(0, np.float32), *(part.values[part.blank == 0] for part in parts)])
        if not len(values):
            return cls(0, blank, None, None)
        low, middle, high = (round(float(value), 6) for value in np.quantile(values, QUARTILES))
        return cls(len(values), blank, (low, middle, high), float(np.mean(values > LARGE)))

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {
            "n": self.n,
            "blank": dict(self.blank),
            "quartiles": self.quartiles and list(self.quartiles),
            "share_above_0.5": None if self.share_large is None else round(self.share_large, 6),
        }
