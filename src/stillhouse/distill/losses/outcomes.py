"""What turned out to be true."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["outcome_loss"]


def outcome_loss(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy with what turned out to be true: logits ``[n, K]``, action indices int64 ``[n]``."""
    return functional.cross_entropy(logits, outcomes)
