"""Whether earlier final fits gained over their challengers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from stillhouse.payoff.final_fits import estimate_final_fit_gain, has_final_fit_gained
from stillhouse.records import BlockScore

BEGIN, DAY = datetime(2026, 1, 5, tzinfo=UTC), timedelta(days=1)


def blocks(member: str, first_day: int, losses: list[float]) -> list[BlockScore]:
    return [
        BlockScore(
            member=member,
            start=BEGIN + (first_day + number) * DAY,
            end=BEGIN + (first_day + number + 1) * DAY,
            complete=True,
            rows=200,
            rows_key=f"rows of {first_day + number}",
            log_loss=loss,
            half_brier=0.2,
            accuracy=0.8,
        )
        for number, loss in enumerate(losses)
    ]


def history(gains: list[float]) -> tuple[dict[str, list[BlockScore]], dict[str, str]]:
    """Pools in which the final fit of refresh i lost ``gains[i]`` nats less than its challenger."""
    rng, scores, challengers = np.random.default_rng(0), {}, {}
    for number, gain in enumerate(gains):
        challenger, final_fit = f"toy@{2 * number + 1}", f"toy@{2 * number + 2}"
        losses = (0.5 + rng.normal(0, 0.05, 7)).tolist()
        scores[challenger] = blocks(challenger, 7 * number, losses)
        scores[final_fit] = blocks(final_fit, 7 * number, [loss - gain for loss in losses])
        challengers[final_fit] = challenger
    return scores, challengers


def estimate(gains: list[float]):
    scores, challengers = history(gains)
    return estimate_final_fit_gain(scores, challengers, measure="log_loss", span=4.6, margin=0.02)


def test_without_history_the_challenger_decides() -> None:
    assert not has_final_fit_gained(estimate([]))
    assert not has_final_fit_gained(estimate([0.05, 0.05]))  # two are too few to know their spread


def test_final_fits_that_gained_decide_and_others_do_not() -> None:
    gained = estimate([0.012, 0.009, 0.011, 0.010])
    assert gained.number == 4 and has_final_fit_gained(gained)
    assert not has_final_fit_gained(estimate([0.03, -0.04, 0.02, -0.01, 0.01]))
    assert not has_final_fit_gained(estimate([-0.012, -0.009, -0.011, -0.010]))


def test_gain_is_the_normal_posterior_of_the_refreshes() -> None:
    gains = [0.012, 0.004, 0.011, 0.001]
    noise = np.var(gains, ddof=1) / 4
    weight = 0.02**2 / (0.02**2 + noise)
    measured = estimate(gains)
    assert measured.mean == pytest.approx(weight * np.mean(gains))
    assert measured.standard_deviation == pytest.approx(np.sqrt(weight * noise))


def test_only_rows_that_both_were_scored_on_count() -> None:
    scores, challengers = history([0.01, 0.01, 0.01])
    scores["toy@2"] = scores["toy@2"][:0]
    assert estimate_final_fit_gain(scores, challengers, measure="log_loss", span=4.6, margin=0.02).number == 2
