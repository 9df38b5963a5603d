"""The bandit over kinds of structural steps."""

from __future__ import annotations

import pytest

from stillhouse.compress.search.bandit import Arm


def test_arms_never_pulled_come_first_by_promise_and_then_by_gain_per_second() -> None:
    new, promising = Arm("a", 1.0), Arm("b", 2.0)
    good = Arm("c", 9.0, pulls=2, gained=0.4, seconds=2.0)
    poor = Arm("d", 9.0, pulls=2, gained=0.1, seconds=2.0)
    best = 0.2
    order = sorted([poor, new, good, promising], key=lambda arm: arm.score(4, best), reverse=True)
    assert [arm.method for arm in order] == ["b", "a", "c", "d"]
    assert good.score(4, best)[0] == pytest.approx(1 + 0.5 * (1.3862943611 / 2) ** 0.5)
    rare = Arm("e", 0.0, pulls=1, gained=0.0, seconds=1.0)
    assert rare.score(3, best) < poor.score(3, best) and rare.score(10**9, best) > poor.score(10**9, best)


def test_an_arm_is_exhausted_below_a_tenth() -> None:
    assert not Arm("a", 1.0, ratio=0.125).is_exhausted and Arm("a", 1.0, ratio=0.0625).is_exhausted
