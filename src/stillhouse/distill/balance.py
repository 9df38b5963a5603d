"""Loss terms of any magnitude, brought to one unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Balance", "share"]


class Balance:
    """Scales that give every term the gradient norm of a reference term.

    A weight then says what share of the pull a term has, whatever its own magnitude: running norms of the gradients,
    each term divided by its own and multiplied by the reference's (Malkiel and Wolf 2020, "MTAdam: Automatic Balancing
    of Multiple Training Loss Terms", §3; norms at a shared tensor as in Chen et al. 2018, "GradNorm", §3).

    :param terms: how many.
    :param decay: of the running squared norms, per step.
    """

    def __init__(self, terms: int, decay: float = 0.9) -> None:
        self.decay = decay
        self.squared = torch.zeros(terms + 1)  # the reference comes last
        self.steps = 0

    def scales(self, terms: Sequence[Tensor], reference: Tensor, shared: Tensor) -> Tensor:
        """One factor per term, float ``[terms]``, without a gradient; counts this step in.

        :param terms: scalars that depend on ``shared``, such as the student's logits.
        :param reference: the scalar whose unit they get.
        """
        found = torch.stack([_squared_norm(loss, shared) for loss in (*terms, reference)]).cpu()
        self.squared = self.decay * self.squared + (1 - self.decay) * found
        self.steps += 1
        return ratios(self.squared)


def ratios(squared: Tensor) -> Tensor:
    """Reference's norm over each term's, from squared norms with the reference's last; a dead term gets 0."""
    terms, reference = squared[:-1], squared[-1]
    return torch.where(terms > 0, (reference / terms.clamp(min=1e-30)).sqrt(), 0.0)


def share(weights: Sequence[float]) -> Tensor:
    """Weights as shares of their sum, float ``[terms]``."""
    given = torch.tensor(list(weights))
    return given / given.sum()


def _squared_norm(loss: Tensor, shared: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
    return gradient.float().square().sum()
