"""The published CSV columns → rows of the one table; pure functions over batches of text.

``resolve_columns`` says which column plays which role; ``convert_rows`` turns a batch of text into rows, reasons why
some are none, and counts of what was noticed.

Source: the published tables and their known defects, ``docs/datasets.md``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import codec, table
from cxu.anatomy import N_NODES
from cxu.catalog import FrameName, Source, normalise_name
from cxu.errors import FormatError
from cxu.frame import MODEL_SIZE

N_PUBLISHED_SAMPLES: Final = 50
_N_COORDINATES: Final = 2 * N_NODES
# How far landmarks may leave the image, as a share of its side: beyond the first the row is noted, beyond the second it
# cannot be in these pixels at all.
_SLACK: Final = 0.025
_IMPOSSIBLE: Final = 0.25
_MAX_SIDE: Final = 65_535  # the largest that DICOM can state
_BLANKS: Final = ("", "nan", "none", "null", "na", "n/a")

NOT_MODEL_FRAME: Final = "is no model frame, expected 1024 × 1024; for original resolution use --frame image"

Texts = Mapping[str, pa.Array]
Floats = npt.NDArray[np.float64]

# Role → the names that published files and their users gave the column, best first.
ROLE_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "rca_mean": ("Dice RCA (Mean)",),
    "rca_max": ("Dice RCA (Max)",),
    "landmarks": ("Landmarks (Mean)", "Landmark (Mean)", "Landmarks", "Mean"),
    "sigma": ("Landmarks (Std)", "Landmark (Std)", "Std"),
    "latent": ("latents",),
    "height": ("Height",),
    "width": ("Width",),
    "rle_right_lung": ("Right Lung", "RL_Mean"),
    "rle_left_lung": ("Left Lung", "LL_Mean"),
    "rle_heart": ("Heart", "H_Mean"),
}


@dataclass(frozen=True)
class Provenance:
    """Where a file came from, as recorded in every row."""

    sha256: str | None = None
    repo: str | None = None
    revision: str | None = None


# What the notes of a report mean, for people.
NOTE_TEXTS: Final[dict[str, str]] = {
    "rca_swapped": "RCA mean and max were exchanged in the file; sorted and flagged in rca_swapped",
    "size_exchanged": "height and width were exchanged in the file; put right by the landmarks",
    "size_blank": "the file gives no height and width; their scale is unknown",
    "size_assumed": "the file gives no height and width; 1024 taken, as the frame says",
    "out_of_frame": f"landmarks leave the image by more than {_SLACK:.1%} of its side",
    "blank_lines": "blank lines, skipped",
    "looks_preprocessed": "the size is 1024 × 1024: if this is the Preprocessed file, import it with --frame model",
}


def resolve_columns(header: list[str], first_row: list[str], source: Source) -> dict[str, int]:
    """Return which column plays which role: ``id``, ``landmarks`` and whatever else of :data:`ROLE_NAMES` is there.

    Names are compared without case and punctuation; pandas' duplicates (``Mean.1``) count as their base name. Where
    several columns could play a role, the first whose first value looks like it does.

    Raises
    ------
    FormatError
        If there is no id or no landmarks column; the message lists the columns found.
    """
    columns = {
        role: _pick(header, first_row, names, role) for role, names in {"id": source.id_columns, **ROLE_NAMES}.items()
    }
    for role, expected in (("id", source.id_columns), ("landmarks", ROLE_NAMES["landmarks"])):
        if columns[role] is None:
            raise FormatError(
                f"no column for the {role} of {source.title}: expected {' or '.join(map(repr, expected))}, "
                f"found {', '.join(map(repr, header))}"
            )
    return {role: index for role, index in columns.items() if index is not None}


def _pick(header: list[str], first_row: list[str], names: tuple[str, ...], role: str) -> int | None:
    bases = [normalise_name(name.rsplit(".", 1)[0] if name.rsplit(".", 1)[-1].isdigit() else name) for name in header]
    ranked = [index for name in names for index, base in enumerate(bases) if base == normalise_name(name)]
    fitting = [index for index in ranked if index < len(first_row) and _looks_like(first_row[index], role)]
    return next(iter(fitting or ranked), None)


def _looks_like(text: str, role: str) -> bool:
    """Tell whether a value may play a role, by how many numbers it holds."""
    if role == "id":
        return bool(text.strip())
    n_values = len(text.replace(",", " ").split())
    if role in ("landmarks", "sigma"):
        return n_values >= _N_COORDINATES // 2
    return n_values > 1 if role == "latent" or role.startswith("rle_") else n_values <= 1


class _Rows:
    """A batch under conversion: which rows are still good, why others are not, and what was noticed."""

    def __init__(self, n_rows: int) -> None:
        self.reasons: list[str] = [""] * n_rows
        self.notes: Counter[str] = Counter()

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        return np.array([not reason for reason in self.reasons], np.bool_)

    def reject(self, bad: npt.NDArray[np.bool_], explain: Callable[[int], str]) -> None:
        """Give each row of ``bad`` a reason, unless it has one."""
        for index in np.flatnonzero(bad):
            self.reasons[index] = self.reasons[index] or explain(int(index))

    def note(self, name: str, where: npt.NDArray[np.bool_]) -> None:
        """Count the good rows of ``where`` under a note."""
        count = int((where & self.good).sum())
        if count:
            self.notes[name] += count


def convert_rows(
    texts: Texts, source: Source, frame: FrameName | None, provenance: Provenance
) -> tuple[pa.Table, list[str], Counter[str]]:
    """Convert a batch of published text into rows of the one table.

    Parameters
    ----------
    texts
        Role → binary array [n], as named by :func:`resolve_columns`.
    source, frame, provenance
        What the rows are of. ``frame`` None rejects every row whose stated size is not 1024.

    Returns
    -------
    rows, reasons, notes
        The good rows in the table's schema; for each of the n rows the reason it is not among them, or ""; counts of
        what was noticed in the good rows (:data:`NOTE_TEXTS`).
    """
    n_rows = len(texts["id"])
    state = _Rows(n_rows)
    ids, patients = _convert_ids(texts["id"], source, state)
    landmarks = _convert_numbers(texts, "landmarks", _N_COORDINATES, state)
    sigma = _convert_numbers(texts, "sigma", _N_COORDINATES, state)
    state.reject(np.any(sigma < 0, axis=1), lambda row: f"standard deviation {np.nanmin(sigma[row]):g} is negative")
    sizes = _convert_sizes(texts, landmarks.reshape(n_rows, N_NODES, 2), source, frame, state)
    columns = {
        "source": source.name,
        "image_id": ids,
        "patient_id": patients,
        "frame": frame or "model",
        "landmarks_xy": landmarks,
        **sizes,
        **table.sigma_columns(sigma.reshape(n_rows, N_NODES, 2), None if frame != "image" else sizes["frame_side"]),
        **_convert_rca(texts, state),
        "latent_sigma": _convert_numbers(texts, "latent", table.N_LATENT, state) if "latent" in texts else None,
        "model_id": table.PUBLISHED_MODEL,
        "n_samples": N_PUBLISHED_SAMPLES if "sigma" in texts else None,
        "repo": provenance.repo,
        "revision": provenance.revision,
        "file_sha256": provenance.sha256,
        **{name: _convert_text(texts, name, state) for name in table.RLE_COLUMNS if name in texts},
    }
    rows = table.build_table(columns, n_rows).filter(pa.array(state.good))
    return rows, state.reasons, state.notes


def _convert_ids(texts: pa.Array, source: Source, state: _Rows) -> tuple[list[str], list[str | None]]:
    ids = [(text or b"").decode("utf-8", "replace") for text in texts.to_pylist()]
    state.reject(np.array([not text.strip() for text in ids], bool), lambda _: f"the id ({source.id_column}) is blank")
    state.reject(np.array(["�" in text for text in ids], bool), lambda row: f"the id {ids[row]!r} is not UTF-8 text")
    canonical = [source.canonical_id(text) for text in ids]
    return canonical, [source.patient_id(text) for text in canonical]


def _convert_numbers(texts: Texts, role: str, count: int, state: _Rows) -> npt.NDArray[np.float32]:
    """Return float32 [n, count]; NaN throughout where the file has no such column."""
    if role not in texts:
        return np.full((len(texts["id"]), count), np.nan, np.float32)
    values, valid = codec.parse_number_rows(texts[role], count)
    state.reject(~valid, lambda row: f"{role}: {codec.explain_numbers(texts[role][row].as_py(), count)}")
    return values


def _convert_scalars(texts: Texts, role: str, state: _Rows) -> Floats:
    """Return float64 [n] of a column with one number a row; NaN where blank or where the column is missing."""
    values = np.full(len(texts["id"]), np.nan)
    if role not in texts:
        return values
    with contextlib.suppress(pa.ArrowInvalid):  # as nearly every column is: plain numbers, or blank where unknown
        column = texts[role]
        known = pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)
        return known.cast(pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)
    for index, raw in enumerate(texts[role].to_pylist()):
        text = (raw or b"").decode("utf-8", "replace").strip()
        if text.lower() in _BLANKS:
            continue
        try:
            values[index] = float(text.replace("_", "?"))  # Python reads 1_024 as a number, files don't mean it
        except ValueError:
            state.reasons[index] = state.reasons[index] or f"{role} is {text[:20]!r}, not a number"
    return values


def _convert_text(texts: Texts, role: str, state: _Rows) -> pa.Array:
    """Return a column as it is, its rows rejected where they are not UTF-8 (U+FFFD stands for what was not)."""
    try:
        column = texts[role].cast(pa.large_string())
    except pa.ArrowInvalid:
        column = pa.array(
            [(raw or b"").decode("utf-8", "replace") for raw in texts[role].to_pylist()], pa.large_string()
        )
    is_foreign = pc.match_substring(column, "�").fill_null(False).to_numpy(zero_copy_only=False)
    state.reject(is_foreign, lambda _: f"{role} is not UTF-8 text")
    return column


def _convert_rca(texts: Texts, state: _Rows) -> dict[str, npt.NDArray[np.generic]]:
    """Return the RCA columns, mean and max sorted: part of PadChest has them exchanged."""
    mean, highest = (_convert_scalars(texts, role, state) for role in ("rca_mean", "rca_max"))
    for role, values in (("rca_mean", mean), ("rca_max", highest)):
        outside = ~np.isnan(values) & ~((values >= 0) & (values <= 1))
        state.reject(outside, lambda row, r=role, v=values: f"{r} is {v[row]:g}, not within 0 to 1")  # type: ignore[misc]
    swapped = highest < mean
    state.note("rca_swapped", swapped)
    return {
        "rca_mean": np.where(swapped, highest, mean).astype(np.float32),
        "rca_max": np.where(swapped, mean, highest).astype(np.float32),
        "rca_swapped": swapped,
    }


def _convert_stated_sizes(texts: Texts, state: _Rows) -> tuple[Floats, Floats]:
    """Return height and width as the file states them; NaN where blank or no size of an image."""
    height, width = (_convert_scalars(texts, role, state) for role in ("height", "width"))
    bad_height, bad_width = (
        ~np.isnan(size) & ((size < 1) | (size > _MAX_SIDE) | (size != np.rint(size))) for size in (height, width)
    )
    state.reject(bad_height | bad_width, lambda row: f"size {height[row]:g} × {width[row]:g} is no image size")
    return np.where(bad_height, np.nan, height), np.where(bad_width, np.nan, width)


def _convert_sizes(
    texts: Texts, landmarks_xy: npt.NDArray[np.float32], source: Source, frame: FrameName | None, state: _Rows
) -> dict[str, Any]:
    """Return height, width and the model frame's place, float64 with NaN where unknown, from text and landmarks."""
    height, width = _convert_stated_sizes(texts, state)
    blank = np.isnan(height) | np.isnan(width)
    other = np.any([~np.isnan(size) & (size != MODEL_SIZE) for size in (height, width)], axis=0)
    if frame != "image":
        state.reject(other, lambda row: f"{height[row]:g} × {width[row]:g} px (height × width) {NOT_MODEL_FRAME}")
    if frame != "image" or source.framing == "native":
        height, width = (np.where(np.isnan(size), MODEL_SIZE, size) for size in (height, width))
        state.note("size_assumed", blank)
    else:
        state.note("size_blank", blank)
        if source.framing != "unknown":
            state.note("looks_preprocessed", ~blank & ~other)
    height, width = _check_bounds(landmarks_xy, height, width, state)
    return {"height": height, "width": width, **_frame_columns(height, width, source, frame)}


def _check_bounds(
    landmarks_xy: npt.NDArray[np.float32], height: Floats, width: Floats, state: _Rows
) -> tuple[Floats, Floats]:
    """Compare sizes with landmarks: exchange the two where only that fits, note or reject what leaves the image."""
    # axis by axis: over the two together numpy takes ten times as long
    (left, right), (top, bottom) = (
        (values.min(axis=1).astype(np.float64), values.max(axis=1).astype(np.float64))
        for values in (landmarks_xy[..., 0], landmarks_xy[..., 1])
    )
    side = np.fmax(height, width)

    def excess(size_y: Floats, size_x: Floats) -> Floats:
        return np.max([right - (size_x - 1), bottom - (size_y - 1), -left, -top], axis=0) / side

    exchanged = (excess(height, width) > _SLACK) & (excess(width, height) <= _SLACK)
    state.note("size_exchanged", exchanged)
    height, width = np.where(exchanged, width, height), np.where(exchanged, height, width)
    outside = excess(height, width)
    state.reject(
        outside > _IMPOSSIBLE,
        lambda row: (
            f"landmarks reach from ({left[row]:g}, {top[row]:g}) to ({right[row]:g}, {bottom[row]:g}), "
            f"far outside the {width[row]:g} × {height[row]:g} image: wrong size or wrong --frame"
        ),
    )
    state.note("out_of_frame", outside > _SLACK)
    return height, width


def _frame_columns(height: Floats, width: Floats, source: Source, frame: FrameName | None) -> dict[str, object]:
    """Return side, offset and exactness of the model frame in the image; NaN where only the image could tell."""
    n_rows = len(height)
    known = frame == "image" or source.framing == "native"
    side = np.maximum(height, width) if known else np.full(n_rows, np.nan)
    offset_xy = -np.stack([(side - width) // 2, (side - height) // 2], axis=1)
    exact = pa.array(np.full(n_rows, source.framing in ("pad", "native")), mask=np.isnan(side))
    # adding zero turns -0.0 into 0.0
    return {"frame_side": side, "frame_offset_xy": offset_xy.astype(np.float32) + 0.0, "frame_exact": exact}
