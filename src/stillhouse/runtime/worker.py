"""One worker of ``stillhouse serve``: a process that decides and records."""

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
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.metrics import Metrics
from stillhouse.runtime.protocol import Protocol
from stillhouse.runtime.server import Server
from stillhouse.runtime.settings import Settings
from stillhouse.shown import LineFormatter

__all__ = ["work"]

log = logging.getLogger(__name__)

_SWITCH_SECONDS = 0.0005
_DRAIN_SECONDS = 30
_ACCEPTED_AT_ONCE = 16
"""New connections that one turn of the loop accepts. libuv accepts one for each handle on the listening socket, and a
turn judges all that has come: the last of many clients that come at once would wait for as many turns."""


def work(settings: Settings, listener: socket.socket, name: str, folder: Path, ready: Connection) -> None:
    """Until SIGTERM, or until the supervisor is gone.

    :param name: of this worker, never used before.
    :param folder: of the counts.
    :param ready: told once requests are answered.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter(f"worker {name}: %(message)s"))
    sys.setswitchinterval(_SWITCH_SECONDS)  # the thread that commits must not wait 5 ms for its turn
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us: the supervisor passes it on
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # nobody's odd requests may fill the log
    try:
        agents = [Agent(each, follow=False, flush=False) for each in settings.agents]
    except StillhouseError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()  # what the imports made stays: no collection need look at it while somebody waits
    app = Server(agents, limits=settings.limits, guard=settings.guard(), metrics=Metrics(folder, name))
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
        listeners = [stack.enter_context(listener.dup()) for _ in range(_ACCEPTED_AT_ONCE)]
        _Web(options, ready).run(sockets=listeners)
    for agent in agents:
        agent.close()


class _Web(uvicorn.Server):
    """uvicorn that says when it is ready, and ends by our signals."""

    def __init__(self, options: uvicorn.Config, ready: Connection) -> None:
        super().__init__(options)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop, supervisor = asyncio.get_running_loop(), multiprocessing.parent_process()
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        if supervisor is not None:
            loop.add_reader(supervisor.sentinel, self._leave)
        self._ready.send(True)
        self._ready.close()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.expire(now)
        return await super().on_tick(counter)

    def _leave(self) -> None:
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            asyncio.get_running_loop().remove_reader(supervisor.sentinel)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Not uvicorn's way, which ends the process by the signal that it was told to leave with."""
        yield
