"""The tensors that losses are computed from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["LossInputs", "logits_from_probs", "soften"]

_MIN_PROBABILITY = 1e-6  # keeps logarithms finite


@dataclass(frozen=True)
class LossInputs:
    """The outputs of student and teacher on the n rows of a batch.

    :param logits: the student's, ``[n, K]``.
    :param teacher_probs: the teacher's probabilities, ``[n, K]``, at temperature 1.
    :param labels: action indices int64 ``[n]``; −1: not known.
    :param hidden: the student's last hidden layer, ``[n, H]``; None where it is not captured.
    :param projected: ``hidden`` projected to the width of the teacher's features, ``[n, D]``.
    :param features: the teacher's, ``[n, D]``; None where it has none.
    """

    logits: Tensor
    teacher_probs: Tensor
    labels: Tensor
    hidden: Tensor | None = None
    projected: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def where(self, mask: Tensor) -> LossInputs:
        """The rows where ``mask``, bool ``[n]``, is true."""
        if bool(mask.all()):
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: values[mask] for name, values in tensors.items() if values is not None})


def logits_from_probs(probs: Tensor) -> Tensor:
    """Logits ``[n, K]`` of a model that returns probabilities: their logarithms, at least ``log 1e-6``."""
    return torch.log(probs.clamp(min=_MIN_PROBABILITY))


def soften(probs: Tensor, temperature: float) -> Tensor:
    """Probabilities ``[n, K]`` at ``temperature``: ``p^(1/T)``, normalised.

    The same as dividing logits by T (Hinton, Vinyals and Dean 2015, eq. 1), for teachers that return no logits.

    >>> soften(torch.tensor([[0.9, 0.1]]), 2.0)
    tensor([[0.7500, 0.2500]])
    """
    return torch.softmax(logits_from_probs(probs) / temperature, dim=1)
