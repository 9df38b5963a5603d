"""Closed questions, answers and our own answers in each protocol, by known examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from stillhouse.gateway.protocols import PROTOCOLS
from stillhouse.gateway.protocols.closed import read_object
from stillhouse.gateway.protocols.sse import read_events
from stillhouse.gateway.protocols.systemone import SystemOne, choice_confidence, score_confidence
from stillhouse.gateway.questions import NO_TOOL, Answer, ClosedQuestion, LocalAnswer, Unrecognised
from tests.gateway.upstream import completion, stream_of

CHAT, RESPONSES, SYSTEM_ONE = (PROTOCOLS[path] for path in ("/v1/chat/completions", "/v1/responses", "/v1/systemone"))
MESSAGES = [{"role": "system", "content": "Route."}, {"role": "user", "content": "My card is gone"}]


def schema_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "description": f"do {name}"}
    if properties:
        function["parameters"] = schema_of(**properties)
    return {"type": "function", "function": function}


def chat_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


INTENT = {"type": "string", "enum": ["pay", "move"]}


def question(protocol: Any = CHAT, **request: Any) -> ClosedQuestion:
    base: dict[str, Any] = {"model": "m", "messages": MESSAGES} if protocol is CHAT else {"model": "m", "input": "Hi"}
    read = protocol.read_request(base | request)
    assert not isinstance(read, Unrecognised), read
    return read[0]


def reason(protocol: Any = CHAT, **request: Any) -> str:
    base: dict[str, Any] = {"model": "m", "messages": MESSAGES} if protocol is CHAT else {"model": "m", "input": "Hi"}
    read = protocol.read_request(base | request)
    assert isinstance(read, Unrecognised), read
    return read.reason


def answer(action: str, probs: Mapping[str, float] | None = None, task: str = "0123456789abcdef") -> LocalAnswer:
    return LocalAnswer(action, probs or {action: 1.0}, "router@7", "o.t", task)


def read_back(protocol: Any, asked: ClosedQuestion, action: str) -> Answer:
    """What is read from an answer of ours."""
    body = b"".join(protocol.write_answers([asked], [answer(action)]))
    (read,) = protocol.read_answers([asked], body, asked.streams)
    return read


# --------------------------------------------------------------------------- what is a closed question


@pytest.mark.parametrize(
    ("schema", "actions", "text"),
    [
        (schema_of(intent=INTENT), ("pay", "move"), '{"intent":"move"}'),
        (schema_of(v={"const": 1}, intent=INTENT), ("pay", "move"), '{"v":1,"intent":"move"}'),
        (
            schema_of(intent={"$ref": "#/$defs/Intent"}) | {"$defs": {"Intent": INTENT}},
            ("pay", "move"),
            '{"intent":"move"}',
        ),
        (schema_of(i={"anyOf": [{"const": "pay"}, {"const": "move"}]}), ("pay", "move"), '{"i":"move"}'),
        (schema_of(ok={"type": "boolean"}), ("true", "false"), '{"ok":false}'),
        (schema_of(n={"enum": [1, 2, None]}), ("1", "2", "null"), '{"n":2}'),
        ({"type": "string", "enum": ["é", "ü"]}, ("é", "ü"), '"ü"'),
    ],
)
def test_an_enum_is_a_closed_question(schema: Any, actions: tuple[str, ...], text: str) -> None:
    asked = question(**chat_format(schema))
    assert asked.actions == actions and asked.observation == "My card is gone"
    reply = asked.form.write(actions[1])
    assert reply.text == text and asked.form.read(reply) == actions[1]
    assert read_back(CHAT, asked, actions[1]).action == actions[1]


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (schema_of(text={"type": "string"}), "free schema"),
        (schema_of(intent=INTENT, why={"type": "string"}), "free schema"),
        (schema_of(a=INTENT, b=INTENT), "several choices"),
        (schema_of(intent={"enum": ["pay"]}), "one option"),
        (schema_of(intent=INTENT) | {"required": []}, "optional choice"),
        (schema_of(intent={"enum": ["1", 1]}), "free schema"),
        (schema_of(intent={"$ref": "#/$defs/Self"}) | {"$defs": {"Self": {"$ref": "#/$defs/Self"}}}, "free schema"),
        (schema_of(intent={"enum": [["a"], ["b"]]}), "free schema"),
        ({"type": "array"}, "free schema"),
        (None, "free schema"),
    ],
)
def test_a_schema_that_is_no_closed_question(schema: Any, why: str) -> None:
    assert reason(**chat_format(schema)) == why


def test_a_truth_value_is_not_the_number_one() -> None:
    content = read_object(schema_of(n={"enum": [1, 2]}))
    assert not isinstance(content, str)
    assert (
        content.read('{"n": 1}') == "1" and content.read('{"n": true}') is None and content.read('{"n": 1.0}') is None
    )


def test_tools_without_arguments_can_be_called_locally_and_others_cannot() -> None:
    asked = question(tools=[tool("pay"), tool("search", query={"type": "string"})], tool_choice="required")
    assert asked.actions == ("pay", "search")
    assert asked.allows("pay") and not asked.allows("search") and not asked.allows("unknown")
    assert asked.form.write("pay").calls == (("pay", "{}"),)


def test_a_free_choice_of_tools_has_the_action_to_call_none_which_goes_upstream() -> None:
    asked = question(tools=[tool("pay"), tool("move")])
    assert asked.actions == ("pay", "move", NO_TOOL) and not asked.allows(NO_TOOL)
    (talked,) = CHAT.read_answers([asked], json.dumps(completion("Hello!")).encode(), False)
    assert talked.action == NO_TOOL
    calls = [{"id": "c", "type": "function", "function": {"name": "move", "arguments": "{}"}}]
    (called,) = CHAT.read_answers([asked], json.dumps(completion(None, tool_calls=calls)).encode(), False)
    assert called.action == "move"
    (both,) = CHAT.read_answers([asked], json.dumps(completion(None, tool_calls=calls * 2)).encode(), False)
    assert both.action is None


def test_the_only_tool_with_an_enum_is_a_choice_of_its_argument() -> None:
    choice = {"type": "function", "function": {"name": "classify"}}
    asked = question(tools=[tool("classify", intent=INTENT), tool("other")], tool_choice=choice)
    assert asked.actions == ("pay", "move") and asked.allows("move")
    assert asked.form.write("move").calls == (("classify", '{"intent":"move"}'),)
    assert read_back(CHAT, asked, "move").action == "move"
    body = json.loads(CHAT.write_answers([asked], [answer("move")])[0])
    assert body["choices"][0]["finish_reason"] == "stop", "as OpenAI ends a call that the request names"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools that are no functions"),
        ({"tools": [tool("a")], "tool_choice": "required"}, "one option"),
        ({"tools": [tool("a", q={"type": "string"})], "tool_choice": "required"}, "free arguments"),
        ({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [tool("a")], **chat_format(schema_of(i=INTENT))}, "tools and response_format"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"model": 3}, "malformed"),
        ({"messages": []}, "malformed"),
        ({"max_tokens": 500}, "free text"),
    ],
)
def test_other_requests_that_are_no_closed_question(more: dict[str, Any], why: str) -> None:
    assert reason(**more) == why


def test_only_the_last_text_of_the_user_varies() -> None:
    parts = [{"type": "text", "text": "Instructions"}, {"type": "text", "text": "Case 1"}]
    asked = question(messages=[{"role": "user", "content": parts}], max_tokens=3)
    assert asked.observation == "Case 1"
    assert asked.constant["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Instructions"}, {"type": "text", "text": None}]}
    ]


def test_log_probabilities_and_stored_answers_go_upstream() -> None:
    assert question(max_tokens=3, logprobs=True).upstream_only == "logprobs"
    assert question(max_tokens=3, store=True).upstream_only == "store"
    assert question(max_tokens=3).upstream_only is None


def test_choices_of_vllm_are_labels() -> None:
    asked = question(guided_choice=["pay", "move"])
    assert asked.actions == ("pay", "move") and asked.form.write("pay").text == "pay"
    assert question(structured_outputs={"choice": ["a", "b"]}).actions == ("a", "b")


# --------------------------------------------------------------------------- the upstream's answers


def test_probabilities_are_read_from_log_probabilities() -> None:
    asked = question(guided_choice=["pay", "move"], logprobs=True)
    content = completion("pay")
    content["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": "pay",
                "logprob": -0.2231435513,
                "top_logprobs": [
                    {"token": "pay", "logprob": -0.2231435513},
                    {"token": "move", "logprob": -1.6094379124},
                ],
            }
        ]
    }
    (read,) = CHAT.read_answers([asked], json.dumps(content).encode(), False)
    assert (
        read.probs is not None and read.probs["pay"] == pytest.approx(0.8) and read.probs["move"] == pytest.approx(0.2)
    )


def test_a_stream_is_read_like_a_whole_answer() -> None:
    asked = question(**chat_format(schema_of(intent=INTENT)))
    (read,) = CHAT.read_answers([asked], b"".join(stream_of('{"intent"', ': "pay"}')), True)
    assert (read.action, read.model, read.fingerprint, read.input_tokens) == ("pay", "m-1", "fp_1", 20)
    with pytest.raises(ValueError, match="not complete"):
        CHAT.read_answers([asked], b"".join(stream_of("x")[:-1]), True)
    with pytest.raises(ValueError, match="error"):
        CHAT.read_answers([asked], b'data: {"error": {}}\n\ndata: [DONE]\n\n', True)


def test_an_answer_that_was_cut_by_its_limit_is_not_read() -> None:
    content = completion("pay")
    content["choices"][0]["finish_reason"] = "length"
    (read,) = CHAT.read_answers([question(max_tokens=3)], json.dumps(content).encode(), False)
    assert read.action is None and read.reason == "not finished"


# --------------------------------------------------------------------------- responses


def test_the_responses_protocol_reads_and_writes_the_same_questions() -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema_of(intent=INTENT)}}
    asked = question(RESPONSES, text=text, instructions="Route.", input=[{"role": "user", "content": "Hi"}])
    assert asked.observation == "Hi" and asked.constant["instructions"] == "Route."
    assert read_back(RESPONSES, asked, "move").action == "move"
    streamed = question(RESPONSES, text=text, stream=True)
    assert read_back(RESPONSES, streamed, "pay").action == "pay"
    tools = [{"type": "function", "name": name, "parameters": schema_of()} for name in ("pay", "move")]
    for stream in (False, True):
        called = question(RESPONSES, tools=tools, tool_choice="required", stream=stream)
        assert called.actions == ("pay", "move") and read_back(RESPONSES, called, "move").action == "move"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "history"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images or files"),
        ({"tools": [{"type": "web_search"}]}, "tools that are no functions"),
        ({}, "free text"),
    ],
)
def test_responses_that_are_no_closed_question(more: dict[str, Any], why: str) -> None:
    assert reason(RESPONSES, **more) == why


def test_events_of_a_streamed_response_are_numbered_and_typed() -> None:
    asked = question(RESPONSES, max_output_tokens=16, stream=True)
    parts = RESPONSES.write_answers([asked], [answer("pay")])
    events = [json.loads(data) for data in read_events(b"".join(parts))]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.completed"
    assert [part.split(b"\n")[0].decode() for part in parts] == [f"event: {event['type']}" for event in events]


# --------------------------------------------------------------------------- System One

CHOICE = {"type": "choice", "instructions": "Team?", "criteria": {"Billing": None, "Technical": "Bugs"}}
NOUL = {"type": "noul", "instructions": "Refund?"}
SCORE = {"type": "score", "instructions": "Angry?", "criteria": ["Calm", "Cross", {"label": "Furious"}]}


def test_each_question_is_a_task_of_its_own_whatever_its_id_and_neighbours() -> None:
    one = SYSTEM_ONE.read_request({"model": "m", "state": "x", "questions": {"a": CHOICE, "b": NOUL, "c": SCORE}})
    two = SYSTEM_ONE.read_request({"model": "m", "state": {"y": 1}, "questions": {"z": CHOICE}, "x_trace": "t"})
    assert not isinstance(one, Unrecognised) and not isinstance(two, Unrecognised)
    assert [asked.actions for asked in one] == [("Billing", "Technical"), ("true", "false"), ("0", "1", "2")]
    assert two[0].constant == one[0].constant and two[0].observation == '{"y": 1}'


@pytest.mark.parametrize(
    "broken",
    [
        {"questions": {}},
        {"state": None},
        {"questions": {"q": {"type": "boolean"}}},
        {"questions": {"q": {"type": "choice", "criteria": {"one": None}}}},
        {"questions": {"q": {"type": "choice", "criteria": {str(n): None for n in range(256)}}}},
        {"questions": {"q": {"type": "score", "criteria": {"0": "a", "1": "b"}}}},
        {"questions": {"q": {"type": "score", "criteria": ["a", None]}}},
        {"questions": {"q": {"type": "noul", "criteria": {"maybe": "x"}}}},
        {"questions": {"q": NOUL}, "media": [{"type": "image"}]},
        {"questions": {"q": NOUL | {"extra": 1}}},
    ],
)
def test_what_system_one_does_not_define_goes_upstream(broken: dict[str, Any]) -> None:
    assert isinstance(
        SystemOne().read_request({"model": "m", "state": "x", "questions": {"q": NOUL}} | broken), Unrecognised
    )


def test_typed_answers_are_read_and_written() -> None:
    asked = SYSTEM_ONE.read_request({"model": "m", "state": "x", "questions": {"a": CHOICE, "b": NOUL, "c": SCORE}})
    assert not isinstance(asked, Unrecognised)
    ours = [
        answer("Technical", {"Billing": 0.1, "Technical": 0.9}),
        answer("false", {"true": 0.25, "false": 0.75}),
        answer("1", {"0": 0.25, "1": 0.5, "2": 0.25}),
    ]
    (body,) = SYSTEM_ONE.write_answers(asked, ours)
    content = json.loads(body)
    a, b, c = (content["answers"][name] for name in "abc")
    assert (a["choice"], a["probabilities"], a["confidence"]) == (
        "Technical",
        {"Billing": 0.1, "Technical": 0.9},
        pytest.approx(0.8),
    )
    assert b["noul"] == 0.25
    assert (c["score"], c["legend"]) == (1.0, {"0": "Calm", "1": "Cross", "2": {"label": "Furious"}})
    assert c["confidence"] == pytest.approx(1 - 0.5 / (2 / 3))
    assert content["usage"] == {"input_tokens": 0, "output_tokens": 0}
    allowed = {"type", "choice", "noul", "score", "legend", "probabilities", "confidence"}
    for part in (a, b, c):
        assert all(key in allowed or key.startswith("x_") for key in part)
    assert all(key in ("model", "answers", "usage") or key.startswith("x_") for key in content)
    read = SYSTEM_ONE.read_answers(asked, body, False)
    assert [part.action for part in read] == ["Technical", "false", "1"]


def test_reference_formulas_of_confidence() -> None:
    assert choice_confidence([0.7, 0.2, 0.1]) == pytest.approx((0.7 - 1 / 3) / (2 / 3))
    assert score_confidence([1 / 3, 1 / 3, 1 / 3]) == pytest.approx(max(0.0, 1 - 1.0 / (2 / 3)))


def test_probabilities_of_other_options_are_not_read() -> None:
    (asked,) = SYSTEM_ONE.read_request({"model": "m", "state": "x", "questions": {"a": CHOICE}})  # type: ignore[misc]
    for probs in ({"Billing": 1.0}, {"Billing": 0.5, "Technical": 2}, {"Billing": 0.0, "Technical": 0.0}):
        body = json.dumps({"answers": {"a": {"type": "choice", "probabilities": probs}}}).encode()
        (read,) = SYSTEM_ONE.read_answers([asked], body, False)
        assert read.action is None and read.reason == "none of the actions"


def test_no_field_of_a_system_one_request_takes_the_place_of_its_question() -> None:
    """Otherwise the answer to another question would be recorded as that of a known task."""
    asked = {"instructions": "Is it angry?", "type": "noul"}
    other = {"instructions": "Is it calm?", "type": "noul"}
    protocol = PROTOCOLS["/v1/systemone"]
    read = protocol.read_request({"model": "m", "state": "s", "question": asked, "questions": {"q": other}})
    assert isinstance(read, Unrecognised)
    for questions in ({"a": asked, "b": asked}, {str(n): asked | {"instructions": str(n)} for n in range(101)}):
        assert isinstance(protocol.read_request({"model": "m", "state": "s", "questions": questions}), Unrecognised)
