"""An MLflow store on SQLite that was moved with its folder.

MLflow writes the whole address of each experiment's, run's and model's files into its database and offers no way to
change it, so a store that was moved or copied would read, and write, where it lay before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from stillhouse.errors import RegistryError

__all__ = ["relocate"]


def relocate(database: Path, location: str) -> None:
    """Let every address in ``database`` begin with ``location`` that begins with where its files lay before.

    Where they lay before is read off the experiments that this store has. One transaction: a kill changes nothing.

    :param location: URI of the folder of all artifacts, such as ``file:///home/me/.stillhouse/mlflow/artifacts``.
    :raises RegistryError: if the database cannot be changed.
    """
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            for before in _earlier_locations(connection, location):
                for table, column in _text_columns(connection):
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                        f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                        (location, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )
    except sqlite3.Error as error:
        raise RegistryError(
            f"the MLflow store {database} was moved, and its addresses could not be changed to {location}: {error}"
        ) from error


def _earlier_locations(connection: sqlite3.Connection, location: str) -> list[str]:
    """Folders of artifacts beside another ``mlflow.db``, as :func:`~stillhouse.registry.connection.artifact_location`
    made them."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" not in tables:  # made just now
        return []
    suffix = "/mlflow/artifacts"
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [uri for (uri,) in rows if uri and uri != location and uri.startswith("file://") and uri.endswith(suffix)]


def _text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Columns that may hold an address; names come from MLflow's schema, not from data."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if kind.upper().startswith(("VARCHAR", "TEXT")):
                yield table, column
