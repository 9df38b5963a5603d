"""Large matrices as the product of two thin ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stillhouse.compress.prune import share_of
from stillhouse.compress.statistics import Moments, input_moments
from stillhouse.compress.subject import Feed, Form
from stillhouse.config import LowRank
from stillhouse.errors import ExportError

__all__ = ["factorizable", "factors", "low_rank", "rank_of"]

_SMALLEST = 1024  # numbers of a matrix that is worth two layers
_DAMPING = 1e-4  # of the inputs' second moment, as a share of its mean diagonal


def factorizable(form: Form) -> list[str]:
    """Names of the linear layers that two thin ones could replace."""
    return [
        name
        for name, part in form.module.named_modules()
        if isinstance(part, nn.Linear) and part.weight.numel() >= _SMALLEST and min(part.weight.shape) > 1
    ]


def rank_of(outputs: int, inputs: int, ratio: float) -> int:
    """The largest rank, at least 1, whose two factors have at most ``1 − ratio`` of the matrix's numbers."""
    return max(1, int((1.0 - ratio) * outputs * inputs / (outputs + inputs) + 1e-9))  # 1 − 0.9 is a little below 0.1


def low_rank(step: LowRank, form: Form, feed: Feed) -> Form:
    """The form with large linear layers in two factors.

    The factors are the best of their rank for what the layer sees: they minimise ``E‖(W − UV) x‖²``, by the singular
    values of ``W S`` with ``S Sᵀ = E[x xᵀ]`` (Wang et al. 2024, "SVD-LLM", §3.1).

    :raises ExportError: if there is no such layer, or ``ratios`` names one that there is not.
    """
    known = factorizable(form)
    if not known:
        raise ExportError(f"low_rank: {type(form.module).__name__} has no linear layer of {_SMALLEST} numbers or more")
    if unknown := sorted(set(step.ratios) - set(known)):
        raise ExportError(f"low_rank.ratios: no layer is called {', '.join(unknown)}; those are: {', '.join(known)}")
    module = copy.deepcopy(form.module).eval()
    wanted = [name for name in known if share_of(step, name) > 0]
    moments = input_moments(module, feed, wanted, together=True)
    for name in wanted:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        rank = rank_of(layer.out_features, layer.in_features, share_of(step, name))
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, _thin(layer, rank, moments[name]))
    return Form(module, form.columns)


def factors(weight: Tensor, rank: int, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``U [m, r]`` and ``V [r, n]`` for a weight ``[m, n]``; ``second`` is ``E[x xᵀ] [n, n]``, absent: the identity."""
    whole = weight.detach().to(torch.float64)
    if second is None:
        root = torch.eye(whole.shape[1], dtype=torch.float64)
    else:
        damped = second.to(torch.float64)
        scale = damped.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(damped + _DAMPING * scale * torch.eye(len(damped), dtype=torch.float64))
    left, values, right = torch.linalg.svd(whole @ root, full_matrices=False)
    scaled = values[:rank].sqrt()
    thin = torch.linalg.solve_triangular(root, scaled[:, None] * right[:rank], upper=False, left=False)
    return (left[:, :rank] * scaled).float(), thin.float()


def _thin(layer: nn.Linear, rank: int, moments: Moments) -> nn.Sequential:
    up, down = factors(layer.weight, rank, moments.second)
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(down)
        second.weight.copy_(up)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).eval()
