"""Attention heads and whole residual layers that can go."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.export import run_torch
from stillhouse.compress.prune import share_of
from stillhouse.compress.statistics import Moments, batches, input_moments
from stillhouse.compress.subject import Array, Feed, Form
from stillhouse.config import PruneHeads, PruneLayers
from stillhouse.errors import ExportError

__all__ = ["attentions", "prune_heads", "prune_layers", "stacks"]

_PARTS = ("query", "key", "value", "out")
_ROWS = 256  # on which the absence of a layer is tried


def attentions(form: Form) -> list[str]:
    """Names of the modules with attention whose heads can go.

    Those have linear layers ``query``, ``key``, ``value`` and ``out``, and numbers ``heads`` and ``size`` (of a head)
    that they shape their inputs by.
    """
    return [
        name
        for name, part in form.module.named_modules()
        if all(isinstance(getattr(part, each, None), nn.Linear) for each in _PARTS)
        and isinstance(getattr(part, "size", None), int)
        and isinstance(getattr(part, "heads", None), int)
        and part.heads > 1
    ]


def prune_heads(step: PruneHeads, form: Form, feed: Feed) -> Form:
    """The form without the least important ``ratio`` of each attention's heads; at least one stays.

    A head's importance is the energy that it adds to what ``out`` gives, ``Σ Var(a) · ‖w‖²`` over its values, as that
    of a hidden unit (:func:`stillhouse.compress.prune.prune_units`); its mean goes into the bias. That many heads can
    go: Michel, Levy and Neubig 2019, "Are Sixteen Heads Really Better than One?".

    :raises ExportError: if the module has no such attention, or ``ratios`` names one that it has not.
    """
    known = attentions(form)
    if not known:
        raise ExportError(
            f"prune_heads: {type(form.module).__name__} has no attention with query, key, value, out, heads and size"
        )
    if unknown := sorted(set(step.ratios) - set(known)):
        raise ExportError(
            f"prune_heads.ratios: no attention is called {', '.join(unknown)}; those are: {', '.join(known)}"
        )
    module = copy.deepcopy(form.module).eval()
    moments = input_moments(module, feed, {f"{name}.out" for name in known})
    for name in known:
        part: Any = module.get_submodule(name)
        count = min(part.heads - 1, round(part.heads * share_of(step, name)))
        if count:
            _remove(part, moments[f"{name}.out"], count)
    return Form(module, form.columns)


def _remove(part: Any, moments: Moments, count: int) -> None:
    """Cut the attention's least important heads out."""
    weight: Tensor = part.out.weight.detach()
    energy = (moments.variance * weight.pow(2).sum(dim=0)).reshape(part.heads, part.size).sum(dim=1)
    kept = energy.argsort(descending=True, stable=True)[: part.heads - count].sort().values
    places = torch.arange(part.heads * part.size).reshape(part.heads, part.size)
    inside = places[kept].flatten()
    gone = torch.ones(part.heads * part.size, dtype=torch.bool)
    gone[inside] = False
    with torch.no_grad():
        part.out.bias += weight[:, gone] @ moments.mean[gone]
    for name in ("query", "key", "value"):
        _keep_outputs(getattr(part, name), inside)
    part.out.weight = nn.Parameter(weight[:, inside].clone())
    part.out.in_features = len(inside)
    part.heads = len(kept)


def _keep_outputs(layer: nn.Linear, places: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[places].clone())
    layer.bias = nn.Parameter(layer.bias.detach()[places].clone())
    layer.out_features = len(places)


# --------------------------------------------------------------------------- whole layers


def stacks(form: Form, feed: Feed) -> list[str]:
    """Names of the lists of layers of which any could be left out: each gives what it takes, in shape."""
    lists = {
        name: part
        for name, part in form.module.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential)
        and len(part) > 1
        and len({type(each) for each in part}) == 1
        and len(list(part[0].children())) > 0
    }
    shapes: dict[nn.Module, bool] = {}

    def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes[layer] = isinstance(output, Tensor) and inputs[0].shape == output.shape

    hooks = [each.register_forward_hook(watch) for part in lists.values() for each in part]
    try:
        with torch.no_grad():
            form.module(*batches({name: array[:2] for name, array in feed.items()})[0])
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, part in lists.items() if all(shapes.get(each, False) for each in part)]


def prune_layers(step: PruneLayers, form: Form, feed: Feed) -> Form:
    """The form without ``ratio`` of the layers of each stack, one by one those whose absence changes the answers least.

    :raises ExportError: if there is no stack of layers of equal shape.
    """
    known = stacks(form, feed)
    if not known:
        raise ExportError(
            f"prune_layers: {type(form.module).__name__} has no list of layers that give what they take, in shape"
        )
    module = copy.deepcopy(form.module).eval()
    few = {name: array[:_ROWS] for name, array in feed.items()}
    wanted = run_torch(module, few)
    for name in known:
        stack: Any = module.get_submodule(name)
        for _ in range(min(len(stack) - 1, max(1, round(len(stack) * step.ratio)))):
            del stack[_least_missed(module, stack, few, wanted)]
    return Form(module, form.columns)


def _least_missed(module: nn.Module, stack: Any, feed: Feed, wanted: Array) -> int:
    """Place of the layer without which the module's answers change least."""
    changes = []
    for place in range(len(stack)):
        layer = stack[place]
        stack[place] = nn.Identity() if isinstance(stack, nn.Sequential) else _Passing()
        changes.append(float(abs(run_torch(module, feed) - wanted).mean()))
        stack[place] = layer
    return int(min(range(len(changes)), key=changes.__getitem__))


class _Passing(nn.Module):
    """Gives its first argument, whatever else it is called with."""

    def forward(self, hidden: Tensor, *others: Any) -> Tensor:
        return hidden
