"""The weeks of a demo as they pass: a live table in a terminal, a line a week in a file or pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from stillhouse.demonstrating import Week
from stillhouse.terminal import Console, Table

__all__ = ["WeekBoard"]

_MAY_BE_CUT = ("watch", "gate")  # where a row is too long: words, and never digits
_GATE = {"awaiting_approval": "waiting", "admitted": "admitted"}  # as short as the others


class WeekBoard:
    """Shows each week as soon as it is over, and what is being done now; 80 columns, readable without colour.

    :param agent: whose weeks they are.
    :param weeks: how many there will be.
    """

    def __init__(self, agent: str, weeks: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.weeks = weeks
        self.shown = 0
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
        for column, right in zip(self.table.columns, (0, 1, 1, 0, 0, 1, 1, 1, 1, 1), strict=True):
            column.justify, column.no_wrap = ("right" if right else "left"), str(column.header) not in _MAY_BE_CUT
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

    def say(self, text: str) -> None:
        """What is being done now; not shown in a file or pipe."""
        if self.console.is_terminal:
            doing = Spinner("dots", Text(f"{text} ({self.shown} of {self.weeks} weeks)"))
            self.live.update(Group(self.table, doing), refresh=True)

    def add(self, week: Week) -> None:
        """Show a week that has passed."""
        self.shown += 1
        cells = (
            f"{week.ending:%d %b}",
            f"{week.rows:,}",
            "" if week.psi is None else f"{week.psi:.2f}",
            week.drift.replace("_", " "),
            _GATE.get(week.gate, week.gate),
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
            self.console.print(_line(cells), soft_wrap=True)
            self.console.file.flush()


def _line(cells: tuple[str, ...]) -> str:
    week, rows, psi, watch, gate, version, never, champion, teacher, size = cells
    return (
        f"week to {week}: {rows} rows, PSI {psi or '-'}, {watch}{', ' + gate if gate else ''}; version {version} "
        f"({size} kB): {champion or '-'}, never refreshed {never or '-'}, teacher {teacher or '-'}"
    )
