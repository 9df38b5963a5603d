"""The policies that a replay compares: calendars, drift detectors, the payoff policy, and the oracle in hindsight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from stillhouse.config import Prices
from stillhouse.payoff.decide import Rules, choose_response, pays_to_recalibrate_afterwards
from stillhouse.payoff.situation import Curve, Situation, Training
from stillhouse.records import Reckoning
from stillhouse.replay.world import Made, World

__all__ = ["Act", "Played", "play_calendar", "play_oracle", "play_payoff"]

Array = np.ndarray[Any, Any]
WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Act:
    """A response: before which step, what it was, and which model replaced which."""

    step: int
    response: str
    replaced: Made
    new: Made
    predicted: float = math.nan


@dataclass
class Played:
    """How a policy went on a world.

    :ivar champions: the model that decided in each step, ``T`` of them.
    :ivar acts: its responses.
    :ivar price: what they cost, as multiples of a redistillation.
    """

    champions: list[Made] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    price: float = 0.0

    def mean(self, world: World, measure: str) -> float:
        """Mean of the measure over all steps that have rows."""
        values = [world.scores(made)[measure][step] for step, made in enumerate(self.champions)]
        return float(np.nanmean(values))

    def total(self, world: World, exchange_rate: float) -> float:
        """Mean loss per week in the world's measure plus price per week, times the weeks: loss-weeks."""
        losses = np.nan_to_num([world.loss(made)[step] for step, made in enumerate(self.champions)])
        return float(losses.sum()) * (world.history.step / WEEK) + exchange_rate * self.price

    def realised(self, world: World) -> list[float]:
        """Gain of each response until the next one, in loss-weeks, against the model that it replaced."""
        ends = [*(act.step for act in self.acts[1:]), world.steps][: len(self.acts)]
        gains = []
        for act, end in zip(self.acts, ends, strict=True):
            old, new = (world.loss(made)[act.step : end] for made in (act.replaced, act.new))
            gains.append(float(np.nansum(old - new)) * (world.history.step / WEEK))
        return gains


def play_calendar(world: World, every: int | None) -> Played:
    """A training every so many steps; None: never."""
    played, champion = Played(), Made(0)
    for step in range(world.steps):
        if every is not None and step and step - champion.trained >= every:
            played.acts.append(Act(step, "redistil", champion, Made(step)))
            champion, played.price = Made(step), played.price + 1
        played.champions.append(champion)
    return played


def play_oracle(world: World, exchange_rate: float) -> Played:
    """The best schedule of trainings in hindsight, by dynamic programming over all of them.

    The optimum of Mahadevan & Mathioudakis 2024, "Cost-aware retraining for machine learning", §4, for known losses.
    """
    steps, weeks = world.steps, world.history.step / WEEK
    until = np.cumsum([np.nan_to_num(world.loss(Made(k))) for k in range(steps)], axis=1) * weeks
    best, last = np.full(steps + 1, math.inf), np.zeros(steps + 1, int)
    best[0] = 0.0
    for end in range(1, steps + 1):
        for start in range(end):
            loss = until[start, end - 1] - (until[start, start - 1] if start else 0.0)
            cost = best[start] + loss + (exchange_rate if start else 0.0)
            if cost < best[end]:
                best[end], last[end] = cost, start
    starts, end = [], steps
    while end:
        end = int(last[end])
        starts.append(end)
    played, champion = Played(), Made(0)
    for step in range(steps):
        if step and step in starts:
            played.acts.append(Act(step, "redistil", champion, Made(step)))
            champion, played.price = Made(step), played.price + 1
        played.champions.append(champion)
    return played


def play_payoff(
    world: World,
    exchange_rate: float,
    prices: Prices | None = None,
    *,
    pool: int = 6,
    rules: Rules | None = None,
    choose: Callable[[Situation], Reckoning] | None = None,
) -> Played:
    """The payoff policy: trainings, recalibrations and reuse of members, decided from what was known at each step."""
    prices, rules = prices or Prices(), rules or Rules()
    decide = choose or (lambda situation: choose_response(situation, rules))
    played, champion = Played(), Made(0)
    members, made, trainings = [champion], [champion], list[Training]()
    for step in range(world.steps):
        if step:
            situation = _situation(world, step, champion, members, made, trainings, exchange_rate, prices)
            reckoning = decide(situation)
            new = _carry_out(reckoning, situation, champion, step, {str(member): member for member in members})
            if new != champion:
                predicted = reckoning.excess
                if reckoning.chosen == "redistil":
                    trainings.append(Training("redistil", situation.now, str(new), str(champion), predicted))
                played.acts.append(Act(step, reckoning.chosen, champion, new, predicted))
                played.price += getattr(prices, reckoning.chosen)
                champion = new
                members += [new] if new not in members else []
                made += [new] if new not in made else []
                members = [member for member in members if member == champion or member in members[-pool:]]
        played.champions.append(champion)
    return played


def _carry_out(reckoning: Reckoning, situation: Situation, champion: Made, step: int, members: dict[str, Made]) -> Made:
    """The champion after the response."""
    if reckoning.chosen == "redistil":
        recalibrate = pays_to_recalibrate_afterwards(situation, reckoning.decay)
        return Made(step - 1, recalibrated=step) if recalibrate else Made(step)
    if reckoning.chosen == "recalibrate":
        return champion._replace(recalibrated=step)
    if reckoning.chosen == "reuse":
        return members[str(reckoning.model)]
    return champion


def _situation(
    world: World,
    step: int,
    champion: Made,
    members: Sequence[Made],
    made: Sequence[Made],
    trainings: Sequence[Training],
    exchange_rate: float,
    prices: Prices,
) -> Situation:
    weeks = world.history.step / WEEK
    only = "a replay of this kind trains from random weights only"
    return Situation(
        now=step * weeks,
        step=weeks,
        block=weeks,
        champion=str(champion),
        curves={str(member): _curve(world, member, step) for member in members},
        retired={str(member): _curve(world, member, step) for member in made[-12:] if member not in members},
        corrected=_corrected_curve(world, champion, step),
        uncorrected=_curve(world, champion._replace(recalibrated=None), step),
        exchange_rate=exchange_rate,
        prices=prices,
        measure=world.measure,
        unit="nats" if world.measure == "log_loss" else "points",
        history=min(world.history.settings.windows.train / WEEK, step * weeks + 8),
        trainings=trainings,
        impossible={"update": only, "redistil_warm": only, "renew": only},
    )


def _curve(world: World, made: Made, step: int) -> Curve:
    """The losses that were known at the start of ``step``; the newest block counts with the outcomes known by then."""
    weeks = world.history.step / WEEK
    losses = world.loss(made)[:step].copy()
    if made.made < step:
        losses[step - 1] = world.known_loss(made, step)
    return Curve(made.trained * weeks, (np.arange(step) + 0.5) * weeks, losses)


def _corrected_curve(world: World, champion: Made, step: int, back: int = 6) -> Curve:
    """The champion recalibrated before each of the last blocks."""
    weeks = world.history.step / WEEK
    losses = np.full(step, np.nan)
    for block in range(max(champion.trained + 1, step - back), step):
        corrected = champion._replace(recalibrated=block)
        losses[block] = world.known_loss(corrected, step) if block == step - 1 else world.loss(corrected)[block]
    return Curve(champion.trained * weeks, (np.arange(step) + 0.5) * weeks, losses)
