"""What one refresh works with, each part opened once; found again by the refresh's id.

Between stations (Prefect's tasks, which may run again, and in another process) only small frozen records travel. A
station calls :func:`session_of` with the refresh it was given: in the process that began the refresh it gets what is
open there, in a new one all is opened anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, Field

from stillhouse import config
from stillhouse.champion import Champion, load_champion, load_version, open_registry
from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Record, Refresh, RefreshModeName, TeacherRef, TeacherWeights, Window, short_id
from stillhouse.refreshing.data import LearningRows, RefreshData
from stillhouse.registry import Registry
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import ensemble, labeling
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import LabelingBudget

__all__ = [
    "RefreshRequest",
    "Session",
    "Trigger",
    "close_session",
    "open_session",
    "opened_session",
    "request_refresh",
    "session_of",
    "span_of",
]

Trigger = Literal["bootstrap", "drift", "manual"]
Keep = Literal["fit", "keep"]

_MOST_OPEN = 2
_LONGEST_CAUSE = 500  # characters


class RefreshRequest(Record):
    """Who asks for which refresh: the same request, the same id."""

    refresh_id: str
    agent: str
    as_of: AwareDatetime
    trigger: Trigger
    cause: str
    teacher: Keep
    mode: RefreshModeName
    window: Window = Field(description="training and test window together: all that the refresh may look at")


def request_refresh(
    agent: str, as_of: datetime | None, trigger: Trigger, cause: str, teacher: Keep, mode: RefreshModeName
) -> RefreshRequest:
    """The request as a record, its window pinned to the table versions of now.

    :param as_of: the moment to speak of; None: now, by the clock that the agent file names.
    :raises ConfigError: if one of them is none that there is.
    """
    settings = config.load(agent)
    for name, value, allowed in (
        ("trigger", trigger, Trigger),
        ("teacher", teacher, Keep),
        ("mode", mode, RefreshModeName),
    ):
        if value not in get_args(allowed):
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(get_args(allowed))}")
    if len(cause) > _LONGEST_CAUSE:
        raise ConfigError(f"cause: has {len(cause)} characters, and may have {_LONGEST_CAUSE}")
    base = KnowledgeBase(settings)
    now = base.resolve_time(as_of)
    end = now - settings.outcomes.delay
    return RefreshRequest(
        refresh_id=short_id(agent, now.isoformat(), trigger, cause, teacher, mode, settings.model_dump_json()),
        agent=agent,
        as_of=now,
        trigger=trigger,
        cause=cause,
        teacher=teacher,
        mode=mode,
        window=base.window("refresh", end - settings.windows.test - settings.windows.train, end),
    )


class Session:
    """One refresh under way in this process.

    :param agent: name of the agent file.
    :param window: the training and the test window together.
    """

    def __init__(self, agent: str, refresh_id: str, as_of: datetime, window: Window) -> None:
        self.agent = agent
        self.refresh_id = refresh_id
        self.as_of = as_of
        self.settings: AgentConfig = config.load(agent)
        self.base = KnowledgeBase(self.settings)
        self.data = RefreshData(self.base, window, as_of)
        self._job: Refresh | None = None
        self._teachers: dict[str, Ensemble] = {}

    @property
    def job(self) -> Refresh:
        """The refresh as the station that works on it now was given it."""
        assert self._job is not None  # only a request is there before the run is opened
        return self._job

    @job.setter
    def job(self, job: Refresh) -> None:
        self._job = job
        self.data = self.data.at(span_of(job.train, job.test))

    @cached_property
    def registry(self) -> Registry:
        """The agent's registry."""
        return open_registry(self.agent)

    @cached_property
    def champion(self) -> Champion | None:
        """The champion when this refresh first asked for it; nobody else may promote one while it holds the lock."""
        return load_champion(self.agent, self.settings)

    @cached_property
    def previous(self) -> Champion | None:
        """The champion before."""
        model = self.registry.previous()
        return None if model is None else load_version(self.agent, model)

    @cached_property
    def foreign(self) -> ForeignModels:
        """Models that teachers of kind ``mlflow`` name."""
        return ForeignModels()

    @property
    def training(self) -> LearningRows:
        """What a student may learn from in the training window."""
        return self.data.learning(self.job.train)

    @property
    def new(self) -> LearningRows:
        """The same of what is new since the champion learned."""
        return self.data.learning(self.job.news)

    @property
    def account(self) -> LabelingBudget:
        """What this refresh may still spend on its teachers."""
        return labeling.open_refresh_budget(self.base, self.refresh_id, self.as_of)

    def teacher(self, reference: TeacherRef) -> Ensemble:
        """The teachers in a folder, loaded once.

        :raises PartError: if the agent file describes them otherwise by now.
        """
        if reference.version not in self._teachers:
            self._teachers[reference.version] = self._load(Path(reference.folder))
        return self._teachers[reference.version]

    def reweighted(self, before: TeacherRef, after: TeacherRef, weights: TeacherWeights) -> Ensemble:
        """The same teachers under other weights; nothing is loaded again."""
        self._teachers[after.version] = self.teacher(before).with_weights(weights, after.version)
        return self._teachers[after.version]

    def _load(self, folder: Path) -> Ensemble:
        if self.job.teacher == "keep" and self.champion is not None and folder == self.champion.teacher_folder():
            return self.champion.teacher
        return ensemble.load(folder, self.settings, self.foreign)


def open_session(request: RefreshRequest) -> Session:
    """Open a session for a refresh that begins, instead of one that an earlier try may have left."""
    close_session(request.refresh_id)
    while len(_OPEN) >= _MOST_OPEN:
        _OPEN.pop(next(iter(_OPEN)))
    session = Session(request.agent, request.refresh_id, request.as_of, request.window)
    _OPEN[_key(request.refresh_id)] = session
    return session


@contextmanager
def opened_session(request: RefreshRequest) -> Iterator[Session]:
    """The session of a refresh that begins; whatever it ends with, nothing stays open in this process."""
    try:
        yield open_session(request)
    finally:
        close_session(request.refresh_id)


def session_of(refresh: Refresh | RefreshRequest) -> Session:
    """The session of a refresh that is under way; opened where this process has none."""
    session = _OPEN.get(_key(refresh.refresh_id))
    if isinstance(refresh, RefreshRequest):
        return session or open_session(refresh)
    if session is None:
        window = span_of(refresh.train, refresh.test)
        session = Session(refresh.agent, refresh.refresh_id, refresh.as_of, window)
        _OPEN[_key(refresh.refresh_id)] = session
    session.job = refresh
    return session


def close_session(refresh_id: str) -> None:
    """Let go of all that the refresh has open in this process."""
    _OPEN.pop(_key(refresh_id), None)


def span_of(train: Window, test: Window) -> Window:
    """The training window and the test window that follows it, as one."""
    return train.model_copy(update={"name": "refresh", "end": test.end})


_OPEN: dict[tuple[Path, str], Session] = {}


def _key(refresh_id: str) -> tuple[Path, str]:
    return config.home(), refresh_id
