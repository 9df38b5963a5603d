"""How students encode numbers and category codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import AgentConfig
from stillhouse.variant import width

__all__ = [
    "ColumnStudent",
    "InputWidths",
    "StudentModule",
    "column_arguments",
    "input_widths",
    "output_layers",
    "quantile_edges",
]


class InputWidths(NamedTuple):
    """How many values of an encoded row are numbers, category codes and token ids; they come in this order."""

    numbers: int
    categories: int
    tokens: int


def input_widths(columns: Sequence[Mapping[str, Any]]) -> InputWidths:
    """The widths of rows that :func:`stillhouse.variant.encode` encodes with ``columns``.

    >>> input_widths([{"name": "temp", "type": "number"}, {"name": "origin", "type": "category", "values": ["EWR"]}])
    InputWidths(numbers=1, categories=1, tokens=0)
    """
    types = ("number", "category", "text")
    return InputWidths(*(width([column for column in columns if column["type"] == name]) for name in types))


class StudentModule(nn.Module):
    """A student: encoded rows, float32 ``[n, D]``, to logits ``[n, K]``."""

    spec: dict[str, Any]
    """The JSON that a module of the same shape is built from; ``spec["kind"]`` names its kind."""


class _ColumnSection(Protocol):
    """The section of a student that is a :class:`ColumnStudent`."""

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def bins(self) -> int: ...
    @property
    def embedding(self) -> int: ...
    @property
    def dropout(self) -> float: ...


def column_arguments(
    section: _ColumnSection, config: AgentConfig, columns: Sequence[Mapping[str, Any]], x: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Arguments of a student for the numbers and categories of ``columns``, given encoded training rows ``[n, D]``."""
    return {
        "edges": quantile_edges(x[:, : input_widths(columns).numbers], section.bins),
        "cardinalities": [len(column["values"]) for column in columns if column["type"] == "category"],
        "actions": len(config.actions),
        "widths": section.widths,
        "embedding": section.embedding,
        "dropout": section.dropout,
    }


class ColumnStudent(StudentModule):
    """Base of students that encode numbers piecewise-linearly and categories by embeddings.

    Numbers are encoded piecewise-linearly between quantiles of the training rows (Gorishniy, Rubachev and
    Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", §3.2), with a flag for a missing
    value. Code 0 of a category stands for unknown values.

    :param edges: float ``[F, B + 1]``, ascending bin edges per number; equal neighbours are empty bins.
    :param cardinalities: number of known values of each of the C categories.
    :param embedding: the maximum embedding width: a category with V values gets ``min(embedding, ceil(V / 2))``; or the
        width of each category, as in a student that was extended.
    """

    edges: Tensor

    def __init__(self, edges: Tensor, cardinalities: Sequence[int], embedding: int | Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("edges", edges.to(torch.float32))
        if isinstance(embedding, int):
            sizes = [min(embedding, (count + 1) // 2) for count in cardinalities]
        else:
            sizes = list(embedding)
        tables = [nn.Embedding(count + 1, size) for count, size in zip(cardinalities, sizes, strict=True)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        self.spec: dict[str, Any] = {
            "numbers": edges.shape[0],
            "bins": edges.shape[1] - 1,
            "cardinalities": [int(c) for c in cardinalities],
            "embedding": embedding if isinstance(embedding, int) else [int(size) for size in embedding],
        }
        self.numbers = edges.shape[0]  # an int: in a trace, a shape would be a tensor
        self.columns_width = edges.shape[0] * edges.shape[1] + sum(sizes)

    def read_columns(self, x: Tensor) -> list[Tensor]:
        """Encode the first F + C values of each row ``[n, …]``: parts with ``columns_width`` values in total."""
        parts = [self._piecewise_linear(x[:, : self.numbers])] if self.numbers else []
        if len(self.embeddings):
            codes = x[:, self.numbers : self.numbers + len(self.embeddings)].to(torch.int64)
            parts += [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return parts

    def _piecewise_linear(self, numbers: Tensor) -> Tensor:
        """``[n, F]`` to ``[n, F (B + 1)]``: how much of each bin lies below the value, and whether it is missing."""
        missing = torch.isnan(numbers)
        value = torch.where(missing, self.edges[:, 0], numbers).unsqueeze(2)
        low, high = self.edges[:, :-1], self.edges[:, 1:]
        filled = torch.clamp((value - low) / torch.clamp(high - low, min=1e-6), 0.0, 1.0)
        return torch.cat([filled, missing.to(filled.dtype).unsqueeze(2)], dim=2).flatten(1)


def output_layers(size: int, widths: Sequence[int], actions: int, dropout: float) -> nn.Sequential:
    """An MLP from ``size`` values through hidden layers of ``widths`` to one logit per action."""
    layers: list[nn.Module] = []
    for hidden in widths:
        layers += [nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout)]
        size = hidden
    return nn.Sequential(*layers, nn.Linear(size, actions))


def quantile_edges(numbers: np.ndarray[Any, Any], bins: int) -> Tensor:
    """Bin edges ``[F, B + 1]`` at equally spaced quantiles of ``[n, F]``, without missing values.

    Where a value is frequent (rain is mostly 0), quantiles coincide; the spare edges are put at quantiles of the
    distinct values, so that a rare tail keeps its resolution. Edges that are still spare repeat the last one.

    >>> quantile_edges(np.arange(5.0)[:, None], bins=2).tolist()
    [[0.0, 2.0, 4.0]]
    """
    levels = np.linspace(0.0, 1.0, bins + 1)
    edges = np.zeros((numbers.shape[1], bins + 1), dtype=np.float32)
    for i in range(numbers.shape[1]):
        values = numbers[~np.isnan(numbers[:, i]), i]
        if values.size:
            edges[i] = _distinct_quantiles(values.astype(np.float64), levels)
    return torch.from_numpy(edges)


def _distinct_quantiles(values: np.ndarray[Any, Any], levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    edges = np.unique(np.quantile(values, levels))
    if edges.size < levels.size:
        edges = np.unique(np.concatenate([edges, np.quantile(np.unique(values), levels)]))
        if edges.size > levels.size:
            edges = edges[np.round(np.linspace(0, edges.size - 1, levels.size)).astype(int)]
    return np.pad(edges, (0, levels.size - edges.size), mode="edge")
