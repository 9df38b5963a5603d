"""Low-rank factorisation of large linear layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stillhouse.compress.statistics import Moments, input_moments
from stillhouse.compress.steps.ratios import ratio_for
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import LowRank
from stillhouse.errors import ExportError

__all__ = ["factorizable_layers", "factorize_layers", "low_rank_factors", "rank_for_ratio"]

_MIN_WEIGHTS = 1024  # weights of a matrix that is worth two layers
_DAMPING = 1e-4  # added to the inputs' second moment, as a share of its mean diagonal


def factorizable_layers(state: ModelState) -> list[str]:
    """Names of the linear layers that are large enough to be replaced by two thin ones."""
    return [
        name
        for name, part in state.module.named_modules()
        if isinstance(part, nn.Linear) and part.weight.numel() >= _MIN_WEIGHTS and min(part.weight.shape) > 1
    ]


def rank_for_ratio(outputs: int, inputs: int, ratio: float) -> int:
    """The largest rank, at least 1, whose two factors have at most ``1 − ratio`` of the matrix's weights.

    Example:
        >>> rank_for_ratio(outputs=64, inputs=32, ratio=0.5)
        10
    """
    return max(1, int((1.0 - ratio) * outputs * inputs / (outputs + inputs) + 1e-9))  # 1 − 0.9 is a little below 0.1


def factorize_layers(step: LowRank, state: ModelState, feed: Feed) -> ModelState:
    """The state with each large linear layer replaced by two factors.

    The factors are optimal for their rank on the layer's inputs: they minimise ``E‖(W − UV) x‖²``, by the singular
    value decomposition of ``W S`` with ``S Sᵀ = E[x xᵀ]`` (Wang et al. 2024, "SVD-LLM", §3.1).

    :raises ExportError: if there is no such layer, or ``ratios`` names one that does not exist.
    """
    names = factorizable_layers(state)
    if not names:
        raise ExportError(
            f"low_rank: {type(state.module).__name__} has no linear layer of {_MIN_WEIGHTS} weights or more"
        )
    if unknown := sorted(set(step.ratios) - set(names)):
        raise ExportError(f"low_rank.ratios: no layer is called {', '.join(unknown)}; those are: {', '.join(names)}")
    module = copy.deepcopy(state.module).eval()
    selected = [name for name in names if ratio_for(step, name) > 0]
    moments = input_moments(module, feed, selected, second_moment=True)
    for name in selected:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        rank = rank_for_ratio(layer.out_features, layer.in_features, ratio_for(step, name))
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, _factorized(layer, rank, moments[name]))
    return ModelState(module, state.columns)


def low_rank_factors(weight: Tensor, rank: int, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``U [m, r]`` and ``V [r, n]`` for a weight ``[m, n]``.

    :param second: the second moment ``E[x xᵀ]`` of the inputs, ``[n, n]``; None: the identity.
    """
    matrix = weight.detach().to(torch.float64)
    if second is None:
        root = torch.eye(matrix.shape[1], dtype=torch.float64)
    else:
        moment = second.to(torch.float64)
        scale = moment.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(moment + _DAMPING * scale * torch.eye(len(moment), dtype=torch.float64))
    left, values, right = torch.linalg.svd(matrix @ root, full_matrices=False)
    scales = values[:rank].sqrt()
    v = torch.linalg.solve_triangular(root, scales[:, None] * right[:rank], upper=False, left=False)
    return (left[:, :rank] * scales).float(), v.float()


def _factorized(layer: nn.Linear, rank: int, moments: Moments) -> nn.Sequential:
    u, v = low_rank_factors(layer.weight, rank, moments.second)
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(v)
        second.weight.copy_(u)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).eval()
