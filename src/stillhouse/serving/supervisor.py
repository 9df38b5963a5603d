"""``stillhouse serve``: one supervisor, and workers that decide.

The supervisor holds the listening socket and starts the workers, each as a process of its own. It replaces a worker
that died, after pauses that grow if workers die early. Only the supervisor follows the registry and flushes the spools
into the knowledge base: a worker neither uses MLflow nor waits for it. On SIGTERM the workers stop accepting, finish
their requests and exit; then the spools are flushed once more.
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
from stillhouse.runtime.status import ProblemLog
from stillhouse.serving.housekeeping import Housekeeper
from stillhouse.serving.reports import ServerFolder
from stillhouse.serving.settings import Settings, parse_tokens

__all__ = ["Settings", "Supervisor", "parse_tokens", "serve"]

log = logging.getLogger(__name__)

_BACKLOG = 2048
_DRAIN_SECONDS = 35.0  # for a worker to exit: a request's body may take 30 s
_FLUSH_SECONDS = 60.0  # for the last flush
_EARLY_DEATH_SECONDS = 10.0  # a worker that lives longer has not died early
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 10.0  # before a worker that died early is replaced


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT.

    :param on_ready: receives the address once every worker answers.
    :returns: the exit code: 0 after a clean end.
    :raises ConfigError: if the settings are unsafe, or the server cannot listen there.
    """
    settings.require_safe()
    for agent in settings.agents:
        config.load(agent)
    with _open_listener(settings) as listener, _server_folder() as folder:
        return Supervisor(settings, listener, folder).run(on_ready)


@contextlib.contextmanager
def _server_folder() -> Iterator[Path]:
    try:
        folder = ServerFolder()
    except OSError as error:
        raise ConfigError(f"STILLHOUSE_HOME, which is {config.home()}, cannot be written: {error}") from error
    try:
        yield folder.path
    finally:
        folder.remove()


@contextlib.contextmanager
def _open_listener(settings: Settings) -> Iterator[socket.socket]:
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
class _WorkerSlot:
    """One of the server's workers; a worker that died is replaced in its slot."""

    number: int
    process: SpawnProcess | None = None
    ready: Connection | None = None
    began: float = 0.0
    generation: int = 0
    early_deaths: int = 0
    start_at: float = 0.0
    """By the monotonic clock: when to start a worker if there is none."""


class Supervisor:
    """Keeps the workers alive, follows the registry and flushes, until a signal stops it.

    :param folder: for the reports of the server's processes.
    """

    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._slots = [_WorkerSlot(number) for number in range(settings.workers)]
        self._folder = folder
        self._problems = ProblemLog("server")
        self._context = multiprocessing.get_context("spawn")
        self._wakeup_read, self._wakeup_write = os.pipe()
        self._stopping = False

    def run(self, on_ready: Callable[[str], None]) -> int:
        """Serve until a signal; then drain the workers and flush."""
        # any thread may receive the signal, but the main thread, which waits, must wake up
        os.set_blocking(self._wakeup_write, False)
        previous_wakeup = signal.set_wakeup_fd(self._wakeup_write)
        previous_handlers = {sig: signal.signal(sig, self._on_signal) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._start_due_workers()
            housekeepers = [Housekeeper(agent, self._folder, self._problems) for agent in self._settings.agents]
            self._watch(on_ready)
            self._drain()
            self._flush(housekeepers)
            return 0
        finally:
            for slot in self._slots:
                if slot.process is not None and slot.process.is_alive():
                    slot.process.kill()
            for sig, handler in previous_handlers.items():
                signal.signal(sig, handler)
            signal.set_wakeup_fd(previous_wakeup)
            os.close(self._wakeup_read)
            os.close(self._wakeup_write)

    def _on_signal(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _watch(self, on_ready: Callable[[str], None]) -> None:
        """Start workers and replace dead ones until a signal stops the server."""
        not_ready = {slot.number for slot in self._slots}
        while not self._stopping:
            self._start_due_workers()
            sentinels = {slot.process.sentinel: slot for slot in self._slots if slot.process is not None}
            pipes = {slot.ready: slot for slot in self._slots if slot.ready is not None}
            for event in wait([self._wakeup_read, *sentinels, *pipes], self._seconds_until_due()):
                if event == self._wakeup_read:
                    os.read(self._wakeup_read, 1)
                elif isinstance(event, Connection):
                    slot = pipes[event]
                    slot.ready = None
                    if _receive_ready(event) and not_ready:
                        not_ready.discard(slot.number)
                        if not not_ready:
                            with contextlib.suppress(OSError):  # the reader of our output may have gone
                                on_ready(_address(self._listener))
                elif isinstance(event, int) and event in sentinels:
                    self._handle_death(sentinels[event])

    def _start_due_workers(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and slot.start_at <= now:
                try:
                    self._start(slot)
                except OSError as error:  # no memory or no process left: this may pass
                    self._schedule_restart(slot, f"cannot be started: {error}")
            elif slot.early_deaths and slot.process is not None and now - slot.began > _EARLY_DEATH_SECONDS:
                slot.early_deaths = 0
        if all(slot.process is not None and not slot.early_deaths for slot in self._slots):
            self._problems.resolve("supervisor")

    def _seconds_until_due(self) -> float | None:
        """Seconds until a slot needs attention without an event; None if none does."""
        due_times = [
            slot.start_at if slot.process is None else slot.began + _EARLY_DEATH_SECONDS + 0.1
            for slot in self._slots
            if slot.process is None or slot.early_deaths
        ]
        return max(0.0, min(due_times) - time.monotonic()) if due_times else None

    def _start(self, slot: _WorkerSlot) -> None:
        from stillhouse.serving.worker import run_worker

        ready, worker_end = self._context.Pipe(duplex=False)
        try:
            slot.generation += 1
            process = self._context.Process(
                target=run_worker,
                name=f"stillhouse-worker-{slot.number}",
                args=(self._settings, self._listener, f"{slot.number}-{slot.generation}", self._folder, worker_end),
            )
            process.start()
        except BaseException:
            ready.close()
            raise
        finally:
            worker_end.close()
        slot.process, slot.ready, slot.began = process, ready, time.monotonic()

    def _handle_death(self, slot: _WorkerSlot) -> None:
        """Schedule the replacement of a worker that died."""
        assert slot.process is not None
        slot.process.join()
        code, slot.process = slot.process.exitcode, None
        if time.monotonic() - slot.began >= _EARLY_DEATH_SECONDS:
            slot.early_deaths = 0
        if not self._stopping:
            self._schedule_restart(slot, f"exited unexpectedly (exit code {code})")

    def _schedule_restart(self, slot: _WorkerSlot, reason: str) -> None:
        slot.early_deaths += 1
        pause = min(_MIN_PAUSE_SECONDS * 2 ** min(slot.early_deaths - 1, 10), _MAX_PAUSE_SECONDS)
        slot.start_at = time.monotonic() + pause
        times = f", {slot.early_deaths} times in a row" if slot.early_deaths > 1 else ""
        self._problems.report("supervisor", f"worker {slot.number} {reason}{times}; it is restarted in {pause:g} s")

    def _drain(self) -> None:
        """Accept no more connections, and let the workers finish their requests and exit."""
        self._listener.close()
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _DRAIN_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.error("%s has not finished its requests within %g s, and is killed", process.name, _DRAIN_SECONDS)
                process.kill()
                process.join()

    def _flush(self, housekeepers: Sequence[Housekeeper]) -> None:
        """Flush the spools once more, within a time limit."""
        for housekeeper in housekeepers:
            housekeeper.request_stop()
        deadline = time.monotonic() + _FLUSH_SECONDS
        for agent, housekeeper in zip(self._settings.agents, housekeepers, strict=True):
            if not housekeeper.stop(deadline - time.monotonic()):
                log.error(
                    "%s: the last flush has not ended within %g s: the remaining rows stay in the spools, for the next "
                    "flush on this machine",
                    agent,
                    _FLUSH_SECONDS,
                )


def _receive_ready(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:  # the worker died before it was ready
        return False
    finally:
        pipe.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
