"""Teachers: what querying them costs, their weights in a mixture, and where they contradict each other."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.windows import Window

__all__ = ["Contradiction", "Contradictions", "Questions", "SliceWeights", "Spending", "TeacherWeights", "WeightChange"]


class Spending(Record):
    """What asking a teacher has cost. Two of them add up."""

    calls: int = Field(default=0, ge=0, description="requests to an endpoint; rows put to a teacher in this process")
    rows: int = Field(default=0, ge=0, description="rows that it was asked about")
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0.0, description="wall time")
    money: float = Field(default=0.0, ge=0.0, description="in the unit of the prices in the agent file")

    def __add__(self, other: Spending) -> Spending:
        return Spending(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})

    def __str__(self) -> str:
        text = f"{self.calls:,} calls about {self.rows:,} rows in {self.seconds:,.1f} s"
        if self.input_tokens or self.output_tokens:
            text += f", {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
        return f"{text}, cost {self.money:,.4f}" if self.money else text


class Questions(Record):
    """About which training rows the teachers were to be asked."""

    rows: int = Field(ge=0, description="training rows, with and without an outcome")
    without_outcome: int = Field(ge=0, description="of these, rows whose outcome is not known")
    known: int = Field(ge=0, description="about which the teacher had spoken before")
    asked: int = Field(ge=0, description="selected to be asked about")
    answered: int = Field(ge=0, description="selected and now known")
    limited: bool = Field(description="whether the budget allowed fewer than the agent file wants")

    @property
    def skipped(self) -> int:
        """Rows that were neither known nor selected."""
        return self.rows - self.known - self.asked

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} training rows: {self.known:,} known before, {self.asked:,} asked about "
            f"({self.answered:,} answered), {self.skipped:,} skipped"
        )
        return text + (", as the budget ended" if self.limited else "")


class SliceWeights(Record):
    """What was learned about the teachers' weights in one slice, or everywhere."""

    outcomes: int = Field(ge=0, description="outcomes counted in it")
    stretches: int = Field(ge=0, description="in so many stretches of `promotion.cluster`, each one piece of evidence")
    own: Fraction = Field(description="how far its own weights count against those of everywhere; 1 for everywhere")
    posterior: tuple[float, ...] = Field(description="over the constant mixtures of the teachers")


class TeacherWeights(Record):
    """The teachers' weights and all that the next outcome needs (:mod:`stillhouse.teachers.mixture_weights`)."""

    by: Literal["file", "agreement", "outcomes"] = Field(
        description="what they rest on: the agent file alone; agreement, which is weaker; outcomes"
    )
    as_of: AwareDatetime
    teachers: tuple[str, ...] = Field(description="each has one weight: a teacher, or an ensemble with fixed weights")
    start: tuple[float, ...] = Field(description="their shares before the first outcome")
    columns: tuple[str, ...] = Field(
        default=(), description="slice columns, whose values may have weights of their own"
    )
    column_shares: tuple[float, ...] = Field(description="how far everywhere counts, then each slice column")
    everywhere: SliceWeights
    slices: dict[str, SliceWeights] = Field(default_factory=dict, description="by 'column=value'")
    losses: dict[str, float] = Field(
        description="sum over stretches of the mean −ln p(outcome) (nats): each teacher, 'start', as weighted then ('')"
    )


class WeightChange(Record):
    """One teacher's share moved."""

    teacher: str
    slice: str = Field(description="'column=value'; '': everywhere")
    before: Fraction
    after: Fraction
    by: Literal["file", "agreement", "outcomes"]
    as_of: AwareDatetime
    version: str = Field(description="of all teachers together, before their weights")
    job: str = Field(description="refresh id, or 'watch'")
    reason: str


class Contradiction(Record):
    """Two teachers on the rows of one slice that both have spoken about."""

    first: str
    second: str
    slice: str = Field(description="'column=value'; '': everywhere")
    rows: int = Field(ge=0)
    contradicting: int = Field(ge=0, description="rows with different actions, or a total variation above ½")
    share: Fraction
    low: Fraction = Field(description="95 % interval of the share, rows of one cluster counted as one")
    high: Fraction
    known: int = Field(ge=0, description="contradicting rows whose outcome is known")
    first_right: int = Field(ge=0, description="of those, where only the first chose the outcome")
    second_right: int = Field(ge=0)
    better: str | None = Field(description="who was right more often, beyond chance (95 %); None: cannot be told")


class Contradictions(Record):
    """Where teachers contradict each other, most first."""

    window: Window
    found: tuple[Contradiction, ...] = ()
