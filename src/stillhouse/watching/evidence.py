"""Gather evidence on the champion: audit and count each time step that has ended since the last watch, once."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.champion import Champion
from stillhouse.config import AgentConfig, leaves
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

__all__ = ["CLOCK_RESOLUTION", "contents_to_count", "follow_weights", "gather_evidence", "read_evidence_states"]

log = logging.getLogger(__name__)

CLOCK_RESOLUTION = timedelta(microseconds=1)
"""Resolution of times in the tables: added to a time to include a refresh at exactly that time."""


def gather_evidence(watched: WatchedWindow, as_of: datetime, data: DataReport) -> Cost | None:
    """Audit the time steps that have ended since the last watch, and count the outcomes that became known in them.

    :returns: the cost; None if nothing was counted: no champion, no false-alarm budget, or too few rows.
    """
    champion = watched.champion
    if champion is None or watched.settings.watch.false_alarms is None or watched.has_too_few_rows(data):
        return None
    began = time.perf_counter()
    with watch_lock(watched.agent):
        states = read_evidence_states(watched.champion_base, champion, as_of)
        counter = _EvidenceCounter(watched, champion, data, as_of)
        for state in states:  # the audit first: the outcomes of rows that are audited now may be known already
            counter.count(state)
        new_steps = counter.new_steps
        watched.champion_base.journal.append_evidence(new_steps)
    earlier_calls = next(state.rows for state in states if state.process == "disagreement")
    calls = sum(rows.step.step_rows for rows in new_steps if rows.step.process == "disagreement")
    log.info("evidence: %s steps counted, the teacher was asked about %s rows", len(new_steps), f"{calls:,}")
    return Cost(teacher_calls=calls, teacher_calls_since=earlier_calls + calls, seconds=time.perf_counter() - began)


def read_evidence_states(base: KnowledgeBase, champion: Champion, as_of: datetime) -> list[EvidenceStep]:
    """The last step of each evidence process, or its initial state.

    A process starts again with a new champion, after a judged refresh (which closes the alarm, promoted or refused),
    and when the false-alarm budget or the tolerance changes. The processes share the false-alarm budget evenly.
    """
    refreshed, watch = base.journal.last_refresh(before=as_of + CLOCK_RESOLUTION), base.config.watch
    latest = {step.process: step for step in base.journal.latest_evidence()}
    states = []
    for process, baseline in champion.baseline.losses.items():
        last = latest.get(process)
        start_times = [champion.baseline.as_of, refreshed, last.end if last else None]
        initial = evidence.start(
            process,
            str(champion.model),
            since=max(time for time in start_times if time is not None),
            null_mean=evidence.estimate_null_mean(baseline, watch.tolerance),
            average_run_length=watch.average_run_length or 1.0,
            share=1 / len(champion.baseline.losses),
            autocorrelation=baseline.autocorrelation,
            step_deviation=baseline.step_deviation,
        )
        states.append(evidence.continue_or_restart(last, initial, refreshed))
    return states


def follow_weights(watched: WatchedWindow, as_of: datetime) -> TeacherWeights | None:
    """Update the weights of the champion's teachers by the outcomes known since, and record each change.

    :returns: the current weights; None without a champion, with fixed weights, or with a single teacher.
    """
    base, champion = watched.base, watched.champion
    if champion is None or watched.settings.weights.follow == "fixed" or champion.teacher.mixture is None:
        return None
    baseline, version = champion.baseline, champion.teacher.version
    trajectory = weight_updates.update_weights(base, champion.teacher, baseline.as_of, baseline.test, as_of)
    recorded = [
        change for change in base.journal.weight_changes(version) if change.job == "watch" and change.as_of <= as_of
    ]
    before = weight_updates.current_weights(champion.teacher.mixture, recorded)
    base.journal.append_weight_changes(
        mixture_weights.find_changes(trajectory.mixture, before, version=version, job="watch")
    )
    return trajectory.mixture


class _EvidenceCounter:
    """Counts, one process after another, the time steps that have ended since the process was last counted."""

    def __init__(self, watched: WatchedWindow, champion: Champion, data: DataReport, as_of: datetime) -> None:
        self.watched = watched
        self.champion = champion
        self.data = data
        self.as_of = as_of
        self.new_steps: list[EvidenceRows] = []
        self.base = watched.champion_base
        self.watch = watched.settings.watch
        self.cluster = watched.settings.promotion.cluster
        self._new_labels: dict[tuple[datetime, datetime, datetime], pd.DataFrame] = {}

    def count(self, state: EvidenceStep) -> None:
        """Count the due steps of one process; steps whose data failed the check, or were not checked, are skipped."""
        until = self.as_of if self.data.broken else self.data.window.start
        skipped = steps.skip_steps(state, steps.list_complete_steps(state.end, until, self.watch.every))
        state = skipped[-1].step if skipped else state
        due = steps.list_complete_steps(state.end, self.as_of, self.watch.every)
        count_steps = {
            "disagreement": self._count_audit,
            "student_outcomes": self._count_student_outcomes,
            "teacher_outcomes": self._count_teacher_outcomes,
        }[state.process]
        self.new_steps += skipped + (count_steps(state, due) if due else [])

    def _read_new_labels(self, state: EvidenceStep, due: list[steps.Span]) -> pd.DataFrame:
        """Rows whose outcome became known in the due steps, read once for all processes."""
        span = (due[0][0], due[-1][1], state.since)
        if span not in self._new_labels:
            self._new_labels[span] = self.base.read_newly_labelled(span[0], span[1], since=span[2])
        return self._new_labels[span].copy()

    def _count_audit(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """Ask the teacher about a sample of each step, with more rows where the student is unsure or inputs drifted.

        Rows without a usable answer, or beyond the budget, are not counted.
        """
        watched, champion = self.watched, self.champion
        drifts, _ = screen(compare_profiles(champion.profile, watched.profile), champion.baseline.screens)
        drifted = [drift.column for drift in drifts if drift.unusual and drift.column in watched.rows]
        shift = score_shift(watched.rows, champion.profile, watched.profile, drifted) if drifted else None
        scores = audit.audit_scores(watched.probs, shift)
        key = f"{watched.agent}:{state.champion}:{state.since.isoformat()}"
        planned = steps.plan_audit(watched.rows, scores, due, self.watch, self.cluster, key)
        sample = pd.concat([plan.drawn for plan in planned], ignore_index=True)
        labelled = self._adopt_recorded_answers(sample)
        budget = labeling.open_watch_budget(self.base, self.as_of)
        probs = labeling.ask(champion.teacher, sample, budget)
        answers = sample.assign(answer=_actions_of(probs))
        self._record_blind_answers(planned, answers, labelled, key, complete=budget.stop_reason is None)
        answered = contents_to_count(sample, probs, self.watched.settings, labelled)
        planned = [plan.select_contents(answered) for plan in planned]
        losses = steps.measure_audit_losses(
            planned,
            champion.variant.predict_proba,
            lambda rows: self.base.answers.probs(rows, champion.teacher.version),
        )
        return steps.count_audit(state, planned, losses)

    def _adopt_recorded_answers(self, sample: pd.DataFrame) -> set[str]:
        """Without outcomes: what was recorded about the sample need not be asked again; the ids of these rows."""
        if self.watched.settings.outcomes is not None or sample.empty:
            return set()
        last = sample["observed_at"].max() + CLOCK_RESOLUTION
        window = self.base.window("audit", sample["observed_at"].min(), last)
        rows = self.base.join_labels(sample.drop_duplicates("observation_id"), window, self.as_of)
        labelled = rows[rows["outcome"] >= 0]
        labeling.adopt_recorded_answers(self.base, self.champion.teacher.version, labelled)
        return set(labelled["observation_id"])

    def _record_blind_answers(
        self, planned: list[steps.AuditPlan], sample: pd.DataFrame, labelled: set[str], key: str, *, complete: bool
    ) -> None:
        """Without outcomes: the answers to the rows of each step that were drawn uniformly become its labels, once.

        They are known at the end of their step, however late the watch runs, so that whoever reads a complete block of
        rows gets the same ones.

        :param sample: the drawn rows of all steps with ``answer``, an action index; −1: not answered.
        :param labelled: ids of rows that have a label already.
        :param complete: whether the teacher was asked about all of them. If it was not, a step that lacks answers has
            too many of the rows that were answered earlier, because the champion was unsure: none of them is a label.
        """
        if self.watched.settings.outcomes is not None:
            return
        answers = sample.drop_duplicates("observation_id").set_index("observation_id")["answer"]
        for plan in planned:
            blind = plan.drawn[plan.is_uniform(self.watch, key)].drop_duplicates("observation_id")
            indices = answers.reindex(blind["observation_id"]).to_numpy()
            if not complete and (indices < 0).any():
                continue
            usable = (indices >= 0) & ~blind["observation_id"].isin(labelled).to_numpy()
            rows = blind.loc[usable, ["observation_id", "observed_at"]].assign(
                known_at=pd.Timestamp(plan.span[1]),
                action=[self.base.config.actions[int(index)] for index in indices[usable]],
            )
            self.base.append_outcomes(rows, batch=f"audit:{key}:{plan.span[0].isoformat()}")

    def _count_student_outcomes(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """The champion's loss on every outcome that became known in each step."""
        labelled = self._read_new_labels(state, due)
        probs = self.champion.variant.predict_proba(labelled)
        labelled["loss"] = half_brier(probs, labelled["outcome"].to_numpy())
        return steps.count_outcomes(state, steps.assign_clusters(labelled, self.cluster), due)

    def _count_teacher_outcomes(self, state: EvidenceStep, due: list[steps.Span]) -> list[EvidenceRows]:
        """The teacher's loss on audited rows whose outcomes became known in each step."""
        labelled = self._read_new_labels(state, due)
        oldest = labelled["observed_at"].min() if len(labelled) else due[0][0]
        recorded = self.base.journal.evidence(state.champion, state.since, after=oldest)
        audited = [rows for rows in (*recorded, *self.new_steps) if rows.step.process == "disagreement"]
        probs = self.base.answers.probs(labelled, self.champion.teacher.version)
        answered = ~np.isnan(probs[:, 0])
        labelled["loss"] = np.nan
        labelled.loc[answered, "loss"] = half_brier(probs[answered], labelled["outcome"].to_numpy()[answered])
        return steps.count_outcomes(state, steps.join_outcomes(audited, labelled[answered]), due)


def _actions_of(probs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The most probable action of each row, int ``[n]``; −1: no answer."""
    answered = ~np.isnan(probs[:, 0])
    return np.where(answered, np.nan_to_num(probs).argmax(axis=1), -1)


def contents_to_count(
    sample: pd.DataFrame, probs: np.ndarray[Any, Any], settings: AgentConfig, labelled: set[str]
) -> pd.Series[str]:
    """Contents of the drawn rows whose answers may count as evidence about the champion.

    A teacher whose answers are recorded at the front door answers no question of the watch. What it has answered there
    because the champion was unsure is no sample of the rows: of such a teacher only blind answers count.

    :param sample: the drawn rows.
    :param probs: the teacher's, ``[n, K]``; NaN: not answered.
    :param labelled: ids of the rows that it was asked about blindly.
    """
    is_answered = ~np.isnan(probs[:, 0])
    if any(leaf.teacher.kind == "recorded" for leaf in leaves(settings.teachers)):
        is_answered &= sample["observation_id"].isin(labelled).to_numpy()
    contents: pd.Series[str] = sample["content_key"][is_answered]
    return contents
