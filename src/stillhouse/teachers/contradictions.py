"""Where teachers contradict each other, slice by slice, and who was right."""

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

__all__ = ["APART", "contradictions"]

Array = np.ndarray[Any, Any]

APART = 0.5
"""Total variation above which two teachers contradict each other though they would choose the same action."""

_Z = 1.959963984540054  # two-sided 95 %


def contradictions(
    config: AgentConfig, window: Window, rows: pd.DataFrame, said: Mapping[str, Array], outcomes: Array
) -> Contradictions:
    """Each pair of teachers, everywhere and in each value of ``promotion.slices`` with ``min_slice_rows`` rows or more.

    :param rows: with ``observed_at`` and the slice columns ``[n]``.
    :param said: float64 ``[n, K]`` by the teacher's name, NaN where it has not spoken.
    :param outcomes: action indices ``[n]``, −1 where unknown.
    :returns: the largest shares first; everywhere before its slices.
    """
    clusters = cluster_ids(rows["observed_at"], config.promotion.cluster)
    found: list[Contradiction] = []
    for pair in combinations(said, 2):
        both = ~(np.isnan(said[pair[0]][:, 0]) | np.isnan(said[pair[1]][:, 0]))
        for name, chosen in _slices(rows, config.promotion.slices):
            inside = both & chosen
            if inside.any() and (not name or inside.sum() >= config.promotion.min_slice_rows):
                p, q = (said[each][inside] for each in pair)
                found.append(_contradiction(pair, name, p, q, outcomes[inside], clusters[inside]))
    found.sort(key=lambda each: (bool(each.slice), -each.share, each.first, each.second, each.slice))
    return Contradictions(window=window, found=tuple(found))


def _slices(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Array]]:
    yield "", np.ones(len(rows), dtype=bool)
    for column in columns:
        for value in sorted(rows[column].dropna().unique()):
            yield f"{column}={value}", (rows[column] == value).to_numpy(dtype=bool)


def _contradiction(
    pair: tuple[str, str], name: str, p: Array, q: Array, outcomes: Array, clusters: Array
) -> Contradiction:
    one, other = p.argmax(axis=1), q.argmax(axis=1)
    apart = (one != other) | (total_variation(p, q) > APART)
    low, high = _interval(apart, clusters)
    known = apart & (outcomes >= 0)
    first = int((known & (one == outcomes) & (other != outcomes)).sum())
    second = int((known & (other == outcomes) & (one != outcomes)).sum())
    return Contradiction(
        first=pair[0],
        second=pair[1],
        slice=name,
        rows=len(p),
        contradicting=int(apart.sum()),
        share=float(apart.mean()),
        low=low,
        high=high,
        known=int(known.sum()),
        first_right=first,
        second_right=second,
        better=_better(pair, np.where(known, (one == outcomes) * 1.0 - (other == outcomes), 0.0), clusters),
    )


def _interval(apart: Array, clusters: Array) -> tuple[float, float]:
    """Wilson's interval at the effective number of rows: as many as would vary as much if they were independent."""
    n, share = len(apart), float(apart.mean())
    variance = clustered_error(apart - share, clusters, small_sample=False) ** 2 / n**2
    effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(len(np.unique(clusters)))
    scale = 1 + _Z**2 / effective
    middle = (share + _Z**2 / (2 * effective)) / scale
    half = _Z / scale * sqrt(share * (1 - share) / effective + _Z**2 / (4 * effective**2))
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def _better(pair: tuple[str, str], lead: Array, clusters: Array) -> str | None:
    """Who was right more often where both differ, if by more than chance (sign test by cluster); ``lead`` in −1…1."""
    if np.count_nonzero(lead) < 10:
        return None
    error = clustered_error(lead, clusters, small_sample=False)
    total = float(lead.sum())
    return None if abs(total) <= _Z * error else pair[0 if total > 0 else 1]
