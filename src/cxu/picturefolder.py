"""The folder that pictures are drawn into: whose it is, and what of it is finished.

::

    <out>/cxu.json              what was asked for: the same command continues, another one is refused
    <out>/index.csv             a line a row: which picture or page it is on
    <out>/.cxu/pictures.json    the files that may have been written
    <out>/.cxu/<picture>.json   rows that are missing on a finished page, and why

A picture that is there is finished: it is written whole or not at all, and ``cxu.json`` says from what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pa_csv

from cxu import files
from cxu.blockfolder import difference
from cxu.errors import OutputExistsError
from cxu.pictureplan import COMMAND

INDEX: Final = "index.csv"
_LEDGER: Final = ".cxu"
_PLANNED: Final = "pictures.json"


class PictureFolder:
    """A folder of pictures.

    Parameters
    ----------
    out
        The folder; it need not exist yet.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._ledger = out / _LEDGER

    def claim(self, record: Mapping[str, Any], planned: Sequence[str], *, overwrite: bool) -> None:
        """Make the folder the one of ``record``, or refuse.

        Parameters
        ----------
        record
            What is asked for; its ``identity`` tells whether two records are the same.
        planned
            The files that will be written, below the folder.
        overwrite
            Remove the pictures that are there first, also those of the same command.

        Raises
        ------
        OutputExistsError
            If the folder holds something else, or other pictures and ``overwrite`` is not given, or a link in it
            would lead pictures out of it.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OutputExistsError(f"{self.out} is a file: choose another --out")
        held = files.read_record(self.out)
        if held is None and self._is_occupied():
            raise OutputExistsError(f"{self.out} is not empty and was not made by cxu overlay: choose another --out")
        if held is not None and held.get("command", COMMAND) != COMMAND:
            raise OutputExistsError(f"{self.out} was made by cxu {held['command']}: choose another --out")
        is_same = held is not None and held.get("identity") == record["identity"]
        if held is not None and not is_same and not overwrite:
            raise OutputExistsError(
                f"{self.out} holds the pictures of another command ({difference(held, record)}): choose another "
                "--out, or replace them with --overwrite"
            )
        if held is not None and overwrite:
            self._clear()
        if not is_same or overwrite:
            self._check_free(planned)
            files.write_json(self.out / files.RECORD, record)
        files.check_below(self.out, planned)
        for folder in {(self.out / name).parent for name in planned} | {self.out, self._ledger}:
            files.remove_leftovers(folder)
        files.write_json(self._ledger / _PLANNED, list(planned))

    def _is_occupied(self) -> bool:
        # what an interrupted run left under a temporary name is nobody's
        return self.out.exists() and any(not path.name.startswith(files.TEMP_PREFIX) for path in self.out.iterdir())

    def _check_free(self, planned: Iterable[str]) -> None:
        for name in planned:
            if (self.out / name).exists():
                raise OutputExistsError(
                    f"{self.out / name} is there and was not written by cxu overlay, so it is not replaced: move it "
                    "away, or choose another --out"
                )

    def _clear(self) -> None:
        """Remove the pictures that were written here and what is kept beside them; nothing else."""
        planned = files.read_names(self._ledger / _PLANNED, self.out)
        for name in planned:
            (self.out / name).unlink(missing_ok=True)
        for path in self._ledger.glob("*.json"):
            path.unlink()
        for folder in sorted({(self.out / name).parent for name in planned} | {self._ledger}, reverse=True):
            _remove_empty(folder, self.out)
        # the record last: until then the folder is known to be ours
        for name in (INDEX, files.RECORD):
            (self.out / name).unlink(missing_ok=True)

    def is_finished(self, picture: str) -> bool:
        """Tell whether a picture is there with all its rows."""
        return (self.out / picture).is_file() and not self._missing(picture).is_file()

    def note_missing(self, picture: str, reasons: Sequence[str]) -> None:
        """Note which rows a page lacks, before the page is written; none takes back an earlier note."""
        if reasons:
            files.write_json(self._missing(picture), list(reasons))
        else:
            self._missing(picture).unlink(missing_ok=True)

    def _missing(self, picture: str) -> Path:
        return self._ledger / f"{Path(picture).stem}.json"

    def write_index(self, index: pa.Table) -> None:
        """Write the index."""
        with files.replacing(self.out / INDEX) as temporary:
            pa_csv.write_csv(index, temporary)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder below ``root`` that holds nothing, and those above it that then hold nothing."""
    with suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent
