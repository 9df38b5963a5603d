"""Which rows the teacher is asked about, drawn so that what is seen on them speaks for all rows.

Rows are cut into cells at random, and one row is drawn from each cell: with some probability any of its rows
alike, else the more suspicious ones. Divided by that logged probability (Horvitz & Thompson 1952) a drawn row's loss
has the mean of all rows, however the draw was steered. Cells, and not draws from all rows with replacement, because
no row is then asked about twice, and, where rows are independent, so are the draws: the evidence
(:mod:`stillhouse.drift.evidence`) counts on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Draws", "plan", "scores", "unit_means"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Draws:
    """Rows drawn for an audit, ``[n]`` each, and what each one stands for.

    :ivar rows: int64, position of the drawn row; no row comes twice.
    :ivar unit: int64 0…U−1, ascending, the unit of evidence that the draw belongs to; every unit has one.
    :ivar probability: float64 in (0, 1], with which the draw took this row and not another one of its cell.
    :ivar weight: float64, ``1 / (rows of the cell · probability)``, at most ``1 / uniform_share``: the mean of
        weight · loss over a unit is unbiased for the mean loss of the rows that the unit stands for.
    """

    rows: Array
    unit: Array
    probability: Array
    weight: Array


def plan(scores: Array, strata: Array | None, draws: int, uniform_share: float, seed: int) -> Draws:
    """Draw rows of one step: always the same under the same seed.

    Without ``strata`` each draw is a unit of its own. With them each stratum is one unit, and the draws are shared
    out evenly; if there are more strata than draws, neighbours are joined. Where a stratum has fewer rows than
    draws, each of its rows is taken once, and the draws that are left over go to the others.

    :param scores: float64 ``[N]`` ≥ 0, where to look, in any unit; all 0: everywhere alike.
    :param strata: int ``[N]``, rows with the same number are one piece of evidence; neighbours by number.
    :param draws: how many rows to draw, ≥ 1; with fewer rows, all of them.
    :param uniform_share: probability within (0, 1] that a draw does not heed the scores.
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
    scores = scores / max(scores.max(initial=0.0), np.finfo(np.float64).tiny)  # sums of them stay finite
    unit_of_row = np.zeros(len(scores), dtype=np.int64) if strata is None else _joined(np.asarray(strata), draws)
    order, cell, unit_of_cell = _cells(unit_of_row, draws, generator)
    place, probability = _drawn(scores[order], cell, uniform_share, generator)
    weight = 1.0 / (np.bincount(cell) * probability)
    unit = np.arange(len(place)) if strata is None else unit_of_cell
    return Draws(rows=order[place], unit=unit, probability=probability, weight=weight)


def unit_means(draws: Draws, losses: Array) -> Array:
    """The units of evidence, float64 ``[U]`` ≥ 0, from the drawn rows' losses ``[n]`` in 0…1."""
    weighted = np.bincount(draws.unit, weights=draws.weight * np.asarray(losses, dtype=np.float64))
    means: Array = weighted / np.bincount(draws.unit)
    return means


def scores(probabilities: Array, shift: Array | None = None) -> Array:
    """Where to look, float64 ``[N]`` in 0…1: rows of small margin, and rows where data moved.

    ``1 − margin · (1 − shift)``: how sure the student is counts as far as it has seen such rows before.

    :param probabilities: float ``[N, K]``, the student's; its margin is the largest minus the second.
    :param shift: float ``[N]``, how new the surroundings of a row are: 0 as in the reference, 1 (and above) unseen;
        None: nowhere.
    """
    top = np.partition(np.asarray(probabilities, dtype=np.float64), -2, axis=1)
    margin = top[:, -1] - top[:, -2]
    trust = 1.0 if shift is None else 1.0 - np.clip(np.asarray(shift, dtype=np.float64), 0.0, 1.0)
    found: Array = np.clip(1.0 - margin * trust, 0.0, 1.0)
    return found


def _joined(strata: Array, most: int) -> Array:
    """Strata numbered 0, 1, …, neighbours joined so that there are no more than ``most``."""
    distinct, number = np.unique(strata, return_inverse=True)
    return number if len(distinct) <= most else number * most // len(distinct)


def _cells(unit: Array, draws: int, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Cut each unit's rows at random into as many cells, of the same size ± 1, as it gets draws.

    :return: the rows, cell by cell; the cell of each of these, ascending; the unit of each cell.
    """
    sizes = np.bincount(unit)
    allotted = _allotted(sizes, draws, generator)
    order = np.lexsort((generator.random(len(unit)), unit))
    place = np.arange(len(unit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    within = place * np.repeat(allotted, sizes) // np.repeat(sizes, sizes)
    cell = np.repeat(np.cumsum(allotted) - allotted, sizes) + within
    return order, cell, np.repeat(np.arange(len(sizes)), allotted)


def _allotted(sizes: Array, draws: int, generator: np.random.Generator) -> Array:
    """Draws per unit, as even as possible, none more than the unit has rows; who gets one more is drawn by lot."""
    allotted = np.zeros_like(sizes)
    while (left := draws - allotted.sum()) > 0 and (short := np.flatnonzero(allotted < sizes)).size:
        if left < len(short):
            allotted[generator.choice(short, left, replace=False)] += 1
        else:
            allotted[short] += np.minimum(sizes[short] - allotted[short], left // len(short))
    return allotted


def _drawn(scores: Array, cell: Array, uniform_share: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """The place of one row per cell, and the probability that it, and not another row of its cell, was taken."""
    size, total = np.bincount(cell), np.bincount(cell, weights=scores)
    last = np.cumsum(size) - 1
    steered = np.divide(scores, total[cell], out=1.0 / size[cell], where=total[cell] > 0)
    probability = uniform_share / size[cell] + (1.0 - uniform_share) * steered
    aim = np.arange(len(size)) + generator.random(len(size))  # each cell's probabilities sum to 1
    place = np.clip(np.searchsorted(np.cumsum(probability), aim), last - size + 1, last)
    return place, probability[place]
