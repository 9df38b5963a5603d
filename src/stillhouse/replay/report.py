"""The report of a replay: what each policy did, what it cost, and how good its decisions were."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field

from stillhouse.records import Record

__all__ = ["PolicyReport", "ReplayReport", "ReplayResponse"]


class ReplayResponse(Record):
    """One response of a policy."""

    at: AwareDatetime = Field(description="start of the step before which it was made")
    step: int = Field(ge=1)
    response: str = Field(description="redistil, recalibrate or reuse")
    predicted: float | None = Field(description="predicted gain a week; None: the policy predicts none")
    gained: float = Field(
        description="loss of the replaced model less that of the new one until the next response, × weeks"
    )


class PolicyReport(Record):
    """How one policy went under one agent file."""

    policy: str = Field(description="name, such as every:4w@script")
    agent_file: str
    quality: float | None = Field(description="mean over the steps of the named measure; None: no step has one")
    log_loss: float = Field(description="mean over the steps of the clipped log loss (nats)")
    accuracy: float = Field(description="mean over the steps")
    responses: dict[str, int] = Field(description="number of responses by kind")
    gained_nothing: int = Field(ge=0, description="responses whose gain until the next one was not above 0")
    trainings: int = Field(ge=0, description="students trained, the first one not counted")
    teacher_calls: int = Field(ge=0, description="rows that teachers were asked about in these trainings")
    price: float = Field(ge=0.0, description="sum of the prices of its responses, as multiples of a redistillation")
    total: float = Field(description="mean loss in the named measure plus price at the exchange rate, per week")
    quality_by_step: tuple[float | None, ...]
    log_loss_by_step: tuple[float | None, ...]
    accuracy_by_step: tuple[float | None, ...]
    acts: tuple[ReplayResponse, ...]

    def label(self, files: int) -> str:
        """Name for a table or a figure: with the agent file if there are several of them."""
        return self.policy if files == 1 else f"{self.policy} ({self.agent_file})"


class ReplayReport(Record):
    """Policies on one stretch of history."""

    agent: str
    measure: str = Field(description="name of the measure that the agent file names")
    source: str = Field(description="where the rows came from: the knowledge base, or the sources")
    since: AwareDatetime
    start: AwareDatetime = Field(description="end of the rows that the first champion is trained on")
    step_seconds: float = Field(gt=0)
    steps: int = Field(ge=1)
    rows: int = Field(ge=1)
    exchange_rate: float = Field(
        ge=0.0, description="price of a redistillation: points of quality for one week (1: the whole range)"
    )
    seconds: float = Field(ge=0.0)
    policies: tuple[PolicyReport, ...]

    @property
    def agent_files(self) -> tuple[str, ...]:
        """The agent files that were played."""
        return tuple(dict.fromkeys(policy.agent_file for policy in self.policies))

    @property
    def times(self) -> list[datetime]:
        """The end of each step."""
        return [self.start + timedelta(seconds=self.step_seconds * (i + 1)) for i in range(self.steps)]
