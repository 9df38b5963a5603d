"""A scripted upstream that answers like a language model: whole or as a stream, in text, JSON and calls of tools.

It is written by the two protocols of OpenAI and shares no code with the door, so that a client that can read it and a
local answer alike reads both as what they claim to be.
"""

from __future__ import annotations

import json
from typing import Any

from tests.gateway.upstream import Answer, Request, Writer, chunked, whole

Json = dict[str, Any]


def language_model(action: str = "move") -> Answer:
    """An upstream that chooses ``action`` wherever it can, and says what a tool returned."""

    async def answer(request: Request, writer: Writer) -> None:
        body = request.json
        is_chat = request.target == "/v1/chat/completions"
        text, calls = _chat_reply(body, action) if is_chat else _responses_reply(body, action)
        if is_chat:
            said = chunked(*_chat_stream(body, text, calls)) if body.get("stream") else whole(_completion(text, calls))
        else:
            response = _response(body, text, calls)
            said = chunked(*_response_stream(response)) if body.get("stream") else whole(response)
        await said(request, writer)

    return answer


def _choose(action: str, schema: Json | None, functions: list[Json], is_label: bool) -> tuple[str | None, list[Json]]:
    """Text and calls: an enum in JSON, a call, a label or a sentence."""
    if functions:
        for function in functions:
            if "intent" in (function.get("parameters") or {}).get("properties", {}):
                return None, [
                    {"name": function["name"], "arguments": json.dumps({"intent": action}, separators=(",", ":"))}
                ]
        name = next(function["name"] for function in functions if action in function["name"])
        return None, [{"name": name, "arguments": "{}"}]
    if schema is not None:
        return json.dumps({"intent": action}, separators=(",", ":")), []
    return action if is_label else f"I {action}, and that is all.", []


def _chat_reply(body: Json, action: str) -> tuple[str | None, list[Json]]:
    last = body["messages"][-1]
    if last["role"] == "tool":
        return f"Done: {last['content']}", []
    described = (body.get("response_format") or {}).get("json_schema")
    functions = [tool["function"] for tool in body.get("tools") or ()]
    return _choose(action, described, functions, bool(body.get("max_tokens") or body.get("max_completion_tokens")))


def _responses_reply(body: Json, action: str) -> tuple[str | None, list[Json]]:
    items = body["input"]
    if isinstance(items, list) and items[-1].get("type") == "function_call_output":
        return f"Done: {items[-1]['output']}", []
    described = ((body.get("text") or {}).get("format") or {}).get("schema")
    return _choose(action, described, body.get("tools") or [], bool(body.get("max_output_tokens")))


# --------------------------------------------------------------------------- chat completions

_HEAD: Json = {"id": "chatcmpl-upstream", "created": 1764547200, "model": "m-2026-12-01", "system_fingerprint": "fp_1"}
_USAGE: Json = {
    "prompt_tokens": 20,
    "completion_tokens": 3,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def _completion(text: str | None, calls: list[Json]) -> Json:
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_upstream{index}", "type": "function", "function": call} for index, call in enumerate(calls)
        ]
    finish = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}


def _chat_stream(body: Json, text: str | None, calls: list[Json]) -> list[bytes]:
    deltas: list[Json] = [{"role": "assistant", "content": None if calls else ""}]
    for index, call in enumerate(calls):
        opened = {"name": call["name"], "arguments": ""}
        deltas.append(
            {"tool_calls": [{"index": index, "id": f"call_upstream{index}", "type": "function", "function": opened}]}
        )
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in call["arguments"]]
    deltas += [{"content": part} for part in text or ""]
    chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"})
    head = {**_HEAD, "object": "chat.completion.chunk"}
    events: list[Any] = [{**head, "choices": [chunk]} for chunk in chunks]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append({**head, "choices": [], "usage": _USAGE})
    return [*(f"data: {json.dumps(event)}\n\n".encode() for event in events), b"data: [DONE]\n\n"]


# --------------------------------------------------------------------------- responses


def _response(body: Json, text: str | None, calls: list[Json]) -> Json:
    items: list[Json] = [
        {
            "id": f"fc_{index}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_upstream{index}",
            **call,
        }
        for index, call in enumerate(calls)
    ]
    if text is not None:
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        items.append({"id": "msg_0", "type": "message", "status": "completed", "role": "assistant", "content": content})
    return {
        "id": "resp_upstream",
        "object": "response",
        "created_at": 1764547200,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "model": "m-2026-12-01",
        "output": items,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "text": body.get("text", {"format": {"type": "text"}}),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 20,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 23,
        },
    }


def _response_stream(response: Json) -> list[bytes]:
    begun = response | {"status": "in_progress", "output": [], "usage": None}
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(response["output"]):
        where: Json = {"item_id": item["id"], "output_index": index}
        if item["type"] == "function_call":
            opened = item | {"status": "in_progress", "arguments": ""}
            events.append({"type": "response.output_item.added", "output_index": index, "item": opened})
            kind = "response.function_call_arguments"
            events += [{"type": f"{kind}.delta", **where, "delta": part} for part in item["arguments"]]
            events.append({"type": f"{kind}.done", **where, "name": item["name"], "arguments": item["arguments"]})
        else:
            (part,) = item["content"]
            where["content_index"] = 0
            opened = item | {"status": "in_progress", "content": []}
            events.append({"type": "response.output_item.added", "output_index": index, "item": opened})
            events.append({"type": "response.content_part.added", **where, "part": part | {"text": ""}})
            kind = "response.output_text"
            events += [{"type": f"{kind}.delta", **where, "delta": piece, "logprobs": []} for piece in part["text"]]
            events.append({"type": f"{kind}.done", **where, "text": part["text"], "logprobs": []})
            events.append({"type": "response.content_part.done", **where, "part": part})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": response})
    return [
        f"event: {event['type']}\ndata: {json.dumps(event | {'sequence_number': number})}\n\n".encode()
        for number, event in enumerate(events)
    ]
