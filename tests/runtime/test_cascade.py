"""The cascade: which rows the teacher decides, at what cost, and what a slow or failing teacher changes."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import CascadeSettings, EndpointTeacher, load
from stillhouse.knowledge import KnowledgeBase, content_keys
from stillhouse.records import Spending
from stillhouse.runtime import Agent
from stillhouse.runtime.cascade import LatestAnswers
from stillhouse.runtime.day_budget import DayBudget
from tests.runtime import parts_for_tests as parts
from tests.runtime.conftest import Installation
from tests.runtime.test_agent import ROW, read_table, wait_until

CALM = {"wind": 5.0, "hour": 3.0, "origin": "EWR"}  # the rule answers 0.2, and 0.9 for ROW


def start_agent() -> Agent:
    """An agent whose champion's teacher is loaded."""
    agent = Agent("flights")
    agent.follow()
    return agent


def knowledge_of(*rows: dict) -> np.ndarray:
    base = KnowledgeBase(load("flights"))
    frame = pd.DataFrame(rows)
    return base.answers.probs(frame.assign(content_key=content_keys(frame, base.config)), "r1")


def test_the_teacher_decides_unsure_rows_and_its_answers_become_knowledge(promoted: Installation) -> None:
    promoted.write_cascade()
    with start_agent() as agent:
        late, calm = agent.decide([ROW, CALM])
        status = agent.status()
    assert (late.decider, late.version, late.action, late.confidence) == ("teacher", "r1", "late", pytest.approx(0.9))
    assert (calm.action, calm.probabilities["late"]) == ("on_time", pytest.approx(0.2))
    assert status.decisions == {"teacher": 2} and status.cascade == {"answered": 2}
    assert (status.teacher_calls, status.teacher_cost) == (2, 0.0) and not status.open_problems
    decisions = read_table("decisions")
    assert set(decisions["decider"]) == {"teacher"} and set(decisions["version"]) == {"r1"}
    assert knowledge_of(ROW, CALM).tolist() == [[pytest.approx(0.1), 0.9], [0.8, 0.2]]
    spent = KnowledgeBase(load("flights")).answers.spending(purpose="runtime")
    assert spent["rule"].calls == spent["rule"].rows == 2


def test_a_confident_student_decides_itself(promoted: Installation) -> None:
    with Agent("flights") as agent:
        confidence = agent.decide(ROW).confidence
    promoted.write_cascade(below=confidence - 1e-3)
    with start_agent() as agent:
        assert agent.decide(ROW).decider == "student" and not parts.question_sizes
    promoted.write_cascade(below=confidence + 1e-3)
    with start_agent() as agent:
        assert agent.decide(ROW).decider == "teacher" and parts.question_sizes == [1]


def test_earlier_answers_are_reused_at_no_cost(promoted: Installation) -> None:
    promoted.write_cascade(calls_per_day=2)
    with start_agent() as agent:
        agent.decide([ROW, CALM, ROW])
        again = agent.decide([CALM, ROW])
        assert [decision.decider for decision in again] == ["teacher"] * 2 and parts.question_sizes == [2]
        assert agent.status().cascade == {"answered": 3, "remembered": 2}
    with start_agent() as later:  # from the knowledge base
        assert later.decide(ROW).decider == "teacher" and parts.question_sizes == [2]
        assert later.status().cascade == {"remembered": 1}
    assert len(read_table("knowledge")) == 2 and len(read_table("decisions")) == 6


def test_the_days_budget_is_shared_and_survives_a_restart(promoted: Installation) -> None:
    promoted.write_cascade(calls_per_day=3)
    with start_agent() as agent:
        first = agent.decide([ROW | {"wind": float(i)} for i in range(5)])
        assert [decision.decider for decision in first] == ["teacher"] * 3 + ["student"] * 2
        assert "budget" in agent.status().open_problems["teacher"].text
        assert agent.status().cascade == {"answered": 3, "unanswered": 2}
    with start_agent() as later:
        assert later.decide(ROW | {"wind": 99.0}).decider == "student"
        assert later.decide(ROW | {"wind": 1.0}).decider == "teacher"  # reused
        assert later.status().teacher_calls == 3
    assert parts.question_sizes == [3]


def test_after_the_timeout_the_students_answer_stands_and_a_late_answer_is_stored(promoted: Installation) -> None:
    promoted.write_cascade(timeout="0.2s")
    parts.behaviour["delay"] = 1.5
    with start_agent() as agent:
        assert agent.decide(ROW).decider == "student"
        status = agent.status()
        assert status.cascade == {"late": 1} and "timeout" in status.open_problems["teacher"].text
        assert agent.decide(CALM).decider == "student"  # the teacher is paused
        assert parts.question_sizes == [1] and agent.status().cascade == {"late": 1, "not_asked": 1}
        wait_until(lambda: knowledge_of(ROW)[0, 1] == 0.9)
        assert agent.decide(ROW).decider == "teacher" and parts.question_sizes == [1]
        assert agent.status().teacher_calls == 1


def test_a_failing_teacher_is_reported_paused_and_asked_again(promoted: Installation) -> None:
    promoted.write_cascade()
    with start_agent() as agent:
        parts.behaviour["fails"] = True
        assert agent.decide(ROW).decider == "student"
        assert "burns" in agent.status().open_problems["teacher"].text
        assert agent.decide(CALM).decider == "student" and parts.question_sizes == [1]
        parts.behaviour["fails"] = False
        wait_until(lambda: agent.decide(ROW).decider == "teacher")
        assert "teacher" not in agent.status().open_problems
        assert agent.status().teacher_calls == 1  # the question that failed cost nothing
        decision_counts = agent.status().decisions
    assert len(read_table("decisions")) == sum(decision_counts.values())


def test_without_its_teacher_the_student_decides(promoted: Installation) -> None:
    teachers = [{"kind": "python", "name": "other", "target": "tests.runtime.parts_for_tests:Rule"}]
    promoted.write(teachers=teachers, runtime={"poll": "0.1s", "cascade": {"below": 1.0}})
    with start_agent() as agent:
        assert agent.decide(ROW).decider == "student"
        assert "does not name" in agent.status().open_problems["teacher"].text


def test_the_teacher_has_a_local_copy_and_changes_with_the_champion(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted.write_cascade()
    with start_agent() as agent:
        promoted.registry.promote("2")
        assert agent.follow() == "flights@2"
        assert agent.decide(ROW).version == "r2"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Agent("flights") as agent:
        wait_until(lambda: agent.decide(ROW | {"wind": float(len(parts.question_sizes))}).version == "r2")
    assert len(list(promoted.folder.glob("teacher-*"))) == 2


def test_the_teacher_is_not_asked_about_its_training_rows(promoted: Installation) -> None:
    promoted.write_cascade()
    with start_agent() as agent:
        seen = ROW | {"observed_at": pd.Timestamp("2013-01-02T00:00Z")}
        assert agent.decide(seen).decider == "student" and not parts.question_sizes


# --------------------------------------------------------------------------- the budget


def day_budget(tmp_path: Path, **limits: object) -> tuple[DayBudget, list[str]]:
    day = ["2024-05-01"]
    return DayBudget(tmp_path / "days.sqlite", CascadeSettings(below=0.5, **limits), lambda: day[0]), day


def test_reservations_are_replaced_by_actual_cost_and_each_day_starts_at_zero(tmp_path: Path) -> None:
    budget, day = day_budget(tmp_path, calls_per_day=10, cost_per_day=1.0)
    reservation = budget.reserve([0.3, 0.3, 0.3, 0.3], (1, 2))
    assert (reservation.rows, reservation.calls) == (3, 6) and reservation.cost == pytest.approx(0.9)
    assert budget.spent() == (6, pytest.approx(0.9))
    budget.settle(reservation, Spending(calls=3, rows=3, money=0.2))
    assert budget.spent() == (3, pytest.approx(0.2))
    late = budget.reserve([0.1] * 100, (1, 1))
    assert late.rows == 7
    day[0] = "2024-05-02"
    assert budget.spent() == (0, 0.0)
    budget.settle(late, Spending(calls=7, money=0.7))  # counts for the day of the reservation
    assert budget.spent() == (0, 0.0) and budget.reserve([0.1] * 100, (1, 1)).rows == 10


def test_without_limits_everything_is_reserved_and_counted(tmp_path: Path) -> None:
    budget, _ = day_budget(tmp_path)
    reservation = budget.reserve([9.0] * 50, (1, 4))
    assert reservation.rows == 50
    budget.settle(reservation, Spending(calls=50, money=4.5))
    assert budget.spent() == (50, 4.5)


def test_concurrent_processes_never_exceed_the_budget(tmp_path: Path) -> None:
    budget, _ = day_budget(tmp_path, calls_per_day=100, cost_per_day=5.0)
    total_rows, lock = [0], threading.Lock()

    def spend() -> None:
        own_budget = DayBudget(tmp_path / "days.sqlite", budget.limits, lambda: "2024-05-01")
        for _ in range(20):
            reservation = own_budget.reserve([0.05, 0.05], (1, 1))
            own_budget.settle(reservation, Spending(calls=reservation.rows, money=0.05 * reservation.rows))
            with lock:
                total_rows[0] += reservation.rows

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 99 <= total_rows[0] <= 100 and budget.spent() == (total_rows[0], pytest.approx(0.05 * total_rows[0]))


def test_the_answer_cache_drops_its_oldest_answers(tmp_path: Path) -> None:
    cache = LatestAnswers(3)
    cache.put("t", [(str(i), np.array([i, 1.0])) for i in range(5)])
    cache.put("t", [("useless", None)])
    probs, is_cached = cache.get("t", ["0", "3", "4", "useless", "never"], 2)
    assert is_cached.tolist() == [False, True, True, True, False]
    assert probs[:, 0].tolist() == [pytest.approx(np.nan, nan_ok=True), 3, 4, *[pytest.approx(np.nan, nan_ok=True)] * 2]
    assert not cache.get("another", ["3"], 2)[1].any()


def test_an_endpoint_bounds_the_cost_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.teachers.endpoint import Endpoint
    from tests.knowledge.parts_for_tests import make_config

    teacher = EndpointTeacher(
        kind="endpoint",
        name="llm",
        base_url="http://127.0.0.1:9/v1",
        model="m",
        prompt="{temp}? {actions}",
        votes=3,
        retries=1,
        max_output_tokens=10,
        price_per_million_input=1e6,
        price_per_million_output=1e6,
        timeout=timedelta(seconds=1),
    )
    endpoint = Endpoint(make_config(), "llm", teacher)
    short, long = endpoint.max_cost(pd.DataFrame({"temp": ["1", "1" * 101]}))
    assert long - short == pytest.approx(3 * 100)  # a token is no shorter than a byte, in each of three votes
    assert short > 3 * 10 and endpoint.max_calls_per_row >= 3 * 2
