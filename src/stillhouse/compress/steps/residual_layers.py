"""Pruning of whole residual layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.export import run_torch
from stillhouse.compress.statistics import batches
from stillhouse.compress.target import Array, Feed, ModelState
from stillhouse.config import PruneLayers
from stillhouse.errors import ExportError

__all__ = ["prunable_stacks", "prune_layers"]

_MAX_ROWS = 256  # rows on which the removal of each layer is tried


def prunable_stacks(state: ModelState, feed: Feed) -> list[str]:
    """Names of the lists of layers from which any layer can be removed: input and output have the same shape."""
    stacks = {
        name: part
        for name, part in state.module.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential)
        and len(part) > 1
        and len({type(layer) for layer in part}) == 1
        and len(list(part[0].children())) > 0
    }
    keeps_shape: dict[nn.Module, bool] = {}

    def record_shape(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        keeps_shape[layer] = isinstance(output, Tensor) and inputs[0].shape == output.shape

    hooks = [layer.register_forward_hook(record_shape) for stack in stacks.values() for layer in stack]
    try:
        with torch.no_grad():
            state.module(*batches({name: array[:2] for name, array in feed.items()})[0])
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, stack in stacks.items() if all(keeps_shape.get(layer, False) for layer in stack)]


def prune_layers(step: PruneLayers, state: ModelState, feed: Feed) -> ModelState:
    """The state without ``ratio`` of the layers of each stack.

    Layers are removed one at a time; each time the layer whose removal changes the module's output least.

    :raises ExportError: if there is no stack of layers with equal input and output shape.
    """
    names = prunable_stacks(state, feed)
    if not names:
        raise ExportError(
            f"prune_layers: {type(state.module).__name__} has no list of layers whose output has the shape of their "
            f"input"
        )
    module = copy.deepcopy(state.module).eval()
    rows = {name: array[:_MAX_ROWS] for name, array in feed.items()}
    reference = run_torch(module, rows)
    for name in names:
        stack: Any = module.get_submodule(name)
        for _ in range(min(len(stack) - 1, max(1, round(len(stack) * step.ratio)))):
            del stack[_least_important(module, stack, rows, reference)]
    return ModelState(module, state.columns)


def _least_important(module: nn.Module, stack: Any, feed: Feed, reference: Array) -> int:
    """Index of the layer whose removal changes the module's probabilities least."""
    changes = []
    for index in range(len(stack)):
        layer = stack[index]
        stack[index] = nn.Identity() if isinstance(stack, nn.Sequential) else _FirstArgument()
        changes.append(float(abs(run_torch(module, feed) - reference).mean()))
        stack[index] = layer
    return int(min(range(len(changes)), key=changes.__getitem__))


class _FirstArgument(nn.Module):
    """Returns its first argument and ignores the others."""

    def forward(self, hidden: Tensor, *others: Any) -> Tensor:
        return hidden
