"""Records of how a training went."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, field_validator

from stillhouse.records import Record

__all__ = ["ControlComparison", "Setting", "SettingChange", "TrainingHistory"]

Setting = Literal["temperature", "outcome_weight", "calibration", "synthetic_rows"]


class SettingChange(Record):
    """A setting that was changed during the training, and why."""

    step: int = Field(ge=0, description="optimiser steps taken before the change")
    setting: Setting
    value: float
    reason: str

    @field_validator("setting", mode="before")
    @classmethod
    def _read_old_name(cls, value: Any) -> Any:
        """Once stored as ``made_up_rows``."""
        return "synthetic_rows" if value == "made_up_rows" else value


class ControlComparison(Record):
    """The student and its control, trained at the fixed settings, on rows that neither of them nor the controller saw.

    >>> ControlComparison(rows=500, log_loss=0.40, log_loss_fixed=0.43, gain=0.03, standard_error=0.01).significant
    True
    """

    rows: int = Field(ge=1)
    log_loss: float = Field(description="of the student, mean −log p(label) (nats)")
    log_loss_fixed: float = Field(description="of the same student trained at the fixed settings")
    gain: float = Field(description="log_loss_fixed − log_loss")
    standard_error: float = Field(ge=0.0, description="of the gain: paired by row, clustered")

    @property
    def significant(self) -> bool:
        """Whether the gain, or the loss, is larger than two standard errors."""
        return abs(self.gain) > 2 * self.standard_error


class TrainingHistory(Record):
    """How a training went: losses by epoch, changed settings, and comparisons with other trainings."""

    history: tuple[dict[str, float], ...] = Field(description="by epoch: mean losses, and the settings at its end")
    changes: tuple[SettingChange, ...] = Field(description="changed settings, in order")
    steps: int = Field(ge=0, description="optimiser steps")
    stopped: bool = Field(description="whether it ended early, because the validation loss no longer fell")
    control: ControlComparison | None = Field(
        default=None, description="comparison with the same training at the fixed settings"
    )
    rows: int = Field(
        default=0, ge=0, description="training rows, synthetic ones included, at the latest comparison with a control"
    )
    refreshes_without_control: int = Field(
        default=0,
        ge=0,
        validation_alias=AliasChoices("refreshes_without_control", "uncontrolled"),
        serialization_alias="uncontrolled",
        description="consecutive refreshes, this one included, without a comparison with a control",
    )
    control_skipped_because: str = Field(
        default="",
        validation_alias=AliasChoices("control_skipped_because", "uncontrolled_why"),
        serialization_alias="uncontrolled_why",
        description="why settings were changed and no control was trained",
    )
    refreshes_without_synthetic_comparison: int = Field(
        default=0,
        ge=0,
        validation_alias=AliasChoices("refreshes_without_synthetic_comparison", "untried"),
        serialization_alias="untried",
        description="consecutive refreshes, this one included, that reused an earlier comparison of synthetic rows",
    )

    @property
    def adapted(self) -> bool:
        """Whether the controller changed a setting: a calibration of 1 is no change, synthetic rows are not its own."""
        return any(
            change.setting != "synthetic_rows" and (change.setting != "calibration" or change.value != 1.0)
            for change in self.changes
        )

    @property
    def synthetic_rows_helped(self) -> bool:
        """Whether the student with synthetic rows had the lower validation loss."""
        return any(change.setting == "synthetic_rows" and change.value > 0 for change in self.changes)
