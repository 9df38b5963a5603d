"""Pruning of feature columns that have little influence on a student."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.compress.export import INPUT_NAME, run_torch
from stillhouse.compress.statistics import input_moments
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import PruneColumns
from stillhouse.errors import ExportError

__all__ = ["prunable_columns", "prune_columns"]

_MAX_ROWS = 1024  # rows that the permutation importance is computed on


def prunable_columns(state: ModelState) -> list[str]:
    """Names of the number and category columns of a student that encodes each column separately.

    Such a module has ``edges`` ``[F, B + 1]`` for its numbers, ``embeddings`` for its categories, and ``layers``, whose
    first layer reads the outputs of these before anything else.
    """
    module, columns = state.module, state.columns
    parts = [getattr(module, name, None) for name in ("edges", "embeddings", "layers")]
    if columns is None or any(part is None for part in parts) or not isinstance(module.layers[0], nn.Linear):  # type: ignore[index]
        return []
    names = [str(column["name"]) for column in columns if column["type"] != "text"]
    return names if len(names) > 1 else []


def prune_columns(step: PruneColumns, state: ModelState, feed: Feed) -> ModelState:
    """The state without the least important ``ratio`` of its columns; it no longer reads them.

    A column's importance is its permutation importance: the mean change of the output when its values are permuted
    among the rows (Breiman 2001, "Random Forests", §10). Its mean contribution is folded into the first layer's bias.

    :raises ExportError: if the module does not encode its columns separately.
    """
    names = prunable_columns(state)
    if not names:
        raise ExportError(
            f"prune_columns: {type(state.module).__name__} has no columns that can be removed one at a time"
        )
    count = min(len(names) - 1, max(1, round(len(names) * step.ratio)))
    importance = _permutation_importance(state, feed, len(names))
    removed = sorted(range(len(names)), key=lambda index: (importance[index], index))[:count]
    module: Any = copy.deepcopy(state.module).eval()
    first = module.layers[0]
    n_numbers, channels = module.edges.shape[0], _channels_by_column(module)
    removed_channels = torch.cat([channels[index] for index in removed])
    moments = input_moments(module, feed, {"layers.0"})["layers.0"]
    mask = torch.ones(first.in_features, dtype=torch.bool)
    mask[removed_channels] = False
    with torch.no_grad():
        first.bias += first.weight[:, removed_channels] @ moments.mean[removed_channels]
    first.weight = nn.Parameter(first.weight.detach()[:, mask].clone())
    first.in_features = int(mask.sum())
    remaining = [index for index in range(len(names)) if index not in set(removed)]
    module.register_buffer("edges", module.edges[[index for index in remaining if index < n_numbers]])
    module.embeddings = nn.ModuleList(module.embeddings[index - n_numbers] for index in remaining if index >= n_numbers)
    module.numbers = module.edges.shape[0]
    if hasattr(module, "first_token"):
        module.first_token = len(remaining)
    assert state.columns is not None
    removed_names = {names[index] for index in removed}
    return ModelState(module, [column for column in state.columns if column["name"] not in removed_names])


def _channels_by_column(module: Any) -> list[torch.Tensor]:
    """For each column, the input channels of the first layer that it provides."""
    width, begin, channels = module.edges.shape[1], 0, []
    for size in [width] * module.edges.shape[0] + [table.embedding_dim for table in module.embeddings]:
        channels.append(torch.arange(begin, begin + size))
        begin += size
    return channels


def _permutation_importance(state: ModelState, feed: Feed, count: int) -> list[float]:
    """Mean absolute change of the probabilities when a column is permuted, for each of the first ``count`` columns."""
    rows = feed[INPUT_NAME]
    if len(rows) > _MAX_ROWS:  # half of them the newest: a column may matter only for rows that arrived recently
        evenly = np.linspace(0, len(rows) - 1, _MAX_ROWS // 2).astype(int)
        rows = rows[np.concatenate([evenly, np.arange(len(rows) - _MAX_ROWS // 2, len(rows))])]
    reference, changes = run_torch(state.module, {INPUT_NAME: rows}), []
    for index in range(count):
        permuted = rows.copy()
        permuted[:, index] = np.random.default_rng(index).permutation(rows[:, index])
        changes.append(float(np.abs(run_torch(state.module, {INPUT_NAME: permuted}) - reference).mean()))
    return changes
