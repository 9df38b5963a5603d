"""The openai client: chat completions and responses, whole, streamed and parsed."""

from __future__ import annotations

from typing import Any

from heard import KEY, MODEL, NAMES, SCHEMA, Heard, Intent, main
from openai import OpenAI

MESSAGES: Any = [{"role": "system", "content": "Route."}, {"role": "user", "content": "Hello"}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "intent", "strict": True, "schema": SCHEMA}}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def play(address: str, heard: Heard) -> None:
    """All steps, with one client."""
    with OpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
        play_chat(client, heard)
        play_responses(client, heard)


def play_chat(client: OpenAI, heard: Heard) -> None:
    """Chat completions."""
    ask: Any = {"model": MODEL, "messages": MESSAGES}
    answer = client.chat.completions.create(**ask, response_format=FORMAT)
    heard.note("enum", answer.choices[0].message.content, answer, tokens=answer.usage.total_tokens)
    parsed = client.chat.completions.parse(**ask, response_format=Intent)
    heard.note("parse", parsed.choices[0].message.parsed, parsed.choices[0].message.parsed)
    chunks = list(
        client.chat.completions.create(
            **ask, response_format=FORMAT, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    heard.note("stream", text, chunks[-1], tokens=chunks[-1].usage.total_tokens)
    assert chunks[-2].choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**ask, response_format=Intent) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion().choices[0].message
    assert "content.done" in kinds
    heard.note("parsed stream", final.parsed, final.parsed)
    answer = client.chat.completions.create(**ask, max_tokens=4)
    heard.note("label", answer.choices[0].message.content, answer)
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": NOTHING}} for name in NAMES]
    answer = client.chat.completions.create(**ask, tools=tools, tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.arguments == "{}"
    heard.note("tool", call.function.name, call, answer)
    with client.chat.completions.stream(**ask, tools=tools, tool_choice="required") as events:
        for _ in events:
            pass
        message = events.get_final_completion().choices[0].message
    (streamed,) = message.tool_calls
    heard.note("streamed tool", streamed.function.name, streamed)
    following = [
        *MESSAGES,
        message.model_dump(exclude_none=True, exclude={"parsed": True, "tool_calls": {"__all__": {"index"}}}),
        {"role": "tool", "tool_call_id": streamed.id, "content": f"{streamed.function.name} done"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=following, tools=tools)
    heard.note("turn after the tool", answer.choices[0].message.content, answer, turns=1)


def play_responses(client: OpenAI, heard: Heard) -> None:
    """Responses."""
    ask: Any = {"model": MODEL, "instructions": "Route.", "input": "Hello"}
    answer = client.responses.create(**ask, max_output_tokens=16)
    heard.note("response", answer.output_text, answer, tokens=answer.usage.total_tokens)
    parsed = client.responses.parse(**ask, text_format=Intent)
    heard.note("parsed response", parsed.output_parsed, parsed.output_parsed)
    with client.responses.stream(**ask, text_format=Intent) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert "".join(pieces) == final.output_text and final.status == "completed"
    heard.note("streamed response", final.output_parsed, final.output_parsed, tokens=final.usage.total_tokens)
    *_, last = client.responses.create(**ask, max_output_tokens=16, stream=True)
    heard.note("events", last.response.output_text, last)
    tools: Any = [{"type": "function", "name": name, "parameters": NOTHING, "strict": True} for name in NAMES]
    answer = client.responses.create(**ask, tools=tools, tool_choice="required")
    (call,) = answer.output
    assert call.type == "function_call" and call.arguments == "{}"
    heard.note("tool of a response", call.name, call, answer)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name} done"}
    items: Any = [{"role": "user", "content": "Hello"}, call.model_dump(exclude_none=True), result]
    answer = client.responses.create(**(ask | {"input": items}), tools=tools)
    heard.note("turn after the tool of a response", answer.output_text, answer, turns=1)


if __name__ == "__main__":
    main(play)
