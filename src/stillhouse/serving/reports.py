"""Status files by which the processes of one ``stillhouse serve`` inform each other, and ``stillhouse status``.

Each process rewrites small files of its own in the server's folder under ``STILLHOUSE_HOME/serve/``: housekeepers and
workers their problems, workers also their counts. A folder that was removed is made again. If writing fails, the
readers notice that the file is stale; a file that cannot be read is ignored.
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
from stillhouse.runtime.status import Component, Problem, merge_problems

__all__ = [
    "STALE_SECONDS",
    "Report",
    "ServerFolder",
    "read_housekeeper_report",
    "read_local_problems",
    "read_worker_problems",
    "write_file",
    "write_report",
]

STALE_SECONDS = 20.0
"""Age above which a report is ignored."""

_LOCK_FILE = "server.lock"


class Report(Record):
    """What one process of a server reports about one agent."""

    problems: dict[Component, Problem]
    last_flush: AwareDatetime | None = Field(
        default=None, description="when the housekeeper last flushed the spools; null from a worker"
    )


class ServerFolder:
    """The folder of one running server; making it removes the folders of servers that were killed.

    :raises OSError: if it cannot be made.
    """

    def __init__(self) -> None:
        parent = home() / "serve"
        parent.mkdir(parents=True, exist_ok=True)
        for folder in parent.iterdir():
            with suppress(OSError, Timeout), FileLock(folder / _LOCK_FILE, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        self.path = parent / uuid.uuid4().hex
        self.path.mkdir()
        self._lock = FileLock(self.path / _LOCK_FILE)
        self._lock.acquire(timeout=0)

    def remove(self) -> None:
        """Release the lock and remove the folder, when the server ends."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def write_file(file: Path, content: bytes) -> None:
    """Replace a file atomically; a missing folder is made.

    :raises OSError: if the disk refuses.
    """
    try:
        write_atomic(file, content)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)


def write_report(folder: Path, process: str, agent: str, report: Report) -> None:
    """Write a process's report about an agent.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_report(Path(folder), "keeper", "flights", Report(problems={}))
    ...     read_housekeeper_report(Path(folder), "flights", time.time()).problems
    {}

    :param process: ``keeper`` for the housekeeper, or a worker's name.
    :raises OSError: if the disk refuses.
    """
    write_file(folder / f"{agent}.{process}.report", report.model_dump_json().encode())


def read_housekeeper_report(folder: Path, agent: str, began: float) -> Report:
    """The latest report of the agent's housekeeper; a missing or stale report is a problem of its own.

    :param began: ``time.time()`` since when the housekeeper could have written a report.
    """
    file = folder / f"{agent}.keeper.report"
    report, written_at = _read(file), began
    if report is not None:
        with suppress(OSError):
            written_at = file.stat().st_mtime
    age = time.time() - written_at
    if age <= STALE_SECONDS:
        return Report(problems={}) if report is None else report
    now = datetime.now(UTC)
    text = (
        f"the supervisor has written no report in {folder} for {age:.0f} s: perhaps it neither follows the registry "
        "nor flushes; is the disk full, or the folder read-only?"
    )
    silence = Problem(since=now, at=now, text=text)
    problems = {} if report is None else report.problems
    last_flush = None if report is None else report.last_flush
    return Report(problems={**problems, "supervisor": silence}, last_flush=last_flush)


def read_worker_problems(folder: Path, agent: str, exclude: str) -> dict[Component, Problem]:
    """The problems of all workers with a fresh report, except the worker named ``exclude``."""
    files = folder.glob(f"{agent}.[0-9]*.report")
    own_file = f"{agent}.{exclude}.report"
    return merge_problems(*(report.problems for file in files if file.name != own_file for report in _fresh(file)))


def read_local_problems(agent: str) -> dict[Component, Problem]:
    """The problems of all servers of the agent on this machine that share this ``STILLHOUSE_HOME``."""
    files = (home() / "serve").glob(f"*/{agent}.*.report")
    return merge_problems(*(report.problems for file in files for report in _fresh(file)))


def _fresh(file: Path) -> Iterator[Report]:
    """The report in the file, unless it is stale."""
    with suppress(OSError):
        if time.time() - file.stat().st_mtime <= STALE_SECONDS and (report := _read(file)) is not None:
            yield report


def _read(file: Path) -> Report | None:
    try:
        return Report.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
