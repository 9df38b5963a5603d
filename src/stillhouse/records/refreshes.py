"""A running refresh, and the baseline of its champion."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Record
from stillhouse.records.drift import DriftCalibration
from stillhouse.records.evidence import LossBaseline, Process
from stillhouse.records.models import ModelRef
from stillhouse.records.quality import Disagreement, Quality
from stillhouse.records.verdicts import RefreshModeName, Verdict
from stillhouse.records.windows import Window

__all__ = ["Baseline", "Refresh"]


class Baseline(Record):
    """The data that a champion was trained and tested on; every later watch compares with it.

    The run also has ``profile.arrow``, the profile of the training window and of the champion's output on it
    (:mod:`stillhouse.drift.profile`).
    """

    train: Window
    test: Window
    as_of: AwareDatetime = Field(description="time of the refresh; evidence on the champion may begin here")
    screens: DriftCalibration
    losses: dict[Process, LossBaseline] = Field(description="losses under the null hypothesis, by evidence process")
    disagreement: Disagreement = Field(description="of champion and teacher, on the test window")
    quality: Quality = Field(description="of the champion, on the test window")
    teacher: ModelRef


class Refresh(Record):
    """A running refresh: its cause, its windows, its folder and its MLflow run."""

    refresh_id: str
    agent: str
    as_of: AwareDatetime
    trigger: Literal["bootstrap", "drift", "manual"]
    cause: str = Field(description="id of the verdict that asked for it, or the reason of the person who did")
    train: Window
    test: Window
    teacher: Literal["fit", "keep"]
    mode: RefreshModeName = "redistil"
    since: AwareDatetime | None = Field(
        default=None, description="for an update or a recalibration: rows from this time on are new to the champion"
    )
    folder: str = Field(description="path of its files, until MLflow has them")
    run_id: str = Field(description="id of the MLflow parent run")
    contract_skipped: str | None = Field(
        default=None, description="why the data contract was not checked; None: it was"
    )
    verdict: Verdict | None = Field(
        default=None, description="verdict of an earlier run of this refresh, interrupted or finished"
    )
    finished: bool = False

    @property
    def new_window(self) -> Window:
        """The part of the training window that is new to the champion: from ``since`` on, or all of it."""
        start = self.train.start if self.since is None else max(self.train.start, min(self.since, self.train.end))
        return self.train.model_copy(update={"name": "new", "start": start})
