"""All figures of one model: quality and calibration on windows and slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from stillhouse.errors import WindowError
from stillhouse.records import Disagreement, Quality
from stillhouse.stats import brier, total_variation

__all__ = ["agreement", "as_wrong", "disagreement", "quality", "slices"]


def quality(probabilities: np.ndarray[Any, Any], outcomes: np.ndarray[Any, Any]) -> Quality:
    """How good ``[n, K]`` probabilities were against action indices ``[n]``.

    AUC is of the second action for K = 2, and the mean one-vs-rest AUC for more; None where the outcomes hold
    fewer than two actions. An index of K or more is an action that the model does not know: it has given that one
    nothing.
    """
    if len(outcomes) == 0:
        raise ValueError("quality of no rows is not defined")
    strange = max(0, int(np.max(outcomes)) + 1 - np.shape(probabilities)[1])
    p = np.clip(np.pad(np.asarray(probabilities, dtype=np.float64), ((0, 0), (0, strange))), 1e-7, 1.0)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(outcomes))
    return Quality(
        rows=len(outcomes),
        auc=_auc(p, outcomes),
        log_loss=float(-np.log(p[rows, outcomes]).mean()),
        brier=float(brier(p, outcomes).mean()),
        accuracy=float((p.argmax(axis=1) == outcomes).mean()),
        calibration_error=expected_calibration_error(p, outcomes),
        actions=p.shape[1],
    )


def _auc(p: np.ndarray[Any, Any], outcomes: np.ndarray[Any, Any]) -> float | None:
    present = np.unique(outcomes)
    if len(present) < 2:
        return None
    if p.shape[1] == 2:
        return float(roc_auc_score(outcomes, p[:, 1]))
    ranks, positive = rankdata(p[:, present], axis=0), outcomes[:, None] == present  # [n, actions present] each
    m = positive.sum(axis=0)
    beaten = np.where(positive, ranks, 0.0).sum(axis=0) - m * (m + 1) / 2  # Mann and Whitney's U of each action
    return float((beaten / (m * (len(p) - m))).mean())


def expected_calibration_error(p: np.ndarray[Any, Any], outcomes: np.ndarray[Any, Any], bins: int = 15) -> float:
    """Mean |accuracy − confidence| of the chosen action over ``bins`` bins of equal mass.

    Naeini, Cooper and Hauskrecht 2015 (ECE), with the equal-mass bins of Nguyen and O'Connor 2015. Rows of equal
    confidence share a bin, so that the order of the rows does not matter.
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == outcomes
    places = ((rankdata(confidence) - 0.5) * bins / len(p)).astype(np.int64)
    return float(np.abs(np.bincount(places, weights=right - confidence)).sum() / len(p))


def as_wrong(probabilities: np.ndarray[Any, Any], outcomes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities ``[n, K]`` in which a row that is not finite gives all to an action other than its outcome ``[n]``.

    A model that says NaN is as wrong there as it can be: neither the first action, which ``argmax`` would take, nor
    nothing that is judged.
    """
    strange = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if not len(strange):
        return probabilities
    found = np.array(probabilities, dtype=np.float64)
    found[strange] = 0.0
    found[strange, np.where(np.asarray(outcomes)[strange] == 0, 1, 0)] = 1.0
    return found


def slices(
    rows: pd.DataFrame,
    probabilities: np.ndarray[Any, Any],
    outcomes: np.ndarray[Any, Any],
    columns: tuple[str, ...],
) -> dict[str, Quality]:
    """Quality by ``"column=value"`` for every value of the given columns."""
    found = {}
    for column in columns:
        for value in sorted(rows[column].dropna().unique()):
            chosen = (rows[column] == value).to_numpy()
            found[f"{column}={value}"] = quality(probabilities[chosen], outcomes[chosen])
    return found


def agreement(teacher: np.ndarray[Any, Any], student: np.ndarray[Any, Any]) -> float:
    """``1 −`` mean total variation ``½ Σ_k |p_k − q_k|`` of two ``[n, K]``; 1 means the same probabilities."""
    return float(1.0 - total_variation(teacher, student).mean())


def disagreement(
    p_teacher: np.ndarray[Any, Any], p_student: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None = None
) -> Disagreement:
    """Teacher and student on the same n observations, probabilities ``[n, K]`` each.

    :param weights: float ``[n]`` > 0, how many rows each one stands for; None: all alike.
    :raises ValueError: if the shapes differ.
    :raises WindowError: if there are no rows.
    """
    p_teacher, p_student = np.asarray(p_teacher, dtype=np.float64), np.asarray(p_student, dtype=np.float64)
    if p_teacher.shape != p_student.shape or p_teacher.ndim != 2:
        raise ValueError(f"both must be [n, K]; teacher is {p_teacher.shape}, student {p_student.shape}")
    if not len(p_teacher):
        raise WindowError("no rows on which teacher and student could disagree")
    return Disagreement(
        rows=len(p_teacher),
        rate=float(np.average(p_teacher.argmax(axis=1) != p_student.argmax(axis=1), weights=weights)),
        total_variation=min(1.0, float(np.average(total_variation(p_teacher, p_student), weights=weights))),
    )
