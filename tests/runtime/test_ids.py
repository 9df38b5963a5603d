"""Ids say themselves what they are about, and nothing else passes for one."""

from __future__ import annotations

import string

import numpy as np
import pytest

from stillhouse.runtime.ids import DecisionIds, Subject

IDS = DecisionIds("flights", "base-1")


def names(count: int) -> list[str]:
    """Ids of observations as applications have them: any characters, dots among them."""
    rng = np.random.default_rng(5)
    letters = string.printable + "äß漢字😀.\0"
    return ["".join(rng.choice(list(letters), rng.integers(1, 60))) for _ in range(count)]


def test_what_was_given_out_is_read_back() -> None:
    given, times = names(500), np.random.default_rng(6).integers(-(2**62), 2**62, 500).tolist()
    made = IDS.give(given, times)
    assert [IDS.read(each) for each in made] == [Subject(*each) for each in zip(given, times, strict=True)]
    assert len(set(made)) == len(made)


def test_the_same_observation_is_decided_twice_under_two_ids() -> None:
    first, second = IDS.give(["a", "a"], [1, 1])
    assert first != second and IDS.read(first) == IDS.read(second) == Subject("a", 1)


@pytest.mark.parametrize("other", [DecisionIds("router", "base-1"), DecisionIds("flights", "base-2")])
def test_those_of_another_agent_or_knowledge_base_are_strange(other: DecisionIds) -> None:
    assert all(IDS.read(each) is None for each in other.give(names(50), range(50)))


def test_every_changed_character_is_noticed() -> None:
    (made,) = IDS.give(["flight-7"], [1_700_000_000_000_000])
    for place in range(len(made)):
        for letter in "A-_.0/=+ \ud800é":
            if made[place] != letter:
                assert IDS.read(made[:place] + letter + made[place + 1 :]) is None
    for cut in range(len(made)):
        assert IDS.read(made[:cut]) is None
    for strange in (made + "=", made + "\n", " " + made, f".{made.rpartition('.')[2]}", "x" * 10_000, "\ud800"):
        assert IDS.read(strange) is None
