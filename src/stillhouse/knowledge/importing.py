"""Logs that exist already become observations, decisions and outcomes: once, whatever is killed or asked again.

A file is read in chunks. Each chunk is appended under the name of the file's content, the mapping and its number, so
one that is there is not written again; rows whose observation the knowledge base has, from wherever, are recognised by
their ids. Rows that cannot be used go to quarantine with file and line, the others go on.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from stillhouse.config import AgentConfig, ImportedTime, Importing, home
from stillhouse.errors import RuntimeStateError, SchemaError
from stillhouse.frames import ReadColumn, numbers_in, texts_in, with_zone
from stillhouse.knowledge.base import KnowledgeBase, Table
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.files import CHUNK_BYTES, Chunk, LogFile, heading_hint
from stillhouse.knowledge.moments import outside
from stillhouse.records import short_id
from stillhouse.values import is_missing

__all__ = ["Preview", "Problem", "Summary", "import_files", "preview"]

_CHUNK_ROWS = 50_000
_MOST_PROBLEMS = 20  # that a summary names
_ELSEWHERE = "elsewhere"
_COMPACT = r"\d{8}"  # a whole number that is an ISO date: 20130601

Reasons = dict[int, list[str]]


class Problem(NamedTuple):
    """Why a row cannot be used."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Summary:
    """What an import did."""

    rows: int = 0
    """Lines with something in them, apart from the first of a CSV."""
    before: int = 0
    """Of these, in chunks that an earlier, interrupted or finished run had dealt with."""
    added: int = 0
    duplicates: int = 0
    """Of an observation that was in the knowledge base, or further up in the files."""
    quarantined: int = 0
    decisions: int = 0
    outcomes: int = 0
    problems: list[Problem] = field(default_factory=list)
    """The first ones."""
    notes: list[str] = field(default_factory=list)


class Preview(NamedTuple):
    """The beginning of a file as it would be imported."""

    file: Path
    rows: pd.DataFrame
    """``observation_id, observed_at``, the features; ``decision`` and ``outcome`` where the agent file maps them."""
    looked_at: int
    problems: list[Problem]
    tables: dict[Table, pd.DataFrame]
    """The same as rows of the tables."""

    def new(self, base: KnowledgeBase, known: dict[Table, set[str]]) -> dict[Table, int]:
        """How many rows the import would add to each table: those that are not there.

        :param known: by table what tells the rows of the files before it from others; those of this one are added.
        """
        counts = dict[Table, int]()
        for table, rows in self.tables.items():
            keys, seen = set(_keys(rows, table) if len(rows) else ()), known.setdefault(table, set())
            ids = pa.array(sorted(set(rows["observation_id"]) if keys else ()), pa.string())
            found: Iterable[pa.RecordBatch] = base.stream(table, columns=_KEYS[table], among=ids) if keys else ()
            there = {key for batch in found for key in _keys(batch.to_pandas(), table)}
            counts[table] = len(keys - there - seen)
            seen |= keys
        return counts


def preview(config: AgentConfig, files: Sequence[Path], rows: int = 1000) -> Iterator[Preview]:
    """What the first ``rows`` lines of each file would become; nothing is written.

    :raises SchemaError: if a file cannot be read, or lacks a column that the agent file names.
    """
    KnowledgeBase(config).require_types()
    for source in _sources(config, files):
        chunk = next(source.file.chunks(source.columns, rows))
        read = source.read(chunk)
        shown = read.observations
        for name, more in (("decision", read.decisions), ("outcome", read.outcomes)):
            if len(more):
                said = more.drop_duplicates("observation_id").set_index("observation_id")["action"]
                shown = shown.assign(**{name: shown["observation_id"].map(said)})
        tables: dict[Table, pd.DataFrame] = {
            "observations": read.observations,
            "decisions": read.decisions,
            "outcomes": read.outcomes,
        }
        yield Preview(source.file.path, shown, len(chunk.lines) + len(chunk.bad), read.problems, tables)


def import_files(
    base: KnowledgeBase, files: Sequence[Path], on_bytes: Callable[[str, int], None] = lambda _what, _count: None
) -> Summary:
    """Import the files in turn, as ``importing`` of the agent file says.

    :param on_bytes: told what is under way, and of so many more bytes of the files; each byte is read twice.
    :raises SchemaError: if a file cannot be read, lacks a column, or was changed meanwhile; what was read is kept. Also
        if the knowledge base has a column as another type.
    :raises RuntimeStateError: if another import for this agent is under way.
    """
    summary = Summary()
    base.require_types()
    with _alone(base.config.agent):
        sources = list(_sources(base.config, files))
        for source in sources:
            what = f"checking {source.file.path.name}"
            source.digest = source.file.digest(partial(on_bytes, what))
        tables = _Tables(base, sources[0].importing)
        for source in sources:
            with _remembered(base, source, summary.notes):
                _import(base, source, tables, summary, on_bytes)
    return summary


def _import(
    base: KnowledgeBase, source: _Source, tables: _Tables, summary: Summary, on_bytes: Callable[[str, int], None]
) -> None:
    at = 0
    for number, chunk in enumerate(source.file.chunks(source.columns, _CHUNK_ROWS)):
        source.file.require_unchanged()
        rows, batch = len(chunk.lines) + len(chunk.bad), f"import:{source.key}:{_CHUNK_ROWS}x{CHUNK_BYTES}:{number}"
        summary.rows += rows
        if base.has_batch("observations", batch):  # the last table to be written
            summary.before += rows
        else:
            read = source.read(chunk)
            summary.problems += read.problems[: _MOST_PROBLEMS - len(summary.problems)]
            summary.quarantined += len(read.quarantine)
            tables.append("quarantine", read.quarantine, batch)
            summary.decisions += tables.append("decisions", read.decisions, batch)
            summary.outcomes += tables.append("outcomes", read.outcomes, batch)
            added = tables.append("observations", read.observations, batch)
            summary.added += added
            summary.duplicates += len(read.observations) - added
        on_bytes(f"importing {source.file.path.name}", chunk.at - at)
        at = chunk.at


@contextmanager
def _alone(agent: str) -> Iterator[None]:
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
def _remembered(base: KnowledgeBase, source: _Source, notes: list[str]) -> Iterator[None]:
    """While a file is being imported its content is noted, so that a change after an interruption is noticed."""
    path = source.file.path.resolve()
    note = home() / "imports" / base.config.agent / f"{short_id(str(path))}.txt"
    begun = note.read_text(encoding="utf-8") if note.exists() else source.digest
    if begun != source.digest:
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


# --------------------------------------------------------------------------- what is there already


class _Tables:
    """The tables that an import writes, with the keys of what they have."""

    def __init__(self, base: KnowledgeBase, importing: Importing) -> None:
        self.base = base
        wanted: list[Table] = ["observations", "quarantine"]
        wanted += ["decisions"] if importing.decision else []
        wanted += ["outcomes"] if importing.outcome else []
        self.known = {table: _Keys() for table in wanted}
        for table, keys in self.known.items():
            for batch in base.stream(table, columns=_KEYS[table]):
                keys.add(_keys(batch.to_pandas(), table))

    def append(self, table: Table, rows: pd.DataFrame, batch: str) -> int:
        """Append the rows that are not there yet; how many that were."""
        if rows.empty:
            return 0
        keys = _keys(rows, table)
        new = self.known[table].add(keys)
        if table == "observations":
            return self.base.append_observations(rows[new], batch=batch) if new.any() else 0
        return self.base.append(table, rows[new], batch=batch)


_KEYS: dict[Table, list[str]] = {
    "observations": ["observation_id"],
    "quarantine": ["observation_id"],
    "decisions": ["decision_id"],
    "outcomes": ["observation_id", "known_at", "action"],
}

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def _keys(rows: pd.DataFrame, table: Table) -> pd.Series[str]:
    """What tells a row of the table from the others, as one text."""
    if table != "outcomes":
        ids: pd.Series[str] = rows[_KEYS[table][0]]
        return ids
    moments = rows["known_at"].dt.as_unit("us").astype("int64").astype(str)
    together: pd.Series[str] = rows["observation_id"] + ":" + moments + ":" + rows["action"]
    return together


class _Keys:
    """A set of texts that grows, 16 bytes for each: 128 bits of hash tell them apart."""

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Hashes]] = []

    def add(self, texts: pd.Series[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Take in ``texts``; which of them are new, bool ``[n]``: of several that are alike, the first."""
        values = texts.to_numpy(dtype=object)
        hashes = pd.util.hash_array(values, categorize=False)
        second = pd.util.hash_array(values, hash_key=f"{1:016x}", categorize=False)
        new = ~pd.DataFrame({0: hashes, 1: second}).duplicated().to_numpy()
        for first, other in self._runs:
            new &= ~_within(hashes, second, first, other)
        order = np.argsort(hashes[new], kind="stable")
        self._runs.append((hashes[new][order], second[new][order]))
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 > len(self._runs[-2][0]):
            self._runs[-2:] = [_merged(self._runs[-2], self._runs[-1])]
        return new


def _within(hashes: Hashes, second: Hashes, sorted_: Hashes, other: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    start, end = (np.searchsorted(sorted_, hashes, side) for side in ("left", "right"))
    found = np.zeros(len(hashes), dtype=bool)
    for step in range(int((end - start).max(initial=0))):
        inside = start + step < end
        found[inside] |= other[start[inside] + step] == second[inside]
    return found


def _merged(one: tuple[Hashes, Hashes], another: tuple[Hashes, Hashes]) -> tuple[Hashes, Hashes]:
    first, other = (np.concatenate(parts) for parts in zip(one, another, strict=True))
    order = np.argsort(first, kind="stable")
    return first[order], other[order]


# --------------------------------------------------------------------------- from a file's rows to the tables' rows


class _Read(NamedTuple):
    """A chunk as rows of the tables."""

    observations: pd.DataFrame
    decisions: pd.DataFrame
    outcomes: pd.DataFrame
    quarantine: pd.DataFrame
    problems: list[Problem]


def _sources(config: AgentConfig, files: Sequence[Path]) -> Iterator[_Source]:
    importing = config.importing or Importing(
        observation_id="observation_id", observed_at=ImportedTime(column="observed_at")
    )
    return iter([_Source(LogFile(path, importing.delimiter), importing, config) for path in files])


class _Source:
    """A file, and how its columns are to be read.

    :raises SchemaError: if it lacks one of them.
    """

    def __init__(self, file: LogFile, importing: Importing, config: AgentConfig) -> None:
        self.file, self.importing, self.config = file, importing, config
        self.digest = ""
        self.features = {name: importing.columns.get(name, name) for name in config.observations.columns}
        self.columns = list(dict.fromkeys(name for _, name in self._named()))
        if lacking := file.lacking(self.columns):
            key, name = next((key, name) for key, name in self._named() if name in lacking)
            raise SchemaError(
                f"{file.path} has no column {name!r}, which the agent file wants for {key}{self._hint(name)} It has: "
                f"{', '.join(map(repr, file.columns))}. Say in `importing` what the file calls it"
            )

    @property
    def key(self) -> str:
        """What tells this content under this mapping from all others."""
        return f"{self.digest}:{short_id(self.importing.model_dump_json(), *self.features.items())}"

    @property
    def _missing_texts(self) -> tuple[str, ...]:
        """Texts that stand for no value in categories and texts: an empty one does in CSV, or where it is named."""
        missing = self.importing.missing
        return missing if self.file.kind == "csv" or "missing" in self.importing.model_fields_set else ()

    def _hint(self, name: str) -> str:
        """What may be wrong with the file's columns, or with what the agent file calls them."""
        if self.file.kind == "csv" and (hint := heading_hint(name, self.file.columns, self.importing.delimiter)):
            setting = ", or name it so in `importing.columns`" if "blanks" in hint else ""
            setting = "; `importing.delimiter` says which a file has" if "separated" in hint else setting
            return f": {hint}{setting}."
        close = difflib.get_close_matches(name, self.file.columns, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else "."

    def _named(self) -> Iterator[tuple[str, str]]:
        """What the agent file wants, and the column that it names for it."""
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

    def read(self, chunk: Chunk) -> _Read:
        """The chunk's rows for each table; what cannot be used is in quarantine alone."""
        raw, why = _Values(chunk.rows, self.importing.missing), defaultdict[int, list[str]](list)
        times = raw.moments(self.importing.observed_at, why, required=True)
        rows = pd.DataFrame({"observation_id": "", "observed_at": times}, index=chunk.rows.index)
        for name in self.config.observations.columns:
            if name in self.config.observations.numbers:
                rows[name] = raw.numbers(self.features[name], why)
            else:
                rows[name] = raw.texts(self.features[name], why, missing=self._missing_texts)
        if self.importing.observation_id is not None:
            rows["observation_id"] = raw.texts(self.importing.observation_id, why, required=True)
        decisions, outcomes = self._decisions(raw, rows, why), self._outcomes(raw, rows, why)
        lines = np.asarray(chunk.lines, dtype=np.int64)
        sound = ~np.isin(np.arange(len(rows)), list(why))
        rows = rows[sound]
        if self.importing.observation_id is None and len(rows):
            rows["observation_id"] = self._made_up(rows, lines[sound])
        ids = rows["observation_id"]
        problems = sorted(
            [(line, [reason], pd.NaT) for line, reason in chunk.bad]
            + [(int(lines[place]), reasons, times.iloc[place]) for place, reasons in why.items()],
            key=lambda problem: problem[0],
        )
        return _Read(
            rows.reset_index(drop=True),
            _with_ids(decisions, ids),
            _with_ids(outcomes, ids),
            self._quarantine(problems),
            [Problem(self.file.path.name, line, "; ".join(reasons)) for line, reasons, _ in problems],
        )

    def _made_up(self, rows: pd.DataFrame, lines: np.ndarray[Any, np.dtype[np.int64]]) -> list[str]:
        if self.importing.made_of == "line":
            return [f"{self.digest[:16]}:{line}" for line in lines.tolist()]
        moments = rows["observed_at"].astype("int64").tolist()
        keys = content_keys(tidy(rows, self.config), self.config)
        return [f"{key}:{moment:x}" for key, moment in zip(keys, moments, strict=True)]

    def _decisions(self, raw: _Values, rows: pd.DataFrame, why: Reasons) -> pd.DataFrame | None:
        decision = self.importing.decision
        if decision is None:
            return None
        said = decision.probabilities
        found = rows[["observed_at"]].assign(
            decided_at=raw.moments(decision.decided_at, why) if decision.decided_at else rows["observed_at"],
            action=raw.actions(decision.action, self.importing.actions, self.config.actions, why),
            probabilities=raw.probabilities([said[name] for name in self.config.actions], why) if said else None,
            decider=raw.texts(decision.decider, why).fillna(_ELSEWHERE) if decision.decider else _ELSEWHERE,
            version=raw.texts(decision.version, why).fillna(_ELSEWHERE) if decision.version else _ELSEWHERE,
        )
        found["decided_at"] = found["decided_at"].fillna(found["observed_at"])
        return found[found["action"].notna()]

    def _outcomes(self, raw: _Values, rows: pd.DataFrame, why: Reasons) -> pd.DataFrame | None:
        outcome = self.importing.outcome
        if outcome is None:
            return None
        later = rows["observed_at"] + self.config.outcomes.delay
        known = raw.moments(outcome.known_at, why).fillna(later) if outcome.known_at else later
        early = known < rows["observed_at"]
        for place in np.flatnonzero(early).tolist():
            why[place].append(f"known_at: {known.iloc[place]} is before observed_at, {rows['observed_at'].iloc[place]}")
        actions = raw.actions(outcome.action, self.importing.actions, self.config.actions, why)
        found = rows[["observed_at"]].assign(known_at=known, action=actions)
        return found[found["action"].notna()]

    def _quarantine(self, problems: list[tuple[int, list[str], Any]]) -> pd.DataFrame:
        """Under ids that no observation has, so that a row which is put right later is not taken for a bad one."""
        now = pd.Timestamp(datetime.now(UTC))
        name = self.file.path.name
        hashed = hashlib.blake2b(self.key.encode(), digest_size=6).hexdigest()
        return pd.DataFrame(
            {
                "observation_id": [f"import:{hashed}:{line}" for line, _, _ in problems],
                "observed_at": pd.to_datetime([now if pd.isna(at) else at for _, _, at in problems], utc=True),
                "reasons": [[f"{name}:{line}: {reason}" for reason in reasons] for line, reasons, _ in problems],
            }
        )


def _unlike_any(given: pd.Series[Any]) -> pd.Series[bool]:
    """Which moments that a file has as such lie beyond what microseconds can count, bool ``[n]``."""
    if not pd.api.types.is_datetime64_any_dtype(given):
        return pd.Series(False, index=given.index)
    zone = getattr(given.dtype, "tz", None)
    first, last = (pd.Timestamp(f"{year}-01-01", tz=zone).as_unit("s") for year in ("0002", "9998"))
    return (given < first) | (given > last)


def _with_ids(rows: pd.DataFrame | None, ids: pd.Series[str]) -> pd.DataFrame:
    """Rows of a table, with the ids of those of their observations that can be used."""
    if rows is None:
        return pd.DataFrame()
    rows = rows[rows.index.isin(ids.index)]
    rows = rows.assign(observation_id=ids.loc[rows.index])
    if "version" in rows:
        rows = rows.assign(decision_id=rows["observation_id"] + ":" + rows["version"])
    return rows.reset_index(drop=True)


class _Values:
    """The columns of a chunk as numbers, texts, moments; why a value is none goes beside its row's place."""

    def __init__(self, rows: pd.DataFrame, missing: tuple[str, ...]) -> None:
        self.rows, self.missing = rows, missing

    def numbers(self, column: str, why: Reasons) -> pd.Series[float]:
        """Float64 ``[n]``, missing as NaN."""
        given = self._given(column)
        numbers = self._told(numbers_in(given), column, why)
        self._complain(numbers.abs() == np.inf, column, given, "is not finite", why)
        return numbers

    def texts(
        self, column: str, why: Reasons, *, required: bool = False, missing: tuple[str, ...] | None = None
    ) -> pd.Series[str]:
        """Texts or None, ``[n]``: numbers, truth values and dates as they are written."""
        given = self._given(column, missing)
        texts = self._told(texts_in(given), column, why)
        if required:
            self._complain(given.isna(), column, given, "is missing", why)
        return texts

    def actions(self, column: str, words: dict[str, str], known: Sequence[str], why: Reasons) -> pd.Series[str]:
        """Names of actions or None, ``[n]``."""
        given = self.texts(column, why)
        actions = given.map(lambda word: words.get(word, word), na_action="ignore")
        strange = actions.notna() & ~actions.isin(list(known))
        self._complain(strange, column, given, f"is no action; there are: {', '.join(known)}", why)
        return actions.where(actions.notna(), None)

    def probabilities(self, columns: Sequence[str], why: Reasons) -> pd.Series[Any]:
        """``[n]`` lists of K, or None where all are missing."""
        each = pd.concat([self.numbers(column, why) for column in columns], axis=1).to_numpy()
        absent = np.isnan(each).all(axis=1)
        wrong = ~absent & ~((each >= 0).all(axis=1) & (np.abs(each.sum(axis=1) - 1) < 1e-3))
        for place in np.flatnonzero(wrong).tolist():
            why[place].append(f"{', '.join(columns)}: {each[place].tolist()} are no probabilities that sum to 1")
        found = pd.Series(list(each), index=self.rows.index, dtype=object)
        return found.where(~absent, None)

    def moments(self, of: ImportedTime, why: Reasons, *, required: bool = False) -> pd.Series[pd.Timestamp]:
        """UTC to the microsecond, missing as NaT, ``[n]``."""
        given = self._given(of.column)
        wrong = "is before 1700 or after now: are its unit and its zone right?"
        absent, far = given.isna(), _unlike_any(given)
        if far.any():  # and Python's zones end before them
            in_utc = given.dt.tz_convert(None) if isinstance(given.dtype, pd.DatetimeTZDtype) else given
            self._complain(far, of.column, in_utc, wrong, why)
            given = given.mask(far)
        found = self._parsed(given, of, why)
        far = outside(found)
        self._complain(far, of.column, given, wrong, why)
        if required:
            self._complain(absent, of.column, given, "is missing", why)
        return found.mask(far)

    def _parsed(self, given: pd.Series[Any], of: ImportedTime, why: Reasons) -> pd.Series[pd.Timestamp]:
        if pd.api.types.is_datetime64_any_dtype(given):
            if isinstance(given.dtype, pd.DatetimeTZDtype):
                moments: pd.Series[pd.Timestamp] = given.dt.tz_convert("UTC").dt.as_unit("us")
                return moments
            return self._in_zone(given, given, of, why)
        if of.format in ("s", "ms", "us"):
            ticks = numbers_in(given).values * {"s": 1e6, "ms": 1e3, "us": 1.0}[of.format]
            told = given.isna() | (ticks.abs() < 9e18)
            self._complain(~told, of.column, given, f"is no number of {of.format} since 1970", why)
            found = pd.to_datetime(ticks.where(told).round().astype("Int64"), unit="us", utc=True)
            return found.dt.as_unit("us")
        texts = texts_in(given).values.str.strip()
        texts = texts.where(texts.str.contains(r"\d", na=False), None)  # to pandas "now" and "today" are moments
        iso = of.format == "iso" or pd.api.types.infer_dtype(given, skipna=True) in ("date", "datetime")
        if iso:  # of numbers only whole dates: what others count is said by `format`
            written = given.map(lambda value: isinstance(value, int | float)).to_numpy(dtype=bool, na_value=False)
            texts = texts.where(~written | texts.str.fullmatch(_COMPACT, na=False), None)
        form = "ISO8601" if iso else of.format
        zoned = with_zone(texts) if iso else pd.Series("%z" in of.format, index=texts.index)
        sure = pd.to_datetime(texts.where(zoned), format=form, utc=True, errors="coerce").dt.as_unit("us")
        naive = pd.to_datetime(texts.where(~zoned), format=form, errors="coerce")
        what = "is no ISO moment such as 2024-05-01T12:00:00Z" if iso else f"is not of the form {of.format}"
        self._complain(given.notna() & sure.isna() & naive.isna(), of.column, given, what, why)
        return sure.fillna(self._in_zone(naive, given, of, why))

    def _in_zone(
        self, naive: pd.Series[pd.Timestamp], given: pd.Series[Any], of: ImportedTime, why: Reasons
    ) -> pd.Series[pd.Timestamp]:
        if of.timezone is None:
            remedy = f"write `{{column: {of.column}, timezone: …}}` in `importing`"
            self._complain(naive.notna(), of.column, given, f"says no time zone: {remedy}", why)
            return pd.Series(pd.NaT, index=naive.index, dtype="datetime64[us, UTC]")
        moments = naive.dt.as_unit("us").dt.tz_localize(of.timezone, ambiguous="NaT", nonexistent="NaT")
        lost = moments.isna() & naive.notna()
        self._complain(lost, of.column, given, f"comes twice or never in {of.timezone}, when clocks are set", why)
        return moments.dt.tz_convert("UTC")

    def _given(self, column: str, missing: tuple[str, ...] | None = None) -> pd.Series[Any]:
        given = self.rows[column]
        if given.dtype.kind in "biufmM":  # no texts, and so none that stand for no value
            return given
        absent = given.isin(list(self.missing if missing is None else missing))
        return given.where(~absent, None) if absent.any() else given

    def _told(self, read: ReadColumn, column: str, why: Reasons) -> pd.Series[Any]:
        for place, reason in read.refused.items():
            why[place].append(f"{column}: {reason}")
        return read.values

    def _complain(self, wrong: pd.Series[bool], column: str, given: pd.Series[Any], what: str, why: Reasons) -> None:
        for place in np.flatnonzero(wrong.to_numpy(dtype=bool, na_value=False)):
            value = given.iloc[place]
            shown = "" if is_missing(value) else f"{str(value)[:60]!r} "
            why[int(place)].append(f"{column}: {shown}{what}")
