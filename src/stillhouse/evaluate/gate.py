"""The gate: a challenger must prove that it is no worse than the champion, and fit the budgets.

``judge`` is a pure function of a :class:`~stillhouse.records.Certificate`; the same certificate gives the
identical verdict at any time, anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from stillhouse.config import AgentConfig
from stillhouse.records import Certificate, Comparison, Reason, Scorecard, Verdict, short_id

__all__ = ["certify", "compare", "judge", "replay", "stretches"]


def compare(
    window: str,
    outcomes: np.ndarray[Any, Any],
    challenger: np.ndarray[Any, Any],
    champion: np.ndarray[Any, Any],
    margin: float,
    clusters: np.ndarray[Any, Any] | None = None,
) -> Comparison | None:
    """Challenger against champion on the same rows, with the standard error of the paired difference.

    For two actions the measure is the AUC, its variance after DeLong, DeLong and Clarke-Pearson 1988; for more it is
    the accuracy. Rows of one cluster are one piece of evidence: flights of the same hour share their weather, and
    rows counted as if independent would make the standard error too small (Obuchowski 1997, "Nonparametric analysis
    of clustered ROC curve data", §2).

    :param outcomes: action indices ``[n]``.
    :param challenger: probabilities ``[n, K]``; ``champion`` alike.
    :param clusters: which cluster each row belongs to, integers ``[n]``; None: each row is its own.
    :returns: None where fewer than ten rows of either outcome (twenty rows, for K > 2), or fewer than ten clusters,
        make the variance meaningless.
    """
    clusters = np.arange(len(outcomes)) if clusters is None else clusters
    if len(np.unique(clusters)) < 10:
        return None
    if challenger.shape[1] > 2:
        if len(outcomes) < 20:
            return None
        right = np.stack([p.argmax(axis=1) == outcomes for p in (challenger, champion)]).astype(float)
        values = [float(row.mean()) for row in right]
        difference = right[0] - right[1]
        influence = (difference - difference.mean()) / len(outcomes)
    else:
        positives = int((outcomes == 1).sum())
        if min(positives, len(outcomes) - positives) < 10:
            return None
        values, influence = delong(outcomes, np.stack([challenger[:, 1], champion[:, 1]]))
    return Comparison(
        window=window,
        rows=len(outcomes),
        measure="auc" if challenger.shape[1] == 2 else "accuracy",
        challenger=values[0],
        champion=values[1],
        difference=values[0] - values[1],
        standard_error=clustered_error(influence, clusters),
        margin=margin,
    )


def delong(outcomes: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> tuple[list[float], np.ndarray[Any, Any]]:
    """AUCs of two score vectors ``[2, n]`` against 0/1 outcomes, and each row's influence on their difference ``[n]``.

    The influences are DeLong's structural components, centred and divided by the number of rows of their outcome;
    they sum to 0. Computed by ranks (Sun and Xu 2014, eq. 9–13).
    """
    one = outcomes == 1
    positive, negative = scores[:, one], scores[:, ~one]
    m, n = positive.shape[1], negative.shape[1]
    among_positive = np.stack([rankdata(row) for row in positive])
    among_negative = np.stack([rankdata(row) for row in negative])
    among_all = np.stack([rankdata(row) for row in np.hstack([positive, negative])])
    of_positive = (among_all[:, :m] - among_positive) / n
    of_negative = 1 - (among_all[:, m:] - among_negative) / m
    aucs = of_positive.mean(axis=1)
    influence = np.empty(len(outcomes))
    influence[one] = (of_positive[0] - of_positive[1] - (aucs[0] - aucs[1])) / m
    influence[~one] = (of_negative[0] - of_negative[1] - (aucs[0] - aucs[1])) / n
    return [float(auc) for auc in aucs], influence


def clustered_error(influence: np.ndarray[Any, Any], clusters: np.ndarray[Any, Any]) -> float:
    """Standard error of a statistic from its rows' influences ``[n]``, those of one cluster ``[n]`` taken together."""
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, weights=influence)
    return math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1))


def stretches(rows: pd.DataFrame, length: timedelta) -> np.ndarray[Any, Any]:
    """Which stretch of ``length`` each row was observed in, integers ``[n]``; zero: each row is its own."""
    if not length:
        return np.arange(len(rows))
    found: np.ndarray[Any, Any] = ((rows["observed_at"] - pd.Timestamp(0, tz="UTC")) // length).to_numpy()
    return found


def judge(certificate: Certificate) -> Verdict:
    """Promote, refuse, or wait for a person's approval. Pure: the certificate is all that it looks at."""
    reasons = [_budget_reason(certificate, *budget) for budget in _budgets(certificate)]
    if certificate.nothing_fits:
        reasons.insert(0, Reason(measure="compression", crossed=True, text=certificate.nothing_fits))
    if certificate.champion is None:
        reasons.append(_better_than_chance(certificate.challenger))
    elif not any(comparison.window == "test" for comparison in certificate.comparisons):
        reasons.append(_not_compared(certificate))
    reasons += [_non_inferiority(comparison, certificate.confidence) for comparison in certificate.comparisons]
    failed = [reason for reason in reasons if reason.crossed]
    name = certificate.challenger.model
    if failed:
        outcome, summary = "refused", f"{name} refused: {failed[0].text}"
    elif certificate.approval == "manual":
        outcome, summary = "awaiting_approval", f"{name} passed; a person must promote it"
    else:
        rival = "no champion yet" if certificate.champion is None else "no worse than the champion"
        outcome, summary = "promoted", f"{name} promoted: {rival}, within the budgets"
    return Verdict.model_validate(
        {
            "verdict_id": short_id(certificate.agent, "gate", certificate.refresh_id),
            "kind": "gate",
            "agent": certificate.agent,
            "as_of": certificate.as_of,
            "outcome": outcome,
            "response": "hold",
            "summary": summary,
            "reasons": reasons,
            "evidence": {"certificate": certificate.model_dump(mode="json")},
        }
    )


def replay(verdict: Verdict) -> Verdict:
    """Judge a gate's verdict again from the certificate in its evidence."""
    return judge(Certificate.model_validate(verdict.evidence["certificate"]))


def certify(
    config: AgentConfig, refresh_id: str, as_of: datetime, challenger: Scorecard, champion: Scorecard | None,
    comparisons: Sequence[Comparison], nothing_fits: str = "",
) -> Certificate:  # fmt: skip
    """All that :func:`judge` needs, with the agent's budgets and margins as they stand now."""
    return Certificate(
        agent=config.agent,
        refresh_id=refresh_id,
        as_of=as_of,
        challenger=challenger,
        champion=champion,
        comparisons=tuple(comparisons),
        confidence=config.promotion.confidence,
        max_bytes=config.budgets.max_bytes,
        max_p95_ms=config.budgets.max_p95_ms,
        approval=config.promotion.approval,
        nothing_fits=nothing_fits,
    )


# --------------------------------------------------------------------------- single reasons


def _budgets(certificate: Certificate) -> list[tuple[str, float | None, float, str]]:
    card = certificate.challenger
    found: list[tuple[str, float | None, float, str]] = []
    if certificate.max_bytes is not None:
        found.append(("bytes", card.bytes, certificate.max_bytes, "bytes"))
    if certificate.max_p95_ms is not None:
        measured = card.latency.p95_ms if card.latency else None
        found.append(("p95_ms", measured, certificate.max_p95_ms, "ms (p95)"))
    return found


def _budget_reason(certificate: Certificate, measure: str, value: float | None, limit: float, unit: str) -> Reason:
    if value is None:
        text = f"{certificate.challenger.model} was not measured against the budget of {limit:.6g} {unit}"
        return Reason(measure=measure, threshold=limit, crossed=True, text=text)
    crossed = value > limit
    relation = "above" if crossed else "within"
    text = f"{certificate.challenger.model} has {value:.6g} {unit}, {relation} the budget of {limit:.6g}"
    return Reason(measure=measure, value=value, threshold=limit, crossed=crossed, text=text)


def _better_than_chance(card: Scorecard) -> Reason:
    auc = card.test.auc
    crossed = auc is None or auc <= 0.5
    text = "no AUC: the test window has one outcome only" if auc is None else f"test AUC {auc:.4f} against chance .5"
    return Reason(measure="auc", value=auc, threshold=0.5, crossed=crossed, text=text)


def _not_compared(certificate: Certificate) -> Reason:
    champion, test = certificate.champion, certificate.challenger.test
    text = (
        f"the test window ({test.rows} rows) has too few outcomes of each action to compare the challenger with "
        f"{champion.model if champion else 'the champion'}"
    )
    return Reason(measure=f"{test.measure}:test", crossed=True, text=text)


def _non_inferiority(comparison: Comparison, confidence: float) -> Reason:
    """One-sided: the lower confidence bound of the difference must not lie below −margin."""
    low = comparison.difference - NormalDist().inv_cdf(confidence) * comparison.standard_error
    crossed = low < -comparison.margin
    verb = "may be" if crossed else "is not"
    text = (
        f"on {comparison.window} ({comparison.rows} rows) the challenger {verb} worse "
        f"by more than {comparison.margin}: "
        f"{comparison.measure} {comparison.challenger:.4f} against {comparison.champion:.4f}, "
        f"lower {confidence:.0%} bound of the difference {low:+.4f}"
    )
    return Reason(
        measure=f"{comparison.measure}:{comparison.window}",
        value=low,
        threshold=-comparison.margin,
        crossed=crossed,
        text=text,
    )
