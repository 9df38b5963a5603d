"""What every student reads numbers and category codes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import AgentConfig
from stillhouse.variant import width

__all__ = ["Blocks", "Columns", "StudentModule", "blocks", "column_arguments", "head", "quantile_edges"]


class Blocks(NamedTuple):
    """How many values of an encoded row are numbers, category codes and token ids; they come in this order."""

    numbers: int
    categories: int
    tokens: int


def blocks(columns: Sequence[Mapping[str, Any]]) -> Blocks:
    """The blocks of rows that :func:`stillhouse.variant.encode` makes with these columns."""
    kinds = ("number", "category", "text")
    return Blocks(*(width([column for column in columns if column["type"] == kind]) for kind in kinds))


class StudentModule(nn.Module):
    """Encoded rows, float32 ``[n, D]``, to logits ``[n, K]``.

    ``spec`` is the JSON that it is made from again; ``spec["kind"]`` names its kind.
    """

    spec: dict[str, Any]


class _ReadsColumns(Protocol):
    """A section of a student that reads numbers and categories by :class:`Columns`."""

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def bins(self) -> int: ...
    @property
    def embedding(self) -> int: ...
    @property
    def dropout(self) -> float: ...


def column_arguments(
    section: _ReadsColumns, config: AgentConfig, columns: Sequence[Mapping[str, Any]], x: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """What the numbers and categories of ``columns`` decide of a student, with encoded training rows ``x``, [n, D]."""
    return {
        "edges": quantile_edges(x[:, : blocks(columns).numbers], section.bins),
        "cardinalities": [len(column["values"]) for column in columns if column["type"] == "category"],
        "actions": len(config.actions),
        "widths": section.widths,
        "embedding": section.embedding,
        "dropout": section.dropout,
    }


class Columns(StudentModule):
    """Piecewise-linear numbers and category embeddings, side by side.

    Numbers are encoded piecewise-linearly between quantiles of the training rows (Gorishniy, Rubachev and
    Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", §3.2), with a flag for
    missing; categories by embeddings, code 0 being the unknown.

    :param edges: float ``[F, B + 1]``, ascending bin edges per number; equal neighbours are empty bins.
    :param cardinalities: number of known values of each of the C categories.
    :param embedding: largest embedding width; a category with V values gets ``min(embedding, ceil(V / 2))``. Or the
        width of each category: those of a student that has grown stay.
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
        self.numbers = edges.shape[0]  # as a number: where a trace sees a shape it sees a tensor
        self.columns_width = edges.shape[0] * edges.shape[1] + sum(sizes)

    def read_columns(self, x: Tensor) -> list[Tensor]:
        """The first F + C values of each row ``[n, …]``, encoded: parts of together ``columns_width`` values."""
        parts = [self._piecewise_linear(x[:, : self.numbers])] if self.numbers else []
        if len(self.embeddings):
            codes = x[:, self.numbers : self.numbers + len(self.embeddings)].to(torch.int64)
            parts += [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return parts

    def _piecewise_linear(self, numbers: Tensor) -> Tensor:
        """``[n, F]`` to ``[n, F (B + 1)]``: how far into each bin the value reaches, and whether it is missing."""
        missing = torch.isnan(numbers)
        value = torch.where(missing, self.edges[:, 0], numbers).unsqueeze(2)
        low, high = self.edges[:, :-1], self.edges[:, 1:]
        reach = torch.clamp((value - low) / torch.clamp(high - low, min=1e-6), 0.0, 1.0)
        return torch.cat([reach, missing.to(reach.dtype).unsqueeze(2)], dim=2).flatten(1)


def head(size: int, widths: Sequence[int], actions: int, dropout: float) -> nn.Sequential:
    """An MLP from ``size`` values over hidden layers of ``widths`` to one logit per action."""
    layers: list[nn.Module] = []
    for hidden in widths:
        layers += [nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout)]
        size = hidden
    return nn.Sequential(*layers, nn.Linear(size, actions))


def quantile_edges(numbers: np.ndarray[Any, Any], bins: int) -> Tensor:
    """Bin edges ``[F, B + 1]`` at equally spaced quantiles of ``[n, F]``, missing values left out.

    Where values repeat (rain is mostly 0) quantiles coincide; the edges that this frees go to quantiles of the
    distinct values, so that a rare tail keeps its resolution. Edges that are still free repeat the last one.
    """
    levels = np.linspace(0.0, 1.0, bins + 1)
    edges = np.zeros((numbers.shape[1], bins + 1), dtype=np.float32)
    for i in range(numbers.shape[1]):
        known = numbers[~np.isnan(numbers[:, i]), i]
        if known.size:
            edges[i] = _distinct_quantiles(known.astype(np.float64), levels)
    return torch.from_numpy(edges)


def _distinct_quantiles(known: np.ndarray[Any, Any], levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.unique(np.quantile(known, levels))
    if found.size < levels.size:
        found = np.unique(np.concatenate([found, np.quantile(np.unique(known), levels)]))
        if found.size > levels.size:
            found = found[np.round(np.linspace(0, found.size - 1, levels.size)).astype(int)]
    return np.pad(found, (0, levels.size - found.size), mode="edge")
