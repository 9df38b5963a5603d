"""Measurements of one model: quality on labelled rows, latency, and the scorecard with all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record

__all__ = ["Disagreement", "Latency", "NamedQuality", "Quality", "Scorecard", "ScoredUnit"]

ScoredUnit = Literal["rows", "episodes"]
"""What has a score, and is the unit of chance when two models are compared."""


class Disagreement(Record):
    """Teacher and student on the same sample of observations."""

    rows: int = Field(ge=0)
    rate: Fraction = Field(description="share of rows on which the chosen actions differ")
    total_variation: Fraction = Field(description="mean of ½ Σ|p_teacher − p_student|")


class NamedQuality(Record):
    """The value of the measure that the agent file names."""

    measure: str = Field(description="`log_loss`, `accuracy`, `auc`, or the name of the user's own score")
    value: float
    unit: str = ""
    low: float = Field(default=0.0, description="smallest score of a row or episode")
    high: float = Field(default=1.0, description="largest score of a row or episode")
    better: Literal["higher", "lower"] = "higher"
    episodes: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="number of episodes that the value is the mean of; None: it is of rows",
    )

    @property
    def points(self) -> float:
        """The value as a share of the range, 0 (worst) to 1 (best)."""
        return (self.value - self.low if self.better == "higher" else self.high - self.value) / (self.high - self.low)


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
    named: NamedQuality | None = Field(
        default=None,
        description="the measure that the agent file names; None: measured before there was one: AUC for two actions, "
        "else accuracy",
    )

    @property
    def judged(self) -> NamedQuality:
        """The measure that models are compared by, with its value."""
        if self.named is not None:
            return self.named
        if self.actions == 2 and self.auc is not None:
            return NamedQuality(measure="auc", value=self.auc)
        return NamedQuality(measure="accuracy", value=self.accuracy)

    @property
    def measure(self) -> str:
        """The name of the measure that models are compared by."""
        return self.judged.measure

    @property
    def score(self) -> float:
        """The value of :attr:`measure`, in its unit and direction."""
        return self.judged.value


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
