"""A promised agreement in a running agent: coverage is earned, shared between processes, lost, and earned again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from stillhouse.agreement import NoveltyGuard, Promise, PromiseKeeper
from stillhouse.config import load
from stillhouse.runtime import Agent
from stillhouse.runtime.promise import AnsweredRow, SharedPromise, read_promise_status
from stillhouse.runtime.status import ProblemLog
from stillhouse.variant import Variant
from tests.runtime import parts_for_tests as parts
from tests.runtime.conftest import Installation
from tests.runtime.test_agent import ROW, wait_until
from tests.runtime.test_cascade import start_agent

PROMISE = {"agreement": 0.8, "confidence": 0.8, "below": None}  # 8 rows without a disagreement are needed


@pytest.fixture
def promising(promoted: Installation) -> Installation:
    """The champion with a promise, and an audit of hardly any row."""
    promoted.write_cascade(**PROMISE, audit=1e-9)
    return promoted


def draw_rows(installation: Installation, *, agrees: bool, seed: int = 0) -> Iterator[dict]:
    """Rows on which champion and teacher agree, or do not; the champion is surer of them than of most."""
    with Agent("flights"):  # it fetches the champion
        variant = Variant(next(installation.folder.glob("variant-1-*")))
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"wind": rng.normal(10, 10, 4000), "hour": rng.uniform(0, 24, 4000), "origin": rng.choice(["EWR", "JFK"], 4000)}
    )
    probs = variant.predict_proba(frame)
    matches = (probs.argmax(axis=1) == (frame["wind"].to_numpy() > 10)) == agrees
    chosen = frame[matches & (probs.max(axis=1) > 0.6)]
    assert len(chosen) > 100
    return iter(chosen.to_dict("records"))


def test_coverage_is_earned_and_shared_by_all_processes(promising: Installation) -> None:
    rows = draw_rows(promising, agrees=True)
    with start_agent() as agent, Agent("flights", follow=False, flush=False) as other:
        before = agent.status().promise
        assert before is not None and before.threshold is None and before.rows_lacking == 8
        assert "8 without a disagreement are needed for 80 %" in before.why
        decided = [agent.decide(next(rows)) for _ in range(8)]
        assert {decision.decider for decision in decided} == {"teacher"}  # while nothing is known, the teacher is asked
        asked = len(parts.question_sizes)
        for process in (agent, other):  # the second one has asked nothing itself
            decision = process.decide(next(rows))
            assert decision.decider == "student" and len(parts.question_sizes) == asked
            status = process.status().promise
            assert status is not None and status.rows == 8 and status.agreement == 1.0
            assert status.agreement_bound >= 0.8 and status.coverage == 1.0 and status.rows_lacking == 0
    assert read_promise_status(load("flights")) == status
    with start_agent() as again:  # a restart begins with what is known
        assert again.decide(next(rows)).decider == "student"


def test_an_alarm_takes_coverage_back_says_why_and_is_over_when_it_is_earned_again(promising: Installation) -> None:
    good, bad = draw_rows(promising, agrees=True), draw_rows(promising, agrees=False)
    promising.write_cascade(**PROMISE, audit=1.0)  # each row is audited, so the test needs few
    with start_agent() as agent:
        agent.decide([next(good) for _ in range(60)])
        assert agent.status().promise.threshold is not None
        for wrong in range(1, 10):
            agent.decide(next(bad))
            if agent.status().promise.alarms:
                break
        status = agent.status()
        assert status.promise.threshold is None and "agreed less often than promised" in status.promise.why
        assert "agreed less often" in status.open_problems["promise"].text
        agent.decide([next(good) for _ in range(20)])
        status = agent.status()
        assert status.promise.threshold is not None and "promise" not in status.open_problems
        assert (status.promise.audited, status.promise.alarms) == (60 + wrong + 20, 1)


def test_audited_rows_are_asked_about_and_deferred_ones_prove_nothing(promising: Installation) -> None:
    rows = draw_rows(promising, agrees=True)
    with start_agent() as agent:
        agent.decide([next(rows) for _ in range(8)])
        threshold = agent.status().promise.threshold
        assert threshold is not None
    promising.write_cascade(**PROMISE, audit=0.3)
    with start_agent() as agent:
        audited = agent.status().promise.audited
        decisions = agent.decide([next(rows) for _ in range(60)])
        asked = sum(decision.decider == "teacher" for decision in decisions)
        status = agent.status().promise
        assert 5 < asked < 35 and status.audited == audited + asked
        again = agent.decide(
            [row | {"observation_id": d.observation_id} for row, d in zip([ROW] * 60, decisions, strict=True)]
        )
        assert [d.decider for d in again] == [d.decider for d in decisions]  # drawn by the id, not by the content


def test_another_champion_begins_anew_and_rows_of_the_old_one_are_left_out(promising: Installation) -> None:
    rows = draw_rows(promising, agrees=True)
    with start_agent() as agent:
        agent.decide([next(rows) for _ in range(8)])
        pending = agent.predict(agent.schema.read(next(rows)))
        assert not pending.unsure_rows
        promising.registry.promote("2")
        agent.follow()
        status = agent.status().promise
        assert (status.champion, status.threshold, status.audited) == ("flights@2", None, 0)
        agent._promise.observe("flights@1", [AnsweredRow(0.9, 0.0, True, True)] * 20)
        assert agent.status().promise.audited == 0


def test_a_champion_begins_with_what_its_refresh_has_measured(promising: Installation) -> None:
    with Agent("flights"):
        folder = next(promising.folder.glob("variant-1-*"))
    fitted = PromiseKeeper(Promise(agreement=0.8, confidence=0.8), novelty_limit=0.5).fit([0.55] * 50, [True] * 50)
    (folder / "promise.json").write_text(fitted.state.model_dump_json())
    (promising.folder / "promise.json").unlink()
    pointer_files = {path.name for path in folder.iterdir()}
    assert "promise.json" in pointer_files
    promise = SharedPromise(load("flights"), ProblemLog("flights"))
    with Agent("flights") as agent:
        champion = agent.champion
    (promising.folder / "promise.json").unlink(missing_ok=True)
    promise.follow(champion)
    status = promise.status()
    assert status is not None and status.threshold is not None and status.rows == 50


def test_a_damaged_state_answers_nothing_and_is_begun_anew(promising: Installation) -> None:
    rows = draw_rows(promising, agrees=True)
    with start_agent() as agent:
        agent.decide([next(rows) for _ in range(8)])
        assert agent.decide(next(rows)).decider == "student"
        (promising.folder / "promise.json").write_text("{")
        assert agent.decide(next(rows)).decider == "teacher" and agent.status().promise is None
    with start_agent() as again:
        assert again.status().promise.rows_lacking == 8 and again.decide(next(rows)).decider == "teacher"


def test_late_answers_count_too(promising: Installation) -> None:
    rows = draw_rows(promising, agrees=True)
    promising.write_cascade(**PROMISE, audit=1.0, timeout="0.1s")
    parts.behaviour["delay"] = 0.6
    with start_agent() as agent:
        assert agent.decide(next(rows)).decider == "student"  # there was nothing else to answer
        wait_until(lambda: agent.status().promise.audited == 1)


def test_texts_unlike_the_learned_ones_go_to_the_teacher(promising: Installation) -> None:
    """The guard reads the text columns; the flights have none, so their category stands for one."""
    rows = draw_rows(promising, agrees=True)
    with start_agent() as agent:
        agent.decide([next(rows) for _ in range(8)])
        promise = agent._promise
        promise._guard = NoveltyGuard.learn(["EWR", "JFK"]).calibrate(["EWR", "JFK"])
        promise._texts = frozenset(["origin"])
        state = json.loads((promising.folder / "promise.json").read_text())
        state["state"]["novelty_limit"] = promise._guard.limit
        (promising.folder / "promise.json").write_text(json.dumps(state))
        row = next(rows)
        pending = agent.predict(agent.schema.read([row, row | {"origin": "Wolkenkuckucksheim"}]))
        assert pending.unsure_rows == [1] and pending.asked.blind == [False]
