"""The sections ``budgets`` (limits on size, latency and teacher cost) and ``promotion`` (what the gate requires)."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from stillhouse.config.base import Duration, Name, Section
from stillhouse.config.explain import find_repeated

__all__ = ["Budgets", "Promotion", "Remember", "RememberedWindow"]


class Budgets(Section):
    """Limits on size, latency, loss of quality, teacher calls and teacher cost; absent means unlimited."""

    max_bytes: int | None = Field(default=None, ge=1, description="size of a variant's folder (bytes)")
    max_p95_ms: float | None = Field(
        default=None, gt=0, description="95th percentile of the latency of one row's decision (ms)"
    )
    max_quality_loss: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="largest loss of quality of a variant, as a share of the range of the named measure (points of AUC "
        "or accuracy)",
    )
    max_teacher_calls: int | None = Field(
        default=None,
        ge=1,
        description="teacher calls of one refresh: requests to endpoints, rows passed to other teachers",
    )
    max_teacher_cost: float | None = Field(
        default=None, gt=0, description="teacher cost of one refresh, in the currency of the prices"
    )
    max_watch_calls: int | None = Field(
        default=None, ge=1, description="teacher calls of all watches within 24 hours, by the agent's clock"
    )
    max_watch_cost: float | None = Field(
        default=None, gt=0, description="teacher cost of all watches within 24 hours, in the currency of the prices"
    )


class RememberedWindow(Section):
    """A stretch of time whose rows a challenger must not forget, such as a season."""

    name: Name = Field(description="name of the window in verdicts")
    start: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _check_order(self) -> RememberedWindow:
        if self.start >= self.end:
            raise ValueError(f"end: must be later than `start`, {self.start:%Y-%m-%d %H:%M}")
        return self


class Remember(Section):
    """What a challenger must not forget: vetoes. Other forgetting is only reported.

    >>> Remember(windows=[{"name": "winter", "start": "2013-01-01T00:00Z", "end": "2013-03-01T00:00Z"}]).windows[0].name
    'winter'
    """

    slices: tuple[str, ...] = Field(
        default=(),
        description="category columns; each of their values is judged on the champion's own test window and on "
        "`windows`",
    )
    windows: tuple[RememberedWindow, ...] = Field(default=(), description="judged with `slice_margin`")

    @model_validator(mode="after")
    def _check_names(self) -> Remember:
        if repeated := find_repeated([window.name for window in self.windows]):
            raise ValueError(
                f"windows: names must differ, and {', '.join(map(repr, repeated))} is given more than once"
            )
        return self


class Promotion(Section):
    """What a challenger must prove before it becomes champion."""

    approval: Literal["automatic", "manual"] = "automatic"
    non_inferiority_margin: float | None = Field(
        default=None,
        ge=0,
        description="by how much the challenger may be worse than the champion, in the unit of the named measure; "
        "null: 0.005 for auc and accuracy, 0.02 for agreement, 0.02 nats for log_loss, 0.5 % of the range of a score "
        "of your own",
    )
    total_margin: float | None = Field(
        default=None,
        ge=0,
        description="how much promotions in a row may lose together: the margin against the last champion that was "
        "proven better than its predecessors, the never-refreshed and the best earlier one; null: twice "
        "`non_inferiority_margin`",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="one-sided; the error, 1 − confidence, is shared by the gate's first look (0.8 of it) and the pool",
    )
    cluster: Duration = Field(
        default=timedelta(hours=1),
        description="rows observed in the same interval of this length count as one piece of evidence; 0s: each row",
    )
    slices: tuple[str, ...] = Field(
        default=(), description="category columns; each of their values is judged separately, by gate and pool"
    )
    slice_margin: float | None = Field(
        default=None,
        ge=0,
        description="margin on a slice, and on what `remember` names; null: four times the default of "
        "`non_inferiority_margin`",
    )
    min_slice_rows: int = Field(default=300, ge=20, description="smaller slices are reported, not judged")
    remember: Remember = Remember()
    final_fit: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: after the verdict the challenger is trained on the test rows too, and joins the pool; it "
        "becomes champion instead of the challenger only where earlier final fits gained",
    )

    @model_validator(mode="after")
    def _check_total_margin(self) -> Promotion:
        margin, total = self.non_inferiority_margin, self.total_margin
        if margin is not None and total is not None and total < margin:
            raise ValueError(
                f"total_margin: is {total:g}, but one promotion alone may lose `non_inferiority_margin`, "
                f"{margin:g}: raise `total_margin`, or lower `non_inferiority_margin`"
            )
        return self
