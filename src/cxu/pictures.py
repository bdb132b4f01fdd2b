"""A table → pictures of its rows in a folder: draw what :mod:`cxu.pictureplan` planned; resumable, whole files only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
from PIL import Image

from cxu import files, sheet
from cxu.anatomy import ORGANS
from cxu.engine import run_shards
from cxu.errors import CxuError
from cxu.image_listing import ImageFile
from cxu.picturefolder import PictureFolder
from cxu.pictureplan import ChosenRow, ColourBy, Picture, PictureOptions, PicturePlan
from cxu.picturerow import COLUMNS, RowPicture, colour_values, draw_row
from cxu.placing import Target
from cxu.sharing import held
from cxu.sheet import BAR_TITLE, LEGEND_TEXT, LegendKey

MANY_FILES: Final = 1000
_TASK_ROWS: Final = 8  # single pictures that one worker draws at a time
_BAR_TITLES: Final[dict[ColourBy, str]] = {
    "sigma": BAR_TITLE,
    "radius": "radius that holds the true outline 90 times in 100, px in the 1024 frame",
    "organ": "",
}


@dataclass(frozen=True)
class Failure:
    """A row without a picture, and why."""

    source: str
    image_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.image_id}: {self.reason}"


@dataclass
class PictureReport:
    """What was drawn.

    Attributes
    ----------
    rows, resumed_rows
        Rows on pictures, and how many of them an earlier run had drawn.
    files, bytes
        The pictures, and their size.
    assumed
        Rows, drawn by this run, whose position in their image is assumed.
    failures
        Rows without a picture, and why.
    """

    rows: int = 0
    resumed_rows: int = 0
    files: int = 0
    bytes: int = 0
    assumed: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """Pictures that are drawn together, and all that they need; travels to a process."""

    pictures: tuple[Picture, ...]
    out: Path
    options: PictureOptions
    target: Target
    header: _Header


@dataclass(frozen=True)
class _Header:
    """What stands above every picture or page."""

    title: str
    note: str
    legend: tuple[LegendKey, ...]
    vmax_px: float | None
    limits_px: tuple[float, ...]
    drops: bool
    n_pages: int


@dataclass(frozen=True)
class _Drawn:
    """What became of the rows of one picture."""

    rows: int
    failures: tuple[Failure, ...] = ()
    assumed: int = 0
    n_bytes: int = 0
    resumed: bool = False


def draw_pictures(
    plan: PicturePlan,
    *,
    note: str = "",
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> PictureReport:
    """Carry out a plan: draw the pictures, then write ``index.csv``.

    Parameters
    ----------
    plan
        From :func:`cxu.pictureplan.plan_pictures`.
    note
        What is to be said of the table, on every page.
    workers
        Processes to use; the result is the same.
    overwrite
        Remove the pictures of an earlier command first.
    progress
        Called with the number of rows done.

    Raises
    ------
    OutputExistsError
        If the folder holds something else.
    WorkerError
        If a worker was killed; the same call continues.
    """
    folder = PictureFolder(plan.out)
    with held(plan.out):
        folder.claim(plan.record, [picture.path for picture in plan.pictures], overwrite=overwrite)
        report, lost = PictureReport(), set()
        for drawn in run_shards(_draw_task, list(_tasks(plan, note)), workers=workers):
            for one in drawn:
                report.rows += one.rows
                report.resumed_rows += one.rows if one.resumed else 0
                report.files += one.n_bytes > 0
                report.bytes += one.n_bytes
                report.assumed += one.assumed
                report.failures += one.failures
                lost |= {(failure.source, failure.image_id) for failure in one.failures}
                progress(one.rows + len(one.failures))
        keys = zip(plan.index["source"].to_pylist(), plan.index["image_id"].to_pylist(), strict=True)
        folder.write_index(plan.index.filter(pa.array([key not in lost for key in keys], pa.bool_())))
        return report


def draw_picture(
    row: RowPicture, image: ImageFile | None, options: PictureOptions, target: Target
) -> tuple[Image.Image, bool]:
    """Draw one unfiltered row with its title, legend and scale, as a picture of its own shows it.

    Parameters, returns and raises: see :func:`cxu.picturerow.draw_row`.
    """
    has_colours = colour_values(row, options) is not None
    legend, vmax_px = _legend(options, drops=False, has_bands=has_colours), options.scale_px if has_colours else None
    header = _Header("", "", legend, vmax_px, (), drops=False, n_pages=1)
    return _draw_alone(row, image, options, target, header)


def _legend(options: PictureOptions, *, drops: bool, has_bands: bool) -> tuple[LegendKey, ...]:
    organs: tuple[LegendKey, ...] = tuple(organ.name for organ in ORGANS)
    dropped: tuple[LegendKey, ...] = ("confident", "dropped", "unusable") if drops else ()
    band: tuple[LegendKey, ...] = ("band",) if options.band and has_bands else ()
    return (*organs, *dropped, *band)


def _tasks(plan: PicturePlan, note: str) -> list[_Task]:
    header = _Header(
        f"{plan.table_name}: {plan.rows:,} of {plan.table_rows:,} rows",
        note,
        _legend(plan.options, drops=plan.drops, has_bands=plan.without_value < plan.rows),
        plan.options.scale_px if plan.has_colours else None,
        plan.limits_px,
        plan.drops,
        len(plan.pictures),
    )
    step = 1 if plan.options.sheet else _TASK_ROWS
    return [
        _Task(plan.pictures[start : start + step], plan.out, plan.options, plan.target, header)
        for start in range(0, len(plan.pictures), step)
    ]


def _draw_task(task: _Task) -> list[_Drawn]:
    """Draw the pictures of a task, but for those that an earlier run finished."""
    folder, drawn = PictureFolder(task.out), []
    wanted = [picture for picture in task.pictures if not folder.is_finished(picture.path)]
    read = iter(_read_rows([row for picture in wanted for row in picture.rows]))
    for picture in task.pictures:
        path = task.out / picture.path
        if picture not in wanted:
            drawn.append(_Drawn(len(picture.rows), n_bytes=path.stat().st_size, resumed=True))
            continue
        rows = [(chosen, next(read)) for chosen in picture.rows]
        drawn.append(_draw_page(task, folder, picture, rows) if task.options.sheet else _draw_single(task, path, rows))
    return drawn


def _read_rows(chosen: Sequence[ChosenRow]) -> list[RowPicture]:
    """Read rows, each shard once."""
    by_shard: dict[object, list[int]] = {}
    for index, one in enumerate(chosen):
        by_shard.setdefault(one.shard, []).append(index)
    found: dict[int, RowPicture] = {}
    for indices in by_shard.values():
        rows = pa.array([chosen[index].row for index in indices], pa.int64())
        read = RowPicture.all_of(chosen[indices[0]].shard.read(COLUMNS).take(rows))
        found |= dict(zip(indices, read, strict=True))
    return [found[index] for index in range(len(chosen))]


def _draw_single(task: _Task, path: Path, rows: Sequence[tuple[ChosenRow, RowPicture]]) -> _Drawn:
    ((chosen, row),) = rows
    try:
        picture, exact = _draw_alone(row, chosen.image, task.options, task.target, task.header)
    except CxuError as error:
        return _Drawn(0, (_failure(row, error),))
    _save(picture, path)
    return _Drawn(1, assumed=int(not exact), n_bytes=path.stat().st_size)


def _draw_alone(
    row: RowPicture, image: ImageFile | None, options: PictureOptions, target: Target, header: _Header
) -> tuple[Image.Image, bool]:
    picture, exact = draw_row(row, image, options, target, trim=True)
    facts = f"{row.key.source} · {row.facts(drops=header.drops)}".removesuffix(" · ")
    return _with_header([picture], options, header, title=row.key.image_id, subtitle=facts, columns=1), exact


def _draw_page(
    task: _Task, folder: PictureFolder, picture: Picture, rows: Sequence[tuple[ChosenRow, RowPicture]]
) -> _Drawn:
    tiles, failures, assumed = [], [], 0
    for chosen, row in rows:
        title, facts = row.key.image_id, row.facts(drops=task.header.drops, short=True)
        try:
            tile, exact = draw_row(row, chosen.image, task.options, task.target, title=title, subtitle=facts)
            assumed += not exact
        except CxuError as error:
            failures.append(_failure(row, error))
            tile = sheet.message_tile(f"no picture: {error}", task.options.side_px, title=title)
        tiles.append(tile)
    parts = [f"page {picture.page} of {task.header.n_pages}", task.header.note]
    subtitle = " · ".join(part for part in parts if part)
    folder.note_missing(picture.path, [str(failure) for failure in failures])
    path = task.out / picture.path
    options, header = task.options, task.header
    _save(_with_header(tiles, options, header, title=header.title, subtitle=subtitle, columns=options.columns), path)
    return _Drawn(len(rows) - len(failures), tuple(failures), assumed, path.stat().st_size)


def _failure(row: RowPicture, error: CxuError) -> Failure:
    return Failure(row.key.source, row.key.image_id, str(error))


def _with_header(
    tiles: Sequence[Image.Image], options: PictureOptions, header: _Header, *, title: str, subtitle: str, columns: int
) -> Image.Image:
    return sheet.contact_sheet(
        tiles,
        columns=columns,
        title=title,
        subtitle=subtitle,
        legend=header.legend,
        legend_text={**LEGEND_TEXT, "band": _band_text(options)},
        vmax_px=header.vmax_px,
        limit_px=header.limits_px,
        bar_title=_BAR_TITLES[options.colour],
    )


def _band_text(options: PictureOptions) -> str:
    if options.colour == "radius":
        return "± radius" if options.band == 1 else f"± {options.band:g} × radius"
    return f"± {options.band:g} standard deviation{'' if options.band == 1 else 's'}"


def _save(picture: Image.Image, path: Path) -> None:
    with files.replacing(path) as temporary:
        picture.save(temporary, format="PNG")
