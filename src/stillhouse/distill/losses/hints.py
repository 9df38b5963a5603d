"""Hints from inside the teacher: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (ICLR)."""

from __future__ import annotations

from torch import Tensor

from stillhouse.config import Hints
from stillhouse.distill.losses.signals import Signals
from stillhouse.distill.losses.terms import term
from stillhouse.errors import ConfigError

__all__ = ["hints_loss"]


def hints_loss(projected: Tensor, features: Tensor) -> Tensor:
    """``½ ‖features − r(hidden)‖²``, mean over rows and features (Romero et al. 2015, eq. 3).

    :param projected: the student's hidden layer through the regressor r, ``[n, D]``.
    :param features: the teacher's, ``[n, D]``.
    """
    return 0.5 * (features - projected).square().mean()


@term.register
def _(loss: Hints, signals: Signals, temperature: float) -> Tensor:
    if signals.projected is None or signals.features is None:
        raise ConfigError(
            "distillation.losses: `hints` needs a teacher that gives features, and this one gives probabilities alone: "
            "take another loss, such as `relational`"
        )
    return hints_loss(signals.projected, signals.features)
