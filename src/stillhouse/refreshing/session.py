"""The session of a refresh: its data, registry, teachers and champion, each opened once per process.

Only small frozen records are passed between the steps of a refresh, because a Prefect task may be retried in another
process. A step calls :func:`get_session` with its record: the process that began the refresh returns the open session,
another process opens a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
from pydantic import AwareDatetime, Field

from stillhouse import config
from stillhouse.champion import Champion, load_champion, load_version, open_registry
from stillhouse.config import AgentConfig, FittedDistillation
from stillhouse.errors import ConfigError
from stillhouse.gateway.handing_over import hand_over
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Record, Refresh, RefreshModeName, TeacherRef, TeacherWeights, Window, short_id
from stillhouse.refreshing.data import RefreshData, TrainingRows
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
    "get_session",
    "join_windows",
    "open_session",
    "request_refresh",
    "session_scope",
]

Trigger = Literal["bootstrap", "drift", "manual"]
TeacherChoice = Literal["fit", "keep"]

_MAX_OPEN_SESSIONS = 2
_EXAMPLE_ROWS, _NO_TEXT = 4, "a message"
_MAX_CAUSE_CHARS = 500


class RefreshRequest(Record):
    """A request for a refresh; equal requests have the same id."""

    refresh_id: str
    agent: str
    as_of: AwareDatetime
    trigger: Trigger
    cause: str
    teacher: TeacherChoice
    mode: RefreshModeName
    window: Window = Field(description="training and test window together: all rows that the refresh may read")
    test_start: AwareDatetime = Field(description="end of the training window, and start of the test window")


def request_refresh(
    agent: str, as_of: datetime | None, trigger: Trigger, cause: str, teacher: TeacherChoice, mode: RefreshModeName
) -> RefreshRequest:
    """Make the request of a refresh, with its window pinned to the present table versions.

    What the front door has recorded by now comes to the knowledge base first.

    :param as_of: time of the refresh; None: now, by the clock that the agent file names.
    :raises ConfigError: if trigger, teacher or mode is unknown, or the cause is too long.
    """
    settings = config.load(agent)
    for name, value, allowed in (
        ("trigger", trigger, Trigger),
        ("teacher", teacher, TeacherChoice),
        ("mode", mode, RefreshModeName),
    ):
        if value not in get_args(allowed):
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(get_args(allowed))}")
    if len(cause) > _MAX_CAUSE_CHARS:
        raise ConfigError(f"cause: has {len(cause)} characters, and may have {_MAX_CAUSE_CHARS}")
    if settings.front_door is not None:
        hand_over(settings)
    base = KnowledgeBase(settings)
    now = base.resolve_time(as_of)
    end = now - settings.label_delay
    test_start = end - _fit_test_length(base, now, end)
    return RefreshRequest(
        refresh_id=short_id(agent, now.isoformat(), trigger, cause, teacher, mode, settings.model_dump_json()),
        agent=agent,
        as_of=now,
        trigger=trigger,
        cause=cause,
        teacher=teacher,
        mode=mode,
        window=base.window("refresh", test_start - settings.windows.train, end),
        test_start=test_start,
    )


class Session:
    """The open parts of a running refresh in this process.

    :param agent: name of the agent file.
    :param as_of: time of the refresh.
    :param window: training and test window together.
    :param test_start: where the test window begins; None: all rows may be trained on.
    """

    def __init__(
        self, agent: str, refresh_id: str, as_of: datetime, window: Window, test_start: datetime | None = None
    ) -> None:
        self.agent = agent
        self.refresh_id = refresh_id
        self.as_of = as_of
        self.settings: AgentConfig = config.load(agent)
        self.base = KnowledgeBase(self.settings)
        self.data = RefreshData(self.base, window, as_of, test_start, load_teacher=self.load_teacher)
        self._job: Refresh | None = None
        self._teachers: dict[str, Ensemble] = {}

    def example_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The first rows as examples of a model's input; without their texts where those may not be shown."""
        example = rows.head(_EXAMPLE_ROWS)
        if self.settings.shows_examples:
            return example
        return example.assign(**dict.fromkeys(self.settings.observations.texts, _NO_TEXT))

    @property
    def job(self) -> Refresh:
        """The record of the refresh that the present step works on."""
        assert self._job is not None  # before the run is opened there is only a request
        return self._job

    @job.setter
    def job(self, job: Refresh) -> None:
        self._job = job
        self.data = self.data.with_window(join_windows(job.train, job.test))

    @cached_property
    def registry(self) -> Registry:
        """The agent's registry."""
        return open_registry(self.agent)

    @cached_property
    def champion(self) -> Champion | None:
        """The champion at the start of this refresh; the lock keeps others from promoting another one."""
        return load_champion(self.agent, self.settings)

    @cached_property
    def previous(self) -> Champion | None:
        """The champion before the current one."""
        model = self.registry.previous()
        return None if model is None else load_version(self.agent, model)

    @cached_property
    def foreign_models(self) -> ForeignModels:
        """Loads the models of teachers of kind ``mlflow``."""
        return ForeignModels()

    @property
    def distillation(self) -> FittedDistillation:
        """The settings of the distillation; what the agent file leaves open is chosen by the rows to train on."""
        return self.data.distillation

    @property
    def training_rows(self) -> TrainingRows:
        """The rows of the training window."""
        return self.data.read_training_rows(self.job.train)

    @property
    def new_rows(self) -> TrainingRows:
        """The rows of the training window that are new to the champion."""
        return self.data.read_training_rows(self.job.new_window)

    @property
    def budget(self) -> LabelingBudget:
        """What this refresh may still spend on its teachers."""
        return labeling.open_refresh_budget(self.base, self.refresh_id, self.as_of)

    def load_teacher(self, reference: TeacherRef) -> Ensemble:
        """The teachers of a reference, loaded once.

        :raises PartError: if the agent file describes other teachers by now.
        """
        if reference.version not in self._teachers:
            self._teachers[reference.version] = self._load(Path(reference.folder))
        return self._teachers[reference.version]

    def reweigh(self, before: TeacherRef, after: TeacherRef, mixture: TeacherWeights) -> Ensemble:
        """The same teachers with other weights, without loading them again."""
        self._teachers[after.version] = self.load_teacher(before).with_weights(mixture, after.version)
        return self._teachers[after.version]

    def _load(self, folder: Path) -> Ensemble:
        if self.job.teacher == "keep" and self.champion is not None and folder == self.champion.teacher_folder():
            return self.champion.teacher
        return ensemble.load(folder, self.settings, self.foreign_models)


def open_session(request: RefreshRequest) -> Session:
    """Open a new session for a request; it replaces a session of an earlier attempt."""
    close_session(request.refresh_id)
    while len(_OPEN_SESSIONS) >= _MAX_OPEN_SESSIONS:
        _OPEN_SESSIONS.pop(next(iter(_OPEN_SESSIONS)))
    session = Session(request.agent, request.refresh_id, request.as_of, request.window, request.test_start)
    _OPEN_SESSIONS[_key(request.refresh_id)] = session
    return session


@contextmanager
def session_scope(request: RefreshRequest) -> Iterator[Session]:
    """A new session for a request, which is closed at the end, also after an error."""
    try:
        yield open_session(request)
    finally:
        close_session(request.refresh_id)


def get_session(refresh: Refresh | RefreshRequest) -> Session:
    """The session of a running refresh; opened if this process has none."""
    session = _OPEN_SESSIONS.get(_key(refresh.refresh_id))
    if isinstance(refresh, RefreshRequest):
        return session or open_session(refresh)
    if session is None:
        window = join_windows(refresh.train, refresh.test)
        session = Session(refresh.agent, refresh.refresh_id, refresh.as_of, window, refresh.test.start)
        _OPEN_SESSIONS[_key(refresh.refresh_id)] = session
    session.job = refresh
    return session


def close_session(refresh_id: str) -> None:
    """Close the session of a refresh in this process, if there is one."""
    _OPEN_SESSIONS.pop(_key(refresh_id), None)


def join_windows(train: Window, test: Window) -> Window:
    """The training window and the following test window as one window."""
    return train.model_copy(update={"name": "refresh", "end": test.end})


_OPEN_SESSIONS: dict[tuple[Path, str], Session] = {}


def _key(refresh_id: str) -> tuple[Path, str]:
    return config.home(), refresh_id


def _fit_test_length(base: KnowledgeBase, now: datetime, end: datetime) -> timedelta:
    """The length of the test window that ends at ``end``; chosen from the labelled rows if the agent file has none.

    Rows count as stored, also those that the data contract sets aside later: a repeated request finds the same rows.
    """
    windows, min_rows = base.config.windows, base.config.observations.min_rows
    if windows.test is not None:
        return windows.test
    longest = base.window("refresh", end - windows.longest_test - windows.train, end)
    observed = base.read("observations", longest, ["observation_id", "observed_at"])
    labelled = base.join_labels(observed.drop_duplicates("observation_id"), longest, now)
    times = labelled.loc[labelled["outcome"] >= 0, "observed_at"]
    span = end - times.min().to_pydatetime() if len(times) else end - longest.start
    return windows.fit_test(len(times), span, min_rows)
