"""Spans of OpenTelemetry: every form of the messages gives the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.call_logs.otel import read_record
from tests.call_logs.logs_for_tests import (
    BEGIN,
    INTENTS,
    SENTENCES,
    SYSTEM,
    base_of,
    event,
    intents_agent,
    otlp,
    pairs,
    parts,
    records,
    span,
    write,
)
from tests.call_logs.test_openai import counted, observations, own_home, reasons, run

__all__ = ["own_home"]  # a fixture of every test here


def newest(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(
        number,
        {
            "gen_ai.input.messages": [parts("system", SYSTEM), parts("user", text)],
            "gen_ai.output.messages": [parts("assistant", intent, finish_reason="stop")],
        },
    )


def newest_as_json(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(
        number,
        {
            "gen_ai.system_instructions": json.dumps([{"type": "text", "content": SYSTEM}]),
            "gen_ai.input.messages": json.dumps([parts("user", text)]),
            "gen_ai.output.messages": json.dumps([parts("assistant", intent, finish_reason="stop")]),
        },
    )


def newest_in_an_event(number: int, text: str, intent: str) -> dict[str, Any]:
    attributes = {
        "gen_ai__input__messages": [parts("user", text)],
        "gen_ai__output__messages": [parts("assistant", intent, finish_reason="stop")],
    }
    return span(number, {}, [event("gen_ai.client.inference.operation.details", **attributes)])


def tool(number: int, text: str, intent: str) -> dict[str, Any]:
    call = {"type": "tool_call", "id": "c", "name": intent, "arguments": {}}
    thought = {"type": "reasoning", "content": "hm"}
    answer = {"role": "assistant", "parts": [thought, call], "finish_reason": "tool_call"}
    return span(number, {"gen_ai.input.messages": [parts("user", text)], "gen_ai.output.messages": [answer]})


def events(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(
        number,
        {},
        [
            event("gen_ai.system.message", content=SYSTEM),
            event("gen_ai.user.message", content=text),
            event("gen_ai.choice", index=0, finish_reason="stop", message={"role": "assistant", "content": intent}),
        ],
    )


def events_as_json(number: int, text: str, intent: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": intent}}
    return span(
        number,
        {},
        [
            event("gen_ai.user.message", gen_ai__event__content=json.dumps({"content": text})),
            event("gen_ai.choice", gen_ai__event__content=json.dumps(choice)),
        ],
    )


def oldest(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(
        number,
        {},
        [
            event("gen_ai.content.prompt", gen_ai__prompt=json.dumps([{"role": "user", "content": text}])),
            event(
                "gen_ai.content.completion", gen_ai__completion=json.dumps([{"role": "assistant", "content": intent}])
            ),
        ],
    )


def numbered(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(
        number,
        {
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": SYSTEM,
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": text,
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": intent,
            "gen_ai.completion.0.finish_reason": "stop",
        },
    )


def plain(number: int, text: str, intent: str) -> dict[str, Any]:
    return span(number, {"gen_ai.prompt": text, "gen_ai.completion": intent})


FORMS = [newest, newest_as_json, newest_in_an_event, tool, events, events_as_json, oldest, numbered, plain]


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__ for form in FORMS])
def test_every_form_gives_the_same_rows(tmp_path: Path, form: Any) -> None:
    base = base_of(intents_agent(), tmp_path)
    spans = [form(number, *pair) for number, pair in enumerate(zip(SENTENCES, INTENTS, strict=True))]
    summary = run(base, write(tmp_path / "spans.jsonl", [otlp(*spans[:3]), otlp(spans[3])]), kind="otel")
    assert counted(summary) == {"rows": 4, "added": 4, "decisions": 4, "answers": 4}, reasons(summary)
    rows = observations(base)
    assert rows["said"].tolist() == SENTENCES
    assert rows["observed_at"].astype("int64").tolist() == [(BEGIN + 60 * number) * 10**6 for number in range(4)]
    assert base.read("decisions")["action"].tolist() == INTENTS
    again = run(base, write(tmp_path / "log.jsonl", records()))  # the same calls, logged by a proxy
    assert counted(again) == {"rows": 4, "duplicates": 4}


def test_mapping_attributes_and_numbers_as_texts_are_read() -> None:
    message = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    stated = {"gen_ai.input.messages": message, "gen_ai.request.model": "gpt", "gen_ai.request.choice.count": 1}
    record = {
        "resource_spans": [{"scope_spans": [{"spans": [{"attributes": stated, "start_time_unix_nano": 10**18}]}]}]
    }
    (call,) = read_record(1, record)
    assert call.models == ("gpt", "") and call.time == 1e9 and call.parameters == {"n": 1}  # type: ignore[union-attr]


def test_event_of_a_whole_call_is_a_call(tmp_path: Path) -> None:
    attributes = {
        "gen_ai.request.model": "gpt",
        "gen_ai.input.messages": [parts("user", "book it")],
        "gen_ai.output.messages": [parts("assistant", "book", finish_reason="stop")],
    }
    log = {
        "eventName": "gen_ai.client.inference.operation.details",
        "timeUnixNano": str(BEGIN * 10**9),
        "traceId": "a",
        "spanId": "b",
        "attributes": pairs(attributes),
    }
    other = {"eventName": "gen_ai.user.message", "attributes": []}
    record = {"resourceLogs": [{"scopeLogs": [{"logRecords": [log, other, {"body": {"stringValue": "x"}}]}]}]}
    base = base_of(intents_agent(), tmp_path)
    summary = run(base, write(tmp_path / "logs.jsonl", [record]), kind="otel")
    assert summary.added == 1 and observations(base)["observation_id"].tolist() == ["a:b"]
    assert reasons(summary) == {
        "its messages are log records of their own: let the instrumentation write them to spans": 1,
        "it is no call of a model": 1,
    }


IMAGE = {"role": "user", "parts": [{"type": "blob", "modality": "image", "content": "…"}]}
LEFT_OUT: list[tuple[Any, str]] = [
    (otlp(span(1, {}) | {"attributes": pairs({"http.method": "GET"})}), "it is no call of a model"),
    (otlp(span(1, {"gen_ai.operation.name": "embeddings"})), "it is no chat, but 'embeddings'"),
    (otlp(span(1, {})), "it holds no messages: the instrumentation must record their content"),
    (otlp(span(1, {"gen_ai.prompt": "x", "error.type": "timeout"})), "the call failed"),
    (otlp(span(1, {"gen_ai.prompt": "x"}, status={"code": 2})), "the call failed"),
    (otlp(span(1, {"gen_ai.prompt": "x"})), "it has no response with an answer"),
    (
        otlp(span(1, {"gen_ai.input.messages": [IMAGE], "gen_ai.output.messages": [parts("a", "book")]})),
        "more than text",
    ),
    (
        otlp(
            span(
                1,
                {
                    "gen_ai.input.messages": [parts("user", "a"), parts("assistant", "b"), parts("user", "c")],
                    "gen_ai.output.messages": [parts("assistant", "book")],
                },
            )
        ),
        "it has a history of answers",
    ),
    (
        otlp(span(1, {"gen_ai.prompt": "x", "gen_ai.completion": "book", "gen_ai.request.choice.count": 2})),
        "it asks for several answers",
    ),
    (otlp(span(1, {"gen_ai.prompt": "x", "gen_ai.completion": "book"}, startTimeUnixNano="0")), "it has no time"),
    ({"resourceMetrics": []}, "it holds neither spans nor log records of OTLP"),
]


@pytest.mark.parametrize(("record", "reason"), LEFT_OUT, ids=[reason for _, reason in LEFT_OUT])
def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    base = base_of(intents_agent(), tmp_path)
    path = write(tmp_path / "spans.jsonl", [otlp(newest(0, "book it", "book")), record])
    summary = run(base, path, kind="otel")
    assert counted(summary) == {"rows": 2, "added": 1, "decisions": 1, "answers": 1}
    ((stated, skipped),) = summary.skipped.items()
    assert reason in stated and skipped.first.line == 2
