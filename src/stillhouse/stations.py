"""Where a long command is now: its station (a step with a name), how far it is, and about how long it still takes.

The work reports its stations with :func:`report`; a command that shows progress listens to them with :func:`listening`.
Where nobody listens, a report costs nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.files import write_atomic

__all__ = ["Listener", "StationTimes", "format_duration_left", "listening", "report"]

Listener = Callable[[str, int, int | None], None]
"""Station, how many of its parts are done, and how many there are (None: unknown)."""

_listeners: list[Listener] = []


def report(station: str, done: int = 0, total: int | None = None) -> None:
    """Report that the work is at ``station``, with ``done`` of its ``total`` parts.

    >>> with listening(lambda station, done, total: print(station, done, total)):
    ...     report("train models", 3, 12)
    train models 3 12
    """
    for listener in _listeners:
        listener(station, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Pass the reports of this process to ``listener`` while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def format_duration_left(seconds: float | None) -> str:
    """A rough duration for people; empty for None, and for less than a second.

    >>> format_duration_left(7.2), format_duration_left(200), format_duration_left(9000), format_duration_left(None)
    ('about 10 s left', 'about 3 min left', 'about 2.5 h left', '')
    """
    if seconds is None or seconds < 1:
        return ""
    if seconds < 100:
        return f"about {max(5, 5 * round(seconds / 5 + 0.4))} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"


class StationTimes:
    """How long each station took, and by the last run of the same work about how long the rest will take.

    >>> clock = iter([0.0, 0.0, 4.0, 4.0, 7.0, 9.0])
    >>> times = StationTimes(clock=lambda: next(clock))
    >>> times.enter("train models", 0, 10)
    >>> times.enter("train models", 2, 10)
    >>> times.seconds_left()  # 4 s for two of ten
    16.0

    :param file: where the seconds of the last complete run are stored; None: nowhere.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._before = _read(file)
        self._passed: dict[str, float] = {}
        self._began = self._entered = clock()
        self.station = ""
        self._done = 0
        self._total: int | None = None

    @property
    def parts(self) -> str:
        """How many parts of the station are done, ``3 of 12``; empty if it has none."""
        return f"{self._done} of {self._total}" if self._total else ""

    def enter(self, station: str, done: int = 0, total: int | None = None) -> None:
        """Note that the work is at ``station``; a :data:`Listener`."""
        if station != self.station:
            self._leave()
            self.station, self._entered = station, self._clock()
        self._done, self._total = done, total

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def seconds_left(self) -> float | None:
        """Seconds that the rest takes, as in the last run or at the pace of this station; None: not known."""
        here = self._clock() - self._entered
        rest = sum(
            seconds for name, seconds in self._before.items() if name not in self._passed and name != self.station
        )
        if self._total and self._done:
            return here / self._done * (self._total - self._done) + rest
        if self.station not in self._before:
            return rest or None
        return max(0.0, self._before[self.station] - here) + rest

    def finish(self) -> None:
        """Store the seconds of each station for the next run."""
        self._leave()
        self.station = ""
        if self._file is not None and self._passed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file, json.dumps(self._passed, indent=1) + "\n")

    def _leave(self) -> None:
        if self.station:
            self._passed[self.station] = self._passed.get(self.station, 0.0) + self._clock() - self._entered


def _read(file: Path | None) -> dict[str, float]:
    """The stored seconds by station; empty if there are none that can be read."""
    if file is None or not file.exists():
        return {}
    try:
        return {str(station): float(seconds) for station, seconds in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
