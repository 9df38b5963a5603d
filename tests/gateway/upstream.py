"""A scripted upstream on loopback: it answers what a test tells it, and remembers the bytes that it was sent.

``python -m tests.gateway.upstream PORT`` runs one that answers each chat completion with the same label, for
benchmarks: see :func:`label_completion`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Writer = asyncio.StreamWriter
Answer = Callable[["Request", Writer], Awaitable[None]]


@dataclass
class Request:
    """A request as it was received."""

    method: str
    target: str
    head: bytes
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header with that (lower-case) name."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Upstream:
    """The running upstream; set ``answer`` to change what it says."""

    port: int = 0
    answer: Answer = None  # type: ignore[assignment]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def whole(
    body: bytes | Any,
    status: str = "200 OK",
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),),
) -> Answer:
    """An answer with a length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(_request: Request, writer: Writer) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 {status}\r\n{lines}content-length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()

    return answer


def chunked(
    *parts: bytes | float,
    is_cut: bool = False,
    headers: tuple[tuple[str, str], ...] = (("content-type", "text/event-stream"),),
) -> Answer:
    """An answer in chunks: bytes are sent, and a number is a pause in seconds; a cut one has no end."""

    async def answer(_request: Request, writer: Writer) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
        for part in parts:
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if is_cut:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return answer


def raw(content: bytes) -> Answer:
    """Any bytes, after which the connection is closed."""

    async def answer(_request: Request, writer: Writer) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    return answer


def completion(text: str | None = "move", *, model: str = "m-1", **message: Any) -> dict[str, Any]:
    """A chat completion as OpenAI sends one."""
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
    }


def label_completion(label: str = "move") -> Answer:
    """A completion with a label, or its stream if the request wants one."""
    plain = whole(completion(label))

    async def answer(request: Request, writer: Writer) -> None:
        streams = request.body.startswith(b"{") and request.json.get("stream")
        await (chunked(*stream_of(label)) if streams else plain)(request, writer)

    return answer


def stream_of(*texts: str, usage: bool = True) -> list[bytes]:
    """The events of a streamed chat completion."""

    def event(content: Any) -> bytes:
        return f"data: {json.dumps(content)}\n\n".encode()

    base = {"id": "chatcmpl-upstream", "object": "chat.completion.chunk", "model": "m-1", "system_fingerprint": "fp_1"}
    chunks = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    events = [event(base | {"choices": [{"index": 0, "delta": chunk, "finish_reason": None}]}) for chunk in chunks]
    events.append(event(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    if usage:
        counts = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
        events.append(event(base | {"choices": [], "usage": counts}))
    return [*events, b"data: [DONE]\n\n"]


async def _serve(state: Upstream, reader: asyncio.StreamReader, writer: Writer) -> None:
    state.connections += 1
    state.open_connections += 1
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")[:-2]
            method, target, _ = line.split(" ")
            headers = [(name, value.strip()) for name, _, value in (text.partition(":") for text in lines)]
            request = Request(method, target, head, headers, b"")
            if (length := request.header("content-length")) is not None:
                request.body = await reader.readexactly(int(length))
            elif (request.header("transfer-encoding") or "").lower() == "chunked":
                while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                    request.body += await reader.readexactly(size)
                    await reader.readexactly(2)
                await reader.readexactly(2)
            state.requests.append(request)
            answering = asyncio.ensure_future(state.answer(request, writer))
            # a client that leaves in the middle of an answer is noticed at once
            while not answering.done():
                await asyncio.wait((answering,), timeout=0.02)
                if reader.at_eof():
                    answering.cancel()
                    return
            answering.result()
            if writer.is_closing():
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        state.open_connections -= 1
        writer.close()


@contextlib.contextmanager
def upstream(answer: Answer | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """A running upstream, in a thread of its own."""
    state = Upstream(answer=answer or label_completion())
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: _serve(state, r, w), "127.0.0.1", state.port, ssl=tls)
        state.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await asyncio.Future()

    def main() -> None:
        asyncio.set_event_loop(loop)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    task = loop.create_task(run())
    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


if __name__ == "__main__":
    with upstream() as running:
        print(running.port, flush=True)
        sys.stdin.read()
