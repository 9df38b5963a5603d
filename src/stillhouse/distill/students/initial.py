"""Initialises a text encoder from a teacher's: its token embeddings and, where shapes match, its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.students.encoders import TextEncoder, Transformer, TransformerLayer
from stillhouse.parts import TextEncoderState

__all__ = ["initialise_from_teacher"]

Array = np.ndarray[Any, Any]

BERT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "after_feedforward": "output.LayerNorm",
}
"""Parts of our layers, and their names in BERT implementations."""


def initialise_from_teacher(encoder: TextEncoder, tokens: Sequence[str], initial: TextEncoderState) -> None:
    """Copy weights of a teacher's encoder into ``encoder``.

    A transformer of the teacher's width gets the token embeddings, and, if the number of heads and the hidden units
    match too, the position embeddings, the start token and the first layers. Any other encoder gets the first principal
    components of the teacher's embeddings (Jolliffe 2002, "Principal Component Analysis", §6), scaled to the standard
    deviation of its initial table; columns beyond their number keep their random values.

    :param tokens: the student's vocabulary; tokens that the teacher's lacks keep their random embeddings.
    """
    teacher_index = {token: index for index, token in enumerate(initial.tokens)}
    pairs = [(index, teacher_index[token]) for index, token in enumerate(tokens) if index and token in teacher_index]
    if not pairs:
        return
    student_rows, teacher_rows = (np.array(side) for side in zip(*pairs, strict=True))
    table, vectors = encoder.embedding.weight, initial.embeddings[teacher_rows]
    with torch.no_grad():
        if isinstance(encoder, Transformer) and table.shape[1] == vectors.shape[1]:
            table[student_rows] = torch.tensor(vectors)
            _copy_layers(encoder, initial, teacher_index)
        else:
            scale = float(table.std()) / max(float(vectors.std()), 1e-12)
            components = _principal_components(vectors, table.shape[1]) * scale
            table[student_rows, : components.shape[1]] = torch.tensor(components, dtype=torch.float32)


def _principal_components(vectors: Array, width: int) -> Array:
    """The first ``width`` principal components of ``[n, W]``, scaled to the standard deviation of the vectors.

    The sign of each component makes its largest loading positive, so the result is deterministic.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :width]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    components = centred @ (directions * np.where(largest < 0, -1.0, 1.0))
    return np.asarray(components * (vectors.std() / max(components.std(), 1e-12)))


def _copy_layers(encoder: Transformer, initial: TextEncoderState, teacher_index: Mapping[str, int]) -> None:
    """Copy start token, position embeddings and as many layers as both have; nothing unless all sizes match."""
    layers, state = encoder.layers, initial.layers
    first = layers[0]
    assert isinstance(first, TransformerLayer)
    if state is None or first.heads != initial.heads:
        return
    positions = state["embeddings.position_embeddings.weight"]
    if state["encoder.layer.0.intermediate.dense.weight"].shape != tuple(first.up.weight.shape):
        return
    count = min(len(positions), len(encoder.places))
    encoder.places[:count] = torch.tensor(positions[:count] + state["embeddings.token_type_embeddings.weight"][0])
    if initial.start in teacher_index:
        encoder.embedding.weight[0] = torch.tensor(initial.embeddings[teacher_index[initial.start]])
    _load(encoder.normalise, state, "embeddings.LayerNorm")
    for number, layer in enumerate(layers):
        if f"encoder.layer.{number}.intermediate.dense.weight" in state:
            for part, bert_name in BERT_NAMES.items():
                _load(getattr(layer, part), state, f"encoder.layer.{number}.{bert_name}")


def _load(part: torch.nn.Module, state: Mapping[str, Array], name: str) -> None:
    tensors: dict[str, Tensor] = {key: torch.tensor(state[f"{name}.{key}"]) for key in ("weight", "bias")}
    part.load_state_dict(tensors)
