"""Hints from inside the teacher: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (ICLR)."""

from __future__ import annotations

from torch import Tensor

__all__ = ["hints_loss"]


def hints_loss(projected: Tensor, features: Tensor) -> Tensor:
    """``½ ‖features − r(hidden)‖²``, mean over rows and features (Romero et al. 2015, eq. 3).

    :param projected: the student's hidden layer through the regressor r, ``[n, D]``.
    :param features: the teacher's, ``[n, D]``.
    """
    return 0.5 * (features - projected).square().mean()
