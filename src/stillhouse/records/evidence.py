"""Records of the sequential evidence on a champion: the null distribution of a loss, the steps, their rows, costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import AliasChoices, AwareDatetime, Field

from stillhouse.records.base import Record

__all__ = ["Cost", "EvidenceRows", "EvidenceStep", "LossBaseline", "Process", "split_restarts"]

Process = Literal["disagreement", "student_outcomes", "teacher_outcomes"]


class LossBaseline(Record):
    """The distribution of a loss in 0…1 on the champion's test window, where the champion was known to be good."""

    mean: float = Field(ge=0.0)
    standard_error: float = Field(ge=0.0, description="of the mean, clustered")
    rows: int = Field(ge=0)
    clusters: int = Field(ge=0)
    usual: float = Field(ge=0.0, description="0.9 quantile of the means of the time blocks of history")
    autocorrelation: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        description="lag-1 autocorrelation of the step means: upper 95 % bound; None: too little history",
    )
    step_deviation: float | None = Field(
        default=None,
        ge=0.0,
        description="standard deviation of the step means beyond that of independent clusters: upper 95 % bound; None: "
        "too little history",
    )


class EvidenceStep(Record):
    """One step of an evidence process. It is the whole state: the next step needs nothing else."""

    process: Process
    champion: str
    since: AwareDatetime = Field(description="start of the evidence on this champion")
    start: AwareDatetime
    end: AwareDatetime
    looks: int = Field(ge=0, description="steps with evidence since then, with this one")
    rows: int = Field(ge=0, description="distinct rows counted since then")
    step_rows: int = Field(ge=0, description="distinct rows counted in this step")
    clusters: int = Field(
        validation_alias=AliasChoices("clusters", "units"),
        serialization_alias="units",
        ge=0,
        description="clusters of this step, one bet each; stored as `units`",
    )
    mean: float | None = Field(
        default=None, ge=0.0, description="mean loss of this step's clusters; None: there is no cluster"
    )
    null_mean: float = Field(gt=0.0, description="largest mean loss under the null hypothesis")
    log_bets: tuple[float, ...] = Field(
        description="natural logarithm of the Shiryaev–Roberts statistic of each size of bet"
    )
    log_evidence: float = Field(description="natural logarithm of the mean of these statistics")
    log_threshold: float = Field(
        description="natural logarithm of the threshold of this process alone: the promised average run length divided "
        "by its share"
    )
    share: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="share of the agent's false alarm budget; None: a budget of its own (old steps)",
    )
    autocorrelation: float = Field(
        default=0.0, ge=0.0, le=0.5, description="lag-1 autocorrelation of the step means under the null hypothesis"
    )
    step_deviation: float | None = Field(
        default=0.0,
        ge=0.0,
        description="standard deviation of what the clusters of a step share; None: unknown, a step is one bet",
    )
    excess: float = Field(
        default=0.0,
        ge=0.0,
        description="by how much the next step's expected mean may exceed `null_mean`, given the steps so far",
    )

    @property
    def alarm(self) -> bool:
        """Whether this process alone reached its threshold."""
        return self.log_evidence >= self.log_threshold


class EvidenceRows(Record):
    """A step of evidence with the rows that it counted: parallel tuples with one entry per draw or outcome."""

    step: EvidenceStep
    observation_ids: tuple[str, ...] = ()
    cluster_ids: tuple[int, ...] = Field(
        validation_alias=AliasChoices("cluster_ids", "units"),
        serialization_alias="units",
        default=(),
        description="the cluster of the row, from 0; stored as `units`",
    )
    probabilities: tuple[float, ...] = Field(
        default=(), description="probability of the row in one draw of its stratum"
    )
    sampling_weights: tuple[float, ...] = Field(
        validation_alias=AliasChoices("sampling_weights", "weights"),
        serialization_alias="weights",
        default=(),
        description="weight of the row's loss in its cluster's mean; stored as `weights`",
    )
    losses: tuple[float, ...] = ()


class Cost(Record):
    """The cost of a watch."""

    teacher_calls: int = Field(ge=0, description="rows that the teacher was asked about for this verdict")
    teacher_calls_since: int = Field(ge=0, description="the same since the evidence on this champion began")
    seconds: float = Field(ge=0.0, description="wall time of the measurement")


def split_restarts(steps: Iterable[EvidenceStep]) -> list[list[EvidenceStep]]:
    """The steps of one process, by time, split where its evidence restarted."""
    runs: list[list[EvidenceStep]] = []
    for step in steps:
        if not runs or (runs[-1][-1].champion, runs[-1][-1].since) != (step.champion, step.since):
            runs.append([])
        runs[-1].append(step)
    return runs
