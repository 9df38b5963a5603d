"""A model from MLflow as a teacher. A :class:`~stillhouse.parts.ModelStore`, passed in by the caller, loads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import MlflowTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ModelStore
from stillhouse.teachers.answers import softmax, wrap_predict
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version

__all__ = ["is_version_of", "make_predictor"]


@describe.register
def _(section: MlflowTeacher, context: MemberContext) -> dict[str, Any]:
    pinned = _require_store(context).pin(section.uri)
    return {"pinned": pinned, "version": _version(section, context, pinned)}


@open_member.register
def _(section: MlflowTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    config, leaf, pinned = context.config, context.leaf, entry.get("pinned", "")
    require_version(context, entry, _version(section, context, pinned))
    columns = list(config.observations.columns)
    predict = make_predictor(section, pinned, _require_store(context), config.actions, columns, context.where)
    answer = wrap_predict(leaf.name, config.actions, predict, timeout=section.call_timeout)
    return Member(leaf.name, leaf.share, answer, entry["version"])


def _version(section: MlflowTeacher, context: MemberContext, pinned: str) -> str:
    """:raises PartError: if ``pinned`` is not a version of the section's model."""
    if not is_version_of(section.uri, pinned):
        raise PartError(f"{context.where}: the stored teacher has {pinned!r}, which is not {section.uri!r}")
    return answer_version(context, pinned)


def _require_store(context: MemberContext) -> ModelStore:
    if context.models is None:
        raise PartError(
            f"{context.where}: comes from MLflow and can be asked by the flows only; load the model by its own address"
        )
    return context.models


def is_version_of(uri: str, pinned: str) -> bool:
    """Whether ``pinned`` is a version of the model at ``uri``. It stops a stored teacher from naming another model.

    >>> is_version_of("models:/big@champion", "models:/big/3")
    True
    >>> is_version_of("models:/big@champion", "models:/other/3")
    False
    """
    alias = re.fullmatch(r"models:/([^/@]+)@.+", uri)
    if alias is None:
        return pinned == uri
    return re.fullmatch(rf"models:/{re.escape(alias[1])}/\d+", pinned) is not None


def make_predictor(
    teacher: MlflowTeacher, pinned: str, models: ModelStore, actions: Sequence[str], columns: Sequence[str], where: str
) -> Callable[[pd.DataFrame], Any]:
    """A function from rows to ``[n, K]`` in the order of ``actions``; its result is not checked.

    :param pinned: address of one version of the model.
    :param columns: the model's input if the section names no columns.
    :raises PartError: if the model cannot be loaded; when called, if the model fails or its output has another form.
    """
    trust: dict[str, Any] = {"digest": teacher.digest, "trusts_code": teacher.trusts_code} if teacher.digest else {}
    try:
        predict = models.load(pinned, **trust)
    except PartError as error:
        raise PartError(f"{where}: {error}") from error
    inputs = list(teacher.columns or columns)

    def predict_actions(rows: pd.DataFrame) -> Any:
        try:
            output = predict(rows[inputs])
        except PartError as error:
            raise PartError(f"{where}: {pinned}: {error}") from error
        except Exception as error:
            raise PartError(f"{where}: {pinned} fails on {len(rows)} rows: {type(error).__name__}: {error}") from error
        try:
            values = _select_actions(output, actions)
        except PartError as error:
            raise PartError(f"{where}: {pinned}: {error}") from error
        return softmax(values) if teacher.answers == "logits" else values

    return predict_actions


def _select_actions(output: Any, actions: Sequence[str]) -> Any:
    """The columns named after the actions; of several outputs, the one with a value per action."""
    if isinstance(output, pd.DataFrame):
        for names in (list(actions), [f"p_{action}" for action in actions]):
            if set(names) <= set(output.columns):
                return output[names].to_numpy()
    is_list_of_arrays = isinstance(output, list | tuple) and output and isinstance(output[0], np.ndarray)
    if isinstance(output, Mapping) or is_list_of_arrays:
        return _pick_output(list(output.values()) if isinstance(output, Mapping) else list(output), actions)
    return output


def _pick_output(outputs: Sequence[Any], actions: Sequence[str]) -> Any:
    """The only output that has a value per action: an array ``[n, K]``, or a list with one mapping by class a row.

    :raises PartError: if there is none, or several.
    """
    tables = [
        pd.DataFrame(output) if isinstance(output, list) and output and isinstance(output[0], Mapping) else output
        for output in outputs
    ]
    matching = [table for table in tables if np.ndim(table) == 2 and np.shape(table)[1] == len(actions)]
    if len(matching) != 1:
        shapes = ", ".join(str(list(np.shape(table))) for table in tables)
        raise PartError(
            f"it gives {shapes}, and one output [n, {len(actions)}] is needed, with a value for each action: log it "
            f"with that output alone"
        )
    (table,) = matching
    if isinstance(table, pd.DataFrame):
        return table[list(actions)].to_numpy() if set(actions) <= set(table.columns) else table.to_numpy()
    return table
