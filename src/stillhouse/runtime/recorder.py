"""Group commit: what arrives while the disk is busy is written in the next commit, all of it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple

from stillhouse.knowledge.events import Event
from stillhouse.runtime.agent import Agent, Decision, Judged

__all__ = ["Recorder"]


class _Waiting(NamedTuple):
    judged: Judged | None
    events: Sequence[Event]
    done: asyncio.Future[list[Decision]]


class Recorder:
    """Records what an agent's requests decided and learned, for one event loop.

    A commit waits for the disk, which takes longer than deciding: a thread of its own waits, while the loop goes on
    reading and judging. What is handed in by then shares the next commit.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._waiting = list[_Waiting]()
        self._writing = False
        self._work: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"recorder-{agent.config.agent}", daemon=True)
        self._thread.start()

    def put(self, judged: Judged | None, events: Sequence[Event] = ()) -> asyncio.Future[list[Decision]]:
        """The decisions, once they and the ``events`` will survive any crash.

        :raises SpoolError: when awaited; nothing of it was written.
        """
        done = self._loop.create_future()
        self._waiting.append(_Waiting(judged, events, done))
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._begin)  # what else is ready in this turn of the loop comes along
        return done

    def close(self) -> None:
        """End the thread; what was put has been written."""
        self._work.put(None)
        self._thread.join()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._work.put(waiting)

    def _write(self) -> None:
        """The thread: one commit after another."""
        while (waiting := self._work.get()) is not None:
            judged = [each.judged for each in waiting if each.judged is not None]
            events = [event for each in waiting for event in each.events]
            found: list[list[Decision]] | BaseException
            try:
                found = self._agent.record(judged, events)
            except BaseException as error:
                found = error
            self._loop.call_soon_threadsafe(self._answer, waiting, found)

    def _answer(self, waiting: Sequence[_Waiting], found: list[list[Decision]] | BaseException) -> None:
        """Back in the loop: whoever waits gets his decisions, and the next commit begins."""
        if self._waiting:
            self._begin()
        else:
            self._writing = False
        made = iter(found if isinstance(found, list) else ())
        for each in waiting:
            if each.done.cancelled():
                if each.judged is not None and isinstance(found, list):
                    next(made)
            elif isinstance(found, BaseException):
                each.done.set_exception(found)
            else:
                each.done.set_result([] if each.judged is None else next(made))
