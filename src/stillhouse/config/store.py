"""The version of the data under ``STILLHOUSE_HOME``, and the migration of an older store.

``store.json`` in that folder holds the version. A change of the stored format increases :data:`VERSION` by one, adds a
migration to :data:`MIGRATIONS`, and adds a store of the previous version to ``tests/store/`` for the upgrade test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from stillhouse.errors import StoreError
from stillhouse.files import write_atomic

__all__ = ["MIGRATIONS", "VERSION", "open_store"]

VERSION = 2


def _keep_files(home: Path) -> None:
    """From 1 to 2: verdicts and trainings are written under new keys, and read under old and new ones."""


MIGRATIONS: Mapping[int, Callable[[Path], None]] = {1: _keep_files}
"""For each version, the migration to the next one. A migration may be killed and run again."""

_FILE, _LOCK_FILE = "store.json", "store.lock"
_CONTENT_FOLDERS = ("knowledge", "spool", "runtime", "refreshes")
"""Folders of a store; a store that has one of them but no version is older than version 1."""

_opened: set[Path] = set()


def open_store(
    home: Path, version: int = VERSION, migrations: Mapping[int, Callable[[Path], None]] = MIGRATIONS
) -> None:
    """Make ``home`` a store of ``version``: mark an empty store, upgrade an older one, refuse all others.

    A store is checked once per process.

    :raises StoreError: if the store is older than version 1 or newer than ``version``, or cannot be read or written.
    """
    if home in _opened and (home / _FILE).exists():
        return
    stored = _read_version(home)
    if stored is None:
        if any((home / name).is_dir() and any((home / name).iterdir()) for name in _CONTENT_FOLDERS):
            raise StoreError(
                f"{home} was made before stores had a version, and cannot be read any more. Move it "
                "away, or let STILLHOUSE_HOME name an empty folder; then begin again: `stillhouse import` or "
                "`python -m flows live` brings observations and outcomes in, `python -m flows refresh --trigger "
                "bootstrap` makes the first champion"
            )
        _write_version(home, version)
    elif stored > version:
        raise StoreError(
            f"{home} is a store of version {stored}, made by a newer stillhouse; this one reads up to version "
            f"{version}. Install the newer stillhouse, or let STILLHOUSE_HOME name another folder"
        )
    elif stored < version:
        _upgrade(home, version, migrations)
    _opened.add(home)


def _upgrade(home: Path, version: int, migrations: Mapping[int, Callable[[Path], None]]) -> None:
    with FileLock(home / _LOCK_FILE):
        while (stored := _read_version(home)) is not None and stored < version:
            if stored not in migrations:
                raise StoreError(
                    f"{home} is a store of version {stored}, and no migration leads from there to version {version}: "
                    "move it away, or let STILLHOUSE_HOME name another folder"
                )
            migrations[stored](home)
            _write_version(home, stored + 1)


def _read_version(home: Path) -> int | None:
    file = home / _FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}): restore it, or let STILLHOUSE_HOME name another folder"
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"{file} names no store version: restore it, or let STILLHOUSE_HOME name another folder")
    return version


def _write_version(home: Path, version: int) -> None:
    """Write the version atomically."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_atomic(home / _FILE, json.dumps({"version": version}), durable=True, mode=0o600)
    except OSError as error:
        raise StoreError(f"STILLHOUSE_HOME is {home}, and it cannot be written to: {error}") from error
