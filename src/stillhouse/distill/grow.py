"""A student takes in new actions and new values of its columns, and everything that it has learned stays."""

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

__all__ = ["Columns", "extended", "grown", "require_alike", "transplanted"]

Columns = Sequence[dict[str, Any]]

_GROWING = (
    "cardinalities",
    "embedding",
    "texts",
    "actions",
    "dropout",
)  # what may differ between an old student and a new one
_VALUES = {"category": "values", "text": "tokens"}  # by type of column: what each has codes for, in their order
_LEAST = 1e-3  # share that a new action begins with at least


def extended(known: Columns, fresh: Columns) -> list[dict[str, Any]]:
    """``known`` columns with what only ``fresh`` ones have appended, so that every code keeps its meaning.

    Values that ``fresh`` does not have any more stay: their codes are learned. Of a text's tokens only those with a
    character that no known token has are new: any other would cut words otherwise that the student can read already.

    :raises SchemaError: if columns came, went or changed their type or length: that is another student.
    """
    made: list[dict[str, Any]] = []
    if [(c["name"], c["type"]) for c in known] != [(c["name"], c["type"]) for c in fresh]:
        old, new = ([column["name"] for column in columns] for columns in (known, fresh))
        raise SchemaError(f"the student reads the columns {old}, and the agent file has {new} now")
    for before, now in zip(known, fresh, strict=True):
        key = _VALUES.get(before["type"])
        fixed = [name for name in before if name != key]
        if any(before[name] != now.get(name) for name in fixed):
            raise SchemaError(f"column {before['name']!r} is encoded otherwise than the student has learned it")
        if key is not None:
            before = before | {key: [*before[key], *_unknown(before["type"], before[key], now[key])]}
        made.append(dict(before))
    return made


def grown(
    student: Student,
    before: Columns,
    after: Columns,
    actions: Sequence[str],
    wanted: Sequence[str],
    x: np.ndarray[Any, Any],
    shares: np.ndarray[Any, Any],
) -> Student:
    """A copy of ``student`` that reads ``after`` and chooses among ``wanted``, actions matched by name.

    Where nothing is new it says what ``student`` says. A new value of a category, or token, begins as what stands for
    the unknown. A new action begins with the mean of the other actions' weights and a bias that gives it, on the rows
    ``x``, about its share: the other actions keep their odds among themselves.

    :param before: columns that ``student`` reads; ``after`` from :func:`extended`.
    :param actions: its actions; ``wanted``: those to be, in their order. One that is no longer wanted is dropped.
    :param x: rows as ``after`` encodes them, float32 ``[n, …]``, n ≥ 1.
    :param shares: of each wanted action among recent rows, ``[len(wanted)]``, 0 … 1.
    """
    made = deepcopy(student).eval()
    _grow_categories(made, before, after)
    _grow_texts(made, after)
    if list(actions) != list(wanted):
        _grow_actions(made, actions, wanted, torch.from_numpy(x), shares)
    return made


def require_alike(old: Student, fresh: Student) -> None:
    """:raises SchemaError: if ``fresh``, as the agent file describes it now, is no student that ``old`` can become."""
    for key in fresh.spec:
        if key not in _GROWING and old.spec.get(key) != fresh.spec[key]:
            raise SchemaError(
                f"the student has {key} {old.spec.get(key)}, and the agent file says {fresh.spec[key]} now"
            )


def transplanted(fresh: Student, old: Student) -> Student:
    """``fresh`` with the weights of ``old`` wherever a tensor of the same name has the same shape.

    The bin edges belong to the first layer's weights: both are taken, or neither.
    """
    weights = fresh.state_dict()
    taken = {name: value for name, value in old.state_dict().items() if name in weights}
    taken = {name: value for name, value in taken.items() if value.shape == weights[name].shape}
    if "edges" not in taken or "layers.0.weight" not in taken:
        taken = {name: value for name, value in taken.items() if name not in ("edges", "layers.0.weight")}
    fresh.load_state_dict(weights | taken)
    return fresh


def _unknown(kind: str, known: Sequence[str], values: Sequence[str]) -> list[str]:
    if kind == "category":
        return [value for value in values if value not in set(known)]
    characters = set("".join(known))
    return [token for token in values if not set(token) <= characters]


def _grow_categories(student: Student, before: Columns, after: Columns) -> None:
    pairs = [pair for pair in zip(before, after, strict=True) if pair[1]["type"] == "category"]
    counts = [(len(old["values"]), len(new["values"])) for old, new in pairs]
    widths = []
    for place, (old, new) in enumerate(counts):
        table = student.embeddings[place]
        assert isinstance(table, nn.Embedding)
        unknown = table.weight.detach()[:1]
        student.embeddings[place] = _embedding(torch.cat([table.weight.detach(), unknown.repeat(new - old, 1)]))
        widths.append(table.embedding_dim)
    student.spec |= {"cardinalities": [new for _, new in counts], "embedding": widths}


def _grow_texts(student: Student, after: Columns) -> None:
    texts = [column for column in after if column["type"] == "text"]
    for encoder, column in zip(getattr(student, "encoders", ()), texts, strict=True):
        assert isinstance(encoder, TextEncoder)
        weight = encoder.embedding.weight.detach()
        unknown = weight[UNKNOWN : UNKNOWN + 1]
        encoder.embedding = _embedding(torch.cat([weight, unknown.repeat(len(column["tokens"]) - len(weight), 1)]))
    if texts:
        student.spec["texts"] = [[len(column["tokens"]), column["length"]] for column in texts]


def _grow_actions(
    student: Student, actions: Sequence[str], wanted: Sequence[str], x: Tensor, shares: np.ndarray[Any, Any]
) -> None:
    old = student.layers[-1]
    assert isinstance(old, nn.Linear)
    with torch.no_grad():
        said = student(x)
        places = {action: place for place, action in enumerate(actions)}
        new = nn.Linear(old.in_features, len(wanted))
        common = (old.weight.mean(dim=0), old.bias.mean(dim=0))
        # log of what the known actions add up to, above their mean: the level that a new one is measured by
        level = (torch.logsumexp(said, dim=1) - said.mean(dim=1)).mean()
        unknown = [k for k, action in enumerate(wanted) if action not in places]
        left = max(_LEAST, 1.0 - sum(max(_LEAST, float(shares[k])) for k in unknown))
        for row, action in enumerate(wanted):
            if action in places:
                new.weight[row], new.bias[row] = old.weight[places[action]], old.bias[places[action]]
            else:
                share = max(_LEAST, float(shares[row]))
                new.weight[row], new.bias[row] = common[0], common[1] + level + float(np.log(share / left))
    student.layers[-1] = new
    student.spec["actions"] = len(wanted)


def _embedding(weight: Tensor) -> nn.Embedding:
    table = nn.Embedding(*weight.shape)
    with torch.no_grad():
        table.weight.copy_(weight)
    return table
