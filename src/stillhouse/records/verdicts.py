"""Decisions of the system with their reasons, and the evidence of gate and admission."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AliasChoices, AwareDatetime, Field, JsonValue

from stillhouse.records.base import Fraction, Record
from stillhouse.records.drift import DriftReport
from stillhouse.records.evidence import Cost, EvidenceStep
from stillhouse.records.quality import Disagreement, Scorecard

__all__ = [
    "REFRESH_MODES",
    "Certificate",
    "ClusterScores",
    "Comparison",
    "Examination",
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
    """One measure beside its threshold, and what it means in a sentence."""

    measure: str
    value: float | None = None
    threshold: float | None = None
    failed: bool = Field(validation_alias=AliasChoices("failed", "crossed"), description="once stored as `crossed`")
    text: str


Response = Literal["hold", "recalibrate", "reuse", "update", "redistil_warm", "redistil", "renew"]


RefreshModeName = Literal["recalibrate", "update", "redistil_warm", "redistil"]
"""How a refresh makes its student: the champion's is kept, and its ranges and its confidence are estimated anew; the
champion's takes in what is new; a training that begins at the champion's weights; a training from the beginning."""


REFRESH_MODES: Mapping[Response, RefreshModeName | None] = {
    "hold": None,
    "recalibrate": "recalibrate",
    "reuse": "redistil",
    "update": "update",
    "redistil_warm": "redistil_warm",
    "redistil": "redistil",
    "renew": "redistil",
}
"""How the refresh that a response asks for makes its student; None: the response asks for no refresh."""


VerdictResult = Literal[
    # watch
    "no_drift",
    "benign_shift",
    "drift",
    "harmful_drift",
    "teacher_failing",
    "cooling_down",
    "not_enough_evidence",
    "data_broken",
    # gate, promotion
    "admitted",
    "promoted",
    "refused",
    "awaiting_approval",
    "rolled_back",
]


class ClusterScores(Record):
    """How far each cluster of rows moves an estimate, and how far one more could: what a bound is made of."""

    scores: tuple[tuple[float, int], ...] = Field(
        description="influence of a cluster on the estimate, in its unit, and how many clusters have it; they sum to 0"
    )
    worst: float = Field(gt=0, description="by how much one more cluster could change the estimate")
    clusters: int = Field(ge=1)
    effective: float = Field(ge=1, description="clusters of equal size that they are worth (Kish 1965)")


class Comparison(Record):
    """Challenger minus champion on the same rows: the evidence of a gate, complete enough to judge again."""

    window: str = Field(
        description="window name, 'column=value' of a slice of the test window, or 'anchor': the test window, and an "
        "earlier champion"
    )
    rows: int = Field(ge=0)
    measure: Literal["auc", "accuracy"] = Field(description="AUC for two actions, accuracy for more")
    challenger: float
    champion: float
    difference: float = Field(description="challenger − champion")
    standard_error: float = Field(ge=0.0, description="of the paired difference")
    margin: float = Field(ge=0.0, description="how much worse the challenger may be")
    rule: int = Field(default=1, ge=1, description="version of the rule that bounds the difference; 1: normal")
    lost: int | None = Field(default=None, ge=0, description="rows on which the champion alone is right (accuracy)")
    gained: int | None = Field(default=None, ge=0, description="rows on which the challenger alone is right (accuracy)")
    rarer: int | None = Field(default=None, ge=0, description="rows of the rarer outcome (AUC)")
    evidence: ClusterScores | None = Field(default=None, description="of the difference; None under rule 1")


class Certificate(Record):
    """All that a promotion was decided on. ``evaluate.gate.judge`` on it gives the identical verdict."""

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
    nothing_fits: str = Field(default="", description="what would have to give, where no variant keeps to the budgets")
    rule: int = Field(
        default=1, ge=1, description="version of the rule that it is judged by; stored, and kept for good"
    )
    contract_skipped: str | None = Field(default=None, description="why the data contract was not asked; None: it was")
    anchor: str | None = Field(
        default=None, description="the champion that losses are added up from, 'flights@3'; None: there was none yet"
    )


class Examination(Record):
    """All that decides whether a teacher may teach. ``evaluate.admission.judge`` on it gives the identical verdict."""

    agent: str
    refresh_id: str
    as_of: AwareDatetime
    teacher: str = Field(description="version of the teacher")
    rows: int = Field(ge=0, description="rows with outcomes that it had not seen and was asked about")
    answered: int = Field(ge=0, description="those with a usable answer")
    unanswered: tuple[str, ...] = Field(default=(), description="the most frequent reasons why others have none")
    constant: bool = Field(description="whether it said the same about all of them")
    comparison: Comparison | None = Field(description="teacher against the base rate; None: too few outcomes of each")
    against_champion: Comparison | None = Field(default=None, description="teacher against the champion, same rows")
    trusted: str | None = Field(default=None, description="version of the teacher that it was compared with instead")
    agreement: float | None = Field(default=None, ge=0.0, le=1.0, description="1 − mean total variation to that one")
    agreement_error: float = Field(default=0.0, ge=0.0, description="standard error of the agreement, by cluster")
    agreement_evidence: ClusterScores | None = Field(default=None, description="of the agreement; None under rule 1")
    confidence: float = Field(gt=0.5, lt=1.0, description="one-sided")
    rule: int = Field(
        default=1, ge=1, description="version of the rule that it is judged by; stored, and kept for good"
    )
    min_answered: Fraction
    min_agreement: Fraction


class Proof(Record):
    """Everything measured about one refresh's models, and which variant is put forward."""

    teacher: Scorecard
    student: Scorecard
    variants: tuple[Scorecard, ...]
    champion: Scorecard | None
    chosen: str = Field(description="name of the variant put forward")
    why: str
    disagreement: Disagreement = Field(description="teacher and chosen variant on the test window")
    certificate: Certificate


class Verdict(Record):
    """A decision of the system, with the numbers and reasons that led to it."""

    verdict_id: str
    kind: Literal["watch", "gate", "promotion"]
    agent: str
    as_of: AwareDatetime
    result: VerdictResult = Field(
        validation_alias=AliasChoices("result", "outcome"), description="once stored as `outcome`"
    )
    response: Response = "hold"
    summary: str
    reasons: tuple[Reason, ...] = ()
    cost: Cost | None = Field(default=None, description="of a watch")
    evidence: dict[str, JsonValue] = Field(default_factory=dict, description="the records judged, as JSON")

    @property
    def refresh_mode(self) -> RefreshModeName | None:
        """How the refresh that this verdict asks for makes its student; None: it asks for none."""
        return REFRESH_MODES[self.response]


def drift_report(verdict: Verdict) -> DriftReport | None:
    """The drift report that a watch's verdict was decided on; None where nothing could be measured."""
    evidence = verdict.evidence.get("drift")
    return DriftReport.model_validate(evidence) if evidence else None


def evidence_steps(verdict: Verdict) -> tuple[EvidenceStep, ...]:
    """The last step of each evidence process that a watch's verdict was decided on."""
    return tuple(EvidenceStep.model_validate(step) for step in verdict.evidence.get("steps") or ())  # type: ignore[union-attr]
