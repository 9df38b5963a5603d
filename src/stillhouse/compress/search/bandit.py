"""The bandit that chooses the kind of structural step to try next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

__all__ = ["Arm", "choose_arm"]

_FIRST_RATIO, _MIN_RATIO = 0.5, 0.1  # of a step: the first that is tried, and the smallest
_EXPLORATION = 0.5  # weight of UCB1's exploration term


@dataclass
class Arm:
    """One kind of structural step, with the results of its pulls so far.

    :param method: the step's method.
    :param promise: share of parameters and operations saved per change of the output, higher is better.
    :param ratio: of the next step of this kind.
    :param gained: hypervolume gained by all its pulls.
    :param seconds: that all its pulls took.
    """

    method: str
    promise: float
    ratio: float = _FIRST_RATIO
    pulls: int = 0
    gained: float = 0.0
    seconds: float = 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether its ratio is too small for another pull."""
        return self.ratio < _MIN_RATIO

    def score(self, pulls: int, best_rate: float) -> tuple[float, float]:
        """UCB1 on the gain per second, relative to the best rate; arms never pulled come first, by promise.

        Example:
            >>> arms = [Arm("a", 1.0, pulls=1, gained=0.2, seconds=1.0), Arm("b", 2.0), Arm("c", 3.0)]
            >>> max(arms, key=lambda arm: arm.score(pulls=2, best_rate=0.2)).method
            'c'

        :param pulls: of all arms together.
        :param best_rate: highest gain per second of an arm.
        """
        if not self.pulls:
            return inf, self.promise
        rate = self.gained / max(self.seconds, 1e-9) / best_rate
        return rate + _EXPLORATION * sqrt(log(pulls) / self.pulls), self.promise


def choose_arm(arms: Sequence[Arm], seconds_left: float) -> Arm | None:
    """The arm to pull; None if all are exhausted, or a pull of each takes longer than the time that is left."""
    available = [arm for arm in arms if not arm.is_exhausted and arm.seconds / max(1, arm.pulls) <= seconds_left]
    rates = [arm.gained / max(arm.seconds, 1e-9) for arm in available if arm.pulls]
    best_rate, pulls = max([*rates, 1e-9]), max(2, sum(arm.pulls for arm in arms))
    return max(available, key=lambda arm: arm.score(pulls, best_rate), default=None)
