"""The supervisor's work for one agent: follow the registry, and flush the spools into the knowledge base."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from pathlib import Path

from stillhouse import config
from stillhouse.gateway.handing_over import hand_over
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.flush import flush
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.background import PeriodicTask
from stillhouse.runtime.status import ProblemLog, merge_problems
from stillhouse.serving.reports import Report, write_report

__all__ = ["Housekeeper"]

log = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0  # between two reports
_MAX_PAUSE_SECONDS = 60.0  # between two attempts to make the agent
_GC_THRESHOLD = 100_000  # objects: a flush makes many that live until its end, so frequent collections find nothing
_HAND_OVER_SECONDS = 60.0  # to wait for a hand-over at the end
_NICENESS = 5  # flushes have lower priority than decisions; under load they take longer


class Housekeeper:
    """Runs an agent that never decides, in a thread of its own, because making it may wait for the registry.

    Failures are retried, with growing pauses, and reported by another thread, which never blocks on the registry.

    :param folder: for its reports to the workers.
    :param server_problems: problems of the whole server, which are reported with the agent's.
    """

    def __init__(self, agent: str, folder: Path, server_problems: ProblemLog) -> None:
        self._name, self._folder, self._server_problems = agent, folder, server_problems
        self._problems = ProblemLog(agent)
        self._agent: Agent | None = None
        self._stopping = threading.Event()
        self._report_task = PeriodicTask(f"{agent} reports", self._write_report, _REPORT_SECONDS)
        self._thread = threading.Thread(target=self._run, name=f"{agent} keeper", daemon=True)
        self._thread.start()

    def request_stop(self) -> None:
        """Stop following the registry and flush once more; :meth:`stop` waits for it."""
        self._stopping.set()
        if self._agent is None:  # it is still being made and may wait for the registry: do not wait to flush
            self._thread = threading.Thread(target=self._flush_last, name=f"{self._name} last flush", daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Stop; whether the last flush ended within ``timeout`` seconds."""
        if not self._stopping.is_set():
            self.request_stop()
        self._thread.join(max(0.0, timeout))
        self._report_task.stop(_REPORT_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # on systems where a thread has no priority of its own
            # inherited by the threads that this one starts
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
        handing_over = None
        try:
            self._agent = self._make_agent()
            if self._agent is not None and self._agent.config.front_door is not None:
                seconds = self._agent.config.runtime.flush.total_seconds()
                handing_over = PeriodicTask(f"{self._name} hands over", self._hand_over, seconds)
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
            self._stopping.wait()
        finally:
            if handing_over is not None:
                handing_over.stop(_HAND_OVER_SECONDS)
                self._hand_over()
            self._flush_last()

    def _hand_over(self) -> None:
        """Move the door's records of this agent's task into its knowledge base."""
        try:
            hand_over(config.load(self._name))
        except Exception as error:  # any error of a store: the records stay where they are, and are moved later
            log.debug("handing over", exc_info=True)
            self._problems.report("knowledge_base", f"the front door's records stay: {type(error).__name__}: {error}")
        else:
            self._problems.resolve("knowledge_base")

    def _make_agent(self) -> Agent | None:
        """Make the agent, with retries; None if the server ends first."""
        pause = 1.0
        while not self._stopping.is_set():
            try:
                agent = Agent(self._name)
            except Exception as error:  # any error may pass, and decisions do not depend on it
                log.debug("housekeeping", exc_info=True)
                self._problems.report(
                    "supervisor", f"neither follows nor flushes: {type(error).__name__}: {error}; it is tried again"
                )
                self._stopping.wait(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            else:
                self._problems.resolve("supervisor")
                return agent
        return None

    def _flush_last(self) -> None:
        try:
            if self._agent is not None:
                self._agent.close()
            else:
                flush(KnowledgeBase(config.load(self._name)))
        except Exception as error:
            log.error("%s: the last flush failed, and the remaining rows stay in the spools: %s", self._name, error)

    def _write_report(self) -> None:
        agent, problems, last_flush = self._agent, self._problems.all(), None
        if agent is not None:
            try:
                status = agent.status()
            except Exception as error:  # an error in the status must not stop the reports
                self._problems.report("supervisor", f"its status cannot be read: {type(error).__name__}: {error}")
                problems = self._problems.all()
            else:
                self._problems.resolve("supervisor")
                problems, last_flush = merge_problems(self._problems.all(), status.problems), status.last_flush
        report = Report(problems=merge_problems(problems, self._server_problems.all()), last_flush=last_flush)
        write_report(self._folder, "keeper", self._name, report)
