"""litellm: completions, whole and streamed, with types and tools, and responses."""

from __future__ import annotations

from typing import Any

import litellm
from heard import KEY, MODEL, NAMES, Heard, Intent, main

MESSAGES: Any = [{"role": "system", "content": "Route."}, {"role": "user", "content": "Hello"}]


def play(address: str, heard: Heard) -> None:
    """All steps."""
    to: Any = {"model": f"openai/{MODEL}", "api_base": address, "api_key": KEY, "num_retries": 0}
    ask: Any = to | {"messages": MESSAGES}
    answer = litellm.completion(**ask, response_format=Intent)
    intent = Intent.model_validate_json(answer.choices[0].message.content)
    heard.note("enum", intent, intent, tokens=answer.usage.total_tokens)
    chunks = list(litellm.completion(**ask, max_tokens=4, stream=True))
    heard.note("stream", "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[0])
    assert chunks[-1].choices[0].finish_reason == "stop"
    answer = litellm.completion(**ask, max_tokens=4)
    heard.note("label", answer.choices[0].message.content, answer.choices[0])
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
        for name in NAMES
    ]
    answer = litellm.completion(**ask, tools=tools, tool_choice="required")
    message = answer.choices[0].message
    (call,) = message.tool_calls
    heard.note("tool", call.function.name, call, message)
    result = {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} done"}
    answer = litellm.completion(**(to | {"messages": [*MESSAGES, message, result]}), tools=tools)
    heard.note("turn after the tool", answer.choices[0].message.content, answer.choices[0], turns=1)
    chunks = list(litellm.completion(**ask, tools=tools, tool_choice="required", stream=True))
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    (call,) = whole.choices[0].message.tool_calls
    heard.note("streamed tool", call.function.name, call)
    response = litellm.responses(**to, input="Hello", instructions="Route.", max_output_tokens=16)
    (item,) = response.output
    heard.note("response", item.content[0].text, item, response, tokens=response.usage.total_tokens)
    *_, last = litellm.responses(**to, input="Hello", instructions="Route.", max_output_tokens=16, stream=True)
    heard.note("streamed response", last.response.output[0].content[0].text, last)


if __name__ == "__main__":
    main(play)
