"""Detection of changes of the system clock: timestamps recorded while it is wrong stay wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["WallClock"]

_MIN_JUMP_SECONDS = 60.0  # time servers make smaller corrections all the time


def _monotonic() -> float:
    """Monotonic seconds; on Linux they include the time that the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class WallClock:
    """Detects when the system clock is set forwards or back, by comparing it with a monotonic clock.

    >>> WallClock().jump_seconds()
    0.0

    :param wall: returns the system time, in seconds since 1970.
    :param monotonic: returns monotonic time, in seconds.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = _monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()

    def jump_seconds(self) -> float:
        """Seconds by which the clock was set since the last call, negative if set back; 0 if less than a minute."""
        offset = self._wall() - self._monotonic()
        jump = offset - self._offset
        if abs(jump) < _MIN_JUMP_SECONDS:
            return 0.0
        self._offset = offset
        return jump
