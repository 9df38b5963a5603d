"""What ``flows/watch.py`` does, one task per station."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import numpy as np
import pandas as pd
from prefect.events import emit_event

from data_checks.check import check
from stillhouse import config
from stillhouse.config import SincePromotion
from stillhouse.drift import audit, evidence, steps, texts
from stillhouse.drift.calibrate import limits, screened
from stillhouse.drift.decide import decide
from stillhouse.drift.distances import compare
from stillhouse.drift.explain import rank_slices, shift_scores
from stillhouse.drift.measure import measure, profile_of
from stillhouse.drift.profile import Profile
from stillhouse.evaluate.scorecard import disagreement, quality
from stillhouse.knowledge import KnowledgeBase, windows
from stillhouse.records import (
    Cost,
    Counted,
    DataReport,
    DriftReport,
    EvidenceStep,
    Mode,
    ModelRef,
    Verdict,
    Weights,
    Window,
)
from stillhouse.teachers import asking, following, weighing
from tasks.common import Champion, champion_parts, engine_task, knowledge_base, registry, watch_lock

__all__ = [
    "announce_drift",
    "answered",
    "check_data",
    "decide_response",
    "follow_weights",
    "gather_evidence",
    "measure_drift",
    "mode_of",
    "moment",
    "take_window",
]

_INSTANT = timedelta(microseconds=1)
"""The clock of the tables: a refresh that spoke for this very moment is the last one, wherever the clock stands."""


def moment(agent: str, as_of: datetime | None) -> datetime:
    """The time that a run speaks of: as given, else by the clock that the agent file names."""
    return knowledge_base(agent).moment(as_of)


def take_window(agent: str, as_of: datetime) -> Window:
    """The current window, as the agent file wants it, pinned to the table versions of now.

    :raises WindowError: see :func:`stillhouse.knowledge.windows.current`.
    """
    base = knowledge_base(agent)
    if not isinstance(base.config.windows.current, SincePromotion):
        return windows.current(base, as_of, None, None)
    models = registry(agent)
    champion = models.champion()
    proved = models.baseline(champion).as_of if champion else None
    return windows.current(base, as_of, str(champion) if champion else None, proved)


@engine_task(task_run_name="check data: {window.name}")
def check_data(agent: str, window: Window) -> DataReport:
    """Hold the window against the data contract; bad rows go to quarantine, and the report's window is without them.

    A current window is held against the champion's profile too: drift shows in the Data Docs, and refuses nothing.
    """
    base, parts = knowledge_base(agent), _champion(agent) if window.name == "current" else None
    report, bad = check(
        base.read("observations", window),
        window,
        base.config,
        reference=parts.profile if parts else None,
        limits=limits(parts.baseline.screens) if parts else None,
        docs=config.home() / "data_docs" / agent,
    )
    base.append("quarantine", bad, batch=f"check:{window.start:%Y%m%dT%H%M%S}:{window.end:%Y%m%dT%H%M%S}:"
                f"{window.versions.get('observations')}")  # fmt: skip
    return report.model_copy(update={"window": base.with_newest_quarantine(window)})


@engine_task(task_run_name="gather evidence")
def gather_evidence(agent: str, as_of: datetime, data: DataReport) -> Cost | None:
    """Audit the steps that have ended since the last watch and count what outcomes arrived; what that cost.

    None where nothing is counted: no champion yet, no budget of false alarms, or too few rows.
    """
    parts = _champion(agent)
    base = _as_seen_by(agent, parts)
    if parts is None or base.config.watch.false_alarms is None or _too_few(base, data):
        return None
    began = time.perf_counter()
    with watch_lock(agent):
        states = _states(base, parts, as_of)
        counted: list[Counted] = []
        for state in states:  # the audit first: outcomes of rows that are audited now may be known already
            counted += _advance(base, parts, data, state, as_of, counted)
        base.append_evidence(counted)
    before = next(state.rows for state in states if state.process == "disagreement")
    calls = sum(each.step.step_rows for each in counted if each.step.process == "disagreement")
    return Cost(teacher_calls=calls, teacher_calls_since=before + calls, seconds=time.perf_counter() - began)


@engine_task(task_run_name="follow weights")
def follow_weights(agent: str, as_of: datetime) -> Weights | None:
    """Where the weights of the champion's teachers stand by the outcomes known since; each change is recorded."""
    base, parts = knowledge_base(agent), _champion(agent)
    if parts is None or parts.teacher.weights is None or base.config.weights.follow == "fixed":
        return None
    baseline, version = parts.baseline, parts.teacher.version
    found = following.followed(base, parts.teacher, baseline.as_of, baseline.test, as_of)
    recorded = [each for each in base.weight_changes(version) if each.job == "watch" and each.as_of <= as_of]
    before = following.standing(parts.teacher.weights, recorded)
    base.append_weights(weighing.changes(found.weights, before, version=version, job="watch"))
    return found.weights


@engine_task(task_run_name="measure drift")
def measure_drift(agent: str, data: DataReport) -> DriftReport | None:
    """Current window against what the champion was trained on; None where there is nothing to measure with."""
    parts = _champion(agent)
    base = _as_seen_by(agent, parts)
    if data.broken or parts is None or _too_few(base, data):
        return None
    seen, baseline = _seen(agent, parts.model, _key(data.window)), parts.baseline
    audited = _audited(base, parts, seen.rows)
    said = asking.ask(parts.teacher, audited, asking.for_watch(base, data.window.end))
    audited, said = audited[~np.isnan(said[:, 0])], said[~np.isnan(said[:, 0])]
    decided, weights = parts.student.predict_proba(audited), audited["weight"].to_numpy()
    lived = base.labelled(data.window, known_by=data.window.end)
    return measure(
        agent,
        str(parts.model),
        baseline.train,
        data.window,
        parts.profile,
        seen.profile,
        baseline.screens,
        disagreement=disagreement(said, decided, weights) if len(audited) else None,
        disagreement_reference=baseline.disagreement,
        quality=quality(parts.student.predict_proba(lived), lived["outcome"].to_numpy()) if len(lived) else None,
        quality_reference=baseline.quality,
        slices=rank_slices(
            audited,
            steps.total_variation(said, decided),
            weights,
            parts.profile,
            seen.profile,
            baseline.losses["disagreement"].mean,
            [name for name in parts.profile.columns if name in audited],
        )
        if len(audited)
        else (),
    )


@engine_task(task_run_name="decide")
def decide_response(
    agent: str, as_of: datetime, data: DataReport, report: DriftReport | None, cost: Cost | None = None
) -> Verdict:
    """What to do about it; the verdict is recorded."""
    base, parts = knowledge_base(agent), _champion(agent)
    states = _states(base, parts, as_of) if parts and base.config.watch.false_alarms else []
    last = base.last_refresh(before=as_of + _INSTANT)
    verdict = decide(
        report, data, base.config, as_of=as_of, last_refresh=last, refused=base.last_refused(before=as_of + _INSTANT),
        steps=states, cost=cost, new_rows=None if last is None else base.observed(last, as_of),
    )  # fmt: skip
    base.record(verdict)
    return verdict


def answered(agent: str, cause: str, as_of: datetime) -> Verdict | None:
    """The gate's verdict by which the alarm of the watch ``cause`` was closed since; None: it is open.

    One alarm is answered once: a refresh that a watch asked for before it could know of another one's verdict would
    learn from the same rows again. The next watch sees that verdict, and begins its evidence anew. A refresh of that
    very cause and moment that was begun already is not answered here: it goes on.
    """
    base = knowledge_base(agent)
    asked = base.verdict(cause)
    if asked is None or asked.kind != "watch":
        return None
    known, last = asked.evidence.get("last_refresh"), base.last_refresh()
    if last is None or (known is not None and last <= datetime.fromisoformat(str(known))):
        return None
    return None if registry(agent).has_refresh(cause, as_of) else base.verdict_at("gate", last)


def mode_of(verdict: Verdict) -> Mode:
    """How the refresh that a watch asks for makes its student."""
    match verdict.response:
        case "recalibrate" | "update" | "redistil_warm":
            return verdict.response
        case _:
            return "redistil"


@engine_task(task_run_name="announce drift")
def announce_drift(verdict: Verdict) -> None:
    """Emit ``stillhouse.drift``, which the deployment of ``refresh`` waits for."""
    emit_event(
        event="stillhouse.drift",
        resource={"prefect.resource.id": f"stillhouse.agent.{verdict.agent}", "stillhouse.agent": verdict.agent},
        payload={
            "agent": verdict.agent,
            "as_of": verdict.as_of.isoformat(),
            "verdict_id": verdict.verdict_id,
            "response": verdict.response,
            "mode": mode_of(verdict),
            "summary": verdict.summary,
        },
    )


# --------------------------------------------------------------------------- evidence


def _states(base: KnowledgeBase, parts: Champion, as_of: datetime) -> list[EvidenceStep]:
    """Where each process stands: at its last step, or at its beginning.

    It begins with a new champion, after a judged refresh (which closes the alarm, promoted or refused), and when the
    budget or the tolerance was changed. The processes share one budget evenly.
    """
    refreshed, watch = base.last_refresh(before=as_of + _INSTANT), base.config.watch
    latest = {step.process: step for step in base.latest_evidence()}
    states = []
    for process, baseline in parts.baseline.losses.items():
        last = latest.get(process)
        beginnings = [parts.baseline.as_of, refreshed, last.end if last else None]
        begun = evidence.start(
            process,
            str(parts.model),
            since=max(each for each in beginnings if each is not None),
            null_mean=evidence.null_mean(baseline, watch.tolerance),
            average_run_length=watch.average_run_length or 1.0,
            share=1 / len(parts.baseline.losses),
            autocorrelation=baseline.autocorrelation,
            step_deviation=baseline.step_deviation,
        )
        states.append(evidence.continued(last, begun, refreshed))
    return states


def _advance(
    base: KnowledgeBase, parts: Champion, data: DataReport, state: EvidenceStep, as_of: datetime, fresh: list[Counted]
) -> list[Counted]:
    """The steps of one process that have ended since; what nobody checked, or the check refused, is passed over.

    :param fresh: what other processes have counted in this watch.
    """
    every = base.config.watch.every
    until = as_of if data.broken else data.window.start
    passed = steps.pass_over(state, steps.complete_steps(state.end, until, every))
    state = passed[-1].step if passed else state
    due = steps.complete_steps(state.end, as_of, every)
    if not due:
        return passed
    if state.process == "disagreement":
        return passed + _audit(base, parts, data, state, due, as_of)
    if state.process == "student_outcomes":
        return passed + _student_outcomes(base, parts, state, due)
    return passed + _teacher_outcomes(base, parts, state, due, fresh)


def _audit(
    base: KnowledgeBase, parts: Champion, data: DataReport, state: EvidenceStep, due: list[steps.Span], as_of: datetime
) -> list[Counted]:
    """Ask the teacher about some rows of each step, most where the student is unsure or the data moved.

    Rows that it has no usable answer to, or that the budget does not reach, do not count.
    """
    seen = _seen(base.config.agent, parts.model, _key(data.window))
    watch, cluster = base.config.watch, base.config.promotion.cluster
    drifts, _ = screened(compare(parts.profile, seen.profile), parts.baseline.screens)
    moved = [each.column for each in drifts if each.unusual and each.column in seen.rows]
    shift = shift_scores(seen.rows, parts.profile, seen.profile, moved) if moved else None
    scores = audit.scores(seen.probabilities, shift)
    key = f"{base.config.agent}:{state.champion}:{state.since.isoformat()}"
    planned = steps.plan_audit(seen.rows, scores, due, watch, cluster, key)
    drawn = pd.concat([plan.drawn for plan in planned], ignore_index=True)
    drawn = drawn[~np.isnan(asking.ask(parts.teacher, drawn, asking.for_watch(base, as_of))[:, 0])]
    planned = [plan.only(drawn["content_key"]) for plan in planned]
    losses = steps.audited_losses(
        planned, parts.student.predict_proba, lambda rows: base.knowledge(rows, parts.teacher.version)
    )
    return steps.count_audit(state, planned, losses)


def _student_outcomes(
    base: KnowledgeBase, parts: Champion, state: EvidenceStep, due: list[steps.Span]
) -> list[Counted]:
    """The champion's error on every outcome that became known in each step."""
    arrived = base.arrived(due[0][0], due[-1][1], since=state.since)
    arrived["loss"] = steps.brier(parts.student.predict_proba(arrived), arrived["outcome"].to_numpy())
    return steps.count_outcomes(state, steps.by_cluster(arrived, base.config.promotion.cluster), due)


def _teacher_outcomes(
    base: KnowledgeBase, parts: Champion, state: EvidenceStep, due: list[steps.Span], fresh: list[Counted]
) -> list[Counted]:
    """The teacher's error on audited rows, as their outcomes become known."""
    arrived = base.arrived(due[0][0], due[-1][1], since=state.since)
    oldest = arrived["observed_at"].min() if len(arrived) else due[0][0]
    kept = base.evidence(state.champion, state.since, after=oldest)
    audited = [each for each in (*kept, *fresh) if each.step.process == "disagreement"]
    said = base.knowledge(arrived, parts.teacher.version)
    known = ~np.isnan(said[:, 0])
    arrived["loss"] = np.nan
    arrived.loc[known, "loss"] = steps.brier(said[known], arrived["outcome"].to_numpy()[known])
    return steps.count_outcomes(state, steps.arrivals(audited, arrived[known]), due)


# --------------------------------------------------------------------------- what is looked at


@dataclass(frozen=True)
class _Seen:
    """The current window as the champion sees it."""

    rows: pd.DataFrame
    probabilities: np.ndarray
    profile: Profile


@lru_cache(maxsize=2)  # the audit and the measurement look at the same window
def _seen(agent: str, champion: ModelRef, window: str) -> _Seen:
    parts = champion_parts(agent, champion)
    base = _as_seen_by(agent, parts)
    rows = base.observations(Window.model_validate_json(window))
    rows = texts.measured(rows, base.config.observations.columns, parts.student.columns)
    said = parts.student.predict_proba(rows)
    return _Seen(rows, said, profile_of(rows, said, base.config, like=parts.profile))


def _audited(base: KnowledgeBase, parts: Champion, rows: pd.DataFrame) -> pd.DataFrame:
    """The audited ones of ``rows`` with their weights; without a budget of false alarms, a uniform sample."""
    if base.config.watch.false_alarms is None:
        return base.sample(rows, base.config.watch.audit.rows).assign(weight=1.0)
    state = next((step for step in base.latest_evidence() if step.process == "disagreement"), None)
    if state is None or state.champion != str(parts.model) or rows.empty:
        return rows.iloc[:0].assign(weight=1.0)
    counted = base.evidence(state.champion, None, after=rows["observed_at"].iloc[0])  # before an alarm was closed, too
    weights = pd.Series(
        {name: weight for each in counted for name, weight in zip(each.observation_ids, each.weights, strict=True)},
        name="weight",
        dtype=float,
    )
    return rows.merge(weights, left_on="observation_id", right_index=True, how="inner")


def _champion(agent: str) -> Champion | None:
    champion = registry(agent).champion()
    return champion_parts(agent, champion) if champion else None


def _as_seen_by(agent: str, parts: Champion | None) -> KnowledgeBase:
    """The knowledge base for the champion's actions, which may lack some that the agent file has by now."""
    return knowledge_base(agent, parts.student.actions if parts else None)


def _too_few(base: KnowledgeBase, data: DataReport) -> bool:
    return not data.broken and data.rows - data.quarantined < base.config.observations.min_rows


def _key(window: Window) -> str:
    return window.model_dump_json()
