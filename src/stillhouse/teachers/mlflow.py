"""A model from MLflow as a teacher. It comes through a :class:`~stillhouse.parts.ModelStore` that is handed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import MlflowTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ModelStore
from stillhouse.teachers.answers import in_process, softmax
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version

__all__ = ["pinned_like", "predictor"]


@describe.register
def _(section: MlflowTeacher, context: MemberContext) -> dict[str, Any]:
    pinned = _store(context).pin(section.uri)
    return {"pinned": pinned, "version": _version(section, context, pinned)}


@open_member.register
def _(section: MlflowTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    config, leaf, pinned = context.config, context.leaf, part.get("pinned", "")
    require_version(context, part, _version(section, context, pinned))
    columns = list(config.observations.columns)
    predict = predictor(section, pinned, _store(context), config.actions, columns, context.where)
    answer = in_process(leaf.name, config.actions, predict, timeout=section.call_timeout)
    return Member(leaf.name, leaf.share, answer, part["version"])


def _version(section: MlflowTeacher, context: MemberContext, pinned: str) -> str:
    if not pinned_like(section.uri, pinned):
        raise PartError(f"{context.where}: the stored teacher has {pinned!r}, which is not {section.uri!r}")
    return answer_version(context, pinned)


def _store(context: MemberContext) -> ModelStore:
    if context.models is None:
        raise PartError(
            f"{context.where}: comes from MLflow and can be asked by the flows only; load the model by its own address"
        )
    return context.models


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
    trust: dict[str, Any] = {"digest": teacher.digest, "trusts_code": teacher.trusts_code} if teacher.digest else {}
    try:
        predict = models.load(pinned, **trust)
    except PartError as error:
        raise PartError(f"{where}: {error}") from error
    given = list(teacher.columns or columns)

    def ask(rows: pd.DataFrame) -> Any:
        try:
            said = predict(rows[given])
        except PartError as error:
            raise PartError(f"{where}: {pinned}: {error}") from error
        except Exception as error:
            raise PartError(f"{where}: {pinned} fails on {len(rows)} rows: {type(error).__name__}: {error}") from error
        try:
            values = _in_order(said, actions)
        except PartError as error:
            raise PartError(f"{where}: {pinned}: {error}") from error
        return softmax(values) if teacher.answers == "logits" else values

    return ask


def _in_order(said: Any, actions: Sequence[str]) -> Any:
    """The columns named after the actions, or, of several outputs, the one that has a value for each action."""
    if isinstance(said, pd.DataFrame):
        for names in (list(actions), [f"p_{action}" for action in actions]):
            if set(names) <= set(said.columns):
                return said[names].to_numpy()
    if isinstance(said, Mapping) or (isinstance(said, list | tuple) and said and isinstance(said[0], np.ndarray)):
        outputs = list(said.values()) if isinstance(said, Mapping) else list(said)
        return _one_of(outputs, actions)
    return said


def _one_of(outputs: Sequence[Any], actions: Sequence[str]) -> Any:
    """The one output that has a value for each action: an array ``[n, K]``, or a list of values by class."""
    tables = [
        pd.DataFrame(each) if isinstance(each, list) and each and isinstance(each[0], Mapping) else each
        for each in outputs
    ]
    fitting = [each for each in tables if np.ndim(each) == 2 and np.shape(each)[1] == len(actions)]
    if len(fitting) != 1:
        shapes = ", ".join(str(list(np.shape(each))) for each in tables)
        raise PartError(
            f"it gives {shapes}, and one output [n, {len(actions)}] is needed, with a value for each action: log it "
            f"with that output alone"
        )
    (found,) = fitting
    if isinstance(found, pd.DataFrame):
        return found[list(actions)].to_numpy() if set(actions) <= set(found.columns) else found.to_numpy()
    return found
