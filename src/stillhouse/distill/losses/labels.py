"""The loss on labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["label_loss"]


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits ``[n, K]`` with action indices int64 ``[n]``, mean over rows (nats)."""
    return functional.cross_entropy(logits, labels)
