"""A clock that is set while an agent decides is noticed and told."""

from __future__ import annotations

import pytest

from stillhouse.runtime import Agent
from stillhouse.runtime.clock import WallClock
from tests.runtime.conftest import World


class Clocks:
    """Seconds on the wall and seconds that pass evenly."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize("set_by", [7200.0, -86_400.0])
def test_a_clock_that_is_set_is_noticed_once(set_by: float) -> None:
    clocks = Clocks()
    watched = WallClock(lambda: clocks.wall, lambda: clocks.steady)
    clocks.pass_by(500)
    assert watched.jumped() == 0
    clocks.wall += set_by
    assert watched.jumped() == set_by and watched.jumped() == 0


def test_small_corrections_are_let_pass() -> None:
    clocks = Clocks()
    watched = WallClock(lambda: clocks.wall, lambda: clocks.steady)
    clocks.wall += 20
    assert watched.jumped() == 0


def test_the_agent_tells_it(champion: World) -> None:
    with Agent("flights", follow=False, flush=False) as agent:
        assert "clock" not in agent.status().problems
        agent._clock._offset -= 3 * 3600
        agent._look_at_clock()
        assert "set forwards by 3:00:00" in agent.status().problems["clock"].text
