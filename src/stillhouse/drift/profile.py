"""What a window looks like: one pass over Arrow record batches, bounded memory, enough to measure any distance later.

A number falls into a cell of its float64 bit pattern: :func:`keys` maps it to an integer in the same order, and a
cell is what remains when the ``shift`` lowest bits are dropped. So an octave has 2^(52 − shift) cells of one width, as
in HdrHistogram, and cells get wider with the magnitude, as in DDSketch (Masson et al. 2019). ``shift`` is the smallest
at which the values fall into at most 2^13 cells. Nothing is anchored in the data, therefore

- a profile depends on the rows alone, not on their order or on how they were cut into batches;
- merging (``+``) is exact, associative and commutative, and ``−`` takes a part out of the whole again;
- up to 2^13 distinct values are kept as they are.

Categories are counted by value; beyond 2^15 values the heavy hitters are kept as Misra and Gries (1982) did, in the
mergeable form of Agarwal et al. ("Mergeable summaries", 2012, section 2), with the largest possible error beside them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.errors import SchemaError, WindowError

if TYPE_CHECKING:
    import pandas as pd

    from stillhouse.config import Column

__all__ = [
    "CategoryProfile",
    "ColumnProfile",
    "NumberProfile",
    "ParquetRows",
    "Profile",
    "build",
    "keys",
    "number_profile",
    "numbers_at",
    "scan",
]

MAX_CELLS = 2**13  # of a number
MAX_VALUES = 2**15  # of a category
BATCH_ROWS = 2**16  # as many as fit into the cache, with what is worked out from them
STRETCH = 2**20  # rows of which one column is read before the next
BUFFER = 2**16  # bytes of a file
WINDOW = 2**15  # cells that are counted in a table
MAX_WAITING = 2 * MAX_CELLS  # rows that are not, before they are sorted
INFINITY = np.float64(np.inf).view(np.int64)
NONE = np.empty(0)

Array = np.ndarray[Any, Any]


# --------------------------------------------------------------------------- cells


def keys(values: Array) -> Array:
    """int64 ``[n]`` in the order of float64 ``[n]`` without NaN: bit patterns, those of negatives turned round."""
    bits: Array = (values + 0.0).view(np.int64)  # + 0.0 makes −0.0 zero
    sign = bits >> 63
    bits &= np.int64(2**63 - 1)
    bits ^= sign
    return bits


def numbers_at(key: Array) -> Array:
    """float64 ``[n]``: the number of each key; that of −1, which no number has, is the one before zero."""
    bits = np.minimum(np.where(key < 0, np.maximum(~key, 1), key), INFINITY)
    values: Array = bits.view(np.float64)
    return np.where(key < 0, -values, values)


def _tally(cells: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Distinct cells, ascending, and the rows in each: of int64 ``[n]`` with ``weights`` rows each, one by default."""
    if weights is None:
        cells = np.sort(cells)
        starts = _starts(cells)
        return cells[starts], np.diff(starts, append=len(cells))
    order = np.argsort(cells, kind="stable")
    cells, weights = cells[order], weights[order]
    starts = _starts(cells)
    return cells[starts], _sums(weights, starts)


def _sums(weights: Array, starts: Array) -> Array:
    """Of each run that begins at one of ``starts`` (``reduceat`` takes five times as long)."""
    upto = np.append(0, np.cumsum(weights))
    return np.diff(upto[starts], append=upto[-1:])


def _smallest_shift(cells: Array, most: int) -> int:
    """How many more bits to drop so that at most ``most`` of the ascending ``cells`` stay apart.

    Neighbours stay apart as long as the highest bit in which they differ is not dropped.
    """
    if len(cells) <= most:
        return 0
    apart = (cells[1:] ^ cells[:-1]).view(np.uint64)
    return bisect_left(range(64), True, key=lambda shift: bool(np.count_nonzero(apart >> np.uint64(shift)) < most))


def _starts(ordered: Array) -> Array:
    """Where runs of equal numbers begin."""
    return np.flatnonzero(np.append(len(ordered) > 0, ordered[1:] != ordered[:-1])[: len(ordered)])


# --------------------------------------------------------------------------- profiles


@dataclass(frozen=True, eq=False)
class NumberProfile:
    """Fine counts of a number; nulls and NaN are missing, ±∞ have cells of their own at the ends.

    ``cells`` and ``counts`` are int64 ``[C]``, ascending and at least 1; ``low`` and ``high`` are the smallest and the
    largest value, None without any.
    """

    shift: int
    cells: Array = field(repr=False)
    counts: Array = field(repr=False)
    missing: int
    low: float | None
    high: float | None

    kind = "number"

    @property
    def rows(self) -> int:
        """All rows, missing ones included."""
        return int(self.counts.sum()) + self.missing

    @property
    def values(self) -> Array:
        """float64 ``[C]``: the middle of each cell, within ``low`` and ``high``; −∞ and ∞ at the ends."""
        if self.low is None or self.high is None:
            return np.empty(0)
        return np.clip(numbers_at((self.cells << self.shift) + (1 << self.shift >> 1)), self.low, self.high)

    @property
    def mean(self) -> float:
        """Mean of the finite values, from the cells; NaN without any."""
        return _moments(self)[0]

    @property
    def std(self) -> float:
        """Standard deviation of the finite values, from the cells; NaN without any."""
        return _moments(self)[1]

    def at(self, shift: int) -> NumberProfile:
        """The same in coarser cells; ``shift`` not below its own."""
        if shift == self.shift:
            return self
        cells = self.cells >> (shift - self.shift)
        starts = _starts(cells)
        return replace(self, shift=shift, cells=cells[starts], counts=_sums(self.counts, starts))

    def bounded(self) -> NumberProfile:
        """The same in cells as coarse as their number asks for."""
        return self.at(self.shift + _smallest_shift(self.cells, MAX_CELLS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberProfile) and (
            (self.shift, self.missing, self.low, self.high) == (other.shift, other.missing, other.low, other.high)
            and np.array_equal(self.cells, other.cells)
            and np.array_equal(self.counts, other.counts)
        )

    def __add__(self, other: NumberProfile) -> NumberProfile:
        if self is EMPTY:
            return other
        one, two, shift = _alike(self, other)
        cells, counts = _tally(np.append(one.cells, two.cells), np.append(one.counts, two.counts))
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        low, high = min(lows, default=None), max(highs, default=None)
        return NumberProfile(shift, cells, counts, self.missing + other.missing, low, high).bounded()

    def __sub__(self, other: NumberProfile) -> NumberProfile:
        one, two, shift = _alike(self, other)
        cells, counts = _tally(np.append(one.cells, two.cells), np.append(one.counts, -two.counts))
        missing = self.missing - other.missing
        if missing < 0 or (counts < 0).any():
            raise WindowError(NOT_A_PART)
        return NumberProfile(shift, cells[counts > 0], counts[counts > 0], missing, self.low, self.high)


@dataclass(frozen=True)
class CategoryProfile:
    """Rows by value, most frequent first.

    With ``error`` 0 every value is there and its count exact. Otherwise a value has between ``count`` and
    ``count + error`` rows (``count`` 0 if it is not there), and ``others`` are the rows counted to no value.
    """

    counts: dict[str, int]
    missing: int
    others: int = 0
    error: int = 0

    kind = "category"

    @property
    def rows(self) -> int:
        """All rows, missing ones included."""
        return sum(self.counts.values()) + self.others + self.missing

    def __add__(self, other: CategoryProfile) -> CategoryProfile:
        counts = dict(other.counts)
        for value, count in self.counts.items():
            counts[value] = counts.get(value, 0) + count
        return _heavy_hitters(
            counts, self.missing + other.missing, self.others + other.others, self.error + other.error
        )

    def __sub__(self, other: CategoryProfile) -> CategoryProfile:
        error, missing = self.error + other.error, self.missing - other.missing
        left = dict(self.counts)
        for value, count in other.counts.items():
            left[value] = left.get(value, 0) - count
        present = self.rows - other.rows - missing
        if min(missing, present) < 0 or (not error and min(left.values(), default=0) < 0):
            raise WindowError(NOT_A_PART)
        counts = {value: count - other.error for value, count in left.items() if count > other.error}
        return _heavy_hitters(counts, missing, max(0, present - sum(counts.values())), error)


ColumnProfile = NumberProfile | CategoryProfile
NOT_A_PART = "a profile can only be taken out of one that contains it"
EMPTY = NumberProfile(0, np.empty(0, np.int64), np.empty(0, np.int64), 0, None, None)


@dataclass(frozen=True)
class Profile:
    """A window, column by column."""

    rows: int
    columns: dict[str, ColumnProfile]

    def to_bytes(self) -> bytes:
        """As Arrow IPC with zstd, a row per column; :meth:`from_bytes` gives back an equal profile."""
        rows = [_row(name, column) for name, column in self.columns.items()]
        schema = SCHEMA.with_metadata({"stillhouse.profile": "1", "rows": str(self.rows)})
        sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, schema, options=options) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """What :meth:`to_bytes` wrote.

        :raises SchemaError: if ``data`` is something else.
        """
        try:
            with pa.ipc.open_stream(data) as stream:
                metadata = stream.schema.metadata or {}
                if metadata.get(b"stillhouse.profile") != b"1" or stream.schema != SCHEMA:
                    raise SchemaError("these bytes hold an Arrow table, but no profile of stillhouse")
                batches = list(stream)
            for batch in batches:
                batch.validate(full=True)
            columns = dict(_column(batch, i) for batch in batches for i in range(batch.num_rows))
            return cls(int(metadata[b"rows"]), columns)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise SchemaError(f"these bytes are not a profile: {error}") from error

    def __add__(self, other: Profile) -> Profile:
        """Both windows as one.

        :raises SchemaError: if the columns differ.
        """
        pairs = _pairs(self, other)
        return Profile(self.rows + other.rows, {name: one + two for name, one, two in pairs})  # type: ignore[operator]

    def __sub__(self, other: Profile) -> Profile:
        """This window without ``other``, a part of it; ``low`` and ``high`` stay those of the whole.

        :raises SchemaError: if the columns differ.
        :raises WindowError: if ``other`` is not a part of it.
        """
        pairs = _pairs(self, other)
        return Profile(self.rows - other.rows, {name: one - two for name, one, two in pairs})  # type: ignore[operator]


def _pairs(one: Profile, two: Profile) -> Iterator[tuple[str, ColumnProfile, ColumnProfile]]:
    kinds = [{name: column.kind for name, column in profile.columns.items()} for profile in (one, two)]
    if kinds[0] != kinds[1]:
        raise SchemaError(f"profiles of different columns do not go together: {kinds[0]} and {kinds[1]}")
    return ((name, column, two.columns[name]) for name, column in one.columns.items())


def _alike(one: NumberProfile, two: NumberProfile) -> tuple[NumberProfile, NumberProfile, int]:
    shift = max(one.shift, two.shift)
    return one.at(shift), two.at(shift), shift


def _heavy_hitters(counts: Mapping[str, int], missing: int, others: int, error: int) -> CategoryProfile:
    """At most ``MAX_VALUES`` values: each count less that of the first value that has no place (Agarwal et al.).

    Each time, more than ``MAX_VALUES`` rows go for every one that the error grows: it stays below rows / MAX_VALUES.
    """
    ordered = sorted(sorted(counts), key=counts.__getitem__, reverse=True)
    off = counts[ordered[MAX_VALUES]] if len(ordered) > MAX_VALUES else 0
    kept = {value: counts[value] - off for value in ordered[:MAX_VALUES] if counts[value] > off}
    dropped = sum(counts.values()) - sum(kept.values()) if off else 0
    return CategoryProfile(kept, missing, others + dropped, error + off)


def _moments(profile: NumberProfile) -> tuple[float, float]:
    """Mean and standard deviation; scaled by the largest magnitude, so that no square overflows."""
    values = profile.values
    finite = np.isfinite(values)
    values, counts = values[finite], profile.counts[finite]
    if not len(values):
        return float("nan"), float("nan")
    scale = max(abs(values[0]), abs(values[-1])) or 1.0
    scaled = values / scale
    mean = float(np.average(scaled, weights=counts))
    variance = float(np.average((scaled - mean) ** 2, weights=counts))
    return mean * scale, variance**0.5 * scale


# --------------------------------------------------------------------------- bytes

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("missing", pa.int64()),
        ("shift", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("cells", pa.list_(pa.int64())),  # the first, then the distance of each from the one before
        ("values", pa.list_(pa.string())),
        ("counts", pa.list_(pa.int64())),
        ("others", pa.int64()),
        ("error", pa.int64()),
    ]
)


def _row(name: str, column: ColumnProfile) -> dict[str, Any]:
    """One row of :data:`SCHEMA`; what its kind has no use for is null."""
    row: dict[str, Any] = {"name": name, "kind": column.kind, "missing": column.missing}
    if isinstance(column, CategoryProfile):
        counts = list(column.counts.values())
        return row | {"values": list(column.counts), "counts": counts, "others": column.others, "error": column.error}
    cells = np.diff(column.cells, prepend=np.int64(0))
    return row | {
        "shift": column.shift,
        "low": column.low,
        "high": column.high,
        "cells": cells,
        "counts": column.counts,
    }


def _column(batch: pa.RecordBatch, i: int) -> tuple[str, ColumnProfile]:
    """The column that row ``i`` describes, and its name."""
    known = {field.name: batch.column(field.name)[i] for field in SCHEMA}
    name, kind, missing, shift, low, high, others, error = (
        known[key].as_py() for key in ("name", "kind", "missing", "shift", "low", "high", "others", "error")
    )
    counts = _plain(known["counts"].values)
    if kind == "category":
        values = known["values"].values.to_pylist()
        return name, CategoryProfile(dict(zip(values, counts.tolist(), strict=True)), missing, others, error)
    cells = np.cumsum(_plain(known["cells"].values))  # may wrap round, as the differences did
    if len(cells) != len(counts) or (cells[1:] <= cells[:-1]).any() or (counts <= 0).any() or not 0 <= shift < 64:
        raise ValueError(f"column {name!r} has no ascending cells with a count each")
    return name, NumberProfile(shift, cells, counts, missing, low, high)


# --------------------------------------------------------------------------- scanning


def scan(
    source: Any,
    columns: Sequence[str] | None = None,
    like: Profile | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Profile:
    """The profile of all rows of ``source``, in one pass and bounded memory.

    Integers, floats, decimals, dates, timestamps, times and durations are numbers (in seconds, since the epoch where
    they are moments); booleans are the categories ``true`` and ``false``; what else Arrow can write as text is a
    category.

    Of a folder it reads what Arrow's dataset reader would: no hidden files, folders such as ``month=2024-01`` as
    columns, and of all files' columns each; a column that a file lacks is missing there.

    :param source: a Parquet file or a folder of them, a dataset, table or reader of Arrow, or any iterable of
        record batches. (Of a Delta table its dataset: the folder also holds files that no longer count.)
    :param columns: which columns, in this order; by default those of ``like``, or else all.
    :param like: a profile that the result will be compared with: its columns, each of its kind and nowhere finer.
    :param on_rows: told the rows of each batch when it has been counted.
    :raises SchemaError: if a column is absent or there twice, or cannot be profiled: a list, a struct, text where
        numbers are due.
    :raises WindowError: if a folder holds no Parquet file.
    """
    wanted = list(columns) if columns is not None else list(like.columns) if like else None
    if isinstance(source, str | Path):
        source = ParquetRows.at(Path(source))
        wanted = _present(wanted, source.names, str(source.path))
    kinds = {name: column.kind for name, column in like.columns.items()} if like else {}
    scratch = _Scratch()
    tallies = {name: _Column(name, kinds.get(name), scratch) for name in wanted or ()}
    total = 0
    for batch, rows in _batches(source, wanted):
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if name not in tallies:
                tallies[name] = _Column(name, None, scratch)
            tallies[name].add(array)
        total += rows
        if on_rows is not None and rows:
            on_rows(rows)
    return _as_coarse_as(like, Profile(total, {name: tally.profile() for name, tally in tallies.items()}))


def build(frame: pd.DataFrame, columns: Mapping[str, Column], like: Profile | None = None) -> Profile:
    """The profile of the watched columns (``drift=True``) of ``frame``, in the order of ``columns``.

    :param like: a profile that the result will be compared with: numbers are nowhere finer.
    :raises WindowError: if ``frame`` has no rows.
    :raises SchemaError: if it lacks a watched column, or a number is not numeric.
    """
    if frame.empty:
        raise WindowError("a profile needs a window with rows; this one has none")
    if not frame.columns.is_unique:
        _present(None, list(frame.columns), "the rows")
    watched = {name: column for name, column in columns.items() if column.drift}
    absent = [name for name in watched if name not in frame.columns]
    if absent:
        raise SchemaError(f"the window lacks the columns {absent}; it has {list(frame.columns)}")
    found: dict[str, ColumnProfile] = {
        name: number_profile(_numbers(frame[name])) if column.type == "number" else _category(frame[name])
        for name, column in watched.items()
    }
    return _as_coarse_as(like, Profile(len(frame), found))


def number_profile(values: Array) -> NumberProfile:
    """The profile of float64 ``[n]``; NaN is missing."""
    tally = _Numbers(_Scratch())
    tally.count(np.ascontiguousarray(values, dtype=np.float64))
    return tally.profile()


def _as_coarse_as(like: Profile | None, profile: Profile) -> Profile:
    columns = dict(profile.columns)
    for name, known in like.columns.items() if like else ():
        column = columns.get(name)
        if isinstance(known, NumberProfile) and isinstance(column, NumberProfile):
            columns[name] = column.at(max(column.shift, known.shift))
    return replace(profile, columns=columns)


def _numbers(values: pd.Series) -> Array:
    import pandas as pd

    try:
        return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {values.name!r} must be numeric: {error}") from error


def _category(values: pd.Series) -> CategoryProfile:
    counts: dict[str, int] = {}
    for value, count in values.value_counts(dropna=True).items():
        if count:
            text = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
            counts[text] = counts.get(text, 0) + int(count)
    return _heavy_hitters(counts, int(values.isna().sum()), 0, 0)


def _batches(source: Any, columns: list[str] | None) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches of some columns, and how many rows are complete with each."""
    if isinstance(source, ParquetRows):
        yield from source.by_column(columns or [])
        return
    if isinstance(source, pa.Table):
        source = source.to_batches(max_chunksize=BATCH_ROWS)
    elif hasattr(source, "to_batches"):
        source = source.to_batches(columns=columns, batch_size=BATCH_ROWS)
    for batch in source:
        yield batch.select(_present(columns, batch.schema.names, "the rows")), batch.num_rows


class _File(NamedTuple):
    """A Parquet file, its columns, and the others that its folders' names give to all of its rows."""

    path: Path
    schema: pa.Schema
    constants: dict[str, pa.Scalar]


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, or a folder as Arrow's dataset reader sees it."""

    path: Path
    files: tuple[_File, ...]

    @classmethod
    def at(cls, path: Path) -> ParquetRows:
        """The file or folder ``path``; the files' schemas are read.

        :raises SchemaError: if a file is no Parquet, or has two columns of one name.
        :raises WindowError: if the folder holds no Parquet file.
        """
        folder = path.is_dir()
        found = [file for file in _visible(path) if _is_parquet(file)] if folder else [path]
        if not found:
            raise WindowError(f"the folder {path} holds no Parquet file")
        schemas = [_schema(file) for file in found]
        keys = _keys_of_folders(path, found) if folder else [{}] * len(found)
        files = zip(found, schemas, keys, strict=True)
        return cls(path, tuple(_File(file, schema, _without(schema.names, key)) for file, schema, key in files))

    @property
    def names(self) -> list[str]:
        """The columns of all files, in the order in which they first appear; then those of the folders' names."""
        own = [name for file in self.files for name in file.schema.names]
        return list(dict.fromkeys([*own, *(name for file in self.files for name in file.constants)]))

    def by_column(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Column by column within a stretch of rows: one table at a time is in the cache, and one page in memory.

        Texts come with the dictionary that they were written with.
        """
        import pyarrow.parquet as pq

        for file in self.files:
            own = [name for name in columns if name in file.schema.names]
            others = {name: file.constants.get(name, pa.NA) for name in columns if name not in own}
            texts = [field.name for field in file.schema if pa.types.is_string(field.type)]
            with pq.ParquetFile(file.path, read_dictionary=texts, buffer_size=BUFFER, pre_buffer=False) as parquet:
                rows = parquet.metadata.num_rows
                for name, value in others.items():
                    yield from ((_repeated(name, value, count), 0) for count in _pieces(rows))
                if not own:
                    yield pa.RecordBatch.from_arrays([], names=[]), rows
                    continue
                for groups in _stretches(parquet.metadata):
                    for name in own:
                        for batch in parquet.iter_batches(BATCH_ROWS, groups, [name], use_threads=False):
                            # asked for "a", Parquet's reader brings "a.b" along
                            yield batch.select([name]), batch.num_rows if name == own[-1] else 0

    def by_row(self) -> Iterator[pa.RecordBatch]:
        """Batches with all columns: null where a file lacks one."""
        import pyarrow.parquet as pq

        for file in self.files:
            own = file.schema.names
            others = {name: file.constants.get(name, pa.NA) for name in self.names if name not in own}
            with pq.ParquetFile(file.path) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
                    more = [pa.repeat(value, batch.num_rows) for value in others.values()]
                    yield pa.RecordBatch.from_arrays([*batch.columns, *more], names=[*batch.schema.names, *others])


def _visible(folder: Path) -> list[Path]:
    """The files that Arrow's dataset reader sees: none whose name, or whose folder's, begins with ``.`` or ``_``."""
    from pyarrow.fs import FileSelector, FileType, LocalFileSystem

    found = LocalFileSystem().get_file_info(FileSelector(str(folder), recursive=True))
    paths = sorted(Path(info.path) for info in found if info.type == FileType.File)
    return [path for path in paths if not any(part[0] in "._" for part in path.relative_to(folder).parts)]


def _is_parquet(path: Path) -> bool:
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _schema(path: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error
    _refuse_twins(schema.names, str(path))
    return schema


def _keys_of_folders(folder: Path, files: Sequence[Path]) -> list[dict[str, pa.Scalar]]:
    """What the names of each file's folders, such as ``month=2024-01``, say of its rows; of Arrow's own types."""
    from pyarrow import dataset, fs

    options = dataset.FileSystemFactoryOptions(
        partition_base_dir=str(folder), partitioning=dataset.HivePartitioning.discover()
    )
    paths = [str(file) for file in files]
    factory = dataset.FileSystemDatasetFactory(fs.LocalFileSystem(), paths, dataset.ParquetFileFormat(), options)
    schema = factory.inspect_schemas()[-1]
    partitioning = dataset.HivePartitioning(schema)
    found = []
    for file in files:
        keys = dataset.get_partition_keys(partitioning.parse(str(file.relative_to(folder))))
        found.append({field.name: pa.scalar(keys[field.name], field.type) for field in schema if field.name in keys})
    return found


def _without(names: Sequence[str], keys: dict[str, pa.Scalar]) -> dict[str, pa.Scalar]:
    """What a file says itself counts for more than its folders' names."""
    return {name: value for name, value in keys.items() if name not in names}


def _pieces(rows: int) -> Iterator[int]:
    yield from (min(BATCH_ROWS, rows - start) for start in range(0, rows, BATCH_ROWS))


def _repeated(name: str, value: pa.Scalar, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.repeat(value, rows)], names=[name])


def _refuse_twins(names: Sequence[str], where: str) -> None:
    """:raises SchemaError: if two columns have one name."""
    if twins := sorted({name for name in names if names.count(name) > 1}):
        what = where if where == "the rows" else f"the rows of {where}"
        named = ", ".join(map(repr, twins))  # as stillhouse.frames says it, without pandas, which takes a second
        raise SchemaError(f"{what} have more than one column {named}: rename or drop one of them")


def _stretches(metadata: Any) -> Iterator[list[int]]:
    """Row groups that follow one another, of ``STRETCH`` rows or more together."""
    groups, rows = [], 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= STRETCH:
            yield groups
            groups, rows = [], 0
    if groups:
        yield groups


def _present(columns: list[str] | None, names: list[str], where: str) -> list[str]:
    _refuse_twins(names, where)
    absent = [name for name in columns or () if name not in names]
    if absent:
        raise SchemaError(f"no columns {absent} in {where}; there are {names}")
    return names if columns is None else columns


class _Column:
    """The tally of one column of batches; its kind is that of its first batch with a type."""

    def __init__(self, name: str, kind: str | None, scratch: _Scratch) -> None:
        self.name, self.scratch, self.untyped = name, scratch, 0
        self.tally: _Numbers | _Values | None = None
        if kind is not None:
            self.tally = _Numbers(scratch) if kind == "number" else _Values()

    def add(self, array: pa.Array) -> None:
        """Count one batch."""
        if pa.types.is_null(array.type):
            self.untyped += len(array)
            return
        number = _is_number(array.type)
        if self.tally is None:
            self.tally = _Numbers(self.scratch) if number else _Values()
        if isinstance(self.tally, _Numbers) and not number:
            raise SchemaError(f"column {self.name!r} must be numeric; it is {array.type}")
        try:
            self.tally.add(array)
        except pa.ArrowException as error:
            raise SchemaError(f"column {self.name!r} of type {array.type} cannot be profiled: {error}") from error

    def profile(self) -> ColumnProfile:
        """Of all batches; a column that never had a type is a category without values."""
        profile = (_Values() if self.tally is None else self.tally).profile()
        return replace(profile, missing=profile.missing + self.untyped)


def _is_number(kind: pa.DataType) -> bool:
    if pa.types.is_interval(kind):
        return False
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal)
    return any(test(kind) for test in tests)


def _floats(array: pa.Array, out: Array) -> Array:
    """float64 of the values that are not null, what is temporal in seconds; in ``out`` unless they lie as they are."""
    kind = array.type
    plain = _plain(pc.cast(array, pa.float64(), safe=False) if pa.types.is_decimal(kind) else array)
    if plain.dtype == np.float64:
        return plain
    values = out[: len(plain)]
    np.copyto(values, plain)
    if pa.types.is_date32(kind):
        values *= 86400.0
    elif pa.types.is_temporal(kind):
        values /= {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[getattr(kind, "unit", "ms")]
    return values


def _plain(array: pa.Array) -> Array:
    """The numbers of an array that are not null (as ``to_numpy`` gives them, which would import pandas)."""
    kind, (valid, data), first, last = array.type, array.buffers(), array.offset, array.offset + len(array)
    letter = "f" if pa.types.is_floating(kind) else "u" if pa.types.is_unsigned_integer(kind) else "i"
    numbers: Array = np.frombuffer(data or b"", dtype=f"{letter}{kind.bit_width // 8}")[first:last]
    if array.null_count:
        octets = np.frombuffer(valid, np.uint8)[first // 8 : last // 8 + 1]
        bits = np.unpackbits(octets, bitorder="little")[first % 8 : first % 8 + len(array)]
        numbers = numbers[bits.view(bool)]
    return numbers


class _Numbers:
    """Counts numbers: most of them in a :class:`_Table`, and by sorting those that it has no place for."""

    def __init__(self, scratch: _Scratch) -> None:
        self.scratch = scratch
        self.missing = 0
        self.low, self.high = np.inf, -np.inf
        self.sum = EMPTY
        self.table: _Table | None = None
        self.waiting: list[Array] = []
        self.rows_waiting = 0

    def add(self, array: pa.Array) -> None:
        """Count one batch."""
        self.missing += array.null_count
        for start in range(0, len(array), BATCH_ROWS):
            self.count(_floats(array.slice(start, BATCH_ROWS), self.scratch.values))

    def count(self, values: Array) -> None:
        """Count float64 ``[n]``; NaN is missing."""
        start = 0
        while start < len(values):
            part = values[start : start + (BATCH_ROWS if self.table else MAX_WAITING)]
            start += len(part)
            low = part.min()
            if np.isnan(low):
                present = part[~np.isnan(part)]
                self.missing += len(part) - len(present)
                if not len(present):
                    continue
                part, low = present, present.min()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(part.max()))
            strays = self.table.add(part) if self.table else part.copy()
            if len(strays):
                self._wait(strays)

    def profile(self) -> NumberProfile:
        """Of all that was counted."""
        ends = (self.low, self.high) if self.low <= self.high else (None, None)
        return replace(self._together(), missing=self.missing, low=ends[0], high=ends[1])

    def _wait(self, strays: Array) -> None:
        self.waiting.append(strays)
        self.rows_waiting += len(strays)
        if self.rows_waiting >= MAX_WAITING:
            self.sum = self._together()
            self.table, self.waiting, self.rows_waiting = _Table.of(self.sum, self.scratch), [], 0

    def _together(self) -> NumberProfile:
        parts = [self.table.profile()] if self.table else []
        if self.waiting:
            cells, counts = _tally(keys(np.concatenate(self.waiting)))
            parts.append(replace(EMPTY, cells=cells, counts=counts).bounded())
        return sum(parts, start=self.sum)


class _Table:
    """Counts numbers by their place in a table: a few vector operations, no search.

    A place is a cell within a window of magnitudes; with negatives, the table is doubled. Where the values known so far
    are few and far between, the window would be too wide: then a place is ``coarser`` than a cell by as many bits as
    still keep them apart, and stands for the one of the ``numbers`` that is known in it. The end (of negatives, the
    beginning) is the place of zero, and of all that lies outside the window. A number that is not of its place is a
    stray, left to the caller.
    """

    def __init__(self, known: NumberProfile, coarser: int, first: int, scratch: _Scratch) -> None:
        self.shift, self.drop, self.first, self.scratch = known.shift, known.shift + coarser, first, scratch
        self.signed = bool(known.cells[0] < 0)
        self.counts = np.zeros((WINDOW + 1) * (1 + self.signed), np.int64)
        self.numbers: Array | None = None
        if coarser:
            numbers = numbers_at(known.cells)
            self.numbers = np.full(len(self.counts), np.nan)
            self.numbers[self._places(numbers)] = numbers
            self.numbers[[-1, 0] if self.signed else -1] = 0.0

    @classmethod
    def of(cls, known: NumberProfile, scratch: _Scratch) -> _Table | None:
        """The table that holds most of the ``known`` rows; None if that is less than half."""
        magnitudes, counts = _tally(known.cells ^ (known.cells >> 63), known.counts)
        zeros = int(counts[magnitudes == 0].sum())
        magnitudes, counts = magnitudes[magnitudes > 0], counts[magnitudes > 0]
        apart = int((magnitudes[1:] ^ magnitudes[:-1]).min()) if len(magnitudes) > 1 else 1
        for coarser in (0, 0 if known.shift else apart.bit_length() - 1):
            first, held = _window(magnitudes >> coarser, counts)
            if 2 * (zeros + held) >= zeros + counts.sum():
                return cls(known, coarser, first, scratch)
        return None

    def add(self, values: Array) -> Array:
        """Count float64 ``[n]`` without NaN, n at most ``BATCH_ROWS``; gives back the strays."""
        places, outside = self._places(values), self._outside()
        np.add.at(self.counts, places, 1)
        if self.numbers is not None:
            known = np.take(self.numbers, places, out=self.scratch.other[: len(values)].view(np.float64), mode="clip")
            strays = np.flatnonzero(known != values)
        elif self._outside() == outside or self._outside() - outside == np.count_nonzero(values == 0):
            return NONE
        else:
            ends = places == len(self.counts) - 1
            if self.signed:
                ends |= places == 0
            strays = np.flatnonzero(ends & (values != 0))
        np.subtract.at(self.counts, places[strays], 1)
        return values[strays]

    def profile(self) -> NumberProfile:
        """Of all that was counted here."""
        used = np.flatnonzero(self.counts)
        cells, counts = _tally(self._cells(used), self.counts[used])
        return replace(EMPTY, shift=self.shift, cells=cells, counts=counts)

    def _cells(self, places: Array) -> Array:
        if self.numbers is not None:
            return keys(self.numbers[places])
        half = np.arange(self.first, self.first + WINDOW)
        return np.concatenate(([0], ~half[::-1], half, [0]) if self.signed else (half, [0]))[places]

    def _outside(self) -> int:
        return int(self.counts[-1] + (self.counts[0] if self.signed else 0))

    def _places(self, values: Array) -> Array:
        """int64 ``[n]``, overwritten by the next call."""
        places, other = self.scratch.places[: len(values)], self.scratch.other[: len(values)]
        magnitudes = np.abs(values, out=other.view(np.float64)) if self.signed else values
        np.right_shift(magnitudes.view(np.int64), self.drop, out=places)
        np.subtract(places, self.first, out=places)
        unsigned = places.view(np.uint64)  # in which what lies below the window is far above it
        if unsigned.max() > WINDOW:
            np.minimum(unsigned, np.uint64(WINDOW), out=unsigned)
        if self.signed:
            np.right_shift(values.view(np.int64), 63, out=other)
            np.bitwise_xor(places, other, out=places)
            np.add(places, WINDOW + 1, out=places)
        return places


class _Scratch:
    """Memory that a scan uses again and again: fresh pages would cost more than the arithmetic."""

    def __init__(self) -> None:
        np.empty(2**18)  # given back at once: from then on glibc keeps what is smaller for the next to ask
        self.values = np.empty(BATCH_ROWS)
        self.places, self.other = np.empty((2, BATCH_ROWS), np.int64)


def _window(magnitudes: Array, counts: Array) -> tuple[int, int]:
    """First cell of the window of ``WINDOW`` cells that holds most rows, these in its middle; and how many they are."""
    if not len(magnitudes):
        return 1, 0
    upto = np.append(0, np.cumsum(counts))
    ends = np.searchsorted(magnitudes, magnitudes + WINDOW)
    held = upto[ends] - upto[:-1]
    best = int(held.argmax())
    first, last = int(magnitudes[best]), int(magnitudes[ends[best] - 1])
    return max(1, (first + last + 1 - WINDOW) // 2), int(held[best])


class _Values:
    """Counts texts: by their place in a dictionary as long as it stays the same."""

    def __init__(self) -> None:
        self.missing = 0
        self.sum = CategoryProfile({}, 0)
        self.counts: dict[str, int] = {}
        self.texts, self.places = pa.nulls(0, pa.string()), np.zeros(0, np.int64)

    def add(self, array: pa.Array) -> None:
        """Count one batch."""
        self.missing += array.null_count
        if pa.types.is_boolean(array.type):
            true = array.true_count
            return self._take([("true", true), ("false", len(array) - array.null_count - true)])
        if not pa.types.is_dictionary(array.type):
            array = array.cast(pa.string()).dictionary_encode()
        texts = array.dictionary.cast(pa.string())
        if not texts.equals(self.texts):
            self._turn(texts)
        np.add.at(self.places, _plain(array.indices), 1)
        return None

    def profile(self) -> CategoryProfile:
        """Of all that was counted."""
        self._turn(self.texts)
        return replace(self.sum + CategoryProfile(self.counts, 0), missing=self.missing)

    def _turn(self, texts: pa.Array) -> None:
        """Take the counts of one dictionary and begin those of the next."""
        self._take(zip(self.texts.to_pylist(), self.places.tolist(), strict=True))
        self.texts, self.places = texts, np.zeros(len(texts), np.int64)

    def _take(self, found: Iterable[tuple[str | None, int]]) -> None:
        for text, count in found:
            if text is None:
                self.missing += count
            elif count:
                self.counts[text] = self.counts.get(text, 0) + count
        if len(self.counts) > 2 * MAX_VALUES:
            self.sum, self.counts = self.sum + CategoryProfile(self.counts, 0), {}
