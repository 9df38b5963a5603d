"""The confidence interval of one model's value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from stillhouse.evaluate.comparing import bound_quality
from stillhouse.quality import ACCURACY, AUC, get_measure
from tests.agents import agent_config


@pytest.mark.parametrize("wrong", [0, 3, 40])
def test_of_an_accuracy_it_is_nearly_clopper_and_pearsons(wrong: int) -> None:
    labels, probs = np.zeros(200, dtype=int), np.tile([0.9, 0.1], (200, 1))
    probs[:wrong] = [0.1, 0.9]
    low, high = bound_quality(labels, probs, ACCURACY, 0.95)
    exact = [beta.ppf(0.025, 200 - wrong, wrong + 1), beta.ppf(0.975, 200 - wrong + 1, wrong) if wrong else 1.0]
    assert [low, high] == pytest.approx(exact, abs=0.004)
    assert low <= exact[0] + 0.001 and high >= exact[1] - 0.001  # slightly wider, never much narrower


def test_of_an_auc_it_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        labels = rng.integers(0, 2, 300)
        score = 1 / (1 + np.exp(-(rng.normal(size=300) + labels)))  # the AUC is Φ(1 / √2)
        low, high = bound_quality(labels, np.column_stack([1 - score, score]), AUC, 0.9)
        covered += low <= 0.76025 <= high
    assert 170 <= covered <= 195  # 180 expected


def test_rows_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(2)
    labels, probs = rng.integers(0, 2, 100), rng.dirichlet([1, 1], 100)
    alone = bound_quality(labels, probs, ACCURACY, 0.95)
    repeated = bound_quality(np.tile(labels, 9), np.tile(probs, (9, 1)), ACCURACY, 0.95, np.tile(np.arange(100), 9))
    assert repeated == pytest.approx(alone)


def test_of_a_log_loss_the_lower_end_is_the_better_one() -> None:
    measure = get_measure(agent_config(quality={"measure": "log_loss"}))
    labels, probs = np.array([0] * 90 + [1] * 10), np.tile([0.9, 0.1], (100, 1))
    value = measure.value(probs, labels)
    low, high = bound_quality(labels, probs, measure, 0.95)
    assert measure.low <= low < value < high <= measure.high
    assert high - value > value - low  # ten rows of 2.3 nats: more such rows are possible, and few rows of less


def test_no_rows_and_few_rows_have_none() -> None:
    assert bound_quality(np.empty(0, dtype=int), np.empty((0, 2)), ACCURACY, 0.95) is None
    labels = np.array([0] * 50 + [1] * 9)
    assert bound_quality(labels, np.tile([0.5, 0.5], (59, 1)), AUC, 0.95) is None


def test_a_row_without_a_finite_answer_is_the_worst() -> None:
    labels, probs = np.zeros(50, dtype=int), np.tile([1.0, 0.0], (50, 1))
    worse = probs.copy()
    worse[0] = [0.0, 1.0]
    probs[0] = np.nan
    assert bound_quality(labels, probs, ACCURACY, 0.95) == bound_quality(labels, worse, ACCURACY, 0.95)
