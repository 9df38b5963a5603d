"""Spans of OpenTelemetry with the semantic conventions ``gen_ai``, as JSON lines of OTLP (one export request a line).

Three forms of the messages are read. The newest (1.37 and later) has ``gen_ai.input.messages`` and
``gen_ai.output.messages`` with parts, as attributes of the span or of the event
``gen_ai.client.inference.operation.details``. Before, each message was an event of the span (``gen_ai.user.message``,
``gen_ai.choice``, …). The oldest has ``gen_ai.prompt`` and ``gen_ai.completion``, as one text of JSON or one attribute
for each message (``gen_ai.prompt.0.content``), at the span or its events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stillhouse.call_logs.calls import Call, Unusable, as_list, as_mapping, decoded, text_of_parts

__all__ = ["read_record"]

_CHAT_OPERATIONS = {"chat", "text_completion", "generate_content", ""}
_DETAILS_EVENT = "gen_ai.client.inference.operation.details"
_ROLE_EVENTS = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_NUMBERED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(\w+)")
_FINISHED = {"tool_call": "tool_calls"}


def read_record(line: int, record: Mapping[str, Any]) -> Iterator[Call | Unusable]:
    """The calls of one line: of its spans, and of its log records that hold a whole call."""
    spans = [
        span
        for resource in as_list(record.get("resourceSpans", record.get("resource_spans")))
        for scope in as_list(as_mapping(resource).get("scopeSpans", as_mapping(resource).get("scope_spans")))
        for span in as_list(as_mapping(scope).get("spans"))
    ]
    logs = [
        log
        for resource in as_list(record.get("resourceLogs", record.get("resource_logs")))
        for scope in as_list(as_mapping(resource).get("scopeLogs", as_mapping(resource).get("scope_logs")))
        for log in as_list(as_mapping(scope).get("logRecords", as_mapping(scope).get("log_records")))
    ]
    if not spans and not logs:
        yield Unusable(line, "it holds neither spans nor log records of OTLP")
    for span in map(as_mapping, spans):
        yield _read_span(line, span)
    for log in map(as_mapping, logs):
        name = log.get("eventName", log.get("event_name", _attributes(log).get("event.name")))
        if name == _DETAILS_EVENT:
            time = log.get("timeUnixNano") or log.get("observedTimeUnixNano")
            yield _make_call(line, _attributes(log), log, time, [])
        elif str(name).startswith("gen_ai."):
            yield Unusable(
                line, "its messages are log records of their own: let the instrumentation write them to spans"
            )
        else:
            yield Unusable(line, "it is no call of a model")


def _read_span(line: int, span: Mapping[str, Any]) -> Call | Unusable:
    attributes = _attributes(span)
    if not any(key.startswith("gen_ai.") for key in attributes):
        return Unusable(line, "it is no call of a model")
    if str(attributes.get("gen_ai.operation.name", "")) not in _CHAT_OPERATIONS:
        return Unusable(line, f"it is no chat, but {attributes['gen_ai.operation.name']!r}")
    events = [as_mapping(event) for event in as_list(span.get("events"))]
    for event in events:  # of the newest form, or of the oldest
        if event.get("name") in (_DETAILS_EVENT, "gen_ai.content.prompt", "gen_ai.content.completion"):
            attributes |= _attributes(event)
    time = span.get("startTimeUnixNano", span.get("start_time_unix_nano"))
    return _make_call(line, attributes, span, time, events)


def _make_call(
    line: int,
    attributes: Mapping[str, Any],
    span: Mapping[str, Any],
    time: Any,
    events: Sequence[Mapping[str, Any]],
) -> Call | Unusable:
    messages = [_from_parts(message) for message in as_list(attributes.get("gen_ai.input.messages"))]
    choices = [_choice(message) for message in as_list(attributes.get("gen_ai.output.messages"))]
    if instructions := decoded(attributes.get("gen_ai.system_instructions")):
        messages = [{"role": "system", "content": instructions}, *messages]
    if not messages:
        messages, choices = _from_events(events)
    if not messages:
        messages, choices = _from_prompt(attributes)
    if not messages:
        return Unusable(line, "it holds no messages: the instrumentation must record their content")
    status = as_mapping(span.get("status")).get("code")
    error = "the call failed" if status in (2, "STATUS_CODE_ERROR") or attributes.get("error.type") else ""
    span_id = span.get("spanId", span.get("span_id"))
    response_id = attributes.get("gen_ai.response.id")
    parameters = {
        "tools": decoded(attributes.get("gen_ai.tool.definitions")),
        "n": attributes.get("gen_ai.request.choice.count"),
        "response_format": attributes.get("gen_ai.output.type"),
    }
    return Call(
        line,
        call_id=str(response_id or f"{span.get('traceId', span.get('trace_id', ''))}:{span_id}"),
        time=int(time) / 1e9 if str(time).isdigit() and int(time) else None,
        messages=messages,
        parameters={key: value for key, value in parameters.items() if value is not None},
        models=(str(attributes.get("gen_ai.request.model", "")), str(attributes.get("gen_ai.response.model", ""))),
        fingerprint=str(
            attributes.get("openai.response.system_fingerprint")
            or attributes.get("gen_ai.openai.response.system_fingerprint")
            or ""
        ),
        choices=choices,
        error=error or ("" if choices else "it has no response with an answer"),
    )


def _from_parts(message: Any) -> dict[str, Any]:
    """A message with parts, in the form of a chat completion."""
    message = as_mapping(message)
    parts = [as_mapping(part) for part in as_list(message.get("parts"))]
    calls = [
        {"function": {"name": part.get("name"), "arguments": part.get("arguments")}}
        for part in parts
        if part.get("type") == "tool_call"
    ]
    texts = [part for part in parts if part.get("type") not in ("tool_call", "reasoning")]
    content = message.get("content") if "parts" not in message else text_of_parts(texts) if texts else None
    if texts and content is None:
        content = texts  # parts that are no texts: they are recognised later
    return {"role": message.get("role"), "content": content, "tool_calls": calls}


def _choice(message: Any) -> dict[str, Any]:
    reason = as_mapping(message).get("finish_reason", "stop")
    return {"message": _from_parts(message), "finish_reason": _FINISHED.get(str(reason), reason)}


def _from_events(events: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Messages and choices of a span that has an event for each of them."""
    messages, choices = list[Any](), list[Any]()
    for event in events:
        name, attributes = str(event.get("name")), _attributes(event)
        body = as_mapping(attributes.get("gen_ai.event.content")) or attributes
        if name in _ROLE_EVENTS:
            messages.append({"role": _ROLE_EVENTS[name]} | {key: decoded_content(body, key) for key in body})
        elif name == "gen_ai.choice":
            message = as_mapping(body.get("message")) or body
            choices.append(
                {
                    "message": {
                        "content": message.get("content"),
                        "tool_calls": as_list(message.get("tool_calls", body.get("tool_calls"))),
                    },
                    "finish_reason": body.get("finish_reason", "stop"),
                }
            )
    return messages, choices


def decoded_content(body: Mapping[str, Any], key: str) -> Any:
    """A value of an event's body; lists of parts may be written as texts of JSON.

    >>> decoded_content({"content": "[1]"}, "content"), decoded_content({"content": "hi"}, "content")
    ('[1]', 'hi')
    """
    value = body[key]
    parts = decoded(value)
    is_parts = isinstance(parts, list) and all(isinstance(part, Mapping) and "type" in part for part in parts) and parts
    return parts if is_parts else value


def _from_prompt(attributes: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Messages and choices of ``gen_ai.prompt`` and ``gen_ai.completion``."""
    numbered: dict[str, dict[int, dict[str, Any]]] = {"prompt": {}, "completion": {}}
    for key, value in attributes.items():
        if match := _NUMBERED.fullmatch(key):
            numbered[match[1]].setdefault(int(match[2]), {})[match[3]] = value
    messages: list[Any] = [message for _, message in sorted(numbered["prompt"].items())]
    answers: list[Any] = [message for _, message in sorted(numbered["completion"].items())]
    messages = messages or _messages(attributes.get("gen_ai.prompt"), "user")
    answers = answers or _messages(attributes.get("gen_ai.completion"), "assistant")
    choices = [
        answer if "message" in answer else {"message": answer, "finish_reason": answer.get("finish_reason", "stop")}
        for answer in answers
    ]
    return messages, choices


def _messages(value: Any, role: str) -> list[Any]:
    """Messages of a text of JSON; a text that is none is one message."""
    stated = decoded(value)
    if isinstance(stated, Mapping):
        stated = stated.get("messages", stated.get("choices", [stated]))
    if isinstance(stated, list):
        return [as_mapping(message) for message in stated]
    return [{"role": role, "content": stated}] if isinstance(stated, str) and stated else []


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a span, an event or a log record as a mapping; a mapping is accepted as it is."""
    stated = holder.get("attributes")
    if isinstance(stated, Mapping):
        return dict(stated)
    pairs = [as_mapping(pair) for pair in as_list(stated)]
    return {str(pair.get("key")): _value(pair.get("value")) for pair in pairs}


def _value(stated: Any) -> Any:
    """A value of OTLP: ``{"stringValue": …}``, ``{"arrayValue": {"values": […]}}``, ``{"kvlistValue": …}``."""
    if not isinstance(stated, Mapping) or len(stated) != 1:
        return stated
    ((kind, value),) = stated.items()
    kind = str(kind).replace("_", "").lower()
    if kind == "arrayvalue":
        return [_value(item) for item in as_list(as_mapping(value).get("values"))]
    if kind == "kvlistvalue":
        pairs = [as_mapping(pair) for pair in as_list(as_mapping(value).get("values"))]
        return {str(pair.get("key")): _value(pair.get("value")) for pair in pairs}
    return int(value) if kind == "intvalue" else value
