"""File locks of an agent: one refresh, one watch, one upkeep at a time.

The operating system releases a lock when its process dies.
"""

from __future__ import annotations

from filelock import FileLock

from stillhouse import config

__all__ = ["refresh_lock", "upkeep_lock", "watch_lock"]


def refresh_lock(agent: str) -> FileLock:
    """The lock that a refresh or a promotion holds."""
    return _lock("refresh", agent)


def watch_lock(agent: str) -> FileLock:
    """The lock that a watch holds while it appends evidence."""
    return _lock("watch", agent)


def upkeep_lock(agent: str) -> FileLock:
    """The lock that the upkeep of the tables holds."""
    return _lock("upkeep", agent)


def _lock(kind: str, agent: str) -> FileLock:
    config.load(agent)  # fails for an unknown agent before a lock file is created
    folder = config.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{kind}-{agent}.lock")
