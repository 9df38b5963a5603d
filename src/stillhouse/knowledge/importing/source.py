"""One file of an import: which of its columns the agent file maps, and its chunks as rows of the tables."""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, ImportedTime, Importing
from stillhouse.errors import SchemaError
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.importing.values import RawColumns, RowErrors
from stillhouse.knowledge.log_files import Chunk, LogFile, heading_hint
from stillhouse.records import short_id

__all__ = ["ImportSource", "ImportedFile", "RowProblem", "TableRows"]

_IMPORTED_DECIDER = "elsewhere"  # decider and version of an imported decision without them


class RowProblem(NamedTuple):
    """Why a row cannot be used."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class TableRows(NamedTuple):
    """A chunk as rows of the tables."""

    observations: pd.DataFrame
    decisions: pd.DataFrame
    outcomes: pd.DataFrame
    quarantine: pd.DataFrame
    problems: list[RowProblem]
    answers: pd.DataFrame
    """``content_key, observed_at, teacher, probabilities`` of rows that a teacher has answered."""
    skipped: list[RowProblem]
    """Lines that are none of the agent's observations; they are not in quarantine."""


class ImportedFile(Protocol):
    """What an import reads: :class:`~stillhouse.knowledge.log_files.LogFile`, or another file as rows of columns."""

    @property
    def path(self) -> Path: ...
    @property
    def kind(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    def digest(self, on_bytes: Callable[[int], None] = ..., /) -> str: ...
    def require_unchanged(self) -> None: ...
    def missing_columns(self, columns: Sequence[str], /) -> list[str]: ...
    def chunks(self, columns: Sequence[str], rows: int, /) -> Iterator[Chunk]: ...


class ImportSource:
    """A file, with the mapping of its columns.

    :raises SchemaError: if a mapped column is missing.
    """

    def __init__(self, file: ImportedFile, importing: Importing, config: AgentConfig) -> None:
        self.file, self.importing, self.config = file, importing, config
        self.digest = ""
        """Of the file's content; the caller sets it before it uses :attr:`key`."""
        self.features = {name: importing.columns.get(name, name) for name in config.observations.columns}
        self.columns = list(dict.fromkeys(name for _, name in self._mapped_columns()))
        if missing := self.file.missing_columns(self.columns):
            key, name = next((key, name) for key, name in self._mapped_columns() if name in missing)
            raise SchemaError(
                f"{self.file.path} has no column {name!r}, which the agent file wants for {key}{self._hint(name)} It "
                f"has: {', '.join(map(repr, self.file.columns))}. Say in `importing` what the file calls it"
            )

    @classmethod
    def open(cls, path: Path, config: AgentConfig) -> ImportSource:
        """A file of rows, mapped as ``importing`` of the agent file says; without it by the names of the tables.

        :raises SchemaError: if it cannot be read, or a mapped column is missing.
        """
        importing = config.importing or Importing(
            observation_id="observation_id", observed_at=ImportedTime(column="observed_at")
        )
        return cls(LogFile(path, importing.delimiter), importing, config)

    @property
    def key(self) -> str:
        """Identifies this file content under this mapping."""
        return f"{self.digest}:{short_id(self.importing.model_dump_json(), *self.features.items())}"

    @property
    def _missing_texts(self) -> tuple[str, ...]:
        """Strings that are missing values of categories and texts: in CSV by default, elsewhere only if configured."""
        missing = self.importing.missing
        return missing if self.file.kind == "csv" or "missing" in self.importing.model_fields_set else ()

    def _hint(self, name: str) -> str:
        """Why the column may be missing: the header of the file, or the name in the agent file."""
        if self.file.kind == "csv" and (hint := heading_hint(name, self.file.columns, self.importing.delimiter)):
            setting = ", or name it so in `importing.columns`" if "blanks" in hint else ""
            setting = "; `importing.delimiter` says which a file has" if "separated" in hint else setting
            return f": {hint}{setting}."
        close = difflib.get_close_matches(name, self.file.columns, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else "."

    def _mapped_columns(self) -> Iterator[tuple[str, str]]:
        """Keys of the agent file, and the columns to which they are mapped."""
        importing = self.importing
        if importing.observation_id is not None:
            yield "observation_id", importing.observation_id
        yield "observed_at", importing.observed_at.column
        yield from ((f"the feature {name!r}", column) for name, column in self.features.items())
        if decision := importing.decision:
            yield "decision.action", decision.action
            yield from (
                (f"decision.probabilities.{name}", column) for name, column in (decision.probabilities or {}).items()
            )
            if decision.decided_at:
                yield "decision.decided_at", decision.decided_at.column
            yield from (
                (f"decision.{key}", column)
                for key, column in (("decider", decision.decider), ("version", decision.version))
                if column
            )
        if outcome := importing.outcome:
            yield "outcome.action", outcome.action
            if outcome.known_at:
                yield "outcome.known_at", outcome.known_at.column

    def to_table_rows(self, chunk: Chunk) -> TableRows:
        """The chunk's rows for each table; an unusable row is in quarantine only."""
        raw = RawColumns(chunk.rows, self.importing.missing)
        errors: RowErrors = defaultdict[int, list[str]](list)
        times = raw.times(self.importing.observed_at, errors, required=True)
        rows = pd.DataFrame({"observation_id": "", "observed_at": times}, index=chunk.rows.index)
        for name in self.config.observations.columns:
            if name in self.config.observations.numbers:
                rows[name] = raw.numbers(self.features[name], errors)
            else:
                rows[name] = raw.texts(self.features[name], errors, missing=self._missing_texts)
        if self.importing.observation_id is not None:
            rows["observation_id"] = raw.texts(self.importing.observation_id, errors, required=True)
        decisions, outcomes = self._decisions(raw, rows, errors), self._outcomes(raw, rows, errors)
        lines = np.asarray(chunk.lines, dtype=np.int64)
        is_usable = ~np.isin(np.arange(len(rows)), list(errors))
        rows = rows[is_usable]
        if self.importing.observation_id is None and len(rows):
            rows["observation_id"] = self._generate_ids(rows, lines[is_usable])
        ids = rows["observation_id"]
        unusable = sorted(
            [(line, [reason], pd.NaT) for line, reason in chunk.bad]
            + [(int(lines[row]), reasons, times.iloc[row]) for row, reasons in errors.items()],
            key=lambda problem: problem[0],
        )
        return TableRows(
            rows.reset_index(drop=True),
            _with_ids(decisions, ids),
            _with_ids(outcomes, ids),
            self._quarantine(unusable),
            [RowProblem(self.file.path.name, line, "; ".join(reasons)) for line, reasons, _ in unusable],
            self._answers(chunk, rows),
            [RowProblem(self.file.path.name, line, reason) for line, reason in chunk.skipped],
        )

    def _answers(self, chunk: Chunk, rows: pd.DataFrame) -> pd.DataFrame:
        """What a teacher answered about the usable rows; a file of rows holds none."""
        return pd.DataFrame()

    def _generate_ids(self, rows: pd.DataFrame, lines: np.ndarray[Any, np.dtype[np.int64]]) -> list[str]:
        """Observation ids for a file without them: by content and line, or by features and time."""
        if self.importing.made_of == "line":
            return [f"{self.digest[:16]}:{line}" for line in lines.tolist()]
        times = rows["observed_at"].astype("int64").tolist()
        keys = content_keys(tidy(rows, self.config), self.config)
        return [f"{key}:{time:x}" for key, time in zip(keys, times, strict=True)]

    def _decisions(self, raw: RawColumns, rows: pd.DataFrame, errors: RowErrors) -> pd.DataFrame | None:
        decision = self.importing.decision
        if decision is None:
            return None
        prob_columns = decision.probabilities
        decisions = rows[["observed_at"]].assign(
            decided_at=raw.times(decision.decided_at, errors) if decision.decided_at else rows["observed_at"],
            action=raw.actions(decision.action, self.importing.actions, self.config.actions, errors),
            probabilities=raw.probabilities([prob_columns[name] for name in self.config.actions], errors)
            if prob_columns
            else None,
            decider=raw.texts(decision.decider, errors).fillna(_IMPORTED_DECIDER)
            if decision.decider
            else _IMPORTED_DECIDER,
            version=raw.texts(decision.version, errors).fillna(_IMPORTED_DECIDER)
            if decision.version
            else _IMPORTED_DECIDER,
        )
        decisions["decided_at"] = decisions["decided_at"].fillna(decisions["observed_at"])
        return decisions[decisions["action"].notna()]

    def _outcomes(self, raw: RawColumns, rows: pd.DataFrame, errors: RowErrors) -> pd.DataFrame | None:
        outcome = self.importing.outcome
        if outcome is None:
            return None
        by_delay = rows["observed_at"] + self.config.label_delay
        known_at = raw.times(outcome.known_at, errors).fillna(by_delay) if outcome.known_at else by_delay
        is_early = known_at < rows["observed_at"]
        for row in np.flatnonzero(is_early).tolist():
            errors[row].append(f"known_at: {known_at.iloc[row]} is before observed_at, {rows['observed_at'].iloc[row]}")
        actions = raw.actions(outcome.action, self.importing.actions, self.config.actions, errors)
        outcomes = rows[["observed_at"]].assign(known_at=known_at, action=actions)
        return outcomes[outcomes["action"].notna()]

    def _quarantine(self, unusable: list[tuple[int, list[str], Any]]) -> pd.DataFrame:
        """Rows for the quarantine, under ids that no observation has: a corrected row can be imported later."""
        now = pd.Timestamp(datetime.now(UTC))
        name = self.file.path.name
        key_hash = hashlib.blake2b(self.key.encode(), digest_size=6).hexdigest()
        return pd.DataFrame(
            {
                "observation_id": [f"import:{key_hash}:{line}" for line, _, _ in unusable],
                "observed_at": pd.to_datetime([now if pd.isna(time) else time for _, _, time in unusable], utc=True),
                "reasons": [[f"{name}:{line}: {reason}" for reason in reasons] for line, reasons, _ in unusable],
            }
        )


def _with_ids(rows: pd.DataFrame | None, ids: pd.Series[str]) -> pd.DataFrame:
    """Those decisions or outcomes whose observation is usable, with its id."""
    if rows is None:
        return pd.DataFrame()
    rows = rows[rows.index.isin(ids.index)]
    rows = rows.assign(observation_id=ids.loc[rows.index])
    if "version" in rows:
        rows = rows.assign(decision_id=rows["observation_id"] + ":" + rows["version"])
    return rows.reset_index(drop=True)
