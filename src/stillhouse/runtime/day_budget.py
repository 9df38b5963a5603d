"""The cascade's budget of calls and cost per day, shared by all processes of an agent on this machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from stillhouse.config import CascadeSettings
from stillhouse.errors import RuntimeStateError
from stillhouse.records import Spending

__all__ = ["DayBudget", "Reservation"]

_CREATE_TABLE = "create table if not exists days(day text primary key, calls integer not null, cost real not null)"
_BUSY_TIMEOUT_SECONDS = 5.0


class Reservation(NamedTuple):
    """The number of rows for which budget was reserved, and the amounts reserved."""

    day: str
    rows: int
    calls: int
    cost: float


class DayBudget:
    """The budgets of ``runtime.cascade``. A question's maximum cost is reserved before it is asked, and replaced by
    the actual cost afterwards.

    The reservations of a process that died count as spent. Safe for several threads and processes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     budget = DayBudget(Path(folder, "cascade.sqlite"), CascadeSettings(below=0.5, calls_per_day=3))
    ...     reservation = budget.reserve([0.0] * 5, (1, 1))
    ...     budget.settle(reservation, Spending(calls=2, rows=2))
    ...     reservation.rows, budget.spent()
    (3, (2, 0.0))

    :param path: the SQLite file that holds the counts.
    :param today: returns the current day (UTC), such as ``2024-05-01``.
    :raises RuntimeStateError: from every method, if the file cannot be read or written.
    """

    def __init__(
        self, path: Path, limits: CascadeSettings, today: Callable[[], str] = lambda: f"{datetime.now(UTC):%Y-%m-%d}"
    ) -> None:
        self.limits = limits
        self._path = path
        self._today = today

    def spent(self) -> tuple[int, float]:
        """Today's calls and cost, including open reservations."""
        with self._open() as database:
            return _spent(database, self._today())

    def reserve(self, max_costs: Sequence[float], calls_per_row: tuple[int, int]) -> Reservation:
        """Reserve budget for as many rows, from the first on, as today's budget allows.

        :param max_costs: the maximum cost of each row.
        :param calls_per_row: minimum and maximum number of calls for one row.
        """
        min_calls, max_calls = calls_per_row
        with self._open() as database:
            database.execute("begin immediate")
            day = self._today()
            spent_calls, spent_cost = _spent(database, day)
            calls_left = None if self.limits.calls_per_day is None else max(0, self.limits.calls_per_day - spent_calls)
            rows = len(max_costs) if calls_left is None else min(len(max_costs), calls_left // min_calls)
            cost = 0.0
            for row, max_cost in enumerate(max_costs[:rows]):
                if self.limits.cost_per_day is not None and spent_cost + cost + max_cost > self.limits.cost_per_day:
                    rows = row
                    break
                cost += max_cost
            calls = rows * max_calls if calls_left is None else min(rows * max_calls, calls_left)
            _add(database, day, calls, cost)
            database.execute("commit")
        return Reservation(day, rows, calls, cost)

    def settle(self, reservation: Reservation, spent: Spending) -> None:
        """Replace the reserved amounts by those actually spent."""
        with self._open() as database:
            _add(database, reservation.day, spent.calls - reservation.calls, spent.money - reservation.cost)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_TIMEOUT_SECONDS)) as database:
                database.execute(_CREATE_TABLE)
                yield database
        except (sqlite3.Error, OSError) as error:
            raise RuntimeStateError(
                f"the cascade's day budget in {self._path} cannot be read or written: {error}"
            ) from error


def _spent(database: sqlite3.Connection, day: str) -> tuple[int, float]:
    return database.execute("select calls, cost from days where day = ?", (day,)).fetchone() or (0, 0.0)


def _add(database: sqlite3.Connection, day: str, calls: int, cost: float) -> None:
    database.execute(
        "insert into days values (?, ?, ?) on conflict(day) do update set calls = calls + excluded.calls, "
        "cost = cost + excluded.cost",
        (day, calls, cost),
    )
