"""The dispatcher of losses: the type of an entry of ``distillation.losses`` selects the function that computes it.

The file ``losses/<type>.py`` registers its function here. All these files are imported at the end of this module, so
the order of imports elsewhere does not matter.
"""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from stillhouse.config import DistillationLoss
from stillhouse.distill.losses.inputs import LossInputs
from stillhouse.parts import import_kinds

__all__ = ["loss_term"]


@singledispatch
def loss_term(loss: object, inputs: LossInputs, temperature: float) -> Tensor:
    """One term of the distillation loss, a scalar; the type of ``loss`` selects it.

    :raises ConfigError: if it needs features and the teacher has none.
    """
    raise TypeError(f"no loss of type {getattr(loss, 'type', '?')!r}: {type(loss).__name__} is not registered")


import_kinds("stillhouse.distill.losses", DistillationLoss)
