"""An agent's tables in Delta Lake: their columns, how they are opened, and how rows are appended once.

What is read by time is partitioned by ``observed_month`` (``2013-01``), so that a window reads the files of its months
and compaction rewrites one month at a time. The column is derived from ``observed_at`` where rows are written, and no
frame has it unless asked. Tables from before have no partitions and go on without.

Old versions stay readable for ever: Delta removes logs after thirty days unless a table says otherwise, as ours do.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow.dataset import Dataset, Scanner

from stillhouse.config import AgentConfig, home
from stillhouse.errors import RuntimeStateError, SchemaError, StoreError
from stillhouse.files import sync
from stillhouse.frames import require_distinct
from stillhouse.knowledge.commits import damaged_entries

__all__ = [
    "FIELDS",
    "HOOKS",
    "MONTH",
    "PROPERTIES",
    "TIME",
    "WINDOWED",
    "Clause",
    "Table",
    "Tables",
    "file_statistics",
    "files_with",
    "newest",
    "observed_in",
    "wrap_errors",
]

Table = Literal[
    "observations",
    "decisions",
    "knowledge",
    "outcomes",
    "quarantine",
    "verdicts",
    "evidence",
    "unanswered",
    "spending",
    "questions",
    "weights",
]

TIME = pa.timestamp("us", tz="UTC")
_PROBABILITIES = pa.list_(pa.float64())
_FEATURES = pa.list_(pa.float32())
FIELDS: dict[Table, list[tuple[str, pa.DataType]]] = {
    "observations": [("observation_id", pa.string()), ("observed_at", TIME), ("content_key", pa.string())],
    "decisions": [
        ("decision_id", pa.string()),
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("decided_at", TIME),
        ("action", pa.string()),
        ("probabilities", _PROBABILITIES),
        ("decider", pa.string()),
        ("version", pa.string()),
    ],
    "knowledge": [
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("teacher", pa.string()),
        ("asked_at", TIME),
        ("probabilities", _PROBABILITIES),
        ("features", _FEATURES),
    ],
    "outcomes": [
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("known_at", TIME),
        ("action", pa.string()),
    ],
    "quarantine": [
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("reasons", pa.list_(pa.string())),
    ],
    "verdicts": [
        ("verdict_id", pa.string()),
        ("kind", pa.string()),
        ("observed_at", TIME),
        ("recorded_at", TIME),
        ("outcome", pa.string()),
        ("json", pa.string()),
    ],
    "evidence": [
        ("process", pa.string()),
        ("champion", pa.string()),
        ("since", TIME),
        ("observed_at", TIME),
        ("observation_ids", pa.list_(pa.string())),
        ("units", pa.list_(pa.int64())),
        ("probabilities", _PROBABILITIES),
        ("weights", _PROBABILITIES),
        ("losses", _PROBABILITIES),
        ("json", pa.string()),
    ],
    "unanswered": [
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("teacher", pa.string()),
        ("asked_at", TIME),
        ("reason", pa.string()),
    ],
    "spending": [
        ("job", pa.string()),
        ("purpose", pa.string()),
        ("teacher", pa.string()),
        ("version", pa.string()),
        ("observed_at", TIME),
        ("asked_at", TIME),
        ("calls", pa.int64()),
        ("rows", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("money", pa.float64()),
    ],
    "weights": [
        ("job", pa.string()),
        ("version", pa.string()),
        ("observed_at", TIME),
        ("recorded_at", TIME),
        ("teacher", pa.string()),
        ("slice", pa.string()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("json", pa.string()),
    ],
    "questions": [
        ("job", pa.string()),
        ("teacher", pa.string()),
        ("observation_id", pa.string()),
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("probability", pa.float64()),
        ("known", pa.bool_()),
    ],
}

WINDOWED: tuple[Table, ...] = ("observations", "outcomes", "quarantine", "decisions")
"""A window names the versions of these."""

MONTH = "observed_month"
_BY_MONTH: tuple[Table, ...] = (*WINDOWED, "knowledge")

PROPERTIES = {"delta.enableExpiredLogCleanup": "false", "delta.checkpointInterval": "20"}
"""Of every table: logs are kept, and opening one reads at most twenty commits behind a checkpoint."""

HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
"""The same for a table that was made before these properties were."""

Clause = tuple[str, Literal["=", "<", "<=", ">", ">=", "in"], Any]
"""``(column, operator, value)`` that a row must meet; the value is a text, a moment, or several texts for ``in``."""

_STORED = {"double": True, "string": False}  # whether it is a number in the agent file

_TRIES, _FIRST_PAUSE, _LONGEST_PAUSE = 12, 0.02, 1.0  # seconds


class Tables:
    """The tables of one agent, as tables.

    :param config: the agent, whose contract gives the observations' columns.
    :param root: folder of the tables; by default ``STILLHOUSE_HOME/knowledge/<agent>``.
    """

    def __init__(self, config: AgentConfig, root: Path | None = None) -> None:
        self.config = config
        self.root = root or home() / "knowledge" / config.agent
        self._handles: dict[Table, tuple[DeltaTable, tuple[int, int]]] = {}

    def identity(self) -> str:
        """What tells this knowledge base from every other, for ever: the id of the table ``decisions``."""
        return str(self._open_or_create("decisions").metadata().id)

    def require_types(self, columns: Sequence[str] | None = None, delta: DeltaTable | None = None) -> None:
        """Refuse an agent file that has columns of another type than the observations that are kept.

        A table's column keeps its type for ever: numbers that become texts would be read as what they are not.

        :param columns: only these matter; by default all.
        :param delta: the table where it is open already.
        :raises SchemaError: naming the columns and what to do.
        """
        delta = delta or self._open("observations")
        if delta is None:
            return
        stored = {field.name: getattr(field.type, "type", "") for field in delta.schema().fields}
        numbers = self.config.observations.numbers
        changed = [
            f"{name!r} as {'text' if name in numbers else 'numbers'}, and the agent file calls it a {column.type}"
            for name, column in self.config.observations.columns.items()
            if (columns is None or name in columns)
            and stored.get(name, "") in _STORED
            and _STORED[stored[name]] != (name in numbers)
        ]
        if changed:
            raise SchemaError(
                f"the knowledge base of agent {self.config.agent!r} in {self.root} has {'; '.join(changed)}. "
                "What is kept keeps its type: give the column its old type back, or another name in "
                "`observations.columns` (`importing.columns` says what files call it)"
            )

    def append(self, table: Table, rows: pd.DataFrame, *, batch: str) -> int:
        """Append ``rows`` once: a batch of this name that is already there is left as it is.

        :returns: number of rows written; 0 if the batch was there.
        :raises SchemaError: if ``rows`` lack a column of the table, or it has one as another type.
        """
        if table == "observations":
            self.require_types()
        if rows.empty or self.has_batch(table, batch):
            return 0
        return len(rows) if self.commit(table, self._arrow(table, rows), Transaction(batch, 1)) is not None else 0

    def commit(self, table: Table, rows: pa.Table, transaction: Transaction) -> int | None:
        """Append ``rows`` in one commit that carries ``transaction``, and return the table's version.

        None, and nothing is written, where the table has a transaction of that application with this number or a
        later one. What other writers commit meanwhile is let pass.

        :raises RuntimeStateError: if others have been quicker again and again.
        """
        pause = _FIRST_PAUSE
        for attempt in range(_TRIES):
            delta = self._open_or_create(table)
            there = delta.transaction_version(transaction.app_id)
            if there is not None and there >= transaction.version:
                return None
            try:
                write_deltalake(
                    delta,
                    _with_month(delta, rows),
                    mode="append",
                    schema_mode="merge",
                    commit_properties=CommitProperties(app_transactions=[transaction]),
                    post_commithook_properties=HOOKS,
                )
                return int(delta.version())
            except CommitFailedError as error:
                failure = error
            if attempt + 1 < _TRIES:
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise RuntimeStateError(
            f"table {table!r} in {self.root} could not be appended to in {_TRIES} tries, as others changed it each "
            f"time ({failure}); nothing was written, try again"
        ) from failure

    def settle(self, table: Table, version: int) -> None:
        """Return when the commit of that version will survive a loss of power.

        Delta leaves its files to the operating system, which writes them when it sees fit.
        """
        folder = self.root / table
        log = folder / "_delta_log"
        commit = log / f"{version:020d}.json"
        lines = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
        files = [folder / unquote(line["add"]["path"]) for line in lines if "add" in line]
        checkpoint = [log / f"{version:020d}.checkpoint.parquet", log / "_last_checkpoint"]
        written = [*files, commit, *(path for path in checkpoint if path.exists())]
        for path in (*written, *dict.fromkeys(path.parent for path in written), folder, self.root):
            sync(path)

    def counts(self) -> dict[str, int]:
        """Number of rows of each table that there is."""
        opened = {table: self._open(table) for table in FIELDS}
        return {table: _count(delta) for table, delta in opened.items() if delta}

    def has_batch(self, table: Table, batch: str) -> bool:
        """Whether a batch of that name was appended."""
        return self.transaction(table, batch) is not None

    def transaction(self, table: Table, application: str) -> int | None:
        """The number of the application's last transaction on the table; None before its first."""
        delta = self._open(table)
        return None if delta is None else delta.transaction_version(application)

    # ----------------------------------------------------------------- inside

    def _open(self, table: Table, version: int | None = None) -> DeltaTable | None:
        """The table as of now, or at a version. Of now it is kept open, and only what its log has more is read."""
        path = self.root / table
        if not (path / "_delta_log").is_dir():  # asking Delta costs a listing of the whole log
            return None
        if version is None and (kept := self._kept_open(table)):
            return kept
        try:
            delta = DeltaTable(str(path), version=version)
        except TableNotFoundError:  # it is being made
            return None
        except DeltaError as error:
            raise StoreError(_why_closed(path, table, error)) from error
        if version is None:
            self._keep_open(table, delta)
        return delta

    def _kept_open(self, table: Table) -> DeltaTable | None:
        """None where the table is not open yet, or where its log was replaced, as by the restoring of a backup."""
        delta, commit = self._handles.pop(table, (None, None))
        if delta is None or commit != self._commit(table, delta):
            return None
        try:
            delta.update_incremental()
        except DeltaError:  # opening it anew says what is wrong
            return None
        self._keep_open(table, delta)
        return delta

    def _keep_open(self, table: Table, delta: DeltaTable) -> None:
        if commit := self._commit(table, delta):
            self._handles[table] = (delta, commit)

    def _commit(self, table: Table, delta: DeltaTable) -> tuple[int, int] | None:
        """What tells the file of the version's commit from another of that name; None where it is gone."""
        try:
            found = (self.root / table / "_delta_log" / f"{delta.version():020d}.json").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size

    def _select(
        self, table: Table, columns: Sequence[str] | None, *clauses: Clause, delta: DeltaTable | None = None
    ) -> pa.Table:
        """Rows that meet every clause, in no order; a file whose statistics rule them out is not opened.

        :param columns: None: all but the month.
        :param delta: the table where it is open already; by default as of now.
        :raises StoreError: if a file is damaged or gone.
        """
        delta = delta or self._open(table)
        if delta is None:
            return self._schema(table).empty_table().select(columns or self._schema(table).names)
        dataset, condition = files_with(delta, *clauses)
        return self._rows(table, dataset, columns, condition)

    def _rows(
        self, table: Table, dataset: Dataset, columns: Sequence[str] | None, condition: pc.Expression
    ) -> pa.Table:
        names = [name for name in dataset.schema.names if name != MONTH] if columns is None else list(columns)
        if not dataset.files:
            return pa.schema([dataset.schema.field(name) for name in names]).empty_table()
        with wrap_errors(table, self.root):
            return self._scan(table, dataset, names, condition).to_table()

    def _scan(
        self, table: Table, dataset: Dataset, columns: Sequence[str], condition: pc.Expression, **options: Any
    ) -> Scanner:
        """Whatever reads rows of a table goes through here."""
        return dataset.scanner(columns=list(columns), filter=condition, **options)

    def _newest_first(self, table: Table, columns: Sequence[str], *clauses: Clause) -> Iterator[pa.Table]:
        """The rows that meet every clause, from stretch to stretch of time, each of which lies before the last one.

        The first begins where the newest file ends, and each goes back over twice as many files as the one before, so
        that whoever stops at the first rows has read little, however long the table is.
        """
        delta = self._open(table)
        if delta is None:
            return
        ends, end = _ends(delta, clauses), None
        for place in [*(2**n - 1 for n in range(len(ends).bit_length())), None]:
            start = None if place is None else ends[place]
            stretch = list[Clause]()
            if start is not None:
                stretch.append(("observed_at", ">=", start))
            if end is not None:
                stretch.append(("observed_at", "<", end))
            yield self._select(table, columns, *clauses, *stretch, delta=delta)
            end = start

    def open(self, table: Table) -> DeltaTable | None:
        """The table as of now; None where nothing was ever written.

        :raises StoreError: if its log is damaged.
        """
        return self._open(table)

    def _open_or_create(self, table: Table) -> DeltaTable:
        if delta := self._open(table):
            return delta
        path = self.root / table
        path.mkdir(parents=True, exist_ok=True)
        schema, months = self._schema(table), None
        if table in _BY_MONTH:
            schema, months = schema.append(pa.field(MONTH, pa.string())), [MONTH]
        try:
            return DeltaTable.create(
                str(path), schema=schema, mode="ignore", partition_by=months, configuration=dict(PROPERTIES)
            )
        except CommitFailedError:  # another process was quicker
            return DeltaTable(str(path))

    def _schema(self, table: Table) -> pa.Schema:
        fields = list(FIELDS[table])
        if table == "observations":
            fields += [(name, pa.float64()) for name in self.config.observations.numbers]
            strings = (*self.config.observations.categories, *self.config.observations.texts)
            fields += [(name, pa.string()) for name in strings]
        return pa.schema(fields)

    def _arrow(self, table: Table, rows: pd.DataFrame) -> pa.Table:
        schema = self._schema(table)
        require_distinct(rows.columns, f"rows for table {table!r} of agent {self.config.agent!r}")
        if missing := [name for name in schema.names if name not in rows.columns]:
            raise SchemaError(f"rows for table {table!r} of agent {self.config.agent!r} lack the columns {missing}")
        rows = rows[schema.names].copy()
        for name in schema.names:
            if isinstance(rows[name].dtype, pd.DatetimeTZDtype):
                rows[name] = rows[name].dt.tz_convert("UTC").dt.as_unit("us")
        try:
            return pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SchemaError(f"rows for table {table!r} of agent {self.config.agent!r}: {error}") from error

    def _empty(self, table: Table, columns: Sequence[str] | None) -> pd.DataFrame:
        frame: pd.DataFrame = self._schema(table).empty_table().to_pandas()
        return frame if columns is None else frame[list(columns)]


def observed_in(
    delta: DeltaTable, start: datetime | None = None, end: datetime | None = None
) -> tuple[Dataset, pc.Expression]:
    """The files that may hold rows observed in ``[start, end)``, and the condition that those rows meet.

    What a file holds is told by its statistics in the log: the others are not even opened.
    """
    clauses = list[Clause]()
    if start is not None:
        clauses.append(("observed_at", ">=", start))
    if end is not None:
        clauses.append(("observed_at", "<", end))
    return files_with(delta, *clauses)


def files_with(delta: DeltaTable, *clauses: Clause) -> tuple[Dataset, pc.Expression]:
    """The files that by their statistics may hold rows which meet every clause, and the condition of those rows."""
    condition, files = pc.scalar(True), list[str]()
    for column, operator, value in clauses:
        condition &= _OPERATORS[operator](pc.field(column), _arrow_value(value))
        if operator == "in":
            files.append(f"{column} IN ({', '.join(map(_sql, sorted(value)))})" if value else "false")
        elif operator == "=" and isinstance(value, datetime):  # of moments the statistics are too coarse for equality
            files.append(f"{column} >= {_sql(value)} AND {column} <= {_sql(value)}")
        else:
            files.append(f"{column} {operator} {_sql(value)}")
    return delta.to_pyarrow_dataset(file_pruning_predicate=" AND ".join(files) or None), condition


def _ends(delta: DeltaTable, clauses: Sequence[Clause]) -> list[datetime]:
    """By the statistics of the files that may have rows which meet the clauses: when their newest rows were observed.

    Newest first; none where a file has no statistics. Only what texts must equal, and how late they may be, counts.
    """
    ends = file_statistics(delta, "max.observed_at")
    if ends.null_count:
        return []
    mask = pc.is_valid(ends)
    for column, operator, value in clauses:
        least, most = (file_statistics(delta, f"{end}.{column}") for end in ("min", "max"))
        if operator == "=" and isinstance(value, str):
            may = pc.and_(pc.less_equal(least, value), pc.greater_equal(most, value))
            mask = pc.and_(mask, pc.fill_null(may, True))
        elif operator == "<" and column == "observed_at":
            limit = pa.scalar(value, TIME)
            mask = pc.and_(mask, pc.fill_null(pc.less(least, limit), True))
            ends = pc.if_else(pc.less(ends, limit), ends, limit)
    return sorted(pc.unique(pc.filter(ends, mask)).to_pylist(), reverse=True)


_OPERATORS: dict[str, Any] = {
    "=": lambda field, value: field == value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
    "in": lambda field, value: field.isin(value),
}


def _arrow_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return pa.scalar(value, TIME)
    return value if isinstance(value, str) else pa.array(sorted(value), pa.string())


def _sql(value: str | datetime) -> str:
    """As it stands in the condition on a file's statistics."""
    text = _utc(value) if isinstance(value, datetime) else value.replace("'", "''")
    return f"'{text}'"


@contextmanager
def wrap_errors(table: Table, root: Path) -> Iterator[None]:
    """A data file that is damaged or gone, in a sentence.

    :raises StoreError: with it.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        first = " ".join(str(error).split())[:300]
        raise StoreError(
            f"table {table!r} in {root} cannot be read ({first}): a file of it is damaged or gone; restore it from a "
            "backup"
        ) from error


def newest(delta: DeltaTable, until: datetime | None = None) -> datetime | None:
    """The latest ``observed_at``, of those before ``until``, by the files' statistics; None without such rows.

    Statistics are cut to milliseconds, so the newest file's column is read.
    """
    maxima = pc.drop_null(file_statistics(delta, "max.observed_at"))
    if until is not None:  # a file with later rows may hold earlier ones, too: all from the others' latest on are read
        maxima = pc.filter(maxima, pc.less(maxima, pa.scalar(until, TIME)))
    dataset, condition = observed_in(delta, pc.max(maxima).as_py() if len(maxima) else None, until)
    found: datetime | None = pc.max(dataset.to_table(columns=["observed_at"], filter=condition)["observed_at"]).as_py()
    return found


def file_statistics(delta: DeltaTable, name: str) -> pa.ChunkedArray:
    """One statistic of each of the table's files, null where it is not known."""
    files = pa.table(delta.get_add_actions(flatten=True))
    return files[name] if name in files.schema.names else pa.chunked_array([pa.nulls(files.num_rows)])


def _count(delta: DeltaTable) -> int:
    rows = file_statistics(delta, "num_records")
    return int(delta.to_pyarrow_dataset().count_rows() if rows.null_count else pc.sum(rows).as_py() or 0)


def _with_month(delta: DeltaTable, rows: pa.Table) -> pa.Table:
    """``rows`` with their month where the table is partitioned by it."""
    if MONTH not in delta.metadata().partition_columns:
        return rows
    return rows.append_column(MONTH, pc.strftime(rows["observed_at"], format="%Y-%m"))


def _why_closed(path: Path, table: Table, error: Exception) -> str:
    damaged = damaged_entries(path)
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not damaged:
        return f"table {table!r} in {path.parent} cannot be opened ({first}): restore it from a backup"
    return (
        f"table {table!r} cannot be opened: {', '.join(str(file) for file in damaged[:3])} is cut off, as after a loss "
        "of power. If it is the newest entry of the log, remove it: what it held was not acknowledged, or is still in "
        "the spool. If others follow it, restore the table from a backup"
    )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
