"""A linear head on embeddings: multinomial logistic regression, its penalty and temperature chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stillhouse.teachers.answers import Array, softmax
from stillhouse.teachers.embeddings import Embeddings

__all__ = ["FoldedHead", "Head", "assign_folds", "fit_folded_head", "fit_head", "fit_regression"]

Labels = np.ndarray[Any, np.dtype[np.int64]]

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Inverse strengths of the L2 penalty that are tried, from the strongest penalty to the weakest."""

_BELOW_OTHERS = 10.0  # the bias of an action without examples lies so far below the smallest of the others
_MAX_ITERATIONS = 500


class Head(NamedTuple):
    """Multinomial logistic regression on embeddings, calibrated by a temperature."""

    weights: Embeddings  # [D, K]
    bias: Embeddings  # [K]
    temperature: float

    def logits(self, embeddings: Embeddings) -> Array:
        """The logits divided by the temperature, float64 ``[n, K]``."""
        logits: Array = (embeddings.astype(np.float64) @ self.weights + self.bias) / self.temperature
        return logits

    def probs(self, embeddings: Embeddings) -> Array:
        """The probability of each action, float64 ``[n, K]``."""
        return softmax(self.logits(embeddings))


class FoldedHead(NamedTuple):
    """A head, and for each row it was fitted on a head that has not seen this row."""

    head: Head
    folds: tuple[Head, ...]
    """Head ``f`` has not seen the rows of fold ``f``."""
    fold_of_row: Labels
    strength: float


def fit_folded_head(
    embeddings: Embeddings,
    labels: Labels,
    size: int,
    strength: float | None,
    folds: int,
    groups: Sequence[object] | None = None,
) -> FoldedHead:
    """Fit a head for ``size`` actions, and its temperature on held-out folds.

    Without ``strength``, the first fold chooses it: from the strongest penalty on, each fit begins where the last one
    ended, until the log loss at the best temperature rises. Temperature scaling: Guo et al. 2017, "On Calibration of
    Modern Neural Networks", §4.2; here on the logits of heads fitted on the other folds. The bias of an action without
    examples is the smallest bias of the other actions − 10.

    :param embeddings: ``[n, D]``, n ≥ 1.
    :param labels: action indices, 0 … ``size`` − 1, ``[n]``.
    :param strength: inverse strength of the L2 penalty.
    :param groups: rows of one group are in one fold, such as equal texts; None: each row is its own.
    """
    fold = assign_folds(labels, folds, groups)
    if strength is None:
        strength = _choose_strength(embeddings, labels, size, fold == 0)
    heads, held_out_logits, is_known = [], np.empty((len(labels), size)), np.zeros(len(labels), dtype=bool)
    for number in range(fold.max() + 1):
        others, held_out = fold != number, fold == number
        train = others if others.any() else held_out  # a single row
        head = fit_regression(embeddings[train], labels[train], size, strength)
        heads.append(head)
        held_out_logits[held_out] = head.logits(embeddings[held_out])
        is_known[held_out] = np.isin(labels[held_out], labels[train]) & bool(others.any())
    temperature = _fit_temperature(held_out_logits[is_known], labels[is_known])[0]
    head = fit_regression(embeddings, labels, size, strength)
    calibrated = [head._replace(temperature=temperature) for head in (head, *heads)]
    return FoldedHead(calibrated[0], tuple(calibrated[1:]), fold, strength)


def fit_head(embeddings: Embeddings, labels: Labels, size: int, strength: float | None, folds: int) -> Head:
    """The head of :func:`fit_folded_head` alone."""
    return fit_folded_head(embeddings, labels, size, strength, folds).head


def fit_regression(embeddings: Embeddings, labels: Labels, size: int, strength: float) -> Head:
    """Fit a head for ``size`` actions with temperature 1; see :func:`fit_folded_head`."""
    seen = np.unique(labels)
    if len(seen) == 1:
        bias = np.full(size, -_BELOW_OTHERS, dtype=np.float32)
        bias[seen] = 0.0
        return Head(np.zeros((embeddings.shape[1], size), dtype=np.float32), bias, 1.0)
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(embeddings, labels)
    return _to_head(model, embeddings.shape[1], size)


def assign_folds(labels: Labels, folds: int, groups: Sequence[object] | None = None) -> Labels:
    """The fold of each row, int ``[n]`` in 0 … folds − 1; every fold contains each action if it has groups enough.

    >>> assign_folds(np.array([0, 0, 1, 1]), 2).tolist(), assign_folds(np.array([0, 0, 1, 1]), 2, "aabc").tolist()
    ([0, 1, 0, 1], [0, 0, 1, 0])
    """
    codes = np.arange(len(labels)) if groups is None else np.unique(np.array(list(groups)), return_inverse=True)[1]
    _, first = np.unique(codes, return_index=True)
    order = np.argsort(labels[first], kind="stable")
    fold_of_group = np.empty(len(first), dtype=np.int64)
    fold_of_group[order] = np.arange(len(first)) % min(folds, len(first))
    fold: Labels = fold_of_group[codes]
    return fold


def _choose_strength(embeddings: Embeddings, labels: Labels, size: int, held_out: np.ndarray[Any, Any]) -> float:
    """The strength with the least log loss on the held-out rows whose action the other rows contain."""
    train = ~held_out
    judged = held_out & np.isin(labels, labels[train])
    if len(np.unique(labels[train])) < 2 or not judged.any():
        return 1.0
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
    best, least = STRENGTHS[0], np.inf
    for strength in STRENGTHS:
        head = _to_head(model.set_params(C=strength).fit(embeddings[train], labels[train]), embeddings.shape[1], size)
        loss = _fit_temperature(head.logits(embeddings[judged]), labels[judged])[1]
        if loss >= least:
            break
        best, least = strength, loss
    return best


def _fit_temperature(logits: Array, labels: Labels) -> tuple[float, float]:
    """The temperature with the least mean log loss, and this loss; 1 if there is no row."""
    if not len(labels):
        return 1.0, 0.0
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - scaled[np.arange(len(labels)), labels]).mean())

    minimum = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(minimum.x)), float(minimum.fun)


def _to_head(model: Any, width: int, size: int) -> Head:
    """A fitted regression of scikit-learn as a head for all actions."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # for two classes, scikit-learn stores one row
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.append(-intercepts, intercepts) / 2
    weights = np.zeros((width, size), dtype=np.float32)
    bias = np.full(size, intercepts.min() - _BELOW_OTHERS, dtype=np.float32)
    weights[:, model.classes_], bias[model.classes_] = coefficients.T, intercepts
    return Head(weights, bias, 1.0)
