"""Evidence on the champion: each step that has ended since the last watch is audited and counted once."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from stillhouse.champion import Champion
from stillhouse.drift import audit, evidence, steps
from stillhouse.drift.calibrate import screen
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.explain import score_shift
from stillhouse.knowledge import KnowledgeBase
from stillhouse.locks import watch_lock
from stillhouse.records import Cost, DataReport, EvidenceRows, EvidenceStep, TeacherWeights
from stillhouse.stats import half_brier
from stillhouse.teachers import labeling, mixture_weights, weight_updates
from stillhouse.watching.window import WatchedWindow

__all__ = ["INSTANT", "evidence_states", "follow_weights", "gather_evidence"]

INSTANT = timedelta(microseconds=1)
"""The clock of the tables: a refresh that spoke for this very moment is the last one, wherever the clock stands."""


def gather_evidence(watched: WatchedWindow, as_of: datetime, data: DataReport) -> Cost | None:
    """Audit the steps that have ended since the last watch and count what outcomes arrived; what that cost.

    None where nothing is counted: no champion yet, no budget of false alarms, or too few rows.
    """
    champion = watched.champion
    if champion is None or watched.settings.watch.false_alarms is None or watched.too_few(data):
        return None
    began = time.perf_counter()
    with watch_lock(watched.agent):
        states = evidence_states(watched.champion_base, champion, as_of)
        counting = _Counting(watched, champion, data, as_of)
        for state in states:  # the audit first: outcomes of rows that are audited now may be known already
            counting.count(state)
        counted = counting.counted
        watched.champion_base.journal.append_evidence(counted)
    before = next(state.rows for state in states if state.process == "disagreement")
    calls = sum(each.step.step_rows for each in counted if each.step.process == "disagreement")
    return Cost(teacher_calls=calls, teacher_calls_since=before + calls, seconds=time.perf_counter() - began)


def evidence_states(base: KnowledgeBase, champion: Champion, as_of: datetime) -> list[EvidenceStep]:
    """Where each process stands: at its last step, or at its beginning.

    It begins with a new champion, after a judged refresh (which closes the alarm, promoted or refused), and when the
    budget or the tolerance was changed. The processes share one budget evenly.
    """
    refreshed, watch = base.journal.last_refresh(before=as_of + INSTANT), base.config.watch
    latest = {step.process: step for step in base.journal.latest_evidence()}
    states = []
    for process, baseline in champion.baseline.losses.items():
        last = latest.get(process)
        beginnings = [champion.baseline.as_of, refreshed, last.end if last else None]
        begun = evidence.start(
            process,
            str(champion.model),
            since=max(moment for moment in beginnings if moment is not None),
            null_mean=evidence.estimate_null_mean(baseline, watch.tolerance),
            average_run_length=watch.average_run_length or 1.0,
            share=1 / len(champion.baseline.losses),
            autocorrelation=baseline.autocorrelation,
            step_deviation=baseline.step_deviation,
        )
        states.append(evidence.continue_or_restart(last, begun, refreshed))
    return states


def follow_weights(watched: WatchedWindow, as_of: datetime) -> TeacherWeights | None:
    """Where the weights of the champion's teachers stand by the outcomes known since; each change is recorded."""
    base, champion = watched.base, watched.champion
    if champion is None or watched.settings.weights.follow == "fixed" or champion.teacher.weights is None:
        return None
    baseline, version = champion.baseline, champion.teacher.version
    found = weight_updates.update_weights(base, champion.teacher, baseline.as_of, baseline.test, as_of)
    recorded = [
        change for change in base.journal.weight_changes(version) if change.job == "watch" and change.as_of <= as_of
    ]
    before = weight_updates.current_weights(champion.teacher.weights, recorded)
    base.journal.append_weight_changes(
        mixture_weights.find_changes(found.weights, before, version=version, job="watch")
    )
    return found.weights


class _Counting:
    """One process after another takes in the steps that have ended since it last did."""

    def __init__(self, watched: WatchedWindow, champion: Champion, data: DataReport, as_of: datetime) -> None:
        self.watched = watched
        self.champion = champion
        self.data = data
        self.as_of = as_of
        self.counted: list[EvidenceRows] = []
        self.base = watched.champion_base
        self.watch = watched.settings.watch
        self.cluster = watched.settings.promotion.cluster
        self._arrived: dict[tuple[datetime, datetime, datetime], pd.DataFrame] = {}

    def count(self, state: EvidenceStep) -> None:
        """The steps of one process; what nobody checked, or the check refused, is passed over."""
        until = self.as_of if self.data.broken else self.data.window.start
        passed = steps.skip_steps(state, steps.list_complete_steps(state.end, until, self.watch.every))
        state = passed[-1].step if passed else state
        due = steps.list_complete_steps(state.end, self.as_of, self.watch.every)
        take_in = {
            "disagreement": self._audit,
            "student_outcomes": self._student_outcomes,
            "teacher_outcomes": self._teacher_outcomes,
        }[state.process]
        self.counted += passed + (take_in(state, due) if due else [])

    def _arrivals(self, state: EvidenceStep, due: list[steps.Span]) -> pd.DataFrame:
        """Rows whose outcome became known in the steps that are due, read once for all processes."""
        span = (due[0][0], due[-1][1], state.since)
        if span not in self._arrived:
            self._arrived[span] = self.base.read_newly_labelled(span[0], span[1], since=span[2])
        return self._arrived[span].copy()

    def _audit(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """Ask the teacher about some rows of each step, most where the student is unsure or the data moved.

        Rows that it has no usable answer to, or that the budget does not reach, do not count.
        """
        watched, champion = self.watched, self.champion
        drifts, _ = screen(compare_profiles(champion.profile, watched.profile), champion.baseline.screens)
        moved = [drift.column for drift in drifts if drift.unusual and drift.column in watched.rows]
        shift = score_shift(watched.rows, champion.profile, watched.profile, moved) if moved else None
        scores = audit.audit_scores(watched.probabilities, shift)
        key = f"{watched.agent}:{state.champion}:{state.since.isoformat()}"
        planned = steps.plan_audit(watched.rows, scores, due, self.watch, self.cluster, key)
        drawn = pd.concat([plan.drawn for plan in planned], ignore_index=True)
        probs = labeling.ask(champion.teacher, drawn, labeling.open_watch_budget(self.base, self.as_of))
        answered = drawn["content_key"][~np.isnan(probs[:, 0])]
        planned = [plan.select_contents(answered) for plan in planned]
        losses = steps.measure_audit_losses(
            planned,
            champion.variant.predict_proba,
            lambda rows: self.base.answers.probs(rows, champion.teacher.version),
        )
        return steps.count_audit(state, planned, losses)

    def _student_outcomes(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """The champion's error on every outcome that became known in each step."""
        arrived = self._arrivals(state, due)
        probs = self.champion.variant.predict_proba(arrived)
        arrived["loss"] = half_brier(probs, arrived["outcome"].to_numpy())
        return steps.count_outcomes(state, steps.assign_clusters(arrived, self.cluster), due)

    def _teacher_outcomes(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """The teacher's error on audited rows, as their outcomes become known."""
        arrived = self._arrivals(state, due)
        oldest = arrived["observed_at"].min() if len(arrived) else due[0][0]
        kept = self.base.journal.evidence(state.champion, state.since, after=oldest)
        audited = [each for each in (*kept, *self.counted) if each.step.process == "disagreement"]
        probs = self.base.answers.probs(arrived, self.champion.teacher.version)
        answered = ~np.isnan(probs[:, 0])
        arrived["loss"] = np.nan
        arrived.loc[answered, "loss"] = half_brier(probs[answered], arrived["outcome"].to_numpy()[answered])
        return steps.count_outcomes(state, steps.join_outcomes(audited, arrived[answered]), due)
