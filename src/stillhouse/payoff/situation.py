"""What a response is chosen by: the curves of the pool's members, prices, and what is new. Times are in weeks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillhouse.config import Prices

__all__ = ["Curve", "Situation"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Curve:
    """The losses of one model, block by block; less is better.

    :ivar shaped: moment after which nothing shaped the model (weeks).
    :ivar times: middle of each block (weeks), increasing, float ``[B]``.
    :ivar losses: mean loss of the block, float ``[B]``; NaN where it may not be scored or has no rows.
    :ivar rows: labelled rows of the block, ``[B]``.
    """

    shaped: float
    times: Array
    losses: Array
    rows: Array

    def newer_than(self, moment: float) -> Curve:
        """The blocks whose middle is later than ``moment``."""
        mask = self.times > moment
        return Curve(self.shaped, self.times[mask], self.losses[mask], self.rows[mask])


@dataclass(frozen=True)
class Situation:
    """Everything that :func:`stillhouse.payoff.decide.choose_response` looks at.

    :ivar now: moment of the decision (weeks, from any origin).
    :ivar step: time until the next decision (weeks).
    :ivar champion: its name in ``curves``.
    :ivar curves: the members of the pool that may be reused, and the champion; all on the same blocks.
    :ivar corrected: the champion as it would be if it had been recalibrated just before each block; None: unknown.
    :ivar new_rows: labelled rows that are new to the champion.
    :ivar train_rows: labelled rows that a training would use now.
    :ivar exchange_rate: price of a redistillation, in points of the loss for one week.
    :ivar earlier: what earlier trainings were predicted to gain and gained per week, oldest first.
    """

    now: float
    step: float
    champion: str
    curves: Mapping[str, Curve]
    exchange_rate: float
    prices: Prices = Prices()
    corrected: Curve | None = None
    new_rows: int = 0
    train_rows: int = 0
    earlier: tuple[tuple[float, float], ...] = ()
    options: Mapping[str, bool] = field(default_factory=dict)

    @property
    def own(self) -> Curve:
        """The champion's curve."""
        return self.curves[self.champion]

    @property
    def age(self) -> float:
        """Age of what the champion learned from (weeks)."""
        return self.now - self.own.shaped
