"""Who may do what now: file locks of an agent's store, which the operating system frees when their holder dies."""

from __future__ import annotations

from filelock import FileLock

from stillhouse import config

__all__ = ["refresh_lock", "upkeep_lock", "watch_lock"]


def refresh_lock(agent: str) -> FileLock:
    """One refresh or promotion at a time."""
    return _lock("refresh", agent)


def watch_lock(agent: str) -> FileLock:
    """One process at a time counts evidence."""
    return _lock("watch", agent)


def upkeep_lock(agent: str) -> FileLock:
    """One upkeep of the tables at a time."""
    return _lock("upkeep", agent)


def _lock(kind: str, agent: str) -> FileLock:
    config.load(agent)  # a name that no agent has leaves nothing behind
    folder = config.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{kind}-{agent}.lock")
