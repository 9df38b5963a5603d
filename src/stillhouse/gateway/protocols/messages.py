"""What OpenAI's two protocols share: conversations, fields that change no answer, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from stillhouse.gateway.questions import Unrecognised

__all__ = ["HARMLESS", "MAX_LABEL_TOKENS", "ResponseHead", "error_body", "read_conversation", "token_count"]

HARMLESS = frozenset(
    {
        "background",
        "include",
        "logprobs",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "top_logprobs",
        "user",
    }
)
"""Fields of a request that do not change its answer; every other field, known or not, belongs to the task's key."""

MAX_LABEL_TOKENS = 32
"""A request without a schema asks for a label if its answer may have at most so many tokens."""

_INSTRUCTING = ("system", "developer")


class ResponseHead(NamedTuple):
    """What every answer of OpenAI's protocols begins with."""

    id: str
    created: int
    model: str


def read_conversation(messages: Any, text_type: str) -> tuple[str, list[Any]] | Unrecognised:
    """The last text of the user, and all other parts of the messages.

    >>> read_conversation([{"role": "system", "content": "Route."}, {"role": "user", "content": "Hello"}], "text")
    ('Hello', [{'role': 'system', 'content': 'Route.'}, {'role': 'user', 'content': None}])

    :param text_type: the type of a part that is a text.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return Unrecognised("malformed")
    *before, last = messages
    if last.get("role") == "assistant":
        return Unrecognised("assistant prefill")
    if last.get("role") != "user" or any(message.get("role") not in _INSTRUCTING for message in before):
        return Unrecognised("history")
    for message in before:
        if isinstance(reason := _split(message.get("content"), text_type), Unrecognised):
            return reason
    split = _split(last.get("content"), text_type)
    if isinstance(split, Unrecognised):
        return split
    text, rest = split
    return text, [*before, {**last, "content": rest}]


def _split(content: Any, text_type: str) -> tuple[str, Any] | Unrecognised:
    """The last text of a message's content, and the content without it."""
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list) or not content:
        return Unrecognised("malformed")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != text_type or not isinstance(part.get("text"), str):
            return Unrecognised("images or files")
    return content[-1]["text"], [*content[:-1], {**content[-1], "text": None}]


def token_count(usage: Any, name: str) -> int | None:
    """A count of tokens as the upstream reports it; None without one."""
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def error_body(status: int, code: str, message: str) -> bytes:
    """An error in OpenAI's shape.

    >>> error_body(502, "upstream_unreachable", "no answer")
    b'{"error":{"message":"no answer","type":"server_error","param":null,"code":"upstream_unreachable"}}'
    """
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def texts_of(parts: Sequence[Any], text_type: str) -> str:
    """The texts of a message's parts, joined."""
    return "".join(
        part["text"] for part in parts if isinstance(part, dict) and part.get("type") == text_type and part.get("text")
    )
