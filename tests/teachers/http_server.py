"""A server on loopback that speaks the OpenAI protocol, correctly or not, as its script decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """The response of the server, and how it is sent."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the first byte
    drip: float = 0.0  # seconds between single bytes
    cut: bool = False  # the connection ends in the middle of the body


Script = Callable[[dict[str, Any], int], Reply]
"""The request's body and its number (0, 1, …) → the response."""


@dataclass
class Server:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    concurrent: int = 0
    max_concurrent: int = 0


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # persistent connections, like a real server
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.concurrent += 1
                server.max_concurrent = max(server.max_concurrent, server.concurrent)
            try:
                with suppress(OSError):  # the client may have gone
                    self.send(script(request, number))
            finally:
                with lock:
                    server.concurrent -= 1

        def send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            content = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if reply.cut:
                content = content[: len(content) // 2]
            if reply.drip:
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(reply.drip)
            else:
                self.wfile.write(content)
            if reply.cut:
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def chat_completion(*texts: str | None, tokens: Any = None, usage: tuple[int, int] | None = (100, 5)) -> Reply:
    """A chat completion with an answer for each of ``texts``."""
    choices = [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": tokens} if tokens is not None else None,
        }
        for i, text in enumerate(texts)
    ]
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(body)


def error(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply({"error": {"message": message}}, status, {k.replace("_", "-"): v for k, v in headers.items()})


def token(text: str, probability: float, **others: float) -> dict[str, Any]:
    """One token of an answer, with the alternatives at its position."""
    from math import log

    alternatives = [
        {"token": name, "logprob": log(p), "bytes": None} for name, p in {text: probability, **others}.items()
    ]
    return {"token": text, "logprob": log(probability), "bytes": None, "top_logprobs": alternatives}
