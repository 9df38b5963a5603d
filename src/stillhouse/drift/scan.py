"""Scans: the profile of a data frame, a Parquet file, a folder, or any stream of Arrow batches, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from stillhouse.drift.profile import CategoryProfile, ColumnProfile, NumberProfile, Profile, keep_heavy_hitters
from stillhouse.drift.tally import BATCH_ROWS, ColumnTally, NumberTally, ScratchMemory
from stillhouse.errors import SchemaError, WindowError

if TYPE_CHECKING:
    import pandas as pd

    from stillhouse.config import Column

__all__ = ["ParquetRows", "profile_frame", "profile_numbers", "scan"]

COLUMN_CHUNK_ROWS = 2**20  # rows of one column that are read before the next column
FILE_BUFFER_BYTES = 2**16

Array = np.ndarray[Any, Any]


def scan(
    source: Any,
    columns: Sequence[str] | None = None,
    like: Profile | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Profile:
    """The profile of all rows of ``source``, in one pass and bounded memory.

    Integers, floats, decimals, dates, timestamps, times and durations are numbers (temporal values in seconds,
    timestamps since the epoch); booleans are the categories ``true`` and ``false``; every other type that Arrow can
    write as text is a category.

    A folder is read as Arrow's dataset reader reads it: hidden files are skipped, folder names such as
    ``month=2024-01`` are columns, and the columns are those of all files; a column that a file lacks is missing there.

    >>> import pyarrow as pa
    >>> profile = scan(pa.table({"delay": [3.0, 3.0, None], "origin": ["JFK", "EWR", "JFK"]}))
    >>> profile.rows, profile.columns["delay"].missing, profile.columns["origin"].counts
    (3, 1, {'JFK': 2, 'EWR': 1})

    :param source: a Parquet file or a folder of them, an Arrow dataset, table or reader, or any iterable of record
        batches. (For a Delta table pass its dataset: the folder also contains files that are no longer part of it.)
    :param columns: the columns to profile, in this order; None: those of ``like``, or else all.
    :param like: a profile that the result will be compared with: its columns, of the same kinds and with cells that are
        nowhere finer.
    :param on_rows: called with the number of rows of each batch after it has been counted.
    :raises SchemaError: if a column is absent or occurs twice, or cannot be profiled: a list, a struct, or text where
        numbers are expected.
    :raises WindowError: if a folder holds no Parquet file.
    """
    names = list(columns) if columns is not None else list(like.columns) if like else None
    if isinstance(source, str | Path):
        source = ParquetRows.from_path(Path(source))
        names = _require_columns(names, source.names, str(source.path))
    kinds = {name: column.kind for name, column in like.columns.items()} if like else {}
    scratch = ScratchMemory()
    tallies = {name: ColumnTally(name, kinds.get(name), scratch) for name in names or ()}
    total = 0
    for batch, rows in _batches(source, names):
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if name not in tallies:
                tallies[name] = ColumnTally(name, None, scratch)
            tallies[name].add(array)
        total += rows
        if on_rows is not None and rows:
            on_rows(rows)
    return _coarsen_like(like, Profile(total, {name: tally.profile() for name, tally in tallies.items()}))


def profile_frame(frame: pd.DataFrame, columns: Mapping[str, Column], like: Profile | None = None) -> Profile:
    """The profile of the watched columns (``drift=True``) of ``frame``, in the order of ``columns``.

    >>> import pandas as pd
    >>> from stillhouse.config import CategoryColumn, NumberColumn
    >>> columns = {"delay": NumberColumn(type="number"), "origin": CategoryColumn(type="category")}
    >>> profile = profile_frame(pd.DataFrame({"delay": [3.0, 5.0], "origin": ["JFK", "JFK"]}), columns)
    >>> profile.columns["delay"].values.tolist(), profile.columns["origin"].counts
    ([3.0, 5.0], {'JFK': 2})

    :param like: a profile that the result will be compared with: number cells are nowhere finer.
    :raises WindowError: if ``frame`` has no rows.
    :raises SchemaError: if it lacks a watched column, or a number column is not numeric.
    """
    if frame.empty:
        raise WindowError("a profile needs a window with rows; this one has none")
    if not frame.columns.is_unique:
        _require_columns(None, list(frame.columns), "the rows")
    watched = {name: column for name, column in columns.items() if column.drift}
    absent = [name for name in watched if name not in frame.columns]
    if absent:
        raise SchemaError(f"the window lacks the columns {absent}; it has {list(frame.columns)}")
    profiles: dict[str, ColumnProfile] = {
        name: profile_numbers(_series_to_floats(frame[name]))
        if column.type == "number"
        else _profile_categories(frame[name])
        for name, column in watched.items()
    }
    return _coarsen_like(like, Profile(len(frame), profiles))


def profile_numbers(values: Array) -> NumberProfile:
    """The profile of float64 ``[n]``; NaN is missing."""
    tally = NumberTally(ScratchMemory())
    tally.count(np.ascontiguousarray(values, dtype=np.float64))
    return tally.profile()


def _coarsen_like(like: Profile | None, profile: Profile) -> Profile:
    columns = dict(profile.columns)
    for name, target in like.columns.items() if like else ():
        column = columns.get(name)
        if isinstance(target, NumberProfile) and isinstance(column, NumberProfile):
            columns[name] = column.coarsen(max(column.shift, target.shift))
    return replace(profile, columns=columns)


def _series_to_floats(values: pd.Series) -> Array:
    import pandas as pd

    try:
        return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {values.name!r} must be numeric: {error}") from error


def _profile_categories(values: pd.Series) -> CategoryProfile:
    counts: dict[str, int] = {}
    for value, count in values.value_counts(dropna=True).items():
        if count:
            text = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
            counts[text] = counts.get(text, 0) + int(count)
    return keep_heavy_hitters(counts, int(values.isna().sum()), 0, 0)


def _batches(source: Any, columns: list[str] | None) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches of some of the columns, and how many rows each of them completes."""
    if isinstance(source, ParquetRows):
        yield from source.by_column(columns or [])
        return
    if isinstance(source, pa.Table):
        source = source.to_batches(max_chunksize=BATCH_ROWS)
    elif hasattr(source, "to_batches"):
        source = source.to_batches(columns=columns, batch_size=BATCH_ROWS)
    for batch in source:
        yield batch.select(_require_columns(columns, batch.schema.names, "the rows")), batch.num_rows


# --------------------------------------------------------------------------- files


class _ParquetFile(NamedTuple):
    """A Parquet file, its schema, and the constant columns that the names of its folders add."""

    path: Path
    schema: pa.Schema
    constants: dict[str, pa.Scalar]


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, or a folder as Arrow's dataset reader sees it."""

    path: Path
    files: tuple[_ParquetFile, ...]

    @classmethod
    def from_path(cls, path: Path) -> ParquetRows:
        """The file or folder ``path``; reads the schemas of the files.

        :raises SchemaError: if a file is not Parquet, or has two columns of the same name.
        :raises WindowError: if the folder holds no Parquet file.
        """
        is_folder = path.is_dir()
        paths = [file for file in _visible_files(path) if _is_parquet(file)] if is_folder else [path]
        if not paths:
            raise WindowError(f"the folder {path} holds no Parquet file")
        schemas = [_read_schema(file) for file in paths]
        keys = _partition_keys(path, paths) if is_folder else [{}] * len(paths)
        files = []
        for file, schema, file_keys in zip(paths, schemas, keys, strict=True):
            # a column inside the file takes precedence over a folder's name
            constants = {name: value for name, value in file_keys.items() if name not in schema.names}
            files.append(_ParquetFile(file, schema, constants))
        return cls(path, tuple(files))

    @property
    def names(self) -> list[str]:
        """The columns of all files in the order in which they first appear, then those from the folders' names."""
        in_files = [name for file in self.files for name in file.schema.names]
        return list(dict.fromkeys([*in_files, *(name for file in self.files for name in file.constants)]))

    def by_column(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches of one column each, column by column within a range of rows, and the rows that each completes.

        So only one count table has to be in the processor's cache, and one page in memory. Texts come with the
        dictionary that they were written with.
        """
        import pyarrow.parquet as pq

        for file in self.files:
            in_file = [name for name in columns if name in file.schema.names]
            others = {name: file.constants.get(name, pa.NA) for name in columns if name not in in_file}
            texts = [field.name for field in file.schema if pa.types.is_string(field.type)]
            with pq.ParquetFile(
                file.path, read_dictionary=texts, buffer_size=FILE_BUFFER_BYTES, pre_buffer=False
            ) as parquet:
                rows = parquet.metadata.num_rows
                for name, value in others.items():
                    yield from ((_constant_batch(name, value, count), 0) for count in _batch_sizes(rows))
                if not in_file:
                    yield pa.RecordBatch.from_arrays([], names=[]), rows
                    continue
                for row_groups in _row_group_chunks(parquet.metadata):
                    for name in in_file:
                        for batch in parquet.iter_batches(BATCH_ROWS, row_groups, [name], use_threads=False):
                            # select: for column "a" Parquet's reader also returns "a.b"
                            yield batch.select([name]), batch.num_rows if name == in_file[-1] else 0

    def by_row(self) -> Iterator[pa.RecordBatch]:
        """Batches with all columns: null where a file lacks one."""
        import pyarrow.parquet as pq

        for file in self.files:
            in_file = file.schema.names
            others = {name: file.constants.get(name, pa.NA) for name in self.names if name not in in_file}
            with pq.ParquetFile(file.path) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
                    constants = [pa.repeat(value, batch.num_rows) for value in others.values()]
                    yield pa.RecordBatch.from_arrays([*batch.columns, *constants], names=[*batch.schema.names, *others])


def _visible_files(folder: Path) -> list[Path]:
    """The files that Arrow's dataset reader reads: no file or folder whose name begins with ``.`` or ``_``."""
    from pyarrow.fs import FileSelector, FileType, LocalFileSystem

    entries = LocalFileSystem().get_file_info(FileSelector(str(folder), recursive=True))
    paths = sorted(Path(entry.path) for entry in entries if entry.type == FileType.File)
    return [path for path in paths if not any(part[0] in "._" for part in path.relative_to(folder).parts)]


def _is_parquet(path: Path) -> bool:
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _read_schema(path: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error
    _refuse_repeated_columns(schema.names, str(path))
    return schema


def _partition_keys(folder: Path, files: Sequence[Path]) -> list[dict[str, pa.Scalar]]:
    """The columns that folder names such as ``month=2024-01`` give each file, typed as Arrow types them."""
    from pyarrow import dataset, fs

    options = dataset.FileSystemFactoryOptions(
        partition_base_dir=str(folder), partitioning=dataset.HivePartitioning.discover()
    )
    paths = [str(file) for file in files]
    factory = dataset.FileSystemDatasetFactory(fs.LocalFileSystem(), paths, dataset.ParquetFileFormat(), options)
    schema = factory.inspect_schemas()[-1]
    partitioning = dataset.HivePartitioning(schema)
    keys_by_file = []
    for file in files:
        keys = dataset.get_partition_keys(partitioning.parse(str(file.relative_to(folder))))
        typed = {field.name: pa.scalar(keys[field.name], field.type) for field in schema if field.name in keys}
        keys_by_file.append(typed)
    return keys_by_file


def _batch_sizes(rows: int) -> Iterator[int]:
    yield from (min(BATCH_ROWS, rows - start) for start in range(0, rows, BATCH_ROWS))


def _constant_batch(name: str, value: pa.Scalar, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.repeat(value, rows)], names=[name])


def _refuse_repeated_columns(names: Sequence[str], where: str) -> None:
    """:raises SchemaError: if two columns have the same name."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        rows = where if where == "the rows" else f"the rows of {where}"
        listed = ", ".join(map(repr, repeated))  # the words of stillhouse.frames, without importing pandas
        raise SchemaError(f"{rows} have more than one column {listed}: rename or drop one of them")


def _row_group_chunks(metadata: Any) -> Iterator[list[int]]:
    """Consecutive row groups that together have ``COLUMN_CHUNK_ROWS`` rows or more."""
    groups, rows = [], 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= COLUMN_CHUNK_ROWS:
            yield groups
            groups, rows = [], 0
    if groups:
        yield groups


def _require_columns(columns: list[str] | None, names: list[str], where: str) -> list[str]:
    _refuse_repeated_columns(names, where)
    absent = [name for name in columns or () if name not in names]
    if absent:
        raise SchemaError(f"no columns {absent} in {where}; there are {names}")
    return names if columns is None else columns
