"""Audits: draw the rows that the teacher is asked about, so that their mean loss is unbiased for all rows.

The rows are divided into cells at random, and one row is drawn from each cell: with some probability uniformly,
otherwise in proportion to a score. Divided by its logged probability (Horvitz & Thompson 1952), the loss of a drawn row
has the mean of all rows, whatever the scores were. Drawing from cells, and not from all rows with replacement, has two
advantages: no row is asked about twice, and if the rows are independent, so are the draws, which the evidence
(:mod:`stillhouse.drift.evidence`) relies on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Draws", "audit_scores", "cluster_means", "draw_rows"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Draws:
    """Rows drawn for an audit, and the weight of each: arrays of length ``[n]``.

    :ivar rows: int64, position of the drawn row; no row occurs twice.
    :ivar cluster_ids: int64 0…U−1, ascending, the cluster of the draw; every cluster has a draw. Each cluster is one
        bet of the evidence, on its weighted mean loss.
    :ivar probability: float64 in (0, 1], the probability that the draw took this row of its cell.
    :ivar weight: float64, ``1 / (rows of the cell · probability)``, at most ``1 / uniform_share``: the mean of
        weight · loss over a cluster is unbiased for the mean loss of the rows that the cluster represents.
    """

    rows: Array
    cluster_ids: Array
    probability: Array
    weight: Array


def draw_rows(scores: Array, strata: Array | None, draws: int, uniform_share: float, seed: int) -> Draws:
    """Draw rows of one step; the same seed gives the same draws.

    Without ``strata`` each draw is a cluster of its own. With them each stratum is one cluster, and the draws are
    distributed evenly among the strata; if there are more strata than draws, neighbouring strata are merged. If a
    stratum has fewer rows than its draws, each of its rows is taken once, and the other strata get the remaining draws.

    >>> draws = draw_rows(np.ones(100), None, draws=10, uniform_share=0.5, seed=0)
    >>> len(draws.rows), draws.weight.tolist() == [1.0] * 10
    (10, True)

    :param scores: float64 ``[N]`` ≥ 0 in any unit, rows with a higher score are drawn more often; all 0: uniformly.
    :param strata: int ``[N]``; the order of the numbers says which strata are neighbours.
    :param draws: number of draws, ≥ 1; if there are fewer rows, all are taken.
    :param uniform_share: probability within (0, 1] that a draw ignores the scores.
    :raises ValueError: if an argument is out of its range.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.all(np.isfinite(scores) & (scores >= 0)):
        raise ValueError("scores: must be finite and not negative")
    if draws < 1:
        raise ValueError(f"draws: must be at least 1, not {draws}")
    if not 0 < uniform_share <= 1:
        raise ValueError(f"uniform_share: must be more than 0 and at most 1, not {uniform_share}")

    generator = np.random.default_rng(seed)
    scores = scores / max(scores.max(initial=0.0), np.finfo(np.float64).tiny)  # keeps their sums finite
    cluster_of_row = np.zeros(len(scores), np.int64) if strata is None else _merge_strata(np.asarray(strata), draws)
    order, cells, cluster_of_cell = _divide_into_cells(cluster_of_row, draws, generator)
    index, probability = _draw_from_cells(scores[order], cells, uniform_share, generator)
    weight = 1.0 / (np.bincount(cells) * probability)
    cluster_ids = np.arange(len(index)) if strata is None else cluster_of_cell
    return Draws(rows=order[index], cluster_ids=cluster_ids, probability=probability, weight=weight)


def cluster_means(draws: Draws, losses: Array) -> Array:
    """The weighted mean loss of each cluster, float64 ``[U]`` ≥ 0, from the losses ``[n]`` in 0…1 of the drawn rows."""
    weighted = np.bincount(draws.cluster_ids, weights=draws.weight * np.asarray(losses, dtype=np.float64))
    means: Array = weighted / np.bincount(draws.cluster_ids)
    return means


def audit_scores(probs: Array, shift: Array | None = None) -> Array:
    """Scores for :func:`draw_rows`, float64 ``[N]`` in 0…1: high where the student's margin is small or data shifted.

    ``1 − margin · (1 − shift)``: the student's certainty counts only as far as it has seen such rows before.

    >>> audit_scores(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]

    :param probs: float ``[N, K]``, the student's probabilities; the margin is the largest minus the second largest.
    :param shift: float ``[N]``, how new the region of a row is: 0 as in the reference, 1 (and above) never seen; None:
        0 for all rows.
    """
    top_two = np.partition(np.asarray(probs, dtype=np.float64), -2, axis=1)
    margin = top_two[:, -1] - top_two[:, -2]
    trust = 1.0 if shift is None else 1.0 - np.clip(np.asarray(shift, dtype=np.float64), 0.0, 1.0)
    scores: Array = np.clip(1.0 - margin * trust, 0.0, 1.0)
    return scores


def _merge_strata(strata: Array, max_strata: int) -> Array:
    """The stratum of each row, numbered 0, 1, …; neighbours are merged so that at most ``max_strata`` remain."""
    distinct, number = np.unique(strata, return_inverse=True)
    return number if len(distinct) <= max_strata else number * max_strata // len(distinct)


def _divide_into_cells(cluster_of_row: Array, draws: int, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Divide the rows of each cluster at random into cells of equal size (± 1), one cell per draw.

    :return: the rows ordered by cell; the cell of each of these, ascending; the cluster of each cell.
    """
    sizes = np.bincount(cluster_of_row)
    draws_per_cluster = _allocate_draws(sizes, draws, generator)
    order = np.lexsort((generator.random(len(cluster_of_row)), cluster_of_row))
    rank = np.arange(len(cluster_of_row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    cell_in_cluster = rank * np.repeat(draws_per_cluster, sizes) // np.repeat(sizes, sizes)
    cells = np.repeat(np.cumsum(draws_per_cluster) - draws_per_cluster, sizes) + cell_in_cluster
    return order, cells, np.repeat(np.arange(len(sizes)), draws_per_cluster)


def _allocate_draws(sizes: Array, draws: int, generator: np.random.Generator) -> Array:
    """Draws per cluster: as even as possible, at most its rows; the remainder goes to clusters chosen at random."""
    allocated = np.zeros_like(sizes)
    while (remaining := draws - allocated.sum()) > 0 and (not_full := np.flatnonzero(allocated < sizes)).size:
        if remaining < len(not_full):
            allocated[generator.choice(not_full, remaining, replace=False)] += 1
        else:
            allocated[not_full] += np.minimum(sizes[not_full] - allocated[not_full], remaining // len(not_full))
    return allocated


def _draw_from_cells(
    scores: Array, cells: Array, uniform_share: float, generator: np.random.Generator
) -> tuple[Array, Array]:
    """The index of one row per cell, and the probability with which this row of the cell was drawn."""
    size, total = np.bincount(cells), np.bincount(cells, weights=scores)
    last = np.cumsum(size) - 1
    by_score = np.divide(scores, total[cells], out=1.0 / size[cells], where=total[cells] > 0)
    probability = uniform_share / size[cells] + (1.0 - uniform_share) * by_score
    target = np.arange(len(size)) + generator.random(len(size))  # the probabilities of each cell sum to 1
    index = np.clip(np.searchsorted(np.cumsum(probability), target), last - size + 1, last)
    return index, probability[index]
