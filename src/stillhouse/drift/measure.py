"""One drift measurement: columns and the student's output against the reference, and against what is usual."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.drift.calibrate import screened, screens
from stillhouse.drift.distances import compare
from stillhouse.drift.outputs import columns_of, outputs
from stillhouse.drift.profile import Profile, build
from stillhouse.drift.texts import watched
from stillhouse.errors import WindowError
from stillhouse.records import Disagreement, DriftCalibration, DriftReport, Quality, SliceDrift, Window
from stillhouse.stats import cluster_ids

__all__ = ["OUTPUT", "measure", "profile_of", "reference_of", "typical_length"]

Array = np.ndarray[Any, Any]

OUTPUT = "student: "
"""What the student's outputs are called by in a profile, so that no feature can bear the same name."""


def profile_of(rows: pd.DataFrame, probabilities: Array, config: AgentConfig, like: Profile | None = None) -> Profile:
    """The profile of the watched columns of ``rows`` and of the student's output ``[n, K]`` on them.

    :param rows: with what is watched of texts beside them (:func:`stillhouse.drift.texts.measured`).
    :raises WindowError: if there are no rows.
    :raises SchemaError: if a watched column is absent, or a number is not numeric.
    """
    said = outputs(probabilities, config.actions).set_index(rows.index).add_prefix(OUTPUT)
    named = {OUTPUT + name: column for name, column in columns_of(config.actions).items()}
    return build(pd.concat([rows, said], axis=1), {**watched(config.observations.columns), **named}, like)


def reference_of(rows: pd.DataFrame, probabilities: Array, config: AgentConfig) -> tuple[Profile, DriftCalibration]:
    """The profile of a training window, put together from that of its stretches, and what is usual among those.

    :param rows: ordered by ``observed_at``; stretches as long as a current window are counted from the end. Where of
        those only a sample is measured, so it is of the stretches that say what is usual.
    """
    if rows.empty:
        raise WindowError("a reference needs rows; this training window has none")
    block = typical_length(rows, config)
    parts, usual = list[Profile](), list[Profile]()
    for chosen in _stretches(rows, block):
        parts.append(profile_of(rows[chosen], probabilities[chosen], config, like=parts[0] if parts else None))
        few = _sampled(np.flatnonzero(chosen), config.windows.sample)
        sampled = len(few) < parts[-1].rows
        usual.append(profile_of(rows.iloc[few], probabilities[few], config, like=parts[0]) if sampled else parts[-1])
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    enough = [part for part in usual if part.rows >= config.observations.min_rows]
    return whole, screens(enough, block)


def typical_length(rows: pd.DataFrame, config: AgentConfig) -> timedelta:
    """How long a current window usually is, judged by the training rows, ordered by ``observed_at``.

    :raises WindowError: if there are no rows.
    """
    if rows.empty:
        raise WindowError("how long a current window is cannot be judged by a training window without rows")
    times = rows["observed_at"]
    return config.windows.typical_length(len(rows), times.iloc[-1] - times.iloc[0])


def measure(
    agent: str,
    champion: str,
    reference: Window,
    current: Window,
    before: Profile,
    now: Profile,
    usual: DriftCalibration,
    *,
    disagreement: Disagreement | None = None,
    disagreement_reference: Disagreement | None = None,
    quality: Quality | None = None,
    quality_reference: Quality | None = None,
    slices: tuple[SliceDrift, ...] = (),
) -> DriftReport:
    """How far the current window is from the reference, from nothing but their profiles.

    :param champion: name@version of the model that is watched.
    :param before: profile of the reference, from :func:`reference_of`; ``now`` that of the current window.
    :param disagreement: of teacher and champion on audited rows of the current window.
    :param quality: of the champion on outcomes known in the current window.
    :raises SchemaError: if ``now`` lacks a column of ``before``.
    """
    start = time.perf_counter()
    drifts, result = screened(compare(before, now), usual)
    return DriftReport(
        agent=agent,
        champion=champion,
        reference=reference,
        current=current,
        reference_rows=before.rows,
        current_rows=now.rows,
        columns=tuple(drift for drift in drifts if not drift.column.startswith(OUTPUT)),
        outputs=tuple(drift for drift in drifts if drift.column.startswith(OUTPUT)),
        screened=result,
        disagreement=disagreement,
        disagreement_reference=disagreement_reference,
        quality=quality,
        quality_reference=quality_reference,
        slices=slices,
        seconds=time.perf_counter() - start,
    )


def _sampled(positions: Array, most: int | None) -> Array:
    """At most ``most`` of the positions, in order; the same for the same positions."""
    if most is None or len(positions) <= most:
        return positions
    return np.sort(np.random.default_rng(len(positions)).choice(positions, most, replace=False))


def _stretches(rows: pd.DataFrame, block: timedelta) -> Iterator[Array]:
    """Which rows belong to each stretch of time, bool ``[n]``, oldest stretch first."""
    if rows.empty:
        return
    age = cluster_ids(rows["observed_at"], block, rows["observed_at"].iloc[-1], backwards=True)
    for number in np.unique(age)[::-1]:
        yield age == number
