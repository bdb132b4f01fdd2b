"""A check as files: a line a row, and contact sheets of the films with what the table and the network have there.

::

    <out>/cxu.json        what was looked at, and the files below; another check replaces them
    <out>/check.csv       a line a row
    <out>/sheet-001.png   the films, the worst first
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
from PIL import Image, ImageDraw

from cxu import __version__, files, films, sheet
from cxu.anatomy import ORGANS
from cxu.canvas import INK, SUPERSAMPLE, Canvas, add_caption, as_points
from cxu.check.plan import CheckPlan, SampledRow, plain_text
from cxu.check.rows import RowCheck
from cxu.check.run import CheckReport
from cxu.check.verdict import VERDICTS
from cxu.errors import CxuError, OutputExistsError
from cxu.overlay import draw_overlay
from cxu.picturerow import grey_levels

FloatArray = npt.NDArray[np.floating]

COMMAND: Final = "check"
TABLE: Final = "check.csv"
COLUMNS: Final = 6
ROWS: Final = 4
TILE_PX: Final = 320
_LINE: Final = 0.006  # of a tile: the outlines seen
_MEASURED: Final = ("ok", "size", "unlike", "shifted", "scaled")
_FOOTER: Final = (
    "Filled: the table's outlines. White lines: what the bundled network sees on that film. Sides are the patient's. "
    "Shifts in px of the 1024 model frame. Research and education only; not a medical device."
)


def claim_folder(out: Path) -> None:
    """Make sure that a check may be written into a folder; an earlier one there goes when this one is written.

    Raises
    ------
    OutputExistsError
        If it is a file, or holds something that cxu check did not write.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"--out {out} is a file; expected a folder")
    held = files.read_record(out)
    if held is not None and held.get("command") not in (COMMAND, None):
        raise OutputExistsError(f"{out} was made by cxu {held['command']}: choose another --out")
    if held is None and out.is_dir() and any(not path.name.startswith(files.TEMP_PREFIX) for path in out.iterdir()):
        raise OutputExistsError(f"{out} is not empty and was not made by cxu check: choose another --out")


def write_check(
    report: CheckReport,
    plan: CheckPlan,
    out: Path,
    *,
    pages: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Path]:
    """Write a check into a folder that :func:`claim_folder` has let through, and return its files.

    Parameters
    ----------
    report, plan
        What was found, and of what.
    out
        The folder; files of an earlier check there are removed first.
    pages
        Contact sheets at most, each of 24 films; 0 for none.
    progress
        Called with how many films more are drawn.
    """
    order = worst_first(report.rows)[: pages * COLUMNS * ROWS]
    starts = range(0, len(order), COLUMNS * ROWS)
    sheets = [f"sheet-{number:03}.png" for number in range(1, len(starts) + 1)]
    out.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(out)
    for name in (files.read_record(out) or {}).get("files", []):
        (out / files.safe_relative(str(name))).unlink(missing_ok=True)
    files.write_json(out / files.RECORD, _record(plan, [TABLE, *sheets]))
    with files.replacing(out / TABLE) as temporary:
        pa_csv.write_csv(check_rows(report.rows), temporary)
    for name, start in zip(sheets, starts, strict=True):
        page = order[start : start + COLUMNS * ROWS]
        tiles = list(_tiles(report, plan, page, progress))
        subtitle = f"page {start // (COLUMNS * ROWS) + 1} of {len(sheets)}, the worst first"
        _write_sheet(out / name, tiles, title=_title(report, plan), subtitle=subtitle)
    return [out / name for name in (TABLE, *sheets)]


def _record(plan: CheckPlan, names: Sequence[str]) -> dict[str, Any]:
    return {
        "command": COMMAND,
        "tables": list(plan.tables),
        "images": [plain_text(text) for text in plan.images],
        "rows": len(plan.rows),
        "seed": plan.seed,
        "files": list(names),
        "cxu_version": __version__,
    }


def worst_first(rows: Sequence[RowCheck]) -> list[int]:
    """Return the places of rows by their verdicts, the worst first, and within one by how far off they are."""

    def badness(row: RowCheck) -> tuple[int, float]:
        fit = row.comparison.fit
        off = np.hypot(*fit.shift_xy) + fit.residual_px
        return VERDICTS.index(row.verdict), -float(np.nan_to_num(off, nan=0.0))

    return sorted(range(len(rows)), key=lambda place: badness(rows[place]))


def check_rows(rows: Sequence[RowCheck]) -> pa.Table:
    """Return a line a row: keys, verdict, sizes, and how the outlines lie; null where unknown."""
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "source": (pa.string(), [row.source for row in rows]),
        "image_id": (pa.string(), [row.image_id for row in rows]),
        "file": (pa.string(), [row.file for row in rows]),
        "verdict": (pa.string(), [row.verdict for row in rows]),
        "reason": (pa.string(), [row.reason for row in rows]),
        "size": (pa.string(), [row.sizes.kind for row in rows]),
        "likely": (pa.string(), [row.sizes.likely or None for row in rows]),
        **_sides_of("", [row.sizes.image_hw for row in rows]),
        **_sides_of("recorded_", [row.sizes.recorded_hw for row in rows]),
        "size_factor": (pa.float64(), [row.sizes.factor for row in rows]),
        "shift_x_px": (pa.float64(), [row.comparison.fit.shift_xy[0] for row in rows]),
        "shift_y_px": (pa.float64(), [row.comparison.fit.shift_xy[1] for row in rows]),
        "scale_x": (pa.float64(), [row.comparison.fit.scale_xy[0] for row in rows]),
        "scale_y": (pa.float64(), [row.comparison.fit.scale_xy[1] for row in rows]),
        "residual_px": (pa.float64(), [row.comparison.fit.residual_px for row in rows]),
        "mirrored_residual_px": (pa.float64(), [row.comparison.mirrored.residual_px for row in rows]),
        "names_exchanged": (pa.bool_(), [row.comparison.names_exchanged for row in rows]),
        "side_odds": (pa.float64(), [row.comparison.side_odds for row in rows]),
        "film_mirrored": (pa.bool_(), [row.comparison.is_mirrored for row in rows]),
        "quality": (pa.string(), [row.comparison.quality for row in rows]),
        "quality_reason": (pa.string(), [row.comparison.reason for row in rows]),
    }
    return pa.table({name: _array(values, kind) for name, (kind, values) in columns.items()})


def _sides_of(prefix: str, shapes: Sequence[tuple[int, int] | None]) -> dict[str, tuple[pa.DataType, list[Any]]]:
    return {
        f"{prefix}{name}": (pa.int32(), [shape and shape[axis] for shape in shapes])
        for axis, name in enumerate(("height", "width"))
    }


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        return pa.array(np.round(np.array(values, np.float64), 3), kind, from_pandas=True)
    return pa.array(values, kind)


def _title(report: CheckReport, plan: CheckPlan) -> str:
    good = sum(row.verdict == "ok" for row in report.rows)
    return f"cxu check, {', '.join(plan.tables)}: {good:,} of {len(report.rows):,} films fit"


def _tiles(
    report: CheckReport, plan: CheckPlan, places: Sequence[int], progress: Callable[[int], None]
) -> Iterator[Image.Image]:
    for place in places:
        yield draw_tile(report.rows[place], plan.rows[place])
        progress(1)


def draw_tile(row: RowCheck, sampled: SampledRow, size: int = TILE_PX) -> Image.Image:
    """Return a film with the table's outlines filled and those seen as white lines, verdict and numbers below."""
    title, caption = row.image_id, _caption(row)
    try:
        film = films.read_film(sampled.image, even_flat=True)
    except CxuError as error:
        return sheet.message_tile(f"{row.verdict}: {error}", size, title=title)
    height, width = film.shape_hw
    frame_hw, square = (max(round(height * film.aspect), 1), width), np.array([1.0, film.aspect])
    unknown = np.full((ORGANS[-1].stop, 2), np.nan)
    points = unknown if row.points_xy is None else np.asarray(row.points_xy, np.float64)
    picture = draw_overlay(grey_levels(film), points * square, frame_hw=frame_hw, size=size, stroke=0.75)
    if row.seen_xy is not None:
        picture = _with_lines(picture, np.asarray(row.seen_xy, np.float64) * square, frame_hw)
    return add_caption(picture, title, caption)


def _with_lines(picture: Image.Image, points_xy: FloatArray, frame_hw: tuple[int, int]) -> Image.Image:
    """Return a picture of a frame with thin white lines along the outlines."""
    canvas = Canvas.blank(picture.width, frame_hw, 1.0)
    mask = Image.new("L", canvas.image.size, 0)
    draw = ImageDraw.Draw(mask)
    for organ in ORGANS:
        ring = canvas.place(points_xy[organ.nodes])
        if np.isfinite(ring).all():
            draw.line(as_points([*ring, ring[0]]), fill=230, width=canvas.stroke_width(_LINE), joint="curve")  # type: ignore[arg-type]
    lines = mask.reduce(SUPERSAMPLE)
    picture.paste(INK, (0, 0), lines)
    return picture


def _caption(row: RowCheck) -> str:
    fit = row.comparison.fit
    parts: list[str] = [row.verdict]
    if np.isfinite(fit.residual_px) and row.verdict in _MEASURED:
        x, y = (round(value) for value in fit.shift_xy)
        parts += [f"shift {x:+d}, {y:+d}", f"scale {fit.scale_xy[0]:.2f}, {fit.scale_xy[1]:.2f}"]
    elif row.reason:
        parts.append(row.reason)
    return " · ".join(parts)


def _write_sheet(path: Path, tiles: Sequence[Image.Image], *, title: str, subtitle: str) -> None:
    made = sheet.contact_sheet(
        tiles,
        columns=COLUMNS,
        title=title,
        subtitle=subtitle,
        footer=_FOOTER,
        legend=tuple(organ.name for organ in ORGANS),
        vmax_px=None,
    )
    with files.replacing(path) as temporary:
        made.save(temporary, format="PNG")


def as_json(report: CheckReport, plan: CheckPlan) -> dict[str, Any]:
    """Return what ``--json`` prints of a check; JSON has no NaN, so what is unknown is None."""
    return {
        "fits": report.fits,
        "tables": list(plan.tables),
        "images": [plain_text(text) for text in plan.images],
        "rows": plan.total,
        "with_image": plan.with_image,
        "looked_at": len(report.rows),
        "network": report.with_network,
        "sources": [source.as_json() for source in report.sources],
        "other_names": [one._asdict() for one in plan.other_names],
    }
