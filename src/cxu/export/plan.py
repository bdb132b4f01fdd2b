"""What is exported where: every decision that can be made before the first row is written."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import cxu
from cxu import files
from cxu.catalog import IMAGE_SUFFIXES, FrameName
from cxu.errors import MissingExtraError, OutputExistsError, UsageError
from cxu.maskplan import Block, MaskPlan, plan_masks
from cxu.masks import MaskOptions
from cxu.placing import Target
from cxu.store import StoredTable

ExportFormat = Literal["coco", "csv", "dicomseg", "geojson"]
ExportPolicy = Literal["confident", "full"]

COMMAND: Final = "export"
LINE_SUFFIX: Final = ".geojsonl"
# Suffixes of the file that a format writes; others take a folder.
_SUFFIXES: Final[dict[ExportFormat, tuple[str, ...]]] = {
    "coco": (".json",),
    "csv": (".csv",),
    "dicomseg": (),
    "geojson": (".geojson", ".json", LINE_SUFFIX),
}
_FOLDERS: Final = ("csv", "dicomseg")
_FILE_SUFFIXES: Final = (*IMAGE_SUFFIXES, *(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))
_ONLY: Final[dict[str, ExportFormat]] = {"rle": "coco", "exact": "csv", "nodes": "geojson"}


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is written.

    Attributes
    ----------
    format
        ``coco``, ``csv``, ``dicomseg`` or ``geojson``.
    policy
        ``confident`` draws the polygon through confident nodes, ``full`` through all. None takes ``confident``, and
        ``full`` for ``csv``, which has no other.
    rle
        ``coco``: segmentations as run-length text instead of polygons.
    exact
        ``csv``: predictions in full, instead of rounded as published ones are.
    nodes
        ``geojson``: which nodes a ring goes through, and their uncertainty.
    """

    format: ExportFormat
    policy: ExportPolicy | None = None
    rle: bool = False
    exact: bool = False
    nodes: bool = False

    def __post_init__(self) -> None:
        if self.format not in get_args(ExportFormat):
            raise UsageError(f"format {self.format!r} is unknown; expected {', '.join(get_args(ExportFormat))}")
        if self.policy not in (None, *get_args(ExportPolicy)):
            raise UsageError(
                f"--policy {self.policy}: an export holds outlines; expected {' or '.join(get_args(ExportPolicy))}"
            )
        for name, format_ in _ONLY.items():
            if getattr(self, name) and self.format != format_:
                raise UsageError(f"--{name} goes with --format {format_} only, not with {self.format}")
        if self.format == "csv" and self.policy == "confident":
            raise UsageError(
                "--policy confident does not go with --format csv, which cannot say which nodes are confident: its "
                "masks are drawn through all nodes"
            )

    @property
    def drawn_policy(self) -> ExportPolicy:
        """The policy that is drawn."""
        return self.policy or ("full" if self.format == "csv" else "confident")


@dataclass(frozen=True)
class ExportPlan:
    """Everything decided before the first row is written.

    Attributes
    ----------
    out
        The file, or the folder.
    options
        What was asked for.
    masks
        Which rows are drawn, in blocks, and with which images.
    facts
        What the export says of its table: version, digest, thresholds.
    """

    out: Path
    options: ExportOptions
    masks: MaskPlan
    facts: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows to export."""
        return self.masks.rows

    @property
    def is_folder(self) -> bool:
        """Whether ``out`` is a folder."""
        return self.out.suffix not in _SUFFIXES[self.options.format]

    def numbered(self) -> list[tuple[int, Block]]:
        """Return the blocks, each with the number of its first row, counted from 1."""
        numbered, first = [], 1
        for block in self.masks.blocks:
            numbered.append((first, block))
            first += len(block.rows)
        return numbered


def plan_export(
    stored: StoredTable,
    out: Path,
    options: ExportOptions,
    *,
    images: tuple[str, ...] = (),
    frame: FrameName | None = None,
    cache_folder: Path | None = None,
) -> ExportPlan:
    """Decide what is exported where.

    Parameters
    ----------
    stored
        A selection, a source, predictions or any table in the schema.
    out
        The file to write; for ``dicomseg`` a folder, for ``csv`` either.
    options
        What is exported.
    images
        Folders, globs, lists or zips of the images: outlines are then in the pixels of each image.
    frame
        Export only the rows in this frame.
    cache_folder
        Where the listing of an image folder is kept for the next time; None keeps none.

    Raises
    ------
    UsageError
        If options do not go together, ``out`` has another format's name, or see :func:`cxu.maskplan.plan_masks`.
    DuplicateIdError
        If an image stands twice in the table.
    MissingExtraError
        If the format needs a library that is not installed.
    """
    if options.format == "dicomseg" and importlib.util.find_spec("highdicom") is None:
        raise MissingExtraError("--format dicomseg needs highdicom: pip install 'cxu[dicomseg]'")
    _check_images(options, images)
    _check_name(out, options)
    # "labels" has a path for each row, and two rows for one are refused; one file has no such paths
    drawn_as = MaskOptions(options.drawn_policy, "labels" if options.format == "dicomseg" else "rle")
    masks = plan_masks(stored, out, drawn_as, Target(images), frame=frame, cache_folder=cache_folder)
    return ExportPlan(out, options, masks, _facts(stored, masks, options))


def _check_images(options: ExportOptions, images: tuple[str, ...]) -> None:
    if images and options.format == "csv":
        raise UsageError("--images does not go with --format csv: its rows stay in the pixels of their own frame")
    if not images and options.format == "dicomseg":
        raise UsageError(
            "--format dicomseg needs --images: a segmentation belongs to the DICOM file of its film, from which "
            "patient, study and geometry are taken"
        )


def _check_name(out: Path, options: ExportOptions) -> None:
    suffixes = _SUFFIXES[options.format]
    if out.suffix in suffixes:
        return
    if options.format in _FOLDERS and (out.is_dir() or out.suffix.lower() not in _FILE_SUFFIXES):
        return
    wanted = [f"a file {' or '.join(suffixes)}"] if suffixes else []
    wanted += ["a folder"] if options.format in _FOLDERS else []
    raise UsageError(f"--out {out}: --format {options.format} writes {', or '.join(wanted)}")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there, unless it is to be replaced: it may be anything, and would be lost.

    Raises
    ------
    OutputExistsError
        Naming it.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there: choose another --out, or replace it with --overwrite")


def _facts(stored: StoredTable, masks: MaskPlan, options: ExportOptions) -> dict[str, Any]:
    """Return what an export says of itself: no names of files, no clock times, so that the same gives the same."""
    return {
        "version": cxu.__version__,
        "digest": masks.record["table"],
        "only_frame": masks.record["frame"],
        "policy": options.drawn_policy,
        "thresholds": stored.facts.get("thresholds"),
        "limits_px": stored.facts.get("limits_px"),
        "provenance": masks.record["provenance"],
    }


def folder_record(plan: ExportPlan) -> dict[str, Any]:
    """Return what ``cxu.json`` says of a folder: the same command continues there, another one is refused."""
    held = {key: plan.masks.record[key] for key in ("table", "frame", "target", "schema_version", "cxu_version")}
    wanted = {**held, "command": COMMAND, "options": asdict(plan.options)}
    rest = {key: plan.masks.record[key] for key in ("table_name", "provenance")}
    return {**wanted, "identity": files.hash_of(wanted), **rest}
