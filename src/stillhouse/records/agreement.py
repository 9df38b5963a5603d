"""Records of a promised agreement with the teacher: what is promised, and how far it is held at present."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record

__all__ = ["Promise", "PromiseAlarm", "PromiseState"]

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
