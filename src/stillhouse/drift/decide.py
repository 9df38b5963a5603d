"""From measurements to a verdict: pure, and replayable from the evidence that the verdict carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import exp, hypot, sqrt
from typing import Any

from pydantic import AwareDatetime, Field

from stillhouse.config import AgentConfig, Responses, Thresholds
from stillhouse.drift.evidence import joint
from stillhouse.errors import WindowError
from stillhouse.records import (
    REFRESH_MODES,
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    Process,
    Reason,
    Record,
    RefreshModeName,
    Response,
    ScreenResult,
    Verdict,
    VerdictResult,
    short_id,
)

__all__ = ["Evidence", "decide", "decide_from_evidence"]


class Evidence(Record):
    """All that a watch is decided on."""

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
        default=None, description="whether anything was observed since the last refresh; None: nobody looked"
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="fall of quality that is no harm; None: not held against the calm verdicts",
    )


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
) -> Verdict:
    """What to do about the current window. The first line that holds decides.

    ======================= ======== ========================================================================
    outcome                 response when
    ======================= ======== ========================================================================
    ``data_broken``         hold     the data contract refuses the window
    ``not_enough_evidence`` hold     fewer than ``observations.min_rows`` rows
    ``cooling_down``        hold     one of the next three, but the last refresh is younger than ``watch.cooldown``, or
                                     nothing was observed since
    ``teacher_failing``     renew    the evidence of all processes together reaches the budget, and (2) is
                                     that the teacher errs more than it did
    ``harmful_drift``       (1)      the evidence of all processes together reaches the budget
    ``drift``               (1)      a plain threshold of the agent file is exceeded; whether it harms is not known
    ``not_enough_evidence`` hold     a loss or the quality is worse than what is no harm (:func:`_worse`), or inputs
                                     moved beyond what is usual and nobody compared teacher and student: the evidence
                                     has not reached its threshold, it accumulates
    ``benign_shift``        hold     inputs moved beyond what is usual, and the student agrees with its teacher
    ``no_drift``            hold     otherwise
    ======================= ======== ========================================================================

    (2) a process that reaches the budget by itself, or, if none does, the one with most evidence.

    (1) as ``watch.responses`` says: recalibrate, update, redistil_warm or redistil. After a refresh that was refused
    redistil: what was cheaper has not helped. Its mode: :data:`stillhouse.records.REFRESH_MODES`.

    :param report: None if the data is broken or the window too small to be measured.
    :param as_of: the moment that the watch speaks for, with a time zone.
    :param last_refresh: the moment that the last refresh spoke for.
    :param refused: whether that refresh was refused.
    :param steps: the last step of each evidence process (:mod:`stillhouse.drift.evidence`).
    :param new_rows: whether anything was observed since ``last_refresh``; None: not looked at.
    :raises WindowError: if there is no report although the window is sound and large enough.
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
    )
    return decide_from_evidence(evidence.model_dump(mode="json"))


def decide_from_evidence(evidence: Mapping[str, Any]) -> Verdict:
    """The verdict that ``evidence``, as a verdict carries it, leads to: always the identical one.

    :raises pydantic.ValidationError: if it is not the evidence of a watch.
    :raises WindowError: see :func:`decide`.
    """
    known = Evidence.model_validate(evidence)
    outcome, response, summary, reasons = _judge(known)
    as_of = known.as_of.astimezone(UTC)
    champion = known.drift.champion if known.drift else ""
    return Verdict(
        verdict_id=short_id(known.agent, "watch", as_of.isoformat(), champion),
        kind="watch",
        agent=known.agent,
        as_of=as_of,
        result=outcome,
        response=response,
        summary=summary,
        reasons=reasons,
        cost=known.cost,
        evidence=known.model_dump(mode="json"),
    )


Judgement = tuple[VerdictResult, Response, str, tuple[Reason, ...]]


def _judge(known: Evidence) -> Judgement:
    if known.data.broken:
        reasons = tuple(_broken(known.data))
        return "data_broken", "hold", f"the window is refused: {reasons[0].text}", reasons
    rows = known.drift.current_rows if known.drift else known.data.rows - known.data.quarantined
    if rows < known.min_rows:
        reason = Reason(
            measure="rows",
            value=rows,
            threshold=known.min_rows,
            failed=True,
            text=f"{rows} usable rows; fewer than {known.min_rows} are not judged",
        )
        return "not_enough_evidence", "hold", reason.text, (reason,)
    if known.drift is None:
        raise WindowError(f"{known.data.window}: {rows} sound rows, but no drift was measured on them; measure first")
    return _cooled(known, _alarm(known, known.drift) or _calm(known, known.drift))


def _alarm(known: Evidence, drift: DriftReport) -> Judgement | None:
    """What calls for a response, if anything does: evidence first, then plain thresholds."""
    reasons = tuple(_reasons(known, drift))
    proved = {step.process: _proof(step, known.steps) for step in _proved(known.steps)}
    if "teacher_outcomes" in proved:
        return "teacher_failing", "renew", proved["teacher_outcomes"], reasons
    if proved:
        harm = "; ".join(proved.values())
        return "harmful_drift", _response(known, known.responses.harmful_drift), harm, reasons
    plain = [reason.text for reason in _plain(drift, known.thresholds, known.min_rows) if reason.failed]
    return ("drift", _response(known, known.responses.drift), "; ".join(plain), reasons) if plain else None


def _proved(steps: Sequence[EvidenceStep]) -> list[EvidenceStep]:
    """The processes that raise the alarm: those that reach the budget alone; together, the one with most evidence."""
    alone, together = [step for step in steps if step.alarm], joint(steps)
    if alone or together is None or together[0] < together[1]:
        return alone
    return [
        max((step for step in steps if step.share is not None), key=lambda step: step.log_evidence - step.log_threshold)
    ]


def _proof(step: EvidenceStep, steps: Sequence[EvidenceStep]) -> str:
    """Why a step raises the alarm: its own evidence, or that of all together, of which it has most."""
    own, together = _evidence(step).text, next(_joint(steps), None)
    return own if step.alarm or together is None else f"{together.text}; most of it is {own}"


def _response(known: Evidence, asked_for: RefreshModeName) -> RefreshModeName:
    return "redistil" if known.refused else asked_for


def _calm(known: Evidence, drift: DriftReport) -> Judgement:
    """Nothing calls for a response: did anything move at all?"""
    reasons, parting, worse = tuple(_reasons(known, drift)), _parting(known, drift), _worse(known, drift)
    if drift.screened is None or not drift.screened.moved:
        if worse:
            return "not_enough_evidence", "hold", f"{'; '.join(worse)}; the evidence accumulates", reasons
        return "no_drift", "hold", _nothing_moved(known, drift), reasons
    moved = _screen(drift.screened).text
    if worse:
        return "not_enough_evidence", "hold", f"{moved}; {'; '.join(worse)}; the evidence accumulates", reasons
    if parting is None:
        return "not_enough_evidence", "hold", f"{moved}; teacher and student were not compared yet", reasons
    text, agree = parting
    if agree:
        return "benign_shift", "hold", f"{moved}; {text}", reasons
    return "not_enough_evidence", "hold", f"{moved}; {text}; the evidence accumulates", reasons


def _nothing_moved(known: Evidence, drift: DriftReport) -> str:
    """The sentence of ``no_drift``, which claims no more than was looked at."""
    screened, plain = drift.screened, [r for r in _plain(drift, known.thresholds, known.min_rows) if r.threshold]
    if screened is not None and screened.blocks and screened.limit > 0:
        return "nothing moved beyond what is usual"
    if plain:
        return (
            f"no threshold is crossed ({', '.join(r.measure for r in plain)}); there is no history yet of what is usual"
        )
    return "the evidence shows no harm; there is no history yet of what is usual"


def _worse(known: Evidence, drift: DriftReport) -> list[str]:
    """What is worse than what is no harm: a verdict that found nothing must not stand above such a figure.

    A quality on at least ``min_rows`` outcomes has fallen where it lies below the reference by more than its plain
    threshold; without one by more than the tolerance and two standard errors, or than 0.1, whichever is less. The
    standard error of an accuracy is the binomial one; that of an AUC is taken as ``√(A (1 − A) / m)`` (the leading term
    of Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve"), as if the rarer action had had
    m, a quarter of the rows. The Brier score is worse by the tolerance and two standard errors (at most
    ``√(b (1 − b) / n)`` on the scale 0…1, Bhatia and Davis 2000), or by a half. The mean loss of a process's last step
    is worse by two such errors, or at twice what is no harm.
    """
    if known.tolerance is None:
        return []
    parting = _parting(known, drift)
    found = [parting[0]] if parting is not None and not parting[1] else []
    found += [_evidence(step).text for step in known.steps if step.mean is not None and _high(step, step.mean)]
    return found + list(_fallen(known, drift, known.tolerance))


def _high(step: EvidenceStep, mean: float) -> bool:
    null = step.null_mean
    return mean > min(null + 2 * _error(null, step.step_rows), 2 * null)


def _fallen(known: Evidence, drift: DriftReport, tolerance: float) -> Iterator[str]:
    now, before = drift.quality, drift.quality_reference
    if now is None or before is None or now.rows < known.min_rows:
        return
    for reason in _falls(drift, known.thresholds, known.min_rows):
        if reason.value is None:
            continue
        auc, threshold = reason.measure == "auc_drop", reason.threshold
        a, b = (now.auc or 0.0, before.auc or 0.0) if auc else (now.accuracy, before.accuracy)
        part = 0.25 if auc else 1.0
        error = hypot(_error(a, now.rows * part), _error(b, before.rows * part))
        if reason.value > (min(tolerance + 2 * error, 0.1) if threshold is None else threshold):
            yield reason.text
    half, usual = now.brier / 2, before.brier / 2  # `Quality.brier` is on the scale 0…2
    error = hypot(_error(half, now.rows), _error(usual, before.rows))
    if half > min(usual + tolerance + 2 * error, 1.5 * usual):
        yield f"the student's Brier score is {now.brier:.3f} on {now.rows} outcomes, and was {before.brier:.3f}"


def _error(mean: float, rows: float) -> float:
    """The largest standard error that the mean of ``rows`` values within 0…1 may have."""
    return sqrt(max(0.0, mean * (1 - mean)) / max(rows, 1.0))


def _cooled(known: Evidence, judged: Judgement) -> Judgement:
    """No second refresh too soon after the last, nor on the same rows, wherever the clock stands."""
    outcome, response, summary, reasons = judged
    if REFRESH_MODES[response] is None or known.last_refresh is None:
        return outcome, response, summary, reasons
    if known.new_rows is False:
        since = known.last_refresh.astimezone(UTC)
        text = f"nothing was observed since the last refresh ({since:%Y-%m-%d %H:%M} UTC), though {summary}"
        return "cooling_down", "hold", text, reasons
    if known.as_of >= known.last_refresh + known.cooldown:
        return outcome, response, summary, reasons
    until = (known.last_refresh + known.cooldown).astimezone(UTC)
    return "cooling_down", "hold", f"no second refresh before {until:%Y-%m-%d %H:%M} UTC, though {summary}", reasons


def _parting(known: Evidence, drift: DriftReport) -> tuple[str, bool] | None:
    """How far teacher and student part on the current window's audited rows, and whether that is still no harm."""
    now = drift.disagreement
    harmless = next((step.null_mean for step in known.steps if step.process == "disagreement"), None)
    if now is None or not now.rows:
        return None
    if harmless is None:
        before = drift.disagreement_reference
        if before is None:
            return None
        harmless = before.total_variation + (known.thresholds.disagreement or 0.0)
    text = (
        f"teacher and student differ by {now.total_variation:.3f} on {now.rows} rows (up to {harmless:.3f} is no harm)"
    )
    return text, now.total_variation <= harmless


def _broken(data: DataReport) -> Iterator[Reason]:
    for failure in data.failures:
        if failure.fatal:
            yield Reason(measure=failure.expectation, value=failure.rows, failed=True, text=failure.text)


def _skipped(data: DataReport) -> Iterator[Reason]:
    """That the data contract was not asked, and why, where somebody has said so."""
    if data.skipped_because:
        text = f"the data contract was not asked: {data.skipped_because}"
        yield Reason(measure="data_contract", failed=False, text=text)


def _reasons(known: Evidence, drift: DriftReport) -> Iterator[Reason]:
    """One reason per evidence process, one for the screens, one per plain measure with a threshold or a value."""
    yield from _joint(known.steps)
    yield from (_evidence(step) for step in known.steps)
    if drift.screened is not None:
        yield _screen(drift.screened)
    plain = _plain(drift, known.thresholds, known.min_rows)
    yield from (reason for reason in plain if reason.value is not None or reason.threshold is not None)
    yield from _skipped(known.data)
    window = known.data.window
    if window.chosen is not None or window.sample is not None:
        text = f"what was measured: {window}" + (f"; {drift.current_rows:,} of its rows" if window.sample else "")
        yield Reason(measure="window", value=drift.current_rows, failed=False, text=text)


_PROCESSES: dict[Process, str] = {
    "disagreement": "teacher and student part",
    "student_outcomes": "the student errs more than it did",
    "teacher_outcomes": "the teacher errs more than it did",
}


def _joint(steps: Sequence[EvidenceStep]) -> Iterator[Reason]:
    """The evidence of all processes together, which is what the budget is held against."""
    together = joint(steps)
    if together is not None and len(steps) > 1:
        value, threshold = (_shown(each) for each in together)
        text = f"evidence of all {len(steps)} processes together: {value:.3g} of {threshold:.4g}"
        crossed = together[0] >= together[1]
        yield Reason(measure="evidence", value=value, threshold=threshold, failed=crossed, text=text)


def _evidence(step: EvidenceStep) -> Reason:
    value, threshold = _shown(step.log_evidence), _shown(step.log_threshold)
    mean = "" if step.mean is None else f"; mean loss of the last step {step.mean:.3f}"
    text = (
        f"evidence that {_PROCESSES[step.process]}: {value:.3g} of {threshold:.4g} after {step.looks} steps, "
        f"{step.rows:,} rows{mean} (what counts lies above {step.null_mean:.3f})"
    )
    return Reason(measure=f"evidence_{step.process}", value=value, threshold=threshold, failed=step.alarm, text=text)


def _shown(logarithm: float) -> float:
    """The number itself, as far as a float reaches."""
    return exp(min(logarithm, 700.0))


def _screen(result: ScreenResult) -> Reason:
    names = ", ".join(result.beyond[:5]) + (f" and {len(result.beyond) - 5} more" if len(result.beyond) > 5 else "")
    if not result.blocks:
        text = "no history yet to say what is usual"
    elif result.moved:
        text = f"the window moved beyond what {result.blocks} earlier stretches showed ({names})"
    else:
        text = f"no more movement than {result.blocks} earlier stretches showed" + (
            f" (though {names})" if names else ""
        )
    return Reason(measure="screen", value=result.statistic, threshold=result.limit, failed=result.moved, text=text)


def _plain(report: DriftReport, thresholds: Thresholds, min_rows: int) -> tuple[Reason, ...]:
    """The measures that a plain threshold may be set for."""
    return (
        _psi(report, thresholds.psi, thresholds.shifted_columns),
        _ks(report, thresholds.ks, thresholds.shifted_columns),
        _output_psi(report, thresholds.output_psi),
        _disagreement(report, thresholds.disagreement),
        *_falls(report, thresholds, min_rows),
    )


def _psi(report: DriftReport, threshold: float | None, needed: int) -> Reason:
    """The value is the ``needed``-th largest PSI: that it exceeds the threshold is what counts."""
    worst = report.worst(needed)
    beyond = [c for c in report.worst(len(report.columns)) if threshold is not None and c.psi > threshold]
    shown = ", ".join(f"{c.column} {c.psi:.3g}" for c in (beyond or report.worst(3))[:5])
    if threshold is None:
        text = f"largest PSI: {shown}"
    elif beyond:
        more = f", and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        text = f"{len(beyond)} of {len(report.columns)} columns with PSI above {threshold:g} ({shown}{more})"
        text += f", {needed} needed" if needed > 1 else ""
    else:
        text = f"no column with PSI above {threshold:g} (largest: {shown or 'none'})"
    value = worst[-1].psi if len(worst) == needed else None
    return _reason("psi", value, threshold, text)


def _ks(report: DriftReport, threshold: float | None, needed: int) -> Reason:
    """As :func:`_psi`, for the Kolmogorov–Smirnov distance of the numbers."""
    distances = sorted(((c.ks, c.column) for c in report.columns if c.ks is not None), reverse=True)
    if threshold is None or not distances:
        return _reason("ks", None, threshold, "no number to measure a Kolmogorov–Smirnov distance on")
    shown = ", ".join(f"{column} {value:.3g}" for value, column in distances[:5])
    beyond = sum(value > threshold for value, _ in distances)
    text = f"{beyond} of {len(distances)} numbers with a Kolmogorov–Smirnov distance above {threshold:g} ({shown})"
    text += f", {needed} needed" if needed > 1 else ""
    return _reason("ks", distances[needed - 1][0] if len(distances) >= needed else None, threshold, text)


def _output_psi(report: DriftReport, threshold: float | None) -> Reason:
    if not report.outputs:
        return _reason("output_psi", None, threshold, "the student's output was not measured")
    value = max(output.psi for output in report.outputs)
    return _reason("output_psi", value, threshold, f"PSI of the student's output {value:.3g}{_beside(threshold)}")


def _disagreement(report: DriftReport, threshold: float | None) -> Reason:
    now, before = report.disagreement, report.disagreement_reference
    if now is None:
        return _reason("disagreement", None, threshold, "teacher and student were not compared")
    if before is None:
        text = f"teacher and student differ by {now.total_variation:.3f} (no reference)"
        return _reason("disagreement", now.total_variation, threshold, text + _beside(threshold))
    rise = now.total_variation - before.total_variation
    text = (
        f"teacher and student differ by {now.total_variation:.3f} on {now.rows} rows, "
        f"{rise:+.3f} against {before.total_variation:.3f}"
    )
    return _reason("disagreement", rise, threshold, text + _beside(threshold))


def _falls(report: DriftReport, thresholds: Thresholds, min_rows: int) -> list[Reason]:
    """Of the AUC and of the accuracy: what has a threshold, or is what this agent's models are compared by."""
    measures = {quality.measure for quality in (report.quality, report.quality_reference) if quality}
    usual = "accuracy" if "accuracy" in measures else "auc"  # a window of one outcome has no AUC to compare with
    return [
        _fall(report, measure, name, threshold, min_rows)
        for measure, name, threshold in (
            ("auc", "AUC", thresholds.auc_drop),
            ("accuracy", "accuracy", thresholds.accuracy_drop),
        )
        if threshold is not None or measure == usual
    ]


def _fall(report: DriftReport, field: str, name: str, threshold: float | None, min_rows: int) -> Reason:
    """How far a figure of quality lies below what it was when the champion was proved."""
    measure = f"{field}_drop"
    now, before = getattr(report.quality, field, None), getattr(report.quality_reference, field, None)
    if report.quality is None or now is None or before is None:
        return _reason(measure, None, threshold, f"no {name} on known outcomes to compare")
    rows = report.quality.rows
    if rows < min_rows:
        text = f"{rows} outcomes are known; quality on fewer than {min_rows} is not judged"
        return _reason(measure, None, threshold, text)
    text = f"{name} {now:.3f} on {rows} outcomes, {now - before:+.3f} against {before:.3f}"
    return _reason(measure, before - now, threshold, text + _beside(threshold))


def _reason(measure: str, value: float | None, threshold: float | None, text: str) -> Reason:
    crossed = value is not None and threshold is not None and value > threshold
    return Reason(measure=measure, value=value, threshold=threshold, failed=crossed, text=text)


def _beside(threshold: float | None) -> str:
    return "" if threshold is None else f" (threshold {threshold:g})"
