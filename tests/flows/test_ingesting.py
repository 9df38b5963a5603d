"""A period of history that is replayed again after an interruption is stored once."""

from __future__ import annotations

import pytest

from stillhouse.config import load
from stillhouse.knowledge import KnowledgeBase
from stillhouse.runtime import Agent
from tasks.ingesting import live
from tests.flows import toy


class Killed(BaseException):
    """Simulates the end of the process: no code under test catches it."""


@pytest.mark.parametrize("moment", ["before the outcomes", "before the last flush", "amid the flush"])
def test_interrupted_period_is_stored_once(day, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    live.fn("toy", day(0), day(2))
    original_flush, flushes = Agent.flush, list[int]()

    def die(*_: object, **__: object) -> None:
        raise Killed

    def flush_or_die(agent: Agent) -> None:
        flushes.append(1)
        if len(flushes) > 1:
            raise Killed
        original_flush(agent)

    with monkeypatch.context() as patch:
        if moment == "before the outcomes":
            patch.setattr(Agent, "learn", die)
        elif moment == "before the last flush":
            patch.setattr(Agent, "flush", flush_or_die)
        else:
            patch.setattr("stillhouse.knowledge.spool.SpoolFile.forget", die)
        with pytest.raises(Killed):
            live.fn("toy", day(2), day(4))

    live.fn("toy", day(2), day(4))
    assert live.fn("toy", day(2), day(4)) == 0
    base = KnowledgeBase(load("toy"))
    observed, outcomes = base.read("observations"), base.read("outcomes")
    assert len(observed) == observed["observation_id"].nunique() == 4 * toy.PER_DAY
    assert len(outcomes) == outcomes["observation_id"].nunique() == 3 * toy.PER_DAY
