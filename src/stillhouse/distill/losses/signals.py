"""What the losses are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Signals", "log_knowledge", "soften"]

_LEAST = 1e-6  # of a probability: its logarithm stays finite


@dataclass(frozen=True)
class Signals:
    """n rows of a batch as student and teacher see them.

    :param logits: the student's, ``[n, K]``.
    :param knowledge: the teacher's probabilities, ``[n, K]``, not softened.
    :param outcomes: action indices int64 ``[n]``; −1: not known.
    :param hidden: the student's last hidden layer, ``[n, H]``; None where no loss asks for it.
    :param projected: ``hidden`` brought to the width of the teacher's features, ``[n, D]``.
    :param features: the teacher's, ``[n, D]``; None where it has none.
    """

    logits: Tensor
    knowledge: Tensor
    outcomes: Tensor
    hidden: Tensor | None = None
    projected: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def of(self, rows: Tensor) -> Signals:
        """Those of some rows, bool ``[n]``."""
        if bool(rows.all()):
            return self
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: whole[rows] for name, whole in found.items() if whole is not None})


def log_knowledge(probabilities: Tensor) -> Tensor:
    """Logits ``[n, K]`` of a teacher that gives probabilities: their logarithms, at least ``log 1e-6``."""
    return torch.log(probabilities.clamp(min=_LEAST))


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """``[n, K]`` probabilities as they would be at ``temperature``: ``p^(1/T)``, normalised.

    The same as dividing logits by T (Hinton, Vinyals and Dean 2015, eq. 1), for teachers that have none.
    """
    return torch.softmax(log_knowledge(probabilities) / temperature, dim=1)
