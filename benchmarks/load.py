"""A load generator in a process of its own: keep-alive connections, requests made beforehand, little parsing.

``python -m benchmarks.load`` reads one order a line from stdin and answers each with a line of JSON::

    {"port": 8000, "path": "/ping", "bodies": ["…"], "connections": 8, "seconds": 2.0, "keep": false}

A connection sends its next request as soon as it has its answer (closed loop), going round the bodies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from itertools import cycle
from typing import Any

import uvloop

__all__ = ["Load"]


class _Connection(asyncio.Protocol):
    def __init__(self, requests: list[bytes], first: int, until: float, done: asyncio.Future[None], keep: bool) -> None:
        self.requests = cycle(requests[first:] + requests[:first])
        self.until, self.done, self.keep = until, done, keep
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.bodies: list[bytes] = []
        self.buffer = b""
        self.wanted = 0  # bytes of the answer that is arriving, once its head is there
        self.head = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.wanted:
            self.head = self.buffer.find(b"\r\n\r\n") + 4
            if self.head < 4:
                return
            head = self.buffer[: self.head].lower()
            at = head.find(b"content-length:")
            self.wanted = self.head + int(head[at + 15 : head.find(b"\r", at)])
        if len(self.buffer) < self.wanted:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.statuses[int(self.buffer[9:12])] += 1
        if self.keep:
            self.bodies.append(self.buffer[self.head : self.wanted])
        self.buffer, self.wanted = b"", 0
        if now < self.until:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.until:
            self.statuses[0] += 1  # closed under our hands: its request is not answered
        if not self.done.done():
            self.done.set_result(None)


async def _run(order: dict[str, Any]) -> dict[str, Any]:
    loop, until = asyncio.get_running_loop(), time.perf_counter() + order["seconds"]
    requests = [_request(order, body.encode()) for body in order["bodies"]]
    connections, dones = [], []
    began = time.perf_counter()
    for i in range(order["connections"]):
        done = loop.create_future()
        made = _Connection(requests, i % len(requests), until, done, order.get("keep", False))
        await loop.create_connection(lambda made=made: made, "127.0.0.1", order["port"])  # type: ignore[misc]
        connections.append(made)
        dones.append(done)
    await asyncio.gather(*dones)
    seconds = time.perf_counter() - began
    taken = sorted(each for connection in connections for each in connection.seconds)
    statuses = sum((connection.statuses for connection in connections), Counter())
    return {
        "requests": len(taken),
        "per_second": len(taken) / seconds,
        "p50_ms": 1e3 * taken[len(taken) // 2],
        "p99_ms": 1e3 * taken[min(len(taken) - 1, len(taken) * 99 // 100)],
        "statuses": dict(statuses),
        "bodies": [body.decode() for connection in connections for body in connection.bodies],
    }


def _request(order: dict[str, Any], body: bytes) -> bytes:
    head = f"POST {order['path']} HTTP/1.1\r\nHost: 127.0.0.1:{order['port']}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Load:
    """The generator's process, for a benchmark to give orders to."""

    def __init__(self) -> None:
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, port: int, path: str, bodies: list[str], connections: int, seconds: float, *, keep: bool = False
    ) -> dict[str, Any]:
        """Requests for so many seconds; ``per_second``, ``p50_ms``, ``p99_ms``, ``statuses`` (0: cut off), bodies."""
        self.begin(port, path, bodies, connections, seconds, keep=keep)
        return self.end()

    def begin(
        self, port: int, path: str, bodies: list[str], connections: int, seconds: float, *, keep: bool = False
    ) -> None:
        """The same, without waiting for its :meth:`end`."""
        order = {
            "port": port,
            "path": path,
            "bodies": bodies,
            "connections": connections,
            "seconds": seconds,
            "keep": keep,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """What came of it."""
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Orders in, figures out."""
    for line in sys.stdin:
        print(json.dumps(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
