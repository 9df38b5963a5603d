"""The loosest confidence threshold at which a promised agreement can be relied on: fixed-sequence testing.

**Hypotheses.** For each level ``t`` of a fixed list: among rows with a confidence of at least ``t`` the student agrees
with the teacher on less than the promised share ``a``. Given their number ``n``, the disagreements among audited rows
(a random sample, asked blindly) are binomial, so the exact test rejects if ``P(Bin(n, 1 − a) ≤ disagreements) ≤ δ``,
which is the same as a lower bound of Clopper and Pearson (1934, "The use of confidence or fiducial limits") of at
least ``a``.

**One error for all.** The levels are tested from strict to loose, each at the full ``δ = 1 − confidence``, until the
first that is not rejected. A false rejection needs that of the first true hypothesis in the order, whose probability is
at most ``δ``, however many levels there are and however they depend on each other (Maurer, Hothorn and Lehmacher 1995,
"Multiple comparisons in drug clinical trials and preclinical assays"; for risks of a model: Angelopoulos, Bates,
Candès, Jordan and Lei 2021, "Learn then test", §2.3). Pointwise bounds at many thresholds have no such guarantee.

**Where the sequence begins.** At the strictest level few rows remain, and one disagreement by chance ends the test;
more audits would not help. So it begins where the student's own confidences say that the test
most probably succeeds: with the mean of ``1 − confidence`` above a level in place of its rate of disagreements, but not
with fewer than a fifth of the rows. Labels are not looked at, and a student that is over- or underconfident only loses
some coverage by it.

**The levels** are the same for every student, equidistant in the logarithm of the odds; no data are used up for them,
and ties or discrete confidences need no special treatment.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import numpy as np

from stillhouse.records.agreement import Promise

__all__ = ["LEVELS", "level_of", "levels_of", "loosest_level", "lower_bound", "rows_lacking", "rows_needed"]

Array = np.ndarray[Any, Any]

_SMALLEST_SHARE = 0.2
"""Of the rows, above the level at which the sequence begins."""

_NEARLY_BEST = 0.99
"""The sequence begins at the strictest level whose predicted probability of success is this share of the best."""


def _make_levels() -> Array:
    log_odds = np.arange(80, -31, -1) / 5
    levels: Array = np.append((1 / (1 + np.exp(-log_odds))).round(9), 0.0)
    return levels


LEVELS = _make_levels()
"""Confidence thresholds from strict to loose, float64 ``[112]``; the last is 0."""

_NEGATED = (-LEVELS).tolist()


def levels_of(confidences: Array) -> Array:
    """Index in :data:`LEVELS` of the strictest level that each confidence reaches, int64 ``[n]``.

    >>> LEVELS[levels_of(np.array([0.5, 0.0]))].tolist()
    [0.5, 0.0]

    :param confidences: the student's largest probabilities, 0…1, ``[n]``.
    """
    index: Array = np.searchsorted(-LEVELS, -np.asarray(confidences, dtype=np.float64), side="left")
    return np.minimum(index, len(LEVELS) - 1)


def level_of(confidence: float) -> int:
    """:func:`levels_of` of a single row."""
    return min(bisect_left(_NEGATED, -confidence), len(_NEGATED) - 1)


def lower_bound(rows: int, disagreements: int, confidence: float) -> float:
    """The exact lower bound of the share of rows that agree (Clopper and Pearson 1934), one-sided; 0 without rows.

    >>> round(lower_bound(149, 0, 0.95), 4), round(lower_bound(148, 0, 0.95), 4)
    (0.9801, 0.98)
    >>> lower_bound(149, 0, 0.95) >= 0.98 > lower_bound(148, 0, 0.95)
    True

    :param rows: audited rows, ≥ 0.
    :param disagreements: those on which the teacher answered otherwise, 0…rows.
    """
    from scipy.special import betaincinv

    if disagreements >= rows:
        return 0.0
    return float(betaincinv(rows - disagreements, disagreements + 1, 1 - confidence))


def rows_needed(promise: Promise, disagreements: int = 0) -> int:
    """The smallest number of audited rows with so many disagreements that proves the promise.

    >>> promise = Promise(agreement=0.98, confidence=0.95)
    >>> rows_needed(promise), rows_needed(promise, 1), rows_needed(promise, 2)
    (149, 236, 313)
    """
    from scipy.special import bdtr

    high = math.ceil((disagreements + 1) / (1 - promise.agreement))
    while bdtr(disagreements, high, 1 - promise.agreement) > 1 - promise.confidence:
        high *= 2
    low = disagreements
    while high - low > 1:
        middle = (low + high) // 2
        if bdtr(disagreements, middle, 1 - promise.agreement) > 1 - promise.confidence:
            low = middle
        else:
            high = middle
    return high


def loosest_level(promise: Promise, rows: Array, disagreements: Array, doubt: Array) -> tuple[int, int] | None:
    """Indices of the loosest level at which the promise is kept with its confidence, and of the first one tested.

    None: it is kept at none.

    >>> rows = np.zeros(len(LEVELS), dtype=np.int64)
    >>> rows[40] = 149  # no row is surer than level 40, and none is less sure
    >>> loosest_level(Promise(agreement=0.98), rows, 0 * rows, 0.0 * rows)
    (111, 40)
    >>> rows[40] = 148
    >>> loosest_level(Promise(agreement=0.98), rows, 0 * rows, 0.0 * rows)

    :param rows: audited rows by level (each counts once, at the strictest level it reaches), int ``[J]``.
    :param disagreements: those on which the teacher answered otherwise, ``[J]``.
    :param doubt: sum of ``1 − confidence`` over these rows, ``[J]``.
    """
    from scipy.special import bdtr

    n, k = np.cumsum(rows), np.cumsum(disagreements)
    begin = _first_level(promise, n, np.cumsum(doubt))
    if begin is None:
        return None
    passed = bdtr(k[begin:].astype(np.float64), n[begin:], 1 - promise.agreement) <= 1 - promise.confidence
    count = len(passed) if passed.all() else int(np.argmin(passed))
    return (begin + count - 1, begin) if count else None


def rows_lacking(promise: Promise, rows: Array, disagreements: Array) -> int:
    """How many more audited rows without a disagreement would allow some level, at the least; 0: one is allowed.

    The rows must reach that level; arguments as :func:`loosest_level`.

    >>> rows = np.zeros(len(LEVELS), dtype=np.int64)
    >>> rows[40] = 100
    >>> rows_lacking(Promise(agreement=0.98), rows, 0 * rows)
    49
    """
    n, k = np.cumsum(rows), np.cumsum(disagreements)
    _, firsts = np.unique(k[::-1], return_index=True)  # of equal k, the loosest level has most rows
    return min(max(0, rows_needed(promise, int(k[::-1][i])) - int(n[::-1][i])) for i in firsts[:50])


def _first_level(promise: Promise, n: Array, doubt: Array) -> int | None:
    """Index of the level at which the sequence begins; None: too few rows at all levels."""
    from scipy.special import bdtr

    enough = np.flatnonzero(n >= max(rows_needed(promise), math.ceil(_SMALLEST_SHARE * n[-1])))
    if not len(enough):
        return None
    allowed = _allowed_disagreements(promise, n[enough])
    predicted = np.clip(doubt[enough] / n[enough], 0.1 * (1 - promise.agreement), 1.0)
    success = bdtr(allowed.astype(np.float64), n[enough], predicted)
    return int(enough[np.argmax(success >= _NEARLY_BEST * success.max())])


def _allowed_disagreements(promise: Promise, n: Array) -> Array:
    """The largest number of disagreements among ``n`` rows that proves the promise, ``[J]``; n ≥ rows_needed."""
    from scipy.stats import binom

    miss, error = 1 - promise.agreement, 1 - promise.confidence
    k = binom.ppf(error, n, miss)
    k = np.where(binom.cdf(k, n, miss) > error, k - 1, k)
    allowed: Array = np.maximum(k, 0).astype(np.int64)
    return allowed
