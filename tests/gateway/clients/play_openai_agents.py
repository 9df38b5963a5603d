"""openai-agents, over responses and over chat completions: typed outputs, tools, handoffs and streams."""

from __future__ import annotations

import asyncio
from typing import Any

from heard import KEY, MODEL, NAMES, Heard, Intent, main
from openai import AsyncOpenAI

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool

REQUIRED = ModelSettings(tool_choice="required")


def make_tool(name: str) -> Any:
    """A tool without arguments."""

    def tool() -> str:
        return f"{name} done"

    return function_tool(tool, name_override=name, description_override=f"{name}.")


async def play_model(name: str, model: Any, heard: Heard) -> None:
    """All steps with one of the two kinds of models."""
    typed = Agent(name="Router", instructions="Route.", model=model, output_type=Intent)
    result = await Runner.run(typed, "Hello")
    tokens = result.context_wrapper.usage.total_tokens
    heard.note(f"{name}: output", result.final_output, result.final_output, tokens=tokens)
    streamed = Runner.run_streamed(typed, "Hello")
    text = ""
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert Intent.model_validate_json(text) == streamed.final_output
    heard.note(f"{name}: streamed output", streamed.final_output, streamed.final_output)
    tools = [make_tool(tool) for tool in NAMES]
    acting = Agent(name="Actor", instructions="Act.", model=model, tools=tools, model_settings=REQUIRED)
    result = await Runner.run(acting, "Hello")
    heard.note(f"{name}: turn after the tool", result.final_output, *result.new_items, turns=1)
    streamed = Runner.run_streamed(acting, "Hello")
    async for _ in streamed.stream_events():
        pass
    heard.note(f"{name}: turn after the streamed tool", streamed.final_output, *streamed.new_items, turns=1)
    others = [Agent(name=tool, instructions="Say what you do.", model=model) for tool in NAMES]
    triage = Agent(name="Triage", instructions="Hand over.", model=model, handoffs=others, model_settings=REQUIRED)
    result = await Runner.run(triage, "Hello")
    assert result.last_agent.name in result.final_output
    heard.note(f"{name}: handoff", result.final_output, *result.new_items, turns=1)


async def play_all(address: str, heard: Heard) -> None:
    """All steps with both."""
    async with AsyncOpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
        await play_model("responses", OpenAIResponsesModel(MODEL, client), heard)
        await play_model("chat", OpenAIChatCompletionsModel(MODEL, client), heard)


if __name__ == "__main__":
    main(lambda address, heard: asyncio.run(play_all(address, heard)))
