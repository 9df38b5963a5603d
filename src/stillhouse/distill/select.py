"""Selects the rows to query when the budget does not cover all rows.

Most questions go to rows whose answers are most informative, the rest to any row. A row's inclusion probability grows
with its score. There are two scores: the student's margin (Scheffer, Decomain and Wrobel 2001, "Active Hidden Markov
Models for Information Extraction", §3), and the disagreement of a committee (Jensen–Shannon divergence: McCallum and
Nigam 1998, "Employing EM and Pool-Based Active Learning for Text Classification", §3). A share of the questions ignores
the scores, so every row has a positive probability and the answers can be reweighted to represent all rows (Horvitz and
Thompson 1952). Diversity comes from the sampling design: rows are ordered so that neighbours are similar, and drawn
systematically along that order, so each region gets about as many questions as its probabilities sum to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Selection",
    "combine_scores",
    "committee_divergence",
    "draw_rows",
    "inclusion_probabilities",
    "margin_scores",
    "plan_questions",
    "question_scores",
    "row_coordinates",
    "spatial_order",
]

Array = np.ndarray[Any, Any]

MAX_LEAF_ROWS = 4  # rows whose relative order is random
MAX_AXES = 16  # principal axes that similarity is measured on
MAX_PCA_ROWS = 4096  # rows that the axes are computed from
MIN_PROBABILITY = 1e-3  # of a student, for the logarithm


@dataclass(frozen=True)
class Selection:
    """Selected rows, and the inclusion probability of every row.

    :ivar rows: int64 ``[m]``, ascending positions of the selected rows.
    :ivar probability: float64 ``[N]`` in 0…1, of every row; they sum to m. It is 0 only where nothing is drawn.
    """

    rows: Array
    probability: Array


def draw_rows(
    size: int,
    *,
    scores: Array | None = None,
    coordinates: Array | None = None,
    rows: int | None = None,
    uniform_share: float = 0.25,
    seed: int = 0,
) -> Selection:
    """Draw ``size`` rows; the same seed gives the same rows.

    :param scores: how informative an answer is, float ``[N]`` ≥ 0, in any unit; None: all rows alike.
    :param coordinates: float ``[N, D]``; nearby rows are similar, and the selection is spread over all regions. None:
        spread over the order of the rows (over time, for rows in order of time).
    :param rows: N, required where neither of the two is given.
    :param uniform_share: share of the selection that ignores the scores, in (0, 1]; a row's Horvitz–Thompson weight is
        at most ``N / (uniform_share · size)``.
    :raises ValueError: if an argument is out of its range.

    >>> draw_rows(3, rows=9, seed=1).rows.tolist()
    [1, 4, 7]
    """
    lengths = [len(values) for values in (scores, coordinates) if values is not None]
    count = lengths[0] if lengths else rows
    if count is None or any(length != count for length in lengths):
        raise ValueError(f"scores and coordinates must be of the same rows, and are of {lengths}")
    probability = inclusion_probabilities(np.zeros(count) if scores is None else scores, size, uniform_share)
    generator = np.random.default_rng(seed)
    order = np.arange(count) if coordinates is None else spatial_order(coordinates, generator)
    drawn = _systematic_sample(probability[order], generator)
    return Selection(rows=np.sort(order[drawn]), probability=probability)


def plan_questions(
    size: int,
    *,
    has_teacher_probs: Array,
    is_validation: Array,
    scores: Array | None = None,
    coordinates: Array | None = None,
    uniform_share: float = 0.25,
    seed: int = 0,
) -> Selection:
    """Select ``size`` rows that are to have a teacher's answer, including those that have one.

    An answered row costs nothing, so it is always selected. Validation rows are sampled uniformly, not by their scores;
    otherwise the validation loss would be biased.

    :param has_teacher_probs: bool ``[N]``, rows that the teacher has answered already (for an audit, say).
    :param is_validation: bool ``[N]``, rows that no student is trained on.
    :param scores: as in :func:`draw_rows`; ``coordinates`` and ``uniform_share`` too.
    :return: positions of all selected rows; answered ones have probability 1.
    """
    probability = np.ones(len(has_teacher_probs))
    selected = np.asarray(has_teacher_probs, dtype=bool).copy()
    validation_size = round(size * float(np.mean(is_validation))) if len(has_teacher_probs) else 0
    parts = ((is_validation, validation_size, None), (~is_validation, size - validation_size, scores))
    for part, part_size, part_scores in parts:
        candidates = np.flatnonzero(part & ~has_teacher_probs)
        drawn = draw_rows(
            min(len(candidates), max(0, part_size - int(np.sum(part & has_teacher_probs)))),
            scores=None if part_scores is None else part_scores[candidates],
            coordinates=None if coordinates is None else coordinates[candidates],
            rows=len(candidates),
            uniform_share=uniform_share,
            seed=seed,
        )
        selected[candidates[drawn.rows]] = True
        probability[candidates] = drawn.probability
    return Selection(rows=np.flatnonzero(selected), probability=probability)


def inclusion_probabilities(scores: Array, size: int, uniform_share: float) -> Array:
    """Inclusion probabilities ``[N]`` that sum to ``size`` (or to N, if there are no more rows).

    ``min(1, a · (u / N + (1 − u) · s / Σs))``, where ``a`` makes the sum right: rows that would get more than 1 are
    certain, and the surplus goes to the others (Särndal, Swensson and Wretman 1992, "Model Assisted Survey Sampling",
    §3.6.2).

    :param scores: float ``[N]`` ≥ 0 and finite.
    :raises ValueError: if an argument is out of its range.

    >>> inclusion_probabilities(np.array([3.0, 1.0]), size=1, uniform_share=0.5).tolist()
    [0.625, 0.375]
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
    relative_scores = scores / total if total > 0 else np.full(count, 1 / count)
    share = uniform_share / count + (1 - uniform_share) * relative_scores
    certain = np.zeros(count, dtype=bool)
    while True:
        factor = (size - certain.sum()) / share[~certain].sum()
        above_one = ~certain & (factor * share >= 1)
        if not above_one.any():
            return np.where(certain, 1.0, factor * share)
        certain |= above_one


def margin_scores(probs: Array) -> Array:
    """1 − (largest − second largest probability) of each row, float ``[n]`` in 0…1: 1 where the two are equal.

    :param probs: the student's, ``[n, K]``.

    >>> margin_scores(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    top = np.partition(np.asarray(probs, dtype=np.float64), -2, axis=1)
    scores: Array = np.clip(1.0 - (top[:, -1] - top[:, -2]), 0.0, 1.0)
    return scores


def committee_divergence(probs_by_member: Sequence[Array]) -> Array:
    """Jensen–Shannon divergence of M members, over its largest possible value, float ``[n]`` in 0…1.

    :param probs_by_member: ``[n, K]`` of each member; with fewer than two the divergence is 0.
    """
    members = np.stack([np.asarray(probs, dtype=np.float64) for probs in probs_by_member])
    if len(members) < 2:
        return np.zeros(members.shape[1])
    divergence = _entropy(members.mean(axis=0)) - _entropy(members).mean(axis=0)
    scores: Array = np.clip(divergence / np.log(min(len(members), members.shape[2])), 0.0, 1.0)
    return scores


def question_scores(criteria: Sequence[str], probs_by_student: Sequence[Array]) -> Array | None:
    """How informative an answer would be, float ``[n]``; None: all rows alike.

    :param criteria: of ``margin``, that of the newest student, and ``committee``, the divergence of all students.
    :param probs_by_student: ``[n, K]`` of each student, the newest first. One with other actions is left out.
    """
    if not probs_by_student:
        return None
    newest = probs_by_student[0]
    scores = [margin_scores(newest)] if "margin" in criteria else []
    if "committee" in criteria:
        scores.append(committee_divergence([probs for probs in probs_by_student if probs.shape == newest.shape]))
    return combine_scores(scores)


def combine_scores(scores: Sequence[Array]) -> Array | None:
    """The mean of scores ``[n]``, each divided by its own mean first; one that is 0 everywhere is left out."""
    means = [(values, float(np.mean(values))) for values in scores]
    scaled = [values / mean for values, mean in means if mean > 0]
    return np.mean(scaled, axis=0) if scaled else None


def row_coordinates(numbers: Array | None = None, probs: Array | None = None) -> Array | None:
    """Coordinates that measure the similarity of rows, float ``[n, D]``: standardised numbers and log-probabilities.

    A missing number is replaced by the mean. None if nothing is given.

    :param numbers: float ``[n, F]``.
    :param probs: the student's, ``[n, K]``.
    """
    parts = []
    if numbers is not None and numbers.shape[1]:
        numbers = np.asarray(numbers, dtype=np.float64)
        finite = np.ma.masked_invalid(numbers)
        mean, deviation = finite.mean(axis=0).filled(0.0), finite.std(axis=0).filled(0.0)
        parts.append(np.nan_to_num((numbers - mean) / np.where(deviation > 0, deviation, 1.0), posinf=0.0, neginf=0.0))
    if probs is not None:
        parts.append(np.log(np.maximum(probs, MIN_PROBABILITY)))
    return np.hstack(parts) if parts else None


def spatial_order(coordinates: Array, generator: np.random.Generator) -> Array:
    """An order of the rows, int64 ``[N]``, in which neighbours are similar.

    The rows are halved at the median of the principal axis with the largest variance, the halves again, and so on;
    which half comes first is random (as in Stevens and Olsen 2004, "Spatially Balanced Sampling of Natural Resources",
    §3).

    :param coordinates: float ``[N, D]``.
    """
    points = _principal_components(np.asarray(coordinates, dtype=np.float64), generator)
    leaves: list[Array] = []
    stack = [generator.permutation(len(points))]
    while stack:
        rows = stack.pop()
        if len(rows) <= MAX_LEAF_ROWS:
            leaves.append(rows)
            continue
        part = points[rows]
        values = part[:, np.argmax(part.var(axis=0))]
        cut = np.argpartition(values, len(rows) // 2)
        halves = [rows[cut[: len(rows) // 2]], rows[cut[len(rows) // 2 :]]]
        stack += halves if generator.random() < 0.5 else halves[::-1]
    return np.concatenate(leaves) if leaves else np.empty(0, dtype=np.int64)


def _principal_components(points: Array, generator: np.random.Generator) -> Array:
    """Coordinates on at most :data:`MAX_AXES` principal axes, ``[N, ≤ 16]``."""
    if points.shape[1] <= 1 or len(points) < 2:
        return points
    few = len(points) <= MAX_PCA_ROWS
    sample = points if few else points[generator.choice(len(points), MAX_PCA_ROWS, replace=False)]
    mean = sample.mean(axis=0)
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))
    components: Array = (points - mean) @ axes[:, : -MAX_AXES - 1 : -1]
    return components


def _systematic_sample(probability: Array, generator: np.random.Generator) -> Array:
    """Positions drawn with these inclusion probabilities, as many as they sum to (Madow 1949; ± 1 by rounding)."""
    total = round(float(probability.sum()))
    if total == 0:
        return np.empty(0, dtype=np.int64)
    cumulative = np.cumsum(probability)
    cumulative *= total / cumulative[-1]  # ends at a whole number, so the size does not depend on the random start
    passed = np.floor(np.concatenate([[0.0], cumulative]) - generator.random())
    return np.flatnonzero(np.diff(passed) > 0)


def _entropy(probs: Array) -> Array:
    """In nats, over the last axis."""
    positive = np.maximum(probs, np.finfo(np.float64).tiny)
    entropy: Array = -(probs * np.log(positive)).sum(axis=-1)
    return entropy
