"""A change of the system clock is detected and reported."""

from __future__ import annotations

import pytest

from stillhouse.runtime import Agent
from stillhouse.runtime.clock import WallClock
from tests.runtime.conftest import Installation


class Clocks:
    """A system clock and a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_700_000_000.0, 50.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.mark.parametrize("set_by", [7200.0, -86_400.0])
def test_a_change_of_the_clock_is_reported_once(set_by: float) -> None:
    clocks = Clocks()
    clock = WallClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clocks.advance(500)
    assert clock.jump_seconds() == 0
    clocks.wall += set_by
    assert clock.jump_seconds() == set_by and clock.jump_seconds() == 0


def test_small_corrections_are_ignored() -> None:
    clocks = Clocks()
    clock = WallClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clocks.wall += 20
    assert clock.jump_seconds() == 0


def test_the_agent_reports_a_change_of_the_clock(promoted: Installation) -> None:
    with Agent("flights", follow=False, flush=False) as agent:
        assert "clock" not in agent.status().problems
        agent._clock._offset -= 3 * 3600
        agent._check_clock()
        assert "set forwards by 3:00:00" in agent.status().problems["clock"].text
