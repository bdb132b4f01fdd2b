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

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from cxu import csv_writer, files, films, maskfolder, sheet, store, table
from cxu.anatomy import ORGANS
from cxu.engine import run_shards
from cxu.errors import CxuError, OutputExistsError
from cxu.image_listing import ImageFile
from cxu.maskplan import plan_masks
from cxu.masks import MaskOptions
from cxu.overlay import DEFAULT_VMAX_PX, draw_overlay
from cxu.placing import Target
from cxu.predict_folder import CSV, Key, PredictFolder
from cxu.rasterize import rasterize_table

MASKS: Final = "masks"
OVERLAY_PX: Final = 900
_STROKE: Final = 0.4  # a large picture is looked at for where the contour lies

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
    file: ImageFile
    title: str
    landmarks_xy: np.ndarray[Any, Any]
    sigma_px: np.ndarray[Any, Any] | None


def _overlay_tasks(
    folder: PredictFolder, stored: store.StoredTable, wanted: Mapping[Key, ImageFile]
) -> Iterator[_Picture]:
    for shard in stored.shards():
        rows = shard.read(("source", "image_id", "landmarks_xy", "sigma_model_px"))
        keys = list(zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
        if wanted.keys().isdisjoint(keys):
            continue
        landmarks, sigma = table.landmarks_of(rows), table.list_column(rows, "sigma_model_px")
        for row, key in enumerate(keys):
            if key in wanted:
                known = None if np.isnan(sigma[row]).any() else sigma[row]
                yield _Picture(folder.overlay_path(key).absolute(), wanted[key], key[1], landmarks[row], known)


def _draw_picture(task: _Picture) -> str | None:
    """Draw one picture; return what was wrong with its image, None where nothing was."""
    try:
        film = films.read_film(task.file, even_flat=True)
    except CxuError as error:
        return str(error)
    grey = np.rint(films.unit_grey(film.grey) * 255).astype(np.uint8)
    picture = draw_prediction(grey, task.landmarks_xy, task.sigma_px, aspect=film.aspect, title=task.title)
    with files.replacing(task.path) as temporary:
        picture.save(temporary, format="PNG")
    return None


def draw_prediction(
    grey: np.ndarray[Any, Any],
    landmarks_xy: np.ndarray[Any, Any],
    sigma_px: np.ndarray[Any, Any] | None,
    *,
    aspect: float = 1.0,
    title: str = "",
) -> Image.Image:
    """Return an image with its contours coloured by uncertainty, a legend and a scale.

    Parameters
    ----------
    grey
        uint8 [H, W].
    landmarks_xy
        [120, 2] (x, y) in px of the image.
    sigma_px
        Node uncertainty [120] in px of the 1024 model frame; None draws contours in the organs' colours.
    aspect
        Height of an image pixel over its width.
    title
        Stands above.
    """
    height, width = grey.shape
    tile = draw_overlay(
        grey,
        landmarks_xy * (1.0, aspect),
        sigma_px,
        frame_hw=(round(height * aspect), width),
        size=OVERLAY_PX,
        stroke=_STROKE,
    )
    score = "" if sigma_px is None else f"image score {float(np.mean(sigma_px)):.1f} px"
    return sheet.contact_sheet(
        [tile],
        title=title,
        subtitle=score,
        legend=[organ.name for organ in ORGANS],
        vmax_px=None if sigma_px is None else DEFAULT_VMAX_PX,
    )
