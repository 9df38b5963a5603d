"""langchain-openai, over chat completions and over responses: structured output, tools and streams."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from heard import KEY, MODEL, NAMES, Heard, Intent, main
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

MESSAGES: Any = [SystemMessage("Route."), HumanMessage("Hello")]


def make_tool(name: str) -> Any:
    """A tool without arguments."""

    def tool() -> str:
        return f"{name} done"

    return StructuredTool.from_function(tool, name=name, description=f"{name}.")


def play_api(name: str, heard: Heard, **options: Any) -> None:
    """All steps with one of the two protocols."""
    model = ChatOpenAI(model=MODEL, api_key=KEY, max_retries=0, **options)
    for method in ("json_schema", "function_calling"):
        typed = model.with_structured_output(Intent, method=method, include_raw=True)
        result = typed.invoke(MESSAGES)
        tokens = result["raw"].usage_metadata["total_tokens"]
        heard.note(f"{name}: {method}", result["parsed"], result["raw"], result["parsed"], tokens=tokens)
        *_, last = model.with_structured_output(Intent, method=method).stream(MESSAGES)
        heard.note(f"{name}: streamed {method}", last, last)
    label = ChatOpenAI(model=MODEL, api_key=KEY, max_retries=0, max_tokens=16, **options)
    answer = label.invoke(MESSAGES)
    heard.note(f"{name}: label", answer.text, answer)
    answer = reduce(add, label.stream(MESSAGES))
    heard.note(f"{name}: streamed label", answer.text, answer)
    tools = {tool: make_tool(tool) for tool in NAMES}
    acting = model.bind_tools(list(tools.values()), tool_choice="required")
    answer = acting.invoke(MESSAGES)
    (call,) = answer.tool_calls
    heard.note(f"{name}: tool", call["name"], answer)
    streamed = reduce(add, acting.stream(MESSAGES))
    heard.note(f"{name}: streamed tool", streamed.tool_calls[0]["name"], streamed)
    result = tools[call["name"]].invoke(call)
    assert isinstance(result, ToolMessage)
    answer = model.bind_tools(list(tools.values())).invoke([*MESSAGES, answer, result])
    heard.note(f"{name}: turn after the tool", answer.text, answer, turns=1)


def play(address: str, heard: Heard) -> None:
    """All steps with both."""
    play_api("chat", heard, base_url=address)
    play_api("responses", heard, base_url=address, use_responses_api=True)


if __name__ == "__main__":
    main(play)
