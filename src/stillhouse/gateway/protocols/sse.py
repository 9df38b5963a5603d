"""Server-sent events: reading the data of a recorded stream, writing ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["DONE", "read_events", "write_event"]

DONE = "[DONE]"
"""The data of the event that ends a stream of chat completions."""

_encoder = msgspec.json.Encoder()


def read_events(body: bytes) -> Iterator[str]:
    r"""The data of each event in a stream.

    >>> list(read_events(b'data: {"a": 1}\n\n: a comment\ndata: [DONE]\n\n'))
    ['{"a": 1}', '[DONE]']

    :raises UnicodeDecodeError: if the stream is not UTF-8.
    """
    lines: list[str] = []
    for line in body.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line and lines:
            yield "\n".join(lines)
            lines = []
        elif line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))


def write_event(content: Any, event: str | None = None) -> bytes:
    r"""One event with ``content`` as JSON, or as it is if it is a text.

    >>> write_event({"a": 1})
    b'data: {"a":1}\n\n'
    """
    data = content.encode() if isinstance(content, str) else _encoder.encode(content)
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"
