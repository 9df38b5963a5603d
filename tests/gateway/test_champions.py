"""Champions behind the door: who answers, what is compared, and what the promise learns from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.gateway import handing_over
from stillhouse.gateway.captures import Capture
from stillhouse.gateway.champions import Champions
from stillhouse.gateway.deciding import Asked, LocalDecision
from stillhouse.gateway.protocols import PROTOCOLS
from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task, make_task
from stillhouse.runtime import Agent
from stillhouse.variant import Variant
from tests.gateway.test_recording import SCHEMA
from tests.runtime.conftest import Installation, empty_store, installation, promoted, three_versions

__all__ = ["empty_store", "installation", "promoted", "three_versions"]

PROMISE = {
    "below": None,
    "agreement": 0.8,
    "confidence": 0.8,
    "audit": 1e-9,
}  # 8 rows without a disagreement are needed


def question_of(observation: str) -> ClosedQuestion:
    body = {"model": "m", "messages": [{"role": "user", "content": observation}], "response_format": SCHEMA}
    (question,) = PROTOCOLS["/v1/chat/completions"].read_request(body)
    return question


TASK = make_task("tenant", question_of("{}"))


@contextlib.contextmanager
def open_champions(
    installed: Installation, *, shadow: bool = False, **cascade: Any
) -> Iterator[tuple[Champions, Agent]]:
    """The agent with the task, and its champion behind the door."""
    settings = PROMISE | cascade
    runtime = {"poll": "0.1s", "flush": "0.1s", "cascade": {k: v for k, v in settings.items() if v is not None}}
    installed.write(front_door={"task": TASK.key, "fields": True, "shadow": shadow}, runtime=runtime)
    with Agent("flights") as agent:
        yield Champions([agent]), agent


@pytest.fixture
def messages(promoted: Installation) -> Iterator[str]:
    """Messages of which the champion is rather sure."""
    with Agent("flights"):  # it fetches the champion
        variant = Variant(next(promoted.folder.glob("variant-1-*")))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"wind": rng.normal(10, 10, 900), "hour": rng.uniform(0, 24, 900), "origin": "EWR"})
    sure = frame[variant.predict_proba(frame).max(axis=1) > 0.6]
    assert len(sure) > 100
    return (json.dumps(row) for row in sure.to_dict("records"))


def decide(champions: Champions, message: str) -> LocalDecision:
    decision = asyncio.run(champions.decide(TASK, "tenant", "caller", question_of(message)))
    assert decision is not None
    return decision


def note(champions: Champions, decision: LocalDecision, asked: Asked, action: str | None, caller: str = "c") -> None:
    """The record of a request, as the door's thread tells of it."""
    now = datetime.now(UTC)
    fixed: dict[str, Any] = {"request_id": "r", "question_id": "", "task": TASK, "at": now, "known_at": now}
    fixed |= {"caller": caller, "observation": "", "probs": None, "teacher": "m-1"}
    champions.note(
        Capture(**fixed, asked=asked, action=action, local_action=decision.action, decision_id=decision.decision_id)
    )


def earn(champions: Champions, messages: Iterator[str], count: int = 8) -> None:
    """Agree with the champion so many times."""
    for _ in range(count):
        decision = decide(champions, next(messages))
        assert decision.standing == "shadow"
        note(champions, decision, "shadow", decision.action)


def test_nothing_is_answered_until_the_promise_is_proved_by_the_upstream(
    promoted: Installation, messages: Iterator[str]
) -> None:
    with open_champions(promoted) as (champions, agent):
        assert champions.serves(TASK.key) and not champions.serves("0" * 16)
        earn(champions, messages)
        decision = decide(champions, next(messages))
        assert (decision.standing, decision.version) == ("answers", "flights@1")
        assert decision.confidence == max(decision.probs.values())
        status = agent.status().promise
        assert status is not None and (status.audited, status.agreed) == (8, 0), "before, nothing was answered"
        note(champions, decision, "local", None)
        assert agent.status().promise.audited == 8


def test_answers_that_differ_or_are_no_action_take_the_promise_back(
    promoted: Installation, messages: Iterator[str]
) -> None:
    for wrong in ("another action", None):
        with open_champions(promoted, audit=1.0) as (champions, agent):
            for _ in range(20):
                decision = decide(champions, next(messages))
                note(champions, decision, "audit", decision.action)
            assert decide(champions, next(messages)).standing == "audit"
            for _ in range(10):
                decision = decide(champions, next(messages))
                note(champions, decision, "audit", wrong)
            assert agent.status().promise.alarms > 0, "a refusal is not what the champion says either"
        (promoted.folder / "promise.json").unlink()


def test_one_caller_proves_no_promise_to_the_others(
    promoted: Installation, messages: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing_over, "_FREE_ROWS", 1)
    with open_champions(promoted, shadow=True) as (champions, agent):
        for caller in ("a", "b", "c", "d", *["loud"] * 40):
            decision = decide(champions, next(messages))
            note(champions, decision, "shadow", decision.action, caller)
        assert agent.status().promise.audited == 5


def test_a_decision_that_waits_for_its_record_holds_no_text(promoted: Installation, messages: Iterator[str]) -> None:
    with open_champions(promoted) as (champions, _):
        decide(champions, next(messages))
        (waiting,) = champions._open.values()
        assert not waiting.pending.batch.values


def test_unsure_rows_are_compared_and_prove_nothing(promoted: Installation, messages: Iterator[str]) -> None:
    with open_champions(promoted) as (champions, agent):
        earn(champions, messages)
        unsure = [json.dumps({"wind": 10.0 + n / 100, "hour": 12.0, "origin": "EWR"}) for n in range(-40, 40)]
        threshold = agent.status().promise.threshold
        decisions = [decide(champions, message) for message in unsure]
        for decision in decisions:
            assert decision.standing == ("answers" if decision.confidence >= threshold else "unsure")
            note(champions, decision, "unsure", decision.action)
        assert agent.status().promise.audited == 8


def test_in_shadow_every_row_is_compared_and_none_answered(promoted: Installation, messages: Iterator[str]) -> None:
    with open_champions(promoted, shadow=True) as (champions, agent):
        earn(champions, messages, 20)
        status = agent.status().promise
        assert status.audited == 20 and status.coverage == 1.0 and not agent.answers_nothing
    with open_champions(promoted) as (champions, _):  # what it has shown counts when the shadow ends
        assert decide(champions, next(messages)).standing == "answers"


def test_a_message_that_does_not_fit_and_an_agent_without_champion_decide_nothing(installation: Installation) -> None:
    with open_champions(installation) as (champions, _):
        assert not champions.serves(TASK.key)
        assert asyncio.run(champions.decide(TASK, "t", "c", question_of("{}"))) is None
        installation.registry.promote("1")
        champions._agents[TASK.key].follow()
        assert champions.serves(TASK.key)
        assert asyncio.run(champions.decide(TASK, "t", "c", question_of("no object"))) is None
        assert asyncio.run(champions.decide(TASK, "t", "c", question_of('{"wind": {"a": 1}}'))) is None


def test_decisions_whose_record_never_comes_are_forgotten(
    promoted: Installation, messages: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.gateway.champions._MAX_OPEN", 3)
    with open_champions(promoted) as (champions, agent):
        decisions = [decide(champions, next(messages)) for _ in range(5)]
        for decision in decisions:
            note(champions, decision, "shadow", decision.action)
            note(champions, decision, "shadow", decision.action)  # told twice, counted once
        assert agent.status().promise.audited == 3


def test_agents_without_a_task_are_left_out(promoted: Installation) -> None:
    promoted.write()
    with Agent("flights", follow=False, flush=False) as agent:
        assert not Champions([agent]).serves(TASK.key)
    assert isinstance(TASK, Task)
