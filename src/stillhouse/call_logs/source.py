"""A log of calls as a file of rows, for the import of the knowledge base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.call_logs.calls import Reader, Unusable
from stillhouse.call_logs.questions import Answered, QuestionReader
from stillhouse.config import AgentConfig, ImportedDecision, ImportedOutcome, ImportedTime, Importing
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.importing import ImportSource
from stillhouse.knowledge.importing.source import TableRows
from stillhouse.knowledge.log_files import CHUNK_BYTES, Chunk, LogFile
from stillhouse.records import short_id

__all__ = ["CallLog", "CallSource"]

_PREFIX = "call."  # of the columns below, so that they differ from those of an agent
_TIME, _ACTION, _VERSION, _OUTCOME, _KNOWN, _ID, _TEACHER, _PROBS = (
    f"{_PREFIX}{name}"
    for name in ("time", "action", "version", "outcome", "known_at", "id", "teacher", "probabilities")
)
_ROW_BYTES = 200  # of a call beside its text, roughly


class CallLog:
    """A file of calls; its rows are those calls that answer the agent's question.

    :param read: of the format.
    :param task: the only task whose calls are rows; None: those of all tasks.
    :raises SchemaError: if there is no such file, or it is no JSON lines.
    """

    kind = "jsonl"

    def __init__(self, path: Path, read: Reader, questions: QuestionReader, task: str | None = None) -> None:
        self._file, self._read, self._questions, self.task = LogFile(path), read, questions, task
        next(self._file.records(), None)  # refuses CSV and Parquet
        self.path = path
        self.columns = [*questions.config.observations.columns, _TIME, _ACTION, _VERSION, _OUTCOME, _KNOWN]
        self._answers_are_labels = getattr(questions.config, "labels_are", "outcomes") == "teacher answers"
        self.teacher_versions: Mapping[str, str] = {}
        """By model that answered, the teacher's version under which its answers are stored."""

    def digest(self, on_bytes: Callable[[int], None] = lambda _: None, /) -> str:
        """As that of :class:`~stillhouse.knowledge.log_files.LogFile`."""
        return self._file.digest(on_bytes)

    def require_unchanged(self) -> None:
        """As that of :class:`~stillhouse.knowledge.log_files.LogFile`."""
        self._file.require_unchanged()

    def missing_columns(self, columns: Sequence[str], /) -> list[str]:
        """None: the columns are made of the calls."""
        return []

    def answered(self) -> Iterator[tuple[Answered | Unusable | tuple[int, str], int]]:
        """Every call as a question, or why it is none, or a line that is no JSON; and the bytes read so far."""
        for line, record, bytes_read in self._file.records():
            if isinstance(record, str):
                yield (line, record), bytes_read
                continue
            for call in self._read(line, record):
                yield call if isinstance(call, Unusable) else self._questions.read(call), bytes_read

    def chunks(self, columns: Sequence[str], rows: int, /) -> Iterator[Chunk]:
        """The calls in chunks of up to ``rows``."""
        values, lines, bad, skipped, size, bytes_read = [], [], [], [], 0, 0
        for item, bytes_read in self.answered():
            if isinstance(item, Unusable):
                skipped.append((item.line, item.reason))
            elif not isinstance(item, Answered):
                bad.append(item)
            elif self.task is not None and item.task != self.task:
                skipped.append((item.call.line, "it is of another task"))
            else:
                values.append(self._row(item))
                lines.append(item.call.line)
                size += _ROW_BYTES + sum(len(value) for value in item.features.values() if isinstance(value, str))
            if len(values) + len(bad) + len(skipped) >= rows or size >= CHUNK_BYTES:
                yield Chunk(self._frame(values), lines, bad, bytes_read, skipped)
                values, lines, bad, skipped, size = [], [], [], [], 0
        yield Chunk(self._frame(values), lines, bad, self._file.size, skipped)

    def _frame(self, values: list[dict[str, Any]]) -> pd.DataFrame:
        frame = pd.DataFrame(values, columns=[*self.columns, _ID, _TEACHER, _PROBS], dtype=object)
        for name in (_TIME, _KNOWN):
            frame[name] = pd.to_datetime(frame[name], utc=True)
        return frame

    def _row(self, item: Answered) -> dict[str, Any]:
        call = item.call
        version = f"{call.model}:{call.fingerprint}" if call.fingerprint else call.model
        outcome, known_at = item.outcome, item.known_at
        if self._answers_are_labels and outcome is None and call.model in self.teacher_versions:
            outcome, known_at = item.action, item.observed_at  # nobody else had answered: the model was asked blindly
        return item.features | {
            _TIME: item.observed_at,
            _ACTION: item.action,
            _VERSION: version or None,
            _OUTCOME: outcome,
            _KNOWN: known_at,
            _ID: call.call_id,
            _TEACHER: self.teacher_versions.get(call.model),
            _PROBS: item.probs,
        }


class CallSource(ImportSource):
    """A log of calls whose answers are decisions of another system, and knowledge of a teacher of the agent."""

    def __init__(self, log: CallLog, config: AgentConfig) -> None:
        self.log = log
        importing = Importing(
            observed_at=ImportedTime(column=_TIME),
            decision=ImportedDecision(action=_ACTION, version=_VERSION),
            outcome=ImportedOutcome(action=_OUTCOME, known_at=ImportedTime(column=_KNOWN)),
        )
        super().__init__(log, importing, config)
        self._chunk_ids: pd.Series[Any] = pd.Series(dtype=object)

    @property
    def key(self) -> str:
        """Identifies this file content under these settings."""
        versions = sorted(self.log.teacher_versions.items())
        return f"{super().key}:{short_id('calls', self.log.task or '', str(versions))}"

    def _generate_ids(self, rows: pd.DataFrame, lines: Any) -> list[str]:
        """The ids of the calls; of calls without one by content and time."""
        by_content = super()._generate_ids(rows, lines)
        stated = self._chunk_ids.reindex(rows.index)
        return [own if isinstance(own, str) and own else made for own, made in zip(stated, by_content, strict=True)]

    def to_table_rows(self, chunk: Chunk) -> TableRows:
        """As :meth:`ImportSource.to_table_rows`; observations have the ids of their calls."""
        self._chunk_ids = chunk.rows[_ID]
        return super().to_table_rows(chunk)

    def _answers(self, chunk: Chunk, rows: pd.DataFrame) -> pd.DataFrame:
        teachers = chunk.rows[_TEACHER].reindex(rows.index)
        known = teachers.notna()
        if not known.any():
            return pd.DataFrame()
        tidied = tidy(rows[known], self.config)
        return pd.DataFrame(
            {
                "content_key": content_keys(tidied, self.config),
                "observed_at": tidied["observed_at"],
                "teacher": teachers[known].to_list(),
                "probabilities": chunk.rows.loc[rows.index[known], _PROBS].to_list(),
            }
        )
