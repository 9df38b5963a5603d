"""What the device and the budget allow, and what a challenger must prove."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Duration, Section

__all__ = ["Budgets", "Promotion"]


class Budgets(Section):
    """What the device and the purse allow; absent means unlimited."""

    max_bytes: int | None = Field(default=None, ge=1, description="of a variant's folder (bytes)")
    max_p95_ms: float | None = Field(default=None, gt=0, description="of one row's decision (ms)")
    max_quality_loss: float = Field(
        default=0.005, ge=0, le=1, description="AUC (accuracy, for more than two actions) a variant may lose"
    )
    max_teacher_calls: int | None = Field(
        default=None, ge=1, description="of one refresh: requests to endpoints, rows put to other teachers"
    )
    max_teacher_cost: float | None = Field(default=None, gt=0, description="of one refresh, in the unit of the prices")
    max_watch_calls: int | None = Field(
        default=None, ge=1, description="the same for all watches of one day of the agent's life"
    )
    max_watch_cost: float | None = Field(default=None, gt=0, description="the same, in the unit of the prices")


class Promotion(Section):
    """What a challenger must prove."""

    approval: Literal["automatic", "manual"] = "automatic"
    non_inferiority_margin: float = Field(default=0.005, ge=0, le=1, description="AUC, or accuracy, it may be worse by")
    total_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="what promotions in a row may lose together, below the last champion that was proven better than "
        "its predecessors; null: twice `non_inferiority_margin`",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="one-sided")
    cluster: Duration = Field(
        default=timedelta(hours=1), description="rows observed in the same such stretch are one piece of evidence"
    )
    slices: tuple[str, ...] = Field(default=(), description="categorical columns; each value is judged too")
    slice_margin: float = Field(default=0.02, ge=0, le=1, description="the same on a slice, and on the past window")
    min_slice_rows: int = Field(default=300, ge=20, description="smaller slices are reported, not judged")

    @model_validator(mode="after")
    def _the_sum_is_no_less_than_its_parts(self) -> Promotion:
        if self.total_margin is not None and self.total_margin < self.non_inferiority_margin:
            raise ValueError(
                f"total_margin: is {self.total_margin:g}, and a single promotion may lose `non_inferiority_margin`, "
                f"{self.non_inferiority_margin:g}: lower that, or raise this"
            )
        return self

    @property
    def all_margins(self) -> float:
        """What promotions in a row may lose together."""
        return 2 * self.non_inferiority_margin if self.total_margin is None else self.total_margin
