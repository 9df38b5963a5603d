"""One worker process of ``stillhouse serve``: it decides and records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import signal
import socket
import sys
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from stillhouse.errors import StillhouseError
from stillhouse.gateway.champions import Champions
from stillhouse.gateway.door import Door
from stillhouse.gateway.settings import secret_key
from stillhouse.runtime.agent import Agent
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.protocol import Protocol
from stillhouse.serving.server import Server
from stillhouse.serving.settings import Settings
from stillhouse.shown import LineFormatter

__all__ = ["run_worker"]

log = logging.getLogger(__name__)

_SWITCH_INTERVAL_SECONDS = 0.0005
_DRAIN_SECONDS = 30
_ACCEPTS_PER_ITERATION = 16
"""New connections that one iteration of the event loop accepts. libuv accepts one for each handle of the listening
socket, and an iteration handles all requests that have arrived: with one handle, the last of many simultaneous clients
would wait for as many iterations."""


def run_worker(settings: Settings, listener: socket.socket, name: str, folder: Path, ready: Connection) -> None:
    """Serve until SIGTERM, or until the supervisor is gone.

    :param name: of this worker, never used before.
    :param folder: for reports and counts.
    :param ready: receives True once requests are answered.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter(f"worker {name}: %(message)s"))
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)  # otherwise the committing thread waits 5 ms for its turn
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the supervisor handles it
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # malformed requests must not fill the log
    try:
        agents = [Agent(agent, follow=False, flush=False) for agent in settings.agents]
        key = secret_key() if settings.door is not None else b""
    except StillhouseError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()  # objects made so far stay: leave them out of collections, which delay requests
    app = Server(
        agents,
        limits=settings.limits,
        guard=settings.guard(),
        metrics=Metrics(folder, name),
        door=(
            None
            if settings.door is None
            else Door(settings.door, key, tokens=settings.tokens, decider=Champions(agents))
        ),
    )
    options = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener.dup()) for _ in range(_ACCEPTS_PER_ITERATION)]
        _UvicornServer(options, ready).run(sockets=listeners)
    for agent in agents:
        agent.close()


class _UvicornServer(uvicorn.Server):
    """uvicorn that reports when it is ready, and ends by our signals."""

    def __init__(self, options: uvicorn.Config, ready: Connection) -> None:
        super().__init__(options)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop, supervisor = asyncio.get_running_loop(), multiprocessing.parent_process()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        if supervisor is not None:
            loop.add_reader(supervisor.sentinel, self._stop)
        self._ready.send(True)
        self._ready.close()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; checks the connections' deadlines once a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.expire(now)
        return await super().on_tick(counter)

    def _stop(self) -> None:
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            asyncio.get_running_loop().remove_reader(supervisor.sentinel)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Replaces uvicorn's handlers, which end the process by the signal that stopped it."""
        yield
