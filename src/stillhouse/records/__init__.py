"""The frozen records that the packages exchange: numbers, reasons and paths, never a model or a DataFrame.

Every record is a pydantic model; written as JSON and read again, it is equal:

>>> from datetime import UTC, datetime
>>> window = Window(name="test", start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 5, tzinfo=UTC))
>>> Window.model_validate_json(window.model_dump_json()) == window
True
>>> print(window)
test [2026-01-01 00:00, 2026-01-05 00:00)

Times are timezone-aware UTC; windows are half-open, ``[start, end)``.
"""

from __future__ import annotations

from stillhouse.records.agreement import (
    NewAnswers,
    Promise,
    PromiseAlarm,
    PromiseState,
    PromiseStatus,
    UnsureCluster,
    UntaughtAnswer,
)
from stillhouse.records.base import Record, short_id
from stillhouse.records.compression import CompressionCandidate, Frontier, LayerSensitivity, Saturation, SizeLimits
from stillhouse.records.drift import (
    COLUMN_DISTANCES,
    ColumnDistance,
    ColumnDrift,
    DriftCalibration,
    DriftReport,
    ScreenResult,
    SliceDrift,
)
from stillhouse.records.evaluations import EvaluatedModel, Evaluation, IntervalEstimate
from stillhouse.records.evidence import Cost, EvidenceRows, EvidenceStep, LossBaseline, Process, split_restarts
from stillhouse.records.forgetting import ForgetReport, ForgetRequest, PendingForget
from stillhouse.records.models import ModelRef, StudentRef, TeacherRef
from stillhouse.records.pool import (
    BlockScore,
    ChampionChoice,
    FinalFit,
    PoolEvidence,
    PoolMember,
    PoolState,
    PredictedGain,
    RealisedGain,
    Reckoning,
)
from stillhouse.records.quality import Disagreement, Latency, NamedQuality, Quality, Scorecard, ScoredUnit
from stillhouse.records.refreshes import Baseline, ComparedModel, Refresh, SameRows
from stillhouse.records.reports import History, HistoryEntry, TableDrift, TeacherReport, TeacherShare
from stillhouse.records.sources import AnswersSource, ModelSource, Sources, WindowSource
from stillhouse.records.teachers import (
    Contradiction,
    ContradictionExample,
    Contradictions,
    Questions,
    SliceWeights,
    Spending,
    TeacherChange,
    TeacherWeights,
    WeightChange,
)
from stillhouse.records.verdicts import (
    REFRESH_MODES,
    Certificate,
    ClusterScores,
    Comparison,
    ComparisonRole,
    Examination,
    LabelKind,
    Proof,
    Reason,
    RefreshModeName,
    Response,
    Verdict,
    VerdictResult,
    drift_report,
    evidence_steps,
)
from stillhouse.records.verifications import Verification
from stillhouse.records.windows import CheckFailure, DataReport, Window
from stillhouse.records.words import Words, words_for

__all__ = [
    "COLUMN_DISTANCES",
    "REFRESH_MODES",
    "AnswersSource",
    "Baseline",
    "BlockScore",
    "Certificate",
    "ChampionChoice",
    "CheckFailure",
    "ClusterScores",
    "ColumnDistance",
    "ColumnDrift",
    "ComparedModel",
    "Comparison",
    "ComparisonRole",
    "CompressionCandidate",
    "Contradiction",
    "ContradictionExample",
    "Contradictions",
    "Cost",
    "DataReport",
    "Disagreement",
    "DriftCalibration",
    "DriftReport",
    "EvaluatedModel",
    "Evaluation",
    "EvidenceRows",
    "EvidenceStep",
    "Examination",
    "FinalFit",
    "ForgetReport",
    "ForgetRequest",
    "Frontier",
    "History",
    "HistoryEntry",
    "IntervalEstimate",
    "LabelKind",
    "Latency",
    "LayerSensitivity",
    "LossBaseline",
    "ModelRef",
    "ModelSource",
    "NamedQuality",
    "NewAnswers",
    "PendingForget",
    "PoolEvidence",
    "PoolMember",
    "PoolState",
    "PredictedGain",
    "Process",
    "Promise",
    "PromiseAlarm",
    "PromiseState",
    "PromiseStatus",
    "Proof",
    "Quality",
    "Questions",
    "RealisedGain",
    "Reason",
    "Reckoning",
    "Record",
    "Refresh",
    "RefreshModeName",
    "Response",
    "SameRows",
    "Saturation",
    "Scorecard",
    "ScoredUnit",
    "ScreenResult",
    "SizeLimits",
    "SliceDrift",
    "SliceWeights",
    "Sources",
    "Spending",
    "StudentRef",
    "TableDrift",
    "TeacherChange",
    "TeacherRef",
    "TeacherReport",
    "TeacherShare",
    "TeacherWeights",
    "UnsureCluster",
    "UntaughtAnswer",
    "Verdict",
    "VerdictResult",
    "Verification",
    "WeightChange",
    "Window",
    "WindowSource",
    "Words",
    "drift_report",
    "evidence_steps",
    "short_id",
    "split_restarts",
    "words_for",
]
