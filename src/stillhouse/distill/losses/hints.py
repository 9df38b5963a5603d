"""Hints from the teacher's hidden features: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (ICLR)."""

from __future__ import annotations

from torch import Tensor

from stillhouse.config import Hints
from stillhouse.distill.losses.inputs import LossInputs
from stillhouse.distill.losses.terms import loss_term
from stillhouse.errors import ConfigError

__all__ = ["hints_loss"]


def hints_loss(projected: Tensor, features: Tensor) -> Tensor:
    """``½ ‖features − r(hidden)‖²``, mean over rows and features (Romero et al. 2015, eq. 3).

    :param projected: the student's hidden layer through the regressor r, ``[n, D]``.
    :param features: the teacher's, ``[n, D]``.
    """
    return 0.5 * (features - projected).square().mean()


@loss_term.register
def _(loss: Hints, inputs: LossInputs, temperature: float) -> Tensor:
    if inputs.projected is None or inputs.features is None:
        raise ConfigError(
            "distillation.losses: `hints` needs a teacher with features, and this teacher has probabilities only: "
            "use another loss, such as `relational`"
        )
    return hints_loss(inputs.projected, inputs.features)
