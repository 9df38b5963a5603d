"""What the cascade may still spend today, counted by all processes of an agent on this machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from stillhouse.config import Cascade
from stillhouse.errors import RuntimeStateError
from stillhouse.records import Spending

__all__ = ["DayBudget", "Granted"]

_TABLE = "create table if not exists days(day text primary key, calls integer not null, cost real not null)"
_BUSY_SECONDS = 5.0


class Granted(NamedTuple):
    """For how many rows something was set aside, and what."""

    day: str
    rows: int
    calls: int
    cost: float


class DayBudget:
    """``runtime.cascade``'s budgets. A question's cost is set aside before it is asked, and put right afterwards.

    What a process had set aside when it died counts as spent. For several threads and processes.

    :param path: the file that it is counted in.
    :param today: gives the day (UTC) that is counted.
    :raises RuntimeStateError: from every method, if the file cannot be read or written.
    """

    def __init__(
        self, path: Path, limits: Cascade, today: Callable[[], str] = lambda: f"{datetime.now(UTC):%Y-%m-%d}"
    ) -> None:
        self.limits = limits
        self._path = path
        self._today = today

    def spent(self) -> tuple[int, float]:
        """Calls and cost of today, with what is set aside."""
        with self._open() as file:
            return _spent(file, self._today())

    def reserve(self, costs: Sequence[float], calls: tuple[int, int]) -> Granted:
        """Set aside for rows, from the first on, as many as today's budget will do for.

        :param costs: the most that each row can cost.
        :param calls: that one row takes at least, and at most.
        """
        least, most = calls
        with self._open() as file:
            file.execute("begin immediate")
            day = self._today()
            spent, cost = _spent(file, day)
            left = None if self.limits.calls_per_day is None else max(0, self.limits.calls_per_day - spent)
            rows = len(costs) if left is None else min(len(costs), left // least)
            aside = 0.0
            for row, each in enumerate(costs[:rows]):
                if self.limits.cost_per_day is not None and cost + aside + each > self.limits.cost_per_day:
                    rows = row
                    break
                aside += each
            taken = rows * most if left is None else min(rows * most, left)
            _add(file, day, taken, aside)
            file.execute("commit")
        return Granted(day, rows, taken, aside)

    def settle(self, granted: Granted, spent: Spending) -> None:
        """Count what it came to, in place of what was set aside."""
        with self._open() as file:
            _add(file, granted.day, spent.calls - granted.calls, spent.money - granted.cost)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_SECONDS)) as file:
                file.execute(_TABLE)
                yield file
        except (sqlite3.Error, OSError) as error:
            raise RuntimeStateError(f"the cascade's day budget in {self._path} cannot be counted: {error}") from error


def _spent(file: sqlite3.Connection, day: str) -> tuple[int, float]:
    return file.execute("select calls, cost from days where day = ?", (day,)).fetchone() or (0, 0.0)


def _add(file: sqlite3.Connection, day: str, calls: int, cost: float) -> None:
    file.execute(
        "insert into days values (?, ?, ?) on conflict(day) do update set calls = calls + excluded.calls, "
        "cost = cost + excluded.cost",
        (day, calls, cost),
    )
