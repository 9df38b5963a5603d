"""A door before a scripted upstream, in a real server of this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from stillhouse.gateway.door import Door, DoorSettings
from stillhouse.gateway.settings import GatewaySettings, secret_key
from stillhouse.gateway.store import GatewayStore, store_path
from stillhouse.gateway.upstream import UpstreamAddress
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.protocol import Protocol
from stillhouse.serving.server import Server
from tests.gateway.upstream import Upstream, upstream


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@dataclass
class Running:
    """A running door."""

    url: str
    port: int
    door: Door
    metrics: Metrics
    server: Server
    upstream: Upstream

    def wait_until_written(self) -> GatewayStore:
        """Wait until no request is in progress and no record is unwritten; the store, to be read."""
        deadline = time.monotonic() + 10
        while (self.server._waiting or self.door.records.waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # the champion is told after the commit
        deadline = time.monotonic() + 10
        while not store_path().is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        return GatewayStore(store_path())

    def rows(self) -> list[dict[str, Any]]:
        """All captures."""
        store = self.wait_until_written()
        try:
            return [row for summary in store.tasks() for row in store.captures(summary.task.key)]
        finally:
            store.close()

    def counts(self) -> dict[tuple[str, str], int]:
        """The door's counts so far."""
        self.wait_until_written().close()
        time.sleep(1.2)  # a snapshot takes the counts each second
        counters = self.metrics.counts.counters
        names = {"captures": "door_captures", "unrecognised": "door_unrecognised", "requests": "door_requests"}
        return {(what, labels[-1]): round(n) for what, name in names.items() for labels, n in counters[name].items()}


@contextlib.contextmanager
def open_door(
    behind: Upstream, *, decider: Any = None, tokens: tuple[str, ...] = (), **settings: Any
) -> Iterator[Running]:
    """A server without agents before an upstream."""
    abstain, sender = settings.pop("abstain", False), settings.pop("sender", None)
    address = UpstreamAddress.parse(settings.pop("url", behind.url))
    door = Door(
        DoorSettings(address, GatewaySettings(**settings), abstain),
        secret_key(),
        tokens=tokens,
        decider=decider,
        upstream=sender,
    )
    metrics = Metrics(None, "test")
    app = Server([], metrics=metrics, door=door)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield Running(f"http://127.0.0.1:{port}", port, door, metrics, app, behind)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def behind() -> Iterator[Upstream]:
    """A scripted upstream."""
    with upstream() as running:
        yield running


@pytest.fixture
def running(behind: Upstream) -> Iterator[Running]:
    """A door before it, without champions."""
    with open_door(behind) as door:
        yield door
