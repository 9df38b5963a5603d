"""Names that the registry uses in MLflow: artifact paths of runs, and registered models."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BASELINE",
    "CERTIFICATE",
    "CONTRADICTIONS",
    "DATA_DOCS",
    "DIFF",
    "DRIFT_FIGURE",
    "DRIFT_VERDICT",
    "EXAMINATION",
    "FINAL_FIT",
    "FRONTIER",
    "FRONTIER_FIGURE",
    "FRONTIER_PAGE",
    "MODEL_STATE",
    "PROFILE",
    "PROOF",
    "QUESTIONS",
    "RECALIBRATION",
    "SAME_ROWS",
    "SAVINGS",
    "STUDENT_CONTRADICTIONS",
    "TIMELINE_FIGURE",
    "TRADEOFF_FIGURE",
    "TRAINING_HISTORY",
    "UPDATE",
    "VERDICT",
    "WEIGHTS",
    "WEIGHTS_FIGURE",
    "WHY",
    "registered_name",
]

# Artifacts of a refresh run.
DATA_DOCS: Final = "data_docs/data_checks.html"  # report of the data checks
DRIFT_VERDICT: Final = "drift/verdict.json"  # verdict of the watch that caused the refresh
DRIFT_FIGURE: Final = "figures/drift.png"
EXAMINATION: Final = "examination.json"  # examination of the teacher
QUESTIONS: Final = "questions.json"  # number of rows that the teachers were asked
WEIGHTS: Final = "weights.json"  # weights of the teachers
WEIGHTS_FIGURE: Final = "figures/weights.png"
CONTRADICTIONS: Final = "contradictions.json"  # where the teachers contradict each other
STUDENT_CONTRADICTIONS: Final = "student_contradictions.json"  # where the challenger and the teachers do
UPDATE: Final = "update.json"
RECALIBRATION: Final = "recalibration.json"
FRONTIER: Final = "compression.json"  # every candidate of the compression search
FRONTIER_FIGURE: Final = "figures/frontier.png"
FRONTIER_PAGE: Final = "figures/frontier.html"  # the same, interactive
MODEL_STATE: Final = "compression/form.onnx"  # float32 graph that the chosen variant was quantized from
PROFILE: Final = "profile.arrow"  # profile of the training window
BASELINE: Final = "baseline.json"  # reference values for watches
PROOF: Final = "proof.json"
TRADEOFF_FIGURE: Final = "figures/size_latency_quality.png"
CERTIFICATE: Final = "certificate.json"  # everything that the gate compared
FINAL_FIT: Final = "final_fit.json"  # certificate of the fit on all rows, which is not proved
SAME_ROWS: Final = "same_rows.json"  # challenger and champions on the same test window
WHY: Final = "why.md"  # why the version is champion, or not; also in the run of a version
DIFF: Final = "diff.md"  # settings and figures against the champion; also in the run of a version
VERDICT: Final = "verdict.json"  # decides the refresh

# Artifact of a version's run.
SAVINGS: Final = "savings.md"  # what the front door's agent saves, as of the newest watch

# Artifact of a refresh run and of a watch run.
TIMELINE_FIGURE: Final = "figures/timeline.png"  # the agent's life until then

# Artifact of a student's nested run.
TRAINING_HISTORY: Final = "distillation.json"


def registered_name(agent: str, role: str) -> str:
    """The registered model that holds an agent's models of ``role``: teacher, student or variant.

    >>> registered_name("flights", "variant"), registered_name("flights", "teacher")
    ('flights', 'flights-teacher')
    """
    return agent if role == "variant" else f"{agent}-{role}"
