"""The tabular student: numbers and category codes in, one logit per action out, preprocessing inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillhouse.distill.students.columns import Columns, head

__all__ = ["TabularStudent"]


class TabularStudent(Columns):
    """Category embeddings and piecewise-linear numbers into a small MLP.

    :param edges: float ``[F, B + 1]``, see :class:`~stillhouse.distill.students.columns.Columns`.
    :param cardinalities: number of known values of each of the C categories.
    :param actions: K.
    :param widths: hidden units per layer.
    :param embedding: largest embedding width of a category, or that of each.
    """

    def __init__(
        self,
        edges: Tensor,
        cardinalities: Sequence[int],
        actions: int,
        widths: Sequence[int],
        embedding: int | Sequence[int] = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(edges, cardinalities, embedding)
        self.spec |= {
            "kind": "tabular", "actions": actions, "widths": [int(w) for w in widths], "dropout": dropout
        }  # fmt: skip
        self.layers = head(self.columns_width, widths, actions, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, F + C]`` as :func:`stillhouse.variant.encode` makes it, to logits ``[n, K]``."""
        logits: Tensor = self.layers(torch.cat(self.read_columns(x), dim=1))
        return logits
