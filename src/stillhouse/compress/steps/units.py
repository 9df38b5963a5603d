"""Structured pruning of hidden units: neurons and channels are removed, with all weights that depend on them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.statistics import Moments, input_moments
from stillhouse.compress.steps.ratios import ratio_for
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import PruneUnits
from stillhouse.errors import ExportError

__all__ = ["MIN_UNITS", "prunable_units", "prune_units", "units_to_remove"]

MIN_UNITS = 2  # that stay in every layer

_LAYERS_WITH_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)  # may stand between a layer and its readers
_ATTENTION = ("query", "key", "value")  # a module with these has heads, which are pruned as a whole


@dataclass(frozen=True)
class _Group:
    """A layer and the layers that read its units.

    :param root: the layer whose units are removed.
    :param readers: by the name of a reading module, its input channels and the unit that each of them reads, as two
        lists of equal length.
    """

    root: nn.Module
    readers: Mapping[str, tuple[list[int], list[int]]]


def prune_units(step: PruneUnits, state: ModelState, feed: Feed) -> ModelState:
    """The state without the least important ``ratio`` of the units of each layer that can lose some.

    A unit is a neuron of a linear layer or a channel of a convolution that only other layers read. The dependencies are
    found by tracing the computation (torch-pruning: Fang et al. 2023, "DepGraph", §3). The residual stream, attention
    and the last layer are not changed. A unit's importance is ``Var(a) · ‖w‖²``, its activation's variance on the feed
    and the weights that read it; its mean activation is folded into its readers' biases (An et al. 2024,
    "Fluctuation-based Adaptive Structured Pruning", §3.2).

    :raises ExportError: if the module has no such layer, or ``ratios`` names one that does not exist.
    """
    module = copy.deepcopy(state.module)
    graph = _trace_dependencies(module, feed)
    groups = _groups(graph, module)
    counts = _counts(groups, step, module, feed)
    moments = input_moments(module, feed, {reader for name in counts for reader in groups[name].readers})
    modules = dict(module.named_modules())
    for name, count in counts.items():
        order = _importance(groups[name], modules, moments).argsort(stable=True)
        removed = sorted(int(unit) for unit in order[:count])
        _fold_means(groups[name], modules, moments, removed)
        graph.get_pruning_group(groups[name].root, _pruning_function(groups[name].root), idxs=removed).prune()
    return ModelState(module.eval(), state.columns)


def prunable_units(state: ModelState, feed: Feed) -> list[str]:
    """Names of the layers that :func:`prune_units` can make smaller."""
    module = copy.deepcopy(state.module)
    return [
        name for name in _groups(_trace_dependencies(module, feed), module) if _runs_without_unit(module, name, feed)
    ]


def units_to_remove(units: int, ratio: float) -> int:
    """How many of a layer's units are removed."""
    return max(0, min(units - MIN_UNITS, round(units * ratio)))


def _counts(groups: Mapping[str, _Group], step: PruneUnits, module: nn.Module, feed: Feed) -> dict[str, int]:
    """How many units each layer loses, for the layers that lose any.

    Only these layers are tried: trying one takes as long as pruning it.
    """
    counts = {name: units_to_remove(_units(group.root), ratio_for(step, name)) for name, group in groups.items()}
    nonzero = {name: count for name, count in counts.items() if count}
    prunable = {name: count for name, count in nonzero.items() if _runs_without_unit(module, name, feed)}
    if prunable and set(step.ratios) <= set(groups) - (set(nonzero) - set(prunable)):
        return prunable
    names = [name for name in groups if _runs_without_unit(module, name, feed)]
    if not names:
        raise ExportError(
            f"prune_units: {type(module).__name__} has no layer whose units only other layers read: leave the step out"
        )
    if unknown := sorted(set(step.ratios) - set(names)):
        raise ExportError(f"prune_units.ratios: no layer is called {', '.join(unknown)}; those are: {', '.join(names)}")
    return prunable


def _trace_dependencies(module: nn.Module, feed: Feed) -> Any:
    """The dependency graph of the module's layers, traced on two rows."""
    import torch_pruning  # takes a second to import

    example = tuple(torch.from_numpy(array[:2]) for array in feed.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters outside modules: groups with them are not changed
        try:
            return torch_pruning.DependencyGraph().build_dependency(module.eval(), example_inputs=example)
        except Exception as error:  # tracing a foreign module may raise any exception
            raise ExportError(
                f"prune_units: the dependencies in {type(module).__name__} cannot be traced: {error}"
            ) from error


def _groups(graph: Any, module: nn.Module) -> dict[str, _Group]:
    """Layers whose units only other layers read, according to the dependency graph."""
    names = {part: name for name, part in module.named_modules()}
    inside_attention = {
        part
        for attention in module.modules()
        if all(hasattr(attention, name) for name in _ATTENTION)
        for part in (getattr(attention, name) for name in _ATTENTION)
    }
    groups = {}
    for name, part in module.named_modules():
        if isinstance(part, _LAYERS_WITH_UNITS) and part not in inside_attention and _units(part) > MIN_UNITS:
            group = _group(graph, part, names)
            if group is not None:
                groups[name] = group
    return groups


def _group(graph: Any, root: nn.Module, names: Mapping[nn.Module, str]) -> _Group | None:
    """The readers of the units of ``root``; None if other parts share its units, or no layer reads them."""
    try:
        items = graph.get_pruning_group(root, _pruning_function(root), idxs=list(range(_units(root))))
    except Exception:  # the library cannot trace this layer: it is not changed
        return None
    readers: dict[str, tuple[list[int], list[int]]] = {}
    for index, (dependency, channels) in enumerate(items):
        target = dependency.target.module
        if target is root or target not in names:
            if isinstance(target, nn.Parameter):
                return None
            continue
        if isinstance(target, _LAYERS_WITH_UNITS) and "in_channels" in dependency.handler.__name__:
            readers[names[target]] = (list(channels), list(items[index].root_idxs))
        elif not isinstance(target, _NORMS):
            return None
    return _Group(root, readers) if readers else None


def _runs_without_unit(module: nn.Module, name: str, feed: Feed) -> bool:
    """Whether the module still runs when this layer loses a unit: its code may contain a fixed shape."""
    copied = copy.deepcopy(module)
    root = dict(copied.named_modules())[name]
    try:
        _trace_dependencies(copied, feed).get_pruning_group(root, _pruning_function(root), idxs=[0]).prune()
        with torch.no_grad():
            copied(*(torch.from_numpy(array[:2]) for array in feed.values()))
    except Exception:  # it does not run: the layer is not changed
        return False
    return True


def _importance(group: _Group, modules: Mapping[str, nn.Module], moments: Mapping[str, Moments]) -> Tensor:
    """``Var(a) · ‖w‖²`` of each unit, ``[units]``, summed over its readers."""
    importance = torch.zeros(_units(group.root))
    for name, (channels, units) in group.readers.items():
        weight = _weight_by_input(modules[name])
        energy = moments[name].variance[channels] * weight.pow(2).sum(dim=1)[channels]
        importance.index_add_(0, torch.tensor(units), energy)
    return importance


def _fold_means(
    group: _Group, modules: Mapping[str, nn.Module], moments: Mapping[str, Moments], removed: list[int]
) -> None:
    """Add the mean contribution of the removed units to their readers' biases, in place."""
    removed_units = set(removed)
    for name, (channels, units) in group.readers.items():
        reader = modules[name]
        bias = getattr(reader, "bias", None)
        if bias is None or getattr(reader, "groups", 1) != 1:
            continue
        index = [channel for channel, unit in zip(channels, units, strict=True) if unit in removed_units]
        with torch.no_grad():
            contribution = moments[name].mean[index] @ _constant_response(reader)[index]
            bias += contribution


def _weight_by_input(reader: nn.Module) -> Tensor:
    """Weights by input channel: ``[inputs, all other dimensions]``."""
    weight: Tensor = reader.weight.detach()  # type: ignore[operator]
    return weight.transpose(0, 1).flatten(1)


def _constant_response(reader: nn.Module) -> Tensor:
    """What a constant input of 1 adds to each output: ``[inputs, outputs]``; a convolution's kernel is summed."""
    weight: Tensor = reader.weight.detach()  # type: ignore[operator]
    return weight.flatten(2).sum(dim=2).T if weight.ndim > 2 else weight.T


def _units(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _pruning_function(layer: nn.Module) -> Callable[..., Any]:
    import torch_pruning

    function: Callable[..., Any] = (
        torch_pruning.prune_linear_out_channels
        if isinstance(layer, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    return function
