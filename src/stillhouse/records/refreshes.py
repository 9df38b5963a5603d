"""One refresh under way, and what its champion was trained and proved on."""

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
    """What a champion was trained and proved on: what every later watch compares with.

    Beside it in the run lies ``profile.arrow``, the profile of the training window and of the champion's output on it
    (:mod:`stillhouse.drift.profile`).
    """

    train: Window
    test: Window
    as_of: AwareDatetime = Field(description="the moment that the refresh spoke for: where its evidence may begin")
    screens: DriftCalibration
    losses: dict[Process, LossBaseline] = Field(description="what each evidence process holds for good")
    disagreement: Disagreement = Field(description="with its teacher, on the test window")
    quality: Quality = Field(description="on the test window")
    teacher: ModelRef


class Refresh(Record):
    """One refresh under way: what for, on which windows, where its files and its MLflow run are."""

    refresh_id: str
    agent: str
    as_of: AwareDatetime
    trigger: Literal["bootstrap", "drift", "manual"]
    cause: str = Field(description="verdict id of the drift, or who asked and why")
    train: Window
    test: Window
    teacher: Literal["fit", "keep"]
    mode: RefreshModeName = "redistil"
    since: AwareDatetime | None = Field(
        default=None, description="of an update or a recalibration: from when rows are new to the champion"
    )
    folder: str = Field(description="of the files of this refresh, until MLflow has them")
    run_id: str = Field(description="MLflow parent run")
    contract_skipped: str | None = Field(default=None, description="why the data contract was not asked; None: it was")
    verdict: Verdict | None = Field(default=None, description="of an earlier, interrupted or finished run of it")
    finished: bool = False

    @property
    def new_window(self) -> Window:
        """The part of the training window that is new to the champion; all of it unless this is an update."""
        start = self.train.start if self.since is None else max(self.train.start, min(self.since, self.train.end))
        return self.train.model_copy(update={"name": "new", "start": start})
