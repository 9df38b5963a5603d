"""Previewing and running an import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from stillhouse.config import AgentConfig, Importing, home
from stillhouse.errors import RuntimeStateError, SchemaError
from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.importing.keys import KEY_COLUMNS, KeySet, row_keys
from stillhouse.knowledge.importing.source import ImportSource, RowProblem
from stillhouse.knowledge.log_files import CHUNK_BYTES
from stillhouse.knowledge.schemas import Table
from stillhouse.records import short_id

__all__ = ["ImportSummary", "Preview", "Skipped", "import_files", "preview"]

_CHUNK_ROWS = 50_000
_MAX_PROBLEMS = 20  # in a summary

OnBytes = Callable[[str, int], None]


@dataclass
class Skipped:
    """Lines that an import left out for one reason."""

    first: RowProblem
    count: int = 0


def count_skipped(skipped: dict[str, Skipped], problems: Iterable[RowProblem]) -> None:
    """Add ``problems`` to the counts by reason, in place."""
    for problem in problems:
        skipped.setdefault(problem.reason, Skipped(problem)).count += 1


@dataclass
class ImportSummary:
    """Result of an import."""

    rows: int = 0
    """Non-empty lines of the files, without the header of a CSV."""
    before: int = 0
    """Of these, in chunks that an earlier run had imported."""
    added: int = 0
    duplicates: int = 0
    """Of an observation that was in the knowledge base or earlier in the files."""
    quarantined: int = 0
    decisions: int = 0
    outcomes: int = 0
    answers: int = 0
    """Of teachers, that were not stored before."""
    skipped: dict[str, Skipped] = field(default_factory=dict)
    """By reason, the lines that are none of the agent's observations."""
    problems: list[RowProblem] = field(default_factory=list)
    """The first ones."""
    notes: list[str] = field(default_factory=list)


class Preview(NamedTuple):
    """The first rows of a file as they would be imported."""

    file: Path
    rows: pd.DataFrame
    """``observation_id, observed_at``, the features; ``decision`` and ``outcome`` if the agent file maps them."""
    lines_read: int
    problems: list[RowProblem]
    tables: dict[Table, pd.DataFrame]
    """The same as rows of the tables."""
    answers: int = 0
    """Rows that a teacher has answered."""
    skipped: Mapping[str, Skipped] = MappingProxyType({})
    """By reason, the lines that are none of the agent's observations."""

    def count_new(self, base: KnowledgeBase, seen_keys: dict[Table, set[str]]) -> dict[Table, int]:
        """How many rows the import would add to each table.

        :param seen_keys: by table, the row keys of the files previewed before; those of this file are added.
        """
        counts = dict[Table, int]()
        for table, rows in self.tables.items():
            keys, seen = set(row_keys(rows, table) if len(rows) else ()), seen_keys.setdefault(table, set())
            ids = pa.array(sorted(set(rows["observation_id"]) if keys else ()), pa.string())
            batches: Iterable[pa.RecordBatch] = (
                base.stream(table, columns=KEY_COLUMNS[table], observation_ids=ids) if keys else ()
            )
            stored = {key for batch in batches for key in row_keys(batch.to_pandas(), table)}
            counts[table] = len(keys - stored - seen)
            seen |= keys
        return counts


def preview(config: AgentConfig, files: Sequence[Path | ImportSource], rows: int = 1000) -> Iterator[Preview]:
    """Convert the first ``rows`` lines of each file without writing anything.

    :param files: paths of files of rows, or sources of another form.
    :raises SchemaError: if a file cannot be read, or lacks a column that the agent file maps.
    """
    KnowledgeBase(config).tables.require_column_types()
    for source in _open_sources(config, files):
        chunk = next(source.file.chunks(source.columns, rows))
        converted = source.to_table_rows(chunk)
        shown = converted.observations
        for name, extra in (("decision", converted.decisions), ("outcome", converted.outcomes)):
            if len(extra):
                actions = extra.drop_duplicates("observation_id").set_index("observation_id")["action"]
                shown = shown.assign(**{name: shown["observation_id"].map(actions)})
        tables: dict[Table, pd.DataFrame] = {
            "observations": converted.observations,
            "decisions": converted.decisions,
            "outcomes": converted.outcomes,
        }
        skipped = dict[str, Skipped]()
        count_skipped(skipped, converted.skipped)
        lines = len(chunk.lines) + len(chunk.bad) + len(chunk.skipped)
        yield Preview(source.file.path, shown, lines, converted.problems, tables, len(converted.answers), skipped)


def import_files(
    base: KnowledgeBase, files: Sequence[Path | ImportSource], on_bytes: OnBytes = lambda _step, _count: None
) -> ImportSummary:
    """Import the files one after another, as ``importing`` of the agent file defines.

    :param files: paths of files of rows, or sources of another form.
    :param on_bytes: called with the current step and the number of bytes read since the last call; every byte of the
        files is read twice.
    :raises SchemaError: if a file cannot be read, lacks a column, or was changed meanwhile (imported rows are kept), or
        if the knowledge base has a column of another type.
    :raises RuntimeStateError: if another import for this agent is running.
    """
    summary = ImportSummary()
    base.tables.require_column_types()
    with _import_lock(base.config.agent):
        sources = list(_open_sources(base.config, files))
        for source in sources:
            step = f"checking {source.file.path.name}"
            source.digest = source.file.digest(partial(on_bytes, step))
        writer = _NewRowWriter(base, sources[0].importing)
        for source in sources:
            with _remember_content(base, source, summary.notes):
                _import_file(base, source, writer, summary, on_bytes)
    return summary


def _open_sources(config: AgentConfig, files: Sequence[Path | ImportSource]) -> Iterator[ImportSource]:
    return iter([file if isinstance(file, ImportSource) else ImportSource.open(file, config) for file in files])


def _import_file(
    base: KnowledgeBase, source: ImportSource, writer: _NewRowWriter, summary: ImportSummary, on_bytes: OnBytes
) -> None:
    bytes_read = 0
    for number, chunk in enumerate(source.file.chunks(source.columns, _CHUNK_ROWS)):
        source.file.require_unchanged()
        rows = len(chunk.lines) + len(chunk.bad) + len(chunk.skipped)
        batch = f"import:{source.key}:{_CHUNK_ROWS}x{CHUNK_BYTES}:{number}"
        summary.rows += rows
        if base.tables.has_batch("observations", batch):  # the table that is written last
            summary.before += rows
        else:
            converted = source.to_table_rows(chunk)
            summary.problems += converted.problems[: _MAX_PROBLEMS - len(summary.problems)]
            summary.quarantined += len(converted.quarantine)
            writer.append("quarantine", converted.quarantine, batch)
            summary.decisions += writer.append("decisions", converted.decisions, batch)
            summary.outcomes += writer.append("outcomes", converted.outcomes, batch)
            summary.answers += _append_answers(base, converted.answers)
            count_skipped(summary.skipped, converted.skipped)
            added = writer.append("observations", converted.observations, batch)
            summary.added += added
            summary.duplicates += len(converted.observations) - added
        on_bytes(f"importing {source.file.path.name}", chunk.bytes_read - bytes_read)
        bytes_read = chunk.bytes_read


def _append_answers(base: KnowledgeBase, answers: pd.DataFrame) -> int:
    """Store what teachers answered; a content that a teacher has answered before keeps its first answer."""
    if answers.empty:
        return 0
    return sum(
        base.answers.append(rows, np.stack(rows["probabilities"].to_list()), teacher=str(teacher))
        for teacher, rows in answers.groupby("teacher", sort=False)
    )


@contextmanager
def _import_lock(agent: str) -> Iterator[None]:
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"import-{agent}.lock", timeout=0):
            yield
    except Timeout:
        raise RuntimeStateError(
            f"another import for agent {agent!r} is under way on this machine: wait until it has ended"
        ) from None


@contextmanager
def _remember_content(base: KnowledgeBase, source: ImportSource, notes: list[str]) -> Iterator[None]:
    """Store the digest of a file while it is imported, to notice a change after an interruption."""
    path = source.file.path.resolve()
    note = home() / "imports" / base.config.agent / f"{short_id(str(path))}.txt"
    interrupted_digest = note.read_text(encoding="utf-8") if note.exists() else source.digest
    if interrupted_digest != source.digest:
        if source.importing.observation_id is None and source.importing.made_of == "line":
            raise SchemaError(
                f"{path} was changed since an import of it was interrupted, and its rows' ids are made of content and "
                f"line: they would come twice. Put the file back as it was, or delete {note} to import it as it is"
            )
        notes.append(f"{path.name} was changed since an import of it was interrupted; rows are recognised by their ids")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(source.digest, encoding="utf-8")
    yield
    note.unlink()


class _NewRowWriter:
    """Appends those rows of an import that the tables do not have yet."""

    def __init__(self, base: KnowledgeBase, importing: Importing) -> None:
        self.base = base
        tables: list[Table] = ["observations", "quarantine"]
        tables += ["decisions"] if importing.decision else []
        tables += ["outcomes"] if importing.outcome else []
        self.stored_keys = {table: KeySet() for table in tables}
        for table, keys in self.stored_keys.items():
            for batch in base.stream(table, columns=KEY_COLUMNS[table]):
                keys.add(row_keys(batch.to_pandas(), table))

    def append(self, table: Table, rows: pd.DataFrame, batch: str) -> int:
        """Append the new rows and return their number."""
        if rows.empty:
            return 0
        is_new = self.stored_keys[table].add(row_keys(rows, table))
        if table == "observations":
            return self.base.append_observations(rows[is_new], batch=batch) if is_new.any() else 0
        return self.base.tables.append(table, rows[is_new], batch=batch)
