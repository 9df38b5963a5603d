"""What the supervisor does for an agent: it follows the registry, and moves what was recorded on."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.status import Status

__all__ = ["Keeper", "kept_status"]

log = logging.getLogger(__name__)

_TELL_SECONDS = 1.0
_GARBAGE = 100_000  # a flush makes many small objects at once and keeps them to its end: looking at them is in vain
_NICE = 5  # whoever waits for a decision comes first; under load a flush takes longer


class Keeper:
    """An agent that never decides, in a thread of its own: making it may wait for the registry.

    :param folder: where it tells the workers how it stands.
    """

    def __init__(self, agent: str, folder: Path) -> None:
        self._name, self._file = agent, _file(folder, agent)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{agent} keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer, flush once more, and return."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # where only processes have a priority
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)  # and of threads it starts
        try:
            with Agent(self._name) as agent:
                gc.collect()
                gc.freeze()
                gc.set_threshold(_GARBAGE)
                while not self._stopping.wait(_TELL_SECONDS):
                    self._tell(agent)
            self._tell(agent)
        except StillhouseError as error:
            log.error("%s: neither followed nor flushed: %s", self._name, error)

    def _tell(self, agent: Agent) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(agent.status().model_dump_json(), encoding="utf-8")
        partial.replace(self._file)


def kept_status(folder: Path | None, agent: str) -> Status | None:
    """What the agent's keeper told last; None before the first time, or without one."""
    file = None if folder is None else _file(folder, agent)
    if file is None or not file.exists():
        return None
    return Status.model_validate_json(file.read_bytes())


def _file(folder: Path, agent: str) -> Path:
    return folder / f"{agent}.status"
