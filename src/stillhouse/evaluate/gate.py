"""The gate: a challenger must prove that it is no worse than the champion, and fit the budgets.

``judge`` is a pure function of a :class:`~stillhouse.records.Certificate`; the same certificate gives the
identical verdict at any time, anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stillhouse.config import AgentConfig
from stillhouse.errors import RegistryError
from stillhouse.evaluate.bounds import (
    FEWEST_FOR_AUC,
    cluster_scores,
    few_clusters,
    lower_shift,
    upper_shift,
)
from stillhouse.evaluate.power import rows_needed
from stillhouse.evaluate.scorecard import as_wrong
from stillhouse.records import Certificate, Comparison, Reason, Scorecard, Verdict, short_id
from stillhouse.stats import clustered_error

__all__ = [
    "RULE",
    "anchor_after",
    "certify",
    "compare",
    "judge",
    "lower_bound",
    "replay",
]

RULE = 2
"""The rule that new certificates are judged by. 1: a normal bound; 2: clusters resampled, with the worst one added."""


def compare(
    window: str,
    outcomes: np.ndarray[Any, Any],
    challenger: np.ndarray[Any, Any],
    champion: np.ndarray[Any, Any],
    margin: float,
    clusters: np.ndarray[Any, Any] | None = None,
) -> Comparison | None:
    """Challenger against champion on the same rows, with all that a bound of the paired difference is made of.

    For two actions the measure is the AUC, its influences after DeLong, DeLong and Clarke-Pearson 1988; for more it is
    the accuracy. Rows of one cluster are one piece of evidence: flights of the same hour share their weather, and
    rows counted as if independent would make the error too small (Obuchowski 1997, "Nonparametric analysis of
    clustered ROC curve data", §2).

    One more cluster could lower the accuracy by its whole size, taken as the size of the cluster that a row is in on
    average. Of the AUC, where every row moves a little, one could do so as far as the worst that was seen, as those
    that moved it did on average with a wholly lost one among them, and as one row of the rarer outcome that falls
    from the top to the bottom.

    A large cluster draws the estimate towards itself, by as much of its deviation as it counts for, and so seems to
    move it less: the AUC's scores are scaled up for the largest, as a jackknife would (Bell and McCaffrey 2002, "Bias
    reduction in standard errors for linear regression with multi-stage samples"). A row on which a model says NaN
    counts as one that it is wrong about.

    :param outcomes: action indices ``[n]``.
    :param challenger: probabilities ``[n, K]``; ``champion`` alike.
    :param clusters: which cluster each row belongs to, integers ``[n]``; None: each row is its own.
    :returns: None where there are no rows; for the AUC, where fewer than ten rows of either outcome or fewer than ten
        clusters make the variance meaningless.
    """
    count = len(outcomes)
    if not count:
        return None
    challenger, champion = as_wrong(challenger, outcomes), as_wrong(champion, outcomes)
    index = np.arange(count) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if challenger.shape[1] > 2:
        right = np.stack([p.argmax(axis=1) == outcomes for p in (challenger, champion)]).astype(float)
        values = [float(row.mean()) for row in right]
        change = right[0] - right[1]
        sizes = np.bincount(index, weights=np.full(count, 1.0 / count))
        worst, influence = float((sizes**2).sum()), (change - change.mean()) / count
        leverage, counted = 0.0, {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())}
    else:
        one = outcomes == 1
        rarer = min(int(one.sum()), int((~one).sum()))
        if min(rarer, int(index.max()) + 1) < FEWEST_FOR_AUC:
            return None
        values, influence = delong(outcomes, np.stack([challenger[:, 1], champion[:, 1]]))
        weights = np.where(one, 1 / one.sum(), 1 / (~one).sum())
        sizes = np.bincount(index, weights=weights)
        moved = np.bincount(index, weights=influence + (values[0] - values[1]) * weights)
        worst, counted = _worst_of_auc(moved, sizes, 1 / rarer), {"rarer": rarer}
        leverage = float(sizes.max() / sizes.sum())
    difference = values[0] - values[1]
    return Comparison(
        window=window,
        rows=count,
        measure="auc" if challenger.shape[1] == 2 else "accuracy",
        challenger=values[0],
        champion=values[1],
        difference=difference,
        standard_error=clustered_error(influence, index, small_sample=True),
        margin=margin,
        rule=RULE,
        evidence=cluster_scores(
            np.bincount(index, weights=influence) / (1 - leverage), sizes, worst * (1 + difference)
        ),
        **counted,
    )


def _worst_of_auc(moved: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], row: float) -> float:
    """By how much one more cluster could lower the AUC, from how far each moved it ``[C]`` and counts for ``[C]``."""
    far = np.abs(moved)
    return max(row, float(-moved.min()), float(sizes.max() + far.sum()) / (1 + int((far > 1e-12).sum())))


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


def judge(certificate: Certificate) -> Verdict:
    """Promote, refuse, or wait for a person's approval. Pure: the certificate is all that it looks at.

    Every comparison must prove that the challenger is no worse by more than its margin, so a challenger that is worse
    by the margin or more on any of them is promoted with a probability of at most ``1 − confidence``; no correction
    for their number is needed. On the test window it must not be proven worse within the margin either, unless the
    champion itself breaks a budget.

    :raises RegistryError: if the certificate was made by a rule that is not known here.
    """
    _require_rule(certificate.rule)
    reasons = [_budget_reason(certificate, *budget) for budget in _budgets(certificate)]
    if certificate.nothing_fits:
        reasons.insert(0, Reason(measure="compression", failed=True, text=certificate.nothing_fits))
    if certificate.champion is None:
        reasons.append(_better_than_chance(certificate.challenger))
    elif not any(comparison.window == "test" for comparison in certificate.comparisons):
        reasons.append(_not_compared(certificate))
    tolerant = certificate.champion is not None and _breaks_a_budget(certificate, certificate.champion)
    reasons += [
        _non_inferiority(comparison, certificate.confidence, tolerant=tolerant)
        for comparison in certificate.comparisons
    ]
    if certificate.contract_skipped:
        text = f"the data contract was not asked: {certificate.contract_skipped}"
        reasons.append(Reason(measure="data_contract", failed=False, text=text))
    failed = [reason for reason in reasons if reason.failed]
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
            "result": outcome,
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
    config: AgentConfig,
    refresh_id: str,
    as_of: datetime,
    challenger: Scorecard,
    champion: Scorecard | None,
    comparisons: Sequence[Comparison],
    nothing_fits: str = "",
    anchor: str | None = None,
) -> Certificate:
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
        rule=RULE,
        anchor=anchor,
    )


def anchor_after(certificate: Certificate) -> str | None:
    """The champion that losses are added up from once this certificate's challenger has become champion.

    The anchor stays until a challenger is proven better than it: only then what was lost is made good.

    :returns: its name, ``flights@3``; None: the new champion itself.
    """
    if certificate.champion is None or certificate.rule == 1:
        return None
    measured = {comparison.window: comparison for comparison in certificate.comparisons}
    rival = measured.get("anchor", measured.get("test"))
    if rival is not None and lower_bound(rival, certificate.confidence) > 0:
        return None
    return certificate.anchor or certificate.champion.model


def lower_bound(comparison: Comparison, confidence: float) -> float:
    """One-sided lower confidence bound of the difference, by the rule that the comparison was made by.

    :raises RegistryError: if that rule is not known here.
    """
    return comparison.difference - _distance(comparison, confidence, lower=True)


def upper_bound(comparison: Comparison, confidence: float) -> float:
    """One-sided upper confidence bound of the difference; likewise."""
    return comparison.difference + _distance(comparison, confidence, lower=False)


def _distance(comparison: Comparison, confidence: float, *, lower: bool) -> float:
    """From the difference to its bound, ≥ 0."""
    _require_rule(comparison.rule)
    evidence = comparison.evidence
    if comparison.rule == 1 or evidence is None:
        return NormalDist().inv_cdf(confidence) * comparison.standard_error
    distance = -lower_shift(evidence, confidence) if lower else upper_shift(evidence, confidence)
    if comparison.measure == "accuracy":
        return distance
    return distance * few_clusters(evidence.clusters, evidence.effective, confidence)


def _require_rule(rule: int) -> None:
    if rule > RULE:
        raise RegistryError(
            f"this certificate was made by rule {rule} of the gate, and this version of stillhouse knows rules 1 to "
            f"{RULE}: judge it with the version that made it, or a newer one"
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


def _breaks_a_budget(certificate: Certificate, card: Scorecard) -> bool:
    """Whether ``card``'s model, if it was the challenger, would not fit."""
    judged = certificate.model_copy(update={"challenger": card})
    return any(_budget_reason(judged, *budget).failed for budget in _budgets(judged))


def _budget_reason(certificate: Certificate, measure: str, value: float | None, limit: float, unit: str) -> Reason:
    if value is None:
        text = f"{certificate.challenger.model} was not measured against the budget of {limit:.6g} {unit}"
        return Reason(measure=measure, threshold=limit, failed=True, text=text)
    crossed = value > limit
    relation = "above" if crossed else "within"
    text = f"{certificate.challenger.model} has {value:.6g} {unit}, {relation} the budget of {limit:.6g}"
    return Reason(measure=measure, value=value, threshold=limit, failed=crossed, text=text)


def _better_than_chance(card: Scorecard) -> Reason:
    auc = card.test.auc
    crossed = auc is None or auc <= 0.5
    of = "" if card.test.measure == "auc" else " (mean over the actions, each against the others)"
    text = f"test AUC {auc:.4f}{of} against chance .5" if auc is not None else "no AUC: the test window has one outcome"
    return Reason(measure="auc", value=auc, threshold=0.5, failed=crossed, text=text)


def _not_compared(certificate: Certificate) -> Reason:
    champion, test = certificate.champion, certificate.challenger.test
    text = (
        f"the test window ({test.rows} rows) has too few outcomes of each action to compare the challenger with "
        f"{champion.model if champion else 'the champion'}: at least ten of either, in at least ten clusters"
    )
    return Reason(measure=f"{test.measure}:test", failed=True, text=text)


def _non_inferiority(comparison: Comparison, confidence: float, *, tolerant: bool = False) -> Reason:
    """One-sided: the lower bound of the difference must not lie below −margin.

    On the test window the upper one must not lie below 0 either.

    :param tolerant: whether a loss within the margin may be proven.
    """
    low, name = lower_bound(comparison, confidence), comparison.window
    against = "the test window, against the champion that losses are added up from" if name == "anchor" else name
    where = f"on {against} ({comparison.rows} rows)"
    measured = f"{comparison.measure} {comparison.challenger:.4f} against {comparison.champion:.4f}"
    value, limit, crossed, stated = low, -comparison.margin, low < -comparison.margin, _percent(confidence)
    verb, side = "may be worse by" if crossed else "is not worse by", "lower"
    if comparison.rule > 1 and name == "test" and not (crossed or tolerant):
        high = upper_bound(comparison, confidence)
        if high < 0:
            value, limit, crossed, verb, side = high, 0.0, True, "is worse, though not by", "upper"
    text = (
        f"{where} the challenger {verb} more than {comparison.margin}: {measured}, "
        f"{side} {stated} bound of the difference {value:+.4f}"
    )
    if comparison.lost is not None and comparison.gained is not None:
        text += f"; it alone is right on {comparison.gained} rows, the champion alone on {comparison.lost}"
    if crossed:
        text += _too_few(comparison, confidence)
    return Reason(measure=f"{comparison.measure}:{name}", value=value, threshold=limit, failed=crossed, text=text)


def _too_few(comparison: Comparison, confidence: float) -> str:
    """That no challenger as good as the champion could have passed on so few; empty where one could."""
    evidence = comparison.evidence
    if evidence is None or comparison.margin <= 0:
        return ""
    pieces, unit = evidence.effective, "rows" if evidence.clusters == comparison.rows else "clusters of rows"
    if comparison.rarer is not None:
        pieces, unit = comparison.rarer, "rows of the rarer outcome"
    needed = rows_needed(comparison.margin, confidence)
    if needed is None or pieces >= needed:
        return ""
    return (
        f"; at least {needed} {unit} are needed to prove a margin of {comparison.margin} at "
        f"{_percent(confidence)}; the window has {int(pieces + 1e-6)}"
    )


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"
