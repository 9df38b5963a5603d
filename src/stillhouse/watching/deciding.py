"""From the window and the evidence to a verdict: how far things have moved, and what to do about it."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd

from stillhouse.champion import Champion
from stillhouse.drift.decide import decide
from stillhouse.drift.explain import rank_slices
from stillhouse.drift.measure import make_drift_report
from stillhouse.errors import WindowError
from stillhouse.evaluate.scorecard import disagreement, quality
from stillhouse.records import Cost, DataReport, DriftReport, Quality, SliceDrift, Verdict
from stillhouse.stats import total_variation
from stillhouse.teachers import labeling
from stillhouse.watching.evidence import INSTANT, evidence_states
from stillhouse.watching.window import Array, WatchedWindow

__all__ = ["decide_response", "measure_drift"]


def measure_drift(watched: WatchedWindow, data: DataReport) -> DriftReport | None:
    """Current window against what the champion was trained on; None of a window that is broken or has too few rows.

    :raises WindowError: if there is no champion.
    """
    champion = watched.champion
    if data.broken or watched.too_few(data):
        return None
    if champion is None:
        raise WindowError(
            f"agent {watched.agent!r} has no champion that could be watched: make one with `python -m flows refresh "
            f"--agent {watched.agent} --trigger bootstrap`"
        )
    audited = _audited_rows(watched, champion)
    account = labeling.open_watch_budget(watched.champion_base, data.window.end)
    teacher_probs = labeling.ask(champion.teacher, audited, account)
    answered = ~np.isnan(teacher_probs[:, 0])
    audited, teacher_probs = audited[answered], teacher_probs[answered]
    probs, weights = champion.variant.predict_proba(audited), audited["weight"].to_numpy()
    labelled, baseline = watched.labelled, champion.baseline
    return make_drift_report(
        watched.agent,
        str(champion.model),
        baseline.train,
        data.window,
        champion.profile,
        watched.profile,
        baseline.screens,
        disagreement=disagreement(teacher_probs, probs, weights) if len(audited) else None,
        disagreement_reference=baseline.disagreement,
        quality=_champion_quality(champion, labelled) if len(labelled) else None,
        quality_reference=baseline.quality,
        slices=_slices(watched, champion, audited, teacher_probs, probs) if len(audited) else (),
    )


def decide_response(
    watched: WatchedWindow, as_of: datetime, data: DataReport, report: DriftReport | None, cost: Cost | None = None
) -> Verdict:
    """What to do about it; the verdict is recorded."""
    base, champion = watched.base, watched.champion
    states = evidence_states(base, champion, as_of) if champion and watched.settings.watch.false_alarms else []
    last = base.journal.last_refresh(before=as_of + INSTANT)
    verdict = decide(
        report,
        data,
        watched.settings,
        as_of=as_of,
        last_refresh=last,
        refused=base.journal.last_refresh_refused(before=as_of + INSTANT),
        steps=states,
        cost=cost,
        new_rows=None if last is None else base.has_observations(last, as_of),
    )
    base.journal.append_verdict(verdict)
    return verdict


# --------------------------------------------------------------------------- inside


def _audited_rows(watched: WatchedWindow, champion: Champion) -> pd.DataFrame:
    """The window's audited rows with their weights; without a budget of false alarms, a uniform sample."""
    base, rows = watched.champion_base, watched.rows
    if watched.settings.watch.false_alarms is None:
        return base.sample(rows, watched.settings.watch.audit.rows).assign(weight=1.0)
    state = next((step for step in base.journal.latest_evidence() if step.process == "disagreement"), None)
    if state is None or state.champion != str(champion.model) or rows.empty:
        return rows.iloc[:0].assign(weight=1.0)
    counted = base.journal.evidence(
        state.champion, None, after=rows["observed_at"].iloc[0]
    )  # before an alarm was closed, too
    weights = pd.Series(
        {name: weight for each in counted for name, weight in zip(each.observation_ids, each.weights, strict=True)},
        name="weight",
        dtype=float,
    )
    return rows.merge(weights, left_on="observation_id", right_index=True, how="inner")


def _champion_quality(champion: Champion, labelled: pd.DataFrame) -> Quality:
    return quality(champion.variant.predict_proba(labelled), labelled["outcome"].to_numpy())


def _slices(
    watched: WatchedWindow, champion: Champion, audited: pd.DataFrame, teacher_probs: Array, probs: Array
) -> tuple[SliceDrift, ...]:
    """Where teacher and student part, by slice."""
    return rank_slices(
        audited,
        total_variation(teacher_probs, probs),
        audited["weight"].to_numpy(),
        champion.profile,
        watched.profile,
        champion.baseline.losses["disagreement"].mean,
        [name for name in champion.profile.columns if name in audited],
    )
