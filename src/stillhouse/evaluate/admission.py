"""The admission of teachers: before it is distilled, a teacher must beat the base rate on rows that it has not seen.

:func:`judge` is a pure function of an :class:`~stillhouse.records.Examination`: the same examination always gives the
identical verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.evaluate.bounds import cluster_scores, lower_shift
from stillhouse.evaluate.comparing import RULE_VERSION, compare_models, lower_bound
from stillhouse.quality import get_admission_measure
from stillhouse.records import ClusterScores, Comparison, Examination, Reason, Verdict, short_id
from stillhouse.stats import cluster_ids, clustered_error, total_variation

__all__ = ["examine", "judge", "replay"]

Array = np.ndarray[Any, Any]
_NOT_COMPARED: tuple[None, float, None] = None, 0.0, None
_MIN_CLUSTERS = 10  # for the agreement with another teacher


def examine(
    config: AgentConfig,
    refresh_id: str,
    as_of: datetime,
    teacher: str,
    rows: pd.DataFrame,
    teacher_probs: Array,
    base_rate: Array,
    unanswered: Sequence[str] = (),
    champion: Array | None = None,
    trusted: tuple[str, Array] | None = None,
) -> Examination:
    """Measure a teacher on labelled ``rows`` that it has not seen.

    Without outcomes it is asked no more than whether it answers, and whether its answers depend on the row.

    :param teacher: version of the teacher.
    :param teacher_probs: float ``[n, K]``, NaN where it has no usable answer.
    :param base_rate: share of each action in the training window ``[K]``, the prediction without any input.
    :param unanswered: why rows have no usable answer, one entry for each row whose cause is known.
    :param champion: probabilities ``[n, K]`` of the champion, the student that will be replaced.
    :param trusted: version and probabilities ``[n, K]`` of a teacher that was admitted earlier.
    """
    has_answer = ~np.isnan(teacher_probs[:, 0])
    clusters = cluster_ids(rows["observed_at"], config.promotion.cluster)[has_answer]
    labels, probs = rows["outcome"].to_numpy()[has_answer], teacher_probs[has_answer]
    base_rate_probs = np.tile(base_rate, (len(probs), 1))
    measure, answered_rows = get_admission_measure(config), rows[has_answer]
    margin = config.teaching.margin * measure.span

    def compare_with(other_probs: Array) -> Comparison | None:
        return compare_models("test", labels, probs, other_probs, margin, clusters, measure=measure, rows=answered_rows)

    by_outcomes = config.outcomes is not None  # against its own answers any teacher would be right
    agreement, error, evidence = (
        _measure_agreement(probs, trusted[1][has_answer], clusters) if trusted else _NOT_COMPARED
    )
    return Examination(
        agent=config.agent,
        refresh_id=refresh_id,
        as_of=as_of,
        teacher=teacher,
        rows=len(rows),
        answered=int(has_answer.sum()),
        unanswered=tuple(f"{count} × {reason}" for reason, count in Counter(unanswered).most_common(3)),
        constant=len(probs) > 1 and float(np.ptp(probs, axis=0).max()) < 1e-9,
        comparison=compare_with(base_rate_probs) if by_outcomes else None,
        against_champion=compare_with(champion[has_answer]) if by_outcomes and champion is not None else None,
        trusted=trusted[0] if trusted and agreement is not None else None,
        agreement=agreement,
        agreement_error=error,
        agreement_evidence=evidence,
        confidence=config.teaching.confidence,
        rule=RULE_VERSION,
        min_answered=config.teaching.min_answered,
        min_agreement=config.teaching.min_agreement,
        **({} if by_outcomes else {"labels": config.labels_are}),
    )


def judge(examination: Examination) -> Verdict:
    """Admit or refuse: a pure function of the examination."""
    reasons = [_answered_reason(examination), _constant_reason(examination), _knowledge_reason(examination)]
    failed = [reason for reason in reasons if reason.failed]
    name = f"teacher {examination.teacher}"
    summary = f"{name} may not teach: {failed[0].text}" if failed else f"{name} may teach: {reasons[-1].text}"
    return Verdict.model_validate(
        {
            "verdict_id": short_id(examination.agent, "admission", examination.refresh_id),
            "kind": "gate",
            "agent": examination.agent,
            "as_of": examination.as_of,
            "result": "refused" if failed else "admitted",
            "response": "hold",
            "summary": summary,
            "reasons": reasons,
            "evidence": {"examination": examination.model_dump(mode="json", exclude_unset=True)},
        }
    )


def replay(verdict: Verdict) -> Verdict:
    """Judge again from the examination in the verdict's evidence."""
    return judge(Examination.model_validate(verdict.evidence["examination"]))


# --------------------------------------------------------------------------- reasons


def _measure_agreement(p: Array, q: Array, clusters: Array) -> tuple[float | None, float, ClusterScores | None]:
    """``1 −`` mean total variation on the rows that both answered, its clustered standard error and cluster scores."""
    both = ~np.isnan(q[:, 0])
    index = np.unique(clusters[both], return_inverse=True)[1]
    if not len(index) or index.max() + 1 < _MIN_CLUSTERS:
        return _NOT_COMPARED
    agreement = 1.0 - total_variation(p[both], q[both])
    mean = float(np.clip(agreement.mean(), 0.0, 1.0))
    influence, sizes = (agreement - agreement.mean()) / len(agreement), np.bincount(index) / len(index)
    evidence = cluster_scores(np.bincount(index, weights=influence), sizes, mean * float((sizes**2).sum()))
    return mean, clustered_error(influence, index, small_sample=True), evidence


def _answered_reason(examination: Examination) -> Reason:
    share = examination.answered / examination.rows if examination.rows else 0.0
    text = f"it has a usable answer to {examination.answered} of {examination.rows} rows"
    if examination.unanswered:
        text += f" ({'; '.join(examination.unanswered)})"
    minimum = examination.min_answered
    return Reason(measure="answered", value=share, threshold=minimum, failed=share < minimum, text=text)


def _constant_reason(examination: Examination) -> Reason:
    text = "its answer is the same for every row" if examination.constant else "its answers depend on the row"
    return Reason(measure="constant", failed=examination.constant, text=text)


def _knowledge_reason(examination: Examination) -> Reason:
    if examination.labels == "teacher answers":
        text = "there are no outcomes to examine it by; quality is agreement with its answers"
        return Reason(measure="outcomes", failed=False, text=text)
    if examination.comparison is not None:
        reason = _gain_reason(examination.comparison, "the base rate's", examination.confidence)
        if reason.failed and examination.against_champion is not None:
            # a teacher that only beats a harmful champion is still an improvement
            against_champion = _gain_reason(examination.against_champion, "the champion's", examination.confidence)
            return reason if against_champion.failed else against_champion
        return reason
    if examination.agreement is not None:
        return _agreement_reason(examination)
    text = (
        f"its {examination.answered} answers have too few outcomes of each action to judge it, and there is no "
        "champion's teacher to compare it with"
    )
    return Reason(measure="outcomes", failed=True, text=text)


def _gain_reason(comparison: Comparison, whose: str, confidence: float) -> Reason:
    low = lower_bound(comparison, confidence)
    failed = low <= comparison.margin
    text = (
        f"on {comparison.rows} rows that it has not seen its {comparison.measure} is {comparison.challenger:.4f}, "
        f"{whose} {comparison.champion:.4f}: lower {100 * confidence:.4g}% bound of the gain {low:+.4f}, "
        f"{'not ' if failed else ''}above {comparison.margin}"
    )
    return Reason(measure=comparison.measure, value=low, threshold=comparison.margin, failed=failed, text=text)


def _agreement_reason(examination: Examination) -> Reason:
    agreement, minimum = examination.agreement or 0.0, examination.min_agreement
    evidence, confidence = examination.agreement_evidence, examination.confidence
    if evidence is None:  # rule 1
        low = agreement - NormalDist().inv_cdf(confidence) * examination.agreement_error
    else:
        low = agreement + lower_shift(evidence, confidence)
    text = (
        f"too few outcomes; it agrees with the champion's teacher {examination.trusted} to {agreement:.4f}, "
        f"lower {100 * confidence:.4g}% bound {low:.4f}, {'below' if low < minimum else 'at least'} {minimum}"
    )
    return Reason(measure="agreement", value=low, threshold=minimum, failed=low < minimum, text=text)
