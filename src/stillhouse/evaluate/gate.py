"""The gate: a challenger must be proven no worse than the champion, and keep to the budgets.

:func:`judge` is a pure function of a :class:`~stillhouse.records.Certificate`: the same certificate always gives the
identical verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np

from stillhouse.config import AgentConfig
from stillhouse.errors import RegistryError
from stillhouse.evaluate.bounds import (
    MIN_ROWS_FOR_AUC,
    cluster_scores,
    few_clusters_factor,
    lower_shift,
    upper_shift,
)
from stillhouse.evaluate.power import rows_needed
from stillhouse.evaluate.scorecard import replace_non_finite
from stillhouse.records import Certificate, Comparison, Reason, Scorecard, Verdict, short_id
from stillhouse.stats import clustered_error, delong

__all__ = [
    "RULE_VERSION",
    "certify",
    "compare_models",
    "judge",
    "lower_bound",
    "next_anchor",
    "replay",
    "upper_bound",
]

RULE_VERSION = 2
"""Version of the rule for new certificates. 1: normal bound; 2: bootstrap of clusters with a worst cluster added."""

Array = np.ndarray[Any, Any]


def compare_models(
    window: str,
    labels: Array,
    challenger: Array,
    champion: Array,
    margin: float,
    cluster_ids: Array | None = None,
) -> Comparison | None:
    """Compare challenger and champion on the same rows, with everything that a bound of the paired difference needs.

    For two actions the measure is the AUC, with the influences of DeLong, DeLong and Clarke-Pearson 1988; for more
    actions it is the accuracy. The rows of one cluster count as one observation: flights of the same hour share their
    weather, and treating the rows as independent would make the standard error too small (Obuchowski 1997,
    "Nonparametric analysis of clustered ROC curve data", §2).

    One more cluster could lower the accuracy by its whole size, which is taken as the size of the cluster of an average
    row. For the AUC, where every row has a small influence, the worst case of one more cluster is the largest of three
    values: the largest loss by a cluster so far; the mean over the clusters that moved the AUC, with one completely
    lost cluster added; and one row of the rarer label that falls from the top to the bottom of the ranking.

    A large cluster pulls the estimate towards itself, in proportion to its weight, so its own deviation looks smaller.
    Therefore the scores of the AUC are scaled up according to the largest cluster, as in a jackknife (Bell and
    McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage samples"). A row on which
    a model answers NaN counts as a wrong answer.

    >>> labels = np.array([0, 1, 2] * 100)
    >>> right = np.eye(3)[labels]
    >>> comparison = compare_models("test", labels, right, right, margin=0.02)
    >>> comparison.measure, comparison.difference, round(lower_bound(comparison, 0.95), 3)
    ('accuracy', 0.0, -0.01)

    :param window: name of the window or slice.
    :param labels: action indices ``[n]``.
    :param challenger: probabilities ``[n, K]``; ``champion`` likewise.
    :param margin: how much worse the challenger may be.
    :param cluster_ids: the cluster of each row, integers ``[n]``; None: each row is its own.
    :returns: None if there are no rows; for the AUC, if fewer than ten rows have one of the labels or there are fewer
        than ten clusters, because then the variance is not meaningful.
    """
    count = len(labels)
    if not count:
        return None
    challenger, champion = replace_non_finite(challenger, labels), replace_non_finite(champion, labels)
    index = np.arange(count) if cluster_ids is None else np.unique(cluster_ids, return_inverse=True)[1]
    if challenger.shape[1] > 2:
        correct = np.stack([p.argmax(axis=1) == labels for p in (challenger, champion)]).astype(float)
        values = [float(row.mean()) for row in correct]
        change = correct[0] - correct[1]
        sizes = np.bincount(index, weights=np.full(count, 1.0 / count))
        worst, influence = float((sizes**2).sum()), (change - change.mean()) / count
        leverage, counts = 0.0, {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())}
    else:
        positive = labels == 1
        rarer = min(int(positive.sum()), int((~positive).sum()))
        if min(rarer, int(index.max()) + 1) < MIN_ROWS_FOR_AUC:
            return None
        values, influence = delong(labels, np.stack([challenger[:, 1], champion[:, 1]]))
        row_weights = np.where(positive, 1 / positive.sum(), 1 / (~positive).sum())
        sizes = np.bincount(index, weights=row_weights)
        moved = np.bincount(index, weights=influence + (values[0] - values[1]) * row_weights)
        worst, counts = _worst_auc_loss(moved, sizes, 1 / rarer), {"rarer": rarer}
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
        rule=RULE_VERSION,
        evidence=cluster_scores(
            np.bincount(index, weights=influence) / (1 - leverage), sizes, worst * (1 + difference)
        ),
        **counts,
    )


def _worst_auc_loss(moved: Array, sizes: Array, row: float) -> float:
    """The most by which one more cluster could lower the AUC.

    :param moved: by how much each cluster moved the difference of the AUCs ``[C]``.
    :param sizes: weight of each cluster ``[C]``.
    :param row: influence of one row of the rarer label.
    """
    distance = np.abs(moved)
    return max(row, float(-moved.min()), float(sizes.max() + distance.sum()) / (1 + int((distance > 1e-12).sum())))


def judge(certificate: Certificate) -> Verdict:
    """Promote, refuse, or wait for a person's approval: a pure function of the certificate.

    Every comparison must prove that the challenger is not worse by more than the margin. So a challenger that is worse
    by the margin or more on any of them is promoted with a probability of at most ``1 − confidence``, and no correction
    for the number of comparisons is needed. On the test window the challenger must also not be proven worse within the
    margin, unless the champion itself exceeds a budget.

    :raises RegistryError: if the certificate was made by a newer rule.
    """
    _require_rule(certificate.rule)
    reasons = [_budget_reason(certificate, *budget) for budget in _list_budgets(certificate)]
    if certificate.nothing_fits:
        reasons.insert(0, Reason(measure="compression", failed=True, text=certificate.nothing_fits))
    if certificate.champion is None:
        reasons.append(_better_than_chance_reason(certificate.challenger))
    elif not any(comparison.window == "test" for comparison in certificate.comparisons):
        reasons.append(_not_compared_reason(certificate))
    loss_allowed = certificate.champion is not None and _exceeds_budget(certificate, certificate.champion)
    reasons += [
        _non_inferiority(comparison, certificate.confidence, loss_allowed=loss_allowed)
        for comparison in certificate.comparisons
    ]
    if certificate.contract_skipped:
        text = f"the data contract was not checked: {certificate.contract_skipped}"
        reasons.append(Reason(measure="data_contract", failed=False, text=text))
    failed = [reason for reason in reasons if reason.failed]
    name = certificate.challenger.model
    if failed:
        result, summary = "refused", f"{name} refused: {failed[0].text}"
    elif certificate.approval == "manual":
        result, summary = "awaiting_approval", f"{name} passed; a person must promote it"
    else:
        rival = "no champion yet" if certificate.champion is None else "no worse than the champion"
        result, summary = "promoted", f"{name} promoted: {rival}, within the budgets"
    return Verdict.model_validate(
        {
            "verdict_id": short_id(certificate.agent, "gate", certificate.refresh_id),
            "kind": "gate",
            "agent": certificate.agent,
            "as_of": certificate.as_of,
            "result": result,
            "response": "hold",
            "summary": summary,
            "reasons": reasons,
            "evidence": {"certificate": certificate.model_dump(mode="json")},
        }
    )


def replay(verdict: Verdict) -> Verdict:
    """Judge again from the certificate in the verdict's evidence."""
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
    """The certificate for :func:`judge`, with the agent's current budgets.

    :param nothing_fits: why no variant is within the budgets; empty: the challenger does.
    :param anchor: name of the earlier champion that cumulative losses are measured against.
    """
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
        rule=RULE_VERSION,
        anchor=anchor,
    )


def next_anchor(certificate: Certificate) -> str | None:
    """The champion that cumulative losses are measured against after this certificate's challenger was promoted.

    The anchor is kept until a challenger is proven better than it, because only then earlier losses are recovered.

    :returns: its name, ``flights@3``; None: the new champion itself.
    """
    if certificate.champion is None or certificate.rule == 1:
        return None
    by_window = {comparison.window: comparison for comparison in certificate.comparisons}
    comparison = by_window.get("anchor", by_window.get("test"))
    if comparison is not None and lower_bound(comparison, certificate.confidence) > 0:
        return None
    return certificate.anchor or certificate.champion.model


def lower_bound(comparison: Comparison, confidence: float) -> float:
    """One-sided lower confidence bound of the difference, by the rule under which the comparison was made.

    :raises RegistryError: if that rule is newer than this version.
    """
    return comparison.difference - _bound_distance(comparison, confidence, lower=True)


def upper_bound(comparison: Comparison, confidence: float) -> float:
    """One-sided upper confidence bound of the difference; see :func:`lower_bound`."""
    return comparison.difference + _bound_distance(comparison, confidence, lower=False)


def _bound_distance(comparison: Comparison, confidence: float, *, lower: bool) -> float:
    """Distance from the difference to its bound, ≥ 0."""
    _require_rule(comparison.rule)
    evidence = comparison.evidence
    if comparison.rule == 1 or evidence is None:
        return NormalDist().inv_cdf(confidence) * comparison.standard_error
    distance = -lower_shift(evidence, confidence) if lower else upper_shift(evidence, confidence)
    if comparison.measure == "accuracy":
        return distance
    return distance * few_clusters_factor(evidence.clusters, evidence.effective, confidence)


def _require_rule(rule: int) -> None:
    if rule > RULE_VERSION:
        raise RegistryError(
            f"this certificate was made by rule {rule} of the gate, and this version of stillhouse knows rules 1 to "
            f"{RULE_VERSION}: judge it with the version that made it or a newer one"
        )


# --------------------------------------------------------------------------- reasons


def _list_budgets(certificate: Certificate) -> list[tuple[str, float | None, float, str]]:
    """Measure, value (None: not measured), limit and unit of each budget."""
    card = certificate.challenger
    budgets: list[tuple[str, float | None, float, str]] = []
    if certificate.max_bytes is not None:
        budgets.append(("bytes", card.bytes, certificate.max_bytes, "bytes"))
    if certificate.max_p95_ms is not None:
        measured = card.latency.p95_ms if card.latency else None
        budgets.append(("p95_ms", measured, certificate.max_p95_ms, "ms (p95)"))
    return budgets


def _exceeds_budget(certificate: Certificate, card: Scorecard) -> bool:
    """Whether the model of ``card`` exceeds a budget of the certificate."""
    as_challenger = certificate.model_copy(update={"challenger": card})
    return any(_budget_reason(as_challenger, *budget).failed for budget in _list_budgets(as_challenger))


def _budget_reason(certificate: Certificate, measure: str, value: float | None, limit: float, unit: str) -> Reason:
    if value is None:
        text = f"{certificate.challenger.model} was not measured against the budget of {limit:.6g} {unit}"
        return Reason(measure=measure, threshold=limit, failed=True, text=text)
    failed = value > limit
    relation = "above" if failed else "within"
    text = f"{certificate.challenger.model} has {value:.6g} {unit}, {relation} the budget of {limit:.6g}"
    return Reason(measure=measure, value=value, threshold=limit, failed=failed, text=text)


def _better_than_chance_reason(card: Scorecard) -> Reason:
    auc = card.test.auc
    failed = auc is None or auc <= 0.5
    of = "" if card.test.measure == "auc" else " (mean over the actions, each against the others)"
    text = f"test AUC {auc:.4f}{of} against chance .5" if auc is not None else "no AUC: the test window has one outcome"
    return Reason(measure="auc", value=auc, threshold=0.5, failed=failed, text=text)


def _not_compared_reason(certificate: Certificate) -> Reason:
    champion, test = certificate.champion, certificate.challenger.test
    text = (
        f"the test window ({test.rows} rows) has too few outcomes of each action to compare the challenger with "
        f"{champion.model if champion else 'the champion'}: at least ten of either, in at least ten clusters"
    )
    return Reason(measure=f"{test.measure}:test", failed=True, text=text)


def _non_inferiority(comparison: Comparison, confidence: float, *, loss_allowed: bool = False) -> Reason:
    """One-sided: the lower bound of the difference must not be below −margin.

    On the test window, the upper bound must not be below 0 either.

    :param loss_allowed: whether the challenger may be proven worse within the margin.
    """
    low, name = lower_bound(comparison, confidence), comparison.window
    compared_on = (
        "the test window, against the champion that cumulative losses are measured from" if name == "anchor" else name
    )
    where = f"on {compared_on} ({comparison.rows} rows)"
    measured = f"{comparison.measure} {comparison.challenger:.4f} against {comparison.champion:.4f}"
    value, limit, failed, percent = low, -comparison.margin, low < -comparison.margin, _format_percent(confidence)
    verb, side = "may be worse by" if failed else "is not worse by", "lower"
    if comparison.rule > 1 and name == "test" and not (failed or loss_allowed):
        high = upper_bound(comparison, confidence)
        if high < 0:
            value, limit, failed, verb, side = high, 0.0, True, "is worse, though not by", "upper"
    text = (
        f"{where} the challenger {verb} more than {comparison.margin}: {measured}, "
        f"{side} {percent} bound of the difference {value:+.4f}"
    )
    if comparison.lost is not None and comparison.gained is not None:
        text += f"; only the challenger is right on {comparison.gained} rows, only the champion on {comparison.lost}"
    if failed:
        text += _explain_too_few_rows(comparison, confidence)
    return Reason(measure=f"{comparison.measure}:{name}", value=value, threshold=limit, failed=failed, text=text)


def _explain_too_few_rows(comparison: Comparison, confidence: float) -> str:
    """A text saying that no equal challenger could pass on so few rows; empty if one could."""
    evidence = comparison.evidence
    if evidence is None or comparison.margin <= 0:
        return ""
    available, unit = evidence.effective, "rows" if evidence.clusters == comparison.rows else "clusters of rows"
    if comparison.rarer is not None:
        available, unit = comparison.rarer, "rows of the rarer outcome"
    needed = rows_needed(comparison.margin, confidence)
    if needed is None or available >= needed:
        return ""
    return (
        f"; at least {needed} {unit} are needed to prove a margin of {comparison.margin} at "
        f"{_format_percent(confidence)}; the window has {int(available + 1e-6)}"
    )


def _format_percent(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"
