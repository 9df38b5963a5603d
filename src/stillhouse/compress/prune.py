"""Structured pruning: whole hidden units go, so that what remains is an ordinary, smaller network."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import ExportError

__all__ = ["MIN_UNITS", "importance", "prune_hidden_units"]

MIN_UNITS = 2  # left in every hidden layer


def prune_hidden_units(student: nn.Module, ratio: float) -> nn.Module:
    """A copy of the student without the least important ``ratio`` of each hidden layer's units.

    The copy has smaller ``Linear`` modules and ``spec["widths"]`` to match, so that it is saved and loaded like
    any other student. At least :data:`MIN_UNITS` units stay in a layer; no training happens here.

    :param student: has ``layers``, a ``Sequential`` of ``Linear``, ``ReLU`` and ``Dropout``, and the dict ``spec``.
    :param ratio: share of each layer's units to remove, in (0, 1).
    :raises ExportError: if the student is not built like that, or the ratio is out of range.
    """
    if not 0.0 < ratio < 1.0:
        raise ExportError(f"the share of hidden units to prune must lie between 0 and 1, got {ratio}")
    pruned = copy.deepcopy(student)
    pairs = list(pairwise(_chain(pruned)))
    kept = [_most_important(incoming, outgoing, ratio) for incoming, outgoing in pairs]
    for units, (incoming, outgoing) in zip(kept, pairs, strict=True):
        _keep(units, incoming, outgoing)
    _spec(pruned)["widths"] = [len(units) for units in kept]
    return pruned


def importance(incoming: nn.Linear, outgoing: nn.Linear) -> Tensor:
    """How much each hidden unit can matter: ``‖(w_in, b)‖₂ · ‖w_out‖₂``, ``[units]``.

    The product bounds what the unit adds to the next layer for an input of length 1. Unlike the norm of the
    incoming weights alone (Li et al. 2017, "Pruning Filters for Efficient ConvNets", §3.1) it stays the same when
    the unit's incoming weights are scaled by c and its outgoing ones by 1/c, which leaves a ReLU network's function
    as it is (Neyshabur, Salakhutdinov and Srebro 2015, "Path-SGD", §2). It needs no data.
    """
    weights = incoming.weight.detach()
    if incoming.bias is not None:
        weights = torch.cat([weights, incoming.bias.detach().unsqueeze(1)], dim=1)
    product: Tensor = weights.norm(dim=1) * outgoing.weight.detach().norm(dim=0)
    return product


def _chain(student: nn.Module) -> list[nn.Linear]:
    """The linear modules of ``student.layers``, each reading what the one before wrote."""
    layers = getattr(student, "layers", None)
    name = type(student).__name__
    if not isinstance(layers, nn.Sequential):
        raise ExportError(f"{name} cannot be pruned: it has no nn.Sequential named `layers`")
    strange = sorted({type(m).__name__ for m in layers if not isinstance(m, nn.Linear | nn.ReLU | nn.Dropout)})
    if strange:
        raise ExportError(f"{name} cannot be pruned: `layers` holds {', '.join(strange)} beside Linear, ReLU, Dropout")
    linears = [module for module in layers if isinstance(module, nn.Linear)]
    if len(linears) < 2:
        raise ExportError(f"{name} cannot be pruned: `layers` has no hidden layer")
    return linears


def _spec(student: nn.Module) -> dict[str, Any]:
    spec = getattr(student, "spec", None)
    if not isinstance(spec, dict) or "widths" not in spec:
        raise ExportError(f"{type(student).__name__} cannot be pruned: it has no dict `spec` with its `widths`")
    return spec


def _most_important(incoming: nn.Linear, outgoing: nn.Linear, ratio: float) -> Tensor:
    """Indices of the units to keep, ascending."""
    units = incoming.out_features
    count = min(units, max(MIN_UNITS, round(units * (1.0 - ratio))))
    order = importance(incoming, outgoing).argsort(descending=True, stable=True)
    return order[:count].sort().values


def _keep(units: Tensor, incoming: nn.Linear, outgoing: nn.Linear) -> None:
    """Cut both sides of one hidden layer down to ``units``."""
    incoming.weight = nn.Parameter(incoming.weight.detach()[units].clone())
    if incoming.bias is not None:
        incoming.bias = nn.Parameter(incoming.bias.detach()[units].clone())
    outgoing.weight = nn.Parameter(outgoing.weight.detach()[:, units].clone())
    incoming.out_features = outgoing.in_features = len(units)
