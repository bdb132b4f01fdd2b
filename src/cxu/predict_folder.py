"""The folder that predict writes into: whose it is, what of it is finished, and its one table.

::

    <out>/predictions.parquet   every image predicted so far, a row each
    <out>/cxu.json              weights and options: the same ones continue, others are refused
    <out>/overlays/             pictures, where asked for
    <out>/.cxu/part-*.parquet   rows of a run under way, or of one that was interrupted
    <out>/.cxu/files.parquet    size and time of change of each row's file, so that it need not be read again

A run writes parts and joins them to the table at its end. The table holds no clock times and does not depend on where
a run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cxu import files, store, table
from cxu.errors import ImageError, OutputExistsError
from cxu.image_listing import ImageFile
from cxu.predict_plan import PlannedImage

PREDICTIONS: Final = "predictions.parquet"
RECORD: Final = "cxu.json"
_LEDGER: Final = ".cxu"
_STAMPS: Final = "files.parquet"
_OVERLAYS: Final = "overlays"
_STAMP_SCHEMA: Final = pa.schema(
    [("source", pa.string()), ("image_id", pa.string()), ("size", pa.int64()), ("changed_ns", pa.int64())]
)
_GROUP_ROWS: Final = store.SHARD_ROWS
_GROUP_ROWS_SAMPLES: Final = 256  # a row with 50 kept samples takes 48 kB

Key = tuple[str, str]  # source, image id
State = Literal["new", "done", "other"]


@dataclass(frozen=True)
class _Done:
    """A row that is there: the hash of its file, and the file's size and time of change, where known."""

    sha256: str | None
    stamp: tuple[int, int] | None


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
        self._done: dict[Key, _Done] = {}

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
        held = self._held()
        if held is None and self.path.exists():
            raise OutputExistsError(
                f"{self.path} is there without the {RECORD} that says how it was made, so it is not touched: move it "
                "away, or choose another --out"
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
            files.remove_temporaries(folder)
        if overwrite or held is None:
            files.write_json(self.out / RECORD, record)
        self._drop_joined()
        self._done = dict(self._read_done())

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
            if any(key in joined for key, _ in self._keys_of(path)):
                path.unlink()

    def _held(self) -> dict[str, Any] | None:
        """Return the record there is, empty where it is damaged."""
        try:
            held = json.loads((self.out / RECORD).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return held if isinstance(held, dict) else {}

    def _clear(self) -> None:
        """Remove the pictures, the table, the parts and, last, the record."""
        for path in self._tables():
            for key, _ in self._keys_of(path):
                self.overlay_path(key).unlink(missing_ok=True)
        for path in [*self._parts(), self._ledger / _STAMPS, self.path, self.out / RECORD]:
            path.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self._ledger.glob("part-*.parquet"))

    def _tables(self) -> list[Path]:
        return [path for path in (self.path, *self._parts()) if path.is_file()]

    def _read_done(self) -> Iterator[tuple[Key, _Done]]:
        stamps = self._read_stamps()
        for path in self._tables():
            yield from ((key, _Done(sha256, stamps.get(key))) for key, sha256 in self._keys_of(path))

    def _keys_of(self, path: Path) -> Iterator[tuple[Key, str | None]]:
        """Yield source and id of each row of a table, and the hash of its file."""
        for shard in store.open_table(path).shards():
            rows = shard.read(("source", "image_id", "file_sha256"))
            columns = (rows[name].to_pylist() for name in ("source", "image_id", "file_sha256"))
            yield from (((source, image_id), sha256) for source, image_id, sha256 in zip(*columns, strict=True))

    def _read_stamps(self) -> dict[Key, tuple[int, int]]:
        path = self._ledger / _STAMPS
        if not path.is_file():
            return {}
        try:
            columns = pq.read_table(path, schema=_STAMP_SCHEMA).to_pydict().values()
        except (pa.ArrowException, OSError):  # it only saves reading files again
            return {}
        return {(source, image_id): (size, changed) for source, image_id, size, changed in zip(*columns, strict=True)}

    def overlay_path(self, key: Key) -> Path:
        """Return where the picture of an image goes: ``a.png`` as it is, ``a.dcm`` as ``a.dcm.png``."""
        source, image_id = key
        name = image_id if image_id.lower().endswith(".png") else f"{image_id}.png"
        return self.out / _OVERLAYS / files.safe_relative(f"{source}/{name}")

    def state(self, image: PlannedImage) -> State:
        """Tell whether an image is ``new``, ``done``, or its id is taken by an ``other`` file."""
        done = self._done.get((image.source.name, image.image_id))
        if done is None:
            return "new"
        if done.stamp == _stamp(image.file) or done.sha256 == _hash(image.file):
            return "done"
        return "other"

    def add(self, rows: pa.Table) -> None:
        """Write rows as the next part: from here on an interruption does not lose them."""
        last = max((int(path.stem.removeprefix("part-")) for path in self._parts()), default=-1)
        store.write_table(rows, self._ledger / f"part-{last + 1:06d}.parquet")

    def join(self, images: Iterable[PlannedImage]) -> int:
        """Join the parts to the table and return how many rows it has; ``images`` are those that now have one.

        Rows stand in the order in which they were planned, run after run.
        """
        tables, n_rows = self._tables(), 0
        if self._parts() or not self.path.is_file():
            with store.table_writer(self.path, self._schema(tables)) as writer:
                for group in _regroup(tables):
                    writer.write(group)
        if self.path.is_file():
            n_rows = store.open_table(self.path).rows
        self._write_stamps(images)
        for path in self._parts():
            path.unlink()
        return n_rows

    def _schema(self, tables: Sequence[Path]) -> pa.Schema:
        schema = store.open_table(tables[0]).schema if tables else table.SCHEMA
        return schema.with_metadata(table.encode_metadata({"kind": "predictions"}))

    def _write_stamps(self, images: Iterable[PlannedImage]) -> None:
        stamps = {**self._read_stamps()}
        stamps |= {(image.source.name, image.image_id): _stamp(image.file) for image in images}
        rows = [(*key, *stamp) for key, stamp in sorted(stamps.items())]
        columns = list(zip(*rows, strict=True)) or [()] * len(_STAMP_SCHEMA)
        content = pa.table([pa.array(column, kind) for column, kind in zip(columns, _STAMP_SCHEMA.types, strict=True)],
                           schema=_STAMP_SCHEMA)  # fmt: skip
        store.write_table(content, self._ledger / _STAMPS)


def _regroup(tables: Sequence[Path]) -> Iterator[pa.Table]:
    """Yield the rows of tables in groups of one size, wherever their own groups end."""
    waiting: list[pa.Table] = []
    n_waiting = 0
    for path in tables:
        for shard in store.open_table(path).shards():
            rows = shard.read()
            size = _GROUP_ROWS_SAMPLES if "samples_xy" in rows.column_names else _GROUP_ROWS
            while n_waiting + len(rows) >= size:
                head = rows.slice(0, size - n_waiting)
                yield pa.concat_tables([*waiting, head]).combine_chunks()
                rows, waiting, n_waiting = rows.slice(len(head)), [], 0
            if len(rows):
                waiting.append(rows)
                n_waiting += len(rows)
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _stamp(file: ImageFile) -> tuple[int, int]:
    return file.stamp()[1:]


def _hash(file: ImageFile) -> str | None:
    try:
        return file.sha256()
    except ImageError:
        return None


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what two records differ."""
    if not held:
        return f"its {RECORD} is damaged"
    if held.get("command") != "predict":
        return f"it was made by cxu {held.get('command')}"
    before = held.get("made_with") or {}
    found = [
        f"{name} was {json.dumps(before.get(name))}, now {json.dumps(value)}"
        for name, value in wanted["made_with"].items()
        if before.get(name) != value
    ]
    return "; ".join(found) or "its identity differs"
