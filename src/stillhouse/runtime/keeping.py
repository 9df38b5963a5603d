"""What the supervisor does for an agent: it follows the registry, and moves what was recorded on."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from pathlib import Path

from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.flush import flush
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.background import Repeating
from stillhouse.runtime.reports import Report, write_report
from stillhouse.runtime.status import Troubles, merged

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

_TELL_SECONDS = 1.0
_MOST_PAUSE = 60.0
_GARBAGE = 100_000  # a flush makes many small objects at once and keeps them to its end: looking at them is in vain
_NICE = 5  # whoever waits for a decision comes first; under load a flush takes longer


class Keeper:
    """An agent that never decides, in a thread of its own: making it may wait for the registry.

    Whatever fails is tried again, with growing pauses, and told: by another thread, which waits for nothing.

    :param folder: where it tells the workers how it stands.
    :param server: the troubles of the server as a whole, which are told with its own.
    """

    def __init__(self, agent: str, folder: Path, server: Troubles) -> None:
        self._name, self._folder, self._server = agent, folder, server
        self._own = Troubles(agent)
        self._agent: Agent | None = None
        self._stopping = threading.Event()
        self._telling = Repeating(f"{agent} tells", self._tell, _TELL_SECONDS)
        self._thread = threading.Thread(target=self._run, name=f"{agent} keeper", daemon=True)
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Follow no longer, and flush once more; :meth:`ended` waits for it."""
        self._stopping.set()
        if self._agent is None:  # it is being made, which may wait for the registry: the flush need not
            self._thread = threading.Thread(target=self._end, name=f"{self._name} last flush", daemon=True)
            self._thread.start()

    def ended(self, patience: float) -> bool:
        """Whether the last flush has ended within so many seconds."""
        if not self._stopping.is_set():
            self.begin_to_stop()
        self._thread.join(max(0.0, patience))
        self._telling.stop(_TELL_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # where only processes have a priority
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)  # and of threads it starts
        try:
            self._agent = self._made()
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GARBAGE)
            self._stopping.wait()
        finally:
            self._end()

    def _made(self) -> Agent | None:
        """The agent, as soon as it can be made; None where the server ends before."""
        pause = 1.0
        while not self._stopping.is_set():
            try:
                agent = Agent(self._name)
            except Exception as error:  # whatever it is may be better later, and decisions do not depend on it
                log.debug("keeping", exc_info=True)
                self._own.tell(
                    "supervisor", f"neither followed nor flushed: {type(error).__name__}: {error}; tried again"
                )
                self._stopping.wait(pause)
                pause = min(2 * pause, _MOST_PAUSE)
            else:
                self._own.over("supervisor")
                return agent
        return None

    def _end(self) -> None:
        try:
            if self._agent is not None:
                self._agent.close()
            else:
                flush(KnowledgeBase(config.load(self._name)))
        except Exception as error:
            log.error("%s: the last flush failed, and what waits stays in the spools: %s", self._name, error)

    def _tell(self) -> None:
        agent, own, last_flush = self._agent, self._own.all(), None
        if agent is not None:
            try:
                status = agent.status()
            except Exception as error:  # of a status nothing may depend
                self._own.tell("supervisor", f"its status cannot be told: {type(error).__name__}: {error}")
                own = self._own.all()
            else:
                self._own.over("supervisor")
                own, last_flush = merged(self._own.all(), status.problems), status.last_flush
        write_report(
            self._folder, "keeper", self._name, Report(problems=merged(own, self._server.all()), last_flush=last_flush)
        )
