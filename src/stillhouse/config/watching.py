"""When and by what drift is noticed, and what a watch asks for."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Duration, Length, Section
from stillhouse.records import RefreshModeName

__all__ = ["Audit", "FalseAlarms", "Responses", "Thresholds", "Watch"]


class Thresholds(Section):
    """A measure that exceeds its threshold calls for a refresh; absent: the measure is only reported."""

    psi: float | None = Field(default=None, gt=0, description="of any watched column")
    ks: float | None = Field(default=None, gt=0, lt=1, description="Kolmogorov–Smirnov distance of any watched number")
    output_psi: float | None = Field(default=None, gt=0, description="PSI of the student's confidence")
    disagreement: float | None = Field(
        default=None, gt=0, le=1, description="rise of mean total variation between teacher and student"
    )
    auc_drop: float | None = Field(
        default=None, gt=0, le=1, description="fall of AUC on known outcomes since the champion was proved; two actions"
    )
    accuracy_drop: float | None = Field(
        default=None, gt=0, le=1, description="fall of accuracy on known outcomes since the champion was proved"
    )
    shifted_columns: int = Field(default=1, ge=1, description="how many columns must exceed `psi`, or `ks`")


class FalseAlarms(Section):
    """How often the evidence may be wrong: on average no more than ``at_most`` false refreshes ``per`` period.

    One budget for the agent: its evidence processes share it.
    """

    at_most: float = Field(default=1.0, gt=0, description="false refreshes")
    per: Length = timedelta(days=90)


class Audit(Section):
    """The rows that the teacher is asked about, to see whether the student still agrees with it."""

    rows: int = Field(default=50, ge=1, description="draws per step of evidence (`watch.every`)")
    uniform_share: float = Field(
        default=0.5, gt=0, le=1, description="share drawn uniformly; the rest where the student is unsure or data moved"
    )


class Responses(Section):
    """What a watch asks for, by what it has found."""

    harmful_drift: RefreshModeName = Field(
        default="redistil", description="where evidence shows harm; after a refusal: redistil"
    )
    drift: RefreshModeName = Field(
        default="redistil", description="where a plain threshold is crossed; after a refusal: redistil"
    )


class Watch(Section):
    """When and by what drift is noticed: a budget of false alarms, plain thresholds, or both."""

    every: Length = Field(default=timedelta(hours=1), description="one step of evidence; schedule the watch alike")
    false_alarms: FalseAlarms | None = Field(
        default=FalseAlarms(), description="budget of the evidence processes; null: thresholds alone decide"
    )
    tolerance: float = Field(
        default=0.02, ge=0, lt=1, description="rise of disagreement, or of the Brier score, that is no harm"
    )
    audit: Audit = Audit()
    thresholds: Thresholds = Thresholds()
    responses: Responses = Responses()
    cooldown: Duration = Field(default=timedelta(0), description="no second refresh sooner than this")
    clock: Literal["wall", "newest_observation"] = Field(
        default="wall", description="what 'now' is when a run names no time; the second suits a replayed history"
    )

    @property
    def average_run_length(self) -> float | None:
        """Steps until a false alarm, on average, that the budget allows; None without a budget."""
        if self.false_alarms is None:
            return None
        return max(1.0, self.false_alarms.per / self.every / self.false_alarms.at_most)

    @model_validator(mode="after")
    def _something_decides(self) -> Watch:
        if self.false_alarms is None and all(
            getattr(self.thresholds, name) is None
            for name in ("psi", "ks", "output_psi", "disagreement", "auc_drop", "accuracy_drop")
        ):
            raise ValueError("without a budget of false_alarms and without a threshold nothing would ever be noticed")
        return self
