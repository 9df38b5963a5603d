"""One drift measurement: columns, the student's output, and what teachers and outcomes say of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.distances import compare, number_drift
from stillhouse.drift.profile import Profile, number_profile
from stillhouse.records import ColumnDrift, Disagreement, DriftReport, Quality, Window

__all__ = ["confidence", "measure"]

Array = np.ndarray[Any, Any]


def measure(
    agent: str,
    champion: str,
    reference: Window,
    current: Window,
    reference_profile: Profile,
    rows: pd.DataFrame,
    *,
    confidence_reference: Array | None = None,
    confidence_current: Array | None = None,
    disagreement: Disagreement | None = None,
    disagreement_reference: Disagreement | None = None,
    quality: Quality | None = None,
    quality_reference: Quality | None = None,
) -> DriftReport:
    """How far the current window's ``rows`` are from the reference.

    :param champion: name@version of the model that is watched.
    :param confidence_reference: float ``[n]`` in 0…1, :func:`confidence` of the champion on the reference;
        without it, or without ``confidence_current``, the output is not measured.
    :param disagreement: of teacher and champion on audited rows of the current window .
    :param quality: of the champion on outcomes known in the current window.
    :raises WindowError: if ``rows`` is empty.
    :raises SchemaError: if ``rows`` lacks a profiled column, or a number is not numeric.
    """
    start = time.perf_counter()
    columns = compare(reference_profile, rows)
    output = _output(confidence_reference, confidence_current)
    return DriftReport(
        agent=agent,
        champion=champion,
        reference=reference,
        current=current,
        reference_rows=reference_profile.rows,
        current_rows=len(rows),
        columns=columns,
        output=output,
        disagreement=disagreement,
        disagreement_reference=disagreement_reference,
        quality=quality,
        quality_reference=quality_reference,
        seconds=time.perf_counter() - start,
    )


def confidence(probabilities: Array) -> Array:
    """The student's output as one column, float64 ``[n]`` in 0…1, from probabilities ``[n, K]``.

    For two actions the probability of the second, the positive one; for more that of the most probable.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    column: Array = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities.max(axis=1)
    return column


def _output(reference: Array | None, current: Array | None) -> ColumnDrift | None:
    if reference is None or current is None or not len(reference) or not len(current):
        return None
    return number_drift(
        "confidence", number_profile(np.asarray(reference, dtype=np.float64)), np.asarray(current, dtype=np.float64)
    )
