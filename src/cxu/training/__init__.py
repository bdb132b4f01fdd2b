"""Training a HybridGNet: ``TrainOptions`` says how, ``train`` does it. Names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxu.training.loop import Progress as Progress
    from cxu.training.loop import TrainReport as TrainReport
    from cxu.training.loop import train as train
    from cxu.training.options import AugmentOptions as AugmentOptions
    from cxu.training.options import TrainOptions as TrainOptions

_OWNERS = {
    "AugmentOptions": "options",
    "Progress": "loop",
    "TrainOptions": "options",
    "TrainReport": "loop",
    "train": "loop",
}
__all__ = [*_OWNERS]  # noqa: PLE0604 - all strings


def __getattr__(name: str) -> Any:
    if name in _OWNERS:
        return getattr(importlib.import_module(f"cxu.training.{_OWNERS[name]}"), name)
    raise AttributeError(f"module 'cxu.training' has no attribute {name!r}")
