"""Thresholds: exact bounds, the fixed sequence, and how often a promise is broken in simulations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from stillhouse.agreement import Promise, PromiseKeeper, lower_bound, rows_needed
from stillhouse.agreement.thresholds import LEVELS, level_of, levels_of, loosest_level, rows_lacking

PROMISE = Promise(agreement=0.98, confidence=0.95)
Confidence = Callable[[np.ndarray], np.ndarray]

# the student's own idea of its probability of agreement p
CONFIDENCES: dict[str, Confidence] = {
    "calibrated": lambda p: p,
    "overconfident": lambda p: 1 - 0.3 * (1 - p),
    "underconfident": lambda p: p**4,
    "in tenths": lambda p: np.floor(10 * p) / 10,
    "two values": lambda p: np.where(p > 0.95, 0.9, 0.3),
}


def agreement_at(u: np.ndarray) -> np.ndarray:
    """A student that agrees on 88 % of all rows, and on 98 % of the first two thirds by confidence."""
    return np.clip(1 - 0.005 - 0.66 * u**5.0, 0, 1)


def counts(rows: dict[int, int]) -> np.ndarray:
    array = np.zeros(len(LEVELS), dtype=np.int64)
    for level, count in rows.items():
        array[level] = count
    return array


@pytest.mark.parametrize(("rows", "disagreements"), [(149, 0), (300, 3), (5000, 61), (20, 20)])
def test_the_bound_is_that_of_an_independent_library(rows: int, disagreements: int) -> None:
    interval = binomtest(rows - disagreements, rows).proportion_ci(0.90, method="exact")  # two-sided
    assert lower_bound(rows, disagreements, 0.95) == pytest.approx(interval.low, abs=1e-9)


def test_rows_needed_are_the_fewest_that_prove_it() -> None:
    for promise in (PROMISE, Promise(agreement=0.9, confidence=0.8), Promise(agreement=0.999, confidence=0.99)):
        for disagreements in (0, 1, 5):
            n = rows_needed(promise, disagreements)
            assert lower_bound(n, disagreements, promise.confidence) >= promise.agreement - 1e-12
            assert lower_bound(n - 1, disagreements, promise.confidence) < promise.agreement
    assert rows_needed(PROMISE) == 149


def test_a_level_is_reached_by_a_confidence_of_exactly_its_value() -> None:
    assert np.all(np.diff(LEVELS) < 0) and LEVELS[-1] == 0
    assert levels_of(LEVELS).tolist() == list(range(len(LEVELS)))
    just_below = np.nextafter(LEVELS[:-1], 0)
    assert levels_of(just_below).tolist() == list(range(1, len(LEVELS)))
    random = np.random.default_rng(0).random(1000)
    assert [level_of(value) for value in random.tolist()] == levels_of(random).tolist()


def test_the_sequence_stops_at_the_first_failure() -> None:
    rows = counts({10: 400, 20: 100, 30: 5000})
    disagreements = counts({10: 1, 20: 20, 30: 0})  # level 30 alone would pass again: 21 of 5500
    assert lower_bound(5500, 21, 0.95) > 0.98 > lower_bound(500, 21, 0.95)
    doubt = 0.004 * rows
    doubt[30] = 0.3 * rows[30]  # so it begins at level 10
    with_share = rows.copy()
    with_share[10] = 1400
    assert loosest_level(PROMISE, with_share, disagreements, doubt) == (19, 10)


def test_where_it_begins_does_not_depend_on_labels() -> None:
    rng = np.random.default_rng(1)
    confidences = rng.random(2000)
    levels = levels_of(confidences)
    rows = np.bincount(levels, minlength=len(LEVELS))
    doubt = np.bincount(levels, weights=1 - confidences, minlength=len(LEVELS))
    begins = set()
    for share in (0.0, 0.001, 0.01):
        disagreements = np.bincount(levels[rng.random(2000) < share], minlength=len(LEVELS))
        found = loosest_level(PROMISE, rows, disagreements, doubt)
        begins.add(found and found[1])
    assert len(begins - {None}) == 1


def test_too_few_rows_prove_nothing_and_the_lacking_ones_are_counted() -> None:
    rows = counts({10: 100, 40: 30})
    none = np.zeros(len(LEVELS))
    assert loosest_level(PROMISE, rows, counts({}), none) is None
    assert rows_lacking(PROMISE, rows, counts({})) == 149 - 130
    assert rows_lacking(PROMISE, rows, counts({40: 1})) == 149 - 100
    assert rows_lacking(PROMISE, rows, counts({10: 1})) == 236 - 130
    assert rows_lacking(PROMISE, counts({10: 149}), counts({})) == 0


@pytest.mark.parametrize("name", CONFIDENCES)
@pytest.mark.parametrize("rows", [300, 1500])
def test_a_promise_is_broken_no_more_often_than_promised(name: str, rows: int) -> None:
    rng, confidence_of, runs = np.random.default_rng(rows), CONFIDENCES[name], 300
    grid = np.linspace(0, 1, 20_001)
    grid_confidence, grid_agreement = confidence_of(agreement_at(grid)), agreement_at(grid)
    broken = 0
    for _ in range(runs):
        u = rng.random(rows)
        agreement = agreement_at(u)
        keeper = PromiseKeeper(PROMISE).fit(confidence_of(agreement), rng.random(rows) < agreement)
        threshold = keeper.state.threshold
        if threshold is not None:
            broken += grid_agreement[grid_confidence >= threshold].mean() < PROMISE.agreement
    assert binomtest(broken, runs, 0.05, alternative="greater").pvalue > 1e-3


def test_a_student_that_is_surest_where_it_is_wrong_answers_nothing() -> None:
    rng = np.random.default_rng(2)
    confidences = rng.random(3000)
    keeper = PromiseKeeper(PROMISE).fit(confidences, rng.random(3000) < 1 - 0.3 * confidences)
    assert keeper.asks_all and keeper.coverage == 0.0


@pytest.mark.slow
def test_coverage_is_near_what_is_possible() -> None:
    """With 3,000 audited rows, a student that agrees on 98 % of two thirds of the rows answers most of these.

    How sure it is of itself matters little.
    """
    for name in ("calibrated", "overconfident", "underconfident"):
        rng, coverages = np.random.default_rng(3), []
        for _ in range(20):
            agreement = agreement_at(rng.random(3000))
            keeper = PromiseKeeper(PROMISE).fit(CONFIDENCES[name](agreement), rng.random(3000) < agreement)
            coverages.append(keeper.coverage)
        assert 0.5 < np.mean(coverages) < 0.67
