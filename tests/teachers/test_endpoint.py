"""A language model behind the OpenAI protocol: correct servers, limited servers and failing ones."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import PartError
from stillhouse.teachers.answers import Allowance, Answers
from stillhouse.teachers.endpoint import Endpoint
from tests.agents import agent_config
from tests.teachers.http_server import Reply, Server, chat_completion, error, serving, token

pytest.importorskip("openai")


def make_config(url: str, **settings: Any) -> AgentConfig:
    teacher = {
        "kind": "endpoint",
        "name": "llm",
        "base_url": url,
        "model": "m",
        "prompt": "temp {temp}; {actions}?",
        "probabilities": "votes",
        "votes": 1,
        "timeout": "2s",
        "retries": 2,
        **settings,
    }
    return agent_config(observations={"columns": {"temp": {"type": "number"}}}, teachers=[teacher])


def endpoint(server: Server, **settings: Any) -> Endpoint:
    config = make_config(server.url, **settings)
    return Endpoint(config, "llm", config.teachers[0], pause=0.01)  # type: ignore[arg-type]


def ask(server: Server, rows: int = 1, allowance: Allowance | None = None, **settings: Any) -> Answers:
    request = pd.DataFrame({"temp": np.arange(float(rows))})
    return endpoint(server, **settings).answer(request, allowance or Allowance())


def temp(request: dict[str, Any]) -> float:
    return float(request["messages"][-1]["content"].split()[1].rstrip(";"))


def by_temp(request: dict[str, Any], number: int) -> Reply:
    return chat_completion("move" if temp(request) >= 2 else "stay")


# --------------------------------------------------------------------------- a correct server


def test_answers_match_their_rows() -> None:
    def slow_first(request: dict[str, Any], number: int) -> Reply:
        reply = by_temp(request, number)
        reply.delay = 0.2 if temp(request) == 0 else 0.0
        return reply

    with serving(slow_first) as server:
        answers = ask(server, rows=4)
    np.testing.assert_allclose(answers.probabilities, [[2 / 3, 1 / 3]] * 2 + [[1 / 3, 2 / 3]] * 2)
    assert (answers.refused, answers.stop_reason) == ({}, None)


def test_request_body() -> None:
    with serving(by_temp) as server:
        ask(server, system="You run a house.", temperature=0.5, votes=1)
    (request,) = server.requests
    assert request["messages"][1] == {"role": "user", "content": "temp 0; stay, move?"}
    assert request["messages"][0]["content"].startswith("You run a house.")
    assert request["response_format"]["json_schema"]["schema"]["properties"]["action"]["enum"] == ["stay", "move"]
    assert (request["model"], request["temperature"]) == ("m", 0.5)


def test_endpoint_works_inside_a_running_event_loop() -> None:
    async def inside() -> Answers:
        return ask(server)

    with serving(by_temp) as server:
        assert np.isfinite(asyncio.run(inside()).probabilities).all()


def test_concurrency_is_limited() -> None:
    def slowly(request: dict[str, Any], number: int) -> Reply:
        reply = by_temp(request, number)
        reply.delay = 0.05
        return reply

    with serving(slowly) as server:
        ask(server, rows=12, concurrency=3)
    assert server.max_concurrent == 3


def test_cost_comes_from_the_reported_tokens() -> None:
    with serving(by_temp) as server:
        spent = ask(server, rows=3, price_per_million_input=2.0, price_per_million_output=10.0).spending
    assert (spent.calls, spent.rows, spent.input_tokens, spent.output_tokens) == (3, 3, 300, 15)
    assert spent.money == pytest.approx((300 * 2 + 15 * 10) / 1e6)


def test_missing_usage_is_charged_at_the_maximum() -> None:
    with serving(lambda request, number: chat_completion("stay", usage=None)) as server:
        spent = ask(server, price_per_million_output=10.0, max_output_tokens=8).spending
    assert spent.money == pytest.approx(8 * 10 / 1e6)
    assert spent.output_tokens == 0


# --------------------------------------------------------------------------- probabilities


def test_endpoint_reads_logprobs() -> None:
    tokens = [token('{"action": "', 1.0), token("move", 0.9, stay=0.1), token('"}', 1.0)]
    with serving(lambda request, number: chat_completion('{"action": "move"}', tokens=tokens)) as server:
        answers = ask(server, rows=2, probabilities="auto", votes=5)
    np.testing.assert_allclose(answers.probabilities, [[0.1, 0.9]] * 2)
    assert len(server.requests) == 2
    assert server.requests[0]["logprobs"] is True and server.requests[0]["temperature"] == 0


def test_endpoint_falls_back_to_votes_once() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return chat_completion(*["move", "move", "stay", "move"][: request.get("n", 1)])

    with serving(script) as server:
        answers = ask(server, rows=3, probabilities="auto", votes=4, concurrency=1)
    np.testing.assert_allclose(answers.probabilities, [[2 / 6, 4 / 6]] * 3)
    assert [request.get("logprobs", False) for request in server.requests] == [True, False, False, False]
    assert answers.spending.calls == 4 and answers.spending.rows == 3


def test_required_logprobs_that_are_missing_stop_the_round() -> None:
    with serving(lambda request, number: chat_completion("move")) as server:
        answers = ask(server, rows=3, probabilities="logprobs", concurrency=1)
    assert "write `probabilities: votes`" in str(answers.stop_reason)
    assert len(server.requests) == 1 and np.isnan(answers.probabilities).all()


@pytest.mark.parametrize("most", [1, 2])
def test_missing_votes_are_requested_again(most: int) -> None:
    replies = iter(["move", "stay", "move", "move", "stay"])
    with serving(
        lambda request, number: chat_completion(*[next(replies) for _ in range(min(most, request.get("n", 1)))])
    ) as server:
        answers = ask(server, votes=5)
    np.testing.assert_allclose(answers.probabilities, [[3 / 7, 4 / 7]])
    assert answers.spending.calls == -(-5 // most)


# --------------------------------------------------------------------------- a server with fewer options


def test_server_without_any_extra_option() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        for unknown in ("response_format", "logprobs", "n"):
            if unknown in request:
                return error(400, f"unknown field {unknown}")
        return chat_completion("move")

    with serving(script) as server:
        answers = ask(server, rows=2, probabilities="auto", votes=3, concurrency=1)
    np.testing.assert_allclose(answers.probabilities, [[1 / 5, 4 / 5]] * 2)
    assert answers.spending.calls == 5 + 3 + 3  # five requests for the fallback, then three votes a row


@pytest.mark.parametrize("refused", ["response_format", "logprobs", "n"])
def test_only_the_refused_option_is_left_out(refused: str) -> None:
    """Of schema, log-probabilities and several answers, only the option that the server refuses is left out."""

    def script(request: dict[str, Any], number: int) -> Reply:
        if refused in request and (refused != "n" or request["n"] > 2):
            return error(400, "bad request")
        tokens = [token("move", 0.9, stay=0.1)] if request.get("logprobs") else None
        return chat_completion(*["move"] * request.get("n", 1), tokens=tokens)

    with serving(script) as server:
        answers = ask(server, rows=3, probabilities="votes" if refused == "n" else "auto", votes=3, concurrency=1)
    assert np.isfinite(answers.probabilities).all()
    last = server.requests[-1]
    assert refused not in last
    assert "response_format" in last or refused == "response_format"
    assert ("logprobs" in last) == (refused == "response_format")
    assert last.get("n", 1) == (3 if refused == "logprobs" else 1)


def test_refused_row_keeps_the_options_of_the_others() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return error(400, "too long") if temp(request) == 1 else chat_completion(*["move"] * request.get("n", 1))

    with serving(script) as server:
        answers = ask(server, rows=4, votes=2, concurrency=1)
    assert np.isnan(answers.probabilities[:, 0]).tolist() == [False, True, False, False]
    assert "response_format" in server.requests[-1] and server.requests[-1]["n"] == 2
    assert answers.stop_reason is None


def refusing(*refused: str, status: int = 400, silent: bool = False) -> Any:
    """A server that refuses these parameters, or the system role; ``silent``: its error names none."""

    def script(request: dict[str, Any], number: int) -> Reply:
        sent = {*request, *(["system"] if request["messages"][0]["role"] == "system" else [])}
        for parameter in refused:
            if parameter in sent:
                return error(status, "bad request" if silent else f"Unsupported: '{parameter}' is not supported")
        return chat_completion(*["move"] * request.get("n", 1))

    return script


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("refused", ["temperature", "max_completion_tokens", "system"])
def test_refused_basic_option_is_left_out(
    refused: str, status: int, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(refusing(refused, status=status, silent=silent)) as server:
        answers = ask(server, rows=6, votes=2, concurrency=3, retries=0)
    assert np.isfinite(answers.probabilities).all() and answers.stop_reason is None
    last = server.requests[-1]
    assert refused not in last and "response_format" in last and last["n"] == 2
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 32
    if refused == "system":
        assert [message["role"] for message in last["messages"]] == ["user"]
        assert "one of: stay, move" in last["messages"][0]["content"] and "temp" in last["messages"][0]["content"]
    (note,) = answers.notes
    assert "the server does not offer" in note and ("the system role" if refused == "system" else refused) in note
    assert note in caplog.text
    assert answers.spending.calls <= 6 + 3 * (
        9 if silent else 1
    )  # the fallback is searched once, by the requests under way


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            Reply(
                {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted", "input": 0}]}, 422
            ),
            "body.temperature: Extra inputs are not permitted",
        ),
        (Reply("no temperature here", 400), "no temperature here"),
        (error(501, "temperature"), "501 - temperature"),
        (error(500, "temperature is not supported"), "temperature is not supported"),
        (Reply({"error": "unknown parameter temperature"}), "unknown parameter temperature"),
    ],
)
def test_refusal_in_any_form_is_noted_with_its_reason(reply: Reply, reason: str) -> None:
    with serving(lambda request, number: reply if "temperature" in request else chat_completion("move")) as server:
        answers = ask(server, rows=3, concurrency=1, retries=0)
    assert np.isfinite(answers.probabilities).all() and answers.spending.calls == 4
    assert reason in answers.notes[0] and "does not offer temperature" in answers.notes[0]


def test_unsupported_n_reported_as_server_error() -> None:
    fault = error(500, "Only one completion choice is allowed")
    with serving(lambda request, number: fault if request.get("n", 1) > 1 else chat_completion("move")) as server:
        answers = ask(server, rows=2, votes=2, concurrency=1, retries=0)
    assert np.isfinite(answers.probabilities).all() and "does not offer n:" in answers.notes[0]


def test_reply_without_choices_is_quoted() -> None:
    with serving(lambda request, number: Reply({"detail": "model not loaded"})) as server:
        answers = ask(server, rows=6, concurrency=1, retries=0)
    assert "model not loaded" in str(answers.stop_reason) and not answers.refused


def test_several_refused_options() -> None:
    with serving(refusing("temperature", "max_completion_tokens", "system", "response_format")) as server:
        answers = ask(server, rows=4, votes=1, concurrency=1, retries=0)
    assert np.isfinite(answers.probabilities).all()
    assert not {"temperature", "max_completion_tokens", "response_format"} & set(server.requests[-1])


def test_error_names_the_parameter_in_its_own_field() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        if "temperature" in request:
            return Reply({"error": {"message": "unsupported value", "param": "temperature"}}, 400)
        return chat_completion("move")

    with serving(script) as server:
        answers = ask(server, rows=2, concurrency=1, retries=0)
    assert answers.spending.calls == 3 and np.isfinite(answers.probabilities).all()


# --------------------------------------------------------------------------- failure reasons


def ending(reason: str | None = None, **message: Any) -> Any:
    """A script whose choices have this finish reason and these message fields."""

    def script(request: dict[str, Any], number: int) -> Reply:
        reply = chat_completion(*[None] * request.get("n", 1))
        for choice in reply.body["choices"]:
            choice["finish_reason"] = reason or "stop"
            choice["message"].update(message)
        return reply

    return script


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (ending("length", reasoning_content="let me think"), "cut off at `max_output_tokens: 32`"),
        (
            lambda request, number: Reply({"choices": None, "error": {"message": "Too Many Requests", "code": 429}}),
            "answered with an error: Too Many Requests",
        ),
        (lambda request, number: Reply({"error": "out of memory"}), "answered with an error: out of memory"),
        (ending("error"), "answered with an error"),
    ],
)
def test_server_failure_does_not_mark_rows(script: Any, message: str) -> None:
    with serving(script) as server:
        answers = ask(server, rows=8, concurrency=1, retries=0)
    assert message in str(answers.stop_reason) and not answers.refused and len(server.requests) == 5


def test_key_error_within_a_reply_stops_the_round() -> None:
    with serving(lambda request, number: Reply({"error": {"message": "no credit", "code": 402}})) as server:
        answers = ask(server, rows=8, concurrency=1)
    assert "no credit" in str(answers.stop_reason) and len(server.requests) == 1


def test_error_within_a_reply_is_retried() -> None:
    broken = Reply({"choices": None, "error": {"message": "overloaded", "code": "503"}})
    with serving(lambda request, number: broken if number == 0 else chat_completion("move")) as server:
        answers = ask(server, rows=1)
    assert np.isfinite(answers.probabilities).all() and answers.spending.calls == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (ending(refusal="I cannot help with that"), "refused: 'I cannot help with that'"),
        (ending("content_filter"), "content filter held the answer back"),
    ],
)
def test_refusal_of_one_row_is_kept_with_its_reason(script: Any, message: str) -> None:
    with serving(
        lambda request, number: script(request, number) if temp(request) == 1 else chat_completion("move")
    ) as server:
        answers = ask(server, rows=3)
    assert list(answers.refused) == [1] and message in answers.refused[1] and answers.stop_reason is None


def test_answer_cut_off_after_its_action_counts() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        reply = chat_completion("move")
        reply.body["choices"][0]["finish_reason"] = "length"
        return reply

    with serving(script) as server:
        assert np.isfinite(ask(server, rows=1).probabilities).all()


# --------------------------------------------------------------------------- a failing server

BROKEN = {
    "429": error(429, "slow down", Retry_After="0.2"),
    "500": error(500),
    "503": error(503),
    "cut in the middle": Reply(chat_completion("move").body, cut=True),
    "too slow": Reply(chat_completion("move").body, delay=1.0),
    "a byte now and then": Reply(chat_completion("move").body, drip=0.1),
    "malformed JSON": Reply('{"choices": [{"message": {"content": "mo'),
    "no JSON": Reply("<html>please wait</html>", headers={"Content-Type": "text/html"}),
    "no choices": Reply({"id": "x", "choices": []}),
    "another form": Reply({"choices": "move"}),
    "a list": Reply([1, 2]),
    "nothing": Reply(""),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_transient_failure_is_retried(reply: Reply) -> None:
    began = time.monotonic()
    with serving(lambda request, number: reply if number == 0 else chat_completion("move")) as server:
        answers = ask(server, timeout="0.5s")
    np.testing.assert_allclose(answers.probabilities, [[1 / 3, 2 / 3]])
    assert answers.spending.calls == 2
    if reply.status == 429:
        assert time.monotonic() - began >= 0.2  # never sooner than it asks


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_lasting_failure_stops_the_round(reply: Reply) -> None:
    reply = Reply(reply.body, reply.status, {}, reply.delay, reply.drip, reply.cut)  # without Retry-After
    with serving(lambda request, number: reply) as server:
        answers = ask(server, rows=20, timeout="0.3s", retries=1, concurrency=5)
    assert np.isnan(answers.probabilities).all() and not answers.refused
    assert "questions in a row failed, the last one: http://127.0.0.1:" in str(answers.stop_reason)
    assert 10 <= answers.spending.calls <= 20  # and not 40


def test_missing_server_stops_the_round() -> None:
    with serving(by_temp) as server:
        pass
    answers = ask(server, rows=9, retries=0, concurrency=1)
    assert answers.spending.calls == 5
    assert "APIConnectionError" in str(answers.stop_reason)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_rejected_client_asks_once(status: int) -> None:
    with serving(lambda request, number: error(status, "go away")) as server:
        answers = ask(server, rows=5, concurrency=1)
    assert len(server.requests) == 1
    assert "go away" in str(answers.stop_reason)


def test_separate_failures_do_not_stop_the_round() -> None:
    with serving(
        lambda request, number: [error(500), chat_completion("hm"), error(500), chat_completion("move")][number % 4]
    ) as server:
        answers = ask(server, rows=24, concurrency=1, retries=0)
    assert answers.stop_reason is None and len(server.requests) == 24


def test_long_retry_after_stops_the_round() -> None:
    with serving(lambda request, number: error(429, Retry_After="3600")) as server:
        answers = ask(server, rows=5, concurrency=1)
    assert len(server.requests) == 1
    assert "asks to come back in 3600 s" in str(answers.stop_reason)


def test_answers_before_a_failure_are_kept() -> None:
    with serving(lambda request, number: chat_completion("move") if number < 3 else error(500)) as server:
        answers = ask(server, rows=12, concurrency=1, retries=0)
    assert np.isfinite(answers.probabilities[:3]).all() and np.isnan(answers.probabilities[3:]).all()
    assert answers.spending.calls == 8 and answers.spending.rows == 8


# --------------------------------------------------------------------------- unusable answers


@pytest.mark.parametrize(
    "text", ["jump", "I think you should move.", '{"action": "jump"}', "{{{", "", "stay move", None]
)
def test_unusable_answer_is_refused_by_row(text: str | None) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return chat_completion(text if temp(request) == 1 else "move")

    with serving(script) as server:
        answers = ask(server, rows=3)
    assert list(answers.refused) == [1] and "no action" in answers.refused[1]
    assert np.isnan(answers.probabilities[:, 0]).tolist() == [False, True, False]
    assert len(server.requests) == 3  # no retry


def test_row_is_refused_if_most_votes_are_void() -> None:
    valid_majority, void_majority = ["move", "jump", "move"], ["jump", "jump", "move"]
    with serving(
        lambda request, number: chat_completion(*(valid_majority if temp(request) == 0 else void_majority))
    ) as server:
        answers = ask(server, rows=2, votes=3)
    np.testing.assert_allclose(answers.probabilities[0], [1 / 4, 3 / 4])
    assert "2 of 3 votes are void" in answers.refused[1]


# --------------------------------------------------------------------------- budget and key


def test_call_budget_includes_retries() -> None:
    with serving(lambda request, number: error(500) if number % 2 else chat_completion("move")) as server:
        answers = ask(server, rows=30, allowance=Allowance(calls=7), concurrency=3, retries=5)
    assert len(server.requests) == answers.spending.calls == 7
    assert answers.stop_reason == "the budget is reached"


def test_money_budget_is_never_exceeded() -> None:
    prices = {"price_per_million_input": 100.0, "price_per_million_output": 1000.0, "max_output_tokens": 5}
    with serving(lambda request, number: chat_completion("move", usage=(100, 5))) as server:
        spent = ask(server, rows=60, allowance=Allowance(money=0.3), concurrency=8, **prices)
    assert 0.2 < spent.spending.money <= 0.3
    assert spent.stop_reason == "the budget is reached"


def test_key_is_sent_and_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "very-secret-123")
    with serving(
        lambda request, number: error(401, "Incorrect API key very-secret-123, or sk-proj-abc***xyz")
    ) as server:
        answers = ask(server, key_variable="TOY_KEY")
    assert server.headers[0]["authorization"] == "Bearer very-secret-123"
    assert "secret" not in str(answers.stop_reason) and "sk-" not in str(answers.stop_reason)
    with serving(lambda request, number: chat_completion("very-secret-123")) as server:
        answers = ask(server, key_variable="TOY_KEY")
    assert "secret" not in answers.refused[0]


def test_missing_key_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(PartError, match=r"teachers\.llm: the environment variable TOY_KEY.* is not set"):
        endpoint(Server("http://127.0.0.1:9/v1"), key_variable="TOY_KEY")
