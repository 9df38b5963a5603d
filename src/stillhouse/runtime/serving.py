"""``stillhouse serve``: one supervisor, and workers that decide.

The supervisor holds the listening socket and starts the workers, each in a process of its own; it starts a new one for
one that died, after pauses that grow where they die soon. Alone it follows the registry and moves what all of them
recorded into the knowledge base: a worker neither knows MLflow nor waits for it. On SIGTERM the workers stop accepting,
answer what they have in their hands, and leave; then the spools are emptied once more.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from stillhouse import config
from stillhouse.errors import ConfigError
from stillhouse.runtime.keeping import Keeper
from stillhouse.runtime.reports import ServerFolder
from stillhouse.runtime.settings import Settings, tokens_of
from stillhouse.runtime.status import Troubles

__all__ = ["Settings", "Supervisor", "serve", "tokens_of"]

log = logging.getLogger(__name__)

_BACKLOG = 2048
_DRAIN_SECONDS = 35.0  # for a worker to leave: a request's body may take 30 s
_FLUSH_SECONDS = 60.0  # for the last flush
_LIVED_LONG_SECONDS = 10.0
_FIRST_PAUSE, _MOST_PAUSE = 0.25, 10.0  # seconds before a worker that died soon is started again


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT.

    :param on_ready: told the address once every worker answers.
    :returns: the exit code: 0 after a clean end.
    :raises ConfigError: if it may not, or cannot, listen there.
    """
    settings.require_safe()
    for agent in settings.agents:
        config.load(agent)
    with _listening(settings) as listener, _folder() as folder:
        return Supervisor(settings, listener, folder).run(on_ready)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    try:
        made = ServerFolder()
    except OSError as error:
        raise ConfigError(f"STILLHOUSE_HOME, which is {config.home()}, cannot be written: {error}") from error
    try:
        yield made.path
    finally:
        made.remove()


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error}; choose another with --host and --port"
        ) from error
    with listener:
        bound = listener.getsockname()[0]
        if not settings.tokens and not ipaddress.ip_address(bound).is_loopback:
            raise ConfigError(
                f"--host {settings.host} is {bound} here, which other machines can reach, and no token is set: put one "
                "into the environment variable STILLHOUSE_TOKENS"
            )
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
    due: float = 0.0
    """By the monotonic clock: when a worker is to be started here, where there is none."""


class Supervisor:
    """Keeps the workers alive, follows the registry and flushes, until it is told to stop.

    :param folder: where its processes tell each other how they stand.
    """

    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._places = [_Place(number) for number in range(settings.workers)]
        self._folder = folder
        self._troubles = Troubles("server")
        self._context = multiprocessing.get_context("spawn")
        self._wake, self._woken = os.pipe()
        self._stopping = False

    def run(self, on_ready: Callable[[str], None]) -> int:
        """Until a signal; then drained and flushed."""
        # any thread may be given the signal, and then the main one, which waits, has to be woken
        os.set_blocking(self._woken, False)
        wakes = signal.set_wakeup_fd(self._woken)
        before = {sig: signal.signal(sig, self._stop) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._start_those_due()
            keepers = [Keeper(agent, self._folder, self._troubles) for agent in self._settings.agents]
            self._watch(on_ready)
            self._drain()
            self._flush(keepers)
            return 0
        finally:
            for place in self._places:
                if place.process is not None and place.process.is_alive():
                    place.process.kill()
            for sig, handler in before.items():
                signal.signal(sig, handler)
            signal.set_wakeup_fd(wakes)
            os.close(self._wake)
            os.close(self._woken)

    def _stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _watch(self, on_ready: Callable[[str], None]) -> None:
        """Start workers, and others for those that die, until told to stop."""
        unready = {place.number for place in self._places}
        while not self._stopping:
            self._start_those_due()
            sentinels = {place.process.sentinel: place for place in self._places if place.process is not None}
            pipes = {place.ready: place for place in self._places if place.ready is not None}
            for found in wait([self._wake, *sentinels, *pipes], self._patience()):
                if found == self._wake:
                    os.read(self._wake, 1)
                elif isinstance(found, Connection):
                    place = pipes[found]
                    place.ready = None
                    if _says_ready(found) and unready:
                        unready.discard(place.number)
                        if not unready:
                            with contextlib.suppress(OSError):  # whoever read what is printed may have gone
                                on_ready(_address(self._listener))
                elif isinstance(found, int) and found in sentinels:
                    self._bury(sentinels[found])

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.process is None and place.due <= now:
                try:
                    self._start(place)
                except OSError as error:  # no memory, no process: later there may be
                    self._lose(place, f"cannot be started: {error}")
            elif place.early_deaths and place.process is not None and now - place.began > _LIVED_LONG_SECONDS:
                place.early_deaths = 0
        if all(place.process is not None and not place.early_deaths for place in self._places):
            self._troubles.over("supervisor")

    def _patience(self) -> float | None:
        """Seconds until something is due without anybody's saying so; None: nothing is."""
        moments = [
            place.due if place.process is None else place.began + _LIVED_LONG_SECONDS + 0.1
            for place in self._places
            if place.process is None or place.early_deaths
        ]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _start(self, place: _Place) -> None:
        from stillhouse.runtime.worker import work

        ready, theirs = self._context.Pipe(duplex=False)
        try:
            place.generation += 1
            process = self._context.Process(
                target=work,
                name=f"stillhouse-worker-{place.number}",
                args=(self._settings, self._listener, f"{place.number}-{place.generation}", self._folder, theirs),
            )
            process.start()
        except BaseException:
            ready.close()
            raise
        finally:
            theirs.close()
        place.process, place.ready, place.began = process, ready, time.monotonic()

    def _bury(self, place: _Place) -> None:
        """A worker died: another is to be started in its place."""
        assert place.process is not None
        place.process.join()
        code, place.process = place.process.exitcode, None
        if time.monotonic() - place.began >= _LIVED_LONG_SECONDS:
            place.early_deaths = 0
        if not self._stopping:
            self._lose(place, f"ended by itself (exit code {code})")

    def _lose(self, place: _Place, what: str) -> None:
        place.early_deaths += 1
        pause = min(_FIRST_PAUSE * 2 ** min(place.early_deaths - 1, 10), _MOST_PAUSE)
        place.due = time.monotonic() + pause
        times = f", {place.early_deaths} times in a row" if place.early_deaths > 1 else ""
        self._troubles.tell("supervisor", f"worker {place.number} {what}{times}; it is started again in {pause:g} s")

    def _drain(self) -> None:
        """Let the workers answer what they have in their hands, and leave; nobody new is let in."""
        self._listener.close()
        working = [place.process for place in self._places if place.process is not None]
        for process in working:
            process.terminate()
        until = time.monotonic() + _DRAIN_SECONDS
        for process in working:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                log.error(
                    "%s has not answered what it has in hand within %g s, and is ended", process.name, _DRAIN_SECONDS
                )
                process.kill()
                process.join()

    def _flush(self, keepers: Sequence[Keeper]) -> None:
        """Empty the spools once more, for as long as is stated."""
        for keeper in keepers:
            keeper.begin_to_stop()
        until = time.monotonic() + _FLUSH_SECONDS
        for agent, keeper in zip(self._settings.agents, keepers, strict=True):
            if not keeper.ended(until - time.monotonic()):
                log.error(
                    "%s: the last flush has not ended within %g s: what waits stays in the spools, for the next "
                    "flush on this machine",
                    agent,
                    _FLUSH_SECONDS,
                )


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
