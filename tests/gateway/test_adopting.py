"""Adopting a task: which agent file is drafted, and what comes to the knowledge base, also after kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from stillhouse import config
from stillhouse.cli import app
from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError, DataError
from stillhouse.gateway import handing_over
from stillhouse.gateway.adopting import adopt
from stillhouse.gateway.handing_over import HandedOver, hand_over
from stillhouse.gateway.protocols import PROTOCOLS
from stillhouse.gateway.questions import NO_TOOL
from stillhouse.gateway.store import CaptureRow, GatewayStore, store_path
from stillhouse.gateway.tasks import Task, make_task
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.answers import TeacherAnswers
from stillhouse.knowledge.tables import Tables
from stillhouse.runtime.ids import DecisionIds
from tests.gateway.test_recording import SCHEMA

START = 1_760_000_000_000_000  # microseconds since 1970


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    return tmp_path / "agents"


def task_of(**request: Any) -> Task:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | request
    (question,) = PROTOCOLS["/v1/chat/completions"].read_request(body)
    return make_task("tenant", question)


def record(task: Task, rows: list[dict[str, Any]]) -> None:
    """Record requests of a task, a second apart."""
    store = GatewayStore(store_path())
    with store.transaction():
        assert store.admit(task, {}, START, (9, 9))
        begin = len(list(store.captures(task.key)))
        for number, row in enumerate(rows, start=begin):
            values = {
                "request_id": f"{number:032x}",
                "question_id": "",
                "task": task.key,
                "at": START + number * 1_000_000,
                "caller": "one",
                "asked": "first",
                "model": "m-1",
                "streamed": False,
                "ms": 250.0,
            } | row
            store.add([tuple(values.get(name) for name in CaptureRow.COLUMNS)])
    store.close()


def said(*actions: str | None, **more: Any) -> list[dict[str, Any]]:
    """A request for each action, whose texts differ."""
    return [{"observation": f"sentence {n} {action}", "action": action} | more for n, action in enumerate(actions)]


ENUM = {"response_format": SCHEMA}


@pytest.fixture
def adopted() -> Task:
    """A task of two actions, ten answers each, adopted as `moves`."""
    task = task_of(**ENUM)
    record(task, said(*["move", "stay"] * 10))
    adopt(task.key[:6], "moves")
    return task


# --------------------------------------------------------------------------- drafts


def test_the_actions_of_a_schema_are_those_of_the_draft(agents: Path) -> None:
    task = task_of(**ENUM)
    record(task, said("move", "move", "elsewhere", None))
    adopted = adopt(task.key, "moves")
    settings = config.load("moves")
    assert adopted.path == agents / "moves.yaml" and settings.actions == adopted.actions == ("stay", "move")
    assert settings.front_door is not None and settings.front_door.task == task.key and not settings.front_door.fields
    assert settings.observations.texts == ("text",) and settings.labels_are == "teacher answers"
    cascade = settings.runtime.cascade
    assert cascade is not None and (cascade.agreement, cascade.confidence, cascade.audit) == (0.98, 0.95, 0.05)
    moved = adopted.handed_over
    assert (moved.observations, moved.answers, moved.labels, moved.unknown) == (4, 2, 2, 1)


def test_tools_are_actions_and_no_tool_is_one_where_it_was_answered() -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("ask", "book")]
    task = task_of(tools=tools)
    record(task, said("ask", "book", NO_TOOL))
    assert adopt(task.key, "tools").actions == ("ask", "book", NO_TOOL)


def test_labels_are_those_that_were_answered_more_than_once() -> None:
    task = task_of(max_tokens=4)
    record(task, said("yes", "no", "yes", "no", "123", "123", "well"))
    adopted = adopt(task.key, "labels")
    assert adopted.actions == ("123", "no", "yes") == config.load("labels").actions  # texts, also in YAML
    assert adopted.handed_over.unknown == 1


def test_messages_that_are_json_objects_become_columns() -> None:
    task = task_of(**ENUM)
    notes = ["a long note about something", "another note of five words"]
    rows = [
        {
            "observation": json.dumps({"amount": n, "country": "DE", "note": f"{notes[n % 2]} {n}", "odd": None}),
            "action": a,
        }
        for n, a in enumerate(["move", "stay"] * 30)
    ]
    record(task, [*rows, {"observation": "no object", "action": "move"}])
    adopted = adopt(task.key, "fields")
    settings = config.load("fields")
    types = {name: column.type for name, column in settings.observations.columns.items()}
    assert types == {"amount": "number", "country": "category", "note": "text", "odd": "category"}
    assert settings.front_door is not None and settings.front_door.fields and settings.student.kind == "text"
    assert adopted.handed_over.unreadable == 1 and adopted.handed_over.observations == 60
    rows = KnowledgeBase(settings).read("observations")
    assert set(rows["country"]) == {"DE"} and rows["amount"].max() == 59


def test_fields_with_names_of_the_knowledge_base_are_left_out() -> None:
    record(
        task := task_of(**ENUM),
        [
            {"observation": json.dumps({"amount": n, "observed_at": "2026-01-01", "content_key": n}), "action": a}
            for n, a in enumerate(["move", "stay"])
        ],
    )
    adopt(task.key, "fields")
    assert list(config.load("fields").observations.columns) == ["amount"]


def test_fields_without_a_text_make_a_student_of_tables() -> None:
    task = task_of(**ENUM)
    record(task, [{"observation": json.dumps({"amount": n}), "action": a} for n, a in enumerate(["move", "stay"])])
    adopt(task.key, "fields")
    assert config.load("fields").student.kind == "tabular"


def test_what_cannot_be_adopted_is_said_in_a_sentence(adopted: Task, agents: Path) -> None:
    for task, name, text in (
        ("ffff", "new", "no task is called 'ffff'"),
        ("", "new", "no task is called"),
        (adopted.key, "Moves", "is no name of an agent"),
        (adopted.key, "moves", "exists already, and nothing is overwritten"),
        (adopted.key, "new", "was adopted by agent 'moves' already"),
    ):
        with pytest.raises(ConfigError, match=text):
            adopt(task, name)
    other = task_of(max_tokens=4)
    record(other, said("yes", "yes"))
    with pytest.raises(DataError, match="has 1 actions in 2 records, and an agent needs two"):
        adopt(other.key, "one")
    assert [path.name for path in agents.iterdir()] == ["moves.yaml"]


def test_the_command_says_what_it_did_and_what_is_next() -> None:
    record(task_of(**ENUM), said(*["move", "stay"] * 3, "elsewhere"))
    listed = CliRunner().invoke(app, ["tasks", "--json"])
    key = json.loads(listed.output)["tasks"][0]["task"]["key"]
    result = CliRunner().invoke(app, ["adopt", key, "moves"])
    assert result.exit_code == 0, result.output
    assert "7 requests are in its knowledge base, 6 of them with an answer" in result.output
    assert "1 answers are no action" in result.output and "stillhouse check moves" in result.output


# --------------------------------------------------------------------------- handing over


def tables() -> dict[str, pd.DataFrame]:
    base = KnowledgeBase(config.load("moves"))
    columns = {
        "observations": ["observation_id", "text"],
        "outcomes": ["observation_id", "action"],
        "decisions": ["observation_id", "action", "decider", "version"],
        "knowledge": ["content_key", "teacher", "probabilities"],
    }
    return {name: base.tables.select(name, wanted).to_pandas() for name, wanted in columns.items()}


def decided(asked: str, action: str | None, number: int) -> dict[str, Any]:
    """A request that a champion had a say in."""
    base = KnowledgeBase(config.load("moves"))
    (decision_id,) = DecisionIds("moves", base.tables.identity()).create([f"o-{number}"], [START + number])
    return {
        "observation": f"decided {number}",
        "asked": asked,
        "action": action,
        "local_action": "move",
        "local_probabilities": json.dumps({"stay": 0.2, "move": 0.8}),
        "local_version": "moves@1",
        "decision_id": decision_id,
    }


def test_only_blind_answers_are_labels_and_local_ones_teach_nothing(adopted: Task) -> None:
    kinds = ["audit", "shadow", "unsure", "credential", "not_local"]
    record(adopted, [*(decided(kind, "stay", n) for n, kind in enumerate(kinds)), decided("local", None, 9)])
    moved = hand_over(config.load("moves"))
    assert (moved.observations, moved.answers, moved.labels, moved.decisions) == (6, 5, 2, 6)
    found = tables()
    labels = found["outcomes"].set_index("observation_id")["action"]
    assert set(labels.index) >= {"o-0", "o-1"} and not {"o-2", "o-3", "o-4", "o-9"} & set(labels.index)
    decisions = found["decisions"].set_index("observation_id")
    assert (decisions.loc["o-9", "decider"], decisions.loc["o-9", "version"]) == ("student", "moves@1")
    assert (decisions.loc["o-0", "decider"], decisions.loc["o-0", "action"]) == ("teacher", "stay")
    assert hand_over(config.load("moves")) == HandedOver()


def test_another_model_in_the_answer_is_another_teacher_version(adopted: Task) -> None:
    record(adopted, said("move", "stay", model="m-2"))
    hand_over(config.load("moves"))
    assert tables()["knowledge"]["teacher"].nunique() == 2


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("after", [False, True])
def test_a_killed_hand_over_is_completed_and_nothing_comes_twice(
    adopted: Task, step: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after each write of a chunk: answers, labels, decisions, observations, and the note of its end."""
    later = [{"observation": f"later {n}", "action": "move"} for n in range(3)]
    record(adopted, [*later, decided("audit", "stay", 1), decided("local", None, 2)])
    places = [
        (TeacherAnswers, "append"),
        (KnowledgeBase, "append_outcomes"),
        (Tables, "append"),
        (KnowledgeBase, "append_observations"),
        (GatewayStore, "finish_chunk"),
    ]
    owner, name = places[step]
    original = getattr(owner, name)

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if name == "append" and owner is Tables and arguments[0] != "decisions":
            return original(self, *arguments, **named)
        if after:
            original(self, *arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            hand_over(config.load("moves"))
    hand_over(config.load("moves"))
    found = tables()
    assert len(found["observations"]) == 25 and found["observations"]["observation_id"].is_unique
    assert len(found["outcomes"]) == 24 and found["outcomes"]["observation_id"].is_unique
    assert len(found["knowledge"]) == 24 and found["knowledge"]["content_key"].is_unique
    assert sorted(found["decisions"]["observation_id"]) == ["o-1", "o-2"]
    assert hand_over(config.load("moves")) == HandedOver()


def test_records_go_in_chunks(adopted: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_over, "_CHUNK", 2)
    record(adopted, [{"observation": f"later {n}", "action": "move"} for n in range(5)])
    moved = hand_over(config.load("moves"))
    assert (moved.observations, moved.labels) == (5, 5) and len(tables()["observations"]) == 25


def test_a_caller_has_no_larger_share_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """With five callers or more, one that asks most of the time is learned from up to a fifth."""
    monkeypatch.setattr(handing_over, "_FREE_ROWS", 4)
    task = task_of(**ENUM)
    callers = ["loud", "loud", "loud", "a", "b", "c", "d", "e"] * 8
    record(task, [{"observation": f"text {n}", "action": "move", "caller": c} for n, c in enumerate(callers)])
    moved = adopt(task.key, "moves").handed_over
    store = GatewayStore(store_path())
    kept = store.kept_by_caller("moves")
    store.close()
    assert kept["loud"] / sum(kept.values()) <= 0.2 + 4 / sum(kept.values())
    assert moved.capped == 24 - kept["loud"] > 0 and moved.observations == 64
    assert moved.labels == sum(kept.values())


def test_two_callers_are_not_limited(adopted: Task) -> None:
    record(adopted, [{"observation": f"more {n}", "action": "move", "caller": "two"} for n in range(80)])
    assert hand_over(config.load("moves")).capped == 0


def test_a_front_door_without_a_promise_is_refused() -> None:
    record(task := task_of(**ENUM), said("move", "stay"))
    path = adopt(task.key, "moves").path
    sections = yaml.safe_load(path.read_text())
    del sections["runtime"]
    with pytest.raises(ValueError, match="answers in a language model's place only by a promise"):
        AgentConfig.model_validate(sections)
    sections["front_door"]["shadow"] = True
    AgentConfig.model_validate(sections)
    sections["front_door"] = None
    with pytest.raises(ValueError, match="kind 'recorded' gets its answers at the front door"):
        AgentConfig.model_validate(sections)
