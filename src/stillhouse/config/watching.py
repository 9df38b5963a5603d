"""The section ``watch``: how drift is detected, and which refresh a watch requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Duration, PositiveDuration, Section
from stillhouse.records import RefreshModeName

__all__ = ["Audit", "FalseAlarms", "Payoff", "Prices", "Responses", "Thresholds", "Watch"]


class Thresholds(Section):
    """Plain thresholds: a measure above its threshold is drift; a measure without a threshold is only reported."""

    psi: float | None = Field(default=None, gt=0, description="population stability index (PSI) of a column")
    ks: float | None = Field(default=None, gt=0, lt=1, description="Kolmogorov–Smirnov distance of a number column")
    output_psi: float | None = Field(
        default=None, gt=0, description="largest PSI of the student's outputs: probabilities, margin, action"
    )
    disagreement: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="rise of the mean total variation between teacher and student since the champion was proved",
    )
    auc_drop: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="fall of the AUC on known outcomes since the champion was proved; for two actions",
    )
    accuracy_drop: float | None = Field(
        default=None, gt=0, le=1, description="fall of the accuracy on known outcomes since the champion was proved"
    )
    shifted_columns: int = Field(
        default=1, ge=1, description="how many columns must exceed `psi`, or `ks`, to be drift"
    )


class FalseAlarms(Section):
    """Budget of false alarms: on average at most ``at_most`` of them in the time ``per``.

    The budget is for the agent as a whole; its evidence processes share it.
    """

    at_most: float = Field(default=1.0, gt=0, description="mean number of false alarms allowed in the time `per`")
    per: PositiveDuration = timedelta(days=90)


class Audit(Section):
    """The rows that the teacher is queried about, to measure whether the student still agrees with it."""

    rows: int = Field(default=50, ge=1, description="rows drawn per step of evidence (`watch.every`)")
    uniform_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share drawn uniformly; the rest prefers rows where the student is uncertain or the data moved",
    )


class Responses(Section):
    """Mode of the refresh that a watch requests, by the kind of drift."""

    harmful_drift: RefreshModeName = Field(
        default="redistil",
        description="mode if the evidence shows that the student got worse; after a refused refresh: redistil",
    )
    drift: RefreshModeName = Field(
        default="redistil", description="mode if only a plain threshold is exceeded; after a refused refresh: redistil"
    )


class Prices(Section):
    """What each response costs, as a ratio to a redistillation."""

    reuse: float = Field(default=0.02, ge=0, description="a member of the pool becomes champion")
    recalibrate: float = Field(default=0.05, ge=0, description="the champion's confidence and thresholds are fitted")
    update: float = Field(default=0.3, ge=0, description="the champion's student is fine-tuned on new rows")
    redistil_warm: float = Field(default=1.0, ge=0, description="trained on the window, from the champion's weights")
    redistil: float = Field(default=1.0, gt=0, description="trained on the window, from random weights")
    renew: float = Field(default=1.3, ge=0, description="the teacher is renewed, too")


class Payoff(Section):
    """What a response may cost, and how many models are scored to learn what it gains.

    >>> from stillhouse.config import Payoff
    >>> Payoff().exchange_rate, Payoff().prices.update
    (0.005, 0.3)
    """

    exchange_rate: float = Field(
        default=0.005,
        ge=0,
        description="what a redistillation is worth: points of the named measure (1: the whole range) for one week; "
        "0.005: half a point of quality for one week",
    )
    prices: Prices = Prices()
    pool: int = Field(default=6, ge=2, le=32, description="models that are scored on every outcome")
    block: PositiveDuration | None = Field(
        default=None,
        description="length of a block of time, whose rows count as one piece of evidence about the members of the "
        "pool; null: `watch.every`, at least a day",
    )
    explore: float = Field(
        default=0.0,
        ge=0,
        le=0.2,
        description="probability per week of a response that is not predicted to pay, to learn whether it would",
    )
    max_trainings_per_day: int | None = Field(default=None, ge=1, description="trained responses within 24 hours")
    max_trainings_per_month: int | None = Field(default=None, ge=1, description="trained responses within 30 days")


class Watch(Section):
    """How drift is detected: by evidence within a budget of false alarms, by plain thresholds, or by both.

    >>> from stillhouse.config import Watch
    >>> Watch().average_run_length  # one false alarm in 90 days, one step per hour
    2160.0
    """

    every: PositiveDuration = Field(
        default=timedelta(hours=1), description="length of one step of evidence; schedule the watch at this interval"
    )
    false_alarms: FalseAlarms | None = Field(
        default=FalseAlarms(), description="budget of false alarms of the evidence; null: only `thresholds` decide"
    )
    tolerance: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="rise of the mean disagreement, or of the mean Brier score (0…1), that is accepted",
    )
    audit: Audit = Audit()
    thresholds: Thresholds = Thresholds()
    responses: Responses = Responses()
    policy: Literal["payoff", "alarms", "calendar"] | None = Field(
        default=None,
        description="payoff: the response whose predicted gain most exceeds its price; alarms: false_alarms and "
        "thresholds; calendar: every `calendar`. null: calendar or alarms if the file sets one of these, else payoff",
    )
    calendar: PositiveDuration | None = Field(default=None, description="time between two refreshes, such as 4w")
    payoff: Payoff = Payoff()
    cooldown: Duration = Field(
        default=timedelta(0),
        description="time after a refresh, promoted or refused, in which drift is reported but requests no refresh",
    )
    clock: Literal["wall", "newest_observation"] = Field(
        default="wall",
        description="what 'now' is if a run names no moment; newest_observation is for replayed histories",
    )

    @property
    def average_run_length(self) -> float | None:
        """Mean number of steps until a false alarm that the budget allows; None without a budget."""
        if self.false_alarms is None:
            return None
        return max(1.0, self.false_alarms.per / self.every / self.false_alarms.at_most)

    @property
    def block(self) -> timedelta:
        """Length of the pool's blocks: ``payoff.block``, or ``every``, at least a day.

        >>> Watch().block
        datetime.timedelta(days=1)
        """
        return self.payoff.block or max(self.every, timedelta(days=1))

    @property
    def resolved_policy(self) -> Literal["payoff", "alarms", "calendar"]:
        """The policy: as named, or by what the file sets.

        >>> Watch().resolved_policy, Watch(calendar="4w").resolved_policy
        ('payoff', 'calendar')
        """
        if self.policy is not None:
            return self.policy
        if self.calendar is not None:
            return "calendar"
        return "alarms" if {"false_alarms", "thresholds", "responses", "cooldown"} & self.model_fields_set else "payoff"

    @model_validator(mode="after")
    def _check_calendar(self) -> Watch:
        if self.policy == "calendar" and self.calendar is None:
            raise ValueError("calendar: is required by `policy: calendar`: the time between two refreshes, such as 4w")
        return self

    @model_validator(mode="after")
    def _check_some_detection(self) -> Watch:
        if (
            self.resolved_policy == "alarms"
            and self.false_alarms is None
            and all(value is None for name, value in self.thresholds if name != "shifted_columns")
        ):
            raise ValueError(
                "without a budget of `false_alarms` and without a threshold no drift would ever be detected: set one "
                "of them"
            )
        return self
