"""The verbs of the command line as Python functions; ``import cxu`` gives them.

Every function takes and returns plain things: paths, Arrow tables, numpy arrays, frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cxu import selection, table
from cxu.anatomy import OrganName
from cxu.catalog import DATASET_REPO, FrameName, source_or_custom
from cxu.codec import Mask
from cxu.criteria import Criteria
from cxu.cropping import CropShape, parse_margin
from cxu.cropplan import Blank, CropOptions, CropPolicy, UnusableRows, plan_crops
from cxu.crops import CropReport, crop_table
from cxu.errors import UsageError
from cxu.fetch import FetchResult, carry_out, prepare_fetch
from cxu.fetch_plan import FetchOptions, select_sources
from cxu.flow import FilterReport
from cxu.ingest import ImportReport, import_file
from cxu.ingest_parts import ImportOptions
from cxu.labels import open_labels, parse_condition
from cxu.maskplan import plan_masks
from cxu.masks import MaskFormat, MaskOptions, Placement, Policy, RowShape, Unusable, draw_organs, merge_labels, resized
from cxu.placing import Layout, Target
from cxu.raster import BAND_SIGMAS
from cxu.rasterize import MaskReport, rasterize_table
from cxu.rowchoice import Choice
from cxu.store import Home, StoredTable, open_table
from cxu.thresholds import (
    MAX_GAP,
    MIN_CONFIDENT,
    Thresholds,
    Unit,
    WorstQuality,
    parse_max_radius90,
    parse_max_std,
    parse_organs,
)


class Selection(NamedTuple):
    """What :func:`filter_rows` returns: the rows that stay, the others with their reason, and the account."""

    rows: pa.Table
    excluded: pa.Table
    report: FilterReport


class Drawing(NamedTuple):
    """What :func:`rasterize_row` returns: the label image uint8 [H, W] (None for probabilities), and planes."""

    labels: Mask | None
    organs: dict[OrganName, Mask]


def open_home(root: str | Path | None = None) -> Home:
    """Return a home folder; None takes ``CXU_HOME``, else ``./cxu-data``.

    Examples
    --------
    >>> open_home("my-home").selections()
    []
    """
    return Home(root)


def read_table(
    name: str | Path | None = None, *, home: str | Path | None = None, frame: FrameName | None = None
) -> pa.Table:
    """Read a selection, a source or a Parquet table into memory; None reads the selection ``latest``.

    Raises
    ------
    MissingInputError
        If there is none of that name.
    FormatError
        If it is not in the schema of ``docs/format.md``.
    """
    stored = open_table(name) if isinstance(name, Path) else Home(home).open(name, frame=frame)
    return stored.read()


def import_csv(
    path: str | Path,
    source: str,
    *,
    frame: FrameName | None = None,
    home: str | Path | None = None,
    keep_rle: bool = False,
    strict: bool = False,
) -> ImportReport:
    """Convert a published CSV file into the home, as ``cxu import`` does.

    The report's ``problems`` lists the malformed rows that were left out.

    Raises
    ------
    FormatError, DuplicateIdError, UsageError
        See :func:`cxu.ingest.import_stream`.
    """
    options = ImportOptions(frame, keep_rle=keep_rle, strict=strict)
    return import_file(Path(path), source_or_custom(source), Home(home), options)


def fetch_source(
    name: str,
    *,
    home: str | Path | None = None,
    frame: FrameName | None = None,
    repo: str = DATASET_REPO,
    revision: str | None = None,
    limit_rows: int | None = None,
    offline: bool = False,
    force: bool = False,
) -> FetchResult:
    """Download one published source, verify it and convert it into the home, as ``cxu fetch`` does.

    The result says how many rows there are and holds the report of the conversion; a source that is already there
    is left as it is.

    Raises
    ------
    UsageError
        If the source is unknown.
    HubError
        If the Hub does not give the file; a subclass says why.
    """
    target = Home(home)
    options = FetchOptions(frame, limit_rows=limit_rows, offline=offline, force=force)
    plan = prepare_fetch(select_sources([name]), target, options, repo=repo, revision=revision)
    return carry_out(plan, target).results[0]


def filter_rows(
    rows: pa.Table,
    *,
    max_std: float | str | None = None,
    unit: Unit = "model",
    min_confident: float = MIN_CONFIDENT,
    max_gap: int = MAX_GAP,
    min_rca: float | None = None,
    min_rca_max: float | None = None,
    max_mean_std: float | None = None,
    max_radius90: float | str | None = None,
    quality: WorstQuality = "review",
    organs: str | None = None,
    mix_models: bool = False,
    labels: Sequence[str | Path] = (),
    where: Sequence[str] = (),
) -> Selection:
    """Keep what is certain, in memory; the arguments are the options of ``cxu filter``.

    Raises
    ------
    UsageError
        If a limit cannot be asked of these rows.

    Examples
    --------
    >>> rows = table.build_table({
    ...     "source": "mine", "image_id": ["a", "b"], "frame": "model", "model_id": "m",
    ...     "rca_mean": np.array([0.6, 0.9]), "landmarks_xy": np.zeros((2, 240), np.float32),
    ... }, 2)
    >>> filter_rows(rows, min_rca=0.7).rows["image_id"].to_pylist()
    ['b']
    """
    thresholds = Thresholds(
        max_std=None if max_std is None else parse_max_std(str(max_std)),
        unit=unit,
        min_confident=min_confident,
        max_gap=max_gap,
        min_rca=min_rca,
        min_rca_max=min_rca_max,
        max_mean_std=max_mean_std,
        max_radius90=None if max_radius90 is None else parse_max_radius90(str(max_radius90)),
        quality=quality,
        organs=parse_organs(organs) if organs else Thresholds().organs,
        mix_models=mix_models,
    )
    sources = rows["source"].unique().to_pylist()
    criteria = Criteria(
        thresholds,
        labels=tuple(open_labels(str(label), sources) for label in labels),
        where=tuple(parse_condition(condition) for condition in where),
    )
    return Selection(*selection.filter_rows(rows, criteria))


def rasterize_row(
    rows: pa.Table,
    index: int = 0,
    *,
    policy: Policy = "confident",
    size_hw: tuple[int, int] | None = None,
    band: float = BAND_SIGMAS,
    unusable: Unusable = "ignore",
) -> Drawing:
    """Draw the masks of one row, in the pixels of its frame or scaled to ``size_hw``.

    Planes are uint8 [H, W]: 0, 1 and 255 (ignore), or round(255 p) under the policy ``probability``.

    Raises
    ------
    UsageError
        If the policy needs standard deviations and the row has none, or the row does not know its size.
    IndexError
        If there is no such row.

    Examples
    --------
    >>> corners = np.repeat([[[2.0, 1.0]], [[2.0, 4.0]], [[6.0, 4.0]]], 40, axis=0).reshape(1, 240)
    >>> rows = table.build_table({
    ...     "source": "mine", "image_id": ["a"], "frame": "image", "model_id": "m", "height": 6, "width": 8,
    ...     "landmarks_xy": corners.astype(np.float32)}, 1)
    >>> rasterize_row(rows).labels.shape
    (6, 8)
    """
    row = rows.slice(range(len(rows))[index], 1)
    shape_hw = (row["height"][0].as_py(), row["width"][0].as_py())
    if None in shape_hw:
        raise UsageError(f"row {index} ({row['image_id'][0]}) does not know its size: height or width is null")
    target = Target(size_hw=size_hw)
    placement = resized(shape_hw, target.size_hw) if target.size_hw else Placement(shape_hw)
    options = MaskOptions(policy, "organs" if policy == "probability" else "npz", band, unusable)
    organs = draw_organs(RowShape.all_of(row)[0], placement, options)
    labels = None if policy == "probability" else merge_labels(organs, options)
    return Drawing(labels, {name: mask.plane for name, mask in organs.items() if mask.usable})


def rasterize_rows(
    stored: StoredTable | str | Path | None,
    out: str | Path,
    *,
    home: str | Path | None = None,
    policy: Policy = "confident",
    format: MaskFormat = "labels",  # noqa: A002 - the option's name
    band: float = BAND_SIGMAS,
    unusable: Unusable = "ignore",
    images: Sequence[str | Path] = (),
    size_hw: tuple[int, int] | None = None,
    longest: int | None = None,
    layout: Layout = "ids",
    workers: int = 1,
    overwrite: bool = False,
) -> MaskReport:
    """Draw the masks of a table on disk into a folder, as ``cxu rasterize`` does; None takes the selection ``latest``.

    The report's ``failures`` lists the rows without a mask, and why.

    Raises
    ------
    UsageError, OutputExistsError, WorkerError
        See :func:`cxu.rasterize.plan_masks` and :func:`cxu.rasterize.rasterize_table`.
    """
    target = Target(tuple(str(entry) for entry in images), size_hw=size_hw, longest=longest, layout=layout)
    options = MaskOptions(policy, format, band, unusable)
    plan = plan_masks(_opened(stored, home), Path(out), options, target, cache_folder=Home(home).root / "cache")
    return rasterize_table(plan, workers=workers, overwrite=overwrite)


def crop_rows(
    stored: StoredTable | str | Path | None,
    out: str | Path,
    images: Sequence[str | Path],
    *,
    home: str | Path | None = None,
    organ: str = "lungs",
    margin: str = "5%",
    square: bool = False,
    size: int | None = None,
    blank: Blank | None = None,
    policy: CropPolicy = "confident",
    unusable: UnusableRows = "skip",
    workers: int = 1,
    overwrite: bool = False,
) -> CropReport:
    """Crop images around organs into a folder, as ``cxu crop`` does; None takes the selection ``latest``.

    ``images`` are folders, globs, lists or zips; the other arguments are the options of the command. The report's
    ``left_out`` and ``failures`` list the rows without a crop, and why.

    Raises
    ------
    UsageError, MissingInputError, OutputExistsError, WorkerError
        See :func:`cxu.cropplan.plan_crops` and :func:`cxu.crops.crop_table`.
    """
    shape = CropShape(parse_margin(margin), square, size)
    options = CropOptions(parse_organs(organ, also_all=True), shape, policy, unusable, blank)
    opened, cache = _opened(stored, home), Home(home).root / "cache"
    plan = plan_crops(opened, Path(out), [str(entry) for entry in images], options, Choice(), cache_folder=cache)
    return crop_table(plan, workers=workers, overwrite=overwrite)


def _opened(stored: StoredTable | str | Path | None, home: str | Path | None) -> StoredTable:
    if isinstance(stored, StoredTable):
        return stored
    return open_table(stored) if isinstance(stored, Path) else Home(home).open(stored)


def landmarks(rows: pa.Table) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the landmarks of rows as float32 [n, 120, 2] (x, y), px of each row's frame."""
    return table.landmarks_of(rows)


def sigmas(rows: pa.Table) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the standard deviations of rows as float32 [n, 120, 2] (x, y), px of each row's frame; NaN without."""
    return table.sigmas_of(rows)
