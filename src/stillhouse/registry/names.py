"""The artifacts of MLflow runs by name, in one place."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BASELINE",
    "CERTIFICATE",
    "CONTRADICTIONS",
    "DATA_DOCS",
    "DRIFT_FIGURE",
    "DRIFT_VERDICT",
    "EXAMINATION",
    "FRONTIER",
    "FRONTIER_FIGURE",
    "MODEL_STATE",
    "PROFILE",
    "PROOF",
    "QUALITY_FIGURE",
    "QUESTIONS",
    "RECALIBRATION",
    "TRADEOFF_FIGURE",
    "TRAINING_HISTORY",
    "UPDATE",
    "VERDICT",
    "WEIGHTS",
    "WEIGHTS_FIGURE",
]

# of a refresh
DATA_DOCS: Final = "data_docs/data_checks.html"  # what its data was checked for, and how that went
DRIFT_VERDICT: Final = "drift/verdict.json"  # the watch that asked for it
DRIFT_FIGURE: Final = "figures/drift.png"
EXAMINATION: Final = "examination.json"  # of its teacher
QUESTIONS: Final = "questions.json"  # of how many rows the teachers were asked
WEIGHTS: Final = "weights.json"  # of its teachers
WEIGHTS_FIGURE: Final = "figures/weights.png"
CONTRADICTIONS: Final = "contradictions.json"  # where its teachers contradict each other
UPDATE: Final = "update.json"
RECALIBRATION: Final = "recalibration.json"
FRONTIER: Final = "compression.json"  # every candidate of the search
FRONTIER_FIGURE: Final = "figures/frontier.png"
MODEL_STATE: Final = "compression/form.onnx"  # what the chosen variant was quantised from, in float32
PROFILE: Final = "profile.arrow"  # of the training window
BASELINE: Final = "baseline.json"  # what watches compare with
PROOF: Final = "proof.json"
TRADEOFF_FIGURE: Final = "figures/size_latency_quality.png"
QUALITY_FIGURE: Final = "figures/quality_over_time.png"
CERTIFICATE: Final = "certificate.json"  # all that the gate judged
VERDICT: Final = "verdict.json"  # from then on the refresh is decided

# of a student's nested run
TRAINING_HISTORY: Final = "distillation.json"
