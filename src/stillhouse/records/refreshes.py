"""A running refresh, and the baseline of its champion."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Record
from stillhouse.records.drift import DriftCalibration
from stillhouse.records.evidence import LossBaseline, Process
from stillhouse.records.models import ModelRef
from stillhouse.records.quality import Disagreement, Quality
from stillhouse.records.verdicts import RefreshModeName, Verdict, VerdictResult
from stillhouse.records.windows import Window

__all__ = ["Baseline", "ComparedModel", "Refresh", "SameRows"]


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


class ComparedModel(Record):
    """One model and what it scored on rows that other models were scored on too."""

    role: Literal["challenger", "champion", "previous", "never_refreshed", "teacher"] = Field(
        description="at the time of the refresh; never_refreshed: the first champion"
    )
    model: str = Field(description="name@version, such as 'flights@7'; of a teacher its role")
    quality: float = Field(description="value of the measure, in its unit and direction")


class SameRows(Record):
    """What several models scored on the same rows: the test window of one refresh.

    The figures of two models may be compared only if they are in one such record.
    """

    window: Window
    rows: int = Field(ge=1)
    measure: str = Field(description="name of the measure")
    better: Literal["higher", "lower"] = Field(default="higher", description="direction of the measure")
    models: tuple[ComparedModel, ...]

    def quality_of(self, model: str) -> float | None:
        """The value of ``model``, ``flights@7``; None: it was not scored on these rows."""
        return next((one.quality for one in self.models if one.model == model), None)


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

    def run_name(self, result: VerdictResult | None = None) -> str:
        """The name of its MLflow run: what came out, the moment, and what started it.

        The result is first, because the table of runs cuts long names.

        :param result: of its verdict; None: there is none yet.
        """
        words = "refresh" if result is None else result.replace("_", " ")
        return f"{words} {self.as_of:%Y-%m-%d %H:%M} ({self.trigger})"

    @property
    def new_window(self) -> Window:
        """The part of the training window that is new to the champion: from ``since`` on, or all of it."""
        start = self.train.start if self.since is None else max(self.train.start, min(self.since, self.train.end))
        return self.train.model_copy(update={"name": "new", "start": start})
