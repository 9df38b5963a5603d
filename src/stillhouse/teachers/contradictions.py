"""Find where teachers contradict each other, slice by slice, and which of them was right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.records import Contradiction, Contradictions, Window
from stillhouse.stats import cluster_ids, clustered_error, total_variation

__all__ = ["MIN_TOTAL_VARIATION", "find_contradictions"]

Array = np.ndarray[Any, Any]

MIN_TOTAL_VARIATION = 0.5
"""Above this total variation two teachers contradict each other even if both would choose the same action."""

_MIN_DECIDED_ROWS = 10  # rows in which exactly one of the two was right; with fewer none is called better
_NORMAL_QUANTILE_975 = 1.959963984540054  # two-sided 95 %


def find_contradictions(
    config: AgentConfig, window: Window, rows: pd.DataFrame, teacher_probs: Mapping[str, Array], labels: Array
) -> Contradictions:
    """Compare each pair of teachers on all rows, and on each slice of ``promotion.slices`` with enough rows.

    :param rows: with ``observed_at`` and the slice columns, ``[n]``.
    :param teacher_probs: by the teacher's name, float64 ``[n, K]``, NaN if it did not answer a row.
    :param labels: action indices ``[n]``, −1 if unknown.
    :returns: comparisons on all rows first, then by slice; in both, the largest shares of contradicting rows first.
    """
    clusters = cluster_ids(rows["observed_at"], config.promotion.cluster)
    comparisons: list[Contradiction] = []
    for pair in combinations(teacher_probs, 2):
        answered_by_both = ~(np.isnan(teacher_probs[pair[0]][:, 0]) | np.isnan(teacher_probs[pair[1]][:, 0]))
        for name, in_slice in _iterate_slices(rows, config.promotion.slices):
            mask = answered_by_both & in_slice
            if mask.any() and (not name or mask.sum() >= config.promotion.min_slice_rows):
                p, q = (teacher_probs[teacher][mask] for teacher in pair)
                comparisons.append(_compare(pair, name, p, q, labels[mask], clusters[mask]))
    comparisons.sort(key=lambda c: (bool(c.slice), -c.share, c.first, c.second, c.slice))
    return Contradictions(window=window, contradictions=tuple(comparisons))


def _iterate_slices(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Name and mask ``[n]`` of all rows (name '') and of each slice ``column=value``."""
    yield "", np.ones(len(rows), dtype=bool)
    for column in columns:
        for value in sorted(rows[column].dropna().unique()):
            yield f"{column}={value}", (rows[column] == value).to_numpy(dtype=bool)


def _compare(pair: tuple[str, str], name: str, p: Array, q: Array, labels: Array, clusters: Array) -> Contradiction:
    p_action, q_action = p.argmax(axis=1), q.argmax(axis=1)
    contradicts = (p_action != q_action) | (total_variation(p, q) > MIN_TOTAL_VARIATION)
    low, high = _share_interval(contradicts, clusters)
    mask = contradicts & (labels >= 0)
    first_right = int((mask & (p_action == labels) & (q_action != labels)).sum())
    second_right = int((mask & (q_action == labels) & (p_action != labels)).sum())
    lead = np.where(mask, (p_action == labels) * 1.0 - (q_action == labels), 0.0)
    return Contradiction(
        first=pair[0],
        second=pair[1],
        slice=name,
        rows=len(p),
        contradicting=int(contradicts.sum()),
        share=float(contradicts.mean()),
        low=low,
        high=high,
        known=int(mask.sum()),
        first_right=first_right,
        second_right=second_right,
        better=_find_better(pair, lead, clusters),
    )


def _share_interval(contradicts: Array, clusters: Array) -> tuple[float, float]:
    """Wilson's interval (95 %) of the share of contradicting rows, at the effective number of rows.

    The effective number of rows is the number of independent rows whose share would have the same variance.
    """
    n, share = len(contradicts), float(contradicts.mean())
    variance = clustered_error(contradicts - share, clusters, small_sample=False) ** 2 / n**2
    effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(len(np.unique(clusters)))
    scale = 1 + _NORMAL_QUANTILE_975**2 / effective
    middle = (share + _NORMAL_QUANTILE_975**2 / (2 * effective)) / scale
    half = (
        _NORMAL_QUANTILE_975
        / scale
        * sqrt(share * (1 - share) / effective + _NORMAL_QUANTILE_975**2 / (4 * effective**2))
    )
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def _find_better(pair: tuple[str, str], lead: Array, clusters: Array) -> str | None:
    """The teacher that was right more often, if the difference is significant (sign test by cluster, 95 %).

    :param lead: ``[n]``, 1 where only the first was right, −1 where only the second was, else 0.
    """
    if np.count_nonzero(lead) < _MIN_DECIDED_ROWS:
        return None
    error = clustered_error(lead, clusters, small_sample=False)
    total = float(lead.sum())
    return None if abs(total) <= _NORMAL_QUANTILE_975 * error else pair[0 if total > 0 else 1]
