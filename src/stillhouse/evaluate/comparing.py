"""Compare two models on the same rows, with everything that a bound of the paired difference needs."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.errors import RegistryError
from stillhouse.evaluate.bounds import (
    MIN_ROWS_FOR_AUC,
    cluster_scores,
    few_clusters_factor,
    lower_shift,
    upper_shift,
)
from stillhouse.quality import Measure, decision_measure
from stillhouse.records import Comparison, ComparisonRole
from stillhouse.stats import clustered_error, delong, replace_non_finite

__all__ = [
    "RULE_VERSION",
    "bound_quality",
    "compare_models",
    "harm_limit",
    "lower_bound",
    "require_rule",
    "rows_factor",
    "upper_bound",
]

RULE_VERSION = 3
"""Version of the rule for new certificates. 1: normal bound; 2: bootstrap of clusters with a worst cluster added; 3:
the same bound for the measure that the agent file names, and a verdict for what cannot be told."""

MAX_ROWS_FACTOR = 10_000.0
"""Beyond that many times as many rows no decision is foreseeable."""

Array = np.ndarray[Any, Any]


def compare_models(
    window: str,
    labels: Array,
    challenger: Array,
    champion: Array,
    margin: float,
    cluster_ids: Array | None = None,
    *,
    measure: Measure | None = None,
    rows: pd.DataFrame | None = None,
    episodes: tuple[Array | None, Array | None] = (None, None),
    role: ComparisonRole = "non_inferior",
    can_grow: bool = True,
) -> Comparison | None:
    """Compare challenger and champion on the same rows, with everything that a bound of the paired difference needs.

    A score of episodes is compared by the paired differences of the episodes, which have the same seeds for both. Each
    is its own cluster. Without episodes the stand-in of the measure is compared, with the margin as the same share of
    its range.

    A measure with a score per row is compared by the mean of the paired differences; the AUC with the influences of
    DeLong, DeLong and Clarke-Pearson 1988. The rows of one cluster count as one observation: flights of the same hour
    share their weather, and treating the rows as independent would make the standard error too small (Obuchowski 1997,
    "Nonparametric analysis of clustered ROC curve data", §2).

    One more cluster could lower a mean by its whole size times the range of a row's score; its size is taken as that of
    the cluster of an average row. For the AUC, where every row has a small influence, the worst case of one more
    cluster is the largest of three values: the largest loss by a cluster so far; the mean over the clusters that moved
    the AUC, with one completely lost cluster added; and one row of the rarer label that falls from the top to the
    bottom of the ranking.

    A large cluster pulls the estimate towards itself, in proportion to its weight, so its own deviation looks smaller.
    Therefore the scores of the AUC are scaled up according to the largest cluster, as in a jackknife (Bell and
    McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage samples"). A row on which
    a model answers NaN counts as the worst answer.

    >>> labels = np.array([0, 1, 2] * 100)
    >>> right = np.eye(3)[labels]
    >>> comparison = compare_models("test", labels, right, right, margin=0.02)
    >>> comparison.measure, comparison.difference, round(lower_bound(comparison, 0.95), 3)
    ('accuracy', 0.0, -0.01)

    :param window: name of the window or slice.
    :param labels: action indices ``[n]``.
    :param challenger: probabilities ``[n, K]``; ``champion`` likewise.
    :param margin: how much worse the challenger may be, in the unit of the measure.
    :param cluster_ids: the cluster of each row, integers ``[n]``; None: each row is its own.
    :param measure: None: the AUC for two actions, the accuracy for more.
    :param rows: the observations, for a score of the user's own.
    :param episodes: the scores of the episodes that challenger and champion have played, each ``[m]``, for a score of
        episodes; rows are compared unless both have played.
    :param role: what the gate asks of this comparison.
    :param can_grow: whether later labels add rows.
    :returns: None if there are no rows; for the AUC, if fewer than ten rows have one of the labels or there are fewer
        than ten clusters, because then the variance is not meaningful.
    """
    if not len(labels):
        return None
    named = measure or decision_measure(challenger.shape[1])
    both_played = named.episodes is not None and all(scores is not None for scores in episodes)
    measure, played = (named, episodes) if both_played else (named.of_rows, (None, None))
    margin *= measure.span / named.span
    challenger, champion = replace_non_finite(challenger, labels), replace_non_finite(champion, labels)
    scores = [measure.scores(p, labels, rows, e) for p, e in zip((challenger, champion), played, strict=True)]
    index = _cluster_index(len(labels) if played[0] is None else len(played[0]), cluster_ids, played[0])
    if scores[0] is None or scores[1] is None:
        estimate = _compare_aucs(labels, challenger[:, 1], champion[:, 1], index)
    else:
        estimate = _compare_means(scores[0], scores[1], measure.sign, index)
    if estimate is None:
        return None
    difference = measure.sign * (estimate.challenger - estimate.champion)
    return Comparison(
        window=window,
        rows=len(index),
        on="rows" if played[0] is None else "episodes",
        measure=measure.name,
        challenger=estimate.challenger,
        champion=estimate.champion,
        difference=difference,
        standard_error=clustered_error(estimate.influence, index, small_sample=True),
        margin=margin,
        rule=RULE_VERSION,
        role=role,
        can_grow=can_grow,
        unit=measure.unit,
        better=measure.better,
        span=measure.span,
        evidence=cluster_scores(
            np.bincount(index, weights=estimate.influence) / (1 - estimate.leverage),
            estimate.sizes,
            estimate.worst * (measure.span + difference),
        ),
        **estimate.counts,
    )


def bound_quality(
    labels: Array,
    probs: Array,
    measure: Measure,
    confidence: float,
    cluster_ids: Array | None = None,
    rows: pd.DataFrame | None = None,
    episodes: Array | None = None,
) -> tuple[float, float] | None:
    """The two-sided confidence interval of one model's value, by the same bounds as :func:`compare_models`.

    >>> from stillhouse.quality import ACCURACY
    >>> labels = np.array([0, 1, 2] * 100)
    >>> low, high = bound_quality(labels, np.eye(3)[labels], ACCURACY, confidence=0.95)
    >>> round(low, 3), high  # ln(40) / 300 below 1
    (0.988, 1.0)

    :param labels: action indices ``[n]``.
    :param probs: ``[n, K]``; a row with NaN counts as the worst answer.
    :param measure: must be defined for these labels; see :meth:`~stillhouse.quality.Measure.for_labels`.
    :param confidence: of the interval, in (½, 1); each side has half of the error.
    :param cluster_ids: the cluster of each row, integers ``[n]``; None: each row is its own.
    :param rows: the observations, for a score of the user's own.
    :param episodes: the scores of the episodes that the model has played ``[m]``, for a score of episodes.
    :returns: the lowest and the highest value, in the unit of the measure; None where :func:`compare_models` has none.
    """
    if not len(labels):
        return None
    probs, side = replace_non_finite(probs, labels), (1 + confidence) / 2
    scores = measure.scores(probs, labels, rows, episodes)
    nothing = np.zeros(len(labels) if scores is None else len(scores))
    index = _cluster_index(len(nothing), cluster_ids, episodes)
    if scores is None:
        estimate = _compare_aucs(labels, probs[:, 1], nothing, index)  # a constant score has no influence
    else:
        estimate = _compare_means(scores, nothing, measure.sign, index)
    if estimate is None:
        return None
    best, worst = (measure.high, measure.low) if measure.better == "higher" else (measure.low, measure.high)
    value, influence = estimate.challenger, np.bincount(index, weights=estimate.influence) / (1 - estimate.leverage)
    below = cluster_scores(influence, estimate.sizes, estimate.worst * abs(value - worst))
    above = cluster_scores(influence, estimate.sizes, estimate.worst * abs(best - value))
    factor = few_clusters_factor(below.clusters, below.effective, side) if scores is None else 1.0
    ends = (
        value + measure.sign * factor * lower_shift(below, side),
        value + measure.sign * factor * upper_shift(above, side),
    )
    return max(min(ends), measure.low), min(max(ends), measure.high)


def lower_bound(comparison: Comparison, confidence: float, growth: float = 1.0) -> float:
    """One-sided lower confidence bound of the difference, by the rule under which the comparison was made.

    :param growth: the bound for that many times as many rows, if they are like those there are (rules 2 and 3).
    :raises RegistryError: if that rule is newer than this version.
    """
    return comparison.difference - _bound_distance(comparison, confidence, growth, lower=True)


def upper_bound(comparison: Comparison, confidence: float, growth: float = 1.0) -> float:
    """One-sided upper confidence bound of the difference; see :func:`lower_bound`."""
    return comparison.difference + _bound_distance(comparison, confidence, growth, lower=False)


def harm_limit(comparison: Comparison) -> float:
    """The gain below which a challenger is harmful, if that is proven: 0, or −margin where a loss is allowed."""
    return 0.0 if comparison.role == "non_inferior" else -comparison.margin


def rows_factor(comparison: Comparison, confidence: float) -> float | None:
    """How many times as many rows would decide whether the challenger is no worse or harmful, if they are alike; > 1.

    >>> labels = np.array([0, 1, 2] * 50)
    >>> same = compare_models("test", labels, np.eye(3)[labels], np.eye(3)[labels], margin=0.01)
    >>> round(150 * rows_factor(same, 0.95))  # the rule of three: ln(20) / 0.01
    301

    :returns: None if that is not foreseeable.
    """

    def is_decided(growth: float) -> bool:
        return lower_bound(comparison, confidence, growth) >= -comparison.margin or upper_bound(
            comparison, confidence, growth
        ) < harm_limit(comparison)

    if not comparison.can_grow or comparison.evidence is None or not is_decided(MAX_ROWS_FACTOR):
        return None
    low, high = 1.0, MAX_ROWS_FACTOR
    while high > 1.005 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high


def require_rule(rule: int) -> None:
    """:raises RegistryError: if a certificate was made by a newer rule than this version knows."""
    if rule > RULE_VERSION:
        raise RegistryError(
            f"this certificate was made by rule {rule} of the gate, and this version of stillhouse knows rules 1 to "
            f"{RULE_VERSION}: judge it with the version that made it or a newer one"
        )


# --------------------------------------------------------------------------- inside


def _cluster_index(count: int, cluster_ids: Array | None, episodes: Array | None) -> Array:
    """The cluster of each score, numbered from 0, ``[n]``: that of its row; an episode is its own."""
    if cluster_ids is None or episodes is not None:
        return np.arange(count)
    index: Array = np.unique(cluster_ids, return_inverse=True)[1]
    return index


@dataclass(frozen=True)
class _Estimate:
    """The values of both models in the unit of the measure, and what their difference is made of.

    :param influence: of each row on the oriented difference ``[n]``, sum 0.
    :param sizes: weight of each cluster ``[C]``.
    :param worst: the most by which one more cluster could lower the difference, as a share of the range of a score.
    :param leverage: share of the largest cluster, by which the scores are scaled up.
    """

    challenger: float
    champion: float
    influence: Array
    sizes: Array
    worst: float
    leverage: float
    counts: dict[str, int]


def _compare_means(challenger: Array, champion: Array, sign: float, index: Array) -> _Estimate:
    """The means of the rows' scores, which are oriented so that more is better."""
    count, change = len(index), challenger - champion
    sizes = np.bincount(index, weights=np.full(count, 1.0 / count))
    return _Estimate(
        sign * float(challenger.mean()),
        sign * float(champion.mean()),
        (change - change.mean()) / count,
        sizes,
        float((sizes**2).sum()),
        0.0,
        {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())},
    )


def _compare_aucs(labels: Array, challenger: Array, champion: Array, index: Array) -> _Estimate | None:
    """The AUCs of the scores of the second action; None if the variance would not be meaningful."""
    positive = labels == 1
    rarer = min(int(positive.sum()), int((~positive).sum()))
    if min(rarer, int(index.max()) + 1) < MIN_ROWS_FOR_AUC:
        return None
    values, influence = delong(labels, np.stack([challenger, champion]))
    row_weights = np.where(positive, 1 / positive.sum(), 1 / (~positive).sum())
    sizes = np.bincount(index, weights=row_weights)
    moved = np.bincount(index, weights=influence + (values[0] - values[1]) * row_weights)
    return _Estimate(
        values[0],
        values[1],
        influence,
        sizes,
        _worst_auc_loss(moved, sizes, 1 / rarer),
        float(sizes.max() / sizes.sum()),
        {"rarer": rarer},
    )


def _worst_auc_loss(moved: Array, sizes: Array, row: float) -> float:
    """The most by which one more cluster could lower the AUC.

    :param moved: by how much each cluster moved the difference of the AUCs ``[C]``.
    :param sizes: weight of each cluster ``[C]``.
    :param row: influence of one row of the rarer label.
    """
    distance = np.abs(moved)
    return max(row, float(-moved.min()), float(sizes.max() + distance.sum()) / (1 + int((distance > 1e-12).sum())))


def _bound_distance(comparison: Comparison, confidence: float, growth: float, *, lower: bool) -> float:
    """Distance from the difference to its bound, ≥ 0."""
    require_rule(comparison.rule)
    evidence = comparison.evidence
    if comparison.rule == 1 or evidence is None:
        return NormalDist().inv_cdf(confidence) * comparison.standard_error
    distance = -lower_shift(evidence, confidence, growth) if lower else upper_shift(evidence, confidence, growth)
    if comparison.measure != "auc":
        return distance
    return distance * few_clusters_factor(evidence.clusters * growth, evidence.effective * growth, confidence)
