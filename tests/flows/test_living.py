"""A stretch of history that is lived again, wherever its first run was cut off, is lived once."""

from __future__ import annotations

import pytest

from stillhouse.config import load
from stillhouse.knowledge import KnowledgeBase
from stillhouse.runtime import Agent
from tasks.living import live
from tests.flows import toy


class Killed(BaseException):
    """As if the process were gone: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["before the outcomes", "before the last flush", "amid the flush"])
def test_cut_off_anywhere_and_lived_again(day, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    live.fn("toy", day(0), day(2))
    whole, flushes = Agent.flush, list[int]()

    def die(*_: object, **__: object) -> None:
        raise Killed

    def flush_or_die(agent: Agent) -> None:
        flushes.append(1)
        if len(flushes) > 1:
            raise Killed
        whole(agent)

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
