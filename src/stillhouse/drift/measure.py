"""One drift measurement: profile a window and the student's output on it, and compare it with the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.drift.calibrate import calibrate_drift, screen
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.outputs import output_columns, output_frame
from stillhouse.drift.profile import Profile
from stillhouse.drift.scan import profile_frame
from stillhouse.drift.texts import replace_text_columns
from stillhouse.errors import WindowError
from stillhouse.records import Disagreement, DriftCalibration, DriftReport, Quality, SliceDrift, Window
from stillhouse.stats import cluster_ids

__all__ = ["OUTPUT_PREFIX", "make_drift_report", "profile_reference", "profile_window", "typical_length"]

Array = np.ndarray[Any, Any]

OUTPUT_PREFIX = "student: "
"""Prefix of the output columns in a profile, so that no observation column can have the same name."""


def profile_window(rows: pd.DataFrame, probs: Array, config: AgentConfig, like: Profile | None = None) -> Profile:
    """The profile of the watched columns of ``rows`` and of the student's output on them.

    :param rows: with the measures of their texts (:func:`stillhouse.drift.texts.add_text_measures`).
    :param probs: float ``[n, K]``, the student's probabilities.
    :param like: a profile that the result will be compared with.
    :raises WindowError: if there are no rows.
    :raises SchemaError: if a watched column is absent, or a number column is not numeric.
    """
    outputs = output_frame(probs, config.actions).set_index(rows.index).add_prefix(OUTPUT_PREFIX)
    declared = {OUTPUT_PREFIX + name: column for name, column in output_columns(config.actions).items()}
    columns = {**replace_text_columns(config.observations.columns), **declared}
    return profile_frame(pd.concat([rows, outputs], axis=1), columns, like)


def profile_reference(rows: pd.DataFrame, probs: Array, config: AgentConfig) -> tuple[Profile, DriftCalibration]:
    """The profile of a training window, the sum of the profiles of its time blocks, and the calibration on these.

    :param rows: ordered by ``observed_at``. The time blocks are as long as a current window and counted from the end.
        If a current window is measured on a sample, the calibration uses a sample of each block too.
    :param probs: float ``[n, K]``, the student's probabilities.
    :raises WindowError: if there are no rows.
    """
    if rows.empty:
        raise WindowError("a reference needs rows; this training window has none")
    block_length = typical_length(rows, config)
    parts, calibration_parts = list[Profile](), list[Profile]()
    for in_block in _time_block_masks(rows, block_length):
        parts.append(profile_window(rows[in_block], probs[in_block], config, like=parts[0] if parts else None))
        sample = _sample_positions(np.flatnonzero(in_block), config.windows.sample)
        if len(sample) < parts[-1].rows:
            calibration_parts.append(profile_window(rows.iloc[sample], probs[sample], config, like=parts[0]))
        else:
            calibration_parts.append(parts[-1])
    reference = parts[0]
    for part in parts[1:]:
        reference = reference + part
    large_enough = [part for part in calibration_parts if part.rows >= config.observations.min_rows]
    return reference, calibrate_drift(large_enough, block_length)


def typical_length(rows: pd.DataFrame, config: AgentConfig) -> timedelta:
    """The length of a typical current window, estimated on the training rows, which are ordered by ``observed_at``.

    :raises WindowError: if there are no rows.
    """
    if rows.empty:
        raise WindowError("the length of a current window cannot be estimated from a training window without rows")
    times = rows["observed_at"]
    return config.windows.typical_length(len(rows), times.iloc[-1] - times.iloc[0])


def make_drift_report(
    agent: str,
    champion: str,
    reference: Window,
    current: Window,
    before: Profile,
    now: Profile,
    calibration: DriftCalibration,
    *,
    disagreement: Disagreement | None = None,
    disagreement_reference: Disagreement | None = None,
    quality: Quality | None = None,
    quality_reference: Quality | None = None,
    slices: tuple[SliceDrift, ...] = (),
) -> DriftReport:
    """The drift of the current window against the reference, computed from their profiles only.

    :param champion: name@version of the watched model.
    :param before: profile of the reference, from :func:`profile_reference`; ``now`` is that of the current window.
    :param disagreement: of teacher and champion on audited rows of the current window.
    :param quality: of the champion on outcomes that are known in the current window.
    :raises SchemaError: if ``now`` lacks a column of ``before``.
    """
    start = time.perf_counter()
    drifts, result = screen(compare_profiles(before, now), calibration)
    return DriftReport(
        agent=agent,
        champion=champion,
        reference=reference,
        current=current,
        reference_rows=before.rows,
        current_rows=now.rows,
        columns=tuple(drift for drift in drifts if not drift.column.startswith(OUTPUT_PREFIX)),
        outputs=tuple(drift for drift in drifts if drift.column.startswith(OUTPUT_PREFIX)),
        screened=result,
        disagreement=disagreement,
        disagreement_reference=disagreement_reference,
        quality=quality,
        quality_reference=quality_reference,
        slices=slices,
        seconds=time.perf_counter() - start,
    )


def _sample_positions(positions: Array, max_rows: int | None) -> Array:
    """At most ``max_rows`` of the positions, in order; the same sample for the same positions."""
    if max_rows is None or len(positions) <= max_rows:
        return positions
    return np.sort(np.random.default_rng(len(positions)).choice(positions, max_rows, replace=False))


def _time_block_masks(rows: pd.DataFrame, block_length: timedelta) -> Iterator[Array]:
    """The rows of each time block, bool ``[n]``, oldest block first."""
    if rows.empty:
        return
    ages = cluster_ids(rows["observed_at"], block_length, rows["observed_at"].iloc[-1], backwards=True)
    for age in np.unique(ages)[::-1]:
        yield ages == age
