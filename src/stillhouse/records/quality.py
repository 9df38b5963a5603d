"""Measurements of one model: quality on labelled rows, latency, and the scorecard with all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record

__all__ = ["Disagreement", "Latency", "Quality", "Scorecard"]


class Disagreement(Record):
    """Teacher and student on the same sample of observations."""

    rows: int = Field(ge=0)
    rate: Fraction = Field(description="share of rows on which the chosen actions differ")
    total_variation: Fraction = Field(description="mean of ½ Σ|p_teacher − p_student|")


class Quality(Record):
    """Quality of predicted probabilities, measured on rows with outcomes."""

    rows: int = Field(ge=0)
    auc: float | None = Field(
        default=None, ge=0.0, le=1.0, description="area under the ROC curve; macro one-vs-rest for K > 2"
    )
    log_loss: float = Field(ge=0.0, description="mean −log p(outcome) (nats)")
    brier: float = Field(ge=0.0, le=2.0, description="mean Σ_k (p_k − y_k)²")
    accuracy: Fraction
    calibration_error: Fraction = Field(description="expected calibration error, 15 equal-mass bins")
    actions: int = Field(default=2, ge=2, description="number of actions K")

    @property
    def measure(self) -> Literal["auc", "accuracy"]:
        """The measure that models are compared by: the AUC for two actions; the accuracy otherwise."""
        return "auc" if self.actions == 2 and self.auc is not None else "accuracy"

    @property
    def score(self) -> float:
        """The value of :attr:`measure`, 0…1."""
        return self.accuracy if self.auc is None or self.measure == "accuracy" else self.auc


class Latency(Record):
    """Latency of a call with one row on one thread, on the machine that measured it."""

    p50_ms: float = Field(ge=0.0)
    p95_ms: float = Field(ge=0.0)
    calls: int = Field(ge=1)


class Scorecard(Record):
    """All measurements of one model on named windows."""

    model: str = Field(description="teacher, student, or a variant's name")
    role: Literal["teacher", "student", "variant", "champion"]
    quality: dict[str, Quality] = Field(description="by window name")
    slices: dict[str, Quality] = Field(default_factory=dict, description="by 'column=value', on the test window")
    agreement: float | None = Field(
        default=None, ge=0.0, le=1.0, description="1 − mean total variation to the teacher, on the test window"
    )
    bytes: int = Field(ge=0, description="size on disk (bytes)")
    latency: Latency | None = None
    cpu: str = Field(default="", description="processor that the latency was measured on")

    @property
    def test(self) -> Quality:
        """Quality on the window ``test``."""
        return self.quality["test"]
