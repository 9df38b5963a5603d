"""Shared arithmetic against closed forms and hand-worked cases."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from stillhouse.stats import (
    brier,
    cluster_ids,
    clustered_error,
    fit_temperature,
    half_brier,
    nanoseconds,
    tempered_log_loss,
    total_variation,
)

HOUR = timedelta(hours=1)
HOUR_NS = 3_600_000_000_000

# --------------------------------------------------------------------------- probabilities


def test_total_variation_by_hand() -> None:
    p = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]])
    q = np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(total_variation(p, q), [0.3, 1.0, 0.0], atol=1e-15)


def test_total_variation_is_at_most_one_and_nan_for_nan() -> None:
    beyond = np.array([[1.0000001, 0.0], [np.nan, np.nan]])
    distance = total_variation(beyond, np.array([[0.0, 1.0000001], [0.5, 0.5]]))
    assert distance[0] == 1.0 and np.isnan(distance[1])


def test_brier_on_both_scales_by_hand() -> None:
    """(0.7 − 1)² + 0.2² + 0.1² = 0.14; certain and wrong is 2; certain and right is 0; 1 − 1/K for the uniform."""
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    labels = np.array([0, 2, 1, 2])
    np.testing.assert_allclose(brier(p, labels), [0.14, 2.0, 0.0, 2 / 3])
    np.testing.assert_allclose(half_brier(p, labels), [0.07, 1.0, 0.0, 1 / 3])


def test_brier_of_two_actions_is_twice_the_squared_error() -> None:
    p = np.linspace(0, 1, 11)
    np.testing.assert_allclose(brier(np.column_stack([1 - p, p]), np.ones(11, dtype=int)), 2 * (1 - p) ** 2)


def test_brier_of_an_unknown_action() -> None:
    np.testing.assert_allclose(brier(np.array([[0.5, 0.5]]), np.array([3])), [1.5])
    assert len(brier(np.empty((0, 2)), np.empty(0, dtype=int))) == 0


def test_tempered_log_loss_by_hand() -> None:
    """At T = 2 the odds 9 : 1 are 3 : 1."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1]])
    np.testing.assert_allclose(tempered_log_loss(logits, np.array([0, 1]), 2.0), [math.log(4 / 3), math.log(4)])


def test_fitted_temperature_gives_the_true_odds() -> None:
    """Confidence 99 : 1, right in 9 of 10: ``99^(1/T) = 9``, T = ln 99 / ln 9."""
    logits, labels = np.log(np.tile([0.99, 0.01], (10, 1))), np.array([0] * 9 + [1])
    assert fit_temperature(logits, labels) == pytest.approx(math.log(99) / math.log(9), rel=1e-4)
    assert fit_temperature(logits, labels, among=[1.0, 2.0, 4.0]) == 2.0


def test_fitted_temperature_has_zero_derivative() -> None:
    """The derivative of the loss by 1/T is Σ_k p_k z_k − z_y: its root by another search."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(200, 4))
    labels = np.where(generator.random(200) < 0.6, logits.argmax(axis=1), generator.integers(0, 4, 200))

    def slope(inverse: float) -> float:
        powers = np.exp(logits * inverse)
        mean = (powers / powers.sum(axis=1, keepdims=True) * logits).sum(axis=1)
        return float((mean - logits[np.arange(200), labels]).mean())

    assert 1 / fit_temperature(logits, labels) == pytest.approx(brentq(slope, 1 / 20, 1 / 0.05), rel=1e-3)


def test_calibrated_model_keeps_temperature_one() -> None:
    logits = np.log(np.tile([0.9, 0.1], (10, 1)))
    assert fit_temperature(logits, np.array([0] * 9 + [1])) == pytest.approx(1.0, abs=1e-4)


# --------------------------------------------------------------------------- clusters


def test_times_as_nanoseconds_in_any_unit() -> None:
    moments = pd.Series(pd.to_datetime(["1970-01-01T00:00:01Z", "2024-01-01T02:00:00+02:00"], utc=True))
    expected = [1_000_000_000, 1_704_067_200_000_000_000]
    for times in (moments, moments.dt.as_unit("us"), moments.dt.as_unit("s"), np.array(expected)):
        result = nanoseconds(times)
        assert result.dtype == np.int64 and result.tolist() == expected


def test_time_blocks_from_the_epoch() -> None:
    times = np.array([0, HOUR_NS - 1, HOUR_NS, 5 * HOUR_NS + 1])
    assert cluster_ids(times, HOUR).tolist() == [0, 0, 1, 5]
    assert cluster_ids(times, timedelta(0)).tolist() == [0, 1, 2, 3]


def test_time_blocks_of_times() -> None:
    times = pd.to_datetime(["2024-01-01T00:10Z", "2024-01-01T00:50Z", "2024-01-01T01:00Z"])
    assert len(set(cluster_ids(times, HOUR))) == 2
    assert cluster_ids(times, timedelta(0)).tolist() == [0, 1, 2]
    assert cluster_ids(pd.Series(times), HOUR, datetime(2024, 1, 1, 0, 30, tzinfo=UTC)).tolist() == [-1, 0, 0]


def test_time_blocks_counted_back() -> None:
    """The end belongs to block 0; a time one length older begins the next."""
    times = np.array([0, 1, HOUR_NS, HOUR_NS + 1, 2 * HOUR_NS])
    assert cluster_ids(times, HOUR, 2 * HOUR_NS, backwards=True).tolist() == [2, 1, 1, 0, 0]


def test_standard_error_of_a_mean() -> None:
    """s / √n with n − 1, or with n: of 1, 2, 3, 4 s² = 5/3, or 5/4."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    influence = (x - x.mean()) / 4
    assert clustered_error(influence, small_sample=True) == pytest.approx(math.sqrt(5 / 3 / 4))
    assert clustered_error(influence, small_sample=True) == pytest.approx(x.std(ddof=1) / 2)
    assert clustered_error(influence, small_sample=False) == pytest.approx(math.sqrt(5 / 4 / 4))


def test_clustered_standard_error_by_hand() -> None:
    """Influences −3/8, −1/8 | 1/8, 3/8: sums −½ and ½, squares ½; G / (G − 1) = 2."""
    influence = np.array([-3, -1, 1, 3]) / 8
    for clusters in (np.array([7, 7, 9, 9]), np.array(["a", "a", "b", "b"])):
        assert clustered_error(influence, clusters, small_sample=False) == pytest.approx(math.sqrt(0.5))
        assert clustered_error(influence, clusters, small_sample=True) == pytest.approx(1.0)
    assert clustered_error(influence, np.zeros(4), small_sample=True) == 0.0
    assert clustered_error(influence, np.arange(4), small_sample=True) == clustered_error(influence, small_sample=True)
