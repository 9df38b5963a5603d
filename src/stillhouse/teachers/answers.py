"""What a teacher answers, held against what an answer must be, and what it cost."""

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
from stillhouse.teachers.calling import call

__all__ = [
    "Allowance",
    "Answering",
    "Answers",
    "Array",
    "Features",
    "checked",
    "checked_features",
    "in_process",
    "softmax",
]

Array = np.ndarray[Any, np.dtype[np.float64]]
Features = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Allowance:
    """What may still be spent; None: as much as it takes."""

    calls: int | None = None
    money: float | None = None

    def take(self, money: float = 0.0) -> bool:
        """Set one call and so much money aside, if that much is left."""
        if (self.calls is not None and self.calls < 1) or (self.money is not None and self.money < money):
            return False
        self.calls = None if self.calls is None else self.calls - 1
        self.give_back(-money)
        return True

    def give_back(self, money: float) -> None:
        """What was set aside and not needed."""
        self.money = None if self.money is None else self.money + money

    def rows(self, wanted: int) -> int:
        """How many of so many rows may be put to a teacher that costs one call each; they are taken."""
        if self.calls is None:
            return wanted
        granted = min(wanted, self.calls)
        self.calls -= granted
        return granted


@dataclass(frozen=True)
class Answers:
    """What was said about n rows.

    :param probabilities: float64 ``[n, K]``, NaN where there is no usable answer.
    :param refused: position among the rows → why its own answer is of no use. What a server failed at is none of these.
    :param stopped: why asking ended before all rows were asked about, if it did.
    :param notes: what was found out about the teacher on the way, such as what its server does not offer.
    :param features: float32 ``[n, D]`` where the teacher gives any, NaN where it was not asked.
    """

    probabilities: Array
    spending: Spending
    refused: Mapping[int, str] = field(default_factory=dict)
    stopped: str | None = None
    features: Features | None = None
    notes: tuple[str, ...] = ()


Answering = Callable[[pd.DataFrame, Allowance], Answers]
"""Rows and what may be spent on them → :class:`Answers`."""


def checked(name: str, said: object, rows: int, actions: Sequence[str]) -> Array:
    """``said`` as float64 ``[rows, K]``, if it is a probability per row and action.

    :raises PartError: if the shape is another, or a row holds something else than probabilities that sum to 1.
    """
    try:
        answer = np.asarray(said)
    except Exception as error:
        raise PartError(f"teacher {name!r} answered with a {type(said).__name__} that is no array: {error}") from error
    if answer.shape != (rows, len(actions)):
        raise PartError(f"teacher {name!r} answered with shape {answer.shape}, not {(rows, len(actions))}")
    try:
        answer = answer.astype(np.float64, casting="unsafe" if answer.dtype == object else "same_kind")
    except (TypeError, ValueError) as error:
        raise PartError(f"teacher {name!r} answered with {answer.dtype} values, not with numbers") from error
    if not (np.isfinite(answer).all() and (answer >= 0).all() and np.allclose(answer.sum(axis=1), 1.0, atol=1e-3)):
        raise PartError(f"teacher {name!r} answered with values that are not probabilities (rows must sum to 1)")
    return answer


def checked_features(name: str, said: object, rows: int) -> Features:
    """``said`` as float32 ``[rows, D]``, if it is finite.

    :raises PartError: if the shape is another, or it holds something else than finite numbers.
    """
    try:
        given = np.asarray(said).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise PartError(f"teacher {name!r} gives features that are not numbers: {error}") from error
    if given.ndim != 2 or len(given) != rows or not given.shape[1]:
        raise PartError(f"teacher {name!r} gives features of shape {given.shape}, not ({rows}, D)")
    if not np.isfinite(given).all():
        raise PartError(f"teacher {name!r} gives features that are not finite")
    return given


def softmax(logits: object) -> Array:
    """Logits ``[n, K]`` as probabilities; NaN and infinity stay visible as NaN."""
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def in_process(
    name: str,
    actions: Sequence[str],
    predict: Callable[[pd.DataFrame], object],
    features: Callable[[pd.DataFrame], object] | None = None,
    timeout: timedelta | None = None,
) -> Answering:
    """A teacher that runs here: one call a row, no money; what it says is checked as a whole.

    :param features: what it makes of the rows inside, ``[n, D]``, where students are to match that.
    :param timeout: of one call; None: as long as it takes.
    :raises PartError: when it is asked and fails, takes longer, or answers with something else than probabilities.
    """

    def answer(rows: pd.DataFrame, allowance: Allowance) -> Answers:
        granted = allowance.rows(len(rows))
        asked = rows.iloc[:granted]
        said = np.full((len(rows), len(actions)), np.nan)
        inside, began = None, perf_counter()
        if granted:
            what = f"teacher {name!r} on {granted} rows"
            said[:granted] = checked(name, call(what, timeout, predict, asked), granted, actions)
        if granted and features is not None:
            given = checked_features(name, call(f"{what} (features)", timeout, features, asked), granted)
            inside = np.full((len(rows), given.shape[1]), np.nan, dtype=np.float32)
            inside[:granted] = given
        spending = Spending(calls=granted, rows=granted, seconds=perf_counter() - began)
        stopped = None if granted == len(rows) else "the budget of calls is reached"
        return Answers(said, spending, stopped=stopped, features=inside)

    return answer
