"""Pruning of attention heads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.statistics import Moments, input_moments
from stillhouse.compress.steps.ratios import ratio_for
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import PruneHeads
from stillhouse.errors import ExportError

__all__ = ["prunable_attentions", "prune_heads"]

_PROJECTIONS = ("query", "key", "value", "out")


def prunable_attentions(state: ModelState) -> list[str]:
    """Names of the attention modules whose heads can be removed.

    Such a module has linear layers ``query``, ``key``, ``value`` and ``out``, and integers ``heads`` and ``size`` (the
    width of a head) that it reshapes its inputs with.
    """
    return [
        name
        for name, part in state.module.named_modules()
        if all(isinstance(getattr(part, projection, None), nn.Linear) for projection in _PROJECTIONS)
        and isinstance(getattr(part, "size", None), int)
        and isinstance(getattr(part, "heads", None), int)
        and part.heads > 1
    ]


def prune_heads(step: PruneHeads, state: ModelState, feed: Feed) -> ModelState:
    """The state without the least important ``ratio`` of each attention's heads; at least one head stays.

    A head's importance is the energy that it adds to the output of ``out``, ``Σ Var(a) · ‖w‖²`` over its values, as for
    a hidden unit (:func:`stillhouse.compress.steps.units.prune_units`); its mean is folded into the bias. Many heads
    are redundant: Michel, Levy and Neubig 2019, "Are Sixteen Heads Really Better than One?".

    :raises ExportError: if the module has no such attention, or ``ratios`` names one that does not exist.
    """
    names = prunable_attentions(state)
    if not names:
        raise ExportError(
            f"prune_heads: {type(state.module).__name__} has no attention with query, key, value, out, heads and size"
        )
    if unknown := sorted(set(step.ratios) - set(names)):
        raise ExportError(
            f"prune_heads.ratios: no attention is called {', '.join(unknown)}; those are: {', '.join(names)}"
        )
    module = copy.deepcopy(state.module).eval()
    moments = input_moments(module, feed, {f"{name}.out" for name in names})
    for name in names:
        attention: Any = module.get_submodule(name)
        count = min(attention.heads - 1, round(attention.heads * ratio_for(step, name)))
        if count:
            _remove_heads(attention, moments[f"{name}.out"], count)
    return ModelState(module, state.columns)


def _remove_heads(attention: Any, moments: Moments, count: int) -> None:
    """Remove the ``count`` least important heads, in place."""
    weight: Tensor = attention.out.weight.detach()
    energy = (moments.variance * weight.pow(2).sum(dim=0)).reshape(attention.heads, attention.size).sum(dim=1)
    heads_left = energy.argsort(descending=True, stable=True)[: attention.heads - count].sort().values
    index = torch.arange(attention.heads * attention.size).reshape(attention.heads, attention.size)
    channels_left = index[heads_left].flatten()
    is_removed = torch.ones(attention.heads * attention.size, dtype=torch.bool)
    is_removed[channels_left] = False
    with torch.no_grad():
        attention.out.bias += weight[:, is_removed] @ moments.mean[is_removed]
    for name in ("query", "key", "value"):
        _select_outputs(getattr(attention, name), channels_left)
    attention.out.weight = nn.Parameter(weight[:, channels_left].clone())
    attention.out.in_features = len(channels_left)
    attention.heads = len(heads_left)


def _select_outputs(layer: nn.Linear, index: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[index].clone())
    layer.bias = nn.Parameter(layer.bias.detach()[index].clone())
    layer.out_features = len(index)
