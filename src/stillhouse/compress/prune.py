"""Structured pruning of hidden units: whole neurons and channels go, with all that depends on them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.statistics import Moments, input_moments
from stillhouse.compress.subject import Feed, Form
from stillhouse.config import PruneUnits
from stillhouse.errors import ExportError

__all__ = ["MIN_UNITS", "prunable_units", "prune_units", "removed", "share_of"]

MIN_UNITS = 2  # left in every layer

_WITH_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_BETWEEN = (nn.BatchNorm1d, nn.BatchNorm2d)  # may stand between a layer and those that read it
_ATTENTION = ("query", "key", "value")  # a module with these has heads, which are pruned as a whole


@dataclass(frozen=True)
class _Group:
    """A layer, and who reads its units.

    :param root: the layer whose units go.
    :param readers: modules that read them, each with the input channel of every unit's part: ``(channel, unit)``.
    """

    root: nn.Module
    readers: Mapping[str, tuple[list[int], list[int]]]


def prune_units(step: PruneUnits, form: Form, feed: Feed) -> Form:
    """The form without the least important ``ratio`` of the units of each layer that has any to spare.

    A unit is a neuron of a linear layer or a channel of a convolution that other layers read and nothing else depends
    on; which those are is found by following the computation (torch-pruning: Fang et al. 2023, "DepGraph", §3). The
    residual stream, attention and the last layer are left alone. A unit's importance is ``Var(a) · ‖w‖²``, its
    activation's variance on the feed and the weights that read it, and what it gives on average goes into its readers'
    biases (An et al. 2024, "Fluctuation-based Adaptive Structured Pruning", §3.2).

    :raises ExportError: if the module has no such layer, or ``ratios`` names one that it has not.
    """
    module = copy.deepcopy(form.module)
    graph = _graph(module, feed)
    groups = _groups(graph, module)
    counts = _counts(groups, step, module, feed)
    moments = input_moments(module, feed, {reader for name in counts for reader in groups[name].readers})
    modules = dict(module.named_modules())
    for name, count in counts.items():
        order = _importance(groups[name], modules, moments).argsort(stable=True)
        gone = sorted(int(unit) for unit in order[:count])
        _fold(groups[name], modules, moments, gone)
        graph.get_pruning_group(groups[name].root, _pruner(groups[name].root), idxs=gone).prune()
    return Form(module.eval(), form.columns)


def prunable_units(form: Form, feed: Feed) -> list[str]:
    """Names of the layers that :func:`prune_units` may make smaller."""
    module = copy.deepcopy(form.module)
    return [name for name in _groups(_graph(module, feed), module) if _holds(module, name, feed)]


def removed(units: int, ratio: float) -> int:
    """How many of a layer's units go."""
    return max(0, min(units - MIN_UNITS, round(units * ratio)))


def share_of(step: Any, layer: str) -> float:
    """The share that the step takes from this layer."""
    return float(step.ratios.get(layer, step.ratio))


def _counts(groups: Mapping[str, _Group], step: PruneUnits, module: nn.Module, feed: Feed) -> dict[str, int]:
    """How many units go of each layer that loses any. Only these are tried: to try one takes as long as to prune it."""
    wanted = {name: removed(_units(group.root), share_of(step, name)) for name, group in groups.items()}
    touched = {name: count for name, count in wanted.items() if count}
    found = {name: count for name, count in touched.items() if _holds(module, name, feed)}
    if found and set(step.ratios) <= set(groups) - (set(touched) - set(found)):
        return found
    known = [name for name in groups if _holds(module, name, feed)]
    if not known:
        raise ExportError(
            f"prune_units: {type(module).__name__} has no layer whose units only other layers read: leave the step out"
        )
    if unknown := sorted(set(step.ratios) - set(known)):
        raise ExportError(f"prune_units.ratios: no layer is called {', '.join(unknown)}; those are: {', '.join(known)}")
    return found


def _graph(module: nn.Module, feed: Feed) -> Any:
    """Which of the module's parts depend on which, found by running it on two rows."""
    import torch_pruning  # takes a second to import

    example = tuple(torch.from_numpy(array[:2]) for array in feed.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters outside modules: groups with them are left alone
        try:
            return torch_pruning.DependencyGraph().build_dependency(module.eval(), example_inputs=example)
        except Exception as error:  # whatever tracing a stranger's module may raise
            raise ExportError(
                f"prune_units: what depends on what in {type(module).__name__} cannot be traced: {error}"
            ) from error


def _groups(graph: Any, module: nn.Module) -> dict[str, _Group]:
    """Layers whose units only other layers read, as far as the graph knows."""
    names = {part: name for name, part in module.named_modules()}
    inside_attention = {
        part
        for each in module.modules()
        if all(hasattr(each, name) for name in _ATTENTION)
        for part in (getattr(each, name) for name in _ATTENTION)
    }
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, _WITH_UNITS) and part not in inside_attention and _units(part) > MIN_UNITS:
            group = _group(graph, part, names)
            if group is not None:
                found[name] = group
    return found


def _group(graph: Any, root: nn.Module, names: Mapping[nn.Module, str]) -> _Group | None:
    """What hangs on the units of ``root``; None where they are not its own, or nobody reads them."""
    try:
        items = graph.get_pruning_group(root, _pruner(root), idxs=list(range(_units(root))))
    except Exception:  # a layer that the library cannot follow is left alone
        return None
    readers: dict[str, tuple[list[int], list[int]]] = {}
    for place, (dependency, channels) in enumerate(items):
        target = dependency.target.module
        if target is root or target not in names:
            if isinstance(target, nn.Parameter):
                return None
            continue
        if isinstance(target, _WITH_UNITS) and "in_channels" in dependency.handler.__name__:
            readers[names[target]] = (list(channels), list(items[place].root_idxs))
        elif not isinstance(target, _BETWEEN):
            return None
    return _Group(root, readers) if readers else None


def _holds(module: nn.Module, name: str, feed: Feed) -> bool:
    """Whether the module still runs when this layer loses a unit: a shape may be written down somewhere."""
    tried = copy.deepcopy(module)
    root = dict(tried.named_modules())[name]
    try:
        _graph(tried, feed).get_pruning_group(root, _pruner(root), idxs=[0]).prune()
        with torch.no_grad():
            tried(*(torch.from_numpy(array[:2]) for array in feed.values()))
    except Exception:  # it does not: the layer is left alone
        return False
    return True


def _importance(group: _Group, modules: Mapping[str, nn.Module], moments: Mapping[str, Moments]) -> Tensor:
    """``Var(a) · ‖w‖²`` of each unit, ``[units]``, summed over all that reads it."""
    found = torch.zeros(_units(group.root))
    for name, (channels, units) in group.readers.items():
        weight = _by_input(modules[name])
        energy = moments[name].variance[channels] * weight.pow(2).sum(dim=1)[channels]
        found.index_add_(0, torch.tensor(units), energy)
    return found


def _fold(group: _Group, modules: Mapping[str, nn.Module], moments: Mapping[str, Moments], gone: list[int]) -> None:
    """Put what the units that go give on average into the biases of those that read them."""
    lost = set(gone)
    for name, (channels, units) in group.readers.items():
        reader = modules[name]
        bias = getattr(reader, "bias", None)
        if bias is None or getattr(reader, "groups", 1) != 1:
            continue
        places = [channel for channel, unit in zip(channels, units, strict=True) if unit in lost]
        with torch.no_grad():
            given = moments[name].mean[places] @ _summed(reader)[places]
            bias += given


def _by_input(reader: nn.Module) -> Tensor:
    """Weights by input channel: ``[inputs, everything else]``."""
    weight: Tensor = reader.weight.detach()  # type: ignore[operator]
    return weight.transpose(0, 1).flatten(1)


def _summed(reader: nn.Module) -> Tensor:
    """What a constant input of 1 adds to each output: ``[inputs, outputs]``; a convolution's taps together."""
    weight: Tensor = reader.weight.detach()  # type: ignore[operator]
    return weight.flatten(2).sum(dim=2).T if weight.ndim > 2 else weight.T


def _units(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _pruner(layer: nn.Module) -> Callable[..., Any]:
    import torch_pruning

    found: Callable[..., Any] = (
        torch_pruning.prune_linear_out_channels
        if isinstance(layer, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    return found
