"""Carries a plan out by the writer of its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cxu.export.blocks import ExportReport, Progress
from cxu.export.coco import export_coco
from cxu.export.csv import export_csv
from cxu.export.dicomseg import export_dicomseg
from cxu.export.geojson import export_geojson
from cxu.export.plan import ExportFormat, ExportPlan

_WRITERS: Final[dict[ExportFormat, Callable[..., ExportReport]]] = {
    "coco": export_coco,
    "csv": export_csv,
    "dicomseg": export_dicomseg,
    "geojson": export_geojson,
}


def export_table(
    plan: ExportPlan, *, workers: int = 1, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Carry out a plan.

    Parameters
    ----------
    plan
        From :func:`cxu.export.plan.plan_export`.
    workers
        Processes to use; the result is the same.
    overwrite
        Replace what an earlier export wrote.
    progress
        Called with the number of rows done by each block.

    Raises
    ------
    OutputExistsError
        If the file is there, or the folder holds something else, and ``overwrite`` is not given.
    UsageError
        Where the format cannot hold the rows together.
    WorkerError
        If a worker was killed.
    """
    return _WRITERS[plan.options.format](plan, workers=workers, overwrite=overwrite, progress=progress)
