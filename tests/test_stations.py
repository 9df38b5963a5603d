"""Stations of a long command: who hears of them, how long the rest takes, and what a terminal and a pipe show."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest

from stillhouse import stations
from stillhouse.stations import StationTimes, listening, report
from stillhouse.terminal import Console, show_log, show_stations
from tasks.common import engine_task


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(StationTimes.__init__, "__defaults__", (None, clock))
    return clock


def test_only_those_who_listen_hear() -> None:
    heard = list[tuple[object, ...]]()
    report("before")
    with listening(lambda *station: heard.append(station)):
        report("train models", 1, 3)
    report("after")
    assert heard == [("train models", 1, 3)]


def test_a_task_reports_itself_by_the_first_words_of_its_name() -> None:
    @engine_task("check data: {window}")
    def check(window: str) -> str:
        """Check."""
        return window * 2

    heard = list[str]()
    with listening(lambda station, _done, _total: heard.append(station)):
        assert check.fn("ab") == "abab"
    assert heard == ["check data"] and check.name == "check" and check.task_run_name == "check data: {window}"


def test_the_time_left_is_that_of_the_last_run(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "progress" / "refresh-toy.json"
    times = StationTimes(file)
    assert times.seconds_left() is None
    for station, seconds in (("teacher", 10.0), ("student", 30.0), ("prove", 5.0)):
        times.enter(station)
        clock.now += seconds
    times.finish()
    assert json.loads(file.read_text()) == {"teacher": 10.0, "student": 30.0, "prove": 5.0}

    again = StationTimes(file)
    again.enter("teacher")
    clock.now += 4
    assert again.seconds_left() == 6 + 30 + 5 and again.elapsed() == 4
    again.enter("student")
    clock.now += 40  # longer than last time
    assert again.seconds_left() == 5
    again.enter("prove", 1, 4)
    clock.now += 2
    again.enter("prove", 2, 4)
    assert again.seconds_left() == 2 and again.parts == "2 of 4"  # at its own pace


@pytest.mark.parametrize("content", ["", "[1]", '{"student": "long"}', "{"])
def test_damaged_times_of_the_last_run_are_left_out(content: str, tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(content)
    assert StationTimes(file).seconds_left() is None


def test_a_pipe_gets_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock) -> None:
    file = io.StringIO()
    with show_stations(Console(file=file, width=80), "replay toy"):
        report("read rows")
        for done in range(13):
            report("train models", done, 12)
            clock.now += 4
    assert file.getvalue().splitlines() == [
        "replay toy: train models (1 of 12), 4 s, about 45 s left",
        "replay toy: train models (4 of 12), 16 s, about 35 s left",
        "replay toy: train models (7 of 12), 28 s, about 20 s left",
        "replay toy: train models (10 of 12), 40 s, about 10 s left",
        "replay toy: train models (12 of 12), 48 s",
    ]


def test_a_terminal_shows_the_station_on_one_line(tmp_path: Path) -> None:
    file, times = io.StringIO(), tmp_path / "times.json"
    times.write_text('{"student": 600.0}')
    console = Console(file=file, width=80, force_terminal=True, no_color=True)
    show_log(console, "stillhouse.test_stations")
    with show_stations(console, "refresh toy", times):
        report("student")
        logging.getLogger("stillhouse.test_stations").info("a line\nof the log")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "refresh toy: student, 0 s, about 10 min left" in shown and "a line\\nof the log\n" in shown
    assert json.loads(times.read_text()).keys() == {"starting", "student"}


def test_a_command_that_fails_stores_no_times(tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    with pytest.raises(ValueError, match="broken"), show_stations(Console(file=io.StringIO()), "refresh toy", times):
        report("student")
        raise ValueError("broken")
    assert not times.exists() and not stations._listeners
