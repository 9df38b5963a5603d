"""The dispatcher of losses: the type of an entry of ``distillation.losses`` says which term it adds.

The file ``losses/<type>.py`` registers its section here. All of them are imported at the end of this module, so that
nothing depends on who imports what first.
"""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from stillhouse.config import DistillationLoss
from stillhouse.distill.losses.signals import Signals
from stillhouse.parts import import_kinds

__all__ = ["term"]


@singledispatch
def term(loss: object, signals: Signals, temperature: float) -> Tensor:
    """One term of the pull of knowledge, a scalar; the type of ``loss`` says which.

    :raises ConfigError: if it needs features and the teacher has none.
    """
    raise TypeError(f"no loss of type {getattr(loss, 'type', '?')!r}: {type(loss).__name__} is not registered")


import_kinds("stillhouse.distill.losses", DistillationLoss)
