"""Logs as files: CSV and JSON lines (also ``.gz``) with true line numbers, Parquet; in chunks, in bounded memory.

CSV is read here wherever it comes from (:func:`read_csv`): every value as the text that it is, an empty field alone is
missing, and no value moves to another column.
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
from stillhouse.frames import from_arrow

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
"""Of a chunk, unpacked, as far as whole rows allow: a chunk has this much and one row more at most."""

_LONGEST_LINE = 16 * 2**20
_LOOKED_AT = 100  # lines of JSON whose keys are the file's columns at first
_PEEKED = 4096  # bytes of JSON that tell what it is
_NO_OBJECT = "is no JSON object"
_BUFFER = 2**20
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


class Chunk(NamedTuple):
    """Some rows of a file, as they lie there."""

    rows: pd.DataFrame
    """A column for each wanted one; texts, or what JSON and Parquet make of it; missing as None or NaN."""
    lines: list[int]
    """Of each row: its first line, from 1 on; in Parquet its number."""
    bad: list[tuple[int, str]]
    """Lines that are no rows, and why."""
    at: int
    """Bytes of the file that were read so far, as it lies on the disk."""


class LogFile:
    """One file.

    :param delimiter: of CSV.
    :raises SchemaError: if it is no file, of no known format, empty, or cannot be read.
    """

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        self.path, self.delimiter = path, delimiter
        self.zipped = path.suffix == ".gz"
        self.kind = self._kind()
        self.size = path.stat().st_size
        with self._told():
            self.columns = self._columns()

    def digest(self, on_bytes: Callable[[int], None] = lambda _: None) -> str:
        """Blake2b of the content, 128 bits in hexadecimal; later chunks must be of the same content."""
        self._as_it_was = self._state()
        hashed = hashlib.blake2b(digest_size=16)
        with self._told(), self.path.open("rb") as file:
            while block := file.read(1 << 20):
                hashed.update(block)
                on_bytes(len(block))
        return hashed.hexdigest()

    def require_unchanged(self) -> None:
        """:raises SchemaError: if the file is another one than when its digest was taken."""
        if self._state() != self._as_it_was:
            raise SchemaError(
                f"{self.path} was changed while it was being read: let it be finished, then import it again; rows that "
                "are in the knowledge base already are recognised"
            )

    def lacking(self, columns: Sequence[str]) -> list[str]:
        """Those of ``columns`` that the file does not have.

        A key of JSON that comes late is a column too, so the whole file is searched for what its beginning lacks.

        :raises SchemaError: as :meth:`chunks`.
        """
        lacking = dict.fromkeys(name for name in columns if name not in self.columns)
        if lacking and self.kind == "jsonl":
            with self._told(), self._open() as (_, lines):
                for _, found in _objects(lines):
                    if isinstance(found, dict):
                        for name in [name for name in lacking if name in found]:
                            del lacking[name]
                            self.columns.append(name)
                    if not lacking:
                        break
        return list(lacking)

    def chunks(self, columns: Sequence[str], rows: int, most_bytes: int | None = None) -> Iterator[Chunk]:
        """The file's rows, up to ``rows`` lines and ``most_bytes`` at once, the wanted ``columns`` of them.

        :param most_bytes: unpacked, in memory; by default :data:`CHUNK_BYTES`.
        :raises SchemaError: if it ends in the middle, or has a line that is longer than 16 MiB.
        """
        read = {"csv": self._csv, "jsonl": self._json, "parquet": self._parquet}[self.kind]
        with self._told():
            yield from read(list(columns), rows, CHUNK_BYTES if most_bytes is None else most_bytes)

    def _kind(self) -> Kind:
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "is not there"
            raise SchemaError(f"{self.path} {what}: name files to import")
        suffix = Path(self.path.stem).suffix if self.zipped else self.path.suffix
        kind = _KINDS.get(suffix.lower())
        if kind is None or (kind == "parquet" and self.zipped):
            known = ".csv, .tsv, .jsonl and .ndjson, each also with .gz, and .parquet"
            raise SchemaError(f"{self.path} has no known format: name it by what it is, {known}")
        return kind

    def _state(self) -> tuple[int, int]:
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def _columns(self) -> list[str]:
        if self.kind == "parquet":
            return _distinct(list(pq.read_schema(self.path).names), str(self.path))
        found: list[str]
        with self._open() as (_, lines):
            if self.kind == "csv":
                found = next(_csv_reader(lines, self._delimiter), [])
            else:
                self._refuse_array()
                beginning = list(islice(_objects(lines), _LOOKED_AT))
                found = list({key: None for _, each in beginning if isinstance(each, dict) for key in each})
                bad = next(((number, why) for number, why in beginning if isinstance(why, str)), None)
        if not found and self.kind == "jsonl" and bad and not self._spread():
            raise SchemaError(f"{self.path}:{bad[0]}: the line {bad[1]}; no other at its beginning has columns")
        if not found:
            what = "a first line with names" if self.kind == "csv" else "a JSON object"
            raise SchemaError(f"{self.path} has no columns: its beginning holds not even {what}{self._spread()}")
        return _distinct(found, str(self.path))

    def _refuse_array(self) -> None:
        """:raises SchemaError: if the file is one JSON array; one line that is a whole array is a bad line."""
        beginning = self._beginning()
        first, _, rest = beginning.partition(b"\n")
        if beginning.startswith(b"[") and (not rest.strip() or _object(first.decode(errors="replace")) != _NO_OBJECT):
            raise SchemaError(
                f"{self.path} is one JSON array, and JSON lines are wanted: write each of its objects on a line of its "
                "own, as `jq -c '.[]'` does"
            )

    def _spread(self) -> str:
        """What a file of JSON is, if that can be told, that begins with an object and has no line with one."""
        first = self._beginning().partition(b"\n")[0].rstrip()
        if self.kind == "jsonl" and first.startswith(b"{") and not first.endswith(b"}"):
            return ". It is JSON over several lines: write each object on a line of its own, as `jq -c .` does"
        return ""

    def _beginning(self) -> bytes:
        with self._open() as (_, lines):
            return lines.stream.read(_PEEKED).removeprefix(b"\xef\xbb\xbf").lstrip()

    def _csv(self, columns: list[str], most: int, most_bytes: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            rows = _csv_rows(lines, self._delimiter)
            next(rows)
            places = [self.columns.index(name) for name in columns]
            picked = ((first, row if isinstance(row, str) else [row[place] for place in places]) for first, row in rows)
            yield from self._chunked(raw, lines, columns, picked, most, most_bytes)

    def _json(self, columns: list[str], most: int, most_bytes: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            picked = (
                (number, found if isinstance(found, str) else [found.get(name) for name in columns])
                for number, found in _objects(lines)
            )
            yield from self._chunked(raw, lines, columns, picked, most, most_bytes)

    def _chunked(
        self,
        raw: IO[bytes],
        lines: _Lines,
        columns: list[str],
        rows: Iterator[tuple[int, list[Any] | str]],
        most: int,
        most_bytes: int,
    ) -> Iterator[Chunk]:
        kept, numbers, bad = list[list[Any]](), list[int](), list[tuple[int, str]]()
        begun = lines.bytes
        for number, row in rows:
            if isinstance(row, str):
                bad.append((number, row))
            else:
                kept.append(row)
                numbers.append(number)
            if len(kept) + len(bad) >= most or lines.bytes - begun >= most_bytes:
                yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, raw.tell())
                kept, numbers, bad = [], [], []
                begun = lines.bytes
        yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, self.size)

    def _parquet(self, columns: list[str], most: int, most_bytes: int) -> Iterator[Chunk]:
        """Texts stay in the dictionary that they were written with until it is known how long they are together."""
        texts = [field.name for field in pq.read_schema(self.path) if _is_text(field.type)]
        with pq.ParquetFile(self.path, read_dictionary=texts, buffer_size=_BUFFER, pre_buffer=False) as file:
            done, whole = 0, max(1, file.metadata.num_rows)
            size = _rows_at_once(file.metadata, set(columns), most, most_bytes)
            for batch in file.iter_batches(batch_size=size, columns=columns, use_threads=False):
                for part in _parts(batch, most_bytes):
                    frame = from_arrow(part)[columns]
                    numbers = list(range(done + 1, done + len(frame) + 1))
                    done += len(frame)
                    yield Chunk(frame, numbers, [], self.size * done // whole)

    @property
    def _delimiter(self) -> str:
        return "\t" if ".tsv" in self.path.suffixes else self.delimiter

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], _Lines]]:
        """The file as it lies on the disk, and its lines."""
        with self.path.open("rb") as raw:
            yield raw, _Lines(gzip.GzipFile(fileobj=raw) if self.zipped else raw, str(self.path))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except SchemaError:
            raise
        except (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, ValueError, OverflowError) as error:
            what = {"csv": "CSV in UTF-8", "jsonl": "JSON lines", "parquet": "Parquet"}[self.kind]
            raise SchemaError(f"{self.path} cannot be read as {what}{' in gzip' * self.zipped}: {error}") from error


class _Lines:
    """Lines of UTF-8; one that is none raises, and the next call goes on behind it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, name: str) -> None:
        self.stream, self.name = stream, name
        self.number = self.bytes = 0
        """Lines, and their bytes, that were read so far."""
        self.row = self.row_bytes = 0
        """Where the row began that is being read, in both."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.bytes += len(line)
        if len(line) == _LONGEST_LINE:
            raise SchemaError(f"{self.name}:{self.number}: the line is longer than 16 MiB: is it a file of lines?")
        if self.bytes - self.row_bytes > _LONGEST_LINE:
            raise SchemaError(f"{self.name}:{self.row + 1}: the row is longer than 16 MiB: is a quote left open?")
        return line.removeprefix(b"\xef\xbb\xbf").decode() if self.number == 1 else line.decode()

    def begin_row(self) -> int:
        """The number of the line in which the next row begins."""
        self.row, self.row_bytes = self.number, self.bytes
        return self.number + 1


def _distinct(columns: list[str], name: str) -> list[str]:
    """:raises SchemaError: if two have one name; those without a name cannot be asked for, and may be several."""
    if twice := sorted(name for name, count in Counter(columns).items() if name and count > 1):
        raise SchemaError(f"{name} has more than one column {', '.join(map(repr, twice))}: rename them")
    return columns


# --------------------------------------------------------------------------- CSV


def read_csv(stream: IO[bytes], name: str, delimiter: str = ",") -> pd.DataFrame:
    """A whole CSV with a heading: every value as text, an empty field as None.

    :param name: what the messages call it.
    :raises SchemaError: naming the first line that is no row, or columns of one name.
    """
    rows = _csv_rows(_Lines(stream, name), delimiter)
    _, heading = next(rows, (1, "is not there"))
    if isinstance(heading, str) or not any(heading):
        why = heading if isinstance(heading, str) else "has no names"
        raise SchemaError(f"{name} is no CSV with a heading: its first line {why}")
    columns = _distinct(heading, name)
    kept = list[list[str | None]]()
    for first, row in rows:
        if isinstance(row, str):
            hint = heading_hint("", columns, delimiter) if len(columns) == 1 else ""
            raise SchemaError(f"{name}, line {first}: {row}{'; ' * bool(hint)}{hint}")
        kept.append([value or None for value in row])
    named = [place for place, column in enumerate(columns) if column]
    frame = pd.DataFrame(kept, columns=range(len(columns)), dtype=object)[named]
    return frame.set_axis([columns[place] for place in named], axis="columns")


def heading_hint(wanted: str, columns: Sequence[str], delimiter: str = ",") -> str:
    """Why a CSV lacks a column, where its heading tells: other delimiters, or blanks around names; otherwise empty."""
    if close := [name for name in columns if name != wanted and name.strip().strip('"') == wanted]:
        return f"its heading has blanks around {close[0]!r}: remove them"
    for other, what in _DELIMITERS.items():
        names = [part.strip().strip('"') for name in columns if other in name for part in name.split(other)]
        if other != delimiter and (wanted in names or (names and len(columns) == 1)):
            return f"its heading is separated by {what}, and {_DELIMITERS.get(delimiter, repr(delimiter))} are expected"
    return ""


def _csv_reader(lines: _Lines, delimiter: str) -> Any:
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _csv_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Each row, the heading too, with its first line; or what is wrong with it. Empty lines are nothing."""
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


def _objects(lines: _Lines) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """What each line holds, with its number: an object, or a text that says what is wrong. Empty lines are nothing."""
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
            yield lines.number, _object(line)


def _object(line: str) -> dict[str, Any] | str:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        return json_fault(line, error)
    if not isinstance(found, dict):
        return _NO_OBJECT
    if line.count('":') + line.count('" :') > len(found) and (twice := _twice(line)):
        return f"has more than one key {', '.join(map(repr, twice))}"
    return found


def _twice(line: str) -> list[str]:
    """Keys that an object has more than once; msgspec keeps the last."""
    keys = list[str]()

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys[:] = [key for key, _ in pairs]  # the outermost comes last
        return dict(pairs)

    with suppress(ValueError, RecursionError):
        json.loads(line, object_pairs_hook=note)
    return sorted(key for key, count in Counter(keys).items() if count > 1)


def json_fault(text: str | bytes, error: Exception) -> str:
    """Why a text cannot be read as JSON: what it holds instead, where that can be told, or ``error``."""
    strange = list[str]()
    with suppress(ValueError, RecursionError):
        json.loads(text, parse_constant=strange.append)
    if strange:
        return f"holds {strange[0]}, which is no JSON: write null where a value is missing"
    return f"cannot be read as JSON: {error}"


# --------------------------------------------------------------------------- Parquet


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _rows_at_once(metadata: Any, columns: set[str], most: int, most_bytes: int) -> int:
    """Rows to unpack at once, so that those of the widest row group keep to ``most_bytes`` as they were encoded."""
    widest = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] in columns)
        widest = max(widest, size / max(1, group.num_rows))
    return max(1, min(most, int(most_bytes / widest)))


def _parts(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """The batch, cut where its texts would take more when each row has its own."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.fill_null(pc.binary_length(column.dictionary), 0).to_numpy(zero_copy_only=False)
            codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
            sizes += np.append(lengths, 0)[codes]
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // most_bytes)) + 1
    begin = 0
    for end in (*ends.tolist(), batch.num_rows):
        if end > begin:
            yield batch.slice(begin, end - begin)
        begin = end
