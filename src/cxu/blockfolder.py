"""A folder that is filled block by block: whose it is, what of it is finished, and its index.

::

    <out>/cxu.json             what was asked for: the same command continues, another one is refused
    <out>/<index>.parquet      the lines of all blocks, in order
    <out>/.cxu/part-*.parquet  the lines of one finished block, written after its files
    <out>/.cxu/part-*.json     the files that a block under way may have written

Nothing here holds a clock time: the same command leaves the same bytes, however often it was interrupted. What kind of
files these are, and what is counted of them, says a subclass.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import files, store
from cxu.errors import OutputExistsError

_LEDGER: Final = ".cxu"
_FACTS: Final = b"cxu"


@dataclass(frozen=True)
class BlockFacts:
    """What is known of a finished block beside its lines of the index.

    Attributes
    ----------
    rows, failures
        Rows with and without a result.
    assumed
        Rows whose position in their image is assumed.
    n_bytes
        Size of its files.
    part
        The one file of all its rows, below the folder; None where every row has its own.
    images
        Stamp of the images it was drawn for; None without images.
    left_out
        Rows that were not asked for after all: source, id and reason of each.
    """

    rows: int
    failures: int = 0
    assumed: int = 0
    n_bytes: int = 0
    part: str | None = None
    images: str | None = None
    left_out: list[list[str]] = field(default_factory=list)


@dataclass
class Contents:
    """What blocks hold: rows with and without a result, and files."""

    rows: int = 0
    failures: int = 0
    assumed: int = 0
    files: int = 0
    n_bytes: int = 0

    def add(self, lines: pa.Table) -> None:
        """Count one more block, given its lines of the index."""
        facts = facts_of(lines)
        self.rows += facts.rows
        self.failures += facts.failures
        self.assumed += facts.assumed
        self.files += len(_files_of(lines))
        self.n_bytes += facts.n_bytes


AnyContents = TypeVar("AnyContents", bound=Contents)


class BlockFolder(Generic[AnyContents]):
    """A folder of files that were written block by block.

    Parameters
    ----------
    out
        The folder; it need not exist yet.
    """

    noun: ClassVar[str]
    index: ClassVar[str]
    schema: ClassVar[pa.Schema]
    beside_index: ClassVar[tuple[str, ...]] = ()  # other files of the same lines
    contents: type[AnyContents]

    def __init__(self, out: Path) -> None:
        self.out = out
        self._ledger = out / _LEDGER

    def claim(self, record: Mapping[str, Any], planned: Iterable[str], *, overwrite: bool) -> None:
        """Make the folder the one of ``record``, or refuse.

        Parameters
        ----------
        record
            What is asked for; its ``identity`` tells whether two records are the same.
        planned
            The files that will be written, below the folder.
        overwrite
            Remove what an earlier command wrote, also where it was the same one.

        Raises
        ------
        OutputExistsError
            If the folder holds something else and ``overwrite`` is not given, or if a file that cxu did not write
            has a planned name.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OutputExistsError(f"{self.out} is a file: choose another --out")
        # in this order: another job of the same array may begin, and writes the record before anything else
        is_occupied = self._holds_anything()
        held = files.read_record(self.out)
        is_same = held is not None and held.get("identity") == record["identity"]
        if held and held.get("command", record["command"]) != record["command"]:
            raise OutputExistsError(f"{self.out} was made by cxu {held['command']}: choose another --out")
        if overwrite:
            if held is not None:
                self.clear()
            self._check_free((*planned, self.index, *self.beside_index), record)
        elif not is_same:
            self._refuse(held, record, is_occupied)
        for folder in (self.out, self._ledger):
            files.remove_leftovers(folder)
        if overwrite or not is_same:
            files.write_json(self.out / files.RECORD, record)

    def _refuse(self, held: Mapping[str, Any] | None, record: Mapping[str, Any], is_occupied: bool) -> None:
        if held is not None:
            raise OutputExistsError(
                f"{self.out} holds the {self.noun} of another command ({difference(held, record)}): "
                "choose another --out, or replace them with --overwrite"
            )
        if is_occupied:
            raise OutputExistsError(
                f"{self.out} is not empty and was not made by cxu {record['command']}: choose another --out, or write "
                "among what is there with --overwrite"
            )

    def _holds_anything(self) -> bool:
        # what an interrupted run left under a temporary name is nobody's
        return self.out.exists() and any(not path.name.startswith(files.TEMP_PREFIX) for path in self.out.iterdir())

    def _check_free(self, planned: Iterable[str], record: Mapping[str, Any]) -> None:
        if not self._holds_anything():
            return
        for name in planned:
            if (self.out / name).exists():
                raise OutputExistsError(
                    f"{self.out / name} is there and was not written by cxu {record['command']}, so it is not "
                    "replaced: move it away, or choose another --out"
                )

    def clear(self) -> None:
        """Remove the files that were written here, whole or not, and what is kept beside them; nothing else."""
        for path in sorted(self._ledger.glob("part-*.json")):
            names = files.read_names(path, self.out)
            self._remove_temporaries(names)
            self._remove(names)
            path.unlink()
        for path in sorted(self._ledger.glob("part-*.parquet")):
            self._remove(name for name in _files_of(pq.read_table(path)) if files.stays_below(self.out, name))
            path.unlink()
        files.remove_leftovers(self._ledger)
        with suppress(OSError):
            self._ledger.rmdir()
        # the record last: until then the folder is known to be ours
        for name in (self.index, *self.beside_index, files.RECORD):
            (self.out / name).unlink(missing_ok=True)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files, and the folders of theirs that hold nothing else."""
        folders = set()
        for name in names:
            (self.out / name).unlink(missing_ok=True)
            folders.add((self.out / name).parent)
        for folder in folders:
            with suppress(OSError):
                while folder != self.out:
                    folder.rmdir()
                    folder = folder.parent  # noqa: PLW2901 - upwards

    def _remove_temporaries(self, names: Iterable[str]) -> None:
        """Remove what was left under the temporary names of files that were being written."""
        by_folder: dict[Path, set[str]] = {}
        for name in names:
            by_folder.setdefault((self.out / name).parent, set()).add(Path(name).name)
        for folder, wanted in by_folder.items():
            files.remove_leftovers(folder, wanted)

    def finished(self, block: str, images: str | None = None) -> BlockFacts | None:
        """Return the facts of a block that was finished without failures, whose files and images are still the same.

        None where it is to be drawn.
        """
        path = self.lines_path(block)
        if not path.is_file():
            return None
        lines = pq.read_table(path)
        facts = facts_of(lines)
        if (
            facts.failures
            or facts.images != images
            or not all((self.out / name).is_file() for name in _files_of(lines))
        ):
            return None
        self._settle(block, lines)
        return facts

    def begin(self, block: str, planned: Sequence[str]) -> None:
        """Note which files a block may write, before the first is; clean up after an earlier attempt.

        Raises
        ------
        OutputExistsError
            If a link would lead one of them out of the folder.
        """
        files.check_below(self.out, planned)
        ledger = self._ledger / f"{block}.json"
        self._remove_temporaries(files.read_names(ledger, self.out))
        files.write_json(ledger, planned)

    def finish(self, block: str, lines: pa.Table, facts: BlockFacts) -> None:
        """Note that all files of a block are written, and its lines of the index."""
        lines = lines.replace_schema_metadata({_FACTS: json.dumps(asdict(facts))})
        store.write_table(lines, self.lines_path(block))
        self._settle(block, lines)

    def _settle(self, block: str, lines: pa.Table) -> None:
        """Remove a finished block's note of planned files, and files of an earlier attempt that it no longer has."""
        ledger = self._ledger / f"{block}.json"
        for name in set(files.read_names(ledger, self.out)) - _files_of(lines):
            (self.out / name).unlink(missing_ok=True)
        ledger.unlink(missing_ok=True)

    def lines_path(self, block: str) -> Path:
        """Return where the lines of a block are once it was drawn, by whichever job, with or without failures."""
        return self._ledger / f"{block}.parquet"

    def count(self, blocks: Iterable[str]) -> AnyContents:
        """Return what blocks that were drawn hold."""
        contents = self.contents()
        for block in blocks:
            contents.add(pq.read_table(self.lines_path(block)))
        return contents

    def gather(self, blocks: Sequence[str], mine: Iterable[str]) -> tuple[AnyContents, int]:
        """Write the index where all blocks are finished, by whichever job.

        Parameters
        ----------
        blocks
            All blocks, in the order of the index.
        mine
            Those that this run has finished.

        Returns
        -------
        contents, finished
            What all blocks hold, or else what those of this run do; and how many are finished.
        """
        own = set(mine)
        # another job that looks at the same time finds all blocks too, and writes the same index
        finished = sum(name in own or self.lines_path(name).is_file() for name in blocks)
        is_whole = finished == len(blocks)
        return self.write_index(blocks) if is_whole else self.count(name for name in blocks if name in own), finished

    def write_index(self, blocks: Iterable[str]) -> AnyContents:
        """Write the index from the lines of blocks that were drawn, and return what it lists."""
        contents = self.contents()
        with store.table_writer(self.out / self.index, self.schema) as writer:
            for block in blocks:
                lines = pq.read_table(self.lines_path(block))
                writer.write(lines.replace_schema_metadata(None))
                contents.add(lines)
        return contents


def facts_of(lines: pa.Table) -> BlockFacts:
    """Return the facts that lines of the index were finished with."""
    return BlockFacts(**json.loads(lines.schema.metadata[_FACTS]))


def _files_of(lines: pa.Table) -> set[str]:
    part = facts_of(lines).part
    return {part} if part else {name for name in pc.unique(lines["path"]).to_pylist() if name}


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what two records differ."""
    if not held:
        return f"its {files.RECORD} is damaged"
    found = []
    for part in ("options", "target", "choice"):
        before = held.get(part)
        values = before if isinstance(before, dict) else {}
        found += [
            f"{name} was {json.dumps(values.get(name))}, now {json.dumps(value)}"
            for name, value in wanted.get(part, {}).items()
            if json.dumps(values.get(name)) != json.dumps(value)
        ]
    for name in ("command", "frame", "cxu_version", "schema_version"):
        if held.get(name) != wanted[name]:
            found.append(f"{name} was {json.dumps(held.get(name))}, now {json.dumps(wanted[name])}")
    if held.get("table_name") != wanted["table_name"]:
        found.append(f"the table was {held.get('table_name')}, now {wanted['table_name']}")
    elif held.get("table") != wanted["table"]:
        found.append(f"the table {wanted['table_name']} has changed")
    return "; ".join(found) or "images have changed since"
