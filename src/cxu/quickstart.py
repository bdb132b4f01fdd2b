"""The main job, offline, on an embedded synthetic sample: import, filter, rasterize, look.

Every step is the real command line, run in a folder as a user would, and the last is a contact sheet.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from PIL import Image

from cxu import files, raster, sheet, store, table
from cxu.anatomy import N_ORGANS
from cxu.errors import CxuError, UsageError
from cxu.overlay import draw_overlay
from cxu.phantom import synthetic_background

SAMPLE: Final = "sample_synthetic.csv"
SHEET: Final = "quickstart.png"
_SOURCE: Final = "synthetic"
_LIMIT_PX: Final = 5
_TILE_PX: Final = 320
_VMAX_PX: Final = 12.0  # the made-up uncertainties are small
_BANDS: Final = "masks-ignore"


@dataclass(frozen=True)
class Step:
    """One command of the quickstart: what it does, and its arguments after ``cxu``."""

    title: str
    arguments: tuple[str, ...]

    @property
    def command_line(self) -> str:
        """The command as a user types it."""
        return shlex.join(("cxu", *self.arguments))


STEPS: Final = (
    Step(
        "Import 24 synthetic rows in the published columns",
        ("import", SAMPLE, "--source", _SOURCE, "--frame", "model"),
    ),
    Step(f"Keep nodes with an uncertainty of at most {_LIMIT_PX} px", ("filter", "--max-std", str(_LIMIT_PX))),
    Step("Draw the confident lungs and heart", ("rasterize", "--out", "masks/")),
    Step(
        "Draw the whole organs, with a band to ignore where the contour is uncertain",
        ("rasterize", "--policy", "ignore", "--out", f"{_BANDS}/"),
    ),
)


def run_quickstart(folder: Path, announce: Callable[[Step], None], *, quiet: bool = False) -> Path:
    """Run the steps in ``folder`` and return the path of the contact sheet.

    Parameters
    ----------
    folder
        Created where missing; what an earlier quickstart left there is reused.
    announce
        Called with each step before it runs.
    quiet
        Keep the commands' results off stdout.

    Raises
    ------
    UsageError
        If the folder holds a home with other sources: the filter would take them in.
    CxuError
        If a command fails; its own message went to stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder)
    sample = package_files("cxu").joinpath(f"data/{SAMPLE}").read_bytes()
    files.write_bytes(folder / SAMPLE, sample)
    environment = {name: value for name, value in os.environ.items() if name != "CXU_HOME"}
    for step in STEPS:
        announce(step)
        done = subprocess.run(  # noqa: S603 - our own command line, fixed arguments
            # -P: a random.py in the user's folder is none of Python's
            [sys.executable, "-P", "-m", "cxu", *step.arguments],
            cwd=folder,
            env=environment,
            check=False,
            stdout=subprocess.DEVNULL if quiet else None,
        )
        if done.returncode:
            raise CxuError(f"{step.command_line} ended with exit code {done.returncode}")
    path = folder / SHEET
    with files.replacing_output(path) as temporary:
        draw_sheet(folder).save(temporary, format="PNG")
    return path


def _check_folder(folder: Path) -> None:
    others = {listing.source for listing in store.Home(folder / "cxu-data").listings()} - {_SOURCE}
    if others:
        raise UsageError(
            f"{folder} holds a home with {', '.join(sorted(others))}: the quickstart would filter these too; give it a "
            "folder of its own"
        )


def draw_sheet(folder: Path) -> Image.Image:
    """Return the contact sheet of the quickstart in ``folder``: every row with its nodes, organs and ignore band."""
    home = store.Home(folder / "cxu-data")
    rows, selected = home.open(_SOURCE).read(), home.open().read()
    kept = {image_id: index for index, image_id in enumerate(selected["image_id"].to_pylist())}
    tiles = [
        _draw_tile(folder, rows, row, selected, kept.get(image_id))
        for row, image_id in enumerate(rows["image_id"].to_pylist())
    ]
    return sheet.contact_sheet(
        tiles,
        title=f"{len(rows)} synthetic rows, filtered with --max-std {_LIMIT_PX}: {len(kept)} kept",
        subtitle="No row describes a person: outlines come from a shape model, standard deviations are made up, "
        "the grey pictures are drawn.",
        footer=" · ".join(step.command_line for step in STEPS),
        vmax_px=_VMAX_PX,
        limit_px=_LIMIT_PX,
    )


def _draw_tile(folder: Path, rows: pa.Table, row: int, selected: pa.Table, kept_row: int | None) -> Image.Image:
    image_id = rows["image_id"][row].as_py()
    landmarks, sigma = table.landmarks_of(rows)[row], table.list_column(rows, "sigma_model_px")[row]
    background = synthetic_background(landmarks, _TILE_PX, np.random.default_rng(row))
    if kept_row is None:
        confident, usable, labels = sigma <= _LIMIT_PX, np.zeros(N_ORGANS, np.bool_), None
        subtitle = "left out: no usable organ"
    else:
        confident, usable = table.confident_of(selected)[kept_row], table.usable_of(selected)[kept_row]
        labels = raster.decode_png((folder / _BANDS / _SOURCE / f"{image_id}.png").read_bytes())
        subtitle = f"{confident.sum()} of {confident.size} nodes, {usable.sum()} of {usable.size} organs"
    return draw_overlay(
        background,
        landmarks,
        sigma,
        confident=confident,
        usable=usable,
        labels=labels,
        size=_TILE_PX,
        title=image_id,
        subtitle=subtitle,
        vmax_px=_VMAX_PX,
    )
