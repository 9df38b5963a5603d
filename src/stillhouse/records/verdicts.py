"""Verdicts with their reasons, and the evidence of the gate and of the admission of teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AliasChoices, AwareDatetime, Field, JsonValue

from stillhouse.records.base import Fraction, Record
from stillhouse.records.drift import DriftReport
from stillhouse.records.evidence import Cost, EvidenceStep
from stillhouse.records.quality import Disagreement, Scorecard, ScoredUnit
from stillhouse.records.sources import Sources

__all__ = [
    "REFRESH_MODES",
    "Certificate",
    "ClusterScores",
    "Comparison",
    "ComparisonRole",
    "Examination",
    "LabelKind",
    "Proof",
    "Reason",
    "RefreshModeName",
    "Response",
    "Verdict",
    "VerdictResult",
    "drift_report",
    "evidence_steps",
]


class Reason(Record):
    """One measurement with its threshold, and one sentence about it."""

    measure: str
    value: float | None = None
    threshold: float | None = None
    failed: bool = Field(
        validation_alias=AliasChoices("failed", "crossed"),
        description="whether the measurement speaks against; formerly stored as `crossed`",
    )
    undecided: bool = Field(default=False, description="whether there are too few rows to tell")
    text: str

    @property
    def status(self) -> Literal["passed", "failed", "undecided", "requested"]:
        """The word for people; a reason that a person gave was not measured."""
        if self.measure == "request":
            return "requested"
        return "failed" if self.failed else "undecided" if self.undecided else "passed"


Response = Literal["hold", "recalibrate", "reuse", "update", "redistil_warm", "redistil", "renew"]


RefreshModeName = Literal["recalibrate", "update", "redistil_warm", "redistil"]
"""How a refresh makes its student: ``recalibrate`` keeps the champion's student and estimates its ranges and its
confidence anew; ``update`` fine-tunes it on new rows; ``redistil_warm`` trains from its weights; ``redistil`` trains a
new student."""


REFRESH_MODES: Mapping[Response, RefreshModeName | None] = {
    "hold": None,
    "recalibrate": "recalibrate",
    "reuse": None,
    "update": "update",
    "redistil_warm": "redistil_warm",
    "redistil": "redistil",
    "renew": "redistil",
}
"""The mode of the refresh by response; None: no refresh."""


VerdictResult = Literal[
    # watch
    "no_drift",
    "benign_shift",
    "drift",
    "harmful_drift",
    "teacher_failing",
    "teacher_changed",
    "cooling_down",
    "not_enough_evidence",
    "data_broken",
    "pays",
    "due",
    # gate, promotion
    "admitted",
    "promoted",
    "refused",
    "inconclusive",
    "awaiting_approval",
    "rolled_back",
    "rejected",
    # forget
    "forgotten",
]


ComparisonRole = Literal["non_inferior", "cumulative", "no_harm", "reported"]


LabelKind = Literal["outcomes", "teacher answers"]
"""What the labels of an agent are: outcomes, or answers that its teacher gave without regard to the champion."""


class ClusterScores(Record):
    """The influence of each cluster of rows on an estimate: the input of a confidence bound."""

    scores: tuple[tuple[float, int], ...] = Field(
        description="pairs of an influence on the estimate, in its unit, and the number of clusters with this "
        "influence; the influences of all clusters sum to 0"
    )
    worst: float = Field(gt=0, description="largest change of the estimate by one more cluster")
    clusters: int = Field(ge=1)
    effective: float = Field(ge=1, description="effective number of clusters (Kish 1965)")


class Comparison(Record):
    """Challenger against champion on the same rows, with everything that the gate's test needs."""

    window: str = Field(
        description="window name; 'column=value': a slice of the test window; 'anchor', 'never_refreshed', "
        "'best_earlier': the test window, with an earlier champion instead of the champion"
    )
    rows: int = Field(ge=0, description="how many rows, or episodes, both models are scored on")
    on: ScoredUnit = Field(
        default="rows", exclude_if=lambda value: value == "rows", description="what has a score: rows or episodes"
    )
    measure: str = Field(description="name of the measure")
    challenger: float = Field(description="value of the measure, in its unit and direction; `champion` likewise")
    champion: float
    difference: float = Field(description="challenger − champion, oriented so that more is better")
    standard_error: float = Field(ge=0.0, description="of the paired difference")
    margin: float = Field(ge=0.0, description="how much worse the challenger may be")
    rule: int = Field(default=1, ge=1, description="version of the bound on the difference; 1: normal approximation")
    role: ComparisonRole = Field(
        default="non_inferior",
        description="what the gate asks; non_inferior: proven no worse by the margin; cumulative: the same, and a loss "
        "within the margin is allowed even where it is proven; no_harm: not proven worse by the margin; reported: "
        "nothing",
    )
    can_grow: bool = Field(default=True, description="whether later labels add rows; false: a window of the past")
    unit: str = Field(default="", description="unit of the measure")
    better: Literal["higher", "lower"] = Field(default="higher", description="direction of the measure")
    span: float = Field(default=1.0, gt=0, description="largest minus smallest score of a row or episode")
    lost: int | None = Field(default=None, ge=0, description="rows on which the champion alone is right (accuracy)")
    gained: int | None = Field(default=None, ge=0, description="rows on which the challenger alone is right (accuracy)")
    rarer: int | None = Field(default=None, ge=0, description="rows with the rarer outcome (AUC)")
    evidence: ClusterScores | None = Field(
        default=None, description="influence of the clusters on the difference; None under rule 1"
    )


class Certificate(Record):
    """Everything that a promotion was decided on: ``evaluate.gate.judge`` of it gives the identical verdict."""

    agent: str
    refresh_id: str
    challenger: Scorecard
    champion: Scorecard | None
    comparisons: tuple[Comparison, ...]
    confidence: float = Field(gt=0.5, lt=1.0, description="one-sided")
    max_bytes: int | None
    max_p95_ms: float | None
    approval: Literal["automatic", "manual"]
    as_of: AwareDatetime
    nothing_fits: str = Field(
        default="", description="if no variant fits the limits: the limits that would have to change"
    )
    rule: int = Field(
        default=1, ge=1, description="version of the rules that decide; stored, so that the verdict never changes"
    )
    contract_skipped: str | None = Field(
        default=None, description="why the data contract was not checked; None: it was"
    )
    anchor: str | None = Field(
        default=None,
        description="champion that the total loss is counted from, 'flights@3'; None: there was no champion",
    )
    not_compared: tuple[str, ...] = Field(
        default=(), description="what should not be forgotten and has too few rows with outcomes to be compared"
    )
    sources: Sources | None = Field(
        default=None,
        description="rows, model files and settings that the figures were computed from; None: an older certificate",
    )
    labels: LabelKind = Field(default="outcomes", description="what the models were judged by")


class Examination(Record):
    """Everything that a teacher's admission is decided on: ``evaluate.admission.judge`` of it gives the verdict."""

    agent: str
    refresh_id: str
    as_of: AwareDatetime
    teacher: str = Field(description="version of the teacher")
    rows: int = Field(ge=0, description="rows that it was asked about; it has not seen their outcomes")
    answered: int = Field(ge=0, description="rows with a usable answer")
    unanswered: tuple[str, ...] = Field(default=(), description="most frequent reasons for rows without one")
    constant: bool = Field(description="whether all its answers are the same")
    comparison: Comparison | None = Field(description="teacher against the base rate; None: too few rows per outcome")
    against_champion: Comparison | None = Field(
        default=None, description="teacher against the champion, on the same rows"
    )
    trusted: str | None = Field(
        default=None, description="version of the admitted teacher that it was compared with instead"
    )
    agreement: float | None = Field(
        default=None, ge=0.0, le=1.0, description="1 − mean total variation to that teacher"
    )
    agreement_error: float = Field(default=0.0, ge=0.0, description="standard error of the agreement, clustered")
    agreement_evidence: ClusterScores | None = Field(
        default=None, description="influence of the clusters on the agreement; None under rule 1"
    )
    confidence: float = Field(gt=0.5, lt=1.0, description="one-sided")
    rule: int = Field(
        default=1, ge=1, description="version of the rules that decide; stored, so that the verdict never changes"
    )
    min_answered: Fraction
    min_agreement: Fraction
    labels: LabelKind = Field(
        default="outcomes",
        description="what it was judged by; teacher answers: its own, so it was compared with nothing",
    )


class Proof(Record):
    """All measurements of the models of one refresh, and its chosen variant."""

    teacher: Scorecard
    student: Scorecard
    variants: tuple[Scorecard, ...]
    champion: Scorecard | None
    chosen: str = Field(description="name of the chosen variant")
    why: str
    disagreement: Disagreement = Field(description="teacher and chosen variant on the test window")
    certificate: Certificate


class Verdict(Record):
    """A decision of a watch, a gate or a promotion, with its numbers and reasons; or that rows were forgotten."""

    verdict_id: str
    kind: Literal["watch", "gate", "promotion", "forget"]
    agent: str
    as_of: AwareDatetime
    result: VerdictResult = Field(
        validation_alias=AliasChoices("result", "outcome"), description="formerly stored as `outcome`"
    )
    response: Response = "hold"
    summary: str
    reasons: tuple[Reason, ...] = ()
    cost: Cost | None = Field(default=None, description="of a watch")
    labels_needed: int | None = Field(
        default=None,
        ge=1,
        description="of an inconclusive gate: about how many more outcomes would decide; None: not foreseeable",
    )
    evidence: dict[str, JsonValue] = Field(
        default_factory=dict, description="the records that it was decided on, as JSON"
    )

    @property
    def refresh_mode(self) -> RefreshModeName | None:
        """The mode of the refresh that this verdict asks for; None: it asks for none."""
        return REFRESH_MODES[self.response]


def drift_report(verdict: Verdict) -> DriftReport | None:
    """The drift report of a watch's verdict; None if nothing could be measured."""
    evidence = verdict.evidence.get("drift")
    return DriftReport.model_validate(evidence) if evidence else None


def evidence_steps(verdict: Verdict) -> tuple[EvidenceStep, ...]:
    """The last step of each evidence process of a watch's verdict."""
    return tuple(EvidenceStep.model_validate(step) for step in verdict.evidence.get("steps") or ())  # type: ignore[union-attr]
