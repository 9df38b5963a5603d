"""A head on embeddings: held-out folds, the penalty that they choose, and actions that are rare or absent."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.teachers.heads import STRENGTHS, assign_folds, fit_folded_head, fit_head


def separable(count: int, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Three actions, each with a direction of its own in 6 dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    return (np.eye(6)[labels] + noise * rng.normal(size=(count, 6))).astype(np.float32), labels


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


def test_chosen_strength_is_as_good_as_the_best_of_the_grid() -> None:
    (x, y), (new_x, new_y) = separable(200, noise=0.8), separable(4000, seed=1, noise=0.8)
    fitted = fit_folded_head(x, y, 3, None, 3)
    losses = {strength: log_loss(fit_head(x, y, 3, strength, 3).probs(new_x), new_y) for strength in STRENGTHS}
    assert fitted.strength in STRENGTHS
    assert log_loss(fitted.head.probs(new_x), new_y) < min(losses.values()) + 0.02


def test_weak_evidence_gets_a_stronger_penalty_than_clear_evidence() -> None:
    rng = np.random.default_rng(3)
    noise = fit_folded_head(rng.normal(size=(90, 40)).astype(np.float32), rng.integers(3, size=90), 3, None, 3)
    assert noise.strength == STRENGTHS[0]
    assert fit_folded_head(*separable(600, noise=0.2), 3, None, 3).strength > STRENGTHS[0]


def test_fold_heads_have_not_seen_their_rows() -> None:
    x, y = separable(120)
    fitted = fit_folded_head(x, y, 3, 10.0, 4)
    for fold, head in enumerate(fitted.folds):
        others = fitted.fold_of_row != fold
        expected = fit_head(x[others], y[others], 3, 10.0, 4)
        np.testing.assert_allclose(head.weights, expected.weights, atol=1e-3)
        assert head.temperature == fitted.head.temperature


def test_groups_stay_together_and_folds_contain_each_action() -> None:
    labels = np.repeat([0, 1, 2], 12)
    groups = [f"text {number // 2}" for number in range(36)]
    fold = assign_folds(labels, 3, groups)
    assert all(fold[number] == fold[number + 1] for number in range(0, 36, 2))
    for action in range(3):
        assert np.bincount(fold[labels == action], minlength=3).tolist() == [4, 4, 4]


@pytest.mark.parametrize("strength", [None, 3.0])
@pytest.mark.parametrize("labels", [[0], [1, 1], [0, 2], [0, 0, 0, 2], [2] * 5])
def test_few_rows_and_absent_actions(labels: list[int], strength: float | None) -> None:
    x = np.eye(6, dtype=np.float32)[: len(labels)]
    probs = fit_head(x, np.array(labels), 3, strength, 3).probs(x)
    assert np.isfinite(probs).all() and np.allclose(probs.sum(axis=1), 1)
    assert (probs[:, 1] < 0.01).all() or 1 in labels


def test_a_single_example_of_an_action_does_not_flatten_the_others() -> None:
    x, y = separable(90)
    rare = np.append(y, 3)
    head = fit_head(np.vstack([x, -np.ones(6, dtype=np.float32)]), rare, 4, 10.0, 3)
    assert head.temperature == pytest.approx(fit_head(x, y, 3, 10.0, 3).temperature, rel=0.3)
