"""Logs of calls in each format, made of the same calls, and the agent that they are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.config import AgentConfig
from stillhouse.knowledge import KnowledgeBase
from tests.agents import agent_config

BEGIN = 1_700_000_000
SYSTEM = "Which intent has this sentence?"
SENTENCES = ["book a taxi", "cancel it", "hello there", "book two taxis"]
INTENTS = ["book", "cancel", "greet", "book"]
TEACHER = {
    "kind": "endpoint",
    "name": "llm",
    "base_url": "http://127.0.0.1/v1",
    "model": "gpt",
    "prompt": "{said} {actions}",
}


INTENTS_AGENT: dict[str, Any] = {
    "actions": ["book", "cancel", "greet"],
    "observations": {"columns": {"said": {"type": "text"}}},
    "teachers": [TEACHER],
    "student": {"kind": "text"},
}


def intents_agent(**sections: Any) -> AgentConfig:
    """An agent of three intents for a sentence, whose teacher is the model ``gpt``."""
    return agent_config(**INTENTS_AGENT | sections)


def base_of(config: AgentConfig, tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(config, tmp_path / "kb")


def request(text: Any, system: str | None = SYSTEM, **keys: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "model": "gpt",
        "messages": [*([{"role": "system", "content": system}] if system else []), *messages],
    } | keys


def response(content: Any, number: int = 0, model: str = "gpt-2026", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | choice.pop("message", {})
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": BEGIN + 60 * number,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 20, "completion_tokens": 2},
    }


def records(**keys: Any) -> list[dict[str, Any]]:
    """A line of a proxy for each sentence."""
    pairs = enumerate(zip(SENTENCES, INTENTS, strict=True))
    return [{"request": request(text), "response": response(intent, number)} | keys for number, (text, intent) in pairs]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


# --------------------------------------------------------------------------- OpenTelemetry


def value(plain: Any) -> dict[str, Any]:
    """A value as OTLP writes it."""
    if isinstance(plain, bool):
        return {"boolValue": plain}
    if isinstance(plain, int):
        return {"intValue": str(plain)}
    if isinstance(plain, list):
        return {"arrayValue": {"values": [value(item) for item in plain]}}
    if isinstance(plain, dict):
        return {"kvlistValue": {"values": pairs(plain)}}
    return {"stringValue": plain}


def pairs(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value(plain)} for key, plain in attributes.items()]


def span(
    number: int, attributes: dict[str, Any], events: list[dict[str, Any]] | None = None, **keys: Any
) -> dict[str, Any]:
    own = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt", "gen_ai.response.model": "gpt-2026"}
    return {
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": f"{number:016x}",
        "name": "chat gpt",
        "startTimeUnixNano": str((BEGIN + 60 * number) * 10**9),
        "attributes": pairs(own | {"gen_ai.response.id": f"chatcmpl-{number}"} | attributes),
        "events": events or [],
        "status": {},
    } | keys


def event(name: str, **attributes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "timeUnixNano": "1",
        "attributes": pairs({k.replace("__", "."): v for k, v in attributes.items()}),
    }


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    scope = {"scope": {"name": "instrumentation"}, "spans": list(spans)}
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [scope]}]}


def parts(role: str, text: str, **keys: Any) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]} | keys
