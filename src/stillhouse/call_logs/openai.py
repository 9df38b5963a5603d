"""JSON lines of requests and responses of the OpenAI protocol: chat completions, and the Responses API.

A line is ``{"request": {…}, "response": {…}, "created": …}``, as proxies write it. ``request`` and ``response`` are the
bodies, as objects or as texts of JSON; a body may lie below the key ``body``. Instead of ``request`` its keys may lie
beside ``response``. The time is ``created``, ``created_at``, ``timestamp`` or ``time`` of the line, else that of the
response. ``outcome`` and ``known_at`` of the line, if there are any, are the true action and when it became known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stillhouse.call_logs.calls import Call, Outcome, Unusable, as_list, as_mapping, text_of_parts

__all__ = ["make_call", "read_record"]

_TIME_KEYS = ("created", "created_at", "timestamp", "time", "start_time", "startTime")
_NO_PARAMETERS = {"messages", "input", "instructions", "model", "response"}


def read_record(line: int, record: Mapping[str, Any]) -> Iterator[Call | Unusable]:
    """The call of one line."""
    request = _body(record.get("request")) or {key: value for key, value in record.items() if key != "response"}
    response = _body(record.get("response"))
    if "messages" not in request and "input" not in request:
        yield Unusable(line, "it has no request with `messages` or `input`")
        return
    outcome = None
    if record.get("outcome") is not None:
        outcome = Outcome(record["outcome"], record.get("known_at"))
    time = next((record[key] for key in _TIME_KEYS if record.get(key) is not None), None)
    call_id = record.get("id") if isinstance(record.get("id"), str) else None
    status = as_mapping(record.get("response")).get("status_code", record.get("status", 200))
    error = f"the server answered {status}" if isinstance(status, int) and status >= 400 else ""
    yield make_call(line, request, response, time=time, call_id=call_id, outcome=outcome, error=error)


def make_call(
    line: int,
    request: Mapping[str, Any],
    response: Mapping[str, Any],
    *,
    time: Any = None,
    call_id: str | None = None,
    outcome: Outcome | None = None,
    error: str = "",
) -> Call:
    """A call from the bodies of its request and response.

    :param time: None: that of the response.
    :param call_id: used if the response has no id.
    """
    messages, choices = as_list(request.get("messages")), as_list(response.get("choices"))
    if not messages and "input" in request:
        messages, choices = _input_messages(request), _output_choices(response)
    if not error and response.get("error"):
        error = "the response is an error"
    elif not error and not choices:
        error = "it has no response with an answer"
    return Call(
        line,
        call_id=response["id"] if isinstance(response.get("id"), str) and response["id"] else call_id,
        time=time if time is not None else response.get("created", response.get("created_at")),
        messages=messages,
        parameters={key: value for key, value in request.items() if key not in _NO_PARAMETERS},
        models=(str(request.get("model") or ""), str(response.get("model") or "")),
        fingerprint=str(response.get("system_fingerprint") or ""),
        choices=choices,
        error=error,
        outcome=outcome,
    )


def _body(value: Any) -> Mapping[str, Any]:
    """The body of a request or a response, which may lie below the key ``body``."""
    mapping = as_mapping(value)
    return as_mapping(mapping["body"]) if "body" in mapping else mapping


def _input_messages(request: Mapping[str, Any]) -> list[Any]:
    """The messages of a request to the Responses API."""
    stated = request["input"]
    items = [{"role": "user", "content": stated}] if isinstance(stated, str) else as_list(stated)
    instructions = request.get("instructions")
    return [*([{"role": "system", "content": instructions}] if instructions else []), *items]


def _output_choices(response: Mapping[str, Any]) -> list[Any]:
    """The output of the Responses API as one choice; empty if it holds no answer."""
    texts, calls = list[str](), list[Any]()
    for item in as_list(response.get("output")):
        kind = as_mapping(item).get("type")
        if kind == "message":
            texts.append(text_of_parts(item.get("content")) or "")
        elif kind == "function_call":
            calls.append({"function": {"name": item.get("name"), "arguments": item.get("arguments")}})
    if not texts and not calls:
        return []
    status = response.get("status", "completed")
    message = {"role": "assistant", "content": "".join(texts) or None, "tool_calls": calls}
    return [{"message": message, "finish_reason": "stop" if status == "completed" else "length"}]
