"""Rows and published files that are not what they should be: ``cxu import``."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from builders import PUBLISHED_COLUMNS, chest, join_numbers, published_csv, published_row
from reliability.case import Case

TITLE: Final = "Rows and published files"
INTRO: Final = (
    "`cxu import` of a file in which the bad row stands between two good ones. Both good ones are imported with "
    "the numbers they have, and rows imported and left out add up to the rows of the file, unless the whole file "
    "is refused."
)
GOOD: Final = ("00000001_000", "00000009_000")
SHOWN: Final = "00000005_000"
_MEAN, _STD = "Landmarks (Mean)", "Landmarks (Std)"


@dataclass(frozen=True, kw_only=True)
class RowCase(Case):
    """A bad row between two good ones, or a bad file.

    Attributes
    ----------
    file, options
        What the file is called, and what is said to ``cxu import`` besides.
    imported, malformed
        How many rows are imported, and how many left out and listed; ``imported`` None where the file is refused.
    notes
        Under which names what was noticed is counted.
    """

    exit_code: int = 3
    says: str = ""
    file: str = "rows.csv"
    options: tuple[str, ...] = ("--frame", "model")
    imported: int | None = 2
    malformed: int = 1
    notes: tuple[str, ...] = ()

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        if self.imported is None:
            return f"file refused (exit {self.exit_code}): “…{self.says}…”"
        if self.malformed:
            return f"left out and listed (exit {self.exit_code}): “…{self.says}…”"
        counted = " and ".join(f"`{name}`" for name in self.notes)
        kept = "imported" if self.imported == 3 else "the two good rows imported"
        return f"{kept}, counted as {counted}" if counted else kept


def _put(content: str | bytes | list[Any], **how: Any) -> Callable[[Path], None]:
    """Return a maker of ``rows.csv``: of text or bytes, or of rows between the two good ones."""

    def make(folder: Path, file: str = "rows.csv") -> None:
        text = content
        if isinstance(content, list):
            first, last = (published_row(f"{image_id}.png") for image_id in GOOD)
            text = published_csv([first, *content, last], **how)
        # a lone surrogate \udcXX stands for the byte XX
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))

    return make


def _row(name: str, changed: dict[str, str], says: str = "", **case: Any) -> RowCase:
    """Return the case of a row with some columns changed."""
    row = published_row(f"{SHOWN}.png", **changed)
    return RowCase(name=name, make=_put([row]), says=says, **case)


def _noted(name: str, changed: dict[str, str], *notes: str, **case: Any) -> RowCase:
    """Return the case of a row that is imported, and counted."""
    case = {"exit_code": 0, "imported": 3, "malformed": 0, "notes": notes, **case}
    return _row(name, changed, **case)


def _refused(name: str, content: Any, says: str, **case: Any) -> RowCase:
    """Return the case of a file that is refused whole."""
    case = {"exit_code": 1, "imported": None, "malformed": 0, **case}
    return RowCase(name=name, make=_put(content), says=says, **case)


def _packed(content: bytes) -> Callable[[Path], None]:
    return lambda folder: _put(content)(folder, "rows.csv.gz")


def _numbers(*words: str) -> str:
    """Return the landmarks of a chest whose last values are ``words``."""
    kept = join_numbers(chest()).split(",")
    return ",".join([*kept[: 240 - len(words)], *words])


_GOOD_TEXT: Final = published_csv([published_row(f"{image_id}.png") for image_id in GOOD])
_SHIFTED: Final = chest() + np.array([0, 60], np.float32)
_LOW: Final = _SHIFTED + np.array([0, 200], np.float32)
_WIDE: Final = join_numbers(chest(2000, 1200))

CASES: Final = (
    # the row itself
    RowCase(name="too few fields", make=_put(["x,y"]), says="2 fields, expected 10"),
    RowCase(name="a field too many", make=_put(["," * 10]), says="11 fields, expected 10"),
    RowCase(
        name="a blank line",
        make=_put(["," * 9]),
        exit_code=0,
        malformed=0,
        notes=("blank_lines",),
    ),
    RowCase(
        name="a quote left open in the last row",
        make=_put(_GOOD_TEXT + f'"{SHOWN}.png,0.8,0.9,1\n'),
        says="a quote is left open",
    ),
    RowCase(
        name="a row cut off in the middle, at the end of the file",
        make=_put(_GOOD_TEXT + f"{SHOWN}.png,0.8,0.9," + '"1,2,3"'),
        says="4 fields, expected 10",
    ),
    _row("a landmark field of a megabyte", {_MEAN: "1," * (1 << 19)}, "524288 numbers, expected 240"),
    # its id
    RowCase(name="a blank id", make=_put([published_row(" ")]), says="the id (Image Index) is blank"),
    RowCase(name="an id that is not UTF-8", make=_put([published_row("x\udcff.png")]), says="is not UTF-8 text"),
    RowCase(name="an id with a NUL byte", make=_put([published_row("a\0b.png")]), exit_code=0, imported=3, malformed=0),
    _refused("the same id twice", [published_row(f"{SHOWN}.png")] * 2, "stand more than once"),
    # landmarks
    _row("blank landmarks", {_MEAN: ""}, "landmarks: is blank"),
    _row("119 landmarks and a half", {_MEAN: _numbers().rpartition(",")[0]}, "239 numbers, expected 240"),
    _row("a number too many", {_MEAN: _numbers() + ",1"}, "241 numbers, expected 240"),
    _row("landmarks that are NaN", {_MEAN: _numbers("nan")}, "value 240 is nan, not a finite number"),
    _row("infinite landmarks", {_MEAN: _numbers("-inf", "5")}, "value 239 is -inf, not a finite number"),
    _row("landmarks beyond what float32 holds", {_MEAN: _numbers("1e39")}, "value 240 is 1e39, not a finite number"),
    _row("a letter among the landmarks", {_MEAN: _numbers("12O")}, "value 240 is '12O', not a number"),
    _row("digits parted by underscores", {_MEAN: _numbers("1_0")}, "value 240 is '1_0', not a number"),
    _row("landmarks abbreviated by numpy", {_MEAN: "[[1 2]\n ...\n [3 4]]"}, "the values are lost"),
    _row("landmarks that are not UTF-8", {_MEAN: _numbers("\udcff")}, "not a number"),
    _noted(
        "landmarks that leave the image a little", {_MEAN: join_numbers(_SHIFTED + np.array([0, 200]))}, "out_of_frame"
    ),
    _row("landmarks far outside the image", {_MEAN: join_numbers(_SHIFTED * 3)}, "far outside the 1024 × 1024 image"),
    # sigma
    _row("a negative sigma", {_STD: "3," * 239 + "-1"}, "standard deviation -1 is negative"),
    _row("a sigma that is NaN", {_STD: "3," * 239 + "nan"}, "sigma: value 240 is nan, not a finite number"),
    _row("an infinite sigma", {_STD: "inf," * 239 + "1"}, "sigma: value 1 is inf, not a finite number"),
    _row("120 sigmas in place of 240", {_STD: "3," * 119 + "3"}, "sigma: 120 numbers, expected 240"),
    # RCA
    _row("an RCA above 1", {"Dice RCA (Mean)": "1.5"}, "rca_mean is 1.5, not within 0 to 1"),
    _row("a negative RCA", {"Dice RCA (Max)": "-0.1"}, "rca_max is -0.1, not within 0 to 1"),
    _row("an RCA that is a word", {"Dice RCA (Mean)": "high"}, "rca_mean is 'high', not a number"),
    _row("an infinite RCA", {"Dice RCA (Mean)": "inf"}, "rca_mean is inf, not within 0 to 1"),
    _noted("RCA mean and max exchanged", {"Dice RCA (Mean)": "0.9", "Dice RCA (Max)": "0.8"}, "rca_swapped"),
    # size
    _row("a height of zero", {"Height": "0"}, "size 0 × 1024 is no image size"),
    _row("a negative width", {"Width": "-1024"}, "size 1024 × -1024 is no image size"),
    _row("a height that is no whole number", {"Height": "1024.5"}, "is no image size"),
    _row("a height that no file can have", {"Height": "1e9"}, "is no image size"),
    _row("an infinite height", {"Height": "inf"}, "is no image size"),
    _row("a height that is a word", {"Height": "tall"}, "height is 'tall', not a number"),
    _noted("height and width blank, model frame", {"Height": "", "Width": ""}, "size_assumed"),
    _noted(
        "height and width exchanged",
        {"Height": "2000", "Width": "1200", _MEAN: _WIDE},
        "size_exchanged",
        options=("--frame", "image"),
    ),
    _row("another size than 1024 in the model frame", {"Height": "2048"}, "is no model frame, expected 1024 × 1024"),
    _refused(
        "another size than 1024, and the frame left out",
        [published_row(f"{SHOWN}.png", Height="2048")],
        "say whether the landmarks are in the model frame",
        exit_code=2,
        options=(),
    ),
    # masks
    _row(
        "a shipped mask that is not UTF-8",
        {"Heart": "5 \udcff"},
        "rle_heart is not UTF-8 text",
        options=("--frame", "model", "--keep-rle"),
    ),
    # files
    _refused("an empty file", b"", "is no published CSV"),
    _refused("a page of HTML in place of the file", b"<html><body>404</body></html>\n", "is no published CSV"),
    _refused("a file without landmarks", "Image Index,Height\na,5\n", "no column for the landmarks"),
    _refused("a file without ids", "Landmarks,Height\n5,5\n", "no column for the id"),
    _refused("a Parquet file named .csv", b"PAR1" + bytes(range(256)) * 4, "is no published CSV"),
    RowCase(
        name="a .gz that is cut off",
        make=_packed(gzip.compress(_GOOD_TEXT.encode() * 400, mtime=0)[:-400]),
        file="rows.csv.gz",
        exit_code=1,
        imported=None,
        malformed=0,
        says="cannot be read past line",
    ),
    RowCase(
        name="a .gz that is none",
        make=_packed(_GOOD_TEXT.encode()),
        file="rows.csv.gz",
        exit_code=1,
        imported=None,
        malformed=0,
        says="rows.csv.gz",
    ),
)
assert len(PUBLISHED_COLUMNS) == 10
