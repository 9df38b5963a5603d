"""A sequence-classification model of Hugging Face as a teacher, read from a local folder as data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import HuggingfaceTeacher
from stillhouse.errors import PartError
from stillhouse.teachers.answers import Array, softmax, wrap_predict
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version
from stillhouse.teachers.pretrained import (
    folder_digest,
    limit_tokens,
    list_names,
    load_model,
    read_texts,
    require_folder,
)

__all__ = ["label_matrix", "make_predictor"]


@describe.register
def _(section: HuggingfaceTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": _version(section, context)}


@open_member.register
def _(section: HuggingfaceTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    require_version(context, entry, _version(section, context))
    leaf, actions = context.leaf, context.config.actions
    predict = make_predictor(section, actions, context.where)
    answer = wrap_predict(leaf.name, actions, predict, timeout=section.call_timeout)
    return Member(leaf.name, leaf.share, answer, entry["version"])


def _version(section: HuggingfaceTeacher, context: MemberContext) -> str:
    """:raises PartError: if the folder cannot be read."""
    where = f"{context.where}.folder"
    folder = require_folder(Path(section.folder), where)
    return answer_version(context, weights_digest=folder_digest(folder, where))


def make_predictor(teacher: HuggingfaceTeacher, actions: Sequence[str], where: str) -> Callable[[pd.DataFrame], Array]:
    """A function from rows to probabilities ``[n, K]`` in the order of ``actions``; its result is not checked.

    :raises PartError: if the folder holds no such model, its weights are incomplete, or the labels do not fit; when
        called, if the model fails.
    """
    folder = require_folder(Path(teacher.folder), f"{where}.folder")
    model, tokenizer = load_model(
        folder, "AutoModelForSequenceClassification", "sequence-classification model", f"{where}.folder"
    )
    to_actions = label_matrix(_read_labels(model.config, where), teacher.labels, actions, where)
    max_tokens = limit_tokens(teacher.max_tokens, model.config, tokenizer)

    def predict(rows: pd.DataFrame) -> Array:
        import torch

        texts, logits = read_texts(teacher.column, teacher.template, actions, rows), []
        for start in range(0, len(texts), teacher.batch_size):
            batch = texts[start : start + teacher.batch_size]
            try:
                encoded = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
                with torch.inference_mode():
                    logits.append(model(**encoded).logits.numpy())
            except Exception as error:
                raise PartError(f"{where}: fails on {len(batch)} rows: {type(error).__name__}: {error}") from error
        probs: Array = softmax(np.concatenate(logits)) @ to_actions
        return probs

    return predict


def label_matrix(names: Sequence[str], labels: Mapping[str, str] | None, actions: Sequence[str], where: str) -> Array:
    """What the model's probabilities ``[n, L]`` are multiplied by to give those of the actions, ``[L, K]``.

    >>> label_matrix(["NEG", "NEUTRAL", "POS"], {"NEG": "no", "NEUTRAL": "no", "POS": "yes"}, ("yes", "no"), "here")
    array([[0., 1.],
           [0., 1.],
           [1., 0.]])

    :param names: of the model's outputs, in their order.
    :param labels: from each name to an action; None: the names are the actions.
    :raises PartError: if a name has no action, an action no name, or ``labels`` holds an unknown name or action.
    """
    if labels is None:
        if set(names) != set(actions):
            raise PartError(
                f"{where}.labels: the labels of the model are {list_names(names)}, not the actions "
                f"{list_names(actions)}: write "
                "an action for each label, such as `labels: {LABEL_0: …, LABEL_1: …}`"
            )
        labels = {action: action for action in actions}
    for wrong, problem in (
        (sorted(set(labels) - set(names)), f"no labels of the model, which has {list_names(names)}"),
        (sorted(set(names) - set(labels)), "labels of the model without an action"),
        (sorted(set(labels.values()) - set(actions)), f"no actions; those are {list_names(actions)}"),
        (sorted(set(actions) - set(labels.values())), "actions without a label: the teacher would never choose them"),
    ):
        if wrong:
            raise PartError(f"{where}.labels: {list_names(wrong)}: {problem}")
    matrix = np.zeros((len(names), len(actions)))
    for row, name in enumerate(names):
        matrix[row, list(actions).index(labels[name])] = 1.0
    return matrix


def _read_labels(config: Any, where: str) -> list[str]:
    """The names of the model's outputs, in their order.

    :raises PartError: if its outputs are not one distribution over two labels or more.
    """
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise PartError(
            f"{where}.folder: the model has {config.num_labels} outputs and problem_type {config.problem_type!r}; it "
            "must choose one of two labels or more"
        )
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if len(set(names)) < len(names):
        raise PartError(f"{where}.folder: two labels of the model have one name: {list_names(names)} (id2label)")
    return names
