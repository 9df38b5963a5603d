"""Work that a thread of its own does again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Repeating"]

log = logging.getLogger(__name__)


class Repeating:
    """Calls ``work`` at once and then every ``seconds``, until it is stopped.

    :param work: tells its failures itself; what it raises all the same is a defect, which is logged once for each
        text, and does not end the repetition.
    """

    def __init__(self, name: str, work: Callable[[], None], seconds: float) -> None:
        self.name, self._work, self._seconds = name, work, seconds
        self._stopping = threading.Event()
        self._began: float | None = None
        self._said = ""
        self.once = threading.Event()
        """Set when it was done for the first time."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> float:
        """Seconds since the present call began; 0 between calls."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self, patience: float) -> bool:
        """No further call; whether the one under way ended within so many seconds."""
        self._stopping.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._began = time.monotonic()
            try:
                self._work()
                self._said = ""
            except Exception as error:
                if (said := f"{type(error).__name__}: {error}") != self._said:
                    self._said = said
                    log.exception("%s: tried again in %g s", self.name, self._seconds)
            self._began = None
            self.once.set()
            self._stopping.wait(self._seconds)
        self.once.set()
