"""Detectors of a change in a stream of errors, as other tools retrain by them: Page–Hinkley and ADWIN.

Both have the default parameters of river 0.26, so that a replay plays what people use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Adwin", "Detector", "PageHinkley"]


class Detector(Protocol):
    """Gets one value after the other, and says when their mean has changed."""

    def update(self, value: float) -> bool:
        """Take the next value; True if a change is detected with it."""


@dataclass
class PageHinkley:
    """The test of Page (1954), "Continuous inspection schemes", §4, for a rise of the mean.

    The sum of the deviations from the running mean, less ``delta`` each, is compared with its smallest value so far; a
    rise by more than ``threshold`` is a change.

    >>> detector = PageHinkley(min_values=1, threshold=2.0)
    >>> [detector.update(value) for value in (0, 0, 0, 1, 1, 1, 1, 1)].index(True)
    6

    :ivar min_values: no change is detected before so many values.
    :ivar delta: deviation from the mean that is tolerated.
    :ivar threshold: in sums of deviations.
    :ivar alpha: what remains of the sum with each value (river's forgetting factor).
    """

    min_values: int = 30
    delta: float = 0.005
    threshold: float = 50.0
    alpha: float = 0.9999
    _count: int = 0
    _mean: float = 0.0
    _sum: float = 0.0
    _least: float = math.inf

    def update(self, value: float) -> bool:
        """Take the next value; True if a change is detected with it."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum = self.alpha * self._sum + value - self._mean - self.delta
        self._least = min(self._least, self._sum)
        return self._count >= self.min_values and self._sum - self._least > self.threshold


@dataclass
class Adwin:
    """The adaptive window of Bifet & Gavaldà (2007), "Learning from time-changing data with adaptive windowing", §3.2.

    The window is kept as an exponential histogram: buckets of 1, 2, 4, … values, at most ``buckets`` of each size.
    Every ``clock`` values each cut between two buckets is tested: the window is cut where the means of its two parts
    differ by more than ε = √(2/m · v · ln(2 ln n / δ)) + 2/(3m) · ln(2 ln n / δ), with the variance v of the n values
    and 1/m = 1/n₀ + 1/n₁. As in river, 4 is taken off both n₀ and n₁, parts of at least 5 values. A detected change
    drops the oldest bucket until no cut is left.

    >>> detector = Adwin()
    >>> changes = [detector.update(value) for value in [0.0] * 200 + [1.0] * 200]
    >>> changes.index(True) < 240, detector.mean > 0.9
    (True, True)

    :ivar delta: bound on the probability of a false cut at each test.
    :ivar clock: values between two tests.
    :ivar buckets: of each size.
    :ivar grace: no test before so many values.
    """

    delta: float = 0.002
    clock: int = 32
    buckets: int = 5
    min_part: int = 5
    grace: int = 10
    _rows: list[list[tuple[float, float]]] = field(default_factory=lambda: [[]])
    """By size 2^i: the sum and the sum of squared deviations of each bucket, oldest first."""
    _updates: int = 0

    @property
    def count(self) -> int:
        """Number of values in the window."""
        return sum(len(row) << size for size, row in enumerate(self._rows))

    @property
    def mean(self) -> float:
        """Mean of the window; NaN if it is empty."""
        total = sum(bucket[0] for row in self._rows for bucket in row)
        return total / self.count if self.count else math.nan

    def update(self, value: float) -> bool:
        """Take the next value; True if the window was cut."""
        self._updates += 1
        self._rows[0].append((float(value), 0.0))
        self._compress()
        changed = False
        if self._updates % self.clock == 0 and self.count > self.grace:
            while self._find_cut():
                changed = True
                self._drop_oldest()
        return changed

    def _compress(self) -> None:
        """Join the two oldest buckets of each size that has too many."""
        for size, row in enumerate(self._rows):
            if len(row) <= self.buckets:
                return
            if size + 1 == len(self._rows):
                self._rows.append([])
            (first, first_spread), (second, second_spread) = row.pop(0), row.pop(0)
            between = (first - second) ** 2 / (2 << size)
            self._rows[size + 1].append((first + second, first_spread + second_spread + between))

    def _drop_oldest(self) -> None:
        self._rows[-1].pop(0)
        while len(self._rows) > 1 and not self._rows[-1]:
            self._rows.pop()

    def _find_cut(self) -> bool:
        """Whether the means differ at some cut."""
        oldest_first = [
            (1 << size, *bucket) for size in reversed(range(len(self._rows))) for bucket in self._rows[size]
        ]
        count = self.count
        if count <= self.grace:
            return False
        variance = _variance(oldest_first)
        confidence = math.log(2 * math.log(count) / self.delta)
        total, older, older_sum = sum(bucket[1] for bucket in oldest_first), 0, 0.0
        for size, value, _ in oldest_first[:-1]:
            older, older_sum = older + size, older_sum + value
            newer = count - older
            if older < self.min_part or newer < self.min_part:
                continue
            inverse = 1 / (older - self.min_part + 1) + 1 / (newer - self.min_part + 1)
            epsilon = math.sqrt(2 * inverse * variance * confidence) + 2 / 3 * inverse * confidence
            if abs(older_sum / older - (total - older_sum) / newer) > epsilon:
                return True
        return False


def _variance(buckets: Sequence[tuple[int, float, float]]) -> float:
    """Variance of the values in buckets of (size, sum, sum of squared deviations)."""
    count = sum(size for size, _, _ in buckets)
    mean = sum(value for _, value, _ in buckets) / count
    spread = sum(deviations + size * (value / size - mean) ** 2 for size, value, deviations in buckets)
    return spread / count
