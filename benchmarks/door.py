"""What the front door adds to a request: the same client and scripted upstream, with and without us between them.

``python -m benchmarks.door`` starts a scripted upstream on loopback that answers each chat completion at once, and
``stillhouse serve --upstream`` before it, with its defaults: each request is passed on, and recorded as one of a task.
One keep-alive client asks the upstream and the door in turn, one request each, in an order that alternates, so that
disturbances of the machine affect both sides. The figure is the difference of the two medians, by round. A
second part asks with several clients at once, and checks that every request was recorded, or counted as dropped.
``--quick`` is one short round and writes no file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import Load
from benchmarks.report import Goal, begin
from benchmarks.serving import free_port, server_process, wait_for
from stillhouse import config

CLAIM = "the front door adds at most 2 ms at the median to a request that it passes on and records"
PATH = "/v1/chat/completions"
CONNECTIONS = (1, 8)
INTENTS = [f"intent_{number}" for number in range(77)]
SYSTEM = "You route the messages of a bank's customers. Answer with the intent. " * 20


def main() -> None:
    """Serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="pairs of a round")
    parser.add_argument("--quick", action="store_true", help="one short round, no file written")
    options = parser.parse_args()
    run = begin("door", writes_result=not options.quick)
    rounds, requests = (1, 200) if options.quick else (options.rounds, options.requests)
    with tempfile.TemporaryDirectory(prefix="stillhouse-door-") as folder:
        os.environ["STILLHOUSE_HOME"] = str(Path(folder) / "home")
        os.environ.pop("STILLHOUSE_TOKENS", None)
        with scripted_upstream() as upstream, door(upstream, Path(folder) / "door.log") as port:
            figures = {
                kind: [measure_pairs(upstream, port, bodies(kind), requests) for _ in range(rounds)]
                for kind in ("whole", "stream")
            }
            busy = measure_load(upstream, port, 1.0 if options.quick else 3.0, rounds)
            records = count_records(port)
    goals = goals_of(figures, records)
    detail = {"rounds": rounds, "requests": requests, "pairs": figures, "load": busy, "records": records}
    if options.quick:
        print(json.dumps({"goals": {goal.name: round(goal.measured, 3) for goal in goals}, **detail}, indent=1))
    else:
        run.write(CLAIM, goals, detail, ("httpcore", "h11", "uvicorn", "uvloop", "httptools", "msgspec"))


def bodies(kind: str) -> list[bytes]:
    """Request bodies of one task."""
    schema = {
        "type": "object",
        "properties": {"intent": {"type": "string", "enum": INTENTS}},
        "required": ["intent"],
        "additionalProperties": False,
    }
    return [
        json.dumps(
            {
                "model": "m",
                "stream": kind == "stream",
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": f"My card number {number} has not arrived, what should I do?"},
                ],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "intent", "strict": True, "schema": schema},
                },
            }
        ).encode()
        for number in range(64)
    ]


# --------------------------------------------------------------------------- servers


@contextmanager
def scripted_upstream() -> Iterator[int]:
    """An upstream in a process of its own; yields its port."""
    command = [sys.executable, "-m", "benchmarks.door_upstream", INTENTS[7]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextmanager
def door(upstream: int, log: Path) -> Iterator[int]:
    """``stillhouse serve`` before the upstream; yields its port."""
    port = free_port()
    code = "from stillhouse.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--upstream", f"http://127.0.0.1:{upstream}", "--port", str(port)]
    with server_process(command, log):
        wait_for(port, "/healthz", log)
        yield port


# --------------------------------------------------------------------------- measuring


class Connection:
    """A keep-alive connection of a client that reads whole responses, with a length or in chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._reader, self._writer = reader, writer
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer sk-benchmark\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port), port)

    async def ask(self, body: bytes) -> tuple[float, bytes]:
        """Milliseconds to the end of the response, and its body."""
        began = time.perf_counter()
        self._writer.write(self._head + b"%d\r\n\r\n" % len(body) + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"the answer is {head[:60]!r}")
        content = b""
        if (position := head.find(b"content-length:")) >= 0:
            content = await self._reader.readexactly(int(head[position + 15 : head.index(b"\r", position)]))
        else:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                content += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
        return 1e3 * (time.perf_counter() - began), content

    def close(self) -> None:
        self._writer.close()


def measure_pairs(upstream: int, port: int, asked: Sequence[bytes], requests: int) -> dict[str, float]:
    """Ask both sides in turn; medians, and the medians of the paired differences, in milliseconds."""

    async def run() -> tuple[list[float], list[float]]:
        direct, through = await Connection.open(upstream), await Connection.open(port)
        milliseconds: tuple[list[float], list[float]] = ([], [])
        for number in range(requests + 50):
            body = asked[number % len(asked)]
            order = (0, 1) if number % 2 else (1, 0)
            answers: dict[int, bytes] = {}
            for side in order:
                took, answers[side] = await (direct, through)[side].ask(body)
                if number >= 50:  # before: warm-up
                    milliseconds[side].append(took)
            if answers[0] != answers[1]:
                raise SystemExit("the two sides differ")
        direct.close()
        through.close()
        return milliseconds

    direct, through = asyncio.run(run())
    differences = [ours - theirs for theirs, ours in zip(direct, through, strict=True)]
    return {
        "direct_p50_ms": statistics.median(direct),
        "door_p50_ms": statistics.median(through),
        "added_p50_ms": statistics.median(differences),
        "added_p99_ms": statistics.quantiles(differences, n=100)[98],
    }


def measure_load(upstream: int, port: int, seconds: float, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Requests per second and latencies with several clients, in turn without and with us."""
    load, texts = Load(), [body.decode() for body in bodies("whole")]
    figures: dict[str, list[dict[str, Any]]] = {}
    try:
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for name, target in (("direct", upstream), ("door", port)):
                    result = load(target, PATH, texts, connections, seconds)
                    if set(result["statuses"]) - {"200"}:
                        raise SystemExit(f"{name} answered {result['statuses']}")
                    figures.setdefault(f"{name}, {connections} connections", []).append(
                        {key: result[key] for key in ("requests", "per_second", "p50_ms", "p99_ms")}
                    )
    finally:
        load.close()
    return figures


def count_records(port: int) -> dict[str, int]:
    """What became of the requests that the door has passed on."""
    import urllib.request

    deadline, last = time.monotonic() + 60, -1
    while time.monotonic() < deadline:  # until nothing is unwritten and the counts stand still
        time.sleep(1.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/door", timeout=10) as answer:
            state = json.loads(answer.read())
        counted = sum(state["captures"].values())
        if not state["unwritten"] and counted == last:
            break
        last = counted
    passed = state["requests"].get("passed_on", 0)
    return {"passed_on": passed, "uncounted": passed - last, **state["captures"]}


def goals_of(figures: dict[str, list[dict[str, float]]], records: dict[str, int]) -> list[Goal]:
    goals = []
    for kind, rounds in figures.items():
        added = [result["added_p50_ms"] for result in rounds]
        goals.append(Goal(f"added_p50_ms_{kind}", 2.0, "lower", statistics.median(added), min(added), max(added)))
    uncounted = abs(records["uncounted"])
    goals.append(Goal("requests_without_a_count", 0, "lower", uncounted, uncounted, uncounted))
    return goals


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
