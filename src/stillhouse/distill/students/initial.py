"""A text encoder begins as a teacher's: its tokens' vectors and, where they fit, its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.students.encoders import TextEncoder, Transformer, TransformerLayer
from stillhouse.parts import TextEncoderState

__all__ = ["begin_like"]

Array = np.ndarray[Any, Any]

_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "after_feedforward": "output.LayerNorm",
}
"""Parts of a layer, and what BERT's implementations call them."""


def begin_like(encoder: TextEncoder, tokens: Sequence[str], initial: TextEncoderState) -> None:
    """Copy into ``encoder`` what the teacher's encoder has of it.

    A transformer of the teacher's width gets its vectors as they are, and its places, start token and first layers
    where heads and hidden units agree too. Any other encoder gets the principal components of the teacher's vectors,
    as many as it has room for (Jolliffe 2002, "Principal Component Analysis", §6), scaled to the spread that its table
    began with; a wider table keeps random values beside them.

    :param tokens: the student's vocabulary; what the teacher's lacks begins at random.
    """
    places = {token: place for place, token in enumerate(initial.tokens)}
    known = [(own, places[token]) for own, token in enumerate(tokens) if own and token in places]
    if not known:
        return
    own, theirs = (np.array(side) for side in zip(*known, strict=True))
    table, vectors = encoder.embedding.weight, initial.embeddings[theirs]
    with torch.no_grad():
        if isinstance(encoder, Transformer) and table.shape[1] == vectors.shape[1]:
            table[own] = torch.tensor(vectors)
            _copy_layers(encoder, initial, places)
        else:
            found = _principal(vectors, table.shape[1]) * (float(table.std()) / max(float(vectors.std()), 1e-12))
            table[own, : found.shape[1]] = torch.tensor(found, dtype=torch.float32)


def _principal(vectors: Array, width: int) -> Array:
    """The first ``width`` principal components of ``[n, W]``, those of most variance first, at the spread of the whole.

    Each component's sign makes its largest loading positive, so that the same vectors give the same components.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :width]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    found = centred @ (directions * np.where(largest < 0, -1.0, 1.0))
    return np.asarray(found * (vectors.std() / max(found.std(), 1e-12)))


def _copy_layers(encoder: Transformer, initial: TextEncoderState, places: Mapping[str, int]) -> None:
    """The start, the places and as many layers as both have; nothing of it unless all measures agree."""
    layers, theirs = encoder.layers, initial.layers
    first = layers[0]
    assert isinstance(first, TransformerLayer)
    if theirs is None or first.heads != initial.heads:
        return
    known = theirs["embeddings.position_embeddings.weight"]
    if theirs["encoder.layer.0.intermediate.dense.weight"].shape != tuple(first.up.weight.shape):
        return
    count = min(len(known), len(encoder.places))
    encoder.places[:count] = torch.tensor(known[:count] + theirs["embeddings.token_type_embeddings.weight"][0])
    if initial.start in places:
        encoder.embedding.weight[0] = torch.tensor(initial.embeddings[places[initial.start]])
    _load(encoder.normalise, theirs, "embeddings.LayerNorm")
    for number, layer in enumerate(layers):
        if f"encoder.layer.{number}.intermediate.dense.weight" in theirs:
            for own, name in _PARTS.items():
                _load(getattr(layer, own), theirs, f"encoder.layer.{number}.{name}")


def _load(part: torch.nn.Module, state: Mapping[str, Array], name: str) -> None:
    kept: dict[str, Tensor] = {key: torch.tensor(state[f"{name}.{key}"]) for key in ("weight", "bias")}
    part.load_state_dict(kept)
