"""Extends a trained student by new actions and new values of its columns; its trained weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.distill.students import Student
from stillhouse.distill.students.encoders import TextEncoder
from stillhouse.errors import SchemaError
from stillhouse.variant import UNKNOWN

__all__ = ["Columns", "extend_columns", "grow_student", "require_same_architecture", "transfer_weights"]

Columns = Sequence[dict[str, Any]]
"""The student's input columns, as ``columns.json`` stores them."""

CHANGEABLE_SETTINGS = ("cardinalities", "embedding", "texts", "actions", "dropout")
"""Keys of a student's ``spec`` that may differ between an old student and a new one."""

VOCABULARY_KEYS = {"category": "values", "text": "tokens"}
"""By type of column: the key of the list whose order gives the codes."""

MIN_ACTION_SHARE = 1e-3


def extend_columns(old: Columns, new: Columns) -> list[dict[str, Any]]:
    """The ``old`` columns with the values and tokens that only ``new`` ones have appended, so that all codes stay.

    Old values that ``new`` lacks stay too: their codes are trained. A new token of a text is
    appended only if it contains a character that no old token has: other new tokens would change how known words are
    split.

    :raises SchemaError: if columns were added, removed, or changed their type or length: that needs another student.

    >>> old, new = ([{"name": "place", "type": "category", "values": values}] for values in (["b", "a"], ["a", "c"]))
    >>> extend_columns(old, new)[0]["values"]
    ['b', 'a', 'c']
    """
    if [(c["name"], c["type"]) for c in old] != [(c["name"], c["type"]) for c in new]:
        old_names, new_names = ([column["name"] for column in columns] for columns in (old, new))
        raise SchemaError(f"the student reads the columns {old_names}, and the agent file has {new_names} now")
    extended: list[dict[str, Any]] = []
    for before, after in zip(old, new, strict=True):
        key = VOCABULARY_KEYS.get(before["type"])
        if any(before[name] != after.get(name) for name in before if name != key):
            raise SchemaError(f"column {before['name']!r} is encoded differently than when the student was trained")
        if key is not None:
            before = before | {key: [*before[key], *_new_values(before["type"], before[key], after[key])]}
        extended.append(dict(before))
    return extended


def grow_student(
    student: Student,
    old_columns: Columns,
    new_columns: Columns,
    old_actions: Sequence[str],
    new_actions: Sequence[str],
    x: np.ndarray[Any, Any],
    shares: np.ndarray[Any, Any],
) -> Student:
    """A copy of ``student`` that reads ``new_columns`` and chooses among ``new_actions``, matched by name.

    For old values and actions its outputs are those of ``student``. A new category value or token starts with the
    embedding of the unknown one. A new action starts with the mean weights of the old ones and a bias that gives it
    about its share on the rows ``x``; the odds among the old actions stay. An action that is not in ``new_actions`` is
    removed.

    :param old_columns: what ``student`` reads.
    :param new_columns: as :func:`extend_columns` returns them.
    :param x: rows encoded with ``new_columns``, float32 ``[n, …]``, n ≥ 1.
    :param shares: of each new action among recent rows, ``[len(new_actions)]``, 0 … 1.
    """
    grown = deepcopy(student).eval()
    _grow_categories(grown, old_columns, new_columns)
    _grow_texts(grown, new_columns)
    if list(old_actions) != list(new_actions):
        _grow_actions(grown, old_actions, new_actions, torch.from_numpy(x), shares)
    return grown


def require_same_architecture(old: Student, new: Student) -> None:
    """Check that ``old`` can be extended to ``new``, the student that the agent file describes.

    :raises SchemaError: if they differ in more than :data:`CHANGEABLE_SETTINGS`.
    """
    for key in new.spec:
        if key not in CHANGEABLE_SETTINGS and old.spec.get(key) != new.spec[key]:
            raise SchemaError(f"the student has {key} {old.spec.get(key)}, and the agent file says {new.spec[key]} now")


def transfer_weights(target: Student, source: Student) -> Student:
    """``target`` with the weights of ``source`` wherever a tensor of the same name has the same shape.

    The bin edges of numbers and the first layer's weights depend on each other: both are copied, or neither.
    """
    state = target.state_dict()
    copied = {name: value for name, value in source.state_dict().items() if name in state}
    copied = {name: value for name, value in copied.items() if value.shape == state[name].shape}
    if "edges" not in copied or "layers.0.weight" not in copied:
        copied = {name: value for name, value in copied.items() if name not in ("edges", "layers.0.weight")}
    target.load_state_dict(state | copied)
    return target


def _new_values(column_type: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    if column_type == "category":
        return [value for value in new if value not in set(old)]
    characters = set("".join(old))
    return [token for token in new if not set(token) <= characters]


def _grow_categories(student: Student, old_columns: Columns, new_columns: Columns) -> None:
    pairs = [pair for pair in zip(old_columns, new_columns, strict=True) if pair[1]["type"] == "category"]
    counts = [(len(old["values"]), len(new["values"])) for old, new in pairs]
    widths = []
    for index, (old_count, new_count) in enumerate(counts):
        table = student.embeddings[index]
        assert isinstance(table, nn.Embedding)
        weight = table.weight.detach()
        student.embeddings[index] = _embedding(torch.cat([weight, weight[:1].repeat(new_count - old_count, 1)]))
        widths.append(table.embedding_dim)
    student.spec |= {"cardinalities": [new for _, new in counts], "embedding": widths}


def _grow_texts(student: Student, columns: Columns) -> None:
    texts = [column for column in columns if column["type"] == "text"]
    for encoder, column in zip(getattr(student, "encoders", ()), texts, strict=True):
        assert isinstance(encoder, TextEncoder)
        weight = encoder.embedding.weight.detach()
        unknown = weight[UNKNOWN : UNKNOWN + 1]
        is_trained = encoder.embedding.weight.requires_grad
        encoder.embedding = _embedding(torch.cat([weight, unknown.repeat(len(column["tokens"]) - len(weight), 1)]))
        encoder.embedding.weight.requires_grad_(is_trained)
    if texts:
        student.spec["texts"] = [[len(column["tokens"]), column["length"]] for column in texts]


def _grow_actions(
    student: Student, old_actions: Sequence[str], new_actions: Sequence[str], x: Tensor, shares: np.ndarray[Any, Any]
) -> None:
    old = student.layers[-1]
    assert isinstance(old, nn.Linear)
    with torch.no_grad():
        logits = student(x)
        old_index = {action: index for index, action in enumerate(old_actions)}
        new = nn.Linear(old.in_features, len(new_actions))
        mean_weight, mean_bias = old.weight.mean(dim=0), old.bias.mean(dim=0)
        # log-sum-exp of the old logits above their mean: a new action's bias is relative to it
        level = (torch.logsumexp(logits, dim=1) - logits.mean(dim=1)).mean()
        added = [k for k, action in enumerate(new_actions) if action not in old_index]
        old_share = max(MIN_ACTION_SHARE, 1.0 - sum(max(MIN_ACTION_SHARE, float(shares[k])) for k in added))
        for row, action in enumerate(new_actions):
            if action in old_index:
                new.weight[row], new.bias[row] = old.weight[old_index[action]], old.bias[old_index[action]]
            else:
                share = max(MIN_ACTION_SHARE, float(shares[row]))
                new.weight[row] = mean_weight
                new.bias[row] = mean_bias + level + float(np.log(share / old_share))
    student.layers[-1] = new
    student.spec["actions"] = len(new_actions)


def _embedding(weight: Tensor) -> nn.Embedding:
    table = nn.Embedding(*weight.shape)
    with torch.no_grad():
        table.weight.copy_(weight)
    return table
