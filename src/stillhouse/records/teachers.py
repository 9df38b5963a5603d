"""Records of teachers: the cost of their answers, their mixture weights, and their contradictions."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, AwareDatetime, Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.windows import Window

__all__ = [
    "Contradiction",
    "ContradictionExample",
    "Contradictions",
    "Questions",
    "SliceWeights",
    "Spending",
    "TeacherChange",
    "TeacherWeights",
    "WeightChange",
]


class Spending(Record):
    """The cost of a teacher's answers. Two spendings can be added with ``+``."""

    calls: int = Field(default=0, ge=0, description="requests to an endpoint; for a teacher in this process: rows")
    rows: int = Field(default=0, ge=0, description="rows that it labelled or tried to label")
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
    """The training rows of a refresh by who labels them: selected for the teachers, known before, or skipped."""

    rows: int = Field(ge=0, description="training rows, with and without an outcome")
    without_outcome: int = Field(ge=0, description="training rows without a known outcome")
    known: int = Field(ge=0, description="rows with a stored teacher answer")
    asked: int = Field(ge=0, description="rows selected for the teachers")
    answered: int = Field(ge=0, description="selected rows that the teachers answered")
    limited: bool = Field(description="whether the budget allowed fewer rows than the agent file asks for")

    @property
    def skipped(self) -> int:
        """Number of rows that were neither known nor selected."""
        return self.rows - self.known - self.asked

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} training rows: {self.known:,} known before, {self.asked:,} asked about "
            f"({self.answered:,} answered), {self.skipped:,} skipped"
        )
        return text + (", as the budget ended" if self.limited else "")


class SliceWeights(Record):
    """The learned mixture weights of the teachers in one slice, or over all rows."""

    outcomes: int = Field(ge=0, description="number of outcomes counted")
    time_blocks: int = Field(
        validation_alias=AliasChoices("time_blocks", "stretches"),
        serialization_alias="stretches",
        ge=0,
        description="number of time blocks of length `promotion.cluster` with outcomes, each one observation of the "
        "loss; stored as `stretches`",
    )
    own: Fraction = Field(
        description="share of the slice's own weights, the rest comes from those over all rows; 1 for these"
    )
    posterior: tuple[float, ...] = Field(description="probabilities of the constant mixtures of the teachers")


class TeacherWeights(Record):
    """The teachers' mixture weights, and the state of their estimation (:mod:`stillhouse.teachers.mixture_weights`)."""

    by: Literal["file", "agreement", "outcomes"] = Field(
        description="what they were estimated from: the agent file alone, agreement (weaker evidence), or outcomes"
    )
    as_of: AwareDatetime
    teachers: tuple[str, ...] = Field(
        description="names; one weight for a teacher, or for an ensemble with fixed weights"
    )
    start: tuple[float, ...] = Field(description="their weights before the first outcome")
    columns: tuple[str, ...] = Field(
        default=(), description="slice columns; each of their values may have its own weights"
    )
    column_shares: tuple[float, ...] = Field(
        description="share of the weights over all rows, then of those of each slice column"
    )
    everywhere: SliceWeights
    slices: dict[str, SliceWeights] = Field(default_factory=dict, description="by 'column=value'")
    losses: dict[str, float] = Field(
        description="sum over time blocks of the mean −ln p(outcome) (nats), by teacher; 'start': the start weights; "
        "'': the weights as they were then"
    )


class WeightChange(Record):
    """A change of one teacher's weight."""

    teacher: str
    slice: str = Field(description="'column=value'; '': all rows")
    before: Fraction
    after: Fraction
    by: Literal["file", "agreement", "outcomes"]
    as_of: AwareDatetime
    version: str = Field(description="version of all teachers together, without their weights")
    job: str = Field(description="refresh id, or 'watch'")
    reason: str


class TeacherChange(Record):
    """A teacher that answers otherwise now than the champion's, although the agent file is the same."""

    teacher: str
    before: str = Field(description="version of the champion's teacher")
    now: str = Field(description="version that a refresh would use now")
    tried: bool = Field(default=False, description="whether the last refresh used that version, and was not promoted")


class ContradictionExample(Record):
    """A row on which two models choose different actions."""

    observation_id: str
    observed_at: AwareDatetime
    first: str = Field(description="action of the first")
    second: str = Field(description="action of the second")
    outcome: str | None = Field(description="the true action; None: not known")
    values: dict[str, str] = Field(description="the columns of the row, as text")


class Contradiction(Record):
    """How often two teachers, or student and teacher, contradict each other on the rows that both answered."""

    first: str
    second: str
    slice: str = Field(description="'column=value', or conditions such as 'amount > 900 and region=far'; '': all rows")
    rows: int = Field(ge=0)
    contradicting: int = Field(ge=0, description="rows with different actions, or a total variation above ½")
    share: Fraction
    low: Fraction = Field(description="lower bound of the share: 95 % interval, clustered")
    high: Fraction = Field(description="upper bound of the share")
    known: int = Field(ge=0, description="contradicting rows whose outcome is known")
    first_right: int = Field(ge=0, description="of these, rows where only the first chose the outcome")
    second_right: int = Field(ge=0, description="of these, rows where only the second chose the outcome")
    better: str | None = Field(
        description="name of the teacher that was right more often, significantly (95 %); None: no such teacher"
    )
    examples: tuple[ContradictionExample, ...] = ()


class Contradictions(Record):
    """The contradictions of the teachers on one window, the most frequent first."""

    window: Window
    contradictions: tuple[Contradiction, ...] = Field(
        validation_alias=AliasChoices("contradictions", "found"),
        serialization_alias="found",
        default=(),
        description="stored as `found`",
    )
