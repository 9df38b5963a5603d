"""The scripted upstream of :mod:`benchmarks.door`: ``python -m benchmarks.door_upstream LABEL`` prints its port.

It answers each request at once with the same chat completion, or with its stream if the request wants one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

USAGE = {"prompt_tokens": 900, "completion_tokens": 6, "total_tokens": 906}


def answers(label: str) -> tuple[bytes, bytes]:
    """The whole answer and its stream, as bytes of HTTP."""
    text = json.dumps({"intent": label})
    base = {"id": "chatcmpl-1", "created": 1, "model": "m-1", "system_fingerprint": "fp_1"}
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = json.dumps(base | {"object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    deltas = [{"role": "assistant", "content": ""}, *({"content": part} for part in text.split(" ")), {}]
    events = [
        base
        | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
        }
        for delta in deltas
    ]
    datas = [*map(json.dumps, events), "[DONE]"]
    chunks = [f"data: {data}\n\n".encode() for data in datas]
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    stream += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return head + body, stream


class Upstream(asyncio.Protocol):
    """One connection."""

    whole: bytes
    stream: bytes

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self.buffer[:end].lower()
        position = head.find(b"content-length:")
        length = int(head[position + 15 : head.index(b"\r", position)]) if position >= 0 else 0
        if len(self.buffer) < end + length:
            return
        body, self.buffer = self.buffer[end : end + length], self.buffer[end + length :]
        self.transport.write(self.stream if b'"stream": true' in body else self.whole)


async def main(label: str) -> None:
    Upstream.whole, Upstream.stream = answers(label)
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
