"""A load generator in its own process: keep-alive connections, requests built beforehand, minimal parsing.

``python -m benchmarks.load`` reads one JSON specification per line from stdin and answers each with one line of JSON::

    {"port": 8000, "path": "/ping", "bodies": ["…"], "connections": 8, "seconds": 2.0, "keep": false}

A connection sends its next request as soon as it has the response (closed loop) and cycles through the bodies.
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
    def __init__(
        self, requests: list[bytes], first: int, deadline: float, closed: asyncio.Future[None], keep_bodies: bool
    ) -> None:
        self.requests = cycle(requests[first:] + requests[:first])
        self.deadline, self.closed, self.keep_bodies = deadline, closed, keep_bodies
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.bodies: list[bytes] = []
        self.buffer = b""
        self.response_bytes = 0  # length of the current response in bytes; 0 until its head has arrived
        self.head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.started_at = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.response_bytes:
            self.head_bytes = self.buffer.find(b"\r\n\r\n") + 4
            if self.head_bytes < 4:
                return
            head = self.buffer[: self.head_bytes].lower()
            position = head.find(b"content-length:")
            self.response_bytes = self.head_bytes + int(head[position + 15 : head.find(b"\r", position)])
        if len(self.buffer) < self.response_bytes:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.started_at)
        self.statuses[int(self.buffer[9:12])] += 1
        if self.keep_bodies:
            self.bodies.append(self.buffer[self.head_bytes : self.response_bytes])
        self.buffer, self.response_bytes = b"", 0
        if now < self.deadline:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.deadline:
            self.statuses[0] += 1  # the server closed the connection; the request has no response
        if not self.closed.done():
            self.closed.set_result(None)


async def _run(spec: dict[str, Any]) -> dict[str, Any]:
    loop, deadline = asyncio.get_running_loop(), time.perf_counter() + spec["seconds"]
    requests = [_request(spec, body.encode()) for body in spec["bodies"]]
    connections, all_closed = [], []
    start = time.perf_counter()
    for i in range(spec["connections"]):
        closed = loop.create_future()
        protocol = _Connection(requests, i % len(requests), deadline, closed, spec.get("keep", False))
        await loop.create_connection(lambda protocol=protocol: protocol, "127.0.0.1", spec["port"])  # type: ignore[misc]
        connections.append(protocol)
        all_closed.append(closed)
    await asyncio.gather(*all_closed)
    seconds = time.perf_counter() - start
    latencies = sorted(latency for connection in connections for latency in connection.seconds)
    statuses = sum((connection.statuses for connection in connections), Counter())
    return {
        "requests": len(latencies),
        "per_second": len(latencies) / seconds,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
        "statuses": dict(statuses),
        "bodies": [body.decode() for connection in connections for body in connection.bodies],
    }


def _request(spec: dict[str, Any], body: bytes) -> bytes:
    head = f"POST {spec['path']} HTTP/1.1\r\nHost: 127.0.0.1:{spec['port']}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Load:
    """Starts the generator's process and sends it load specifications."""

    def __init__(self) -> None:
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, port: int, path: str, bodies: list[str], connections: int, seconds: float, *, keep_bodies: bool = False
    ) -> dict[str, Any]:
        """Send requests for ``seconds``; return rate, p50 and p99 (ms), counts by status (0: cut off) and bodies."""
        self.begin(port, path, bodies, connections, seconds, keep_bodies=keep_bodies)
        return self.end()

    def begin(
        self, port: int, path: str, bodies: list[str], connections: int, seconds: float, *, keep_bodies: bool = False
    ) -> None:
        """Start sending requests; :meth:`end` waits for the result."""
        spec = {
            "port": port,
            "path": path,
            "bodies": bodies,
            "connections": connections,
            "seconds": seconds,
            "keep": keep_bodies,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(spec) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the running load and return its result."""
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Read specifications from stdin, write results to stdout."""
    for line in sys.stdin:
        print(json.dumps(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
