"""The places that hold rows, in the order in which they are cleaned.

A place counts what it holds of a selection and erases it. To add one, write a class with the methods of :class:`Place`
and name it in :func:`places`. The observations come last: what other places show of a row is recognised by its texts,
and a run that was killed reads them from there again.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.forgetting.selection import Selection
from stillhouse.gateway.handing_over import RecordedRow, hand_over, read_recorded
from stillhouse.gateway.store import GatewayStore, store_path
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.erasing import Change, drop_rows, edit_rows, erase, matching_rows, plain
from stillhouse.knowledge.schemas import Table
from stillhouse.knowledge.spool import spool_folder
from stillhouse.knowledge.spool_erasing import WaitingRows, erase_events, flush_locks, read_waiting
from stillhouse.knowledge.traces import Traces
from stillhouse.records import ForgetRequest
from stillhouse.registry.forgetting import ForgottenRows, blot_runs, clean_models

__all__ = ["Place", "find_leftovers", "places"]

_ID = "observation_id"
_BY_ID: tuple[Table, ...] = ("decisions", "rankings", "outcomes", "quarantine", "questions")
_BY_CONTENT: tuple[Table, ...] = ("knowledge", "unanswered")
_SEARCHED_AT_ONCE = 16 * 2**20  # bytes


class Place(Protocol):
    """Somewhere rows are stored."""

    name: str
    """For the report."""

    def find(self, request: ForgetRequest) -> Iterable[str]:
        """Observation ids that this place knows for a request, beyond those of the tables and spools."""
        ...

    def count(self, selection: Selection) -> int:
        """Number of rows or files of the selection; 0 if it is not known before they are erased."""
        ...

    def erase(self, selection: Selection) -> list[str]:
        """Erase the selection; may be killed and repeated.

        :returns: a sentence for each thing that could not be erased.
        """
        ...


def places(agent: str) -> tuple[Place, ...]:
    """The places of an agent, in the order in which they are cleaned; a further place is added here."""
    base = KnowledgeBase(config.load(agent))
    return (
        _Captures(base),
        _Spools(base),
        _Models(agent),
        _Runs(agent),
        _Files(agent),
        _Databases(),
        *(_Rows(base, table) for table in _BY_ID),
        *(_Contents(base, table) for table in _BY_CONTENT),
        _Journal(base),
        _Rows(base, "observations"),
    )


class _Nothing:
    """A place that knows no ids of its own and counts nothing beforehand."""

    name: str

    def find(self, request: ForgetRequest) -> Iterable[str]:
        return ()

    def count(self, selection: Selection) -> int:
        return 0


# --------------------------------------------------------------------------- spools


class _Spools(_Nothing):
    """Events that wait on this machine, and dead letters."""

    name = "spools"

    def __init__(self, base: KnowledgeBase) -> None:
        self._folder = spool_folder(base.config.agent)
        self._base = base

    def count(self, selection: Selection) -> int:
        return sum(sum(self._dropped(selection, waiting)) for waiting in read_waiting(self._folder))

    def erase(self, selection: Selection) -> list[str]:
        with flush_locks(self._folder):
            _, problems = erase_events(self._folder, partial(self._dropped, selection), selection.traces.in_bytes)
        return problems

    def _dropped(self, selection: Selection, waiting: WaitingRows) -> list[bool]:
        if _ID in waiting.rows.columns:
            return [name in selection.observation_ids for name in waiting.rows[_ID]]
        values = waiting.rows.to_numpy(dtype=object)  # of a teacher's answers, which carry no id
        return [any(isinstance(value, str) and value in selection.traces.values for value in row) for row in values]


# --------------------------------------------------------------------------- the front door


class _Captures(_Nothing):
    """Requests that were recorded at the front door."""

    name = "requests at the front door"

    def __init__(self, base: KnowledgeBase) -> None:
        self._config, self._door = base.config, base.config.front_door

    def find(self, request: ForgetRequest) -> Iterable[str]:
        """The ids of a caller's requests; all records are handed over first, so that the tables know them."""
        if self._door is None:
            return ()
        hand_over(self._config)
        callers = frozenset(request.callers)
        return [found.observation_id for found in self._records() if found.caller in callers]

    def count(self, selection: Selection) -> int:
        return len(self._chosen(selection))

    def erase(self, selection: Selection) -> list[str]:
        chosen = self._chosen(selection)
        if chosen:
            with closing(GatewayStore(store_path())) as store:
                store.forget(chosen)
        return []

    def _chosen(self, selection: Selection) -> list[int]:
        return [
            found.capture
            for found in self._records()
            if found.caller in selection.callers or found.observation_id in selection.observation_ids
        ]

    def _records(self) -> list[RecordedRow]:
        return [] if self._door is None else read_recorded(self._config)


# --------------------------------------------------------------------------- tables


class _Rows(_Nothing):
    """A table whose rows carry an observation id."""

    def __init__(self, base: KnowledgeBase, table: Table) -> None:
        self._base, self._table, self.name = base, table, table

    def count(self, selection: Selection) -> int:
        found = matching_rows(self._base.tables, self._table, [_ID], selection.are_rows)
        return len({name for rows in found for name in rows[_ID].to_pylist()})

    def erase(self, selection: Selection) -> list[str]:
        columns = [_ID, "reasons"] if self._table == "quarantine" else [_ID]
        erase(self._base.tables, self._table, drop_rows(columns, partial(self._matches, selection)))
        return []

    def _matches(self, selection: Selection, rows: pa.Table) -> pa.Array:
        mask = selection.are_rows(rows)
        if "reasons" in rows.column_names:  # a reason may quote a value
            shown = [any(map(selection.traces.in_text, reasons or ())) for reasons in rows["reasons"].to_pylist()]
            mask = pc.or_(mask, pa.array(shown, pa.bool_()))
        return mask


class _Contents(_Nothing):
    """A table whose rows carry the key of a content."""

    def __init__(self, base: KnowledgeBase, table: Table) -> None:
        self._base, self._table, self.name = base, table, table

    def count(self, selection: Selection) -> int:
        found = matching_rows(self._base.tables, self._table, ["content_key"], selection.are_contents)
        return len({key for rows in found for key in rows["content_key"].to_pylist()})

    def erase(self, selection: Selection) -> list[str]:
        erase(self._base.tables, self._table, drop_rows(["content_key"], selection.are_contents))
        return []


class _Journal(_Nothing):
    """What the system decided: figures stay, ids and texts are blotted out."""

    name = "journal"
    _COLUMNS: Mapping[Table, tuple[str, ...]] = {
        "evidence": ("observation_ids", "json"),
        "verdicts": ("json",),
        "weights": ("json",),
        "unanswered": ("reason",),
    }

    def __init__(self, base: KnowledgeBase) -> None:
        self._base = base

    def count(self, selection: Selection) -> int:
        names = {"observation_ids"}

        def has_id(rows: pa.Table) -> pa.Array:
            return pa.array(
                [not selection.observation_ids.isdisjoint(one) for one in rows["observation_ids"].to_pylist()]
            )

        return sum(rows.num_rows for rows in matching_rows(self._base.tables, "evidence", names, has_id))

    def erase(self, selection: Selection) -> list[str]:
        for table, columns in self._COLUMNS.items():
            for column in columns:
                change: Change = edit_rows(column, selection.traces.blot_value)
                erase(self._base.tables, table, change)
        return []


# --------------------------------------------------------------------------- MLflow


class _Models(_Nothing):
    """Input examples and replay memories of logged models."""

    name = "models"

    def __init__(self, agent: str) -> None:
        self._agent = agent

    def erase(self, selection: Selection) -> list[str]:
        clean_models(open_registry(self._agent), ForgottenRows(selection.observation_ids, selection.times))
        return []


class _Runs(_Nothing):
    """Text files of runs: pages, reports and records."""

    name = "runs"

    def __init__(self, agent: str) -> None:
        self._agent = agent

    def erase(self, selection: Selection) -> list[str]:
        blot_runs(open_registry(self._agent), selection.traces)
        return []


# --------------------------------------------------------------------------- files of the home


class _Files(_Nothing):
    """Local files that can be made again: pages of data checks, folders of refreshes, downloads, caches."""

    name = "files"

    def __init__(self, agent: str) -> None:
        self._agent = agent

    def erase(self, selection: Selection) -> list[str]:
        home = config.home()
        shutil.rmtree(home / "data_docs" / self._agent, ignore_errors=True)
        shutil.rmtree(home / "embeddings", ignore_errors=True)
        folders = [home / "models", home / "refreshes" / self._agent, home / "demo" / self._agent]
        for folder in (child for parent in folders if parent.is_dir() for child in sorted(parent.iterdir())):
            if any(_shows(file, selection.traces) for file in _files_below(folder) if file.name != "manifest.json"):
                shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)
        return []


class _Databases(_Nothing):
    """The embedded databases of MLflow and Prefect."""

    name = "databases"

    def erase(self, selection: Selection) -> list[str]:
        home, problems = config.home(), list[str]()
        for file in (home / "mlflow" / "mlflow.db", home / "prefect" / "prefect.db"):
            if file.exists() and selection.traces:
                try:
                    _blot_database(file, selection.traces)
                except sqlite3.Error as error:
                    problems.append(
                        f"the database {file} could not be cleaned: {error}; stop what uses it, run it again"
                    )
        return problems


def _blot_database(file: Path, traces: Traces) -> None:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        connection.execute("pragma secure_delete = on")
        connection.create_function("shows_forgotten", 1, lambda text: isinstance(text, str) and traces.in_text(text))
        connection.create_function("blot_forgotten", 1, traces.blot)
        tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_rest in connection.execute(f'pragma table_info("{table}")').fetchall():
                if kind.upper().startswith(("VARCHAR", "TEXT", "JSON", "CHAR")):
                    where = f'shows_forgotten("{column}")'
                    if connection.execute(f'select 1 from "{table}" where {where} limit 1').fetchone():
                        connection.execute(
                            f'update "{table}" set "{column}" = blot_forgotten("{column}") where {where}'
                        )
        connection.commit()
        connection.execute("pragma wal_checkpoint(truncate)")


# --------------------------------------------------------------------------- search


def find_leftovers(traces: Traces, on_file: Callable[[Path], None] = lambda _: None) -> list[Path]:
    """Every file of the home in which an id or a text is found, as bytes or in the columns of Parquet."""
    home = config.home()
    found = list[Path]()
    for file in _files_below(home) if traces else ():
        on_file(file)
        if _shows(file, traces):
            found.append(file.relative_to(home))
    return found


def _files_below(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _shows(file: Path, traces: Traces) -> bool:
    try:
        if file.suffix == ".parquet":
            return _parquet_shows(file, traces)
        with file.open("rb") as stream:
            before = b""
            while block := stream.read(_SEARCHED_AT_ONCE):
                if traces.in_bytes(before + block):
                    return True
                before = block[-65_536:]
    except FileNotFoundError:
        return False
    return False


def _parquet_shows(file: Path, traces: Traces) -> bool:
    values = pa.array(sorted(traces.values), pa.string())
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                for column in plain(pa.Table.from_batches([batch])).combine_chunks().columns:
                    while pa.types.is_list(column.type):
                        column = pc.list_flatten(column)
                    if not pa.types.is_string(column.type):
                        continue
                    if pc.any(pc.is_in(column, values)).as_py():
                        return True
                    long = column.filter(pc.greater(pc.binary_length(column), 200))  # JSON, and stored statistics
                    if any(map(traces.in_text, long.to_pylist())):
                        return True
    except (pa.ArrowException, OSError):
        return traces.in_bytes(file.read_bytes())
    return traces.in_bytes(file.read_bytes())
