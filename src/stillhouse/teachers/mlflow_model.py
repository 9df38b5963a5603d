"""A model from MLflow as a teacher. It comes through a :class:`~stillhouse.parts.ModelStore` that is handed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from stillhouse.config import MlflowTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ModelStore
from stillhouse.teachers.answers import softmax

__all__ = ["pinned_like", "predictor"]


def pinned_like(uri: str, pinned: str) -> bool:
    """Whether ``pinned`` is a version of what the agent file names: a stored teacher can name no other model."""
    alias = re.fullmatch(r"models:/([^/@]+)@.+", uri)
    if alias is None:
        return pinned == uri
    return re.fullmatch(rf"models:/{re.escape(alias[1])}/\d+", pinned) is not None


def predictor(
    teacher: MlflowTeacher, pinned: str, models: ModelStore, actions: Sequence[str], columns: Sequence[str], where: str
) -> Callable[[pd.DataFrame], Any]:
    """Rows to ``[n, K]`` in the order of ``actions``; not yet checked.

    :param columns: what it is given where the teacher names none.
    """
    predict, given = models.load(pinned), list(teacher.columns or columns)

    def ask(rows: pd.DataFrame) -> Any:
        try:
            said = predict(rows[given])
        except Exception as error:
            raise PartError(f"{where}: {pinned} fails on {len(rows)} rows: {type(error).__name__}: {error}") from error
        values = _in_order(said, actions)
        return softmax(values) if teacher.answers == "logits" else values

    return ask


def _in_order(said: Any, actions: Sequence[str]) -> Any:
    """The columns that are named after the actions, where the model gives named ones."""
    if isinstance(said, pd.DataFrame):
        for names in (list(actions), [f"p_{action}" for action in actions]):
            if set(names) <= set(said.columns):
                return said[names].to_numpy()
    return said
