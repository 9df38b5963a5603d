"""Work that a thread of its own does again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Repeating"]


class Repeating:
    """Calls ``work`` at once and then every ``seconds``, until it is stopped.

    :param work: tells its failures itself: what it raises is a defect, and ends the repetition.
    """

    def __init__(self, name: str, work: Callable[[], None], seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._stopping = threading.Event()
        self.once = threading.Event()
        """Set when it was done for the first time."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """No further call; whether the one under way ended within so many seconds."""
        self._stopping.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._work()
                self.once.set()
                self._stopping.wait(self._seconds)
        finally:
            self.once.set()
