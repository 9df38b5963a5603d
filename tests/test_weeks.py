"""The table of the weeks of a demo, in a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import get_args

from stillhouse.demonstrating import Week
from stillhouse.records import VerdictResult
from stillhouse.terminal import Console
from stillhouse.weeks import WeekBoard

WATCH_RESULTS = (
    "no_drift",
    "benign_shift",
    "drift",
    "harmful_drift",
    "teacher_failing",
    "cooling_down",
    "not_enough_evidence",
    "data_broken",
)
GATE_RESULTS = ("", "promoted", "refused", "awaiting_approval")


def make_weeks() -> list[Week]:
    first = datetime(2013, 3, 5, tzinfo=UTC)
    return [
        Week(
            ending=first + timedelta(weeks=number),
            rows=16_460,
            psi=14.4,
            drift=watch,
            response="hold",
            gate=gate,
            champion="flights@123",
            quality_static=0.7223,
            quality_champion=0.7309,
            quality_teacher=None if number else 0.741,
            bytes=950_917,
            p50_ms=0.015,
        )
        for number, (watch, gate) in enumerate((watch, gate) for watch in WATCH_RESULTS for gate in GATE_RESULTS)
    ]


def show_board(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, no_color=True)
    with WeekBoard("flights", len(make_weeks()), console) as board:
        board.show_status("the first weeks pass")
        for week in make_weeks():
            board.add(week)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())


def test_each_week_fits_one_line_of_80_columns_in_a_terminal() -> None:
    assert set(WATCH_RESULTS) <= set(get_args(VerdictResult))
    table = show_board(terminal=True).replace("\r", "\n").split("flights, week by week")[-1].splitlines()
    rows = [line for line in table if re.match(r"\d\d [A-Z][a-z]{2} ", line)]
    assert len(rows) == len(make_weeks()) and max(len(row.rstrip()) for row in rows) <= 80
    for week, row in zip(make_weeks(), rows, strict=True):
        assert row.startswith(f"{week.ending:%d %b} 16,460 14.40 {week.drift.replace('_', ' ')}")
        assert " 123 0.722  0.731 " in row and row.rstrip().endswith(" 951")
        assert {"awaiting_approval": "waiting"}.get(week.gate, week.gate) in row


def test_a_pipe_gets_one_line_per_week() -> None:
    lines = show_board(terminal=False).splitlines()
    assert len(lines) == len(make_weeks())
    assert lines[1] == (
        "week to 12 Mar: 16,460 rows, PSI 14.40, no drift, promoted; version 123 (951 kB): 0.731, never refreshed "
        "0.722, teacher -"
    )
