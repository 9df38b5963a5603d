"""The statistical power of the gate: which margins a test window can prove, before any model is trained."""

from __future__ import annotations

import math

import numpy as np

from stillhouse.evaluate.bounds import MIN_ROWS_FOR_AUC, bound_shift, few_clusters_factor, shift_without_losses
from stillhouse.records import ScoredUnit

__all__ = ["describe_power", "provable_margin", "rows_needed"]


def provable_margin(
    rows: float,
    clusters: float,
    confidence: float = 0.95,
    *,
    disagreement: float = 0.0,
    rarer: float | None = None,
    span: float = 1.0,
) -> float:
    """The smallest margin that the gate can prove for a challenger as good as the champion.

    If the two never disagree, it is the rule of three: ``ln(1 / (1 − confidence)) / clusters``. Rows on which one of
    them is right and the other wrong increase it. For an AUC the rows of the rarer outcome replace the clusters, and
    Student's t widens the bound for few clusters. For a score with another range than accuracy, all is in proportion.

    >>> round(provable_margin(rows=600, clusters=300), 3)
    0.01

    :param rows: rows with outcomes in the test window.
    :param clusters: the intervals of length `promotion.cluster` that contain them; equal to rows if that is 0s.
    :param confidence: `promotion.confidence`, one-sided.
    :param disagreement: share of the rows on which exactly one of challenger and champion is right, 0 to 1; such rows
        are assumed to be spread over the clusters.
    :param rarer: for an AUC, the rows of the rarer label; None for other measures.
    :param span: the largest minus the smallest score of a row; 1 for accuracy and AUC.
    :returns: in the unit of the measure, at most ``span``; that if there are no rows, or too few for an AUC.
    """
    if rows <= 0 or clusters <= 0:
        return span
    if rarer is not None:
        if min(rarer, clusters) < MIN_ROWS_FOR_AUC:
            return 1.0
        return min(1.0, shift_without_losses(confidence) / rarer * few_clusters_factor(clusters, clusters, confidence))
    half = rows * disagreement / 2
    shift = bound_shift(np.array([-1.0, 1.0]) / rows, np.array([half, half]), 1.0 / min(rows, clusters), confidence)
    return span * min(1.0, -shift)


def rows_needed(
    margin: float, confidence: float = 0.95, *, rows_per_cluster: float = 1.0, span: float = 1.0
) -> int | None:
    """The smallest number of rows with which the gate can prove ``margin`` for a challenger as good as the champion.

    This is the lower limit, for a challenger that never disagrees with the champion. For an AUC it is the number of
    rows of the rarer label.

    >>> rows_needed(0.02)
    151

    :param rows_per_cluster: ≥ 1, average rows in an interval of length `promotion.cluster`.
    :param span: the largest minus the smallest score of a row.
    :returns: None for a margin of 0, which no number of rows proves for an equal challenger.
    """
    if margin <= 0:
        return None
    return math.ceil(math.ceil(span * shift_without_losses(confidence) / margin - 1e-9) * max(1.0, rows_per_cluster))


def describe_power(
    rows: int,
    clusters: int,
    confidence: float = 0.95,
    *,
    rarer: int | None = None,
    span: float = 1.0,
    on: ScoredUnit = "rows",
) -> str:
    """:func:`provable_margin` in a sentence.

    >>> describe_power(336, 168)
    'with 336 rows in 168 clusters the gate can prove no margin below .018 (at 95%)'

    :param rarer: for an AUC, the rows of the rarer label; None for other measures.
    :param span: the largest minus the smallest score of a row.
    :param on: what has a score; ``rows`` is their number.
    """
    margin = provable_margin(rows, clusters, confidence, rarer=rarer, span=span)
    window = f"{rows:,} {on}" + (f" in {clusters:,} clusters" if clusters != rows else "")
    window += f", {rarer:,} of the rarer outcome," if rarer is not None else ""
    if margin >= span:
        return f"with {window} the gate can prove nothing"
    return f"with {window} the gate can prove no margin below {_round_up(margin)} (at {100 * confidence:.4g}%)"


def _round_up(margin: float) -> str:
    """Two significant digits, rounded up so that the text never claims a smaller margin than can be proven."""
    unit = 10.0 ** (math.floor(math.log10(margin)) - 1)
    return f"{math.ceil(margin / unit - 1e-9) * unit:.6f}".rstrip("0").lstrip("0") or "0"
