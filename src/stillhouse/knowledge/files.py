"""Logs as files: CSV and JSON lines (also ``.gz``) with true line numbers, Parquet; in chunks, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import SchemaError

__all__ = ["Chunk", "LogFile"]

Kind = Literal["csv", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"
}  # fmt: skip
_LONGEST_LINE = 16 * 2**20
_LOOKED_AT = 100  # lines of JSON whose keys are the file's columns


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

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """The file's rows, ``rows`` lines at once, the wanted ``columns`` of them.

        :raises SchemaError: if it ends in the middle, or has a line that is longer than 16 MiB.
        """
        read = {"csv": self._csv, "jsonl": self._json, "parquet": self._parquet}[self.kind]
        with self._told():
            yield from read(list(columns), rows)

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
            return list(pq.read_schema(self.path).names)
        with self._open() as (_, lines):
            found: list[str]
            if self.kind == "csv":
                found = next(self._reader(lines), [])
            else:
                objects = (_object(line) for line in islice(lines, _LOOKED_AT))
                found = list({key: None for each in objects if isinstance(each, dict) for key in each})
        if not found:
            what = "a first line with names" if self.kind == "csv" else "a JSON object"
            raise SchemaError(f"{self.path} has no columns: its beginning holds not even {what}")
        if twice := sorted({name for name in found if found.count(name) > 1}):
            raise SchemaError(f"{self.path} has more than one column {', '.join(map(repr, twice))}: rename them")
        return found

    def _csv(self, columns: list[str], most: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            reader = self._reader(lines)
            width = len(next(reader))
            places = [self.columns.index(name) for name in columns]
            kept, numbers, bad = list[list[str]](), list[int](), list[tuple[int, str]]()
            while True:
                first = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except UnicodeDecodeError as error:
                    bad.append((first, f"is not UTF-8 ({error.reason})"))
                except csv.Error as error:
                    until = f", read up to line {reader.line_num}" if reader.line_num > first else ""
                    bad.append((first, f"cannot be read as CSV: {error}{until}"))
                else:
                    if len(row) == width:
                        kept.append([row[place] for place in places])
                        numbers.append(first)
                    elif row:  # an empty line is nothing
                        bad.append((first, f"has {len(row)} values, and there are {width} columns"))
                if len(kept) + len(bad) >= most:
                    yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, raw.tell())
                    kept, numbers, bad = [], [], []
            yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, self.size)

    def _json(self, columns: list[str], most: int) -> Iterator[Chunk]:
        with self._open() as (raw, lines):
            kept, numbers, bad = list[list[Any]](), list[int](), list[tuple[int, str]]()
            while True:
                try:
                    line = next(lines)
                    found = _object(line)
                except StopIteration:
                    break
                except UnicodeDecodeError as error:
                    found = f"is not UTF-8 ({error.reason})"
                if isinstance(found, dict):
                    kept.append([found.get(name) for name in columns])
                    numbers.append(lines.number)
                elif found is not None:
                    bad.append((lines.number, found))
                if len(kept) + len(bad) >= most:
                    yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, raw.tell())
                    kept, numbers, bad = [], [], []
            yield Chunk(pd.DataFrame(kept, columns=columns, dtype=object), numbers, bad, self.size)

    def _parquet(self, columns: list[str], most: int) -> Iterator[Chunk]:
        with pq.ParquetFile(self.path) as file:
            done, whole = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=most, columns=columns):
                frame = batch.to_pandas(integer_object_nulls=True)[columns]
                numbers = list(range(done + 1, done + len(frame) + 1))
                done += len(frame)
                yield Chunk(frame, numbers, [], self.size * done // whole)

    def _reader(self, lines: _Lines) -> Any:
        tab = ".tsv" in self.path.suffixes
        return csv.reader(lines, delimiter="\t" if tab else self.delimiter, strict=True)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], _Lines]]:
        """The file as it lies on the disk, and its lines."""
        with self.path.open("rb") as raw:
            yield raw, _Lines(gzip.GzipFile(fileobj=raw) if self.zipped else raw, self.path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            what = {"csv": "CSV in UTF-8", "jsonl": "JSON lines", "parquet": "Parquet"}[self.kind]
            raise SchemaError(f"{self.path} cannot be read as {what}{' in gzip' * self.zipped}: {error}") from error


class _Lines:
    """Lines of UTF-8; one that is none raises, and the next call goes on behind it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self.stream, self.path = stream, path
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _LONGEST_LINE:
            raise SchemaError(f"{self.path}:{self.number}: the line is longer than 16 MiB: is it a file of lines?")
        return line.removeprefix(b"\xef\xbb\xbf").decode() if self.number == 1 else line.decode()


def _object(line: str) -> dict[str, Any] | str | None:
    """What a line of JSON holds: an object; a text that says what is wrong; None for an empty line."""
    if not line.strip():
        return None
    try:
        found = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        return f"cannot be read as JSON: {error}"
    return found if isinstance(found, dict) else "is no JSON object"


def plain(value: object) -> object:
    """A value as text where it is one of the plain kinds: texts, numbers, truth values, dates; others as they are."""
    match value:
        case str() | None:
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return None if value != value else repr(value)
        case date():
            return value.isoformat()
        case bytes() | list() | dict() | tuple():
            return value
        case _:
            return str(value)
