"""The sections ``budgets`` (limits on size, latency and teacher cost) and ``promotion`` (what the gate requires)."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Duration, Section

__all__ = ["Budgets", "Promotion"]


class Budgets(Section):
    """Limits on size, latency, loss of quality, teacher calls and teacher cost; absent means unlimited."""

    max_bytes: int | None = Field(default=None, ge=1, description="size of a variant's folder (bytes)")
    max_p95_ms: float | None = Field(
        default=None, gt=0, description="95th percentile of the latency of one row's decision (ms)"
    )
    max_quality_loss: float = Field(
        default=0.005, ge=0, le=1, description="largest loss of AUC (accuracy, for more than two actions) of a variant"
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


class Promotion(Section):
    """What a challenger must prove before it becomes champion."""

    approval: Literal["automatic", "manual"] = "automatic"
    non_inferiority_margin: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="AUC, or accuracy, by which the challenger may be worse than the champion",
    )
    total_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how much promotions in a row may lose together: the margin against the last champion that was "
        "proven better than its predecessors; null: twice `non_inferiority_margin`",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="confidence of each one-sided bound")
    cluster: Duration = Field(
        default=timedelta(hours=1),
        description="rows observed in the same interval of this length count as one piece of evidence; 0s: each row",
    )
    slices: tuple[str, ...] = Field(
        default=(), description="category columns; each of their values is judged separately"
    )
    slice_margin: float = Field(
        default=0.02, ge=0, le=1, description="margin on a slice, and on the window on which the champion was proved"
    )
    min_slice_rows: int = Field(default=300, ge=20, description="smaller slices are reported, not judged")

    @model_validator(mode="after")
    def _check_total_margin(self) -> Promotion:
        if self.total_margin is not None and self.total_margin < self.non_inferiority_margin:
            raise ValueError(
                f"total_margin: is {self.total_margin:g}, but one promotion alone may lose `non_inferiority_margin`, "
                f"{self.non_inferiority_margin:g}: raise `total_margin`, or lower `non_inferiority_margin`"
            )
        return self

    @property
    def cumulative_margin(self) -> float:
        """``total_margin``, or its default: how much quality promotions in a row may lose together."""
        return 2 * self.non_inferiority_margin if self.total_margin is None else self.total_margin
