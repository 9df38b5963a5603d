"""What to ask: the probabilities are what is promised, and the questions go where they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from stillhouse.distill import select

RNG = np.random.default_rng(3)


def test_inclusion_probabilities_worked_by_hand() -> None:
    assert select.inclusion(np.array([3.0, 1.0]), 1, 0.5).tolist() == pytest.approx([0.625, 0.375])
    # shares .5·¼ + .5·s: .375, .3, .2, .125; times 3 the first is above 1, and 2 are left for .3, .2 and .125
    found = select.inclusion(np.array([5.0, 3.5, 1.5, 0.0]), 3, 0.5)
    assert found.tolist() == pytest.approx([1.0, 0.96, 0.64, 0.4])


@pytest.mark.parametrize("size", [0, 1, 7, 49, 50, 80])
def test_they_add_up_and_no_row_is_left_out(size: int) -> None:
    found = select.inclusion(RNG.random(50) ** 6, size, 0.2)
    assert found.sum() == pytest.approx(min(size, 50))
    assert (found <= 1).all() and (found >= 0.2 * min(size, 50) / 50 - 1e-12).all()


def test_scores_of_zero_are_drawn_evenly() -> None:
    assert select.inclusion(np.zeros(8), 2, 0.3).tolist() == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("alike", [True, False])
def test_rows_are_drawn_as_often_as_their_probability_says(alike: bool) -> None:
    scores, x = RNG.random(60) ** 3, RNG.normal(size=(60, 4))
    hits = np.zeros(60)
    for seed in range(3000):
        drawn = select.select(12, scores=scores, alike=x if alike else None, seed=seed)
        assert len(drawn.rows) == len(set(drawn.rows)) == 12
        hits[drawn.rows] += 1
    error = 4.5 * np.sqrt(drawn.probability * (1 - drawn.probability) / 3000)
    assert (np.abs(hits / 3000 - drawn.probability) <= error + 1e-9).all()


def test_weighted_questions_speak_for_all_rows() -> None:
    values = RNG.random(400)
    estimates = []
    for seed in range(800):
        drawn = select.select(40, scores=values**2, alike=values[:, None], seed=seed)
        estimates.append((values[drawn.rows] / drawn.probability[drawn.rows]).sum() / 400)
    assert np.mean(estimates) == pytest.approx(values.mean(), abs=4 * np.std(estimates) / np.sqrt(800))


def test_questions_are_spread_over_what_is_alike() -> None:
    """Of eight far clusters of equal size none gets more or fewer of sixteen questions than two, give or take one."""
    centres = RNG.normal(size=(8, 3)) * 100
    x = np.repeat(centres, 25, axis=0) + RNG.normal(size=(200, 3))
    shuffled = RNG.permutation(200)
    cluster = np.repeat(np.arange(8), 25)[shuffled]
    for seed in range(50):
        drawn = select.select(16, alike=x[shuffled], seed=seed)
        counts = np.bincount(cluster[drawn.rows], minlength=8)
        assert counts.min() >= 1 and counts.max() <= 3


def test_the_same_key_draws_the_same_rows() -> None:
    x = RNG.normal(size=(100, 2))
    first, again, other = (select.select(10, alike=x, seed=seed).rows.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_margin_and_committee() -> None:
    said = np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05]])
    assert select.margin(said).tolist() == pytest.approx([1.0, 0.15])
    other = np.array([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]])
    mean = (said[1] + other[1]) / 2
    apart = entropy(mean) - (entropy(said[1]) + entropy(other[1])) / 2
    assert select.committee([said, other]).tolist() == pytest.approx([0.0, apart / np.log(2)])
    assert select.committee([said]).tolist() == [0.0, 0.0]


def test_each_score_counts_alike_and_one_that_says_nothing_does_not() -> None:
    small, large, nothing = np.array([1.0, 3.0]), np.array([300.0, 100.0]), np.zeros(2)
    assert select.combined([small, large, nothing]).tolist() == pytest.approx([1.0, 1.0])  # type: ignore[union-attr]
    assert select.combined([nothing]) is None
    assert select.scores(["margin", "committee"], []) is None
    assert select.scores(["diversity"], [np.full((2, 2), 0.5)]) is None


def test_what_is_known_is_selected_for_nothing_and_the_yardstick_evenly() -> None:
    known, kept_back = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    known[:10], kept_back[80:] = True, True
    scores = np.where(np.arange(100) % 2, 1.0, 0.0)
    plan = select.plan(40, known=known, kept_back=kept_back, scores=scores, uniform_share=0.1, seed=4)
    assert len(plan.rows) == 40 and set(range(10)) <= set(plan.rows)
    assert (plan.probability[:10] == 1).all()
    assert plan.probability[80:].tolist() == pytest.approx([0.4] * 20)
    assert len(set(plan.rows) & set(range(80, 100))) == 8
    assert plan.probability[11] > 5 * plan.probability[12]


def test_what_is_known_may_be_more_than_was_wanted() -> None:
    known = np.arange(30) < 20
    plan = select.plan(10, known=known, kept_back=np.zeros(30, dtype=bool), seed=0)
    assert plan.rows.tolist() == list(range(20))


def test_a_space_of_numbers_and_answers() -> None:
    numbers = np.array([[0.0, 1.0], [2.0, np.nan], [4.0, 1.0]])
    found = select.space(numbers, np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    assert found is not None and found.shape == (3, 4) and np.isfinite(found).all()
    assert found[1, :2].tolist() == [0.0, 0.0] and found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert select.space() is None and select.space(np.empty((3, 0))) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scores": np.array([-1.0, 1.0])}, "negative"),
        ({"scores": np.ones(2), "uniform_share": 0.0}, "uniform_share"),
        ({"scores": np.ones(2), "alike": np.ones((3, 1))}, "same rows"),
        ({}, "same rows"),
    ],
)
def test_wrong_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        select.select(1, **arguments)
