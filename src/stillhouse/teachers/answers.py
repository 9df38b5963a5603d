"""What a teacher answers: probabilities per row, checked, with what the answers cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.errors import PartError
from stillhouse.records import Spending
from stillhouse.teachers.user_code import call_user_code

__all__ = [
    "BUDGET_REACHED",
    "Allowance",
    "AnswerFunction",
    "Answers",
    "Array",
    "Features",
    "check_features",
    "check_probs",
    "softmax",
    "wrap_predict",
]

Array = np.ndarray[Any, np.dtype[np.float64]]
Features = np.ndarray[Any, np.dtype[np.float32]]

BUDGET_REACHED = "the budget is reached"
"""Stop reason of a teacher that asks no further because its allowance is spent."""


@dataclass
class Allowance:
    """What a teacher may still spend on answers. It is reduced in place.

    >>> allowance = Allowance(calls=2, money=0.5)
    >>> allowance.take(0.4), allowance.take(0.4)
    (True, False)
    >>> allowance.calls
    1

    :param calls: calls left; None: no limit.
    :param money: money left, in the unit of the agent file's prices; None: no limit.
    """

    calls: int | None = None
    money: float | None = None

    def take(self, money: float = 0.0) -> bool:
        """Reserve one call and ``money`` if that much is left; False if it is not."""
        if (self.calls is not None and self.calls < 1) or (self.money is not None and self.money < money):
            return False
        self.calls = None if self.calls is None else self.calls - 1
        self.refund(-money)
        return True

    def refund(self, money: float) -> None:
        """Return money that was reserved and not spent."""
        self.money = None if self.money is None else self.money + money

    def take_calls(self, count: int) -> int:
        """Reserve up to ``count`` calls and return how many were reserved."""
        if self.calls is None:
            return count
        granted = min(count, self.calls)
        self.calls -= granted
        return granted


@dataclass(frozen=True)
class Answers:
    """A teacher's answers to n rows.

    :param probabilities: float64 ``[n, K]``; a row is NaN if there is no usable answer to it.
    :param refused: row index → why the answer to this row is unusable. Failures of the server are not listed here.
    :param stop_reason: why the teacher stopped before all rows were asked; None: it did not.
    :param features: float32 ``[n, D]`` if the teacher gives features, NaN for rows that were not asked.
    :param notes: what was learned about the teacher, such as parameters that its server does not support.
    """

    probabilities: Array
    spending: Spending
    refused: Mapping[int, str] = field(default_factory=dict)
    stop_reason: str | None = None
    features: Features | None = None
    notes: tuple[str, ...] = ()


AnswerFunction = Callable[[pd.DataFrame, Allowance], Answers]
"""Rows and the allowance for them → :class:`Answers`."""


def check_probs(name: str, answer: object, rows: int, actions: Sequence[str]) -> Array:
    """``answer`` as float64 ``[rows, K]``, if it holds one probability per row and action.

    >>> check_probs("rules", [[0.25, 0.75]], 1, ("wait", "go"))
    array([[0.25, 0.75]])

    :param name: of the teacher, for the error.
    :raises PartError: if the shape differs, or a row is not a probability distribution (sum 1 ± 0.001).
    """
    try:
        probs = np.asarray(answer)
    except Exception as error:
        raise PartError(
            f"teacher {name!r} answered with a {type(answer).__name__} that is no array: {error}"
        ) from error
    if probs.shape != (rows, len(actions)):
        raise PartError(f"teacher {name!r} answered with shape {probs.shape}, not {(rows, len(actions))}")
    try:
        probs = probs.astype(np.float64, casting="unsafe" if probs.dtype == object else "same_kind")
    except (TypeError, ValueError) as error:
        raise PartError(f"teacher {name!r} answered with {probs.dtype} values, not with numbers") from error
    if not (np.isfinite(probs).all() and (probs >= 0).all() and np.allclose(probs.sum(axis=1), 1.0, atol=1e-3)):
        raise PartError(f"teacher {name!r} answered with values that are not probabilities (rows must sum to 1)")
    return probs


def check_features(name: str, answer: object, rows: int) -> Features:
    """``answer`` as float32 ``[rows, D]``, if it holds finite numbers.

    :param name: of the teacher, for the error.
    :raises PartError: if the shape differs, or a value is not a finite number.
    """
    try:
        features = np.asarray(answer).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise PartError(f"teacher {name!r} gives features that are not numbers: {error}") from error
    if features.ndim != 2 or len(features) != rows or not features.shape[1]:
        raise PartError(f"teacher {name!r} gives features of shape {features.shape}, not ({rows}, D)")
    if not np.isfinite(features).all():
        raise PartError(f"teacher {name!r} gives features that are not finite")
    return features


def softmax(logits: object) -> Array:
    """Logits ``[n, K]`` as probabilities; a row with NaN or infinity becomes NaN."""
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        probs: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probs


def wrap_predict(
    name: str,
    actions: Sequence[str],
    predict: Callable[[pd.DataFrame], object],
    features: Callable[[pd.DataFrame], object] | None = None,
    timeout: timedelta | None = None,
) -> AnswerFunction:
    """Turn a predict function that runs in this process into an :data:`AnswerFunction`.

    Each row counts as one call and costs no money. All answers of a call are checked together.

    >>> answer = wrap_predict("coin", ("wait", "go"), lambda rows: [[0.5, 0.5]] * len(rows))
    >>> answers = answer(pd.DataFrame({"temp": [1.0, 2.0]}), Allowance(calls=1))
    >>> answers.probabilities
    array([[0.5, 0.5],
           [nan, nan]])
    >>> answers.stop_reason
    'the budget of calls is reached'

    :param predict: rows → ``[n, K]``.
    :param features: rows → hidden representation ``[n, D]`` that students may match.
    :param timeout: limit of one call; None: no limit.
    :raises PartError: when called, if the user's code fails, exceeds ``timeout`` or gives no probabilities.
    """

    def answer(rows: pd.DataFrame, allowance: Allowance) -> Answers:
        granted = allowance.take_calls(len(rows))
        granted_rows = rows.iloc[:granted]
        probs = np.full((len(rows), len(actions)), np.nan)
        hidden, began = None, perf_counter()
        if granted:
            what = f"teacher {name!r} on {granted} rows"
            probs[:granted] = check_probs(name, call_user_code(what, timeout, predict, granted_rows), granted, actions)
        if granted and features is not None:
            values = call_user_code(f"{what} (features)", timeout, features, granted_rows)
            checked = check_features(name, values, granted)
            hidden = np.full((len(rows), checked.shape[1]), np.nan, dtype=np.float32)
            hidden[:granted] = checked
        spending = Spending(calls=granted, rows=granted, seconds=perf_counter() - began)
        stop_reason = None if granted == len(rows) else "the budget of calls is reached"
        return Answers(probs, spending, stop_reason=stop_reason, features=hidden)

    return answer
