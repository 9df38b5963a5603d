"""Measure the drift of the window, and decide on a response to drift and evidence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from stillhouse.champion import Champion
from stillhouse.drift.decide import Evidence, decide
from stillhouse.drift.explain import rank_slices
from stillhouse.drift.measure import make_drift_report
from stillhouse.errors import WindowError
from stillhouse.evaluate.scorecard import measure_disagreement, measure_quality
from stillhouse.evaluate.sources import describe_model, describe_settings, describe_window
from stillhouse.quality import get_measure
from stillhouse.records import (
    ChampionChoice,
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    PoolState,
    Quality,
    Reckoning,
    SliceDrift,
    Sources,
    TeacherChange,
    Verdict,
)
from stillhouse.registry.foreign import ForeignModels
from stillhouse.stats import replace_non_finite, total_variation
from stillhouse.teachers import ensemble, labeling
from stillhouse.watching.evidence import CLOCK_RESOLUTION, read_evidence_states
from stillhouse.watching.window import Array, WatchedWindow

__all__ = ["WATCH_SECTIONS", "decide_response", "measure_drift", "read_audited_rows", "report_drift"]

log = logging.getLogger(__name__)

WATCH_SECTIONS = ("observations", "outcomes", "quality", "windows", "watch", "promotion")
"""Sections of the agent file that the figures of a watch depend on."""


def measure_drift(watched: WatchedWindow, data: DataReport) -> DriftReport | None:
    """Compare the current window with the champion's training window.

    :returns: None if the window breaks the data contract or has too few rows.
    :raises WindowError: if there is no champion.
    """
    champion = watched.champion
    if data.broken or watched.has_too_few_rows(data):
        return None
    if champion is None:
        raise WindowError(
            f"agent {watched.agent!r} has no champion that could be watched: make one with `python -m flows refresh "
            f"--agent {watched.agent} --trigger bootstrap`"
        )
    audited = read_audited_rows(watched, champion, watched.champion_base.journal.latest_evidence())
    budget = labeling.open_watch_budget(watched.champion_base, data.window.end)
    teacher_probs = labeling.ask(champion.teacher, audited, budget)
    report = report_drift(watched, champion, data, audited, teacher_probs)
    largest = ", ".join(f"{column.column} {column.psi:.3g}" for column in report.worst(3))
    log.info("drift: %s rows against %s; largest PSI: %s", f"{report.current_rows:,}", report.reference, largest)
    return report


def report_drift(
    watched: WatchedWindow, champion: Champion, data: DataReport, audited: pd.DataFrame, teacher_probs: Array
) -> DriftReport:
    """The drift of the window, computed from its rows and the teacher's answers alone.

    :param audited: rows of the window with their sampling ``weight``.
    :param teacher_probs: of the audited rows, float64 ``[n, K]``; NaN where there is no answer.
    """
    answered = ~np.isnan(teacher_probs[:, 0])
    audited, teacher_probs = audited[answered], teacher_probs[answered]
    probs, sampling_weights = champion.variant.predict_proba(audited), audited["weight"].to_numpy()
    labelled, baseline = watched.labelled, champion.baseline
    return make_drift_report(
        watched.agent,
        str(champion.model),
        baseline.train,
        data.window,
        champion.profile,
        watched.profile,
        baseline.screens,
        disagreement=measure_disagreement(teacher_probs, probs, sampling_weights) if len(audited) else None,
        disagreement_reference=baseline.disagreement,
        quality=_measure_quality(watched, champion) if len(labelled) else None,
        quality_reference=baseline.quality,
        slices=_rank_slices(watched, champion, audited, teacher_probs, probs) if len(audited) else (),
    )


def read_audited_rows(
    watched: WatchedWindow, champion: Champion, latest: Sequence[EvidenceStep], until: datetime | None = None
) -> pd.DataFrame:
    """The window's audited rows with their sampling weights; without a false-alarm budget, a uniform sample.

    :param latest: the last step of each evidence process at the time of the watch.
    :param until: without steps that end later; None: all steps.
    """
    base, rows = watched.champion_base, watched.rows
    if watched.settings.watch.false_alarms is None:
        return base.sample(rows, watched.settings.watch.audit.rows).assign(weight=1.0)
    state = next((step for step in latest if step.process == "disagreement"), None)
    if state is None or state.champion != str(champion.model) or rows.empty:
        return rows.iloc[:0].assign(weight=1.0)
    # all steps of this champion, also those before its last alarm was closed
    steps = base.journal.evidence(state.champion, None, after=rows["observed_at"].iloc[0])
    weight_by_id = {
        observation_id: weight
        for step in steps
        if until is None or step.step.end <= until
        for observation_id, weight in zip(step.observation_ids, step.sampling_weights, strict=True)
    }
    sampling_weights = pd.Series(weight_by_id, name="weight", dtype=float)
    return rows.merge(sampling_weights, left_on="observation_id", right_index=True, how="inner")


def decide_response(
    watched: WatchedWindow,
    as_of: datetime,
    data: DataReport,
    report: DriftReport | None,
    cost: Cost | None = None,
    *,
    reckoning: Reckoning | None = None,
    choice: ChampionChoice | None = None,
    pool: PoolState | None = None,
) -> Verdict:
    """Decide on a response, and record the verdict.

    :param report: None if drift could not be measured.
    :param cost: cost of the evidence; None if none was gathered.
    :param reckoning: what each response is predicted to gain; None: nothing can be predicted.
    :param choice: which member of the pool should be champion; None: there is no pool yet.
    :param pool: the pool that both were decided on.
    """
    base, champion = watched.base, watched.champion
    states = read_evidence_states(base, champion, as_of) if champion and watched.settings.watch.false_alarms else []
    last_refresh = base.journal.last_refresh(before=as_of + CLOCK_RESOLUTION)
    verdict = decide(
        report,
        data,
        watched.settings,
        as_of=as_of,
        last_refresh=last_refresh,
        refused=base.journal.last_refresh_refused(before=as_of + CLOCK_RESOLUTION),
        steps=states,
        cost=cost,
        new_rows=None if last_refresh is None else base.has_observations(last_refresh, as_of),
        reckoning=reckoning,
        choice=choice,
        pool=pool,
        sources=_describe_sources(watched, report),
        changes=_find_teacher_changes(watched, as_of, last_refresh) if report is not None else (),
    )
    base.journal.append_verdict(verdict)
    return verdict


# --------------------------------------------------------------------------- inside


def _find_teacher_changes(
    watched: WatchedWindow, as_of: datetime, last_refresh: datetime | None
) -> tuple[TeacherChange, ...]:
    """The champion's teachers that have changed, and whether the last refresh has tried the changed ones already.

    That refresh was asked for by a watch of the same moment; if that watch knew of the same change and the champion is
    the same, the refresh used the changed teacher and was not promoted. It is tried again when all outcomes of the test
    window are new: rules may be edited before the outcomes follow them.
    """
    champion = watched.champion
    if champion is None:
        return ()
    changes = ensemble.find_changes(champion.teacher_folder(), champion.settings, as_of, ForeignModels())
    test, asked = champion.baseline.test, None
    if changes and last_refresh is not None and as_of < last_refresh + (test.end - test.start):
        asked = watched.base.journal.verdict_at("watch", last_refresh)
    before = Evidence.model_validate(asked.evidence).changes if asked else ()
    known = {(change.teacher, change.now) for change in before}
    return tuple(change.model_copy(update={"tried": (change.teacher, change.now) in known}) for change in changes)


def _describe_sources(watched: WatchedWindow, report: DriftReport | None) -> Sources:
    """What the figures of the verdict are computed from; labels and model only where drift was measured."""
    settings, champion = describe_settings(watched.settings, WATCH_SECTIONS), watched.champion
    if report is None or champion is None:
        rows = watched.observations.assign(outcome=-1)
        return Sources(windows=(describe_window(watched.window, rows),), settings=settings)
    return Sources(
        windows=(describe_window(watched.window, watched.with_labels),),
        models=(describe_model("champion", str(champion.model), champion.folder),),
        settings=settings,
    )


def _measure_quality(watched: WatchedWindow, champion: Champion) -> Quality:
    labelled, measure, predict = watched.labelled, get_measure(watched.settings), champion.variant.predict_proba
    labels = labelled["outcome"].to_numpy()
    probs = replace_non_finite(predict(labelled), labels)
    return measure_quality(probs, labels, measure, labelled, measure.play(predict, labelled))


def _rank_slices(
    watched: WatchedWindow, champion: Champion, audited: pd.DataFrame, teacher_probs: Array, probs: Array
) -> tuple[SliceDrift, ...]:
    """The slices that contribute most to the disagreement of teacher and student."""
    return rank_slices(
        audited,
        total_variation(teacher_probs, probs),
        audited["weight"].to_numpy(),
        champion.profile,
        watched.profile,
        champion.baseline.losses["disagreement"].mean,
        [name for name in champion.profile.columns if name in audited],
    )
