"""Quality compared with closed forms and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from stillhouse.errors import WindowError
from stillhouse.evaluate.scorecard import (
    expected_calibration_error,
    measure_agreement,
    measure_disagreement,
    measure_quality,
    score_slices,
)

Array = np.ndarray[Any, Any]


def two_columns(p: Any) -> Array:
    """P(second action) as ``[n, 2]``."""
    p = np.asarray(p, dtype=np.float64)
    return np.column_stack([1 - p, p])


def draw(count: int = 500, actions: int = 2) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(actions, 0.7), count)
    return p, np.array([rng.choice(actions, p=row) for row in p])


def test_an_unknown_action_counts_as_an_error():
    scores = measure_quality(np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), np.array([0, 2, 1, 2]))
    assert (
        scores.accuracy == 0.5
        and scores.log_loss > 8
        and scores.brier == pytest.approx((0.02 + 1.82 + 0.08 + 1.58) / 4)
    )


def test_two_actions_agree_with_scikit_learn() -> None:
    p, labels = draw()
    scores = measure_quality(p.astype(np.float32), labels)
    assert scores.rows == 500
    assert scores.auc == pytest.approx(roc_auc_score(labels, p[:, 1]), abs=1e-6)
    assert scores.log_loss == pytest.approx(log_loss(labels, p), rel=1e-4)
    assert scores.brier == pytest.approx(2 * brier_score_loss(labels, p[:, 1]), rel=1e-5)
    assert scores.accuracy == accuracy_score(labels, p.argmax(axis=1))


def test_four_actions_agree_with_scikit_learn() -> None:
    p, labels = draw(actions=4)
    scores = measure_quality(p, labels)
    assert scores.auc == pytest.approx(roc_auc_score(labels, p, multi_class="ovr", average="macro"), rel=1e-9)
    assert scores.log_loss == pytest.approx(log_loss(labels, p), rel=1e-4)
    assert scores.brier == pytest.approx(brier_score_loss(labels, p, labels=range(4), scale_by_half=False), rel=1e-6)
    assert scores.accuracy == accuracy_score(labels, p.argmax(axis=1))


def test_by_hand() -> None:
    """Rows (.8, .2) → 0, (.4, .6) → 1, (.3, .7) → 0."""
    scores = measure_quality(two_columns([0.2, 0.6, 0.7]), np.array([0, 1, 0]))
    assert scores.auc == 0.5
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.log_loss == pytest.approx(-(np.log(0.8) + np.log(0.6) + np.log(0.3)) / 3, rel=1e-6)
    assert scores.brier == pytest.approx(2 * (0.04 + 0.16 + 0.49) / 3, rel=1e-6)


def test_one_outcome_has_no_auc() -> None:
    assert measure_quality(two_columns([0.2, 0.6]), np.array([1, 1])).auc is None
    assert measure_quality(np.full((3, 3), 1 / 3), np.array([2, 2, 2])).auc is None
    present = measure_quality(np.eye(3)[[0, 1, 0, 1]] * 0.9 + 0.05 / 1.5, np.array([0, 1, 0, 1]))
    assert present.auc == 1.0


def test_a_certain_mistake_costs_much_and_not_infinitely_much() -> None:
    scores = measure_quality(np.array([[1.0, 0.0]]), np.array([1]))
    assert scores.log_loss == pytest.approx(-np.log(1e-7), rel=1e-6)
    assert scores.brier == pytest.approx(2, rel=1e-6)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        measure_quality(np.empty((0, 2)), np.empty(0, dtype=int))


# --------------------------------------------------------------------------- calibration


def test_a_calibrated_model_has_no_calibration_error() -> None:
    """Of ten rows with probability .8 eight are correct, of ten with .6 six."""
    p = two_columns([0.8] * 10 + [0.6] * 10)
    labels = np.array([1] * 8 + [0] * 2 + [1] * 6 + [0] * 4)
    assert expected_calibration_error(p, labels, bins=2) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(p, labels) == pytest.approx(0, abs=1e-12)


def test_a_model_that_is_always_certain_is_off_by_its_mistakes() -> None:
    labels = np.array([1, 0, 1, 0] * 25)
    assert expected_calibration_error(two_columns([1.0] * 100), labels) == pytest.approx(0.5)


def test_two_bins_by_hand() -> None:
    """Bins (.6, .7) and (.8, .9) with accuracies 0 and 1: ½ |0 − .65| + ½ |1 − .85| = .4"""
    p, labels = two_columns([0.6, 0.7, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert expected_calibration_error(p, labels, bins=2) == pytest.approx(0.4)
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(abs(0.5 - 0.75))
    assert expected_calibration_error(p, labels, bins=100) == pytest.approx((0.6 + 0.7 + 0.2 + 0.1) / 4)


def test_bins_hold_equally_many_rows() -> None:
    """The plain algorithm: sort, cut into 15 equal parts, compare."""
    p, labels = draw(1500)
    order = np.argsort(p.max(axis=1))
    correct = p.argmax(axis=1) == labels
    gaps = [abs(correct[part].mean() - p.max(axis=1)[part].mean()) for part in np.split(order, 15)]
    assert expected_calibration_error(p, labels) == pytest.approx(np.mean(gaps), rel=1e-9)


def test_the_order_of_rows_does_not_matter_even_with_ties() -> None:
    p, labels = two_columns(np.repeat([0.7, 0.9], 50)), np.tile([0, 1, 1, 1, 1], 20)
    rng = np.random.default_rng(0)
    result = set()
    for _ in range(5):
        order = rng.permutation(100)
        result.add(round(expected_calibration_error(p[order], labels[order]), 12))
    assert result == {round((0.1 + 0.1) / 2, 12)}


# --------------------------------------------------------------------------- slices, agreement


def test_a_slice_is_the_quality_of_its_rows() -> None:
    p, labels = draw(200)
    rows = pd.DataFrame({"origin": np.where(np.arange(200) < 50, "JFK", "EWR"), "carrier": [None, "AA"] * 100})
    by_slice = score_slices(rows, p, labels, ("origin", "carrier"))
    assert list(by_slice) == ["origin=EWR", "origin=JFK", "carrier=AA"]
    assert by_slice["origin=JFK"] == measure_quality(p[:50], labels[:50])
    assert by_slice["carrier=AA"] == measure_quality(p[1::2], labels[1::2])
    assert score_slices(rows, p, labels, ()) == {}


def test_agreement_and_disagreement_by_hand() -> None:
    """Total variation .2 and .4: mean .3; one of two rows chooses another action."""
    teacher, student = two_columns([0.3, 0.4]), two_columns([0.1, 0.8])
    assert measure_agreement(teacher, student) == pytest.approx(0.7)
    assert measure_agreement(teacher, teacher) == 1.0
    assert measure_agreement(two_columns([0, 1]), two_columns([1, 0])) == 0.0
    difference = measure_disagreement(teacher, student)
    assert (difference.rows, difference.rate) == (2, 0.5)
    assert difference.total_variation == pytest.approx(0.3)
    with pytest.raises(ValueError, match="must be"):
        measure_disagreement(teacher, student[:1])
    with pytest.raises(WindowError):
        measure_disagreement(teacher[:0], student[:0])
