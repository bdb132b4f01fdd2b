"""Cardiothoracic ratio, widths, areas and tilt of lungs and heart, with intervals. Names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxu.measure.account import MeasureReport as MeasureReport
    from cxu.measure.bulk import measure_table as measure_table
    from cxu.measure.rows import measure_rows as measure_rows

_OWNERS = {
    "MeasureReport": "account",
    "measure_rows": "rows",
    "measure_table": "bulk",
}
__all__ = [*_OWNERS]  # noqa: PLE0604 - all strings


def __getattr__(name: str) -> Any:
    if name in _OWNERS:
        return getattr(importlib.import_module(f"cxu.measure.{_OWNERS[name]}"), name)
    raise AttributeError(f"module 'cxu.measure' has no attribute {name!r}")
