"""File locks of an agent: one refresh, one watch, one upkeep at a time.

The operating system releases a lock when its process dies.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse import config

__all__ = ["AgentLock", "refresh_lock", "upkeep_lock", "watch_lock"]

log = logging.getLogger(__name__)


class AgentLock(FileLock):
    """A file lock that logs what it waits for."""

    def acquire(self, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        """Acquire the lock as :meth:`filelock.BaseFileLock.acquire` does; a line before and after a time of waiting.

        :param timeout: seconds; 0: do not wait. None: the timeout of the lock, by default without end.
        :raises filelock.Timeout: if it is not free in time.
        """
        if (self.timeout if timeout is None else timeout) == 0:
            return super().acquire(timeout, *args, **kwargs)
        try:
            return super().acquire(0, *args, **kwargs)
        except Timeout:
            kind, _, agent = self.name.partition("-")
            log.info("%s: waiting for the %s lock: another run on this machine holds it", agent, kind)
            began = time.monotonic()
            acquired = super().acquire(timeout, *args, **kwargs)
            log.info("%s: got the %s lock after %.0f s", agent, kind, time.monotonic() - began)
            return acquired

    @property
    def name(self) -> str:
        """Kind and agent: ``refresh-flights``."""
        return Path(self.lock_file).stem


def refresh_lock(agent: str) -> AgentLock:
    """The lock that a refresh or a promotion holds."""
    return _lock("refresh", agent)


def watch_lock(agent: str) -> AgentLock:
    """The lock that a watch holds while it appends evidence."""
    return _lock("watch", agent)


def upkeep_lock(agent: str) -> AgentLock:
    """The lock that the upkeep of the tables holds."""
    return _lock("upkeep", agent)


def _lock(kind: str, agent: str) -> AgentLock:
    config.load(agent)  # fails for an unknown agent before a lock file is created
    folder = config.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return AgentLock(folder / f"{kind}-{agent}.lock")
