"""One drift measurement: columns, slices, the calibration on history, the report."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.quality import Disagreement, Quality
from stillhouse.records.windows import Window

__all__ = ["ColumnDrift", "DriftCalibration", "DriftReport", "ScreenResult", "SliceDrift"]


class ColumnDrift(Record):
    """How far one column moved between the reference and the current window."""

    column: str
    kind: Literal["number", "category"]
    psi: float = Field(ge=0.0, description="population stability index, bins from the reference's quantiles")
    ks: float | None = Field(default=None, ge=0.0, le=1.0, description="Kolmogorov–Smirnov distance")
    missing_reference: Fraction
    missing_current: Fraction
    wasserstein: float | None = Field(
        default=None, ge=0.0, description="Wasserstein-1 distance of a number's values, in the column's unit"
    )
    effect: float = Field(
        default=0.0,
        ge=0.0,
        description="effect size: numbers: Wasserstein-1 in standard deviations of the reference; "
        "categories: total variation, 0…1",
    )
    unseen: tuple[str, ...] = Field(default=(), description="categories that the reference does not have")
    vanished: tuple[str, ...] = Field(default=(), description="categories that only the reference has")
    limit: float | None = Field(
        default=None,
        ge=0.0,
        description="largest PSI that is usual on the agent's own history, widened to hold for all columns at once",
    )

    @property
    def unusual(self) -> bool:
        """Whether the PSI lies beyond what the agent's own history showed; without a calibration, never."""
        return self.limit is not None and self.psi > self.limit


class DriftCalibration(Record):
    """What distances are usual: each earlier stretch of the reference against the rest of it."""

    block: timedelta = Field(description="length of a stretch")
    blocks: int = Field(ge=0)
    columns: dict[str, tuple[float, ...]] = Field(description="PSI of each stretch, ascending, by column")
    joint: tuple[float, ...] = Field(description="joint statistic of each stretch, ascending")


class ScreenResult(Record):
    """A current window held against :class:`DriftCalibration`."""

    blocks: int = Field(ge=0, description="stretches of history that it was calibrated on")
    beyond: tuple[str, ...] = Field(description="columns beyond their limit, farthest first")
    statistic: float = Field(description="joint statistic of the window")
    limit: float = Field(description="largest joint statistic that is usual")
    p_value: float = Field(gt=0, le=1, description="conformal: share of stretches at least as unusual, itself included")
    moved: bool = Field(description="whether the inputs or outputs as a whole lie beyond what is usual")


class SliceDrift(Record):
    """One slice of the observations: did it grow, and do teacher and student part there?"""

    slice: str = Field(description="'column=value', or 'column in (low, high]'")
    share_reference: Fraction
    share_current: Fraction
    rows: int = Field(ge=0, description="audited rows in it")
    disagreement: float | None = Field(default=None, ge=0.0, description="weighted mean over its audited rows")
    excess: float = Field(
        description="its part in the rise of the mean disagreement, over a column's slices; 0 for too few audited rows"
    )


class DriftReport(Record):
    """One drift measurement: the reference (what the champion was trained on) against the current window."""

    agent: str
    champion: str = Field(description="name@version of the model that was watched")
    reference: Window
    current: Window
    reference_rows: int = Field(ge=0)
    current_rows: int = Field(ge=0)
    columns: tuple[ColumnDrift, ...]
    outputs: tuple[ColumnDrift, ...] = Field(
        default=(), description="the student's output as columns: probabilities, margin, action"
    )
    screened: ScreenResult | None = Field(
        default=None, description="columns and outputs against the agent's own history"
    )
    slices: tuple[SliceDrift, ...] = Field(default=(), description="those that explain the disagreement, first first")
    disagreement: Disagreement | None = None
    disagreement_reference: Disagreement | None = Field(
        default=None, description="the same on the window that the champion was proved on"
    )
    quality: Quality | None = Field(default=None, description="the champion's decisions against known outcomes")
    quality_reference: Quality | None = None
    seconds: float = Field(ge=0.0)

    def worst(self, count: int = 5) -> tuple[ColumnDrift, ...]:
        """The ``count`` columns with the largest PSI, largest first."""
        return tuple(sorted(self.columns, key=lambda column: -column.psi)[:count])
