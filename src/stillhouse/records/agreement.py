"""Records of a promised agreement with the teacher: what is promised, and how far it is held at present."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record

__all__ = ["NewAnswers", "Promise", "PromiseAlarm", "PromiseState", "PromiseStatus", "UnsureCluster", "UntaughtAnswer"]

PromiseAlarm = Literal["agreement", "unsure_rows"]
Count = Annotated[int, Field(ge=0)]


class Promise(Record):
    """The student answers alone only where it agrees with the teacher on at least this share of its answers."""

    agreement: float = Field(gt=0.5, lt=1.0, description="promised share of the student's own answers that agree")
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1.0, description="probability with which a threshold that is in force keeps it"
    )


class PromiseState(Record):
    """All that is known about a promise: the next row needs nothing else.

    The lists have an entry for each level of :data:`stillhouse.agreement.thresholds.LEVELS`, from strict to loose. A
    row belongs to the strictest level that it reaches.
    """

    promise: Promise
    threshold: Fraction | None = Field(
        default=None, description="the student answers at this confidence and above; null: it answers nothing"
    )
    novelty_limit: float | None = Field(
        default=None, ge=0.0, description="the teacher answers rows that are more novel than this; null: no limit"
    )
    rows: tuple[Count, ...] = Field(description="blind rows of this epoch by level")
    disagreements: tuple[Count, ...] = Field(description="those that the teacher answered otherwise")
    doubt: tuple[float, ...] = Field(description="sum over these rows of 1 − the student's confidence")
    tested_at: Count = Field(default=0, description="blind rows of this epoch at the last test; 0: none yet")
    next_test: Count = Field(default=0, description="number of blind rows at which thresholds are tested again")
    begin: Fraction | None = Field(default=None, description="level at which the test that allowed the threshold began")
    fallback: Fraction | None = Field(
        default=None, description="threshold that an alarm left in force until a test of this epoch allows a looser one"
    )
    usual: tuple[Fraction, ...] | None = Field(
        default=None, description="largest usual share of disagreements by level; null: not known"
    )
    evidence: tuple[tuple[float, ...], ...] = Field(description="logarithms of the evidence against each level, by bet")
    unsure_evidence: tuple[float, ...] = Field(description="that against the usual disagreement of unsure rows")
    epoch: Count = Field(default=0, description="alarms since the thresholds were fitted")
    alarm: PromiseAlarm | None = Field(default=None, description="what began this epoch; null: the fit")
    answered: Count = Field(default=0, description="audited rows since the fit that the student would have answered")
    agreed: Count = Field(default=0, description="those of them that the teacher answered alike")
    audited: Count = Field(default=0, description="all audited rows since the fit")
    novel: Count = Field(default=0, description="those of them that were too novel to be answered")


class PromiseStatus(Record):
    """How far a promise is held at present."""

    promise: Promise
    champion: str = Field(description="the version that the figures are about, such as flights@7")
    threshold: Fraction | None = Field(description="the student answers at this confidence and above; null: nothing")
    coverage: Fraction | None = Field(description="share of blind rows that it would answer; null: there are none yet")
    rows: Count = Field(description="blind rows that the threshold rests on: those at it and above")
    agreement: Fraction | None = Field(description="share of these on which the teacher agreed; null: no rows")
    agreement_bound: Fraction | None = Field(description="lower bound of that share, at the promised confidence")
    blind_rows: Count = Field(description="all blind rows since the thresholds were fitted, or since the last alarm")
    rows_lacking: Count = Field(description="audited rows without a disagreement that a first threshold needs; 0: none")
    audited: Count = Field(description="audited rows since this champion began")
    answered: Count = Field(description="those of them that the student would have answered at the time")
    agreed: Count = Field(description="those of these that the teacher answered alike")
    alarms: Count = Field(description="alarms since this champion began")
    why: str = Field(description="a sentence: what is answered, and why no more")


class UntaughtAnswer(Record):
    """An action that the teacher answers and the student was hardly taught."""

    action: str
    rows: int = Field(ge=1, description="rows on which the teacher answered it")
    taught: Count = Field(description="rows with this answer that the student learned from")
    examples: tuple[str, ...] = Field(description="some of their texts")


class UnsureCluster(Record):
    """Similar texts that the student is unsure of and answers otherwise than the teacher."""

    name: str = Field(description="suggested name: the words that tell these texts from the others")
    rows: int = Field(ge=1)
    action: str = Field(description="what the teacher answered most")
    share: Fraction = Field(description="share of the cluster with this answer")
    examples: tuple[str, ...]


class NewAnswers(Record):
    """What the student was not taught: for people to decide about, never absorbed by itself."""

    rows: Count = Field(description="rows that the teacher answered")
    unsure: Count = Field(description="those that the student is unsure of and answers otherwise")
    untaught: tuple[UntaughtAnswer, ...] = Field(description="by number of rows, most first")
    clusters: tuple[UnsureCluster, ...] = Field(description="by number of rows, most first")
    missed_out_of_scope: Fraction | None = Field(
        default=None, description="of rows that the teacher calls out of scope, the share that the student does not"
    )
    false_out_of_scope: Fraction | None = Field(
        default=None, description="of rows that the student calls out of scope, the share that the teacher does not"
    )
