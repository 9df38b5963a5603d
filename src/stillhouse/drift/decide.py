"""From measurements to a verdict: pure, and replayable from the evidence that the verdict carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, Field

from stillhouse.config import AgentConfig, Thresholds
from stillhouse.errors import WindowError
from stillhouse.records import DataReport, DriftReport, Outcome, Reason, Record, Response, Verdict, short_id

__all__ = ["Evidence", "decide", "decide_from_evidence"]


class Evidence(Record):
    """All that a watch is decided on."""

    agent: str
    as_of: AwareDatetime
    last_refresh: AwareDatetime | None
    cooldown: timedelta
    min_rows: int = Field(ge=1)
    thresholds: Thresholds
    data: DataReport
    drift: DriftReport | None


def decide(
    report: DriftReport | None,
    data: DataReport,
    config: AgentConfig,
    *,
    as_of: datetime,
    last_refresh: datetime | None,
) -> Verdict:
    """What to do about the current window.

    ===================== ======== ==========================================================================
    outcome               response when
    ===================== ======== ==========================================================================
    ``data_broken``       hold     the data contract refuses the window
    ``not_enough_evidence`` hold   fewer than ``observations.min_rows`` rows
    ``drift``             redistil a measure exceeds its threshold
    ``cooling_down``      hold     the same, but the last refresh is younger than ``watch.cooldown``
    ``no_drift``          hold     otherwise
    ===================== ======== ==========================================================================

    :param report: None if the data is broken or the window too small to be measured.
    :param as_of: the moment that the watch speaks for, with a time zone.
    :param last_refresh: the moment that the last refresh spoke for.
    :raises WindowError: if there is no report although the window is sound and large enough.
    """
    evidence = Evidence(
        agent=config.agent,
        as_of=as_of,
        last_refresh=last_refresh,
        cooldown=config.watch.cooldown,
        min_rows=config.observations.min_rows,
        thresholds=config.watch.thresholds,
        data=data,
        drift=report,
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
        outcome=outcome,
        response=response,
        summary=summary,
        reasons=reasons,
        evidence=known.model_dump(mode="json"),
    )


def _judge(known: Evidence) -> tuple[Outcome, Response, str, tuple[Reason, ...]]:
    if known.data.broken:
        reasons = tuple(_broken(known.data))
        return "data_broken", "hold", f"the window is refused: {reasons[0].text}", reasons

    rows = known.drift.current_rows if known.drift else known.data.rows - known.data.quarantined
    if rows < known.min_rows:
        reason = Reason(
            measure="rows",
            value=rows,
            threshold=known.min_rows,
            crossed=True,
            text=f"{rows} usable rows; fewer than {known.min_rows} are not judged",
        )
        return "not_enough_evidence", "hold", reason.text, (reason,)
    if known.drift is None:
        raise WindowError(f"{known.data.window}: {rows} sound rows, but no drift was measured on them; measure first")

    reasons = tuple(_reasons(known.drift, known.thresholds, known.min_rows))
    crossed = "; ".join(reason.text for reason in reasons if reason.crossed)
    if not crossed:
        return "no_drift", "hold", "no measure exceeds its threshold", reasons
    if known.last_refresh is not None and known.as_of < known.last_refresh + known.cooldown:
        until = known.last_refresh + known.cooldown
        summary = f"no second refresh before {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC, though {crossed}"
        return "cooling_down", "hold", summary, reasons
    return "drift", "redistil", crossed, reasons


def _broken(data: DataReport) -> Iterator[Reason]:
    for failure in data.failures:
        if failure.fatal:
            yield Reason(measure=failure.expectation, value=failure.rows, crossed=True, text=failure.text)


def _reasons(report: DriftReport, thresholds: Thresholds, min_rows: int) -> Iterator[Reason]:
    """One reason per measure that has a threshold or a value."""
    found = (
        _psi(report, thresholds.psi, thresholds.shifted_columns),
        _output_psi(report, thresholds.output_psi),
        _disagreement(report, thresholds.disagreement),
        _auc_drop(report, thresholds.auc_drop, min_rows),
    )
    yield from (reason for reason in found if reason.value is not None or reason.threshold is not None)


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


def _output_psi(report: DriftReport, threshold: float | None) -> Reason:
    if report.output is None:
        return _reason("output_psi", None, threshold, "the student's output was not measured")
    value = report.output.psi
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


def _auc_drop(report: DriftReport, threshold: float | None, min_rows: int) -> Reason:
    now, before = report.quality, report.quality_reference
    if now is None or before is None or now.auc is None or before.auc is None:
        return _reason("auc_drop", None, threshold, "no AUC on known outcomes to compare")
    if now.rows < min_rows:
        text = f"{now.rows} outcomes are known; an AUC on fewer than {min_rows} is not judged"
        return _reason("auc_drop", None, threshold, text)
    drop = before.auc - now.auc
    text = f"AUC {now.auc:.3f} on {now.rows} outcomes, {-drop:+.3f} against {before.auc:.3f}"
    return _reason("auc_drop", drop, threshold, text + _beside(threshold))


def _reason(measure: str, value: float | None, threshold: float | None, text: str) -> Reason:
    crossed = value is not None and threshold is not None and value > threshold
    return Reason(measure=measure, value=value, threshold=threshold, crossed=crossed, text=text)


def _beside(threshold: float | None) -> str:
    return "" if threshold is None else f" (threshold {threshold:g})"
