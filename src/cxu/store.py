"""The home folder and the tables in it: sources, selections, predictions, and the records of runs.

::

    <home>/sources/<source>/<frame>/part-*.parquet   rows, with source.json listing the parts that count
    <home>/selections/<name>.parquet                 and <name>.excluded.parquet
    <home>/predictions/                              tables that predict wrote
    <home>/runs/*.json                               a manifest for every bulk run

A source's parts count only once ``source.json`` lists them, and that file is replaced in one step: an interrupted
import or fetch leaves the source as it was.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cxu import files, table
from cxu.catalog import FrameName, find_source
from cxu.engine import Pool
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.row_groups import JoinedGroups, encoding_options

logger = logging.getLogger(__name__)

SHARD_ROWS: Final = 8192
_PART_NAME: Final = re.compile(r"[\w-][\w.-]*", re.ASCII)
LATEST: Final = "latest"
PREDICTIONS: Final = "predictions"
_LISTING = "source.json"
_LATE_FACTS: Final = "cxu_late"

TableKind = Literal["source", "selection", "predictions", "file"]


@dataclass(frozen=True)
class Part:
    """One shard of a source: a Parquet file, its rows and its hash."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class SourceFile:
    """One published file that was converted into parts of a source."""

    name: str
    sha256: str
    rows: int
    malformed: int
    rle_kept: bool = False
    repo: str | None = None
    revision: str | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class SourceListing:
    """What a source holds in one frame: the files it was made of. ``partial`` tells how many rows it was limited to."""

    source: str
    frame: FrameName
    files: tuple[SourceFile, ...] = ()
    partial: int | None = None

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of all files, in order of import."""
        return tuple(part for file in self.files for part in file.parts)


@dataclass(frozen=True)
class Shard:
    """The unit of work: one row group of one Parquet file.

    ``stamp`` is the file's size and time of change when it was opened: a file that was replaced since then is refused,
    lest one result be made of two tables. None takes the file as it is.
    """

    path: Path
    row_group: int
    rows: int
    stamp: tuple[int, int] | None = None

    def read(self, columns: Sequence[str] | None = None, *, blank: bool = True) -> pa.Table:
        """Read the shard's rows.

        Parameters
        ----------
        columns
            Those to read; names that the file lacks are left out. None means all.
        blank
            Whether to read columns too that the file states to be null in every row.
        """
        with _opened(self.path) as file:
            if self.stamp is not None and _stamp_of(self.path) != self.stamp:
                raise FormatError(f"{self.path} was changed while it was read: run the command again")
            known = frozenset(file.schema_arrow.names)
            names = file.schema_arrow.names if columns is None else [name for name in columns if name in known]
            if not blank:
                unread = _blank_columns(file, self.row_group)
                names = [name for name in names if name not in unread]
            # shards are read side by side: threads of each one would be in the others' way
            rows = file.read_row_group(self.row_group, columns=names, use_threads=False)
            for column in rows.columns:
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    column.validate(full=True)  # text of a foreign file need not be UTF-8
            return rows

    def schema(self) -> pa.Schema:
        """Return the columns of the shard's file."""
        with _opened(self.path) as file:
            return file.schema_arrow


def _blank_columns(file: pq.ParquetFile, row_group: int) -> frozenset[str]:
    """Return columns that are null in every row of a row group, by what the footer says of them."""
    schema, group = file.schema_arrow, file.metadata.row_group(row_group)
    if group.num_columns != len(schema):
        return frozenset()  # a column in parts: the others are not where they are looked for
    return frozenset(
        field.name for at, field in enumerate(schema) if _is_blank(group.column(at), field.type, group.num_rows)
    )


def _is_blank(chunk: pq.ColumnChunkMetaData, kind: pa.DataType, n_rows: int) -> bool:
    if pa.types.is_fixed_size_list(kind):  # a null list is one value, any other as many as it is long
        return bool(kind.list_size > 1 and chunk.num_values == n_rows)
    stated = None if pa.types.is_nested(kind) else chunk.statistics
    return bool(stated is not None and stated.has_null_count and stated.null_count == n_rows)


@dataclass(frozen=True)
class StoredTable:
    """A table on disk: its Parquet files in order, what it is, and where it came from."""

    name: str
    kind: TableKind
    paths: tuple[Path, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def shards(self) -> list[Shard]:
        """List the shards in order."""
        return [shard for path in self.paths for shard in _row_groups(path)]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(shard.rows for shard in self.shards())

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the first file."""
        return Shard(self.paths[0], 0, 0).schema()

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows into memory, all columns or those named."""
        shards = [shard.read(columns) for shard in self.shards()]
        if not shards:
            schema = self.schema
            return schema.empty_table().select([name for name in columns or schema.names if name in schema.names])
        return pa.concat_tables(shards, promote_options="permissive")

    @property
    def digest(self) -> str:
        """Hash that changes when any row does.

        Only a source's is recorded, in ``source.json``. The facts of a Parquet file stay when other tools change its
        rows, so there the bytes count.
        """
        if self.kind == "source":
            return str(self.facts["digest"])
        return files.hash_of([files.sha256_of(path) for path in self.paths])


class Home:
    """A home folder.

    Parameters
    ----------
    root
        The folder; it need not exist yet. None takes the environment's ``CXU_HOME``, else ``./cxu-data``.

    Examples
    --------
    >>> Home("/data/cxu").selection_path("strict").as_posix()
    '/data/cxu/selections/strict.parquet'
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("CXU_HOME") or "cxu-data")

    def source_folder(self, source: str, frame: FrameName) -> Path:
        """Return the folder of a source's parts in one frame."""
        return self.root / "sources" / source / frame

    def listing(self, source: str, frame: FrameName) -> SourceListing:
        """Return what a source holds in one frame; an empty listing where it holds nothing.

        Raises
        ------
        FormatError
            If ``source.json`` is damaged.
        """
        path = self.source_folder(source, frame) / _LISTING
        if not path.is_file():
            return SourceListing(source, frame)
        try:
            content = json.loads(path.read_text("utf-8"))
            records = tuple(
                SourceFile(**{**file, "parts": tuple(Part(**part) for part in file["parts"])})
                for file in content["files"]
            )
            return _checked(SourceListing(source, frame, records, content["partial"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} is damaged ({error}); remove {path.parent} and import again") from None

    def places(self) -> list[tuple[str, FrameName]]:
        """Return source and frame of every listing, in order; it may be damaged or hold nothing."""
        paths = sorted((self.root / "sources").glob(f"*/*/{_LISTING}"))
        return [(path.parts[-3], frame) for path in paths for frame in get_args(FrameName) if path.parts[-2] == frame]

    def listings(self, sources: Collection[str] | None = None) -> list[SourceListing]:
        """Return the sources that hold rows, all or those named, by name and frame.

        Raises
        ------
        FormatError
            If the listing of one of these is damaged.
        """
        places = [place for place in self.places() if sources is None or place[0] in sources]
        return [listing for listing in (self.listing(*place) for place in places) if listing.files]

    def readable_listings(self) -> list[SourceListing]:
        """Return the sources that hold rows, without those whose listing is damaged."""
        found = []
        for place in self.places():
            with suppress(FormatError):
                found.append(self.listing(*place))
        return [listing for listing in found if listing.files]

    def lock(self, source: str, frame: FrameName) -> AbstractContextManager[None]:
        """Hold a source's frame against other processes while the block runs; whoever changes it takes this first.

        It cannot be taken twice: within the block, a second one waits forever.
        """
        from cxu import hub  # noqa: PLC0415 - loads huggingface_hub, which reading a table does not need

        path = self.root / "cache" / "fetch" / f"{source}-{frame}.lock"
        return hub.locked(path, lambda: logger.warning("waiting for another fetch or import of %s", source))

    def publish(self, listing: SourceListing, staged: Path) -> None:
        """Move the staged parts of a listing into the source, then make the listing the current one.

        Parts that the new listing no longer names are removed afterwards.
        """
        folder = self.source_folder(listing.source, listing.frame)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(staged.glob("part-*.parquet")):
            path.replace(folder / path.name)
        content = asdict(listing)
        files.write_json(folder / _LISTING, {key: content[key] for key in ("partial", "files")})
        kept = {part.name for part in listing.parts}
        for path in folder.glob("part-*.parquet"):
            if path.name not in kept:
                path.unlink()
        shutil.rmtree(staged, ignore_errors=True)

    def tidy(self, source: str, frame: FrameName, *, keep: str = "") -> None:
        """Remove what a killed run left in a source: temporary names, and parts that its listing does not name.

        The staging folder of the key ``keep`` stays, for the same run to go on with.
        """
        folder, kept = self.source_folder(source, frame), {part.name for part in self.listing(source, frame).parts}
        leftovers = [path for path in folder.glob("part-*.parquet") if path.name not in kept]
        for path in (*leftovers, *folder.glob(f"{files.TEMP_PREFIX}*")):
            if keep and path == self._staging_folder(source, frame, keep):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def staging(self, source: str, frame: FrameName, key: str, *, keep: bool = False) -> Path:
        """Return a folder for parts that do not count yet, on the same file system.

        It is empty, or with ``keep`` holds what an interrupted run of the same key had finished.
        """
        folder = self._staging_folder(source, frame, key)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(folder)
        return folder

    def _staging_folder(self, source: str, frame: FrameName, key: str) -> Path:
        return self.source_folder(source, frame) / f"{files.TEMP_PREFIX}{key[:12]}"

    def open_source(self, source: str, frame: FrameName) -> StoredTable:
        """Return a source's rows in one frame as a stored table.

        Raises
        ------
        MissingInputError
            If a part that ``source.json`` lists is gone.
        """
        listing, folder = self.listing(source, frame), self.source_folder(source, frame)
        paths = tuple(folder / part.name for part in listing.parts)
        for path in paths:
            if not path.is_file():
                raise MissingInputError(f"{path} is gone though {_LISTING} lists it; import or fetch {source} again")
        facts = {"digest": files.hash_of([part.sha256 for part in listing.parts]), "partial": listing.partial}
        return StoredTable(f"{source}/{frame}", "source", paths, facts)

    def selection_path(self, name: str) -> Path:
        """Return where the selection ``name`` lies.

        Raises
        ------
        UsageError
            If the name would leave the folder or is empty.
        """
        if not name or files.safe_relative(name).as_posix() != name or "/" in name or name.endswith(".excluded"):
            raise UsageError(f"selection name {name!r}: expected a plain file name, such as strict or train-2")
        return self.root / "selections" / f"{name}.parquet"

    def selections(self) -> list[str]:
        """Return the names of the selections, in order."""
        names = (path.stem for path in _tables_in(self.root / "selections"))
        return sorted(name for name in names if not name.endswith(".excluded"))

    @property
    def predictions_folder(self) -> Path:
        """The folder that predict writes into unless told otherwise."""
        return self.root / PREDICTIONS

    def predictions(self) -> list[Path]:
        """Return the tables that predict wrote, in order of name."""
        return _tables_in(self.predictions_folder)

    def open(self, name: str | None = None, *, frame: FrameName | None = None) -> StoredTable:
        """Return the table that ``name`` means; None means the selection ``latest``.

        That is a Parquet file or a folder of them, a selection, ``predictions`` of this home, or a source.

        Raises
        ------
        MissingInputError
            If there is none; the message names what the home holds.
        UsageError
            If a source holds rows in two frames and ``frame`` does not choose.
        """
        if name is None and not self.selection_path(LATEST).is_file():
            raise MissingInputError(
                f"no selection yet in {self.root}: run cxu filter first, or name a table or a source{self._holds()}"
            )
        wanted = name or LATEST
        if Path(wanted).suffix == ".parquet" or (Path(wanted).is_dir() and _tables_in(Path(wanted))):
            return open_table(Path(wanted))
        if self.selection_path(wanted).is_file():
            return open_table(self.selection_path(wanted), name=wanted, kind="selection")
        if wanted == PREDICTIONS and self.predictions():
            return open_table(self.predictions_folder, name=wanted, kind="predictions")
        wanted = _source_name(wanted)
        frames = [listing.frame for listing in self.listings([wanted])]
        if frame in frames or (frame is None and len(frames) == 1):
            return self.open_source(wanted, frame or frames[0])
        if frames and frame is not None:
            raise MissingInputError(f"{wanted} is here in the frame {frames[0]} only, not in {frame}")
        if frames:
            raise UsageError(f"{wanted} is here in the frames {' and '.join(frames)}: choose with --frame")
        raise MissingInputError(f"no table, selection or source called {wanted!r} in {self.root}{self._holds()}")

    def _holds(self) -> str:
        sources = sorted({listing.source for listing in self.readable_listings()})
        held = [f"selections: {', '.join(self.selections())}"] if self.selections() else []
        held += [f"sources: {', '.join(sources)}"] if sources else []
        return f" ({'; '.join(held)})" if held else " (it is empty: start with cxu fetch or cxu import)"

    def record_run(self, command: str, content: dict[str, Any]) -> Path:
        """Write the manifest of a bulk run and return its path; its name starts with the time.

        A home that cannot be written is warned of: the work itself is done by then.
        """
        now = datetime.now(UTC)
        record = {"command": command, "finished": now.isoformat(timespec="seconds"), **content}
        stamp = f"{now:%Y%m%dT%H%M%S-%f}"
        path = self.root / "runs" / f"{stamp}-{command}.json"
        try:
            files.write_json(path, record)
        except OSError as error:
            logger.warning("the manifest of this run could not be written to %s: %s", path.parent, error.strerror)
        return path


def _checked(listing: SourceListing) -> SourceListing:
    """Return a listing whose values are of their kinds, and whose parts lie in its folder, else raise ValueError."""
    records: list[SourceFile | Part] = [*listing.files, *listing.parts]
    texts: list[Any] = [text for one in records for text in (one.name, one.sha256)]
    counts: list[Any] = [listing.partial or 0, *(one.rows for one in records)]
    wrong = [text for text in texts if not isinstance(text, str)]
    wrong += [count for count in counts if not isinstance(count, int) or count < 0]
    wrong += [part.name for part in listing.parts if not wrong and not _PART_NAME.fullmatch(part.name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is out of place")
    return listing


def open_table(path: str | Path, *, name: str | None = None, kind: TableKind = "file") -> StoredTable:
    """Return a Parquet file, or a folder of them in order of name, as a stored table, its schema checked.

    Raises
    ------
    MissingInputError
        If it does not exist.
    FormatError
        If it is no Parquet file or not in the schema.
    """
    path = Path(path)
    paths = tuple(_tables_in(path)) if path.is_dir() else (path,)
    if not paths or not path.exists():
        raise MissingInputError(f"{path} does not exist or holds no .parquet file")
    facts = _common_facts([_facts_of(file_path) for file_path in paths])
    found = "selection" if facts.get("kind") == "selection" else kind
    return StoredTable(name or str(path), found, paths, facts)


def _source_name(name: str) -> str:
    """Return the catalogue's name where ``name`` is an alias of a source, else the name itself."""
    try:
        return find_source(name).name
    except UsageError:
        return name


def _tables_in(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder in order of name, without what is still being written."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith(files.TEMP_PREFIX))


def _facts_of(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        table.check_table(file.schema_arrow, str(path))
        late = json.loads(file.metadata.metadata.get(_LATE_FACTS.encode(), b"{}"))
        if not isinstance(late, dict):
            raise ValueError(f"{_LATE_FACTS} in its footer is {type(late).__name__}, not an object of named values")
        facts = {**table.decode_metadata(file.schema_arrow), **late}
        table.check_facts(facts)
        return facts


def _common_facts(of_files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is true of all files together; they are partial if any is."""
    first, *others = of_files
    common = {key: value for key, value in first.items() if all(key in one and one[key] == value for one in others)}
    if not {"thresholds", "limits_px"} <= common.keys() and others:
        # what was filtered in several ways is no one selection, whose limits could be taken over
        common.pop("kind", None)
    if "partial" not in common and any("partial" in one for one in of_files):
        common["partial"] = any(one.get("partial") for one in of_files)
    return common


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, its errors as ours."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:  # also of names and facts in its footer
        raise FormatError(f"{path} is no readable Parquet file: {error}") from None


def _row_groups(path: Path) -> list[Shard]:
    with _opened(path) as file:
        stamp = _stamp_of(path)
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    return [Shard(path, index, rows, stamp) for index, rows in enumerate(groups)]


def _stamp_of(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def write_table(rows: pa.Table, path: Path) -> None:
    """Write a table as one Parquet file of shards of at most :data:`SHARD_ROWS` rows, a whole file or none."""
    with table_writer(path, rows.schema) as writer:
        writer.write(rows)


class TableWriter:
    """Appends rows to a Parquet file in row groups of at most :data:`SHARD_ROWS`.

    The first rows decide how the columns are encoded (:func:`cxu.row_groups.encoding_options`).
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Append rows; none is fine."""
        if len(rows):
            self._opened_for(rows).write_table(rows, row_group_size=SHARD_ROWS)

    def _opened_for(self, rows: pa.Table) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, **encoding_options(rows))
        return self._writer

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Add facts that are known only once all rows are written."""
        self._opened_for(self._schema.empty_table()).add_key_value_metadata(_late(facts))

    def close(self) -> None:
        """Finish the file."""
        self._opened_for(self._schema.empty_table()).close()


class TableJoiner:
    """Writes what :class:`TableWriter` writes, byte for byte, with row groups that threads encode."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, pool: Pool) -> None:
        self._groups = JoinedGroups(stream, schema)
        self._pool = pool
        self._facts: dict[str, Any] = {}

    def write_shards(self, shards: Iterable[pa.Table]) -> None:
        """Append shards, each of 1 to :data:`SHARD_ROWS` rows; they are drawn a bounded number ahead."""
        for group in self._pool.run(self._groups.encode, map(self._groups.looked_at, shards)):
            self._groups.append(group)

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Add facts that are known only once all rows are written."""
        self._facts |= _late(facts)

    def close(self) -> None:
        """Finish the file."""
        self._groups.finish(self._facts)


def _late(facts: dict[str, Any]) -> dict[str, str]:
    return {_LATE_FACTS: json.dumps(facts, sort_keys=True)}


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Give a writer of the Parquet file ``path``, which appears whole at the end or not at all."""
    with files.replacing_output(path) as temporary, closing(TableWriter(temporary, schema)) as writer:
        yield writer


@contextmanager
def table_joiner(path: Path, schema: pa.Schema, pool: Pool) -> Iterator[TableJoiner]:
    """Give a writer of the same file ``path``, whose row groups are encoded by the threads of ``pool``."""
    with files.replacing_output(path) as temporary, temporary.open("wb") as stream:
        writer = TableJoiner(stream, schema, pool)
        yield writer
        writer.close()
