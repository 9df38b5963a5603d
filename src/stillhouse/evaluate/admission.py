"""The gate before the lesson: a teacher must show on rows that it has not seen that it knows something.

``judge`` is a pure function of an :class:`~stillhouse.records.Examination`; the same examination gives the identical
verdict at any time, anywhere.
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
from stillhouse.evaluate.gate import RULE, compare, lower_bound
from stillhouse.records import ClusterScores, Comparison, Examination, Reason, Verdict, short_id
from stillhouse.stats import cluster_ids, clustered_error, total_variation

__all__ = ["examine", "judge", "replay"]

Array = np.ndarray[Any, Any]
_NOT_COMPARED: tuple[None, float, None] = None, 0.0, None


def examine(
    config: AgentConfig,
    refresh_id: str,
    as_of: datetime,
    teacher: str,
    rows: pd.DataFrame,
    said: Array,
    base_rate: Array,
    unanswered: Sequence[str] = (),
    champion: Array | None = None,
    trusted: tuple[str, Array] | None = None,
) -> Examination:
    """What ``teacher`` (a version) knows about labelled ``rows`` that it has not seen.

    :param said: float ``[n, K]``, NaN where it has no usable answer.
    :param base_rate: share of each action in the training window ``[K]``: what one would say knowing nothing of a row.
    :param unanswered: why there is no usable answer, a reason for each such row that is known of.
    :param champion: what the champion decides about the rows ``[n, K]``: the student that this teacher is to replace.
    :param trusted: version and probabilities ``[n, K]`` of a teacher that has been admitted before.
    """
    known = ~np.isnan(said[:, 0])
    clusters = cluster_ids(rows["observed_at"], config.promotion.cluster)
    outcomes, answers = rows["outcome"].to_numpy()[known], said[known]
    ignorant = np.tile(base_rate, (len(answers), 1))

    def against(rival: Array) -> Comparison | None:
        return compare("test", outcomes, answers, rival, config.teaching.margin, clusters[known])

    agreement, error, evidence = _agreement(answers, trusted[1][known], clusters[known]) if trusted else _NOT_COMPARED
    return Examination(
        agent=config.agent,
        refresh_id=refresh_id,
        as_of=as_of,
        teacher=teacher,
        rows=len(rows),
        answered=int(known.sum()),
        unanswered=tuple(f"{count} × {reason}" for reason, count in Counter(unanswered).most_common(3)),
        constant=len(answers) > 1 and float(np.ptp(answers, axis=0).max()) < 1e-9,
        comparison=against(ignorant),
        against_champion=None if champion is None else against(champion[known]),
        trusted=trusted[0] if trusted and agreement is not None else None,
        agreement=agreement,
        agreement_error=error,
        agreement_evidence=evidence,
        confidence=config.teaching.confidence,
        rule=RULE,
        min_answered=config.teaching.min_answered,
        min_agreement=config.teaching.min_agreement,
    )


def judge(examination: Examination) -> Verdict:
    """Admit or refuse. Pure: the examination is all that it looks at."""
    reasons = [_answers(examination), _says_something(examination), _knows_something(examination)]
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
            "evidence": {"examination": examination.model_dump(mode="json")},
        }
    )


def replay(verdict: Verdict) -> Verdict:
    """Judge an admission again from the examination in its evidence."""
    return judge(Examination.model_validate(verdict.evidence["examination"]))


# --------------------------------------------------------------------------- single reasons


def _agreement(p: Array, q: Array, clusters: Array) -> tuple[float | None, float, ClusterScores | None]:
    """``1 −`` mean total variation on the rows that both speak about, its standard error by cluster, its scores."""
    both = ~np.isnan(q[:, 0])
    index = np.unique(clusters[both], return_inverse=True)[1]
    if not len(index) or index.max() < 9:
        return _NOT_COMPARED
    alike = 1.0 - total_variation(p[both], q[both])
    mean = float(np.clip(alike.mean(), 0.0, 1.0))
    influence, sizes = (alike - alike.mean()) / len(alike), np.bincount(index) / len(index)
    evidence = cluster_scores(np.bincount(index, weights=influence), sizes, mean * float((sizes**2).sum()))
    return mean, clustered_error(influence, index, small_sample=True), evidence


def _answers(examination: Examination) -> Reason:
    share = examination.answered / examination.rows if examination.rows else 0.0
    text = f"it has a usable answer to {examination.answered} of {examination.rows} rows"
    if examination.unanswered:
        text += f" ({'; '.join(examination.unanswered)})"
    least = examination.min_answered
    return Reason(measure="answered", value=share, threshold=least, failed=share < least, text=text)


def _says_something(examination: Examination) -> Reason:
    text = "it says the same about every row" if examination.constant else "what it says depends on the row"
    return Reason(measure="constant", failed=examination.constant, text=text)


def _knows_something(examination: Examination) -> Reason:
    if examination.comparison is not None:
        reason = _gain(examination.comparison, "the base rate's", examination.confidence)
        if reason.failed and examination.against_champion is not None:
            # A champion that does harm is better replaced by one that does none.
            other = _gain(examination.against_champion, "the champion's", examination.confidence)
            return reason if other.failed else other
        return reason
    if examination.agreement is not None:
        return _agrees(examination)
    text = (
        f"its {examination.answered} answers have too few outcomes of each action to judge it by, and there is no "
        "champion's teacher to compare it with"
    )
    return Reason(measure="outcomes", failed=True, text=text)


def _gain(comparison: Comparison, whose: str, confidence: float) -> Reason:
    low = lower_bound(comparison, confidence)
    crossed = low <= comparison.margin
    text = (
        f"on {comparison.rows} rows that it has not seen its {comparison.measure} is {comparison.challenger:.4f}, "
        f"{whose} {comparison.champion:.4f}: lower {100 * confidence:.4g}% bound of the gain {low:+.4f}, "
        f"{'not ' if crossed else ''}above {comparison.margin}"
    )
    return Reason(measure=comparison.measure, value=low, threshold=comparison.margin, failed=crossed, text=text)


def _agrees(examination: Examination) -> Reason:
    agreement, least = examination.agreement or 0.0, examination.min_agreement
    evidence, confidence = examination.agreement_evidence, examination.confidence
    if evidence is None:  # rule 1
        low = agreement - NormalDist().inv_cdf(confidence) * examination.agreement_error
    else:
        low = agreement + lower_shift(evidence, confidence)
    text = (
        f"too few outcomes; it agrees with the champion's teacher {examination.trusted} to {agreement:.4f}, "
        f"lower {100 * confidence:.4g}% bound {low:.4f}, {'below' if low < least else 'at least'} {least}"
    )
    return Reason(measure="agreement", value=low, threshold=least, failed=low < least, text=text)
