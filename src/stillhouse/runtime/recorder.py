"""Group commit: requests that arrive while the disk is busy share the next commit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple

from stillhouse.knowledge.events import Event
from stillhouse.runtime.agent import Agent, Decision, PendingDecisions

__all__ = ["Recorder"]


class _Entry(NamedTuple):
    pending: PendingDecisions | None
    events: Sequence[Event]
    future: asyncio.Future[list[Decision]]


class Recorder:
    """Records the decisions and outcomes of an agent's requests, for one event loop.

    A commit waits for the disk, which takes longer than a decision. So a thread of its own commits, while the loop
    goes on to read requests and predict; what they hand in meanwhile is written in the next commit.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._entries = list[_Entry]()
        self._writing = False
        self._queue: SimpleQueue[list[_Entry] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"recorder-{agent.config.agent}", daemon=True)
        self._thread.start()

    def put(self, pending: PendingDecisions | None, events: Sequence[Event] = ()) -> asyncio.Future[list[Decision]]:
        """A future of the decisions, which is done once they and the ``events`` are durable.

        :raises SpoolError: when awaited; then nothing was written.
        """
        future = self._loop.create_future()
        self._entries.append(_Entry(pending, events, future))
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._start_commit)  # other requests ready in this iteration of the loop join it
        return future

    def close(self) -> None:
        """End the thread after everything that was put is written."""
        self._queue.put(None)
        self._thread.join()

    def _start_commit(self) -> None:
        entries, self._entries = self._entries, []
        self._queue.put(entries)

    def _write(self) -> None:
        """The thread's loop: one commit after another."""
        while (entries := self._queue.get()) is not None:
            pending = [entry.pending for entry in entries if entry.pending is not None]
            events = [event for entry in entries for event in entry.events]
            result: list[list[Decision]] | BaseException
            try:
                result = self._agent.record(pending, events)
            except BaseException as error:
                result = error
            self._loop.call_soon_threadsafe(self._finish_commit, entries, result)

    def _finish_commit(self, entries: Sequence[_Entry], result: list[list[Decision]] | BaseException) -> None:
        """In the event loop: start the next commit and complete the futures of this one."""
        if self._entries:
            self._start_commit()
        else:
            self._writing = False
        decisions = iter(result if isinstance(result, list) else ())
        for entry in entries:
            if entry.future.cancelled():
                if entry.pending is not None and isinstance(result, list):
                    next(decisions)
            elif isinstance(result, BaseException):
                entry.future.set_exception(result)
            else:
                entry.future.set_result([] if entry.pending is None else next(decisions))
