"""Scales loss terms to equal gradient norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LossBalance", "normalise_weights"]

_MIN_SQUARED_NORM = 1e-30


class LossBalance:
    """Scales that give every loss term the gradient norm of a reference term.

    The weight of a term then is its share of the gradient, whatever the magnitude of the term. Each term is divided by
    the running norm of its gradient and multiplied by that of the reference (Malkiel and Wolf 2020, "MTAdam: Automatic
    Balancing of Multiple Training Loss Terms", §3; norms at a shared tensor as in Chen et al. 2018, "GradNorm", §3).

    :param terms: number of terms.
    :param decay: of the running squared norms, per step.
    :ivar squared_norms: running means, float ``[terms + 1]``; the reference comes last.

    >>> logits = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> LossBalance(1).scales([100 * logits.sum()], logits.sum(), logits)
    tensor([0.0100])
    """

    def __init__(self, terms: int, decay: float = 0.9) -> None:
        self.decay = decay
        self.squared_norms = torch.zeros(terms + 1)

    def scales(self, terms: Sequence[Tensor], reference: Tensor, shared: Tensor) -> Tensor:
        """One factor per term, float ``[terms]``, without a gradient; updates the running norms.

        :param terms: scalars that depend on ``shared``, such as the student's logits.
        :param reference: the scalar whose gradient norm all terms get.
        """
        squared_norms = torch.stack([_squared_norm(loss, shared) for loss in (*terms, reference)]).cpu()
        self.squared_norms = self.decay * self.squared_norms + (1 - self.decay) * squared_norms
        return _norm_ratios(self.squared_norms)


def normalise_weights(weights: Sequence[float]) -> Tensor:
    """Weights divided by their sum, float ``[terms]``."""
    values = torch.tensor(list(weights))
    return values / values.sum()


def _norm_ratios(squared_norms: Tensor) -> Tensor:
    """The norm of the reference, which comes last, over that of each term; 0 for a term without a gradient."""
    terms, reference = squared_norms[:-1], squared_norms[-1]
    return torch.where(terms > 0, (reference / terms.clamp(min=_MIN_SQUARED_NORM)).sqrt(), 0.0)


def _squared_norm(loss: Tensor, shared: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
    return gradient.float().square().sum()
