"""Rows by what other files say of them: id lists, label tables, and conditions on columns."""

from __future__ import annotations

import csv
import functools
import gzip
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cxu import table
from cxu.catalog import ID_COLUMN_FALLBACKS, SOURCES, Source, normalise_name, source_or_custom
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, UsageError

BoolArray = npt.NDArray[np.bool_]

MAX_LEVELS: Final = 12
LABEL_SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")
_TRUTHS: Final = {"true": "true", "1": "true", "yes": "true", "false": "false", "0": "false", "no": "false"}
_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "!=": pc.not_equal,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "=": pc.equal,
    "<": pc.less,
    ">": pc.greater,
}


@dataclass(frozen=True)
class Condition:
    """A condition on one column: ``column operator value``, for ``=`` and ``!=`` any of several values."""

    column: str
    operator: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{','.join(self.values)}"


def parse_condition(text: str) -> Condition:
    """Return the condition of a ``--where`` value such as ``ViewPosition=PA,AP`` or ``rca_mean>=0.8``.

    Raises
    ------
    UsageError
        If there is no operator, no column or no value, or a list where one value is compared by size.

    Examples
    --------
    >>> parse_condition("AP/PA = PA, AP")
    Condition(column='AP/PA', operator='=', values=('PA', 'AP'))
    """
    match = re.fullmatch(r"\s*(.*?)\s*(!=|<=|>=|==?|<|>)\s*(.*?)\s*", text)
    values = tuple(value.strip() for value in match[3].split(",")) if match else ()
    if not match or not match[1] or not all(values):
        raise UsageError(f"--where {text!r}: expected column, operator (= != < <= > >=) and value, such as view=PA")
    operator = match[2].replace("==", "=")
    if operator not in ("=", "!=") and len(values) > 1:
        raise UsageError(f"--where {text!r}: a list of values goes with = and != only")
    return Condition(match[1], operator, values)


def satisfies(rows: pa.Table, condition: Condition) -> BoolArray:
    """Return which rows [n] satisfy a condition; a row whose value is null does not, whatever the operator.

    Numbers compare as numbers, everything else as text.

    Raises
    ------
    UsageError
        If there is no such column, it holds lists, or a value is no number where the column holds numbers.
    """
    check_condition(rows.schema, condition)
    column = rows[condition.column]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = pa.string()
    if _is_number(column.type):
        # 0.7 must equal a stored float32 0.7
        kind = column.type if pa.types.is_floating(column.type) else pa.float64()
    read = _number if _is_number(column.type) else _truth if pa.types.is_boolean(column.type) else _text
    values = [read(value, condition) for value in condition.values]
    if pa.types.is_signed_integer(column.type) and all(isinstance(value, int) for value in values):
        kind = pa.int64()
    wanted = [
        pa.scalar(value if kind == pa.int64() or isinstance(value, str) else float(value), kind) for value in values
    ]
    compare = _OPERATORS[condition.operator]
    # float64 rounds whole numbers above 2^53
    results = [compare(column.cast(kind, safe=False), value).fill_null(False).to_numpy() for value in wanted]
    combine = np.logical_and if condition.operator == "!=" else np.logical_or
    outcome: BoolArray = combine.reduce(results)
    return outcome


def check_condition(schema: pa.Schema, condition: Condition) -> None:
    """Check that a condition can be asked of columns.

    Raises
    ------
    UsageError
        If there is no such column or it holds lists.
    """
    known = [field.name for field in schema if not pa.types.is_nested(field.type)]
    if condition.column not in known:
        trouble = "holds lists" if condition.column in schema.names else "is not there"
        raise UsageError(
            f"--where {condition}: column {condition.column!r} {trouble}; expected one of {', '.join(known)}"
        )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _text(value: str, _: Condition) -> str:
    return value


def _truth(value: str, condition: Condition) -> str:
    """Return a truth value as Arrow writes it."""
    if value.lower() not in _TRUTHS:
        raise UsageError(f"--where {condition}: {condition.column} holds true and false, {value!r} is neither")
    return _TRUTHS[value.lower()]


def _number(value: str, condition: Condition) -> float | int:
    """Return a number, an int where the text is whole and fits in 64 bits."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"--where {condition}: {condition.column} holds numbers, {value!r} is none")
    whole = int(value) if re.fullmatch(r"[+-]?\d{1,19}", value) else int(number) if number.is_integer() else None
    return whole if whole is not None and -(2**63) <= whole < 2**63 else number


class IdList:
    """Ids that rows must be among, one a line, with or without image suffix.

    Of a CSV file the id column is taken where the first line names one, else the first column.

    Raises
    ------
    MissingInputError, FormatError
        If the file does not exist, is no text or holds no id.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingInputError(f"--ids {path}: no such file; expected a text file with one id a line")
        self.ids = _read_ids(path)
        if not self.ids:
            raise FormatError(f"--ids {path} holds no id; expected one a line")
        self._wanted: dict[str, set[str]] = {}
        self._matched: set[str] = set()

    def among(self, rows: pa.Table) -> BoolArray:
        """Return which rows [n] are on the list, and remember which ids were found."""
        keys = zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
        found = np.fromiter((image_id in self._of_source(source) for source, image_id in keys), np.bool_, len(rows))
        self._matched.update(rows["image_id"].filter(pa.array(found)).to_pylist())
        return found

    def _of_source(self, name: str) -> set[str]:
        if name not in self._wanted:
            source = source_or_custom(name)
            self._wanted[name] = {source.canonical_id(text) for text in self.ids}
        return self._wanted[name]

    def unmatched(self) -> list[str]:
        """Return the ids on the list that no row had, as written there."""
        rules = [source_or_custom(name) for name in self._wanted]
        return [text for text in self.ids if not any(source.canonical_id(text) in self._matched for source in rules)]


def _read_ids(path: Path) -> list[str]:
    try:
        lines = [line for line in csv.reader(path.read_text("utf-8-sig").splitlines()) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"--ids {path} is no text file ({error}); expected one id a line") from None
    known = {normalise_name(name) for source in SOURCES.values() for name in source.id_columns}
    header = [index for index, name in enumerate(lines[0] if lines else []) if normalise_name(name) in known]
    column = header[0] if header else 0
    ids = [line[column].strip() for line in lines[bool(header) :] if len(line) > column]
    return list(filter(None, ids))


class Labels:
    """A label table, joined to rows by the source's id rule, its columns kept.

    A column whose name the table has a meaning for gets the prefix ``label_``.

    Parameters
    ----------
    path
        ``.csv``, ``.csv.gz`` or ``.parquet``.
    source
        The source whose rows it labels.

    Raises
    ------
    MissingInputError, FormatError
        If the file does not exist, cannot be read or has no id column.
    DuplicateIdError
        If an id stands in more than one line: a row would become several.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source = path, source
        content, id_column = _read_labels(path, source)
        texts = content.column(id_column).cast(pa.string()).to_pylist()
        self._line_of = self._index(texts)
        content = content.remove_column(id_column)
        self.columns = content.rename_columns(_free_names(content.column_names))
        self._matched = np.zeros(len(texts), np.bool_)

    def _index(self, texts: list[str | None]) -> dict[str, int]:
        """Return canonical id → line."""
        lines: dict[str, int] = {}
        repeated = []
        for line, text in enumerate(texts):
            if text is not None and lines.setdefault(self.source.canonical_id(text), line) != line:
                repeated.append(text)
        if repeated:
            raise DuplicateIdError(
                f"--labels {self.path}: {len(repeated)} lines repeat an id, {repeated[0]!r} first; "
                "expected one line an image: aggregate them first"
            )
        return lines

    def take(self, rows: pa.Table) -> tuple[pa.Table, BoolArray]:
        """Return the label columns of the rows [n], null where there is none, and which rows have a line."""
        keys = zip(rows["source"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
        lines = [self._line_of.get(image_id) if source == self.source.name else None for source, image_id in keys]
        index = pa.array(lines, pa.int64())
        self._matched[index.drop_null().to_numpy()] = True
        return self.columns.take(index), index.is_valid().to_numpy(zero_copy_only=False)

    @property
    def n_lines(self) -> int:
        """Lines of the file."""
        return len(self._matched)

    @property
    def n_unmatched(self) -> int:
        """Lines of the file that no row had."""
        return int((~self._matched).sum())

    @functools.cached_property
    def level_columns(self) -> tuple[str, ...]:
        """Columns with 2 to 12 levels, blank being one: exclusion can be compared between levels."""
        return tuple(
            field.name
            for field in self.columns.schema
            if not (pa.types.is_nested(field.type) or pa.types.is_null(field.type))
            and 2 <= pc.count_distinct(self.columns[field.name], mode="all").as_py() <= MAX_LEVELS
        )


_TAKEN: Final = frozenset({*table.SCHEMA.names, *table.OPTIONAL.names})


def _free_names(names: Sequence[str]) -> list[str]:
    """Return the names, those that the table or an earlier column has with a prefix."""
    free: list[str] = []
    for name in names:
        while name in _TAKEN or name in free:
            name = f"label_{name}"  # noqa: PLW2901 - prefixed until it is free
        free.append(name)
    return free


def _read_labels(path: Path, source: Source) -> tuple[pa.Table, int]:
    """Return the content of a label file and which column holds the ids."""
    names = label_columns(path)
    id_name = find_id_column(names, source)
    if id_name is None:
        raise FormatError(
            f"--labels {path}: no id column of {source.title}; expected {' or '.join(source.id_columns)}, "
            f"found {', '.join(names)}"
        )
    try:
        content = pq.read_table(path) if path.name.endswith(".parquet") else _read_csv(path, id_name)
        at = content.column_names.index(id_name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"--labels {path} cannot be read: {error}") from None
    for index, field in enumerate(content.schema):
        if pa.types.is_dictionary(field.type):
            content = content.set_column(index, field.name, content.column(index).cast(field.type.value_type))
        if pa.types.is_binary(field.type):
            raise FormatError(f"--labels {path}: column {field.name!r} is not UTF-8 text; save the file as UTF-8")
    return content, at


def _read_csv(path: Path, id_name: str) -> pa.Table:
    return pa_csv.read_csv(
        path,
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        # ids of digits must not be read as numbers
        convert_options=pa_csv.ConvertOptions(column_types={id_name: pa.string()}, strings_can_be_null=True),
    )


def find_id_column(names: Sequence[str], source: Source) -> str | None:
    """Return the column among ``names`` that holds ids of ``source``, or None."""
    by_name = {normalise_name(name): name for name in reversed(names)}
    candidates = (by_name.get(normalise_name(expected)) for expected in source.id_columns)
    return next(filter(None, candidates), None)


def label_columns(path: Path) -> list[str]:
    """Return the column names of a label file without reading it whole.

    Raises
    ------
    MissingInputError, FormatError
        If the file does not exist, has another suffix than :data:`LABEL_SUFFIXES` or cannot be read.
    """
    if not path.is_file():
        raise MissingInputError(f"--labels {path}: no such file")
    if not path.name.endswith(LABEL_SUFFIXES):
        raise FormatError(f"--labels {path}: expected a file {', '.join(LABEL_SUFFIXES)}")
    try:
        if path.name.endswith(".parquet"):
            return list(pq.read_schema(path).names)
        opener: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as stream:
            names = next(csv.reader(stream), [])
    except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise FormatError(f"--labels {path} cannot be read: {error}") from None
    if not names:
        raise FormatError(f"--labels {path} is empty; expected a header line")
    return names


def open_labels(text: str, sources: Sequence[str]) -> Labels:
    """Open the label file of a ``--labels [SOURCE=]FILE`` value for the one source of ``sources`` that it belongs to.

    Without ``SOURCE=`` the id column tells: the one source whose own id column the file has, or the only source.

    Raises
    ------
    UsageError
        If no or several sources could be meant, or SOURCE is not among them.
    """
    prefix, separator, rest = text.partition("=")
    if separator and re.fullmatch(r"[\w-]+", prefix) and not Path(text).exists():
        named = source_or_custom(prefix)
        if named.name not in sources:
            raise UsageError(f"--labels {text}: there are no rows of {named.name}, only of {', '.join(sources)}")
        return Labels(Path(rest), named)
    path = Path(text)
    candidates = [source_or_custom(name) for name in sources]
    chosen = _fitting(candidates, label_columns(path)) if len(candidates) > 1 else candidates
    if len(chosen) != 1:
        raise UsageError(
            f"--labels {path}: which of {', '.join(sources) or 'no source'} does it label? say --labels SOURCE={path}"
        )
    return Labels(path, chosen[0])


def _fitting(candidates: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """Return the sources whose own id column is among the names; a name that any file may have must match exactly."""
    exact = [source for source in candidates if source.id_column in names]
    telling = {normalise_name(name) for name in names} - {normalise_name(name) for name in ID_COLUMN_FALLBACKS}
    return exact or [source for source in candidates if normalise_name(source.id_column) in telling]


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of two columns of one name: numbers as float64, else text.

    Examples
    --------
    >>> common_type(pa.int64(), pa.string()), common_type(pa.int64(), pa.float32())
    (DataType(string), DataType(double))
    """
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    return pa.float64() if _is_number(first) and _is_number(second) else pa.string()
