"""Selecting rows to ask about: inclusion probabilities, scores, and the spread of the sample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from stillhouse.distill import select

RNG = np.random.default_rng(3)


def test_inclusion_probabilities_worked_by_hand() -> None:
    assert select.inclusion_probabilities(np.array([3.0, 1.0]), 1, 0.5).tolist() == pytest.approx([0.625, 0.375])
    # shares .5·¼ + .5·s: .375, .3, .2, .125; times 3 the first is above 1, and 2 are left for .3, .2 and .125
    probabilities = select.inclusion_probabilities(np.array([5.0, 3.5, 1.5, 0.0]), 3, 0.5)
    assert probabilities.tolist() == pytest.approx([1.0, 0.96, 0.64, 0.4])


@pytest.mark.parametrize("size", [0, 1, 7, 49, 50, 80])
def test_inclusion_probabilities_sum_to_the_size_and_are_positive(size: int) -> None:
    probabilities = select.inclusion_probabilities(RNG.random(50) ** 6, size, 0.2)
    assert probabilities.sum() == pytest.approx(min(size, 50))
    assert (probabilities <= 1).all() and (probabilities >= 0.2 * min(size, 50) / 50 - 1e-12).all()


def test_scores_of_zero_give_equal_probabilities() -> None:
    assert select.inclusion_probabilities(np.zeros(8), 2, 0.3).tolist() == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("spread", [True, False])
def test_rows_are_drawn_with_their_inclusion_probability(spread: bool) -> None:
    scores, x = RNG.random(60) ** 3, RNG.normal(size=(60, 4))
    hits = np.zeros(60)
    for seed in range(3000):
        drawn = select.draw_rows(12, scores=scores, coordinates=x if spread else None, seed=seed)
        assert len(drawn.rows) == len(set(drawn.rows)) == 12
        hits[drawn.rows] += 1
    error = 4.5 * np.sqrt(drawn.probability * (1 - drawn.probability) / 3000)
    assert (np.abs(hits / 3000 - drawn.probability) <= error + 1e-9).all()


def test_horvitz_thompson_estimate_is_unbiased() -> None:
    values = RNG.random(400)
    estimates = []
    for seed in range(800):
        drawn = select.draw_rows(40, scores=values**2, coordinates=values[:, None], seed=seed)
        estimates.append((values[drawn.rows] / drawn.probability[drawn.rows]).sum() / 400)
    assert np.mean(estimates) == pytest.approx(values.mean(), abs=4 * np.std(estimates) / np.sqrt(800))


def test_questions_are_spread_over_clusters_of_similar_rows() -> None:
    """Each of eight distant clusters of equal size gets two of sixteen questions, plus or minus one."""
    centres = RNG.normal(size=(8, 3)) * 100
    x = np.repeat(centres, 25, axis=0) + RNG.normal(size=(200, 3))
    shuffled = RNG.permutation(200)
    cluster = np.repeat(np.arange(8), 25)[shuffled]
    for seed in range(50):
        drawn = select.draw_rows(16, coordinates=x[shuffled], seed=seed)
        counts = np.bincount(cluster[drawn.rows], minlength=8)
        assert counts.min() >= 1 and counts.max() <= 3


def test_same_seed_draws_the_same_rows() -> None:
    x = RNG.normal(size=(100, 2))
    first, again, other = (select.draw_rows(10, coordinates=x, seed=seed).rows.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_margin_and_committee_scores_by_hand() -> None:
    probs = np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05]])
    assert select.margin_scores(probs).tolist() == pytest.approx([1.0, 0.15])
    other = np.array([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]])
    mean = (probs[1] + other[1]) / 2
    divergence = entropy(mean) - (entropy(probs[1]) + entropy(other[1])) / 2
    assert select.committee_divergence([probs, other]).tolist() == pytest.approx([0.0, divergence / np.log(2)])
    assert select.committee_divergence([probs]).tolist() == [0.0, 0.0]


def test_combined_scores_have_equal_weight_and_zero_scores_none() -> None:
    small, large, zeros = np.array([1.0, 3.0]), np.array([300.0, 100.0]), np.zeros(2)
    assert select.combine_scores([small, large, zeros]).tolist() == pytest.approx([1.0, 1.0])  # type: ignore[union-attr]
    assert select.combine_scores([zeros]) is None
    assert select.question_scores(["margin", "committee"], []) is None
    assert select.question_scores(["diversity"], [np.full((2, 2), 0.5)]) is None


def test_answered_rows_are_selected_and_validation_rows_drawn_uniformly() -> None:
    answered, is_validation = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    answered[:10], is_validation[80:] = True, True
    scores = np.where(np.arange(100) % 2, 1.0, 0.0)
    plan = select.plan_questions(
        40, has_teacher_probs=answered, is_validation=is_validation, scores=scores, uniform_share=0.1, seed=4
    )
    assert len(plan.rows) == 40 and set(range(10)) <= set(plan.rows)
    assert (plan.probability[:10] == 1).all()
    assert plan.probability[80:].tolist() == pytest.approx([0.4] * 20)
    assert len(set(plan.rows) & set(range(80, 100))) == 8
    assert plan.probability[11] > 5 * plan.probability[12]


def test_more_rows_may_be_answered_than_the_size() -> None:
    answered = np.arange(30) < 20
    plan = select.plan_questions(10, has_teacher_probs=answered, is_validation=np.zeros(30, dtype=bool), seed=0)
    assert plan.rows.tolist() == list(range(20))


def test_coordinates_of_numbers_and_probabilities() -> None:
    numbers = np.array([[0.0, 1.0], [2.0, np.nan], [4.0, 1.0]])
    points = select.row_coordinates(numbers, np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    assert points is not None and points.shape == (3, 4) and np.isfinite(points).all()
    assert points[1, :2].tolist() == [0.0, 0.0] and points[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert select.row_coordinates() is None and select.row_coordinates(np.empty((3, 0))) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scores": np.array([-1.0, 1.0])}, "negative"),
        ({"scores": np.ones(2), "uniform_share": 0.0}, "uniform_share"),
        ({"scores": np.ones(2), "coordinates": np.ones((3, 1))}, "same rows"),
        ({}, "same rows"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        select.draw_rows(1, **arguments)
