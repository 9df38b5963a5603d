"""Records of an adopted task come to the knowledge base once, and can be forgotten."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse import config
from stillhouse.errors import ConfigError, StoreError
from stillhouse.forgetting.places import _Captures
from stillhouse.gateway.adopting import adopt
from stillhouse.gateway.handing_over import hand_over, read_recorded
from stillhouse.gateway.protocols import PROTOCOLS
from stillhouse.gateway.store import GatewayStore, store_path
from stillhouse.gateway.tasks import Task, make_task
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ForgetRequest
from stillhouse.watching.evidence import contents_to_count

CANARY = "please drop the zqx taxi of Ms. Canary-Vogel"
MINUTE = 60_000_000  # microseconds
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"type": "string", "enum": ["taxi", "train"]}},
    "required": ["intent"],
    "additionalProperties": False,
}


def record(texts: list[str], callers: list[str] | None = None, asked: str = "first") -> Task:
    """Record one answered request per text, a minute apart, as the door does; the task."""
    chat = PROTOCOLS["/v1/chat/completions"]
    store = GatewayStore(store_path())
    with store.transaction():
        for index, text in enumerate(texts):
            request = {
                "model": "m",
                "messages": [{"role": "system", "content": "Route."}, {"role": "user", "content": text}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                },
            }
            (question,) = chat.read_request(request)
            task = make_task("acme", question)
            at = time.time_ns() // 1000 - (len(texts) - index) * MINUTE
            assert store.admit(task, question.constant, at, (10, 10))
            caller = callers[index] if callers else "c"
            answer = ("taxi" if "taxi" in text else "train", None, None, "m", "fp", f"a{at}", 9, 3)
            local = (None,) * 5
            store.add(
                [(f"r{at}", "", task.key, at, caller, question.observation, asked, *answer, *local, False, 1.0, 1.0)]
            )
    store.close()
    return task


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "agents"


def test_an_adopted_task_has_its_actions_rows_and_answers(agents: Path) -> None:
    task = record(["a taxi please", "the next train"] * 3)
    adopted = adopt(task.key[:6], "rides")
    assert (adopted.actions, adopted.path) == (("taxi", "train"), agents / "rides.yaml")
    assert (adopted.handed_over.observations, adopted.handed_over.labels) == (6, 6)
    settings = config.load("rides")
    assert (settings.labels_are, settings.front_door.task) == ("teacher answers", task.key)
    outcomes = KnowledgeBase(settings).read("outcomes")
    assert outcomes["action"].tolist() == ["taxi", "train"] * 3
    with pytest.raises(ConfigError, match="was adopted by agent 'rides' already"):
        adopt(task.key, "others")
    assert not (agents / "others.yaml").exists()


def test_a_killed_hand_over_goes_on_and_nothing_comes_twice(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = record(["a taxi please", "the next train"] * 3)
    adopt(task.key, "rides")
    record(["one more taxi", "one more train"])
    settings = config.load("rides")
    for method in ("append_observations", "append_outcomes"):
        with monkeypatch.context() as patch:
            patch.setattr(KnowledgeBase, method, _fail)
            with pytest.raises(StoreError):
                hand_over(settings)
    with monkeypatch.context() as patch:
        patch.setattr(GatewayStore, "finish_chunk", _fail)
        with pytest.raises(StoreError):
            hand_over(settings)
    hand_over(settings)
    base = KnowledgeBase(settings)
    assert len(base.read("observations")) == len(base.read("outcomes")) == 8
    assert base.read("observations")["observation_id"].is_unique


def test_answers_that_were_asked_for_because_of_the_champion_are_no_labels(agents: Path) -> None:
    adopt(record(["a taxi please", "the next train"]).key, "rides")
    record(["a taxi to the train"], asked="unsure")
    moved = hand_over(config.load("rides"))
    assert (moved.observations, moved.answers, moved.labels) == (1, 1, 0)


def test_a_caller_with_too_large_a_share_is_not_learned_from_any_further(agents: Path) -> None:
    callers = [f"c{index}" for index in range(5)] * 50 + ["c0"] * 200
    task = record([f"taxi {index}" if index % 2 else f"train {index}" for index in range(450)], callers)
    moved = adopt(task.key, "rides").handed_over
    assert moved.observations == 450 and moved.labels == 250 and moved.capped == 200


def test_a_callers_requests_are_forgotten(agents: Path) -> None:
    task = record([CANARY, "the next train", "a taxi"], ["person", "c", "c"])
    adopt(task.key, "rides")
    record([CANARY + " again"], ["person"])
    place = _Captures(KnowledgeBase(config.load("rides")))
    assert len(list(place.find(ForgetRequest(callers=("person",))))) == 2  # the new one was handed over first
    store = GatewayStore(store_path())
    store.forget([found.capture for found in read_recorded(config.load("rides")) if found.caller == "person"])
    store.close()
    assert {found.caller for found in read_recorded(config.load("rides"))} == {"c"}
    folder = store_path().parent
    assert not any(CANARY.encode() in path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_the_records_of_each_task_are_handed_over_from_the_first(agents: Path) -> None:
    """An agent that takes over another task, or its name, gets that task's records too."""
    store = GatewayStore(store_path())
    task = record(["a taxi"] * 3)
    assert store.next_chunk("rides", task.key, 10) is not None
    store.finish_chunk("rides", "another task", (1, 3), {})
    assert store.next_chunk("rides", task.key, 10) == (1, 3)
    store.finish_chunk("rides", task.key, (1, 3), {})
    assert store.next_chunk("rides", task.key, 10) is None
    store.close()


def test_answers_to_unsure_rows_are_no_evidence_of_a_watch(agents: Path) -> None:
    """Beside a champion that answers most rows, the recorded answers are mostly to those that it was unsure about."""
    adopt(record(["a taxi please", "the next train"]).key, "rides")
    sample = pd.DataFrame({"observation_id": ["audited", "unsure", "local"], "content_key": ["a", "u", "l"]})
    probs = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    settings = config.load("rides")
    assert contents_to_count(sample, probs, settings, {"audited"}).tolist() == ["a"]
    asked = settings.model_copy(update={"teachers": ()})
    assert contents_to_count(sample, probs, asked, {"audited"}).tolist() == ["a", "u"]


def _fail(*_args: object, **_kwargs: object) -> None:
    raise StoreError("killed here")
