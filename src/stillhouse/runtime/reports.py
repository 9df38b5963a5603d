"""How the processes of one ``stillhouse serve`` tell each other, and ``stillhouse status``, how they stand.

Each writes small files of its own, again and again, into a folder of the server's under ``STILLHOUSE_HOME/serve/``: the
keepers and the workers what troubles them, the workers their counts. A folder that was removed is made again; what
cannot be written is told by whoever finds that nothing new was written; what cannot be read is passed over.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, Field, ValidationError

from stillhouse.config import home
from stillhouse.files import write_atomic
from stillhouse.records import Record
from stillhouse.runtime.status import Problem, Side, merged

__all__ = [
    "SILENT_SECONDS",
    "Report",
    "ServerFolder",
    "keeper_report",
    "problems_here",
    "worker_problems",
    "write",
    "write_report",
]

SILENT_SECONDS = 20.0
"""After which what was told last says nothing about now."""

_LOCK = "server.lock"


class Report(Record):
    """What one process of a server tells about one agent."""

    problems: dict[Side, Problem]
    last_flush: AwareDatetime | None = Field(default=None, description="by the keeper: when it last emptied the spools")


class ServerFolder:
    """The folder of one running server; what servers left that were killed is removed.

    :raises OSError: if it cannot be made.
    """

    def __init__(self) -> None:
        top = home() / "serve"
        top.mkdir(parents=True, exist_ok=True)
        for left in top.iterdir():
            with suppress(OSError, Timeout), FileLock(left / _LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        self.path = top / uuid.uuid4().hex
        self.path.mkdir()
        self._lock = FileLock(self.path / _LOCK)
        self._lock.acquire(timeout=0)

    def remove(self) -> None:
        """At the server's end."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def write(file: Path, content: bytes) -> None:
    """Write a file at once, in a folder that is made again if it was removed.

    :raises OSError: if the disk refuses.
    """
    try:
        write_atomic(file, content)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)


def write_report(folder: Path, name: str, agent: str, report: Report) -> None:
    """Let the others know.

    :param name: of the process: ``keeper``, or a worker's.
    :raises OSError: if the disk refuses.
    """
    write(folder / f"{agent}.{name}.report", report.model_dump_json().encode())


def keeper_report(folder: Path, agent: str, began: float) -> Report:
    """What the agent's keeper told last; that it tells nothing is a problem of its own.

    :param began: by ``time.time()``, since when it could have told something.
    """
    file = folder / f"{agent}.keeper.report"
    told, newest = _read(file), began
    if told is not None:
        with suppress(OSError):
            newest = file.stat().st_mtime
    age = time.time() - newest
    if age <= SILENT_SECONDS:
        return Report(problems={}) if told is None else told
    now = datetime.now(UTC)
    text = (
        f"the supervisor has told nothing in {folder} for {age:.0f} s: nobody may follow the registry, or flush; is "
        "the disk full, or the folder read-only?"
    )
    silent = Problem(since=now, at=now, text=text)
    before = {} if told is None else told.problems
    return Report(problems={**before, "supervisor": silent}, last_flush=None if told is None else told.last_flush)


def worker_problems(folder: Path, agent: str, but: str) -> dict[Side, Problem]:
    """The problems of all workers that told something of late, ``but`` one."""
    there = folder.glob(f"{agent}.[0-9]*.report")
    return merged(*(told.problems for file in there if file.name != f"{agent}.{but}.report" for told in _fresh(file)))


def problems_here(agent: str) -> dict[Side, Problem]:
    """The problems of all servers of the agent that run on this machine with this ``STILLHOUSE_HOME``."""
    files = (home() / "serve").glob(f"*/{agent}.*.report")
    return merged(*(told.problems for file in files for told in _fresh(file)))


def _fresh(file: Path) -> Iterator[Report]:
    """What is told in the file, if it was told of late."""
    with suppress(OSError):
        if time.time() - file.stat().st_mtime <= SILENT_SECONDS and (told := _read(file)) is not None:
            yield told


def _read(file: Path) -> Report | None:
    try:
        return Report.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
