"""The path through the hook with a scripted champion: who is answered, in which shape, and what goes upstream."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import openai
import pytest

from stillhouse.gateway.captures import Capture
from stillhouse.gateway.deciding import LocalDecision
from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task
from tests.gateway.conftest import Running, open_door
from tests.gateway.test_recording import SCHEMA, chat, send
from tests.gateway.upstream import Upstream, completion, label_completion, whole

TOKEN = {"x-stillhouse-token": "ours"}


@dataclass
class ScriptedChampion:
    """Serves every task, and says what a test tells it."""

    action: str = "move"
    decision: LocalDecision | None = None
    fails: bool = False
    asked: list[tuple[Task, str, str, ClosedQuestion]] = field(default_factory=list)
    noted: list[Capture] = field(default_factory=list)
    standing: Any = "answers"
    has_champion: bool = True
    allowed: bool = False

    def serves(self, key: str) -> bool:
        return True

    async def decide(self, task: Task, tenant: str, caller: str, question: ClosedQuestion) -> LocalDecision | None:
        self.asked.append((task, tenant, caller, question))
        if self.fails:
            raise RuntimeError("broken")
        if not self.has_champion:
            return None
        actions = question.actions or (self.action,)
        probs = {action: 0.1 / max(1, len(actions) - 1) for action in actions} | {self.action: 0.9}
        return LocalDecision(self.action, probs, "router@7", "o.t", self.standing, self.allowed)

    def note(self, capture: Capture) -> None:
        self.noted.append(capture)


@contextlib.contextmanager
def champion_before(behind: Upstream, **options: Any) -> Iterator[tuple[Running, ScriptedChampion]]:
    champion = ScriptedChampion(**options.pop("champion", {}))
    with open_door(behind, decider=champion, tokens=("ours",), **options) as running:
        yield running, champion


def ask(running: Running, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    sent = {"authorization": "Bearer sk-one"} | headers
    return httpx.post(f"{running.url}/v1/chat/completions", json=body or chat(), headers=sent, timeout=10)


def wait_for_notes(champion: ScriptedChampion, count: int) -> None:
    """Wait until the champion has heard of so many records."""
    deadline = time.monotonic() + 10
    while len(champion.noted) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def is_local(response: httpx.Response) -> bool:
    return response.headers.get("x-stillhouse-decided-by") == "student"


def test_a_caller_is_answered_after_the_upstream_has_accepted_its_credential(behind: Upstream) -> None:
    with champion_before(behind) as (running, champion):
        assert not is_local(ask(running)) and champion.asked == []
        response = ask(running)
        assert is_local(response) and len(behind.requests) == 1
        assert response.json()["choices"][0]["message"]["content"] == '{"intent":"move"}'
        assert response.headers["x-stillhouse-version"] == "router@7"
        assert response.headers["x-stillhouse-confidence"] == "0.9000"
        assert response.headers["x-stillhouse-decision"] == "o.t"
        assert not is_local(ask(running, authorization="Bearer sk-two")), "another credential was not accepted"
        assert not is_local(ask(running, chat() | {"model": "m2"})), "nor was this one for another model"
        behind.answer = whole(b"{}", "401 Unauthorized")
        assert ask(running, authorization="Bearer stolen").status_code == 401
        assert ask(running, authorization="Bearer stolen").status_code == 401


def test_a_token_of_ours_is_enough_and_is_not_forwarded(behind: Upstream) -> None:
    with champion_before(behind) as (running, champion):
        assert is_local(ask(running, **TOKEN)) and behind.requests == []
        assert not is_local(ask(running, **{"x-stillhouse-token": "guessed"}))
        assert behind.requests[0].header("x-stillhouse-token") is None
        task, tenant, caller, question = champion.asked[0]
        assert task.tenant == tenant == caller and "sk-one" not in f"{tenant}{caller}"
        assert question.observation == "Hello" and task.actions == ("stay", "move")


def test_local_answers_are_counted_but_teach_nothing(behind: Upstream) -> None:
    with champion_before(behind) as (running, champion):
        ask(running, **TOKEN)
        (row,) = running.rows()
        wait_for_notes(champion, 1)
        assert (row["asked"], row["action"], row["local_action"], row["input_tokens"]) == ("local", None, "move", None)
        (summary,) = running.wait_until_written().tasks()
        assert summary.answered_locally == 1 and summary.usable == 0 and summary.median_ms is None
        (capture,) = champion.noted
        assert not capture.blind and capture.agreed is None


@pytest.mark.parametrize(
    ("options", "asked", "blind"),
    [
        ({"standing": "shadow"}, "shadow", True),
        ({"standing": "unsure"}, "unsure", False),
        ({"standing": "audit"}, "audit", True),
        ({"action": "unknown"}, "not_local", False),
    ],
)
def test_why_the_upstream_was_asked_is_recorded(
    behind: Upstream, options: dict[str, Any], asked: str, blind: bool
) -> None:
    behind.answer = label_completion('{"intent": "move"}')
    with champion_before(behind, champion=options) as (running, champion):
        response = ask(running, **TOKEN)
        assert response.json() == completion('{"intent": "move"}') and not is_local(response)
        (row,) = running.rows()
        wait_for_notes(champion, 1)
        assert (row["asked"], row["action"], row["decision_id"]) == (asked, "move", "o.t")
        (capture,) = champion.noted
        assert capture.blind is blind and capture.agreed is (capture.local_action == "move")
        assert capture.teacher == "m-1 fp_1"


def test_no_champion_a_broken_one_and_what_cannot_be_said_go_upstream(behind: Upstream) -> None:
    with champion_before(behind, champion={"has_champion": False}) as (running, _):
        assert not is_local(ask(running, **TOKEN))
    with champion_before(behind, champion={"fails": True}) as (running, _):
        response = ask(running, **TOKEN)
        assert response.status_code == 200 and not is_local(response)
    with champion_before(behind) as (running, _):
        assert not is_local(ask(running, chat(logprobs=True), **TOKEN))
        assert not is_local(ask(running, chat(store=True), **TOKEN))
        assert not is_local(ask(running, chat(n=2), **TOKEN))


def test_abstaining_is_422_where_the_champion_may_not_answer(behind: Upstream) -> None:
    with champion_before(behind, champion={"standing": "unsure"}, abstain=True) as (running, champion):
        response = ask(running, **TOKEN)
        assert response.status_code == 422 and response.json()["error"]["code"] == "abstained"
        assert response.headers["x-stillhouse-abstain"] == "true" and behind.requests == []
        body = {"model": "m", "state": "x", "questions": {"q": {"type": "noul"}}}
        system_one = httpx.post(f"{running.url}/v1/systemone", json=body, headers=TOKEN)
        assert system_one.status_code == 422 and system_one.json()["detail"]["error_type"] == "abstained"
        champion.standing = "answers"
        assert is_local(ask(running, **TOKEN))
        assert not is_local(ask(running, chat(n=2), **TOKEN)), "what is no task is passed on as always"


def test_a_task_whose_answers_are_referred_to_goes_upstream(behind: Upstream) -> None:
    behind.answer = whole(b'{"error": {"message": "no such response"}}', "404 Not Found")
    body = {"model": "m", "input": "x", "max_output_tokens": 16}
    with champion_before(behind) as (running, _):
        url = f"{running.url}/v1/responses"
        answer = httpx.post(url, json=body, headers=TOKEN)
        assert is_local(answer)
        again = body | {"previous_response_id": answer.json()["id"]}
        assert httpx.post(url, json=again, headers=TOKEN).status_code == 404
        assert not is_local(httpx.post(url, json=body, headers=TOKEN))


def test_a_stranger_cannot_switch_a_task_off(behind: Upstream) -> None:
    behind.answer = whole(b'{"error": {"message": "who are you?"}}', "401 Unauthorized")
    body = {"model": "m", "input": "x", "max_output_tokens": 16}
    with champion_before(behind) as (running, _):
        url, stranger = f"{running.url}/v1/responses", {"authorization": "Bearer sk-stranger"}
        answer = httpx.post(url, json=body, headers=TOKEN)
        referring = body | {"previous_response_id": answer.json()["id"]}
        assert httpx.post(url, json=referring, headers=stranger).status_code == 401
        assert httpx.get(f"{url}/{answer.json()['id']}", headers=stranger).status_code == 401
        assert is_local(httpx.post(url, json=body, headers=TOKEN))


# --------------------------------------------------------------------------- an unmodified client


@pytest.fixture
def client(behind: Upstream) -> Iterator[tuple[openai.OpenAI, ScriptedChampion, Upstream]]:
    with (
        champion_before(behind) as (running, champion),
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-one", default_headers=TOKEN, max_retries=0) as made,
    ):
        yield made, champion, behind


MESSAGES: Any = [{"role": "system", "content": "Route."}, {"role": "user", "content": "Hello"}]
FORMAT: Any = SCHEMA


def test_the_openai_client_reads_an_enum_and_its_stream(client: Any) -> None:
    api, _, behind = client
    answer = api.chat.completions.create(model="m", messages=MESSAGES, response_format=FORMAT)
    assert answer.choices[0].message.content == '{"intent":"move"}' and answer.choices[0].finish_reason == "stop"
    assert answer.model == "m" and answer.usage.total_tokens == 0 and answer.id.startswith("chatcmpl-")
    chunks = list(
        api.chat.completions.create(
            model="m", messages=MESSAGES, response_format=FORMAT, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == '{"intent":"move"}' and chunks[-1].usage.total_tokens == 0
    assert chunks[-2].choices[0].finish_reason == "stop" and behind.requests == []


def test_the_openai_client_parses_into_its_own_types(client: Any) -> None:
    from typing import Literal

    from pydantic import BaseModel

    class Intent(BaseModel):
        intent: Literal["stay", "move"]

    api, _, behind = client
    parsed = api.chat.completions.parse(model="m", messages=MESSAGES, response_format=Intent)
    assert parsed.choices[0].message.parsed == Intent(intent="move")
    response = api.responses.parse(model="m", input="Hello", text_format=Intent)
    assert response.output_parsed == Intent(intent="move") and behind.requests == []


def test_the_openai_client_calls_a_tool_and_the_next_turn_goes_upstream(client: Any) -> None:
    api, _, behind = client
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}},
        }
        for name in ("stay", "move")
    ]
    for stream in (False, True):
        options: Any = {"model": "m", "messages": MESSAGES, "tools": tools, "tool_choice": "required"}
        if stream:
            with api.chat.completions.stream(**options) as events:
                message = events.get_final_completion().choices[0].message
        else:
            answer = api.chat.completions.create(**options)
            assert answer.choices[0].finish_reason == "tool_calls"
            message = answer.choices[0].message
        (call,) = message.tool_calls
        assert (
            call.function.name == "move" and json.loads(call.function.arguments) == {} and call.id.startswith("call_")
        )
    assert behind.requests == []
    following = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "moved"},
    ]
    behind.answer = whole(completion("Done."))
    answer = api.chat.completions.create(model="m", messages=following, tools=tools)
    assert answer.choices[0].message.content == "Done."
    assert behind.requests[0].json["messages"][-1]["tool_call_id"] == call.id


def test_the_openai_client_reads_labels_and_responses(client: Any) -> None:
    api, _, behind = client
    assert api.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4).choices[0].message.content == "move"
    response = api.responses.create(model="m", input="Hello", max_output_tokens=16)
    assert response.output_text == "move" and response.usage.total_tokens == 0 and response.status == "completed"
    tools: Any = [
        {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}, "strict": True}
        for name in ("stay", "move")
    ]
    response = api.responses.create(model="m", input="Hello", tools=tools, tool_choice="required")
    assert response.output[0].type == "function_call" and response.output[0].name == "move"
    for options in ({"max_output_tokens": 16}, {"tools": tools, "tool_choice": "required"}):
        with api.responses.stream(model="m", input="Hello", **options) as events:
            for _ in events:
                pass
            final = events.get_final_response()
        assert final.status == "completed" and (final.output_text == "move" or final.output[0].name == "move")
    assert behind.requests == []


def test_errors_of_the_upstream_reach_the_openai_client_as_they_are(client: Any) -> None:
    api, champion, behind = client
    champion.has_champion = False
    body = b'{"error": {"message": "slow down", "type": "x", "code": "rate"}}'
    behind.answer = whole(body, "429 Too Many", (("retry-after", "1"), ("content-type", "application/json")))
    with pytest.raises(openai.RateLimitError, match="slow down"):
        api.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4)


def test_system_one_answers_carry_our_marks_in_the_body(behind: Upstream) -> None:
    with champion_before(behind, champion={"action": "true"}) as (running, _):
        body = {"model": "jev-latest", "state": {"text": "x"}, "questions": {"한": {"type": "noul"}}}
        response = httpx.post(f"{running.url}/v1/systemone", json=body, headers=TOKEN)
        content = response.json()
        assert content["answers"]["한"]["noul"] == pytest.approx(0.9) and content["x_decided_by"] == "student"
        assert content["answers"]["한"]["x_version"] == "router@7"
        assert not [name for name in response.headers if name.startswith("x-stillhouse")]


def test_a_decision_is_plain_data() -> None:
    decision = LocalDecision("a", {"a": 0.7, "b": 0.3}, "v", "d", "answers")
    assert decision.confidence == 0.7 and replace(decision, action="b").confidence == 0.3


def test_another_task_is_not_served(behind: Upstream) -> None:
    with champion_before(behind) as (running, champion):
        champion.serves = lambda key: False  # type: ignore[method-assign]
        assert not is_local(ask(running, **TOKEN)) and champion.asked == []
        send(running, chat(), **TOKEN)
