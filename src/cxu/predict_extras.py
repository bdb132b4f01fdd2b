"""What is written beside a table of predictions: a CSV in the published columns, pictures, masks.

All of it is made from the table, so it can be asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cxu import csv_writer, files, maskfolder, store
from cxu.engine import run_shards
from cxu.errors import CxuError, OutputExistsError
from cxu.image_listing import ImageFile
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.pictureplan import PictureOptions
from cxu.picturerow import COLUMNS, RowPicture
from cxu.pictures import draw_picture
from cxu.placing import Target
from cxu.predict_folder import CSV, Key, PredictFolder
from cxu.rasterize import rasterize_table

MASKS: Final = "masks"
_MASK_OPTIONS: Final = MaskOptions("full")
_FEW_OVERLAYS: Final = 8  # below, starting processes takes longer than drawing

Advance = Callable[[int], None]
ProgressBar = Callable[[str, int], AbstractContextManager[Advance]]


def no_progress(verb: str, total: int) -> AbstractContextManager[Advance]:
    """Show nothing."""
    del verb, total
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Extras:
    """What is to be written beside the table."""

    csv: bool = False
    overlays: bool = False
    masks: bool = False


@dataclass(frozen=True)
class Drawers:
    """Who draws: processes of this machine, or the workers of a Dask cluster."""

    workers: int = 1
    scheduler: str | None = None


_ALONE: Final = Drawers()


@dataclass
class Written:
    """What was written beside the table.

    Attributes
    ----------
    csv, overlays, masks
        The files, and the folder of masks.
    undrawn
        Images without a picture or mask that was asked for, and what else went wrong.
    outdated
        What an earlier call wrote and this one was not asked to bring up to date.
    """

    csv: list[Path] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)
    masks: Path | None = None
    undrawn: list[str] = field(default_factory=list)
    outdated: list[Path] = field(default_factory=list)


def write_extras(
    folder: PredictFolder,
    images: Mapping[Key, ImageFile],
    new: set[Key],
    extras: Extras,
    written: Written,
    *,
    drawers: Drawers = _ALONE,
    progress: ProgressBar = no_progress,
) -> None:
    """Write what is asked for, and note it in ``written`` as it comes about.

    Parameters
    ----------
    folder
        Claimed and joined.
    images
        The images asked for that have a row.
    new
        Those of them that this run predicted.
    extras, written
        What to write, and what was.
    drawers, progress
        Who draws, and what tells how far they are.
    """
    stored = store.open_table(folder.path)
    if extras.csv:
        written.csv = _write_csv(stored, folder)
    elif new:
        written.outdated += folder.csv_paths()
    if extras.overlays:
        _draw_pictures(stored, folder, images, new, written, drawers, progress)
    if extras.masks and stored.rows:
        _draw_masks(stored, folder.out / MASKS, written, drawers, progress)
    elif new and (folder.out / MASKS / files.RECORD).is_file():
        written.outdated.append(folder.out / MASKS)


def _draw_pictures(
    stored: store.StoredTable,
    folder: PredictFolder,
    images: Mapping[Key, ImageFile],
    new: set[Key],
    written: Written,
    drawers: Drawers,
    progress: ProgressBar,
) -> None:
    written.overlays = [folder.overlay_path(key) for key in images]
    wanted = {key: file for key, file in images.items() if key in new or not folder.overlay_path(key).is_file()}
    tasks = list(_overlay_tasks(folder, stored, wanted))
    who = drawers if len(tasks) > _FEW_OVERLAYS else _ALONE
    with (
        progress("drawing pictures", len(tasks)) as advance,
        closing(run_shards(_draw_picture, tasks, workers=who.workers, scheduler=who.scheduler)) as problems,
    ):
        for problem in problems:
            written.undrawn += [problem] if problem else []
            advance(1)


def _draw_masks(
    stored: store.StoredTable, out: Path, written: Written, drawers: Drawers, progress: ProgressBar
) -> None:
    written.masks = out
    plan, held = plan_masks(stored, out, _MASK_OPTIONS, Target()), files.read_record(out)
    # where rows were added, what was drawn before them is drawn again, from the same landmarks
    is_other = held is not None and held.get("identity") != plan.record["identity"]
    with progress("drawing masks", plan.rows) as advance:
        drawn = rasterize_table(
            plan, workers=drawers.workers, scheduler=drawers.scheduler, overwrite=is_other, progress=advance
        )
    written.undrawn += [str(failure) for failure in drawn.failures]


def _write_csv(stored: store.StoredTable, folder: PredictFolder) -> list[Path]:
    """Write the table in the published columns: one file, or one for each source where there are several."""
    sources = sorted(
        {name for shard in stored.shards() for name in shard.read(["source"])["source"].unique().to_pylist()}
    )
    out = folder.out
    paths = [out / CSV] if len(sources) <= 1 else [out / f"predictions-{source}.csv" for source in sources]
    for path in folder.csv_paths():
        if path not in paths:
            path.unlink()
    for path, source in zip(paths, sources or [""], strict=True):
        batches = (shard.read() for shard in stored.shards())
        csv_writer.write_published((rows.filter(pc.equal(rows["source"], source)) for rows in batches), path)
    return paths


def _is_ours(held: dict[str, Any]) -> bool:
    """Tell whether masks were drawn as :func:`write_extras` draws them, of whatever state of the table."""
    drawn_as = {"options": asdict(_MASK_OPTIONS), "target": asdict(Target())}
    return all(held.get(part) == json.loads(json.dumps(value)) for part, value in drawn_as.items())


def check_masks(masks: Path) -> None:
    """Refuse, before the work, a folder whose masks were drawn otherwise: they are the user's.

    Raises
    ------
    OutputExistsError
        Where it is one.
    """
    held = files.read_record(masks)
    if held is not None and not _is_ours(held):
        raise OutputExistsError(
            f"{masks} holds the masks of another command: move them away, or leave --masks out and draw with "
            "cxu rasterize"
        )


def clear_masks(masks: Path) -> None:
    """Remove the masks that predict drew; what others drew stays."""
    held = files.read_record(masks)
    if held is not None and _is_ours(held):
        maskfolder.MaskFolder(masks).clear()


@dataclass(frozen=True, eq=False)
class _Picture:
    """One picture to draw: travels to a process."""

    path: Path
    image: ImageFile
    row: RowPicture


def _overlay_tasks(
    folder: PredictFolder, stored: store.StoredTable, wanted: Mapping[Key, ImageFile]
) -> Iterator[_Picture]:
    for shard in stored.shards():
        keys = shard.read(("source", "image_id"))
        names = list(zip(keys["source"].to_pylist(), keys["image_id"].to_pylist(), strict=True))
        chosen = [row for row, key in enumerate(names) if key in wanted]
        if not chosen:
            continue
        rows = RowPicture.all_of(shard.read(COLUMNS).take(pa.array(chosen)))
        for key, row in zip((names[index] for index in chosen), rows, strict=True):
            yield _Picture(folder.overlay_path(key).absolute(), wanted[key], row)


def _draw_picture(task: _Picture) -> str | None:
    """Draw one picture; return what was wrong with its image, None where nothing was."""
    try:
        picture, _ = draw_picture(task.row, task.image, PictureOptions(), Target())
    except CxuError as error:
        return str(error)
    with files.replacing(task.path) as temporary:
        picture.save(temporary, format="PNG")
    return None
