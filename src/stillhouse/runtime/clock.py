"""The clock on the wall, watched: moments that are recorded while it is wrong are wrong for good."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["WallClock"]

_NOTICED = 60.0  # seconds; less is what time servers do all the time


def _steady() -> float:
    """Seconds that pass evenly, also while the machine sleeps where the system tells."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class WallClock:
    """Notices when the clock on the wall is set forwards or back.

    :param wall: seconds since 1970.
    :param steady: seconds that pass evenly.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _steady) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def jumped(self) -> float:
        """Seconds by which it was set since the last call, negative where it was set back; 0 below a minute."""
        offset = self._wall() - self._steady()
        moved = offset - self._offset
        if abs(moved) < _NOTICED:
            return 0.0
        self._offset = offset
        return moved
