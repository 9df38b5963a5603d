"""The tabular student: numbers and category codes to one logit per action, preprocessing included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse import config as settings
from stillhouse.config import AgentConfig
from stillhouse.distill.students.columns import ColumnStudent, StudentModule, column_arguments, output_layers
from stillhouse.distill.students.kinds import InputColumns, make_student, register_reader
from stillhouse.parts import TextEncoderState

__all__ = ["TabularStudent"]


class TabularStudent(ColumnStudent):
    """A small MLP on category embeddings and piecewise-linear numbers.

    :param edges: float ``[F, B + 1]``, see :class:`~stillhouse.distill.students.columns.ColumnStudent`.
    :param cardinalities: number of known values of each of the C categories.
    :param actions: K.
    :param widths: hidden units per layer.
    :param embedding: maximum embedding width of a category, or the width of each.

    >>> edges = torch.linspace(-2, 2, 5).repeat(3, 1)
    >>> student = TabularStudent(edges, cardinalities=(4,), actions=2, widths=(8,))
    >>> student(torch.zeros(7, 4)).shape
    torch.Size([7, 2])
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
        self.layers = output_layers(self.columns_width, widths, actions, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, F + C]`` as :func:`stillhouse.variant.encode` returns it, to logits ``[n, K]``."""
        logits: Tensor = self.layers(torch.cat(self.read_columns(x), dim=1))
        return logits


@make_student.register
def _(
    section: settings.TabularStudent,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    return TabularStudent(**column_arguments(section, config, columns, x))


@register_reader("tabular")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "numbers", "bins")}
    return TabularStudent(torch.zeros(spec["numbers"], spec["bins"] + 1), **arguments)
