"""From measurements to a verdict: a pure function of the evidence. The verdict carries it, so it can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import exp, hypot, sqrt
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, Field

from stillhouse.config import AgentConfig, Responses, Thresholds
from stillhouse.drift.evidence import joint_evidence
from stillhouse.errors import WindowError
from stillhouse.quality import measure_title
from stillhouse.records import (
    COLUMN_DISTANCES,
    REFRESH_MODES,
    ChampionChoice,
    ColumnDistance,
    ColumnDrift,
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    LabelKind,
    PoolState,
    Process,
    Quality,
    Reason,
    Reckoning,
    Record,
    RefreshModeName,
    Response,
    ScreenResult,
    Sources,
    TeacherChange,
    Verdict,
    VerdictResult,
    short_id,
    words_for,
)

__all__ = ["Evidence", "decide", "decide_from_evidence"]


class Evidence(Record):
    """Everything that a watch's verdict depends on."""

    agent: str
    as_of: AwareDatetime
    last_refresh: AwareDatetime | None
    cooldown: timedelta
    min_rows: int = Field(ge=1)
    thresholds: Thresholds
    responses: Responses = Responses()
    refused: bool = Field(default=False, description="whether the last refresh was refused")
    data: DataReport
    drift: DriftReport | None
    steps: tuple[EvidenceStep, ...] = Field(default=(), description="the last step of each evidence process")
    cost: Cost | None = None
    new_rows: bool | None = Field(
        default=None, description="whether anything was observed since the last refresh; None: not checked"
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="loss of quality that is tolerated; None: a calm verdict is not checked against losses and quality",
    )
    policy: Literal["payoff", "alarms", "calendar"] = Field(default="alarms", description="what asks for a response")
    calendar: timedelta | None = Field(default=None, description="time between two refreshes of the policy calendar")
    reckoning: Reckoning | None = Field(
        default=None, description="what each response is predicted to gain; None: there was nothing to reckon with"
    )
    choice: ChampionChoice | None = Field(default=None, description="which member of the pool should be champion")
    pool: PoolState | None = Field(default=None, description="the pool that both were decided on")
    sources: Sources | None = Field(
        default=None, description="rows, model files and settings that the figures were computed from"
    )
    labels: LabelKind = Field(default="outcomes", description="what the rows of the window are labelled with")
    changes: tuple[TeacherChange, ...] = Field(
        default=(), description="teachers that answer otherwise now than the champion's"
    )


class Judgement(NamedTuple):
    """A verdict without its address: what was concluded, what to do, and why."""

    result: VerdictResult
    response: Response
    summary: str
    reasons: tuple[Reason, ...]


def decide(
    report: DriftReport | None,
    data: DataReport,
    config: AgentConfig,
    *,
    as_of: datetime,
    last_refresh: datetime | None,
    refused: bool = False,
    steps: Sequence[EvidenceStep] = (),
    cost: Cost | None = None,
    new_rows: bool | None = None,
    reckoning: Reckoning | None = None,
    choice: ChampionChoice | None = None,
    pool: PoolState | None = None,
    sources: Sources | None = None,
    changes: Sequence[TeacherChange] = (),
) -> Verdict:
    """What to do about the current window. The first row of the table that applies decides.

    The table is that of the policy ``alarms``. Under ``payoff`` the results are the same, and the response is the one
    that is predicted to gain most over its price, whatever the result; where the table would call the window calm, the
    result is ``pays``. Under ``calendar`` a window in which a refresh is due is ``due``.

    ======================= ======== ========================================================================
    result                  response when
    ======================= ======== ========================================================================
    ``data_broken``         hold     the data contract refuses the window
    ``not_enough_evidence`` hold     fewer than ``observations.min_rows`` rows
    ``cooling_down``        hold     one of the next four, but the last refresh is younger than ``watch.cooldown``, or
                                     nothing was observed since
    ``teacher_changed``     renew    a teacher answers otherwise now than the champion's: somebody edited its rules,
                                     say; also under ``payoff``, which cannot predict what an edit is worth
    ``teacher_failing``     renew    the evidence of all processes together reaches the budget, and process (2) is the
                                     teacher's loss against outcomes
    ``harmful_drift``       (1)      the evidence of all processes together reaches the budget
    ``drift``               (1)      a threshold of the agent file is exceeded; whether that does harm is not known
    ``not_enough_evidence`` hold     a loss or the quality is worse than the null allows (:func:`_worse_than_null`), or
                                     inputs moved beyond their usual range and teacher and student were not compared:
                                     the evidence is below its threshold and accumulates
    ``benign_shift``        hold     inputs moved beyond their usual range, and the student agrees with its teacher
    ``no_drift``            hold     otherwise
    ======================= ======== ========================================================================

    (1) as configured in ``watch.responses``: recalibrate, update, redistil_warm or redistil. After a refused refresh:
    redistil, because the cheaper response did not help. Its mode: :data:`stillhouse.records.REFRESH_MODES`.

    (2) a process that reaches the budget alone; if none does, the one with most evidence.

    :param report: None if the data is broken, or if the window is too small to be measured.
    :param as_of: the time that the watch decides for, with a time zone.
    :param last_refresh: the ``as_of`` of the last refresh.
    :param refused: whether that refresh was refused.
    :param steps: the last step of each evidence process (:mod:`stillhouse.drift.evidence`).
    :param new_rows: whether anything was observed since ``last_refresh``; None: not checked.
    :param reckoning: what each response is predicted to gain; without it the policy ``payoff`` holds.
    :param choice: which member of the pool should be champion, by its evidence.
    :param pool: members and evidence that both were decided on.
    :param sources: what the figures were computed from; None: they cannot be recomputed later.
    :param changes: teachers that answer otherwise now than the champion's; one that was tried asks for nothing.
    :raises WindowError: if there is no report although the window is valid and large enough.
    """
    evidence = Evidence(
        agent=config.agent,
        as_of=as_of,
        last_refresh=last_refresh,
        cooldown=config.watch.cooldown,
        min_rows=config.observations.min_rows,
        thresholds=config.watch.thresholds,
        responses=config.watch.responses,
        refused=refused,
        data=data,
        drift=report,
        steps=tuple(steps),
        cost=cost,
        new_rows=new_rows,
        tolerance=config.watch.tolerance,
        policy=config.watch.resolved_policy,
        calendar=config.watch.calendar,
        reckoning=reckoning,
        choice=choice,
        pool=pool,
        sources=sources,
        changes=tuple(changes),
        **({} if config.outcomes is not None else {"labels": config.labels_are}),
    )
    return decide_from_evidence(evidence.model_dump(mode="json"))


def decide_from_evidence(evidence: Mapping[str, Any]) -> Verdict:
    """Replay a watch: the verdict for the ``evidence`` that a verdict carries, always the identical one.

    >>> from datetime import timedelta
    >>> from stillhouse.records import Window
    >>> noon = datetime(2026, 1, 8, 12, tzinfo=UTC)
    >>> data = DataReport(window=Window.ending("current", noon, timedelta(days=7)), rows=40, quarantined=0, seconds=0)
    >>> evidence = Evidence(
    ...     agent="toy", as_of=noon, last_refresh=None, cooldown=timedelta(0), min_rows=100, thresholds=Thresholds(),
    ...     data=data, drift=None,
    ... )
    >>> verdict = decide_from_evidence(evidence.model_dump(mode="json"))
    >>> verdict.result, verdict.response, verdict.summary
    ('not_enough_evidence', 'hold', '40 usable rows; at least 100 are needed')
    >>> decide_from_evidence(verdict.evidence) == verdict
    True

    :raises pydantic.ValidationError: if it is not the evidence of a watch.
    :raises WindowError: see :func:`decide`.
    """
    record = Evidence.model_validate(evidence)
    judgement = _judge(record)
    as_of = record.as_of.astimezone(UTC)
    champion = record.drift.champion if record.drift else ""
    verdict = Verdict(
        verdict_id=short_id(record.agent, "watch", as_of.isoformat(), champion),
        kind="watch",
        agent=record.agent,
        as_of=as_of,
        result=judgement.result,
        response=judgement.response,
        summary=judgement.summary,
        reasons=judgement.reasons,
        cost=record.cost,
        evidence=_dump_set_fields(record),
    )
    return words_for(record.labels).say_verdict(verdict)


def _dump_set_fields(record: Evidence) -> dict[str, Any]:
    """The evidence as JSON without fields that it was not given, so that an older verdict replays to the same JSON."""
    return {name: value for name, value in record.model_dump(mode="json").items() if name in record.model_fields_set}


# --------------------------------------------------------------------------- the table of decide()


def _judge(evidence: Evidence) -> Judgement:
    if evidence.data.broken:
        reasons = tuple(_data_reasons(evidence.data))
        return Judgement("data_broken", "hold", f"the window is refused: {reasons[0].text}", reasons)
    rows = evidence.drift.current_rows if evidence.drift else evidence.data.rows - evidence.data.quarantined
    if rows < evidence.min_rows:
        reason = Reason(
            measure="rows",
            value=rows,
            threshold=evidence.min_rows,
            failed=True,
            text=f"{rows} usable rows; at least {evidence.min_rows} are needed",
        )
        return Judgement("not_enough_evidence", "hold", reason.text, (reason,))
    if evidence.drift is None:
        raise WindowError(
            f"{evidence.data.window}: {rows} valid rows, but their drift was not measured; measure it first"
        )
    judgement = _judge_alarms(evidence, evidence.drift) or _judge_calm_window(evidence, evidence.drift)
    match evidence.policy:
        case "alarms":
            judgement = _apply_cooldown(evidence, judgement)
        case "calendar":
            judgement = _apply_cooldown(evidence, _judge_calendar(evidence, judgement))
        case "payoff":
            judgement = _judge_payoff(evidence, judgement)
    return _add_choice(evidence, judgement)


def _judge_payoff(evidence: Evidence, judgement: Judgement) -> Judgement:
    """The same result with the response that pays, whether there is an alarm or not."""
    if judgement.result == "teacher_changed":
        return _apply_cooldown(evidence, judgement)
    reckoning = evidence.reckoning
    if reckoning is None:
        text = "nothing can be predicted yet: no complete block of outcomes is new to the champion"
        return judgement._replace(response="hold", summary=f"{judgement.summary}; {text}")
    reason = Reason(
        measure="payoff",
        value=reckoning.excess,
        threshold=reckoning.rate,
        failed=reckoning.chosen != "hold",
        text=reckoning.text,
    )
    calm = judgement.result in ("no_drift", "benign_shift", "not_enough_evidence")
    result: VerdictResult = "pays" if calm and reckoning.chosen != "hold" else judgement.result
    return Judgement(result, reckoning.chosen, f"{judgement.summary}; {reckoning.text}", (*judgement.reasons, reason))


def _judge_calendar(evidence: Evidence, judgement: Judgement) -> Judgement:
    """A redistillation when the time since the last refresh is over; alarms are reported and ask for nothing."""
    every, last = evidence.calendar, evidence.last_refresh
    assert every is not None  # the agent file is checked for it
    if last is not None and evidence.as_of < last + every:
        due = (last + every).astimezone(UTC)
        text = f"the next refresh is due at {due:%Y-%m-%d %H:%M} UTC"
        return judgement._replace(response="hold", summary=f"{judgement.summary}; {text}")
    text = "a refresh is due by the calendar" if last is None else f"the last refresh is {evidence.as_of - last} old"
    return Judgement("due", "redistil", f"{text}; {judgement.summary}", judgement.reasons)


def _add_choice(evidence: Evidence, judgement: Judgement) -> Judgement:
    """The reasons of the pool, if its evidence asks for another champion: then nothing is trained now."""
    choice = evidence.choice
    if choice is None or choice.action == "keep":
        return judgement
    return Judgement(judgement.result, "reuse", choice.text, (*judgement.reasons, *choice.reasons))


def _judge_alarms(evidence: Evidence, drift: DriftReport) -> Judgement | None:
    """A judgement that asks for a response, if there is cause: first the evidence, then the thresholds."""
    reasons = tuple(_all_reasons(evidence, drift))
    alarms = {step.process: _alarm_text(step, evidence.steps) for step in _alarming_steps(evidence.steps)}
    changed = [_change_reason(change).text for change in evidence.changes if not change.tried]
    if changed:
        return Judgement("teacher_changed", "renew", "; ".join(changed), reasons)
    if "teacher_outcomes" in alarms:
        return Judgement("teacher_failing", "renew", alarms["teacher_outcomes"], reasons)
    if alarms:
        response = _configured_response(evidence, evidence.responses.harmful_drift)
        return Judgement("harmful_drift", response, "; ".join(alarms.values()), reasons)
    exceeded = [
        reason.text for reason in _measure_reasons(drift, evidence.thresholds, evidence.min_rows) if reason.failed
    ]
    if exceeded:
        response = _configured_response(evidence, evidence.responses.drift)
        return Judgement("drift", response, "; ".join(exceeded), reasons)
    return None


def _judge_calm_window(evidence: Evidence, drift: DriftReport) -> Judgement:
    """The judgement if there is no alarm: it depends on whether anything moved."""
    reasons, comparison = tuple(_all_reasons(evidence, drift)), _compare_with_teacher(evidence, drift)
    worse = _worse_than_null(evidence, drift)
    if drift.screened is None or not drift.screened.moved:
        if worse:
            return Judgement("not_enough_evidence", "hold", f"{'; '.join(worse)}; the evidence accumulates", reasons)
        return Judgement("no_drift", "hold", _no_drift_summary(evidence, drift), reasons)
    moved = _screen_reason(drift.screened).text
    if worse:
        summary = f"{moved}; {'; '.join(worse)}; the evidence accumulates"
        return Judgement("not_enough_evidence", "hold", summary, reasons)
    if comparison is None:
        summary = f"{moved}; teacher and student were not compared yet"
        return Judgement("not_enough_evidence", "hold", summary, reasons)
    text, agrees = comparison
    if agrees:
        return Judgement("benign_shift", "hold", f"{moved}; {text}", reasons)
    return Judgement("not_enough_evidence", "hold", f"{moved}; {text}; the evidence accumulates", reasons)


def _apply_cooldown(evidence: Evidence, judgement: Judgement) -> Judgement:
    """Hold instead of refreshing during the cool-down, or if no row was observed since the last refresh."""
    if REFRESH_MODES[judgement.response] is None or evidence.last_refresh is None:
        return judgement
    last = evidence.last_refresh
    if evidence.new_rows is False:
        since = last.astimezone(UTC)
        summary = (
            f"nothing was observed since the last refresh ({since:%Y-%m-%d %H:%M} UTC), although {judgement.summary}"
        )
        return Judgement("cooling_down", "hold", summary, judgement.reasons)
    if evidence.as_of >= last + evidence.cooldown:
        return judgement
    until = (last + evidence.cooldown).astimezone(UTC)
    summary = f"no second refresh before {until:%Y-%m-%d %H:%M} UTC, although {judgement.summary}"
    return Judgement("cooling_down", "hold", summary, judgement.reasons)


def _configured_response(evidence: Evidence, mode: RefreshModeName) -> RefreshModeName:
    return "redistil" if evidence.refused else mode


# --------------------------------------------------------------------------- alarms


def _alarming_steps(steps: Sequence[EvidenceStep]) -> list[EvidenceStep]:
    """The processes that reach the budget alone; if only all together do, the one with most evidence."""
    alone, together = [step for step in steps if step.alarm], joint_evidence(steps)
    if alone or together is None or together[0] < together[1]:
        return alone
    return [
        max((step for step in steps if step.share is not None), key=lambda step: step.log_evidence - step.log_threshold)
    ]


def _alarm_text(step: EvidenceStep, steps: Sequence[EvidenceStep]) -> str:
    """Why a step raises the alarm: its own evidence, or that of all processes together, most of which is its own."""
    own, together = _evidence_reason(step).text, next(_joint_reasons(steps), None)
    return own if step.alarm or together is None else f"{together.text}; most of it is {own}"


# --------------------------------------------------------------------------- calm windows


def _no_drift_summary(evidence: Evidence, drift: DriftReport) -> str:
    """The summary of ``no_drift``, which claims no more than was measured."""
    screened = drift.screened
    if screened is not None and screened.time_blocks and screened.limit > 0:
        return "nothing moved beyond its usual range"
    measures = [
        reason.measure for reason in _measure_reasons(drift, evidence.thresholds, evidence.min_rows) if reason.threshold
    ]
    if measures:
        return f"no threshold is exceeded ({', '.join(measures)}); there is no history yet to calibrate on"
    return "the evidence shows no mean loss above the null mean; there is no history yet to calibrate on"


def _worse_than_null(evidence: Evidence, drift: DriftReport) -> list[str]:
    """The losses and figures of quality that are worse than under the null; with one of these no verdict is calm.

    The quality on at least ``min_rows`` outcomes has fallen if it lies below the reference by more than its threshold;
    if there is no threshold, by more than the tolerance and two standard errors, or than 0.1, whichever is less. The
    standard error of an accuracy is the binomial one; that of an AUC is taken as ``√(A (1 − A) / m)`` (the leading term
    of Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve"), where m, the rows of the rarer
    action, is taken as a quarter of the rows. The Brier score is worse if it rises by the tolerance and two standard
    errors (at most ``√(b (1 − b) / n)`` on the scale 0…1, Bhatia and Davis 2000), or by a half. The mean loss of a
    process's last step is worse two such errors above its null mean, or at twice the null mean.
    """
    if evidence.tolerance is None:
        return []
    comparison = _compare_with_teacher(evidence, drift)
    texts = [comparison[0]] if comparison is not None and not comparison[1] else []
    texts += [
        _evidence_reason(step).text
        for step in evidence.steps
        if step.mean is not None and _is_high_loss(step, step.mean)
    ]
    return texts + list(_fallen_quality(evidence, drift, evidence.tolerance))


def _is_high_loss(step: EvidenceStep, mean: float) -> bool:
    null = step.null_mean
    return mean > min(null + 2 * _max_standard_error(null, step.step_rows), 2 * null)


def _fallen_quality(evidence: Evidence, drift: DriftReport, tolerance: float) -> Iterator[str]:
    now, before = drift.quality, drift.quality_reference
    if now is None or before is None or now.rows < evidence.min_rows:
        return
    for measure, reason in _measured_quality(drift, evidence.thresholds, evidence.min_rows):
        points, points_before = measure.points(now), measure.points(before)
        if reason.value is None or points is None or points_before is None:
            continue
        error = hypot(
            _max_standard_error(points, measure.count(now) * measure.effective_share),
            _max_standard_error(points_before, measure.count(before) * measure.effective_share),
        )
        fall, limit = points_before - points, min(tolerance + 2 * error, 0.1)
        if (fall > limit) if reason.threshold is None else (reason.value > reason.threshold):
            yield reason.text
    half, half_before = now.brier / 2, before.brier / 2  # `Quality.brier` is on the scale 0…2
    error = hypot(_max_standard_error(half, now.rows), _max_standard_error(half_before, before.rows))
    if half > min(half_before + tolerance + 2 * error, 1.5 * half_before):
        yield f"the student's Brier score is {now.brier:.3f} on {now.rows} outcomes, and was {before.brier:.3f}"


def _max_standard_error(mean: float, rows: float) -> float:
    """The largest standard error that the mean of ``rows`` values in 0…1 can have."""
    return sqrt(max(0.0, mean * (1 - mean)) / max(rows, 1.0))


def _compare_with_teacher(evidence: Evidence, drift: DriftReport) -> tuple[str, bool] | None:
    """The disagreement of teacher and student on the audited rows, and whether it is within the null mean."""
    now = drift.disagreement
    null_mean = next((step.null_mean for step in evidence.steps if step.process == "disagreement"), None)
    if now is None or not now.rows:
        return None
    if null_mean is None:
        before = drift.disagreement_reference
        if before is None:
            return None
        null_mean = before.total_variation + (evidence.thresholds.disagreement or 0.0)
    text = f"teacher and student differ by {now.total_variation:.3f} on {now.rows} rows (null mean {null_mean:.3f})"
    return text, now.total_variation <= null_mean


# --------------------------------------------------------------------------- reasons


def _all_reasons(evidence: Evidence, drift: DriftReport) -> Iterator[Reason]:
    """One reason per changed teacher, evidence process and measured value, and one for the screen."""
    yield from map(_change_reason, evidence.changes)
    yield from _joint_reasons(evidence.steps)
    yield from (_evidence_reason(step) for step in evidence.steps)
    if drift.screened is not None:
        yield _screen_reason(drift.screened)
    measures = _measure_reasons(drift, evidence.thresholds, evidence.min_rows)
    yield from (reason for reason in measures if reason.value is not None or reason.threshold is not None)
    yield from _skipped_contract_reasons(evidence.data)
    window = evidence.data.window
    if window.chosen is not None or window.sample is not None:
        text = f"measured window: {window}" + (f"; {drift.current_rows:,} of its rows" if window.sample else "")
        yield Reason(measure="window", value=drift.current_rows, failed=False, text=text)


def _data_reasons(data: DataReport) -> Iterator[Reason]:
    for failure in data.failures:
        if failure.fatal:
            yield Reason(measure=failure.expectation, value=failure.rows, failed=True, text=failure.text)


def _skipped_contract_reasons(data: DataReport) -> Iterator[Reason]:
    """That the data contract was skipped, and why, if so."""
    if data.skipped_because:
        text = f"the data contract was not checked: {data.skipped_because}"
        yield Reason(measure="data_contract", failed=False, text=text)


def _change_reason(change: TeacherChange) -> Reason:
    text = f"teacher {change.teacher} is version {change.now} now, and the champion's is {change.before}"
    if change.tried:
        text += "; the last refresh used it and was not promoted"
    return Reason(measure="teacher_version", failed=not change.tried, text=text)


_PROCESS_CLAIMS: dict[Process, str] = {
    "disagreement": "teacher and student disagree more than they did",
    "student_outcomes": "the student errs more than it did",
    "teacher_outcomes": "the teacher errs more than it did",
}


def _joint_reasons(steps: Sequence[EvidenceStep]) -> Iterator[Reason]:
    """The evidence of all processes together, which is compared with the budget."""
    together = joint_evidence(steps)
    if together is not None and len(steps) > 1:
        value, threshold = (_from_log(logarithm) for logarithm in together)
        text = f"evidence of all {len(steps)} processes together: {value:.3g} of {threshold:.4g}"
        failed = together[0] >= together[1]
        yield Reason(measure="evidence", value=value, threshold=threshold, failed=failed, text=text)


def _evidence_reason(step: EvidenceStep) -> Reason:
    value, threshold = _from_log(step.log_evidence), _from_log(step.log_threshold)
    mean = "" if step.mean is None else f"; mean loss of the last step {step.mean:.3f}"
    text = (
        f"evidence that {_PROCESS_CLAIMS[step.process]}: {value:.3g} of {threshold:.4g} after {step.looks} steps, "
        f"{step.rows:,} rows{mean} (null mean {step.null_mean:.3f})"
    )
    return Reason(measure=f"evidence_{step.process}", value=value, threshold=threshold, failed=step.alarm, text=text)


def _from_log(logarithm: float) -> float:
    """The number with this natural logarithm, as far as a float can represent it."""
    return exp(min(logarithm, 700.0))


def _screen_reason(result: ScreenResult) -> Reason:
    names = ", ".join(result.beyond[:5]) + (f" and {len(result.beyond) - 5} more" if len(result.beyond) > 5 else "")
    if not result.time_blocks:
        text = "there is no history yet to calibrate on"
    elif result.moved:
        text = f"the window moved farther than {result.time_blocks} earlier time blocks ({names})"
    else:
        text = f"the window moved no farther than {result.time_blocks} earlier time blocks" + (
            f" (although {names} did)" if names else ""
        )
    return Reason(measure="screen", value=result.statistic, threshold=result.limit, failed=result.moved, text=text)


def _measure_reasons(report: DriftReport, thresholds: Thresholds, min_rows: int) -> tuple[Reason, ...]:
    """The measures for which the agent file may set a threshold."""
    return (
        *(
            _distance_reason(report, distance, thresholds)
            for distance in COLUMN_DISTANCES
            if distance.field in Thresholds.model_fields
        ),
        _output_psi_reason(report, thresholds.output_psi),
        _disagreement_reason(report, thresholds.disagreement),
        *_quality_reasons(report, thresholds, min_rows),
    )


def _distance_reason(report: DriftReport, distance: ColumnDistance, thresholds: Thresholds) -> Reason:
    """The value is the ``shifted_columns``-th largest distance: the reason fails if that exceeds the threshold."""
    threshold: float | None = getattr(thresholds, distance.field)
    needed = thresholds.shifted_columns
    values = [(getattr(column, distance.field), column) for column in report.columns]
    ranked = sorted(((value, column) for value, column in values if value is not None), key=lambda pair: -pair[0])
    if threshold is None and not distance.always_reported:
        return _reason(distance.field, None, None, f"the {distance.name} has no threshold")
    if not ranked:
        return _reason(distance.field, None, threshold, f"there are no {distance.columns} to measure a {distance.name}")
    value = ranked[needed - 1][0] if len(ranked) >= needed else None
    if threshold is None:
        return _reason(distance.field, value, None, f"largest {distance.name}: {_list_columns(ranked[:3])}")
    beyond = [pair for pair in ranked if pair[0] > threshold]
    if beyond:
        more = f", and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        text = f"{len(beyond)} of {len(ranked)} {distance.columns} with a {distance.name} above {threshold:g} "
        text += f"({_list_columns(beyond[:5])}{more})" + (f", {needed} needed" if needed > 1 else "")
    else:
        text = f"none of {len(ranked)} {distance.columns} with a {distance.name} above {threshold:g} "
        text += f"(largest: {_list_columns(ranked[:3])})"
    return _reason(distance.field, value, threshold, text)


def _list_columns(distances: Sequence[tuple[float, ColumnDrift]]) -> str:
    return ", ".join(f"{column.column} {value:.3g}" for value, column in distances)


def _output_psi_reason(report: DriftReport, threshold: float | None) -> Reason:
    if not report.outputs:
        return _reason("output_psi", None, threshold, "the student's output was not measured")
    value = max(output.psi for output in report.outputs)
    text = f"largest PSI of the student's output {value:.3g}{_format_threshold(threshold)}"
    return _reason("output_psi", value, threshold, text)


def _disagreement_reason(report: DriftReport, threshold: float | None) -> Reason:
    now, before = report.disagreement, report.disagreement_reference
    if now is None:
        return _reason("disagreement", None, threshold, "teacher and student were not compared")
    if before is None:
        text = f"teacher and student differ by {now.total_variation:.3f} (no reference)"
        return _reason("disagreement", now.total_variation, threshold, text + _format_threshold(threshold))
    rise = now.total_variation - before.total_variation
    text = (
        f"teacher and student differ by {now.total_variation:.3f} on {now.rows} rows, "
        f"{rise:+.3f} against {before.total_variation:.3f}"
    )
    return _reason("disagreement", rise, threshold, text + _format_threshold(threshold))


@dataclass(frozen=True)
class _WatchedMeasure:
    """A figure of quality whose fall is watched.

    :param value: its value, in its unit; None where it is not defined.
    :param points: the same as a share of its range, 0 to 1, higher is better.
    :param effective_share: share of the rows that its standard error is computed with.
    :param count: how many rows, or episodes, the value is the mean of.
    """

    name: str
    title: str
    value: Callable[[Quality], float | None]
    points: Callable[[Quality], float | None]
    effective_share: float = 1.0
    count: Callable[[Quality], int] = lambda quality: quality.rows


_AUC = _WatchedMeasure("auc", "AUC", lambda quality: quality.auc, lambda quality: quality.auc, 0.25)
_ACCURACY = _WatchedMeasure("accuracy", "accuracy", lambda quality: quality.accuracy, lambda quality: quality.accuracy)


def _named_measure(name: str) -> _WatchedMeasure:
    """The log loss, or a score of the user's own, of rows or of episodes."""
    return _WatchedMeasure(
        name,
        measure_title(name),
        lambda quality: quality.judged.value,
        lambda quality: quality.judged.points,
        count=lambda quality: quality.judged.episodes or quality.rows,
    )


def _quality_reasons(report: DriftReport, thresholds: Thresholds, min_rows: int) -> list[Reason]:
    return [reason for _, reason in _measured_quality(report, thresholds, min_rows)]


def _measured_quality(
    report: DriftReport, thresholds: Thresholds, min_rows: int
) -> list[tuple[_WatchedMeasure, Reason]]:
    """The fall of quality: of AUC and accuracy where they have a threshold, and of what models are compared by.

    Accuracy is watched beside the log loss and beside a score of the user's own. A window with a single outcome has no
    AUC, and figures from before the agent file named a measure have none of it: both are compared by the other figures.
    """
    measures = {
        "accuracy" if quality.measure == "agreement" else quality.measure
        for quality in (report.quality, report.quality_reference)
        if quality
    }
    fixed = {"auc": (_AUC, thresholds.auc_drop), "accuracy": (_ACCURACY, thresholds.accuracy_drop)}
    named = [_named_measure(measures.pop())] if len(measures) == 1 and not measures & set(fixed) else []
    compared_by = "accuracy" if named or "accuracy" in measures else "auc"
    watched = [(measure, None) for measure in named] + [
        pair for name, pair in fixed.items() if pair[1] is not None or name == compared_by
    ]
    return [(measure, _quality_reason(report, measure, threshold, min_rows)) for measure, threshold in watched]


def _quality_reason(report: DriftReport, measure: _WatchedMeasure, threshold: float | None, min_rows: int) -> Reason:
    """How far a figure of quality has fallen below its value on the window that the champion was proved on."""
    name = f"{measure.name}_drop"
    now, before = (
        None if quality is None else measure.value(quality) for quality in (report.quality, report.quality_reference)
    )
    if report.quality is None or now is None or before is None:
        return _reason(name, None, threshold, f"no {measure.title} on known outcomes to compare")
    rows = report.quality.rows
    if rows < min_rows:
        text = f"{rows} outcomes are known; the quality is compared on at least {min_rows}"
        return _reason(name, None, threshold, text)
    better = report.quality.judged.better if measure.name == report.quality.measure else "higher"
    fall = before - now if better == "higher" else now - before
    count = measure.count(report.quality)
    scored = f"on {rows} outcomes" if count == rows else f"in {count} episodes"
    text = f"{measure.title} {now:.3f} {scored}, {now - before:+.3f} against {before:.3f}"
    return _reason(name, fall, threshold, text + _format_threshold(threshold))


def _reason(measure: str, value: float | None, threshold: float | None, text: str) -> Reason:
    failed = value is not None and threshold is not None and value > threshold
    return Reason(measure=measure, value=value, threshold=threshold, failed=failed, text=text)


def _format_threshold(threshold: float | None) -> str:
    return "" if threshold is None else f" (threshold {threshold:g})"
