"""The folder that predict writes into: whose it is, what of it is finished, and its one table.

::

    <out>/predictions.parquet   every image predicted so far, a row each
    <out>/cxu.json              weights and options: the same ones continue, others are refused
    <out>/overlays/             pictures, where asked for
    <out>/.cxu/part-*.parquet   rows of a run under way, or of one that was interrupted
    <out>/.cxu/files.parquet    size and time of change of each row's file, so that it need not be read again
    <out>/.cxu/rejected-*.json  files that the jobs of an array could make no row of
    <out>/.cxu/lock             held by the one run that writes here; by the jobs of an array while they look and join

A run writes parts, here and in its workers, and joins them to the table at its end. The table holds no clock times and
does not depend on where a run was interrupted, nor on how many workers or jobs there were.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cxu import files, store, table
from cxu.catalog import strip_image_suffix
from cxu.errors import ImageError, OutputExistsError, UsageError
from cxu.image_listing import ImageFile
from cxu.predict_plan import PREDICTIONS, PlannedImage

logger = logging.getLogger(__name__)

CSV: Final = "predictions.csv"
_LEDGER: Final = ".cxu"
_STAMPS: Final = "files.parquet"
_REJECTED: Final = "rejected-*.json"
_OVERLAYS: Final = "overlays"
_STAMP_SCHEMA: Final = pa.schema(
    [("source", pa.string()), ("image_id", pa.string()), ("size", pa.int64()), ("changed_ns", pa.int64())]
)
_STAMP_COLUMNS: Final = ("size", "changed_ns")
_POSITION: Final = "position"
_PART_COLUMNS: Final = (*_STAMP_COLUMNS, _POSITION)  # what parts have beside the columns of the table
_NAME_HEX: Final = 12
_OPEN_PARTS: Final = 16  # in memory at a time while they are joined
_GROUP_ROWS: Final = store.SHARD_ROWS
_GROUP_ROWS_SAMPLES: Final = 256  # a row with 50 kept samples takes 48 kB

Key = tuple[str, str]  # source, image id
Stamp = tuple[int, int]  # size and time of change of a file
Rejection = tuple[str, Stamp, str]  # a file by its name for people, its stamp, and why it has no row
State = Literal["new", "done", "other"]


class PredictFolder:
    """A folder of predictions.

    Parameters
    ----------
    out
        The folder; it need not exist yet.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / PREDICTIONS
        self._ledger = out / _LEDGER
        self._hashes: dict[Key, str | None] = {}
        self._stamps: dict[Key, Stamp] = {}

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder against other processes while the block runs."""
        from cxu import hub  # noqa: PLC0415 - loads huggingface_hub, which reading a table does not need

        return hub.locked(
            self._ledger / "lock", lambda: logger.warning("waiting for another cxu predict into %s", self.out)
        )

    @property
    def keys(self) -> KeysView[Key]:
        """Source and id of every image that is finished, once the folder is claimed."""
        return self._hashes.keys()

    def claim(self, record: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder the one of ``record``, or refuse; then read what is finished.

        Parameters
        ----------
        record
            Weights and options; its ``identity`` tells whether two records are the same.
        overwrite
            Remove the predictions that are there first.

        Raises
        ------
        OutputExistsError
            If the folder holds predictions made otherwise, and ``overwrite`` is not given, or a table of that name
            that cxu did not write.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OutputExistsError(f"{self.out} is a file: choose another --out")
        held = files.read_record(self.out)
        if held is None and self.path.exists():
            raise OutputExistsError(
                f"{self.path} is there without the {files.RECORD} that says how it was made, so it is not touched: "
                "move it away, or choose another --out"
            )
        if overwrite and held is not None:
            self._refuse_command(held)
            self._clear()
        elif held is not None and held.get("identity") != record["identity"]:
            raise OutputExistsError(
                f"{self.out} holds predictions made otherwise ({difference(held, record)}): choose another --out, or "
                "replace them with --overwrite"
            )
        for folder in (self.out, self._ledger):
            files.remove_leftovers(folder)
        if overwrite or held is None:
            files.write_json(self.out / files.RECORD, record)
        self._drop_joined()
        for path in self._tables():
            self._hashes |= dict(self._keys_of(path))
        self._stamps = self._read_stamps()

    def _refuse_command(self, held: Mapping[str, Any]) -> None:
        """Refuse to clear what another command wrote."""
        if held.get("command", "predict") != "predict":
            raise OutputExistsError(f"{self.out} was made by cxu {held['command']}: choose another --out")

    def _drop_joined(self) -> None:
        """Remove parts that a run joined to the table and had no time to remove."""
        if not self.path.is_file() or not self._parts():
            return
        joined = {key for key, _ in self._keys_of(self.path)}
        for path in self._parts():
            if all(key in joined for key, _ in self._keys_of(path)):
                path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove the pictures, the CSV, the table, the parts and, last, the record."""
        for path in self._tables():
            for key, _ in self._keys_of(path):
                self.overlay_path(key).unlink(missing_ok=True)
        ledger = [*self._parts(), *self._ledger.glob(_REJECTED), self._ledger / _STAMPS]
        for path in [*self.csv_paths(), *ledger, self.path, self.out / files.RECORD]:
            path.unlink(missing_ok=True)

    def csv_paths(self) -> list[Path]:
        """Return the CSV files that are there: one, or one for each source."""
        return [path for path in (self.out / CSV, *sorted(self.out.glob("predictions-*.csv"))) if path.is_file()]

    def _parts(self) -> list[Path]:
        return sorted(self._ledger.glob("part-*.parquet"))

    def _tables(self) -> list[Path]:
        return [path for path in (self.path, *self._parts()) if path.is_file()]

    def _keys_of(self, path: Path) -> Iterator[tuple[Key, str | None]]:
        """Yield source and id of each row of a table, and the hash of its file."""
        for shard in store.open_table(path).shards():
            rows = shard.read(("source", "image_id", "file_sha256"))
            columns = (rows[name].to_pylist() for name in ("source", "image_id", "file_sha256"))
            yield from (((source, image_id), sha256) for source, image_id, sha256 in zip(*columns, strict=True))

    def _read_stamps(self) -> dict[Key, Stamp]:
        found: dict[Key, Stamp] = {}
        for path in (self._ledger / _STAMPS, *self._parts()):
            # a ledger that is gone or torn only saves reading files again
            with suppress(OSError, pa.ArrowException):
                columns = pq.read_table(path, columns=_STAMP_SCHEMA.names).to_pydict()
                rows = zip(*(columns[name] for name in _STAMP_SCHEMA.names), strict=True)
                found |= {(source, image_id): (size, changed) for source, image_id, size, changed in rows}
        return found

    def overlay_path(self, key: Key) -> Path:
        """Return where the picture of an image goes; :func:`check_paths` tells whether two would share one."""
        source, image_id = key
        return self.out / _OVERLAYS / files.safe_relative(f"{source}/{strip_image_suffix(image_id)}.png")

    def state(self, image: PlannedImage) -> State:
        """Tell whether an image is ``new``, ``done``, or its id is taken by an ``other`` file."""
        key = (image.source.name, image.image_id)
        if key not in self._hashes:
            return "new"
        stamp = stamp_of(image.file)
        if self._stamps.get(key) == stamp:
            return "done"
        if self._hashes[key] != _hash(image.file):
            return "other"
        self._stamps[key] = stamp
        return "done"

    def add(self, rows: pa.Table, stamps: Sequence[Stamp], positions: Sequence[int], group: str = "") -> Path:
        """Write rows as a part, from here on safe from interruptions, and return its path.

        Parameters
        ----------
        rows, stamps
            Rows of the table, and their files' stamps.
        positions
            Where in its plan each image stands.
        group
            Begins the part's name, see :meth:`keys_of_group`; the rest follows from the images. So no two processes
            write other content under one name, wherever they run.
        """
        found = {name: [stamp[index] for stamp in stamps] for index, name in enumerate(_STAMP_COLUMNS)}
        for name, values in {**found, _POSITION: positions}.items():
            rows = rows.append_column(name, pa.array(values, pa.int64()))
        keys = list(zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
        path = self._ledger / f"part-{group}-{files.hash_of(keys)[:_NAME_HEX]}.parquet"
        store.write_table(rows, path)
        return path

    def keys_of_group(self, group: str) -> set[Key]:
        """Return the images whose rows are in parts of a group, by whichever process."""
        parts = self._ledger.glob(f"part-{group}-*.parquet")
        return {key for path in parts for key, _ in self._keys_of(path)}

    def waiting(self) -> set[Key]:
        """Return the images whose rows are in parts, and not yet in the table."""
        return {key for path in self._parts() for key, _ in self._keys_of(path)}

    def join(self, planned: Iterable[Key] = ()) -> int:
        """Join the parts to the table and return how many rows it has.

        Parameters
        ----------
        planned
            The order in which new rows are to stand. Before them stand those that another plan left, in its order.
        """
        parts, stamps = self._parts(), self._stamps | self._read_stamps()
        if parts or not self.path.is_file():
            before = [self.path] if self.path.is_file() else []
            with store.table_writer(self.path, self._schema([*before, *parts])) as writer:
                for group in _regroup(itertools.chain(self._shards(before), self._ordered(before, parts, planned))):
                    writer.write(group)
        self._write_stamps(stamps)
        for path in parts:
            path.unlink(missing_ok=True)
        return store.open_table(self.path).rows

    def _shards(self, paths: Iterable[Path]) -> Iterator[pa.Table]:
        return (shard.read() for path in paths for shard in store.open_table(path).shards())

    def _ordered(self, before: Sequence[Path], parts: Sequence[Path], planned: Iterable[Key]) -> Iterator[pa.Table]:
        """Yield the rows of parts in their order, each image once; memory is bounded by some parts."""
        ranks = {key: rank for rank, key in enumerate(planned)}
        seen = {key for path in before for key, _ in self._keys_of(path)}
        places = []
        for number, path in enumerate(parts):
            positions = _positions_of(path)
            for row, (key, _) in enumerate(self._keys_of(path)):
                # two workers may have done the same images, where one was taken for dead
                if key not in seen:
                    seen.add(key)
                    places.append((key in ranks, ranks.get(key, positions[row]), number, row))
        places.sort()
        read = functools.lru_cache(maxsize=_OPEN_PARTS)(lambda number: _read_part(parts[number]))
        # neighbours that stand in one part one after the other come in one piece
        for _, run in itertools.groupby(enumerate(places), lambda one: (one[1][2], one[1][3] - one[0])):
            rows = [place for _, place in run]
            yield read(rows[0][2]).slice(rows[0][3], len(rows))

    def note_rejected(self, job: str, rejected: Sequence[Rejection]) -> None:
        """Note which files one job of an array could make no row of, in place of what it noted before."""
        path = self._ledger / _REJECTED.replace("*", job)
        if rejected:
            files.write_json(path, rejected)
        else:
            path.unlink(missing_ok=True)

    def rejected(self) -> dict[str, tuple[Stamp, str]]:
        """Return what the jobs of an array noted: name of each file → its stamp, and why it has no row."""
        found: dict[str, tuple[Stamp, str]] = {}
        for path in sorted(self._ledger.glob(_REJECTED)):
            with suppress(OSError, ValueError):  # a note that is torn only means trying again
                found |= {name: ((size, changed), why) for name, (size, changed), why in json.loads(path.read_bytes())}
        return found

    def forget_rejected(self) -> None:
        """Remove these notes: whoever does all images has tried them again."""
        for path in self._ledger.glob(_REJECTED):
            path.unlink(missing_ok=True)

    def _schema(self, tables: Sequence[Path]) -> pa.Schema:
        schema = store.open_table(tables[0]).schema if tables else table.SCHEMA
        fields = [field for field in schema if field.name not in _PART_COLUMNS]
        return pa.schema(fields, metadata=table.encode_metadata({"kind": "predictions"}))

    def _write_stamps(self, stamps: Mapping[Key, Stamp]) -> None:
        rows = [(*key, *stamp) for key, stamp in sorted(stamps.items())]
        columns = list(zip(*rows, strict=True)) or [()] * len(_STAMP_SCHEMA)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, _STAMP_SCHEMA.types, strict=True)]
        store.write_table(pa.table(arrays, schema=_STAMP_SCHEMA), self._ledger / _STAMPS)


def _positions_of(path: Path) -> list[int]:
    return pq.read_table(path, columns=[_POSITION])[_POSITION].to_pylist()


def _read_part(path: Path) -> pa.Table:
    return pq.read_table(path).drop_columns(list(_PART_COLUMNS))


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in groups of one size, wherever the tables end."""
    waiting: list[pa.Table] = []
    n_waiting = 0
    for rows in tables:
        left = rows
        size = _GROUP_ROWS_SAMPLES if "samples_xy" in rows.column_names else _GROUP_ROWS
        while n_waiting + len(left) >= size:
            head = left.slice(0, size - n_waiting)
            yield pa.concat_tables([*waiting, head]).combine_chunks()
            left, waiting, n_waiting = left.slice(len(head)), [], 0
        if len(left):
            waiting.append(left)
            n_waiting += len(left)
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def check_paths(keys: Iterable[Key]) -> None:
    """Refuse images whose picture or mask would be one file: ``a.png`` and ``a.dcm``, or ``A.png`` on many systems.

    Raises
    ------
    UsageError
        Naming the first two.
    """
    taken: dict[Key, Key] = {}
    for source, image_id in keys:
        stem = (source, files.collision_key(strip_image_suffix(image_id)))
        first = taken.setdefault(stem, (source, image_id))
        if first != (source, image_id):
            raise UsageError(
                f"the pictures or masks of {first[1]} and {image_id} would be one file on many systems: predict them "
                "apart, each with an --out of its own, or leave --overlay and --masks out"
            )


def stamp_of(file: ImageFile) -> Stamp:
    """Return size and time of change of a file; zeros where it is gone."""
    return file.stamp()[1:]


def _hash(file: ImageFile) -> str | None:
    try:
        return file.sha256()
    except ImageError:
        return None


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what two records differ."""
    if not held:
        return f"its {files.RECORD} is damaged"
    if held.get("command") != "predict":
        return f"it was made by cxu {held.get('command')}"
    before = held.get("made_with") or {}
    found = [
        f"{name} was {json.dumps(before.get(name))}, now {json.dumps(value)}"
        for name, value in wanted["made_with"].items()
        if before.get(name) != value
    ]
    return "; ".join(found) or "its identity differs"
