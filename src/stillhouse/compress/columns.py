"""Feature columns that a student hardly uses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.compress.export import INPUT, run_torch
from stillhouse.compress.statistics import input_moments
from stillhouse.compress.subject import Feed, Form
from stillhouse.config import PruneColumns
from stillhouse.errors import ExportError

__all__ = ["prunable_columns", "prune_columns"]

_ROWS = 1024


def prunable_columns(form: Form) -> list[str]:
    """Names of the number and category columns of a student that reads each with a part of its own.

    Such a module has ``edges`` ``[F, B + 1]`` of its numbers, ``embeddings`` of its categories, and ``layers``, whose
    first takes what these give before anything else.
    """
    module, columns = form.module, form.columns
    parts = [getattr(module, name, None) for name in ("edges", "embeddings", "layers")]
    if columns is None or any(part is None for part in parts) or not isinstance(module.layers[0], nn.Linear):  # type: ignore[index]
        return []
    names = [str(column["name"]) for column in columns if column["type"] != "text"]
    return names if len(names) > 1 else []


def prune_columns(step: PruneColumns, form: Form, feed: Feed) -> Form:
    """The form without the ``ratio`` of its columns that matter least; it no longer asks for them.

    A column matters as much as the answers change when its values change places among the rows (Breiman 2001, "Random
    Forests", §10). What it gives on average goes into the first layer's bias.

    :raises ExportError: if the module does not read its columns with parts of their own.
    """
    names = prunable_columns(form)
    if not names:
        raise ExportError(f"prune_columns: {type(form.module).__name__} has no columns that could go one by one")
    count = min(len(names) - 1, max(1, round(len(names) * step.ratio)))
    matters = _matters(form, feed, len(names))
    gone = sorted(range(len(names)), key=lambda place: (matters[place], place))[:count]
    module: Any = copy.deepcopy(form.module).eval()
    first = module.layers[0]
    numbers, inside = module.edges.shape[0], _places(module)
    lost = torch.cat([inside[place] for place in gone])
    moments = input_moments(module, feed, {"layers.0"})["layers.0"]
    kept = torch.ones(first.in_features, dtype=torch.bool)
    kept[lost] = False
    with torch.no_grad():
        first.bias += first.weight[:, lost] @ moments.mean[lost]
    first.weight = nn.Parameter(first.weight.detach()[:, kept].clone())
    first.in_features = int(kept.sum())
    stay = [place for place in range(len(names)) if place not in set(gone)]
    module.register_buffer("edges", module.edges[[place for place in stay if place < numbers]])
    module.embeddings = nn.ModuleList(module.embeddings[place - numbers] for place in stay if place >= numbers)
    module.numbers = module.edges.shape[0]
    if hasattr(module, "first_token"):
        module.first_token = len(stay)
    assert form.columns is not None
    dropped = {names[place] for place in gone}
    return Form(module, [column for column in form.columns if column["name"] not in dropped])


def _places(module: Any) -> list[torch.Tensor]:
    """For each column, which inputs of the first layer it gives."""
    width, begin, found = module.edges.shape[1], 0, []
    for size in [width] * module.edges.shape[0] + [table.embedding_dim for table in module.embeddings]:
        found.append(torch.arange(begin, begin + size))
        begin += size
    return found


def _matters(form: Form, feed: Feed, columns: int) -> list[float]:
    """Mean change of the answers when a column's values change places, for each of the first ``columns``."""
    rows = feed[INPUT]
    if len(rows) > _ROWS:  # half of them the newest: a column may matter only for what has just arrived
        spread = np.linspace(0, len(rows) - 1, _ROWS // 2).astype(int)
        rows = rows[np.concatenate([spread, np.arange(len(rows) - _ROWS // 2, len(rows))])]
    answers, changes = run_torch(form.module, {INPUT: rows}), []
    for place in range(columns):
        mixed = rows.copy()
        mixed[:, place] = np.random.default_rng(place).permutation(rows[:, place])
        changes.append(float(np.abs(run_torch(form.module, {INPUT: mixed}) - answers).mean()))
    return changes
