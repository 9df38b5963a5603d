"""Decision ids contain their observation, and no other text is accepted as an id."""

from __future__ import annotations

import string

import numpy as np
import pytest

from stillhouse.runtime.ids import DecisionIds, IdSubject

IDS = DecisionIds("flights", "base-1")


def random_names(count: int) -> list[str]:
    """Observation ids with any characters, including dots."""
    rng = np.random.default_rng(5)
    letters = string.printable + "äß漢字😀.\0"
    return ["".join(rng.choice(list(letters), rng.integers(1, 60))) for _ in range(count)]


def test_ids_are_parsed_back() -> None:
    names, times = random_names(500), np.random.default_rng(6).integers(-(2**62), 2**62, 500).tolist()
    decision_ids = IDS.create(names, times)
    subjects = [IdSubject(*pair) for pair in zip(names, times, strict=True)]
    assert [IDS.parse(decision_id) for decision_id in decision_ids] == subjects
    assert len(set(decision_ids)) == len(decision_ids)


def test_two_decisions_about_the_same_observation_have_two_ids() -> None:
    first, second = IDS.create(["a", "a"], [1, 1])
    assert first != second and IDS.parse(first) == IDS.parse(second) == IdSubject("a", 1)


@pytest.mark.parametrize("other", [DecisionIds("router", "base-1"), DecisionIds("flights", "base-2")])
def test_ids_of_another_agent_or_knowledge_base_are_rejected(other: DecisionIds) -> None:
    assert all(IDS.parse(decision_id) is None for decision_id in other.create(random_names(50), range(50)))


def test_any_changed_character_is_detected() -> None:
    (decision_id,) = IDS.create(["flight-7"], [1_700_000_000_000_000])
    for position in range(len(decision_id)):
        for letter in "A-_.0/=+ \ud800é":
            if decision_id[position] != letter:
                assert IDS.parse(decision_id[:position] + letter + decision_id[position + 1 :]) is None
    for length in range(len(decision_id)):
        assert IDS.parse(decision_id[:length]) is None
    token = decision_id.rpartition(".")[2]
    for invalid in (decision_id + "=", decision_id + "\n", " " + decision_id, f".{token}", "x" * 10_000, "\ud800"):
        assert IDS.parse(invalid) is None
