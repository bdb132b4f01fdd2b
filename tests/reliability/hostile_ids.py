"""Ids, names and archive members that would lead out of the output folder or onto each other."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from builders import make_rows
from cxu import store
from predict_helpers import film_pixels, write_film, write_weights
from reliability.case import Case, run

TITLE: Final = "Hostile ids, names and archives"
INTRO: Final = (
    "Every command is run in a folder beside others that hold files. Nothing outside the output folder is "
    "written, changed or removed, and every id has a file of its own or the command is refused before the first "
    "is written."
)
PRECIOUS: Final = "precious.png"


@dataclass(frozen=True, kw_only=True)
class IdCase(Case):
    """Hostile names.

    Attributes
    ----------
    words
        The command, run in the folder that ``make`` fills; it writes into ``out`` there.
    files
        How many PNG files of masks it must write; None where that is not asked.
    """

    exit_code: int = 0
    says: str = ""
    words: tuple[str, ...] = ("rasterize", "rows.parquet", "--out", "out")
    files: int | None = 1
    what: str = field(default="")

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        return self.what or (
            f"refused (exit {self.exit_code}): “…{self.says}…”" if self.exit_code else "a file of its own, within"
        )


def _table(folder: Path, *ids: str, **columns: Any) -> None:
    rows = make_rows(len(ids), image_id=list(ids), height=64, width=64, **columns)
    store.write_table(rows, folder / "rows.parquet")


def _ids(name: str, *ids: str, says: str = "", **columns: Any) -> IdCase:
    """Return the case of a table of these ids, drawn; refused where ``says`` tells why."""
    exit_code, n_files = (2, 0) if says else (0, len(ids))
    return IdCase(
        name=name, make=lambda folder: _table(folder, *ids, **columns), exit_code=exit_code, says=says, files=n_files
    )


def _linked(link: str, to: str = "../../outside") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _table(folder, "a/c")
        (folder / "out" / link).parent.mkdir(parents=True)
        (folder / "out" / link).symlink_to(Path(*[".."] * (link.count("/")), to))

    return make


def _false_ledger(folder: Path) -> None:
    """Leave masks whose list of files names others: those of somebody else."""
    _table(folder, "a")
    assert (
        run("rasterize", folder / "rows.parquet", "--out", folder / "out", "--home", folder / "cxu-data").exit_code == 0
    )
    names = [f"../../outside/{PRECIOUS}", str(folder.parent / "outside" / PRECIOUS), f"link/{PRECIOUS}"]
    (folder / "out/link").symlink_to("../../outside")
    (folder / "out/.cxu/part-00009.json").write_text(json.dumps(names))


def _false_pictures(folder: Path) -> None:
    _table(folder, "a")
    write_film(folder / "films/a.png")
    record = {"command": "overlay", "identity": "another"}
    (folder / "out/.cxu").mkdir(parents=True)
    (folder / "out/cxu.json").write_text(json.dumps(record))
    (folder / "out/.cxu/planned.json").write_text(json.dumps([f"../../outside/{PRECIOUS}"]))


def _films(*names: str | bytes) -> Callable[[Path], None]:
    """Return a maker of films of these names."""

    def make(folder: Path) -> None:
        write_weights(folder / "w.safetensors")
        (folder / "films").mkdir()
        for seed, name in enumerate(names):
            write_film(folder / "films" / os.fsdecode(name), seed)

    return make


def _archive(*members: str) -> Callable[[Path], None]:
    """Return a maker of a zip of films under these names."""

    def make(folder: Path) -> None:
        write_weights(folder / "w.safetensors")
        (folder / "films").mkdir()
        with zipfile.ZipFile(folder / "films/films.zip", "w") as archive:
            for seed, name in enumerate(members):
                stream = io.BytesIO()
                Image.fromarray(film_pixels(seed)).save(stream, format="PNG")
                archive.writestr(name, stream.getvalue())

    return make


_PREDICT: Final = (
    "predict",
    "films",
    "--weights",
    "w.safetensors",
    "--samples",
    "2",
    "--device",
    "cpu",
    "--out",
    "out",
    "--masks",
    "--overlay",
)
_ONE_FILE: Final = "one file on many systems"

CASES: Final = (
    # ids of rows
    _ids("`..`", ".."),
    _ids("`../../x`", "../../x"),
    _ids("`a/../../../x`", "a/../../../x"),
    _ids("`/etc/passwd`", "/etc/passwd"),
    _ids("`C:\\x`", "C:\\x"),
    _ids("`\\\\server\\share\\x`", "\\\\server\\share\\x"),
    _ids("`a.png:stream`", "a.png:stream"),
    _ids("a NUL byte", "a\0b"),
    _ids("newlines and escape sequences", "a\n\x1b[31mb"),
    _ids("a name of 300 bytes", "x" * 300),
    _ids("two names of 300 bytes that differ in the middle", "x" * 199 + "1" + "y" * 100, "x" * 199 + "2" + "y" * 100),
    _ids("a path of 4,200 bytes", "x/" * 2100 + "x"),
    _ids("`CON` and `nul.txt`, reserved on Windows", "CON", "nul.txt"),
    _ids("a trailing dot, and a trailing space", "x.", "y "),
    _ids("`-rf`", "-rf"),
    _ids("`%2e%2e/x`", "%2e%2e/x"),
    _ids("`~root/x` and `$(touch x)`", "~root/x", "$(touch x)"),
    _ids("a name like that of a file being written", ".cxu-tmp-1@aaaaaa-x"),
    _ids("the names of cxu's own files", "cxu.json", "index.parquet", ".cxu/part-00000"),
    _ids("two ids that differ by case", "A", "a", says=_ONE_FILE),
    _ids("two ids that differ by how é is composed", "\u00e9", "e\u0301", says=_ONE_FILE),
    _ids("`a` and `a.png`", "a", "a.png", says=_ONE_FILE),
    _ids("`a/b` and `a//b`", "a/b", "a//b", says=_ONE_FILE),
    _ids("a source called `../..`", "x", source="../.."),
    # links and lists
    IdCase(
        name="a link in the output folder that leads out of it",
        make=_linked("chestxray8"),
        words=("rasterize", "rows.parquet", "--out", "out", "--overwrite"),
        exit_code=2,
        says="leads out of",
        files=0,
    ),
    IdCase(
        name="such a link, one folder deeper",
        make=_linked("chestxray8/a", "../outside"),
        words=("rasterize", "rows.parquet", "--out", "out", "--overwrite"),
        exit_code=2,
        says="leads out of",
        files=0,
    ),
    IdCase(
        name="masks of somebody else whose list of files names files elsewhere, replaced",
        make=_false_ledger,
        words=("rasterize", "rows.parquet", "--out", "out", "--overwrite"),
        what="files elsewhere stay, the masks are drawn anew",
    ),
    IdCase(
        name="pictures of somebody else whose list names files elsewhere, replaced",
        make=_false_pictures,
        words=("overlay", "rows.parquet", "--images", "films", "--out", "out", "--overwrite"),
        what="files elsewhere stay, the picture is drawn",
    ),
    # names on the command line
    IdCase(
        name="a selection called `../../x`",
        make=lambda folder: _table(folder, "a"),
        words=("filter", "rows.parquet", "--name", "../../x"),
        exit_code=2,
        says="selection name '../../x': expected a plain file name",
        files=None,
    ),
    IdCase(
        name="a data set called `../../x`",
        make=lambda folder: (folder / "a.csv").write_text("id,Landmarks\n"),
        words=("import", "a.csv", "--source", "../../x"),
        exit_code=2,
        says="../../x",
        files=None,
    ),
    # images and archives
    IdCase(
        name="films called `-rf.png` and `%2e%2e.png`, one with a newline in its name, one that is no UTF-8",
        make=_films("-rf.png", "%2e%2e.png", "a\nb.png", b"\xff.png"),
        words=_PREDICT[:-1],
        files=4,
        what="a row and a mask each, within",
    ),
    IdCase(
        name="a zip with members `../../x.png` and `C:\\x.png`",
        make=_archive("../../x.png", "C:\\z.png"),
        words=_PREDICT,
        files=4,
        what="a row, a picture and a mask each, within; nothing is unpacked",
    ),
    IdCase(
        name="a zip with members that differ by case",
        make=_archive("a.png", "A.png"),
        words=_PREDICT,
        exit_code=2,
        says=_ONE_FILE,
        files=0,
    ),
)
