"""Figures of one model: quality and calibration on windows and slices, and the disagreement of two models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from stillhouse.errors import WindowError
from stillhouse.quality import Measure
from stillhouse.records import Disagreement, NamedQuality, Quality
from stillhouse.stats import brier, total_variation

__all__ = [
    "expected_calibration_error",
    "measure_agreement",
    "measure_disagreement",
    "measure_quality",
    "score_slices",
]

Array = np.ndarray[Any, Any]


def measure_quality(
    probs: Array,
    labels: Array,
    measure: Measure | None = None,
    rows: pd.DataFrame | None = None,
    episodes: Array | None = None,
) -> Quality:
    """The quality of probabilities ``[n, K]`` against action indices ``[n]``.

    The AUC is that of the second action for K = 2, and the mean one-vs-rest AUC for more; None if the labels contain
    fewer than two actions. An index of K or more is an action that the model does not know; its probability is 0.

    >>> scores = measure_quality(np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]), np.array([0, 1, 0]))
    >>> scores.auc, round(scores.accuracy, 3), round(scores.brier, 3)
    (0.5, 0.667, 0.46)

    :param measure: the measure that the agent file names, whose value is added; the accuracy stands in for an AUC of
        labels of one action, and for a score of episodes where none were played.
    :param rows: the observations, for a score of the user's own.
    :param episodes: the scores of the episodes that the model has played ``[m]``, for a score of episodes.
    :raises ValueError: if there are no rows.
    """
    if len(labels) == 0:
        raise ValueError("quality of no rows is not defined")
    unknown_actions = max(0, int(np.max(labels)) + 1 - np.shape(probs)[1])
    p = np.clip(np.pad(np.asarray(probs, dtype=np.float64), ((0, 0), (0, unknown_actions))), 1e-7, 1.0)
    p /= p.sum(axis=1, keepdims=True)
    return Quality(
        rows=len(labels),
        auc=_auc(p, labels),
        log_loss=float(-np.log(p[np.arange(len(labels)), labels]).mean()),
        brier=float(brier(p, labels).mean()),
        accuracy=float((p.argmax(axis=1) == labels).mean()),
        calibration_error=expected_calibration_error(p, labels),
        actions=p.shape[1],
        named=_measure_named(probs, labels, measure, rows, episodes) if measure else None,
    )


def _measure_named(
    probs: Array, labels: Array, measure: Measure, rows: pd.DataFrame | None, episodes: Array | None
) -> NamedQuality:
    defined = measure.for_labels(labels, np.shape(probs)[1], episodes)
    return defined.describe(defined.value(probs, labels, rows, episodes))


def _auc(p: Array, labels: Array) -> float | None:
    present = np.unique(labels)
    if len(present) < 2:
        return None
    if p.shape[1] == 2:
        return float(roc_auc_score(labels, p[:, 1]))
    ranks, positive = rankdata(p[:, present], axis=0), labels[:, None] == present  # both [n, actions present]
    m = positive.sum(axis=0)
    u = np.where(positive, ranks, 0.0).sum(axis=0) - m * (m + 1) / 2  # Mann and Whitney's U of each action
    return float((u / (m * (len(p) - m))).mean())


def expected_calibration_error(p: Array, labels: Array, bins: int = 15) -> float:
    """Mean |accuracy − confidence| of the most probable action over ``bins`` bins of equal mass.

    Naeini, Cooper and Hauskrecht 2015 (ECE), with the equal-mass bins of Nguyen and O'Connor 2015. Rows of equal
    confidence are in the same bin, so the order of the rows does not matter.

    :param p: probabilities ``[n, K]``.
    :param labels: action indices ``[n]``.
    """
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    bin_of_row = ((rankdata(confidence) - 0.5) * bins / len(p)).astype(np.int64)
    return float(np.abs(np.bincount(bin_of_row, weights=correct - confidence)).sum() / len(p))


def score_slices(
    rows: pd.DataFrame,
    probs: Array,
    labels: Array,
    columns: tuple[str, ...],
    measure: Measure | None = None,
) -> dict[str, Quality]:
    """Quality by ``"column=value"`` for every value of ``columns``.

    :param probs: ``[n, K]``.
    :param labels: action indices ``[n]``.
    :param measure: the measure that the agent file names.
    """
    by_slice = {}
    for column in columns:
        for value in sorted(rows[column].dropna().unique()):
            in_slice = (rows[column] == value).to_numpy()
            by_slice[f"{column}={value}"] = measure_quality(probs[in_slice], labels[in_slice], measure, rows[in_slice])
    return by_slice


def measure_agreement(teacher: Array, student: Array) -> float:
    """``1 −`` mean total variation ``½ Σ_k |p_k − q_k|`` of two ``[n, K]``; 1: equal probabilities."""
    return float(1.0 - total_variation(teacher, student).mean())


def measure_disagreement(p_teacher: Array, p_student: Array, sampling_weights: Array | None = None) -> Disagreement:
    """The disagreement of teacher and student on the same n observations, probabilities ``[n, K]`` each.

    >>> measure_disagreement(np.array([[0.75, 0.25]]), np.array([[0.25, 0.75]])).total_variation
    0.5

    :param sampling_weights: float ``[n]`` > 0, number of rows that each row represents; None: all the same.
    :raises ValueError: if the shapes differ.
    :raises WindowError: if there are no rows.
    """
    p_teacher, p_student = np.asarray(p_teacher, dtype=np.float64), np.asarray(p_student, dtype=np.float64)
    if p_teacher.shape != p_student.shape or p_teacher.ndim != 2:
        raise ValueError(f"both must be [n, K]; teacher is {p_teacher.shape}, student {p_student.shape}")
    if not len(p_teacher):
        raise WindowError("the disagreement of teacher and student needs rows; there are none")
    return Disagreement(
        rows=len(p_teacher),
        rate=float(np.average(p_teacher.argmax(axis=1) != p_student.argmax(axis=1), weights=sampling_weights)),
        total_variation=min(1.0, float(np.average(total_variation(p_teacher, p_student), weights=sampling_weights))),
    )
