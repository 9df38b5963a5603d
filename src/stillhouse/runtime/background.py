"""A function that a background thread calls periodically."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["PeriodicTask"]

log = logging.getLogger(__name__)


class PeriodicTask:
    """Calls ``function`` at once and then every ``seconds``, until it is stopped.

    >>> calls = []
    >>> task = PeriodicTask("example", lambda: calls.append(1), 60.0)
    >>> task.first_run_done.wait(10)
    True
    >>> task.stop(10), len(calls)
    (True, 1)

    :param function: handles its expected errors itself. Any exception that it raises is logged, once per text, and
        does not end the repetition.
    """

    def __init__(self, name: str, function: Callable[[], None], seconds: float) -> None:
        self.name, self._function, self._seconds = name, function, seconds
        self._stopping = threading.Event()
        self._run_began: float | None = None
        self._last_error = ""
        self.first_run_done = threading.Event()
        """Set after the first call, or once the thread ends."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def running_seconds(self) -> float:
        """Seconds since the present call began; 0 between calls."""
        began = self._run_began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self, timeout: float) -> bool:
        """Start no further call; whether the present one ended within ``timeout`` seconds."""
        self._stopping.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._run_began = time.monotonic()
            try:
                self._function()
                self._last_error = ""
            except Exception as error:
                if (text := f"{type(error).__name__}: {error}") != self._last_error:
                    self._last_error = text
                    log.exception("%s: tried again in %g s", self.name, self._seconds)
            self._run_began = None
            self.first_run_done.set()
            self._stopping.wait(self._seconds)
        self.first_run_done.set()
