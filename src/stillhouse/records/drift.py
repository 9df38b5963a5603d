"""Records of a drift measurement: columns, slices, the calibration on history, the report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pydantic import AliasChoices, Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.quality import Disagreement, Quality
from stillhouse.records.windows import Window

__all__ = [
    "COLUMN_DISTANCES",
    "ColumnDistance",
    "ColumnDrift",
    "DriftCalibration",
    "DriftReport",
    "ScreenResult",
    "SliceDrift",
]


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
        description="largest PSI between time blocks of the agent's own history, widened for the number of columns; "
        "None: not calibrated",
    )

    @property
    def unusual(self) -> bool:
        """Whether the PSI exceeds the limit from the agent's own history; False without a calibration."""
        return self.limit is not None and self.psi > self.limit


@dataclass(frozen=True)
class ColumnDistance:
    """A distance that is measured for every column, or for every number column.

    :ivar field: name of its field in :class:`ColumnDrift`, and of its threshold in
        :class:`stillhouse.config.Thresholds`; without a threshold field a verdict gives no reason for it.
    :ivar name: its name in sentences.
    :ivar heading: its name at the head of a table column.
    :ivar columns: the columns that have it.
    :ivar always_reported: whether a verdict reports it although it has no threshold.
    :ivar on_pages: whether the page of a watch shows it; the verdict has all.
    """

    field: str
    name: str
    heading: str
    columns: Literal["columns", "numbers"]
    always_reported: bool = False
    on_pages: bool = False

    def format(self, drift: ColumnDrift) -> str:
        """The value of ``drift`` for a table cell; empty where the column does not have it."""
        value = getattr(drift, self.field)
        if value is None:
            return ""
        return f"{value:.3f}" if self.columns == "columns" else f"{value:.4g}"


COLUMN_DISTANCES = (
    ColumnDistance("psi", "PSI", "PSI", "columns", always_reported=True, on_pages=True),
    ColumnDistance("ks", "Kolmogorov–Smirnov distance", "KS", "numbers"),
    ColumnDistance("wasserstein", "Wasserstein-1 distance", "Wasserstein", "numbers"),
    ColumnDistance("effect", "effect size", "effect size", "columns", on_pages=True),
)
"""The distances of :func:`stillhouse.drift.distances.measure_column`, in the order of tables."""


class DriftCalibration(Record):
    """The null distribution of the distances: each time block of the reference against the others together."""

    block_length: timedelta = Field(
        validation_alias=AliasChoices("block_length", "block"),
        serialization_alias="block",
        description="length of a time block; stored as `block`",
    )
    time_blocks: int = Field(
        validation_alias=AliasChoices("time_blocks", "blocks"),
        serialization_alias="blocks",
        ge=0,
        description="number of time blocks; stored as `blocks`",
    )
    columns: dict[str, tuple[float, ...]] = Field(description="PSI of each time block, ascending, by column")
    joint: tuple[float, ...] = Field(description="joint statistic of each time block, ascending")


class ScreenResult(Record):
    """A current window compared with a :class:`DriftCalibration`."""

    time_blocks: int = Field(
        validation_alias=AliasChoices("time_blocks", "blocks"),
        serialization_alias="blocks",
        ge=0,
        description="number of time blocks of the calibration; stored as `blocks`",
    )
    beyond: tuple[str, ...] = Field(
        description="columns whose PSI exceeds their limit, by its ratio to the usual PSI, largest first"
    )
    statistic: float = Field(description="joint statistic of the window")
    limit: float = Field(description="limit of the joint statistic")
    p_value: float = Field(
        gt=0,
        le=1,
        description="conformal p-value: share of the time blocks with a joint statistic at least as large, the window "
        "included",
    )
    moved: bool = Field(description="whether a column exceeds its limit: the window as a whole has moved")


class SliceDrift(Record):
    """One slice of the observations: its share of the rows, and the disagreement of teacher and student in it."""

    slice: str = Field(description="'column=value', or 'column in (low, high]'")
    share_reference: Fraction
    share_current: Fraction
    rows: int = Field(ge=0, description="audited rows in the slice")
    disagreement: float | None = Field(default=None, ge=0.0, description="weighted mean over its audited rows")
    excess: float = Field(
        description="its part of the rise of the mean disagreement; the slices of a column sum to the rise; 0 if too "
        "few rows were audited"
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
        default=None, description="columns and outputs compared with the agent's own history"
    )
    slices: tuple[SliceDrift, ...] = Field(
        default=(), description="slices that explain the disagreement, by excess, largest first"
    )
    disagreement: Disagreement | None = None
    disagreement_reference: Disagreement | None = Field(
        default=None, description="the disagreement on the champion's test window"
    )
    quality: Quality | None = Field(default=None, description="the champion's decisions against known outcomes")
    quality_reference: Quality | None = Field(default=None, description="the quality on the champion's test window")
    seconds: float = Field(ge=0.0, description="wall time of the measurement")

    def worst(self, count: int = 5) -> tuple[ColumnDrift, ...]:
        """The ``count`` columns with the largest PSI, largest first."""
        return tuple(sorted(self.columns, key=lambda column: -column.psi)[:count])
