"""What the gate can prove at all with so many rows, before any model is made."""

from __future__ import annotations

import math

import numpy as np

from stillhouse.evaluate.bounds import FEWEST_FOR_AUC, bound_shift, few_clusters, shift_of_none

__all__ = ["power_sentence", "provable_margin", "rows_needed"]


def provable_margin(
    rows: float, clusters: float, confidence: float = 0.95, *, disagreement: float = 0.0, rarer: float | None = None
) -> float:
    """The smallest margin that a challenger as good as the champion can be proven to keep to.

    Where the two never disagree, it is the rule of three: ``ln(1 / (1 − confidence)) / clusters``. A share of rows on
    which one of them is right and the other wrong makes it larger. For two actions, whose measure is the AUC, the rows
    of the rarer outcome take the place of the clusters, and Student's t stands for few clusters.

    :param rows: rows with outcomes in the test window.
    :param clusters: the stretches of `promotion.cluster` that they lie in; as many as rows where that is 0s.
    :param confidence: `promotion.confidence`, one-sided.
    :param disagreement: share of the rows on which exactly one of challenger and champion is right, 0 to 1; such rows
        are taken to be scattered over the clusters.
    :param rarer: of two actions, the rows of the rarer outcome; None for more than two actions.
    :returns: in the unit of the measure, at most 1; 1 where there are no rows, or too few for an AUC.
    """
    if rows <= 0 or clusters <= 0:
        return 1.0
    if rarer is not None:
        if min(rarer, clusters) < FEWEST_FOR_AUC:
            return 1.0
        return min(1.0, shift_of_none(confidence) / rarer * few_clusters(clusters, clusters, confidence))
    half = rows * disagreement / 2
    shift = bound_shift(np.array([-1.0, 1.0]) / rows, np.array([half, half]), 1.0 / min(rows, clusters), confidence)
    return min(1.0, -shift)


def rows_needed(margin: float, confidence: float = 0.95, *, rows_per_cluster: float = 1.0) -> int | None:
    """The fewest rows with which a challenger as good as the champion can be proven to keep to ``margin``.

    The least of all: those with which a challenger that never disagrees with the champion passes. For two actions
    they are rows of the rarer outcome.

    :param rows_per_cluster: ≥ 1, rows in a stretch of `promotion.cluster`, on average.
    :returns: None for a margin of 0, which no number of rows proves of an equal challenger.
    """
    if margin <= 0:
        return None
    return math.ceil(math.ceil(shift_of_none(confidence) / margin - 1e-9) * max(1.0, rows_per_cluster))


def power_sentence(rows: int, clusters: int, confidence: float = 0.95, *, rarer: int | None = None) -> str:
    """In a sentence: "with 336 rows in 168 clusters the gate can prove no margin below .018 (at 95%)".

    :param rarer: of two actions, the rows of the rarer outcome; None for more than two actions.
    """
    least = provable_margin(rows, clusters, confidence, rarer=rarer)
    given = f"{rows:,} rows" + (f" in {clusters:,} clusters" if clusters != rows else "")
    given += f", {rarer:,} of the rarer outcome," if rarer is not None else ""
    if least >= 1:
        return f"with {given} the gate can prove nothing"
    return f"with {given} the gate can prove no margin below {_rounded_up(least)} (at {100 * confidence:.4g}%)"


def _rounded_up(margin: float) -> str:
    """Two significant digits, so that the margin told is never smaller than the one that can be proven."""
    unit = 10.0 ** (math.floor(math.log10(margin)) - 1)
    return f"{math.ceil(margin / unit - 1e-9) * unit:.6f}".rstrip("0").lstrip("0") or "0"
