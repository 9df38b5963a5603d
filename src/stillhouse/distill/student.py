"""The tabular student: raw numbers and category codes in, one logit per action out, preprocessing inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["Student", "load", "quantile_edges", "save"]


class Student(nn.Module):
    """Category embeddings and piecewise-linear numbers into a small MLP.

    Numbers are encoded piecewise-linearly between quantiles of the training rows (Gorishniy, Rubachev and
    Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", §3.2), with a flag for
    missing; categories by embeddings, code 0 being the unknown.

    :param edges: float ``[F, B + 1]``, ascending bin edges per number; equal neighbours are empty bins.
    :param cardinalities: number of known values of each of the C categories.
    :param actions: K.
    :param widths: hidden units per layer.
    :param embedding: largest embedding width; a category with V values gets ``min(embedding, ceil(V / 2))``. Or the
        width of each category: those of a student that has grown stay.
    """

    edges: Tensor

    def __init__(
        self,
        edges: Tensor,
        cardinalities: Sequence[int],
        actions: int,
        widths: Sequence[int],
        embedding: int | Sequence[int] = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {
            "numbers": edges.shape[0],
            "bins": edges.shape[1] - 1,
            "cardinalities": [int(c) for c in cardinalities],
            "actions": actions,
            "widths": [int(w) for w in widths],
            "embedding": embedding if isinstance(embedding, int) else [int(size) for size in embedding],
            "dropout": dropout,
        }
        self.register_buffer("edges", edges.to(torch.float32))
        if isinstance(embedding, int):
            sizes = [min(embedding, (count + 1) // 2) for count in cardinalities]
        else:
            sizes = list(embedding)
        tables = [nn.Embedding(count + 1, size) for count, size in zip(cardinalities, sizes, strict=True)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        layers: list[nn.Module] = []
        size = edges.shape[0] * edges.shape[1] + sum(sizes)
        for width in widths:
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
            size = width
        layers.append(nn.Linear(size, actions))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, F + C]`` as :func:`stillhouse.variant.encode` makes it, to logits ``[n, K]``."""
        count = self.edges.shape[0]
        numbers, codes = x[:, :count], x[:, count:].to(torch.int64)
        parts = [self._piecewise_linear(numbers)]
        parts += [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        logits: Tensor = self.layers(torch.cat(parts, dim=1))
        return logits

    def _piecewise_linear(self, numbers: Tensor) -> Tensor:
        """``[n, F]`` to ``[n, F (B + 1)]``: how far into each bin the value reaches, and whether it is missing."""
        missing = torch.isnan(numbers)
        value = torch.where(missing, self.edges[:, 0], numbers).unsqueeze(2)
        low, high = self.edges[:, :-1], self.edges[:, 1:]
        reach = torch.clamp((value - low) / torch.clamp(high - low, min=1e-6), 0.0, 1.0)
        return torch.cat([reach, missing.to(reach.dtype).unsqueeze(2)], dim=2).flatten(1)


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


def save(student: Student, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` (no pickle)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()},
              folder / "student.safetensors")  # fmt: skip
    (folder / "student.json").write_text(json.dumps(student.spec, indent=1), encoding="utf-8")


def load(folder: Path) -> Student:
    """Read what :func:`save` wrote."""
    spec = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    edges = torch.zeros(spec.pop("numbers"), spec.pop("bins") + 1)
    student = Student(edges, **spec)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student.eval()
