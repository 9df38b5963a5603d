"""Correct the addresses in an MLflow store on SQLite that was moved or copied with its folder.

MLflow writes the absolute address of the files of each experiment, run and model into its database, and offers no way
to change it. A moved or copied store would therefore read and write its old location.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from stillhouse.errors import RegistryError

__all__ = ["relocate"]


def relocate(database: Path, location: str) -> None:
    """Replace the old artifact location by ``location`` at the beginning of every address in ``database``.

    The old locations are read from the experiments in the store. The change is one transaction.

    :param location: URI of the artifact folder, such as ``file:///home/me/.stillhouse/mlflow/artifacts``.
    :raises RegistryError: if the database cannot be changed.
    """
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            for old in _old_locations(connection, location):
                for table, column in _text_columns(connection):
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                        f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                        (location, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:
        raise RegistryError(
            f"the MLflow store {database} was moved, and its addresses could not be changed to {location}: {error}"
        ) from error


def _old_locations(connection: sqlite3.Connection, location: str) -> list[str]:
    """Artifact folders of another home, as :func:`~stillhouse.registry.connection.artifact_location` creates them."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" not in tables:  # a new database
        return []
    suffix = "/mlflow/artifacts"
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [uri for (uri,) in rows if uri and uri != location and uri.startswith("file://") and uri.endswith(suffix)]


def _text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Table and column of every text column; each may hold an address. Names come from MLflow's schema, not data."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if kind.upper().startswith(("VARCHAR", "TEXT")):
                yield table, column
