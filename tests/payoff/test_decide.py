"""Which response pays, on curves made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stillhouse.payoff.decay import find_change, refresh_interval
from stillhouse.payoff.decide import Rules, choose_response
from stillhouse.payoff.situation import Curve, Situation

TIMES = np.arange(20) + 0.5


def situation(champion: np.ndarray, **others: tuple[float, np.ndarray]) -> Situation:
    """Twenty weekly blocks; the champion was trained before the first."""
    curves = {"toy@1": Curve(0.0, TIMES, champion)}
    for name, (shaped, losses) in others.items():
        curves[name.replace("_", "@")] = Curve(shaped, TIMES, np.where(shaped < TIMES, losses, np.nan))
    return Situation(20.0, 1.0, "toy@1", curves, exchange_rate=0.1, block=1.0)


def wiggle(seed: int, size: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, len(TIMES))


def test_a_world_that_does_not_move_asks_for_nothing() -> None:
    for seed in range(20):
        noise = wiggle(seed)
        calm = situation(0.5 + noise, toy_2=(8.0, 0.5 + noise + wiggle(100 + seed, 0.003)))
        assert choose_response(replace(calm, exchange_rate=1.0)).chosen == "hold"


def test_a_member_that_is_clearly_better_is_reused() -> None:
    reckoning = choose_response(situation(np.full(20, 0.9), toy_2=(8.0, np.full(20, 0.5))))
    assert (reckoning.chosen, reckoning.model) == ("reuse", "toy@2")
    assert reckoning.responses[0].response == "hold"


def test_a_dear_training_waits_and_a_cheap_one_does_not() -> None:
    aging = 0.5 + 0.01 * TIMES + wiggle(1, 0.003)
    pair = situation(aging, toy_2=(10.0, 0.5 + 0.01 * (TIMES - 10) + wiggle(2, 0.003)))
    newest = replace(pair, champion="toy@2")
    assert choose_response(replace(newest, exchange_rate=0.02)).chosen == "redistil"
    assert choose_response(replace(newest, exchange_rate=5.0)).chosen == "hold"


def test_a_sudden_change_is_found_at_its_moment() -> None:
    jump = np.where(TIMES < 14, 0.4, 0.8) + wiggle(3)
    change = find_change(situation(jump))
    assert change is not None and change.moment == pytest.approx(14.0) and change.height == pytest.approx(0.4, abs=0.03)
    assert choose_response(situation(jump)).chosen == "redistil"
    assert find_change(situation(0.5 + wiggle(4))) is None


def test_an_impossible_response_is_never_chosen_and_says_why() -> None:
    jump = replace(
        situation(np.where(TIMES < 14, 0.4, 0.8)),
        impossible=dict.fromkeys(("redistil", "redistil_warm", "update", "renew"), "two trainings today are enough"),
    )
    reckoning = choose_response(jump)
    assert reckoning.chosen == "hold"
    assert "two trainings today are enough" in {prediction.text for prediction in reckoning.responses}


def test_exploration_is_drawn_by_champion_and_moment_and_told_apart() -> None:
    calm = replace(situation(0.5 + wiggle(5)), exchange_rate=50.0)
    drawn = [choose_response(replace(calm, now=20.0 + week, explore=0.2)) for week in range(200)]
    share = np.mean([reckoning.explored for reckoning in drawn])
    assert 0.1 < share < 0.3
    assert all((reckoning.chosen == "hold") != reckoning.explored for reckoning in drawn)
    assert drawn == [choose_response(replace(calm, now=20.0 + week, explore=0.2)) for week in range(200)]
    assert not choose_response(calm).explored


def test_the_interval_is_the_classic_one() -> None:
    """At the interval, the price equals what age has cost beyond the mean: β T^{p+1} p / (p + 1)."""
    interval = refresh_interval(0.3, 0.01)
    assert 0.01 * interval**1.75 * 0.75 / 1.75 == pytest.approx(0.3)


def test_terms_can_be_left_out() -> None:
    jump = situation(np.where(TIMES < 14, 0.4, 0.8))
    assert "change" not in choose_response(jump, Rules(change=False)).terms
    better = situation(np.full(20, 0.9), toy_2=(8.0, np.full(20, 0.5)))
    assert choose_response(better, Rules(cheap=False)).chosen != "reuse"


def test_a_challenger_that_waits_for_its_evidence_is_not_made_again() -> None:
    """A newer member is in the pool: another training must pay over it, not over the champion alone."""
    aging = 0.5 + 0.02 * TIMES
    alone = situation(aging, toy_0=(-8.0, aging + 0.16))
    assert choose_response(alone, Rules(cheap=False)).chosen != "hold"
    waits = situation(aging, toy_0=(-8.0, aging + 0.16), toy_2=(19.0, 0.5 + 0.02 * (TIMES - 19.0)))
    reckoning = choose_response(replace(waits, impossible={"toy@2": "the gate could not tell"}), Rules(cheap=False))
    assert reckoning.chosen == "hold"
    assert any("waits for its evidence" in prediction.text for prediction in reckoning.responses)
