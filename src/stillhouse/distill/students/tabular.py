"""The tabular student: numbers and category codes in, one logit per action out, preprocessing inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse import config as settings
from stillhouse.config import AgentConfig
from stillhouse.distill.students.columns import Columns, StudentModule, column_arguments, head
from stillhouse.distill.students.kinds import InputColumns, make, reads
from stillhouse.parts import TextEncoderState

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
        self.spec |= {"kind": "tabular", "actions": actions, "widths": [int(w) for w in widths], "dropout": dropout}
        self.layers = head(self.columns_width, widths, actions, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, F + C]`` as :func:`stillhouse.variant.encode` makes it, to logits ``[n, K]``."""
        logits: Tensor = self.layers(torch.cat(self.read_columns(x), dim=1))
        return logits


@make.register
def _(
    section: settings.TabularStudent,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    return TabularStudent(**column_arguments(section, config, columns, x))


@reads("tabular")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "numbers", "bins")}
    return TabularStudent(torch.zeros(spec["numbers"], spec["bins"] + 1), **arguments)
