"""Sequential evidence on a champion: the null distribution of a loss, the steps, the rows counted, their cost."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Record

__all__ = ["Cost", "EvidenceRows", "EvidenceStep", "LossBaseline", "Process"]

Process = Literal["disagreement", "student_outcomes", "teacher_outcomes"]


class LossBaseline(Record):
    """What a loss in 0…1 was while the champion was known to be good, and how it swings by itself."""

    mean: float = Field(ge=0.0)
    standard_error: float = Field(ge=0.0, description="of the mean, rows of one cluster counted as one")
    rows: int = Field(ge=0)
    clusters: int = Field(ge=0)
    usual: float = Field(ge=0.0, description="mean of the worse stretches of history (their 0.9 quantile)")
    autocorrelation: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        description="of the means of neighbouring steps: upper 95 % bound; None: history cannot tell",
    )
    step_deviation: float | None = Field(
        default=None,
        ge=0.0,
        description="standard deviation of the means of steps, beyond that of their units: upper 95 % bound; None: "
        "history cannot tell",
    )


class EvidenceStep(Record):
    """One step of an evidence process, and all that the next step needs: the state is the last step."""

    process: Process
    champion: str
    since: AwareDatetime = Field(description="when this champion's evidence began")
    start: AwareDatetime
    end: AwareDatetime
    looks: int = Field(ge=0, description="steps with evidence since then, this one included")
    rows: int = Field(ge=0, description="distinct rows counted since then")
    step_rows: int = Field(ge=0, description="distinct rows counted in this step")
    units: int = Field(ge=0, description="bets of this step")
    mean: float | None = Field(default=None, ge=0.0, description="mean of this step's units; None without any")
    null_mean: float = Field(gt=0.0, description="mean loss that is still no harm")
    log_bets: tuple[float, ...] = Field(description="natural logarithm of the Shiryaev–Roberts statistic of each bet")
    log_evidence: float = Field(description="that of their mixture")
    log_threshold: float = Field(
        description="natural logarithm of what this process alone must reach: the average run length promised, divided "
        "by its share"
    )
    share: float | None = Field(
        default=None, gt=0.0, le=1.0, description="of the agent's budget; None: a budget of its own, as steps once had"
    )
    autocorrelation: float = Field(
        default=0.0, ge=0.0, le=0.5, description="of the means of neighbouring steps, that is no harm"
    )
    step_deviation: float | None = Field(
        default=0.0,
        ge=0.0,
        description="standard deviation of what the units of a step may share; None: any, so that a step is one bet",
    )
    excess: float = Field(
        default=0.0,
        ge=0.0,
        description="by how much the next step's mean may exceed `null_mean`, after the steps so far",
    )

    @property
    def alarm(self) -> bool:
        """Whether this process alone has reached its threshold."""
        return self.log_evidence >= self.log_threshold


class EvidenceRows(Record):
    """A step of evidence with the rows that it counted: parallel tuples, one entry per draw or outcome."""

    step: EvidenceStep
    observation_ids: tuple[str, ...] = ()
    units: tuple[int, ...] = Field(default=(), description="which of the step's bets the row belongs to")
    probabilities: tuple[float, ...] = Field(default=(), description="with which one draw of its stratum took the row")
    weights: tuple[float, ...] = Field(default=(), description="of the row's loss in the mean of its unit")
    losses: tuple[float, ...] = ()


class Cost(Record):
    """What watching has cost."""

    teacher_calls: int = Field(ge=0, description="rows that the teacher was asked about for this verdict")
    teacher_calls_since: int = Field(ge=0, description="the same since the champion's evidence began")
    seconds: float = Field(ge=0.0, description="wall time of the measurement")
