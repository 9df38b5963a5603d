"""Which rows a teacher is asked about when it cannot be asked about all.

Mostly those where an answer teaches most, and some anywhere.

A row's inclusion probability grows with its scores, of which there are two: the student's margin (Scheffer, Decomain
and Wrobel 2001, "Active Hidden Markov Models for Information Extraction", §3), and how far a committee is apart
(Jensen–Shannon divergence: McCallum and Nigam 1998, "Employing EM and Pool-Based Active Learning for Text
Classification", §3). A share of the questions heeds neither, so that no row is left out for certain, and what was
asked can be weighted back to all rows (Horvitz and Thompson 1952). Diversity comes from the design: rows are put in an
order in which neighbours are alike, and drawn systematically along it, so that no corner gets many more questions than
its probabilities add up to, or many fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Selection", "combined", "committee", "inclusion", "margin", "plan", "scores", "select", "space", "spread"]

Array = np.ndarray[Any, Any]

_LEAF = 4  # rows whose order among themselves is left to chance
_AXES = 16  # principal axes along which rows are told apart
_FITTED = 4096  # rows from which those axes are found
_FLOOR = 1e-3  # probabilities below it are alike in a student's answers


@dataclass(frozen=True)
class Selection:
    """Rows to ask about, and with what probability each row could have been one of them.

    :ivar rows: int64 ``[m]``, ascending positions of the selected rows.
    :ivar probability: float64 ``[N]`` in 0…1, of every row; they add up to m. It is 0 only where nothing is drawn.
    """

    rows: Array
    probability: Array


def select(
    size: int,
    *,
    scores: Array | None = None,
    alike: Array | None = None,
    rows: int | None = None,
    uniform_share: float = 0.25,
    seed: int = 0,
) -> Selection:
    """Draw ``size`` of the rows, always the same under the same seed.

    :param scores: float ``[N]`` ≥ 0, where an answer teaches most, in any unit; None: everywhere alike.
    :param alike: float ``[N, D]``, rows near one another are alike, and questions are spread over all regions; None:
        over the rows in the order that they come in (over time, for rows in time's order).
    :param rows: N, needed where there is neither of the two.
    :param uniform_share: share of the questions within (0, 1] that does not heed the scores; a row's weight is at most
        ``N / (uniform_share · size)``.
    :raises ValueError: if an argument is out of its range.
    """
    given = [len(each) for each in (scores, alike) if each is not None]
    count = given[0] if given else rows
    if count is None or any(each != count for each in given):
        raise ValueError(f"scores and alike must speak of the same rows, not {given}")
    probability = inclusion(np.zeros(count) if scores is None else scores, size, uniform_share)
    generator = np.random.default_rng(seed)
    order = np.arange(count) if alike is None else spread(alike, generator)
    return Selection(rows=np.sort(order[_systematic(probability[order], generator)]), probability=probability)


def plan(
    size: int,
    *,
    known: Array,
    kept_back: Array,
    scores: Array | None = None,
    alike: Array | None = None,
    uniform_share: float = 0.25,
    seed: int = 0,
) -> Selection:
    """Draw the rows that a teacher is to have spoken about: ``size`` of them, those that it has spoken about included.

    A row that is known costs nothing: it belongs to the selection for certain. Rows kept back to judge by are drawn
    evenly, whatever their scores: a yardstick made of unsure rows would be another one.

    :param known: bool ``[N]``, about which rows the teacher has spoken already (an audit's, say).
    :param kept_back: bool ``[N]``, rows that no student learns from.
    :param scores: as in :func:`select`; ``alike`` and ``uniform_share`` too.
    :return: positions of all selected rows, known ones included, with probability 1.
    """
    probability = np.ones(len(known))
    chosen = np.asarray(known, dtype=bool).copy()
    judged = round(size * float(np.mean(kept_back))) if len(known) else 0
    for group, wanted, heeds in ((kept_back, judged, False), (~kept_back, size - judged, True)):
        new = np.flatnonzero(group & ~known)
        drawn = select(
            min(len(new), max(0, wanted - int(np.sum(group & known)))),
            scores=scores[new] if heeds and scores is not None else None,
            alike=None if alike is None else alike[new],
            rows=len(new),
            uniform_share=uniform_share,
            seed=seed,
        )
        chosen[new[drawn.rows]] = True
        probability[new] = drawn.probability
    return Selection(rows=np.flatnonzero(chosen), probability=probability)


def inclusion(scores: Array, size: int, uniform_share: float) -> Array:
    """Inclusion probabilities ``[N]`` that add up to ``size`` (or to N, if there are no more rows).

    ``min(1, a · (u / N + (1 − u) · s / Σs))`` with the ``a`` that makes it so: rows that would get more than 1 are
    asked about for certain, and what they leave over goes to the others (Särndal, Swensson and Wretman 1992, "Model
    Assisted Survey Sampling", §3.6.2).

    :param scores: float ``[N]`` ≥ 0 and finite.
    :raises ValueError: if an argument is out of its range.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.all(np.isfinite(scores) & (scores >= 0)):
        raise ValueError("scores: must be finite and not negative")
    if size < 0:
        raise ValueError(f"size: must be at least 0, not {size}")
    if not 0 < uniform_share <= 1:
        raise ValueError(f"uniform_share: must be more than 0 and at most 1, not {uniform_share}")
    count = len(scores)
    if size >= count:
        return np.ones(count)
    total = scores.sum()
    steered = scores / total if total > 0 else np.full(count, 1 / count)
    share = uniform_share / count + (1 - uniform_share) * steered
    certain = np.zeros(count, dtype=bool)
    while True:
        factor = (size - certain.sum()) / share[~certain].sum()
        more = ~certain & (factor * share >= 1)
        if not more.any():
            return np.where(certain, 1.0, factor * share)
        certain |= more


def margin(probabilities: Array) -> Array:
    """1 − (largest − second) of each row, float ``[n]`` in 0…1: 1 where the student cannot tell.

    :param probabilities: the student's, ``[n, K]``.
    """
    top = np.partition(np.asarray(probabilities, dtype=np.float64), -2, axis=1)
    found: Array = np.clip(1.0 - (top[:, -1] - top[:, -2]), 0.0, 1.0)
    return found


def committee(said: Sequence[Array]) -> Array:
    """How far M members are apart, float ``[n]`` in 0…1: Jensen–Shannon divergence over the most that M can reach.

    :param said: probabilities ``[n, K]`` of each member; fewer than two are of one mind.
    """
    members = np.stack([np.asarray(each, dtype=np.float64) for each in said])
    if len(members) < 2:
        return np.zeros(members.shape[1])
    apart = _entropy(members.mean(axis=0)) - _entropy(members).mean(axis=0)
    found: Array = np.clip(apart / np.log(min(len(members), members.shape[2])), 0.0, 1.0)
    return found


def scores(by: Sequence[str], said: Sequence[Array]) -> Array | None:
    """Where to ask, float ``[n]``: by ``margin`` of the first student, by ``committee`` of all; None: everywhere alike.

    :param said: probabilities ``[n, K]`` of each student, the newest first. One that knew other actions has no say.
    """
    if not said:
        return None
    found = [margin(said[0])] if "margin" in by else []
    if "committee" in by:
        found.append(committee([each for each in said if each.shape == said[0].shape]))
    return combined(found)


def combined(scores: Sequence[Array]) -> Array | None:
    """The mean of scores ``[n]``, each brought to a mean of 1 first; one that is 0 everywhere says nothing."""
    means = [(each, float(np.mean(each))) for each in scores]
    telling = [each / mean for each, mean in means if mean > 0]
    return np.mean(telling, axis=0) if telling else None


def space(numbers: Array | None = None, probabilities: Array | None = None) -> Array | None:
    """Where rows of a table lie, float ``[n, D]``: standardised numbers beside what the student says about them.

    A missing number is put in the middle. None if nothing is given.

    :param numbers: float ``[n, F]``.
    :param probabilities: the student's, ``[n, K]``; their logarithms are taken.
    """
    parts = []
    if numbers is not None and numbers.shape[1]:
        numbers = np.asarray(numbers, dtype=np.float64)
        known = np.ma.masked_invalid(numbers)
        centre, width = known.mean(axis=0).filled(0.0), known.std(axis=0).filled(0.0)
        parts.append(np.nan_to_num((numbers - centre) / np.where(width > 0, width, 1.0), posinf=0.0, neginf=0.0))
    if probabilities is not None:
        parts.append(np.log(np.maximum(probabilities, _FLOOR)))
    return np.hstack(parts) if parts else None


def spread(alike: Array, generator: np.random.Generator) -> Array:
    """An order of the rows, int64 ``[N]``, in which neighbours are alike.

    The rows are halved at the median of the principal axis on which they differ most, the halves again, and so on;
    which half comes first is left to chance (as in Stevens and Olsen 2004, "Spatially Balanced Sampling of Natural
    Resources", §3).

    :param alike: float ``[N, D]``.
    """
    places = _principal(np.asarray(alike, dtype=np.float64), generator)
    ordered: list[Array] = []
    waiting = [generator.permutation(len(places))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= _LEAF:
            ordered.append(rows)
            continue
        here = places[rows]
        along = here[:, np.argmax(here.var(axis=0))]
        cut = np.argpartition(along, len(rows) // 2)
        halves = [rows[cut[: len(rows) // 2]], rows[cut[len(rows) // 2 :]]]
        waiting += halves if generator.random() < 0.5 else halves[::-1]
    return np.concatenate(ordered) if ordered else np.empty(0, dtype=np.int64)


def _principal(rows: Array, generator: np.random.Generator) -> Array:
    """Coordinates on at most sixteen principal axes, ``[N, ≤ 16]``."""
    if rows.shape[1] <= 1 or len(rows) < 2:
        return rows
    some = rows if len(rows) <= _FITTED else rows[generator.choice(len(rows), _FITTED, replace=False)]
    centre = some.mean(axis=0)
    _, axes = np.linalg.eigh((some - centre).T @ (some - centre))
    found: Array = (rows - centre) @ axes[:, : -_AXES - 1 : -1]
    return found


def _systematic(probability: Array, generator: np.random.Generator) -> Array:
    """Places drawn with these inclusion probabilities, as many as they add up to (Madow 1949; ± 1 by rounding)."""
    total = round(float(probability.sum()))
    if total == 0:
        return np.empty(0, dtype=np.int64)
    reached = np.cumsum(probability)
    reached *= total / reached[-1]  # exactly whole, so that the size does not hang on the start
    passed = np.floor(np.concatenate([[0.0], reached]) - generator.random())
    return np.flatnonzero(np.diff(passed) > 0)


def _entropy(probabilities: Array) -> Array:
    """In nats, over the last axis."""
    safe = np.maximum(probabilities, np.finfo(np.float64).tiny)
    found: Array = -(probabilities * np.log(safe)).sum(axis=-1)
    return found
