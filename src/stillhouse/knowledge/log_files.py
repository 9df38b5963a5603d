"""Readers of log files: CSV and JSON lines (also ``.gz``) with line numbers, and Parquet; in chunks of bounded memory.

CSV is read as text (:func:`read_csv` also reads other sources): only an empty field is missing, and a row with too few
or too many values is reported instead of shifted.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.errors import SchemaError
from stillhouse.frames import arrow_to_pandas

__all__ = ["CHUNK_BYTES", "Chunk", "LogFile", "heading_hint", "json_fault", "read_csv"]

Kind = Literal["csv", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
CHUNK_BYTES = 16 * 2**20
"""Maximum size of a chunk in memory, plus one row."""

_MAX_LINE_BYTES = 16 * 2**20
_HEAD_LINES = 100  # of JSON: their keys are the file's columns at first
_HEAD_BYTES = 4096  # of JSON: enough to recognise an array or a multi-line object
_NO_OBJECT = "is no JSON object"
_BUFFER_BYTES = 2**20
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


class Chunk(NamedTuple):
    """Some rows of a file, with the raw values."""

    rows: pd.DataFrame
    """The requested columns: strings from CSV, typed values from JSON and Parquet; missing as None or NaN."""
    lines: list[int]
    """First line of each row, from 1 on; in Parquet the row number."""
    bad: list[tuple[int, str]]
    """Lines that are not rows, and why."""
    bytes_read: int
    """Bytes of the (perhaps compressed) file that were read so far."""
    skipped: Sequence[tuple[int, str]] = ()
    """Lines that are none of the agent's observations, and why: they are counted, and not put into quarantine."""


class LogFile:
    """A CSV, JSON lines or Parquet file.

    :param delimiter: of CSV.
    :raises SchemaError: if there is no such file, or it has an unknown format, is empty or cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "log.csv"
    ...     _ = path.write_text("id,temp\\no1,5\\no2,6,7\\n")
    ...     (chunk,) = LogFile(path).chunks(["temp"], rows=100)
    >>> chunk.rows["temp"].tolist(), chunk.lines, chunk.bad
    (['5'], [2], [(3, 'has 3 values, and there are 2 columns')])
    """

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        self.path, self.delimiter = path, delimiter
        self.is_gzip = path.suffix == ".gz"
        self.kind = self._kind()
        self.size = path.stat().st_size
        with self._wrap_errors():
            self.columns = self._columns()

    def digest(self, on_bytes: Callable[[int], None] = lambda _: None) -> str:
        """BLAKE2b of the content, 128 bits in hexadecimal; chunks read later must have the same content."""
        self._digest_state = self._state()
        digest = hashlib.blake2b(digest_size=16)
        with self._wrap_errors(), self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                on_bytes(len(block))
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Check size and modification time against those at the time of :meth:`digest`.

        :raises SchemaError: if the file was changed.
        """
        if self._state() != self._digest_state:
            raise SchemaError(
                f"{self.path} was changed while it was being read: wait until it is complete, then import it again; "
                "rows that are in the knowledge base already are recognised"
            )

    def missing_columns(self, columns: Sequence[str]) -> list[str]:
        """Those of ``columns`` that the file does not have.

        In JSON lines a key may appear late, so the whole file is searched for keys that its first lines do not have.

        :raises SchemaError: as :meth:`chunks`.
        """
        missing = dict.fromkeys(name for name in columns if name not in self.columns)
        if missing and self.kind == "jsonl":
            with self._wrap_errors(), self._open() as (_, lines):
                for _, record in _json_records(lines):
                    if isinstance(record, dict):
                        for name in [name for name in missing if name in record]:
                            del missing[name]
                            self.columns.append(name)
                    if not missing:
                        break
        return list(missing)

    def chunks(self, columns: Sequence[str], rows: int, max_bytes: int | None = None) -> Iterator[Chunk]:
        """The ``columns`` of all rows, in chunks of up to ``rows`` lines and ``max_bytes``.

        :param max_bytes: in memory, decompressed; by default :data:`CHUNK_BYTES`.
        :raises SchemaError: if the file is truncated, or has a line longer than 16 MiB.
        """
        read = {"csv": self._csv_chunks, "jsonl": self._json_chunks, "parquet": self._parquet_chunks}[self.kind]
        with self._wrap_errors():
            yield from read(list(columns), rows, CHUNK_BYTES if max_bytes is None else max_bytes)

    def records(self) -> Iterator[tuple[int, dict[str, Any] | str, int]]:
        """Of every non-empty line of JSON lines: its number; its object, or why it is none; the bytes read so far.

        :raises SchemaError: if the file is no JSON lines, is truncated, or has a line longer than 16 MiB.
        """
        if self.kind != "jsonl":
            raise SchemaError(f"{self.path} is no file of JSON lines: its name must end with .jsonl or .jsonl.gz")
        with self._wrap_errors(), self._open() as (raw, lines):
            for number, record in _json_records(lines):
                yield number, record, raw.tell()

    def _kind(self) -> Kind:
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "is not there"
            raise SchemaError(f"{self.path} {what}: name files to import")
        suffix = Path(self.path.stem).suffix if self.is_gzip else self.path.suffix
        kind = _KINDS.get(suffix.lower())
        if kind is None or (kind == "parquet" and self.is_gzip):
            known = ".csv, .tsv, .jsonl and .ndjson, each also with .gz, and .parquet"
            raise SchemaError(f"{self.path} has no known format: the file name must end with {known}")
        return kind

    def _state(self) -> tuple[int, int]:
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def _columns(self) -> list[str]:
        if self.kind == "parquet":
            return _require_distinct(list(pq.read_schema(self.path).names), str(self.path))
        columns: list[str]
        with self._open() as (_, lines):
            if self.kind == "csv":
                columns = next(_csv_reader(lines, self._delimiter), [])
            else:
                self._refuse_array()
                head = list(islice(_json_records(lines), _HEAD_LINES))
                columns = list({key: None for _, record in head if isinstance(record, dict) for key in record})
                bad = next(((number, reason) for number, reason in head if isinstance(reason, str)), None)
        if not columns and self.kind == "jsonl" and bad and not self._multi_line_hint():
            raise SchemaError(f"{self.path}:{bad[0]}: the line {bad[1]}; no other at its beginning has columns")
        if not columns:
            what = "a first line with names" if self.kind == "csv" else "a JSON object"
            raise SchemaError(f"{self.path} has no columns: it does not begin with {what}{self._multi_line_hint()}")
        return _require_distinct(columns, str(self.path))

    def _refuse_array(self) -> None:
        """Refuse a file that is one JSON array; an array that is a single line among others is only a bad line.

        :raises SchemaError: if the file is one.
        """
        head = self._head()
        first, _, rest = head.partition(b"\n")
        if head.startswith(b"[") and (not rest.strip() or _json_record(first.decode(errors="replace")) != _NO_OBJECT):
            raise SchemaError(
                f"{self.path} is one JSON array, and must be JSON lines: write each object on a line of its own, as "
                "`jq -c '.[]'` does"
            )

    def _multi_line_hint(self) -> str:
        """Explains a file whose first JSON object spans several lines; empty for other files."""
        first = self._head().partition(b"\n")[0].rstrip()
        if self.kind == "jsonl" and first.startswith(b"{") and not first.endswith(b"}"):
            return ". It is JSON over several lines: write each object on a line of its own, as `jq -c .` does"
        return ""

    def _head(self) -> bytes:
        with self._open() as (_, lines):
            return lines.stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()

    def _csv_chunks(self, columns: list[str], max_rows: int, max_bytes: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            rows = _csv_rows(lines, self._delimiter)
            next(rows)
            index = [self.columns.index(name) for name in columns]
            selected = ((first, row if isinstance(row, str) else [row[i] for i in index]) for first, row in rows)
            yield from self._chunked(raw, lines, columns, selected, max_rows, max_bytes)

    def _json_chunks(self, columns: list[str], max_rows: int, max_bytes: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            selected = (
                (number, record if isinstance(record, str) else [record.get(name) for name in columns])
                for number, record in _json_records(lines)
            )
            yield from self._chunked(raw, lines, columns, selected, max_rows, max_bytes)

    def _chunked(
        self,
        raw: IO[bytes],
        lines: _Lines,
        columns: list[str],
        rows: Iterator[tuple[int, list[Any] | str]],
        max_rows: int,
        max_bytes: int,
    ) -> Iterator[Chunk]:
        """Collect rows, or reasons why a line is not a row, into chunks."""
        values, numbers, bad = list[list[Any]](), list[int](), list[tuple[int, str]]()
        start_bytes = lines.bytes
        for number, row in rows:
            if isinstance(row, str):
                bad.append((number, row))
            else:
                values.append(row)
                numbers.append(number)
            if len(values) + len(bad) >= max_rows or lines.bytes - start_bytes >= max_bytes:
                yield Chunk(pd.DataFrame(values, columns=columns, dtype=object), numbers, bad, raw.tell())
                values, numbers, bad = [], [], []
                start_bytes = lines.bytes
        yield Chunk(pd.DataFrame(values, columns=columns, dtype=object), numbers, bad, self.size)

    def _parquet_chunks(self, columns: list[str], max_rows: int, max_bytes: int) -> Iterator[Chunk]:
        """Strings stay dictionary-encoded until their total size is known."""
        texts = [field.name for field in pq.read_schema(self.path) if _is_text(field.type)]
        with pq.ParquetFile(self.path, read_dictionary=texts, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            rows_read, total_rows = 0, max(1, file.metadata.num_rows)
            size = _batch_rows(file.metadata, set(columns), max_rows, max_bytes)
            for batch in file.iter_batches(batch_size=size, columns=columns, use_threads=False):
                for part in _split_batch(batch, max_bytes):
                    frame = arrow_to_pandas(part)[columns]
                    numbers = list(range(rows_read + 1, rows_read + len(frame) + 1))
                    rows_read += len(frame)
                    yield Chunk(frame, numbers, [], self.size * rows_read // total_rows)

    @property
    def _delimiter(self) -> str:
        return "\t" if ".tsv" in self.path.suffixes else self.delimiter

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], _Lines]]:
        """The raw file, and its decompressed lines."""
        with self.path.open("rb") as raw:
            yield raw, _Lines(gzip.GzipFile(fileobj=raw) if self.is_gzip else raw, str(self.path))

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        try:
            yield
        except SchemaError:
            raise
        except (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, ValueError, OverflowError) as error:
            what = {"csv": "CSV in UTF-8", "jsonl": "JSON lines", "parquet": "Parquet"}[self.kind]
            raise SchemaError(f"{self.path} cannot be read as {what}{' in gzip' * self.is_gzip}: {error}") from error


class _Lines:
    """Lines of UTF-8. An undecodable line raises, and the next call returns the line after it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, name: str) -> None:
        self.stream, self.name = stream, name
        self.number = self.bytes = 0
        """Number of lines, and of their bytes, read so far."""
        self.row = self.row_bytes = 0
        """Values of both where the current row began."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(_MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        self.bytes += len(line)
        if len(line) == _MAX_LINE_BYTES:
            raise SchemaError(f"{self.name}:{self.number}: the line is longer than 16 MiB: is it a file of lines?")
        if self.bytes - self.row_bytes > _MAX_LINE_BYTES:
            raise SchemaError(f"{self.name}:{self.row + 1}: the row is longer than 16 MiB: is a quote left open?")
        return line.removeprefix(b"\xef\xbb\xbf").decode() if self.number == 1 else line.decode()

    def begin_row(self) -> int:
        """Number of the line in which the next row begins."""
        self.row, self.row_bytes = self.number, self.bytes
        return self.number + 1


def _require_distinct(columns: list[str], name: str) -> list[str]:
    """``columns``, if their names differ; columns without a name cannot be requested and may repeat.

    :raises SchemaError: naming the repeated ones.
    """
    if repeated := sorted(name for name, count in Counter(columns).items() if name and count > 1):
        raise SchemaError(f"{name} has more than one column {', '.join(map(repr, repeated))}: rename them")
    return columns


# --------------------------------------------------------------------------- CSV


def read_csv(stream: IO[bytes], name: str, delimiter: str = ",") -> pd.DataFrame:
    """Read a CSV with a header line: every value as text, an empty field as None.

    :param name: of the file, for error messages.
    :raises SchemaError: naming the first line that is not a row, or columns with the same name.

    >>> from io import BytesIO
    >>> read_csv(BytesIO(b"a,b\\n1,\\n"), "body").to_dict("list")
    {'a': ['1'], 'b': [None]}
    """
    rows = _csv_rows(_Lines(stream, name), delimiter)
    _, heading = next(rows, (1, "is not there"))
    if isinstance(heading, str) or not any(heading):
        reason = heading if isinstance(heading, str) else "has no names"
        raise SchemaError(f"{name} is no CSV with a heading: its first line {reason}")
    columns = _require_distinct(heading, name)
    values = list[list[str | None]]()
    for first, row in rows:
        if isinstance(row, str):
            hint = heading_hint("", columns, delimiter) if len(columns) == 1 else ""
            raise SchemaError(f"{name}, line {first}: {row}{'; ' * bool(hint)}{hint}")
        values.append([value or None for value in row])
    named = [index for index, column in enumerate(columns) if column]
    frame = pd.DataFrame(values, columns=range(len(columns)), dtype=object)[named]
    return frame.set_axis([columns[index] for index in named], axis="columns")


def heading_hint(column: str, columns: Sequence[str], delimiter: str = ",") -> str:
    """Why a CSV lacks a column: another delimiter, or blanks around names; empty if the header does not explain it.

    >>> heading_hint("temp", ["id;temp"])
    'its heading is separated by semicolons, and commas are expected'
    """
    if close := [name for name in columns if name != column and name.strip().strip('"') == column]:
        return f"its heading has blanks around {close[0]!r}: remove them"
    for other, what in _DELIMITERS.items():
        names = [part.strip().strip('"') for name in columns if other in name for part in name.split(other)]
        if other != delimiter and (column in names or (names and len(columns) == 1)):
            return f"its heading is separated by {what}, and {_DELIMITERS.get(delimiter, repr(delimiter))} are expected"
    return ""


def _csv_reader(lines: _Lines, delimiter: str) -> Any:
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _csv_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Every row, including the header, with the number of its first line; or why it is not a row. Skips empty lines."""
    reader = _csv_reader(lines, delimiter)
    width = None
    while True:
        first = lines.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            yield first, f"is not UTF-8 ({error.reason})"
        except csv.Error as error:
            until = f", read up to line {lines.number}" if lines.number > first else ""
            yield first, f"cannot be read as CSV: {error}{until}"
        else:
            width = len(row) if width is None else width
            if len(row) == width:
                yield first, row
            elif row:
                comma = ": is there a delimiter too many at its end?" if row[width:] == [""] else ""
                yield first, f"has {len(row)} values, and there are {width} columns{comma}"


# --------------------------------------------------------------------------- JSON


def _json_records(lines: _Lines) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The object of every line with its line number; or why the line is not one. Skips empty lines."""
    while True:
        lines.begin_row()
        try:
            line = next(lines)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            yield lines.number, f"is not UTF-8 ({error.reason})"
            continue
        if line.strip():
            yield lines.number, _json_record(line)


def _json_record(line: str) -> dict[str, Any] | str:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        return json_fault(line, error)
    if not isinstance(record, dict):
        return _NO_OBJECT
    if line.count('":') + line.count('" :') > len(record) and (repeated := _repeated_keys(line)):
        return f"has more than one key {', '.join(map(repr, repeated))}"
    return record


def _repeated_keys(line: str) -> list[str]:
    """Keys that an object has more than once; msgspec keeps the last value."""
    keys = list[str]()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys[:] = [key for key, _ in pairs]  # the outermost object comes last
        return dict(pairs)

    with suppress(ValueError, RecursionError):
        json.loads(line, object_pairs_hook=collect)
    return sorted(key for key, count in Counter(keys).items() if count > 1)


def json_fault(text: str | bytes, error: Exception) -> str:
    """Why a text cannot be read as JSON: the non-JSON constant in it (such as ``NaN``), or ``error``.

    >>> json_fault('{"temp": NaN}', ValueError("bad"))
    'holds NaN, which is no JSON: write null where a value is missing'
    """
    constants = list[str]()
    with suppress(ValueError, RecursionError):
        json.loads(text, parse_constant=constants.append)
    if constants:
        return f"holds {constants[0]}, which is no JSON: write null where a value is missing"
    return f"cannot be read as JSON: {error}"


# --------------------------------------------------------------------------- Parquet


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _batch_rows(metadata: Any, columns: set[str], max_rows: int, max_bytes: int) -> int:
    """Rows per batch, so that encoded rows of the widest row group stay within ``max_bytes``."""
    max_row_bytes = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        max_row_bytes = max(max_row_bytes, size / max(1, group.num_rows))
    return max(1, min(max_rows, int(max_bytes / max_row_bytes)))


def _split_batch(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Split the batch where its strings would exceed ``max_bytes`` without the dictionary encoding."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.fill_null(pc.binary_length(column.dictionary), 0).to_numpy(zero_copy_only=False)
            codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
            sizes += np.append(lengths, 0)[codes]
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // max_bytes)) + 1
    start = 0
    for end in (*ends.tolist(), batch.num_rows):
        if end > start:
            yield batch.slice(start, end - start)
        start = end
