"""How a model ages: the noise of its losses, the loss of quality with age, and sudden changes of the world."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from stillhouse.payoff.situation import Curve, Situation

__all__ = ["Change", "estimate_decay", "find_change", "level_noise", "pair_noise", "refresh_interval"]

Array = np.ndarray[Any, Any]

AGE_POWER = 0.75
"""The loss of quality grows with ``age ** AGE_POWER``: between a random walk's root and a steady drift."""

_MEMORY_WEEKS = 30.0  # pairs count less with their age
_PRIOR_DECAY, _PRIOR_WEEKS = 1e-3, 50.0  # as much as so many squared weeks of pairs
_PRIOR_NOISE, _PRIOR_BLOCKS = 0.02, 4
_CLIP = 6.0  # pairs are clipped at so many standard deviations: one block must not decide
_CHANGE_Z = 3.5
_CHANGE_BLOCKS = (1, 2, 4)
_BEFORE_BLOCKS = 4
_LONGEST_CHANGE_WEEKS = 26.0


@dataclass(frozen=True)
class Change:
    """A sudden rise of the loss of models that were trained before it.

    :ivar moment: when it happened (weeks).
    :ivar height: by how much the loss rose and still is higher, ≥ 0.
    """

    moment: float
    height: float


def level_noise(curves: Iterable[Curve]) -> float:
    """Standard deviation of a block's loss around its level, robust: from differences of neighbouring blocks."""
    steps = [np.abs(np.diff(curve.known().losses)) for curve in curves]
    return max(_scale(np.concatenate(steps)) if steps else 0.0, 0.005) if any(map(len, steps)) else 0.05


def pair_noise(situation: Situation) -> float:
    """Standard deviation of a block's difference of two members, shrunk towards a prior."""
    pairs = [curve.gain_over(situation.own).losses for curve in situation.others.values()]
    steps = np.concatenate([np.abs(np.diff(gains)) for gains in pairs if len(gains) > 2] or [np.array([])])
    measured = _scale(steps) if len(steps) else 0.0
    weight = len(steps) / (len(steps) + _PRIOR_BLOCKS)
    return math.sqrt(weight * measured**2 + (1 - weight) * _PRIOR_NOISE**2)


def estimate_decay(situation: Situation, noise: float, change: Change | None) -> float:
    """Loss of quality per week of age ** :data:`AGE_POWER`, ≥ 0, from members of different age on the same blocks.

    A ridge regression through the origin of the difference of two losses on the difference of their ages, newer blocks
    counting more. Differences are clipped, and pairs on either side of a sudden change are left out: what a change
    costs is no decay.
    """
    numerator = denominator = weights = 0.0
    count = 0
    for one, other in combinations(situation.curves.values(), 2):
        older, newer = (one, other) if one.shaped < other.shaped else (other, one)
        if older.shaped == newer.shaped or (change is not None and older.shaped <= change.moment < newer.shaped):
            continue
        gains = newer.gain_over(older)
        kept = np.ones(len(gains.times), bool)
        if change is not None and older.shaped <= change.moment:
            kept = gains.times <= change.moment
        times = gains.times[kept]
        ages = _aged(times - older.shaped) - _aged(times - newer.shaped)
        weight = np.exp(-(situation.now - times) / _MEMORY_WEEKS) * situation.block
        numerator += float((weight * ages * np.clip(gains.losses[kept], -_CLIP * noise, _CLIP * noise)).sum())
        denominator += float((weight * ages**2).sum())
        weights, count = weights + float(weight.sum()), count + len(times)
    if not count:
        return _PRIOR_DECAY
    prior = _PRIOR_WEEKS * weights / count
    return max(0.0, (numerator + prior * _PRIOR_DECAY) / (denominator + prior))


def refresh_interval(price: float, decay: float) -> float:
    """The age at which a training pays, in weeks, if the loss grows with ``decay · age ** AGE_POWER``.

    The classic replacement interval: it minimises price and loss per week, ``(price + ∫ decay · a^p da) / T``. For a
    power of 1 it is √(2 · price / decay).
    """
    power = AGE_POWER
    return float((price * (power + 1) / (max(decay, 1e-6) * power)) ** (1 / (power + 1)))


def find_change(situation: Situation) -> Change | None:
    """The most significant sudden rise of the loss within half a year, of members that were trained before it."""
    noise, times = level_noise(situation.curves.values()), situation.own.times
    best, found = _CHANGE_Z, None
    for block in range(max(1, len(times) - int(_LONGEST_CHANGE_WEEKS / situation.block)), len(times)):
        moment = float(times[block]) - situation.block / 2
        for curve in situation.curves.values():
            if curve.shaped <= moment + 1e-9:
                z = _rise(curve.losses, block, noise)
                if z > best:
                    best, found = z, block
    if found is None:
        return None
    moment = float(times[found]) - situation.block / 2
    heights = [
        _mean(curve.losses[found:], last=_BEFORE_BLOCKS) - _mean(curve.losses[max(0, found - _BEFORE_BLOCKS) : found])
        for curve in situation.curves.values()
        if curve.shaped <= moment + 1e-9
    ]
    finite = [height for height in heights if not math.isnan(height)]
    return Change(moment, max(0.0, min(finite))) if finite else None


def _rise(losses: Array, block: int, noise: float) -> float:
    """Largest standardised rise at ``block``, over some numbers of blocks after it."""
    before = _known(losses[max(0, block - _BEFORE_BLOCKS) : block])
    best = 0.0
    for count in _CHANGE_BLOCKS:
        after = _known(losses[block : block + count])
        if len(before) and len(after) >= min(count, len(losses) - block):
            error = noise * math.sqrt(1 / len(after) + 1 / len(before))
            best = max(best, float(after.mean() - before.mean()) / error)
    return best


def _known(losses: Array) -> Array:
    return losses[~np.isnan(losses)]


def _mean(losses: Array, last: int | None = None) -> float:
    known = _known(losses)
    known = known if last is None else known[-last:]
    return float(known.mean()) if len(known) else math.nan


def _aged(weeks: Array) -> Array:
    powered: Array = np.maximum(weeks, 0.0) ** AGE_POWER
    return powered


def _scale(steps: Array) -> float:
    """Standard deviation of values whose neighbouring differences have these absolute values, by their median."""
    return 1.4826 * float(np.median(steps)) / math.sqrt(2)
