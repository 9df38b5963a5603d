"""One agent's Delta tables: opening them, appending batches exactly once, and reading rows from pruned files."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from filelock import FileLock
from pyarrow.dataset import Dataset, Scanner

from stillhouse.config import AgentConfig, home
from stillhouse.errors import RuntimeStateError, SchemaError, StoreError
from stillhouse.files import sync
from stillhouse.frames import require_distinct
from stillhouse.knowledge.commits import damaged_commits
from stillhouse.knowledge.pruning import Clause, file_statistics, files_with, upper_bounds
from stillhouse.knowledge.schemas import COMMIT_HOOKS, FIELDS, MONTH_COLUMN, PARTITIONED_TABLES, TABLE_PROPERTIES, Table

__all__ = ["Tables", "wrap_errors"]

_IS_NUMBER = {"double": True, "string": False}  # stored type: whether the agent file calls such a column a number

_WRITE_LOCK = ".writing.lock"
_COMMIT_TRIES = 12
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.02, 1.0


class Tables:
    """The Delta tables of one agent.

    :param config: the agent, whose contract gives the columns of the table ``observations``.
    :param root: folder of the tables; by default ``STILLHOUSE_HOME/knowledge/<agent>``.
    """

    def __init__(self, config: AgentConfig, root: Path | None = None) -> None:
        self.config = config
        self.root = root or home() / "knowledge" / config.agent
        self._open_tables: dict[Table, tuple[DeltaTable, tuple[int, int]]] = {}

    def identity(self) -> str:
        """A permanent id of this knowledge base: that of its table ``decisions``, which is created if needed."""
        return str(self._open_or_create("decisions").metadata().id)

    def require_column_types(self, columns: Sequence[str] | None = None, delta: DeltaTable | None = None) -> None:
        """Refuse an agent file in which a column has another type than in the stored observations.

        :param columns: check only these; by default all.
        :param delta: the table ``observations``, if it is open already.
        :raises SchemaError: naming the columns and what to do.
        """
        delta = delta or self.open("observations")
        if delta is None:
            return
        stored = {field.name: getattr(field.type, "type", "") for field in delta.schema().fields}
        numbers = self.config.observations.numbers
        changed = [
            f"{name!r} as {'text' if name in numbers else 'numbers'}, and the agent file calls it a {column.type}"
            for name, column in self.config.observations.columns.items()
            if (columns is None or name in columns)
            and stored.get(name, "") in _IS_NUMBER
            and _IS_NUMBER[stored[name]] != (name in numbers)
        ]
        if changed:
            raise SchemaError(
                f"the knowledge base of agent {self.config.agent!r} in {self.root} has {'; '.join(changed)}. A stored "
                "column keeps its type: give the column its old type back, or another name in `observations.columns` "
                "(`importing.columns` maps it to the name in imported files)"
            )

    # ----------------------------------------------------------------- writing

    def append(self, table: Table, rows: pd.DataFrame, *, batch: str) -> int:
        """Append ``rows`` in one commit, unless a batch of this name is in the table already.

        :returns: number of rows written; 0 if the batch was there.
        :raises SchemaError: if ``rows`` lack a column of the table, or a column has another type.
        """
        if table == "observations":
            self.require_column_types()
        if rows.empty or self.has_batch(table, batch):
            return 0
        return len(rows) if self.commit(table, self.to_arrow(table, rows), Transaction(batch, 1)) is not None else 0

    def commit(self, table: Table, rows: pa.Table, transaction: Transaction) -> int | None:
        """Append ``rows`` in one commit that carries ``transaction``.

        Commits of other writers in the meantime are no conflict: the append is retried after them.

        :returns: the new version of the table; None, and nothing is written, if the table has a transaction of the same
            application with this version or a later one.
        :raises RuntimeStateError: if every try met a concurrent commit.
        """
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(_COMMIT_TRIES):
            with self.writing():
                delta = self._open_or_create(table)
                committed = delta.transaction_version(transaction.app_id)
                if committed is not None and committed >= transaction.version:
                    return None
                try:
                    write_deltalake(
                        delta,
                        _add_month(delta, rows),
                        mode="append",
                        schema_mode="merge",
                        commit_properties=CommitProperties(app_transactions=[transaction]),
                        post_commithook_properties=COMMIT_HOOKS,
                    )
                    return int(delta.version())
                except CommitFailedError as error:
                    failure = error
            if attempt + 1 < _COMMIT_TRIES:
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        raise RuntimeStateError(
            f"table {table!r} in {self.root}: {_COMMIT_TRIES} tries to append failed, because other processes changed "
            f"the table each time ({failure}); nothing was written, try again"
        ) from failure

    def writing(self) -> FileLock:
        """The lock of one commit, or of a change of the log itself (:mod:`stillhouse.knowledge.erasing`).

        Whoever changes the log appends nothing meanwhile: a thread may take the lock twice.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / _WRITE_LOCK, is_singleton=True)

    def sync_commit(self, table: Table, version: int) -> None:
        """Return when the commit of that version is on the disk and survives a power failure (fsync).

        Delta leaves its files to the operating system, which writes them later.
        """
        folder = self.root / table
        log = folder / "_delta_log"
        commit = log / f"{version:020d}.json"
        lines = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
        data_files = [folder / unquote(line["add"]["path"]) for line in lines if "add" in line]
        checkpoint = [log / f"{version:020d}.checkpoint.parquet", log / "_last_checkpoint"]
        written = [*data_files, commit, *(path for path in checkpoint if path.exists())]
        for path in (*written, *dict.fromkeys(path.parent for path in written), folder, self.root):
            sync(path)

    def to_arrow(self, table: Table, rows: pd.DataFrame) -> pa.Table:
        """``rows`` with the columns and types of the table, without the month.

        :raises SchemaError: if a column is missing, there twice, or of another type.
        """
        schema = self.schema(table)
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

    # ----------------------------------------------------------------- reading

    def count_rows(self) -> dict[str, int]:
        """Number of rows of every table that exists."""
        opened = {table: self.open(table) for table in FIELDS}
        return {table: _count(delta) for table, delta in opened.items() if delta}

    def has_batch(self, table: Table, batch: str) -> bool:
        """Whether a batch of that name was appended."""
        return self.transaction_version(table, batch) is not None

    def transaction_version(self, table: Table, application: str) -> int | None:
        """The version of the application's last transaction on the table; None before its first."""
        delta = self.open(table)
        return None if delta is None else delta.transaction_version(application)

    def open(self, table: Table, version: int | None = None) -> DeltaTable | None:
        """The table at a version, by default the latest; None if it does not exist.

        The latest version is cached: opening it again reads only the commits since then.

        :raises StoreError: if the log is damaged.
        """
        path = self.root / table
        if not (path / "_delta_log").is_dir():  # asking Delta would list the whole log
            return None
        if version is None and (delta := self._refresh_open_table(table)):
            return delta
        try:
            delta = DeltaTable(str(path), version=version)
        except TableNotFoundError:  # another process is creating it
            return None
        except DeltaError as error:
            raise StoreError(_explain_open_failure(path, table, error)) from error
        if version is None:
            self._remember_open_table(table, delta)
        return delta

    def select(
        self, table: Table, columns: Sequence[str] | None, *clauses: Clause, delta: DeltaTable | None = None
    ) -> pa.Table:
        """The rows that satisfy every clause, in no order.

        :param columns: None: all but the month.
        :param delta: the table, if it is open already; by default its latest version.
        :raises StoreError: if a data file is damaged or missing.
        """
        delta = delta or self.open(table)
        if delta is None:
            return self.schema(table).empty_table().select(columns or self.schema(table).names)
        dataset, row_filter = files_with(delta, *clauses)
        return self.read_files(table, dataset, columns, row_filter)

    def read_files(
        self, table: Table, dataset: Dataset, columns: Sequence[str] | None, row_filter: pc.Expression
    ) -> pa.Table:
        """The rows of the files that pass the filter, in no order.

        :param columns: None: all but the month.
        :raises StoreError: if a data file is damaged or missing.
        """
        names = [name for name in dataset.schema.names if name != MONTH_COLUMN] if columns is None else list(columns)
        if not dataset.files:
            return pa.schema([dataset.schema.field(name) for name in names]).empty_table()
        with wrap_errors(table, self.root):
            return self.scan(table, dataset, names, row_filter).to_table()

    def scan(
        self, table: Table, dataset: Dataset, columns: Sequence[str], row_filter: pc.Expression, **options: Any
    ) -> Scanner:
        """A scanner of the files. Every read of rows goes through this method, so that tests can count reads."""
        return dataset.scanner(columns=list(columns), filter=row_filter, **options)

    def select_newest_first(self, table: Table, columns: Sequence[str], *clauses: Clause) -> Iterator[pa.Table]:
        """The rows that satisfy every clause, in consecutive time ranges from the newest to the oldest.

        The first range starts where the newest file ends, and each range covers twice as many files as the one before:
        a caller that stops at the first rows reads little, however long the table is.
        """
        delta = self.open(table)
        if delta is None:
            return
        bounds, end = upper_bounds(delta, clauses), None
        for index in [*(2**n - 1 for n in range(len(bounds).bit_length())), None]:
            start = None if index is None else bounds[index]
            time_range = list[Clause]()
            if start is not None:
                time_range.append(("observed_at", ">=", start))
            if end is not None:
                time_range.append(("observed_at", "<", end))
            yield self.select(table, columns, *clauses, *time_range, delta=delta)
            end = start

    def select_last(self, table: Table, columns: Sequence[str], *clauses: Clause) -> dict[str, Any] | None:
        """The row with the latest ``observed_at``, then ``recorded_at``, of those that satisfy every clause."""
        order = [name for name in ("observed_at", "recorded_at") if name == "observed_at" or name in columns]
        for rows in self.select_newest_first(table, list(dict.fromkeys([*order, *columns])), *clauses):
            if rows.num_rows:
                last: dict[str, Any] = rows.sort_by([(name, "descending") for name in order]).slice(0, 1).to_pylist()[0]
                return last
        return None

    def schema(self, table: Table) -> pa.Schema:
        """Columns and types of the table, without the month; of observations with the agent's features."""
        fields = list(FIELDS[table])
        if table == "observations":
            fields += [(name, pa.float64()) for name in self.config.observations.numbers]
            strings = (*self.config.observations.categories, *self.config.observations.texts)
            fields += [(name, pa.string()) for name in strings]
        return pa.schema(fields)

    def empty_frame(self, table: Table, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """No rows, with the table's columns or those of ``columns``."""
        frame: pd.DataFrame = self.schema(table).empty_table().to_pandas()
        return frame if columns is None else frame[list(columns)]

    # ----------------------------------------------------------------- inside

    def _refresh_open_table(self, table: Table) -> DeltaTable | None:
        """The cached table at its latest version; None if it is not cached, or its log was replaced by a backup."""
        delta, commit_file = self._open_tables.pop(table, (None, None))
        if delta is None or commit_file != self._commit_file_id(table, delta):
            return None
        try:
            delta.update_incremental()
        except DeltaError:  # opening the table again gives the message
            return None
        self._remember_open_table(table, delta)
        return delta

    def _remember_open_table(self, table: Table, delta: DeltaTable) -> None:
        if commit_file := self._commit_file_id(table, delta):
            self._open_tables[table] = (delta, commit_file)

    def _commit_file_id(self, table: Table, delta: DeltaTable) -> tuple[int, int] | None:
        """Inode and size of the version's commit file; None if it is gone."""
        try:
            status = (self.root / table / "_delta_log" / f"{delta.version():020d}.json").stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size

    def _open_or_create(self, table: Table) -> DeltaTable:
        if delta := self.open(table):
            return delta
        path = self.root / table
        path.mkdir(parents=True, exist_ok=True)
        schema, partition_columns = self.schema(table), None
        if table in PARTITIONED_TABLES:
            schema, partition_columns = schema.append(pa.field(MONTH_COLUMN, pa.string())), [MONTH_COLUMN]
        try:
            return DeltaTable.create(
                str(path),
                schema=schema,
                mode="ignore",
                partition_by=partition_columns,
                configuration=dict(TABLE_PROPERTIES),
            )
        except CommitFailedError:  # another process created it first
            return DeltaTable(str(path))


@contextmanager
def wrap_errors(table: Table, root: Path) -> Iterator[None]:
    """Turn errors of reading a data file into one that says what to do.

    :raises StoreError: if a data file is damaged or missing.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(
            f"table {table!r} in {root} cannot be read ({reason}): one of its files is damaged or missing; restore the "
            "table from a backup"
        ) from error


def _count(delta: DeltaTable) -> int:
    rows = file_statistics(delta, "num_records")
    return int(delta.to_pyarrow_dataset().count_rows() if rows.null_count else pc.sum(rows).as_py() or 0)


def _add_month(delta: DeltaTable, rows: pa.Table) -> pa.Table:
    """``rows`` with the partition column, if the table is partitioned."""
    if MONTH_COLUMN not in delta.metadata().partition_columns:
        return rows
    return rows.append_column(MONTH_COLUMN, pc.strftime(rows["observed_at"], format="%Y-%m"))


def _explain_open_failure(path: Path, table: Table, error: Exception) -> str:
    damaged = damaged_commits(path)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not damaged:
        return f"table {table!r} in {path.parent} cannot be opened ({reason}): restore it from a backup"
    return (
        f"table {table!r} cannot be opened: {', '.join(str(file) for file in damaged[:3])} is truncated, as after a "
        "power failure. If it is the newest commit of the log, remove the file: its rows were not acknowledged, or are "
        "still in the spool. If later commits follow, restore the table from a backup"
    )
