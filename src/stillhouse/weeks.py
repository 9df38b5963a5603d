"""Show the weeks of a running demo: a live table in a terminal, one line per week in a file or pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from stillhouse.demonstrating import Week
from stillhouse.stations import format_duration_left
from stillhouse.terminal import Console, Table

__all__ = ["WeekBoard"]

_SHORTENED_COLUMNS = ("watch", "gate")  # if a row is too long, words are shortened, never digits
_SHORT_RESULTS = {"awaiting_approval": "waiting"}


class WeekBoard:
    """Shows each week as soon as it is scored, and the current step; 80 columns, readable without colour.

    >>> import io
    >>> from datetime import UTC, datetime
    >>> from stillhouse.terminal import Console
    >>> numbers = {"quality_static": 0.722, "quality_champion": 0.731, "quality_teacher": None, "psi": 9.4}
    >>> texts = {"drift": "drift", "response": "update", "gate": "promoted", "champion": "flights@12"}
    >>> ending = datetime(2013, 3, 5, tzinfo=UTC)
    >>> week = Week(ending=ending, rows=16_460, bytes=950_917, p50_ms=0.015, **numbers, **texts)
    >>> file = io.StringIO()
    >>> with WeekBoard("flights", 1, Console(file=file)) as board:
    ...     board.add(week)
    >>> print(file.getvalue(), end="")
    week to 05 Mar: 16,460 rows, PSI 9.40, drift, promoted; version 12 (951 kB): 0.731, never refreshed 0.722, teacher -

    :param agent: name of the agent, for the title.
    :param weeks: number of weeks of the whole demo.
    """

    def __init__(self, agent: str, weeks: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.weeks = weeks
        self.shown_weeks = 0
        self._status, self._station = "", ""
        self._added_at: list[float] = []
        self.table = Table(
            "week",
            "rows",
            "PSI",
            "watch",
            "gate",
            "ver.",
            "never",
            "champ.",
            "teacher",
            "kB",
            title=f"{agent}, week by week",
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for column, is_number in zip(self.table.columns, (0, 1, 1, 0, 0, 1, 1, 1, 1, 1), strict=True):
            column.justify, column.no_wrap = (
                ("right" if is_number else "left"),
                str(column.header) not in _SHORTENED_COLUMNS,
            )
        self.live = Live(console=self.console, refresh_per_second=4, vertical_overflow="visible")

    def __enter__(self) -> WeekBoard:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.update(self.table, refresh=True)
            self.live.stop()

    def show_status(self, text: str) -> None:
        """Show the current step with the time left; not in a file or pipe."""
        self._status, self._station = text, ""
        self._draw()

    def show_station(self, station: str, _done: int = 0, _total: int | None = None) -> None:
        """Show where the current step is; a :data:`stillhouse.stations.Listener`."""
        self._station = station
        self._draw()

    def _draw(self) -> None:
        if self.console.is_terminal and self._status:
            step = f"{self._status}, {self._station}" if self._station else self._status
            left = format_duration_left(self._seconds_left())
            weeks = f"({self.shown_weeks} of {self.weeks} weeks{f', {left}' if left else ''})"
            text = Text(f"{step} {weeks}", no_wrap=True, overflow="ellipsis")
            self.live.update(Group(self.table, Spinner("dots", text)), refresh=True)

    def _seconds_left(self) -> float | None:
        """By the mean time between the weeks so far; None before the second one."""
        if len(self._added_at) < 2:
            return None
        mean = (self._added_at[-1] - self._added_at[0]) / (len(self._added_at) - 1)
        return mean * (self.weeks - self.shown_weeks)

    def add(self, week: Week) -> None:
        """Show a scored week."""
        self.shown_weeks += 1
        self._added_at.append(time.monotonic())
        cells = (
            f"{week.ending:%d %b}",
            f"{week.rows:,}",
            "" if week.psi is None else f"{week.psi:.2f}",
            week.drift.replace("_", " "),
            _SHORT_RESULTS.get(week.gate, week.gate),
            week.champion.rpartition("@")[2],
            *(
                "" if score is None else f"{score:.3f}"
                for score in (week.quality_static, week.quality_champion, week.quality_teacher)
            ),
            f"{week.bytes / 1000:.0f}",
        )
        self.table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
        if self.console.is_terminal:
            self.live.update(self.table, refresh=True)
        else:
            self.console.print(_format_line(cells), soft_wrap=True)
            self.console.file.flush()


def _format_line(cells: tuple[str, ...]) -> str:
    week, rows, psi, watch, gate, version, never, champion, teacher, size = cells
    return (
        f"week to {week}: {rows} rows, PSI {psi or '-'}, {watch}{', ' + gate if gate else ''}; version {version} "
        f"({size} kB): {champion or '-'}, never refreshed {never or '-'}, teacher {teacher or '-'}"
    )
