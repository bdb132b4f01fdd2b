"""cxu: landmarks, uncertainty and masks of CheXmask-U.

The names below are the public interface. They are imported when first used, so that ``import cxu`` does nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxu.anatomy import ORGANS as ORGANS
    from cxu.api import Drawing as Drawing
    from cxu.api import Selection as Selection
    from cxu.api import crop_rows as crop_rows
    from cxu.api import fetch_source as fetch_source
    from cxu.api import filter_rows as filter_rows
    from cxu.api import import_csv as import_csv
    from cxu.api import landmarks as landmarks
    from cxu.api import open_home as open_home
    from cxu.api import rasterize_row as rasterize_row
    from cxu.api import rasterize_rows as rasterize_rows
    from cxu.api import read_table as read_table
    from cxu.api import sigmas as sigmas
    from cxu.datasets import MaskDataset as MaskDataset
    from cxu.errors import CxuError as CxuError
    from cxu.frame import ModelFrame as ModelFrame
    from cxu.masks import MaskOptions as MaskOptions
    from cxu.measure.rows import measure_rows as measure_rows
    from cxu.predict_run import predict_images as predict_images
    from cxu.store import Home as Home
    from cxu.store import StoredTable as StoredTable
    from cxu.store import open_table as open_table

__version__ = "0.1.0"

# public name → the module that owns it; no name may be a module's, which would shadow it
_OWNERS = {
    "CxuError": "errors",
    "Drawing": "api",
    "Home": "store",
    "MaskDataset": "datasets",
    "MaskOptions": "masks",
    "ModelFrame": "frame",
    "ORGANS": "anatomy",
    "Selection": "api",
    "StoredTable": "store",
    "crop_rows": "api",
    "fetch_source": "api",
    "filter_rows": "api",
    "import_csv": "api",
    "landmarks": "api",
    "measure_rows": "measure.rows",
    "open_home": "api",
    "open_table": "store",
    "predict_images": "predict_run",
    "rasterize_row": "api",
    "rasterize_rows": "api",
    "read_table": "api",
    "sigmas": "api",
}
__all__ = ["__version__", *_OWNERS]  # noqa: PLE0604 - all strings


def __getattr__(name: str) -> Any:
    if name in _OWNERS:
        return getattr(importlib.import_module(f"cxu.{_OWNERS[name]}"), name)
    raise AttributeError(f"module 'cxu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OWNERS])
