"""``stillhouse serve``: one supervisor, and workers that decide.

The supervisor holds the listening socket and starts the workers, each in a process of its own; it starts a new one for
one that died. Alone it follows the registry and moves what all of them recorded into the knowledge base: a worker
neither knows MLflow nor waits for it. On SIGTERM the workers stop accepting, answer what they have in their hands, and
leave; then the spools are emptied once more.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from stillhouse import config
from stillhouse.errors import ConfigError
from stillhouse.runtime.http import Guard, Limits
from stillhouse.runtime.keeping import Keeper

__all__ = ["Settings", "Supervisor", "serve", "tokens_of"]

log = logging.getLogger(__name__)

_BACKLOG = 2048
_DRAIN_SECONDS = 30.0
_LIVED_LONG_SECONDS = 10.0
_EARLY_DEATHS = 5


@dataclass(frozen=True)
class Settings:
    """What the command line and the environment say."""

    agents: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    limits: Limits = field(default_factory=Limits)
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def guard(self) -> Guard:
        """Who may ask."""
        hosts = ("localhost", "127.0.0.1", "[::1]", self.host.lower(), f"[{self.host.lower()}]")
        return Guard(self.tokens, hosts if self.loopback else ())

    def require_safe(self) -> None:
        """:raises ConfigError: if others than this machine could ask without a token, or an agent is named twice."""
        if not self.loopback and not self.tokens:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and no token is set: put one or more, "
                "separated by commas, into the environment variable STILLHOUSE_TOKENS, or listen on 127.0.0.1"
            )
        if len(set(self.agents)) < len(self.agents):
            raise ConfigError(f"an agent is named more than once: {' '.join(self.agents)}")


def tokens_of(text: str) -> tuple[str, ...]:
    """Of ``STILLHOUSE_TOKENS``: separated by commas."""
    return tuple(token for part in text.split(",") if (token := part.strip()))


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT.

    :param on_ready: told the address once every worker answers.
    :returns: the exit code: 0 after a clean end.
    :raises ConfigError: if it may not, or cannot, listen there.
    """
    settings.require_safe()
    for agent in settings.agents:
        config.load(agent)
    with _listening(settings) as listener:
        return Supervisor(settings, listener).run(on_ready)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {settings.host} port {settings.port}: {error}; choose another with --host "
                          "and --port") from error  # fmt: skip
    with listener:
        listener.listen(_BACKLOG)
        yield listener


# --------------------------------------------------------------------------- the supervisor


@dataclass
class _Place:
    """Where a worker works; another takes it when that one dies."""

    number: int
    process: SpawnProcess | None = None
    ready: Connection | None = None
    began: float = 0.0
    generation: int = 0
    early_deaths: int = 0


class Supervisor:
    """Keeps the workers alive, follows the registry and flushes, until it is told to stop."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._places = [_Place(number) for number in range(settings.workers)]
        self._folder = Path(tempfile.mkdtemp(prefix="stillhouse-serve-"))
        self._context = multiprocessing.get_context("spawn")
        self._wake, self._woken = os.pipe()
        self._stopping = False

    def run(self, on_ready: Callable[[str], None]) -> int:
        """Until a signal; then drained and flushed."""
        before = {sig: signal.signal(sig, self._stop) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            for place in self._places:
                self._start(place)
            keepers = [Keeper(agent, self._folder) for agent in self._settings.agents]
            code = self._watch(on_ready)
            self._drain()
            for keeper in keepers:
                keeper.stop()
            return code
        finally:
            for place in self._places:
                if place.process is not None and place.process.is_alive():
                    place.process.kill()
            for sig, handler in before.items():
                signal.signal(sig, handler)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True
        os.write(self._woken, b"x")

    def _start(self, place: _Place) -> None:
        from stillhouse.runtime.worker import work

        place.ready, theirs = self._context.Pipe(duplex=False)
        place.generation += 1
        place.process = self._context.Process(
            target=work, name=f"stillhouse-worker-{place.number}",
            args=(self._settings, self._listener, f"{place.number}-{place.generation}", self._folder, theirs),
        )  # fmt: skip
        place.began = time.monotonic()
        place.process.start()
        theirs.close()

    def _watch(self, on_ready: Callable[[str], None]) -> int:
        """Restart who dies; 0 when told to stop, 1 when workers die as soon as they are started."""
        unready = {place.number for place in self._places}
        while not self._stopping:
            sentinels = {place.process.sentinel: place for place in self._places if place.process is not None}
            pipes = {place.ready: place for place in self._places if place.ready is not None}
            for found in wait([self._wake, *sentinels, *pipes]):
                if isinstance(found, Connection):
                    place = pipes[found]
                    place.ready = None
                    if _says_ready(found) and unready:
                        unready.discard(place.number)
                        if not unready:
                            on_ready(_address(self._listener))
                elif isinstance(found, int) and found in sentinels and not self._replace(sentinels[found]):
                    return 1
        return 0

    def _replace(self, place: _Place) -> bool:
        """Start another in the place of one that died; False if that is of no use."""
        assert place.process is not None
        place.process.join()
        if self._stopping:
            place.process = None
            return True
        lived = time.monotonic() - place.began
        place.early_deaths = place.early_deaths + 1 if lived < _LIVED_LONG_SECONDS else 0
        log.warning("worker %d ended by itself (exit code %s) and is started again", place.number,
                    place.process.exitcode)  # fmt: skip
        if place.early_deaths >= _EARLY_DEATHS:
            log.error("worker %d ended %d times as soon as it was started", place.number, place.early_deaths)
            return False
        self._start(place)
        return True

    def _drain(self) -> None:
        """Let the workers answer what they have in their hands, and leave."""
        working = [place.process for place in self._places if place.process is not None]
        for process in working:
            process.terminate()
        until = time.monotonic() + 2 * _DRAIN_SECONDS
        for process in working:
            process.join(max(0.0, until - time.monotonic()))


def _says_ready(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:  # it died first
        return False
    finally:
        pipe.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
