"""The version of what is stored under ``STILLHOUSE_HOME``, and how an older store becomes one of today.

``store.json`` in that folder holds the version. A change of what is stored raises :data:`VERSION` by one, adds its
migration to :data:`MIGRATIONS`, and keeps a store of the version before in ``tests/store/`` for the test that
upgrades it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from stillhouse.errors import StoreError
from stillhouse.files import write_atomic

__all__ = ["MIGRATIONS", "VERSION", "open_store"]

VERSION = 1

MIGRATIONS: Mapping[int, Callable[[Path], None]] = {}
"""By the version that it begins at: what makes a store one version newer. It may be killed and run again."""

_FILE, _LOCK = "store.json", "store.lock"
_CONTENT = ("knowledge", "spool", "runtime", "refreshes")
"""Folders that a store without a version has only if it was made before there were versions."""

_opened: set[Path] = set()


def open_store(
    home: Path, version: int = VERSION, migrations: Mapping[int, Callable[[Path], None]] = MIGRATIONS
) -> None:
    """Make sure that ``home`` is a store of ``version``: mark an empty one, upgrade an older one, refuse all others.

    A store is looked at once per process.

    :raises StoreError: if it was made before stores had versions, by a newer stillhouse, or is no folder.
    """
    if home in _opened and (home / _FILE).exists():
        return
    found = _version(home)
    if found is None:
        if any((home / name).is_dir() and any((home / name).iterdir()) for name in _CONTENT):
            raise StoreError(
                f"{home} was made before stillhouse wrote down a store version, and cannot be read any more. Move it "
                "away, or let STILLHOUSE_HOME name an empty folder; then begin again: `stillhouse import` or "
                "`python -m flows live` brings observations and outcomes in, `python -m flows refresh --trigger "
                "bootstrap` makes the first champion"
            )
        _mark(home, version)
    elif found > version:
        raise StoreError(
            f"{home} is a store of version {found}, made by a newer stillhouse; this one reads up to version "
            f"{version}. Install the newer stillhouse, or let STILLHOUSE_HOME name another folder"
        )
    elif found < version:
        _upgrade(home, version, migrations)
    _opened.add(home)


def _upgrade(home: Path, version: int, migrations: Mapping[int, Callable[[Path], None]]) -> None:
    with FileLock(home / _LOCK):
        while (found := _version(home)) is not None and found < version:
            if found not in migrations:
                raise StoreError(
                    f"{home} is a store of version {found}, and no migration leads from there to version {version}: "
                    "move it away, or let STILLHOUSE_HOME name another folder"
                )
            migrations[found](home)
            _mark(home, found + 1)


def _version(home: Path) -> int | None:
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


def _mark(home: Path, version: int) -> None:
    """Write the version, whole or not at all."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_atomic(home / _FILE, json.dumps({"version": version}), durable=True, mode=0o600)
    except OSError as error:
        raise StoreError(f"STILLHOUSE_HOME is {home}, and nothing can be written there: {error}") from error
