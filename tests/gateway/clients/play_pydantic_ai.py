"""pydantic-ai, over chat completions and over responses: output by a tool and by a schema, tools, streams."""

from __future__ import annotations

import asyncio
from typing import Any

from heard import KEY, MODEL, NAMES, Heard, Intent, main
from pydantic_ai import Agent, NativeOutput, Tool
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def make_tool(name: str) -> Any:
    """A tool without arguments."""

    def tool() -> str:
        return f"{name} done"

    return Tool(tool, takes_ctx=False, name=name, description=f"{name}.")


async def play_model(name: str, model: Any, heard: Heard) -> None:
    """All steps with one of the two kinds of models."""
    by_tool = Agent(model, output_type=Intent, instructions="Route.")
    by_schema = Agent(model, output_type=NativeOutput(Intent), instructions="Route.")
    for kind, agent in (("tool", by_tool), ("schema", by_schema)):
        result = await agent.run("Hello")
        response = result.all_messages()[1]
        tokens = response.usage.input_tokens + response.usage.output_tokens
        heard.note(f"{name}: output by {kind}", result.output, response, *response.parts, result.output, tokens=tokens)
        async with agent.run_stream("Hello") as streamed:
            outputs = [output async for output in streamed.stream_output(debounce_by=None)]
        heard.note(f"{name}: streamed output by {kind}", outputs[-1], outputs[-1])
    acting = Agent(model, tools=[make_tool(tool) for tool in NAMES], instructions="Act.")
    result = await acting.run("Hello")
    parts = [part for message in result.all_messages() for part in message.parts]
    heard.note(f"{name}: turn after the tool", result.output, *parts, turns=1)


async def play_all(address: str, heard: Heard) -> None:
    """All steps with both."""
    provider = OpenAIProvider(base_url=address, api_key=KEY)
    await play_model("chat", OpenAIChatModel(MODEL, provider=provider), heard)
    await play_model("responses", OpenAIResponsesModel(MODEL, provider=provider), heard)
    await provider.client.close()


if __name__ == "__main__":
    main(lambda address, heard: asyncio.run(play_all(address, heard)))
