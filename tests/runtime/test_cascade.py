"""The cascade: who answers, what it costs, and what happens when the teacher is slow, fails, or has had enough."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import Cascade, EndpointTeacher, load
from stillhouse.knowledge import KnowledgeBase, content_keys
from stillhouse.records import Spending
from stillhouse.runtime import Agent
from stillhouse.runtime.allowances import DayBudget
from stillhouse.runtime.cascade import Said
from tests.runtime import parts_for_tests as parts
from tests.runtime.conftest import World
from tests.runtime.test_agent import ROW, table, until

CALM = {"wind": 5.0, "hour": 3.0, "origin": "EWR"}  # the rule says 0.2, and of ROW 0.9


def ready() -> Agent:
    """An agent whose champion's teacher can be asked."""
    agent = Agent("flights")
    agent.follow()
    return agent


def knowledge_of(*rows: dict) -> np.ndarray:
    base = KnowledgeBase(load("flights"))
    frame = pd.DataFrame(rows)
    return base.knowledge(frame.assign(content_key=content_keys(frame, base.config)), "r1")


def test_where_the_student_is_unsure_the_teacher_decides_and_teaches(champion: World) -> None:
    champion.cascade()
    with ready() as agent:
        late, calm = agent.decide([ROW, CALM])
        status = agent.status()
    assert (late.decider, late.version, late.action, late.confidence) == ("teacher", "r1", "late", pytest.approx(0.9))
    assert (calm.action, calm.probabilities["late"]) == ("on_time", pytest.approx(0.2))
    assert status.decisions == {"teacher": 2} and status.cascade == {"answered": 2}
    assert (status.teacher_calls, status.teacher_cost) == (2, 0.0) and not status.troubled
    decided = table("decisions")
    assert set(decided["decider"]) == {"teacher"} and set(decided["version"]) == {"r1"}
    assert knowledge_of(ROW, CALM).tolist() == [[pytest.approx(0.1), 0.9], [0.8, 0.2]]
    spent = KnowledgeBase(load("flights")).spending(purpose="runtime")
    assert spent["rule"].calls == spent["rule"].rows == 2


def test_a_sure_student_answers_itself(champion: World) -> None:
    with Agent("flights") as agent:
        confidence = agent.decide(ROW).confidence
    champion.cascade(below=confidence - 1e-3)
    with ready() as agent:
        assert agent.decide(ROW).decider == "student" and not parts.asked
    champion.cascade(below=confidence + 1e-3)
    with ready() as agent:
        assert agent.decide(ROW).decider == "teacher" and parts.asked == [1]


def test_what_it_said_before_is_known_and_costs_nothing(champion: World) -> None:
    champion.cascade(calls_per_day=2)
    with ready() as agent:
        agent.decide([ROW, CALM, ROW])
        again = agent.decide([CALM, ROW])
        assert [each.decider for each in again] == ["teacher"] * 2 and parts.asked == [2]
        assert agent.status().cascade == {"answered": 3, "remembered": 2}
    with ready() as later:  # from the knowledge base
        assert later.decide(ROW).decider == "teacher" and parts.asked == [2]
        assert later.status().cascade == {"remembered": 1}
    assert len(table("knowledge")) == 2 and len(table("decisions")) == 6


def test_the_days_budget_is_shared_and_survives_a_restart(champion: World) -> None:
    champion.cascade(calls_per_day=3)
    with ready() as agent:
        first = agent.decide([ROW | {"wind": float(i)} for i in range(5)])
        assert [each.decider for each in first] == ["teacher"] * 3 + ["student"] * 2
        assert "budget" in agent.status().troubled["teacher"].text
        assert agent.status().cascade == {"answered": 3, "unanswered": 2}
    with ready() as later:
        assert later.decide(ROW | {"wind": 99.0}).decider == "student"
        assert later.decide(ROW | {"wind": 1.0}).decider == "teacher"  # known
        assert later.status().teacher_calls == 3
    assert parts.asked == [3]


def test_after_the_timeout_the_students_answer_stands_and_what_comes_late_is_kept(champion: World) -> None:
    champion.cascade(timeout="0.2s")
    parts.behaviour["delay"] = 1.5
    with ready() as agent:
        assert agent.decide(ROW).decider == "student"
        status = agent.status()
        assert status.cascade == {"late": 1} and "timeout" in status.troubled["teacher"].text
        assert agent.decide(CALM).decider == "student"  # it is given a rest
        assert parts.asked == [1] and agent.status().cascade == {"late": 1, "not_asked": 1}
        until(lambda: knowledge_of(ROW)[0, 1] == 0.9)
        assert agent.decide(ROW).decider == "teacher" and parts.asked == [1]
        assert agent.status().teacher_calls == 1


def test_a_teacher_that_fails_is_told_given_a_rest_and_asked_again(champion: World) -> None:
    champion.cascade()
    with ready() as agent:
        parts.behaviour["fails"] = True
        assert agent.decide(ROW).decider == "student"
        assert "burns" in agent.status().troubled["teacher"].text
        assert agent.decide(CALM).decider == "student" and parts.asked == [1]
        parts.behaviour["fails"] = False
        until(lambda: agent.decide(ROW).decider == "teacher")
        assert "teacher" not in agent.status().troubled
        assert agent.status().teacher_calls == 1  # the question that failed cost nothing
        decided = agent.status().decisions
    assert len(table("decisions")) == sum(decided.values())


def test_a_teacher_that_cannot_be_loaded_leaves_the_student_alone(champion: World) -> None:
    teachers = [{"kind": "python", "name": "other", "target": "tests.runtime.parts_for_tests:Rule"}]
    champion.write(teachers=teachers, runtime={"poll": "0.1s", "cascade": {"below": 1.0}})
    with ready() as agent:
        assert agent.decide(ROW).decider == "student"
        assert "does not name" in agent.status().troubled["teacher"].text


def test_the_teacher_comes_from_the_copy_too_and_changes_with_the_champion(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion.cascade()
    with ready() as agent:
        champion.registry.promote("2")
        assert agent.follow() == "flights@2"
        assert agent.decide(ROW).version == "r2"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Agent("flights") as agent:
        until(lambda: agent.decide(ROW | {"wind": float(len(parts.asked))}).version == "r2")
    assert len(list(champion.folder.glob("teacher-*"))) == 2


def test_rows_whose_outcomes_the_teacher_has_seen_are_not_put_to_it(champion: World) -> None:
    champion.cascade()
    with ready() as agent:
        seen = ROW | {"observed_at": pd.Timestamp("2013-01-02T00:00Z")}
        assert agent.decide(seen).decider == "student" and not parts.asked


# --------------------------------------------------------------------------- the budget by itself


def day_budget(tmp_path: Path, **limits: object) -> tuple[DayBudget, list[str]]:
    day = ["2024-05-01"]
    return DayBudget(tmp_path / "days.sqlite", Cascade(below=0.5, **limits), lambda: day[0]), day


def test_what_is_set_aside_is_put_right_and_a_new_day_begins_at_nothing(tmp_path: Path) -> None:
    budget, day = day_budget(tmp_path, calls_per_day=10, cost_per_day=1.0)
    granted = budget.reserve([0.3, 0.3, 0.3, 0.3], (1, 2))
    assert (granted.rows, granted.calls) == (3, 6) and granted.cost == pytest.approx(0.9)
    assert budget.spent() == (6, pytest.approx(0.9))
    budget.settle(granted, Spending(calls=3, rows=3, money=0.2))
    assert budget.spent() == (3, pytest.approx(0.2))
    late = budget.reserve([0.1] * 100, (1, 1))
    assert late.rows == 7
    day[0] = "2024-05-02"
    assert budget.spent() == (0, 0.0)
    budget.settle(late, Spending(calls=7, money=0.7))  # of the day that it was granted on
    assert budget.spent() == (0, 0.0) and budget.reserve([0.1] * 100, (1, 1)).rows == 10


def test_without_limits_everything_is_granted_and_counted(tmp_path: Path) -> None:
    budget, _ = day_budget(tmp_path)
    granted = budget.reserve([9.0] * 50, (1, 4))
    assert granted.rows == 50
    budget.settle(granted, Spending(calls=50, money=4.5))
    assert budget.spent() == (50, 4.5)


def test_many_at_once_never_spend_more_than_there_is(tmp_path: Path) -> None:
    budget, _ = day_budget(tmp_path, calls_per_day=100, cost_per_day=5.0)
    granted, lock = [0], threading.Lock()

    def spend() -> None:
        own = DayBudget(tmp_path / "days.sqlite", budget.limits, lambda: "2024-05-01")
        for _ in range(20):
            mine = own.reserve([0.05, 0.05], (1, 1))
            own.settle(mine, Spending(calls=mine.rows, money=0.05 * mine.rows))
            with lock:
                granted[0] += mine.rows

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 99 <= granted[0] <= 100 and budget.spent() == (granted[0], pytest.approx(0.05 * granted[0]))


def test_the_memory_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    said = Said(3)
    said.keep("t", [(str(i), np.array([i, 1.0])) for i in range(5)])
    said.keep("t", [("useless", None)])
    found, spoken = said.about("t", ["0", "3", "4", "useless", "never"], 2)
    assert spoken.tolist() == [False, True, True, True, False]
    assert found[:, 0].tolist() == [pytest.approx(np.nan, nan_ok=True), 3, 4, *[pytest.approx(np.nan, nan_ok=True)] * 2]
    assert not said.about("another", ["3"], 2)[1].any()


def test_an_endpoint_knows_the_most_that_a_row_can_cost(monkeypatch: pytest.MonkeyPatch) -> None:
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
