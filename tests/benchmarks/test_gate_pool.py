"""The pool's benchmark: its fast rule is the rule of the pool, and its series have the stated moments."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks import gate_pool
from stillhouse.payoff.champion_choice import choose_champion, member_shares, reign_error
from stillhouse.payoff.evidence import compare_members, shrink_gains
from stillhouse.records import BlockScore, PoolMember, PoolState

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def play_with_the_pool(differences: np.ndarray, bound: float) -> tuple[int, int]:
    """Member and block of the first promotion, by the pool's own records and functions."""
    made = [1, 2, *(4 + number for number in range(differences.shape[0] - 2))]
    roles = ["never_refreshed", "previous", *["challenger"] * (len(made) - 2)]
    champion, *members = (
        PoolMember.model_validate(
            {
                "model": f"toy@{day}",
                "role": role,
                "made_at": BEGIN + day * timedelta(minutes=1),
                "shaped_until": BEGIN,
                "mode": "redistil",
                "promotable": True,
            }
        )
        for day, role in zip([3, *made], ["champion", *roles], strict=True)
    )
    shares = member_shares([champion, *members], champion.model)

    def scores(model: str, values: np.ndarray) -> list[BlockScore]:
        return [
            BlockScore(
                member=model,
                start=BEGIN + number * DAY,
                end=BEGIN + (number + 1) * DAY,
                complete=True,
                rows=500,
                rows_key="k",
                log_loss=0.0,
                half_brier=0.0,
                accuracy=0.5 + value,
            )
            for number, value in enumerate(values.tolist())
        ]

    own = [scores(member.model, row) for member, row in zip(members, differences, strict=True)]
    rival = scores(champion.model, np.zeros(differences.shape[1]))
    for block in range(1, differences.shape[1] + 1):
        evidence = [
            compare_members(
                series[:block],
                rival[:block],
                measure="accuracy",
                span=1.0,
                margin=gate_pool.MARGIN,
                since=BEGIN,
                error=reign_error(1, gate_pool.CONFIDENCE),
                share=shares[member.model],
                autocorrelation=bound,
            )
            for member, series in zip(members, own, strict=True)
        ]
        state = PoolState(
            champion=champion.model,
            as_of=BEGIN + block * DAY,
            reign=1,
            reign_began=BEGIN,
            members=(champion, *members),
            evidence=shrink_gains([one for one in evidence if one is not None], gate_pool.MARGIN),
        )
        choice = choose_champion(state, allow_promotion=True)
        if choice.action != "keep":
            return [member.model for member in members].index(choice.member), block
    return -1, differences.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("gain", [-0.25, 0.0, 1.0])
def test_the_fast_rule_is_the_rule_of_the_pool(gain: float) -> None:
    rng = np.random.default_rng(round(10 * gain + 10))
    gains = np.tile([0.0, 0.2, *[gain] * gate_pool.MEMBERS], (4, 1))
    differences = gate_pool._draw_members(rng, "autocorrelated", gains, 30)
    bounds = np.array([0.0, 0.1, 0.3, 0.5])
    member, block = gate_pool.choose_members(differences, bounds, *gate_pool._roles())
    for index in range(4):
        expected = play_with_the_pool(differences[index], float(bounds[index]))
        assert (int(member[index]), int(block[index])) == expected


@pytest.mark.parametrize("kind", gate_pool.KINDS)
def test_the_noise_has_mean_0_variance_1_and_the_stated_autocorrelation(kind: str) -> None:
    series = gate_pool.draw_noise(np.random.default_rng(0), kind, (4_000, 50))
    assert abs(series.mean()) < 0.02 and series.var() == pytest.approx(1.0, abs=0.03)
    neighbours = (series[:, 1:] * series[:, :-1]).mean()
    assert neighbours == pytest.approx(0.0 if kind == "independent" else 0.5, abs=0.03)
    assert math.isclose((series**3).mean(), -1.5 if kind == "skewed" else 0.0, abs_tol=0.1)


def test_all_goals_are_measured() -> None:
    goals, detail = gate_pool.measure_pool(4)
    assert [goal.name for goal in goals if not math.isfinite(goal.measured)] == []
    assert len(goals) == 7 and len(detail["sum_of_losses"]) == 6
