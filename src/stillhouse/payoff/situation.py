"""What a response is chosen by: the curves of the pool's members, prices, and what is new. Times are in weeks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillhouse.config import Prices

__all__ = ["Curve", "Situation", "Training"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Curve:
    """The losses of one model, block by block, oriented so that less is better.

    >>> curve = Curve(0.0, np.array([0.5, 1.5, 2.5]), np.array([np.nan, 0.4, 0.5]))
    >>> curve.known().losses.tolist(), curve.known().times.tolist()
    ([0.4, 0.5], [1.5, 2.5])

    :ivar shaped: moment after which nothing shaped the model (weeks).
    :ivar times: middle of each block (weeks), increasing, float ``[B]``; all curves of a situation share them.
    :ivar losses: mean loss of the block, float ``[B]``; NaN where the model may not be scored, or without rows.
    """

    shaped: float
    times: Array
    losses: Array

    def known(self) -> Curve:
        """The blocks with a loss."""
        mask = ~np.isnan(self.losses)
        return Curve(self.shaped, self.times[mask], self.losses[mask])

    def gain_over(self, other: Curve) -> Curve:
        """By how much this model's loss is lower than that of ``other``, on the blocks that both have."""
        difference = other.losses - self.losses
        return Curve(max(self.shaped, other.shaped), self.times, difference).known()


@dataclass(frozen=True)
class Training:
    """An earlier training, and what it was predicted to gain per week over the model that it replaced."""

    response: str
    moment: float
    new: str
    replaced: str
    predicted: float


@dataclass(frozen=True)
class Situation:
    """Everything that :func:`stillhouse.payoff.decide.choose_response` looks at.

    :ivar now: moment of the decision (weeks, from any origin).
    :ivar step: time until the next decision (weeks).
    :ivar block: length of a block of the curves (weeks).
    :ivar champion: its name in ``curves``.
    :ivar curves: the members of the pool that may be reused, and the champion.
    :ivar retired: further models, which may not be reused and from whose curves is learned.
    :ivar corrected: the champion as it would be if it had been recalibrated just before each block; None: unknown.
    :ivar uncorrected: the champion without its recalibration; None: it has none.
    :ivar exchange_rate: price of a redistillation, in points of the loss for one week.
    :ivar history: length of what a training would learn from (weeks).
    :ivar trainings: earlier trainings, oldest first.
    :ivar impossible: by response, why it cannot be made now.
    :ivar explore: probability per week of a training that is not predicted to pay.
    """

    now: float
    step: float
    champion: str
    curves: Mapping[str, Curve]
    exchange_rate: float
    block: float
    prices: Prices = field(default_factory=Prices)
    retired: Mapping[str, Curve] = field(default_factory=dict)
    corrected: Curve | None = None
    uncorrected: Curve | None = None
    history: float = 26.0
    trainings: Sequence[Training] = ()
    impossible: Mapping[str, str] = field(default_factory=dict)
    explore: float = 0.0
    measure: str = "log_loss"
    unit: str = "nats"

    @property
    def own(self) -> Curve:
        """The champion's curve."""
        return self.curves[self.champion]

    @property
    def age(self) -> float:
        """Age of what the champion learned from (weeks)."""
        return self.now - self.own.shaped

    @property
    def others(self) -> dict[str, Curve]:
        """The members of the pool but the champion."""
        return {name: curve for name, curve in self.curves.items() if name != self.champion}
