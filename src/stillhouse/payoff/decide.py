"""Which response pays: what each is predicted to gain until the next chance to respond, less its price.

Three questions, each answered from the curves of the pool (:class:`~stillhouse.payoff.situation.Situation`):

1. *What would a training gain?* Its excess: the champion's loss above that of a student trained now. It is what age
   costs (:func:`~stillhouse.payoff.decay.estimate_decay`), or, where the pool has a newer member, what that member
   gains in fact, and what a sudden change has cost and a training can learn by now. What earlier trainings gained of
   what was predicted scales it.
2. *What would a cheap response gain?* Another member of the pool, or the champion recalibrated before each block, is
   compared with the champion on the same blocks, the newest first where they differ clearly from the older ones.
3. *Does it pay?* The gain until the next chance to respond must exceed the price, and its chance of being none must be
   small; a training must also have reached the rate at which waiting costs more than training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stillhouse.payoff.decay import AGE_POWER, Change, estimate_decay, find_change, pair_noise, refresh_interval
from stillhouse.payoff.situation import Curve, Situation
from stillhouse.records import PredictedGain, Reckoning, Response, short_id

__all__ = ["Rules", "choose_response", "pays_to_recalibrate_afterwards"]

_LONGEST_HORIZON_WEEKS = 26.0
_PAIR_MEMORY_WEEKS = 3.0
_PRIOR_GAIN = 0.05  # standard deviation of what a cheap response may gain
_CORRECTION_MEMORY_WEEKS = 6.0
_TRAINED: dict[Response, float] = {"update": 0.5, "redistil_warm": 0.95, "redistil": 1.0, "renew": 1.0}
"""Trained responses, and the share of the excess that each is expected to gain before any of its kind was made."""


@dataclass(frozen=True)
class Rules:
    """The terms of the policy; each can be left out, for the ablation in ``benchmarks/results/streams.json``.

    :ivar decay: learn what age costs from pairs of members; otherwise the prior is used.
    :ivar change: look for sudden changes.
    :ivar newest: let the newest member of the pool say what a training would gain.
    :ivar learn: scale predictions by what earlier trainings gained.
    :ivar cheap: reuse members and recalibrate.
    :ivar doubt: standard deviations by which a predicted gain must exceed 0.
    """

    decay: bool = True
    change: bool = True
    newest: bool = True
    learn: bool = True
    cheap: bool = True
    doubt: float = 1.0


class _Gain(NamedTuple):
    """Gain per week, its standard error, and where it comes from."""

    mean: float
    error: float
    text: str


def choose_response(situation: Situation, rules: Rules = Rules()) -> Reckoning:  # frozen
    """The response whose predicted gain most exceeds its price, with the whole reckoning.

    >>> import numpy as np
    >>> times = np.arange(12) + 0.5
    >>> old, new = np.where(times < 8, 0.5, 0.9), np.where(times < 6, np.nan, 0.5)
    >>> curves = {"toy@1": Curve(0.0, times, old), "toy@2": Curve(6.0, times, new)}
    >>> reckoning = choose_response(Situation(12.0, 1.0, "toy@1", curves, exchange_rate=1.0, block=1.0))
    >>> reckoning.chosen, reckoning.model
    ('reuse', 'toy@2')
    """
    noise = pair_noise(situation)
    change = find_change(situation) if rules.change else None
    decay = estimate_decay(situation, noise, change) if rules.decay else 1e-3
    price = situation.exchange_rate
    interval = refresh_interval(price, decay)
    rate = decay * interval**AGE_POWER
    terms = _excess_terms(situation, decay, noise, change, rules)
    excess = sum(terms.values())
    horizon = max(min(interval, _LONGEST_HORIZON_WEEKS), situation.step)
    if change is not None and terms.get("change", 0.0) > terms["age"]:
        # what can be learned grows with the time since the change, so the next training comes after about as long
        horizon = max(min(horizon, max(situation.now - change.moment, 2 * situation.step)), situation.step)
    waiting = _gain_over_waiting(situation, decay, change)
    trained = list(_predict_trainings(situation, min(excess, waiting), excess, rate, horizon, noise, rules))
    # beside a training that pays, over the same time; else until the next training
    until_training = min(max(interval - situation.age, 2 * situation.step), 6.0)
    until = horizon if any(prediction.possible for prediction in trained) else until_training
    cheap = list(_predict_cheap(situation, until, noise, rules))
    best = max((*trained, *cheap), key=lambda prediction: prediction.net if prediction.possible else -math.inf)
    hold = PredictedGain(response="hold", gain=0.0, standard_error=0.0, price=0.0, text="nothing changes")
    chosen = best if best.possible and best.net > 0 else hold
    explored = chosen is hold and _explores(situation)
    if explored:
        allowed = [prediction for prediction in trained if prediction.response not in situation.impossible]
        chosen = max(allowed, key=lambda prediction: prediction.net, default=hold)
    return Reckoning(
        measure=situation.measure,
        unit=situation.unit,
        horizon_weeks=horizon,
        exchange_rate=price,
        decay=decay,
        age_weeks=max(0.0, situation.age),
        excess=excess,
        rate=rate,
        terms={**terms, "noise": noise, "interval": min(interval, 1e6)},
        responses=(hold, *trained, *cheap),
        chosen=chosen.response,
        model=chosen.model,
        explored=explored and chosen is not hold,
        text=("exploration: " if explored and chosen is not hold else "") + _explain(chosen, excess, rate, situation),
    )


def _explores(situation: Situation) -> bool:
    """Whether this decision explores: drawn by a hash of champion and moment, so that a replay draws the same."""
    if situation.age < 0.99 * situation.step:
        return False
    draw = int(short_id("explore", situation.champion, f"{situation.now:.6f}"), 16) / 16**12
    return draw < situation.explore * situation.step


def pays_to_recalibrate_afterwards(situation: Situation, decay: float) -> bool:
    """Whether a new student should be recalibrated on the newest rows rather than be trained on them, too.

    The newest block can teach a student or its thresholds. Recalibrating the champion before each block has shown
    what thresholds gain; a block of age costs ``decay``.
    """
    if situation.corrected is None:
        return False
    gains = situation.corrected.gain_over(situation.uncorrected or situation.own)
    if not len(gains.times):
        return False
    weights = np.exp(-(situation.now - gains.times) / _CORRECTION_MEMORY_WEEKS)
    return float((weights * gains.losses).sum() / (weights.sum() + 1.0)) > decay * situation.block


# --------------------------------------------------------------------------- what a training would gain


def _excess_terms(
    situation: Situation, decay: float, noise: float, change: Change | None, rules: Rules
) -> dict[str, float]:
    """The parts of the estimated gain per week of a training: age, and what a change has cost."""
    age = decay * _aged(situation.age)
    newest = max(situation.others.values(), key=lambda curve: curve.shaped, default=None) if rules.newest else None
    if newest is not None and newest.shaped > situation.own.shaped + 1e-9:
        beyond = decay * _aged(situation.now - newest.shaped)
        prior = age - beyond
        measured = _compare(newest, situation, noise)
        age = beyond + (prior if measured is None else _combine(prior, max(prior, noise), measured))
    terms = {"age": age}
    if change is not None and change.height > 0:
        length = min(situation.history, situation.now - min(curve.shaped for curve in situation.curves.values()) + 8)
        now, champion = (
            min(1.0, max(0.0, moment - change.moment) / length) for moment in (situation.now, situation.own.shaped)
        )
        terms["change"] = change.height * (_learned(now) - _learned(champion))
    if rules.learn:
        scale = _share_gained(situation, ("redistil", "redistil_warm", "renew"), 0.8)
        terms = {name: value * scale for name, value in terms.items()}
    return terms


def _learned(share: float) -> float:
    """The part of a change that a student has learned when this share of its training rows is newer than the change."""
    return float(share**0.4)


def _share_gained(situation: Situation, responses: tuple[str, ...], prior: float) -> float:
    """What earlier trainings gained, as a share of what was predicted: shrunk to ``prior``, and newer ones first."""
    curves = {**situation.retired, **situation.curves}
    numerator, denominator = 2.0 * prior, 2.0
    for training in situation.trainings:
        new, replaced = curves.get(training.new), curves.get(training.replaced)
        if new is None or replaced is None or training.predicted <= 0 or training.response not in responses:
            continue
        gains = new.gain_over(replaced)
        later = gains.losses[gains.times > training.moment][:6]
        if len(later):
            weight = min(1.0, len(later) * situation.block / 2)
            weight *= math.exp(-(situation.now - training.moment) / 12)
            numerator += weight * float(np.clip(later.mean() / training.predicted, -1, 2))
            denominator += weight
    return max(numerator / denominator, 0.05)


def _gain_over_waiting(situation: Situation, decay: float, change: Change | None) -> float:
    """What a training would gain over the newest member that is newer than the champion; infinite without one.

    Such a member waits for its evidence. Training another one before this pays would make a crowd of equals.
    """
    newest = max((curve.shaped for curve in situation.others.values()), default=-math.inf)
    if newest <= situation.own.shaped + 1e-9:
        return math.inf
    gain = decay * _aged(situation.now - newest)
    if change is not None:
        now, before = (max(0.0, moment - change.moment) for moment in (situation.now, newest))
        gain += change.height * (
            _learned(min(1.0, now / situation.history)) - _learned(min(1.0, before / situation.history))
        )
    return gain


def _predict_trainings(
    situation: Situation, payable: float, excess: float, rate: float, horizon: float, noise: float, rules: Rules
) -> Iterator[PredictedGain]:
    """Each trained response.

    :param payable: gain per week over the champion, or over a newer member that waits, whichever is less.
    """
    # the next training comes at about the age at which this one comes
    span = max(horizon, min(situation.age, _LONGEST_HORIZON_WEEKS))
    error = rules.doubt * noise * math.sqrt(situation.block / span)
    for response, prior in _TRAINED.items():
        share = _share_gained(situation, (response,), prior) if rules.learn and response == "update" else prior
        gain, price = share * excess, situation.exchange_rate * getattr(situation.prices, response)
        reason = situation.impossible.get(response, "")
        if not reason and situation.age < 0.99 * situation.step:
            reason = "nothing is new since the last training"
        elif not reason and payable < rate:
            over = "a newer model that waits for its evidence" if payable < excess else "the champion"
            reason = f"it would gain {payable:.4g} a week over {over}, and pays from {rate:.4g} on"
        elif not reason and gain < error:
            reason = f"a gain of {gain:.4g} a week could be chance: {error:.4g} could not"
        yield PredictedGain(
            response=response,
            gain=gain * horizon,
            weeks=horizon,
            standard_error=error / max(rules.doubt, 1e-9) * horizon,
            price=price,
            possible=not reason,
            text=reason or f"gains {gain:.4g} a week for {horizon:.3g} weeks",
        )


# --------------------------------------------------------------------------- what a cheap response would gain


def _predict_cheap(situation: Situation, horizon: float, noise: float, rules: Rules) -> Iterator[PredictedGain]:
    """Recalibrating, and each other member of the pool."""
    if not rules.cheap:
        return
    candidates: list[tuple[Response, str | None, Curve]] = [
        ("reuse", name, curve) for name, curve in situation.others.items()
    ]
    if situation.corrected is not None:
        candidates.append(("recalibrate", None, situation.corrected))
    for response, name, curve in candidates:
        price = situation.exchange_rate * getattr(situation.prices, response)
        measured = _compare(curve, situation, noise)
        reason = situation.impossible.get(response, "") or situation.impossible.get(name or "", "")
        gain = error = 0.0
        if measured is None:
            reason = reason or "too few blocks that are new to both models"
        else:
            shrunken = _PRIOR_GAIN**2 / (_PRIOR_GAIN**2 + measured.error**2)
            gain = measured.mean * shrunken
            error = math.sqrt((_PRIOR_GAIN**2 * (1 - shrunken)) + noise**2 * situation.block / horizon)
            if not reason and gain < rules.doubt * error:
                reason = f"a gain of {gain:.4g} a week could be chance: {rules.doubt * error:.4g} could not"
        yield PredictedGain(
            response=response,
            model=name,
            gain=gain * horizon,
            weeks=horizon,
            standard_error=error * horizon,
            price=price,
            possible=not reason,
            text=reason or f"gains {gain:.4g} a week ({measured.text if measured else ''}) for {horizon:.3g} weeks",
        )


def _compare(curve: Curve, situation: Situation, noise: float) -> _Gain | None:
    """The gain of a model over the champion on common blocks; None with fewer than two, unless one is clear.

    If the newest block or two differ clearly from the older ones, they count alone: the world has just changed.
    """
    gains = curve.gain_over(situation.own)
    values = gains.losses
    for count, z in ((1, 3.5), (2, 3.0)):
        if len(values) < count:
            return None
        newest, older = float(values[-count:].mean()), values[:-count][-4:]
        clear = abs(newest) > z * noise / math.sqrt(count)
        error = noise * math.sqrt(1 / count + 1 / max(1, len(older)))
        if clear and (not len(older) or abs(newest - float(older.mean())) > z * error):
            return _Gain(newest, noise / math.sqrt(count), f"the newest {count} blocks")
    weights = np.exp(-(situation.now - gains.times) / _PAIR_MEMORY_WEEKS)
    mean = float((weights * values).sum() / weights.sum())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    spread = float((weights * (values - mean) ** 2).sum() / weights.sum())
    deviation = math.sqrt((spread * effective + 4 * noise**2) / (effective + 4))
    return _Gain(mean, deviation / math.sqrt(effective), f"{len(values)} blocks, newer ones first")


def _combine(prior: float, prior_error: float, measured: _Gain) -> float:
    """Mean of two estimates, weighted by their precisions."""
    weights = prior_error**-2, measured.error**-2
    return float((prior * weights[0] + measured.mean * weights[1]) / sum(weights))


def _aged(weeks: float) -> float:
    return float(max(0.0, weeks) ** AGE_POWER)


def _explain(chosen: PredictedGain, excess: float, rate: float, situation: Situation) -> str:
    unit = situation.unit
    if chosen.response == "hold":
        return (
            f"nothing is predicted to gain more than it costs: a student trained now would gain {excess:.4g} {unit} a "
            f"week, and that pays from {rate:.4g} on"
        )
    what = f"{chosen.response} {chosen.model}" if chosen.model else chosen.response
    return f"{what}: predicted gain {chosen.gain:.4g} {unit} × weeks, price {chosen.price:.4g}: {chosen.text}"
