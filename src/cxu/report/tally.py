"""What a table's rows are counted for: where they came from, whose they are, what of them is usable; shard by shard."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxu import store, table
from cxu.anatomy import ORGANS, OrganName
from cxu.catalog import source_or_custom
from cxu.errors import FormatError, UsageError
from cxu.selection import excluded_path

_ORIGIN: Final = (
    "source",
    "frame",
    "model_id",
    "n_samples",
    "seed",
    "precision",
    "repo",
    "revision",
    "file_sha256",
)
_READ: Final = (*_ORIGIN, "patient_id", "quality", "confident", "usable")
_EXCLUDED: Final = ("source", "image_id", "reason")
_BATCH: Final = 1 << 16  # of excluded rows, which are three short texts each


@dataclass(frozen=True)
class Origin:
    """Where rows came from: the columns of the table of these names; ``file_sha256`` of published files only."""

    source: str
    frame: str
    model_id: str
    n_samples: int | None
    seed: int | None
    precision: str | None
    repo: str | None
    revision: str | None
    file_sha256: str | None

    @property
    def is_published(self) -> bool:
        """Whether the rows were read from a published file, not predicted."""
        return self.model_id == table.PUBLISHED_MODEL

    @property
    def has_sigma(self) -> bool:
        """Whether the rows have standard deviations."""
        return (self.n_samples or 0) > 1


@dataclass
class Tally:
    """What was counted of a table.

    Attributes
    ----------
    rows
        By source.
    origins
        Rows by where they came from.
    patients
        How many different ones there are, by source; only sources where a row names one.
    nodes, organs
        Confident nodes and usable organs, by organ; all of them in a table that is no selection.
    quality
        Rows by verdict of the gate; None without one.
    """

    rows: Counter[str] = field(default_factory=Counter)
    origins: Counter[Origin] = field(default_factory=Counter)
    patients: dict[str, int] = field(default_factory=dict)
    nodes: dict[OrganName, int] = field(default_factory=lambda: dict.fromkeys((organ.name for organ in ORGANS), 0))
    organs: dict[OrganName, int] = field(default_factory=lambda: dict.fromkeys((organ.name for organ in ORGANS), 0))
    quality: Counter[str | None] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.rows.total()

    @property
    def sources(self) -> list[str]:
        """Sources of the rows, in order of name."""
        return sorted(name for name, count in self.rows.items() if count)

    def as_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            "rows": self.total,
            "rows_by_source": {name: self.rows[name] for name in self.sources},
            "patients_by_source": self.patients,
            "origins": [{**asdict(origin), "rows": count} for origin, count in self.sorted_origins()],
            "nodes": {
                organ.name: {"confident": self.nodes[organ.name], "of": self.total * organ.n_nodes} for organ in ORGANS
            },
            "organs": {organ.name: {"usable": self.organs[organ.name], "of": self.total} for organ in ORGANS},
            "quality": {name or "none": count for name, count in sorted(self.quality.items(), key=str)},
        }

    def sorted_origins(self) -> list[tuple[Origin, int]]:
        """Return the origins with their rows, by source and model."""
        return sorted(self.origins.items(), key=lambda item: [str(value) for value in asdict(item[0]).values()])


def tally_table(stored: store.StoredTable, progress: Callable[[int], None] = lambda _: None) -> Tally:
    """Count the rows of a stored table. Memory is bounded by a shard and the names of the patients."""
    found, patients = Tally(), defaultdict[str, set[str]](set)
    for shard in stored.shards():
        rows = shard.read(_READ)
        found.origins.update(_origins(rows))
        for entry in pc.value_counts(rows["quality"]).to_pylist():
            found.quality[entry["values"]] += entry["counts"]
        _count_kept(rows, found)
        for source, patient in _distinct(rows.select(["source", "patient_id"])):
            if patient is not None:
                patients[source].add(patient)
        progress(len(rows))
    for origin, count in found.origins.items():
        found.rows[origin.source] += count
    found.patients = {source: len(names) for source, names in sorted(patients.items())}
    return found


def _origins(rows: pa.Table) -> dict[Origin, int]:
    # a prediction's is the hash of its image: as many as there are rows
    published = pc.equal(rows["model_id"], table.PUBLISHED_MODEL)
    hashes = pc.if_else(published, rows["file_sha256"], pa.scalar(None, pa.string()))
    keyed = rows.select(_ORIGIN).set_column(_ORIGIN.index("file_sha256"), "file_sha256", hashes)
    counted = keyed.group_by(list(_ORIGIN), use_threads=False).aggregate([([], "count_all")])
    return {Origin(**{name: one[name] for name in _ORIGIN}): one["count_all"] for one in counted.to_pylist()}


def _count_kept(rows: pa.Table, found: Tally) -> None:
    confident, usable = table.confident_of(rows), table.usable_of(rows)
    for index, organ in enumerate(ORGANS):
        found.nodes[organ.name] += int(confident[:, organ.nodes].sum())
        found.organs[organ.name] += int(usable[:, index].sum())


def _distinct(rows: pa.Table) -> list[tuple[str, str | None]]:
    names = rows.column_names
    made = rows.group_by(names, use_threads=False).aggregate([])
    return list(zip(*(made[name].to_pylist() for name in names), strict=True))


def patients_of_flow(
    stored: store.StoredTable, reasons: Sequence[str], excluded: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[int, ...]] | None:
    """Return how many patients came to a filter and how many are left after each of its steps, by source.

    A patient is left as long as one of his rows is. Sources whose ids name no patient do not appear.

    Parameters
    ----------
    stored
        The selection.
    reasons
        The names of the steps, in order.
    excluded
        By step and source, how many rows were left out: the list beside the selection must say the same.

    Returns
    -------
    None where that list is gone, or is another selection's.
    """
    path = excluded_list(stored)
    if path is None:
        return None
    try:
        return _patients(stored, path, reasons, excluded)
    except FormatError:
        return None


def _patients(
    stored: store.StoredTable, path: Path, reasons: Sequence[str], excluded: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[int, ...]] | None:
    steps = {reason: index for index, reason in enumerate(reasons)}
    reached: dict[str, dict[str, int]] = defaultdict(dict)
    counted: Counter[tuple[str, str]] = Counter()
    for batch in excluded_batches(path):
        for reason, of_reason in _split_by(batch, "reason"):
            if reason not in steps:
                return None
            for source, of_source in _split_by(of_reason, "source"):
                counted[reason, source] += len(of_source)
                _raise_to(reached[source], _patients_named(source, of_source["image_id"]), steps[reason])
    if {key: count for key, count in counted.items() if count} != _expected(excluded):
        return None
    for shard in stored.shards():
        for source, patient in _distinct(shard.read(["source", "patient_id"])):
            if patient is not None and _names_patients(source):
                reached[source][patient] = len(steps)
    return {
        source: tuple(sum(step >= least for step in of_source.values()) for least in range(len(steps) + 1))
        for source, of_source in sorted(reached.items())
        if of_source
    }


def excluded_list(stored: store.StoredTable) -> Path | None:
    """Return the list of rows that a selection leaves out, or None where there is none."""
    if stored.kind != "selection" or len(stored.paths) != 1:
        return None
    path = excluded_path(stored.paths[0])
    return path if path.is_file() else None


def excluded_batches(path: Path) -> Iterator[pa.Table]:
    """Yield ``source``, ``image_id`` and ``reason`` of the rows of such a list, some at a time.

    Raises
    ------
    FormatError
        If it is none.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names != list(_EXCLUDED):
                raise FormatError(f"{path} lists no excluded rows; expected the columns {', '.join(_EXCLUDED)}")
            for batch in file.iter_batches(_BATCH):
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise FormatError(f"{path} is no readable list of excluded rows: {error}") from None


def _expected(excluded: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], int]:
    return {
        (reason, source): count for reason, of_step in excluded.items() for source, count in of_step.items() if count
    }


def _split_by(rows: pa.Table, name: str) -> list[tuple[str, pa.Table]]:
    return [(value, rows.filter(pc.equal(rows[name], value))) for value in rows[name].unique().to_pylist()]


def _names_patients(source: str) -> bool:
    return bool(_pattern(source))


def _pattern(source: str) -> str:
    try:
        return source_or_custom(source).patient_pattern
    except UsageError:  # a name that the catalogue would not take
        return ""


def _patients_named(source: str, image_ids: pa.ChunkedArray) -> set[str]:
    if not _names_patients(source):
        return set()
    rule = source_or_custom(source)
    return {patient for patient in map(rule.patient_id, image_ids.to_pylist()) if patient is not None}


def _raise_to(reached: dict[str, int], patients: set[str], step: int) -> None:
    for patient in patients:
        reached[patient] = max(reached.get(patient, -1), step)
