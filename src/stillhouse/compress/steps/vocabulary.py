"""Smaller vocabularies: tokens that the texts rarely use are removed, with their embeddings."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import nn

from stillhouse.compress.export import INPUT_NAME
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import Vocabulary
from stillhouse.errors import ExportError
from stillhouse.variant import PADDING, UNKNOWN, width

__all__ = ["shrink_vocabulary", "shrinkable_texts"]


def shrinkable_texts(state: ModelState) -> list[str]:
    """Names of the text columns whose vocabulary can shrink.

    Each column has an encoder of its own in the module's ``encoders``, with a table ``embedding`` and nothing else that
    depends on token ids: an encoder with hashed bigrams (``bigrams``) would hash other pairs after a renumbering.
    """
    text_columns = [column for column in state.columns or () if column["type"] == "text"]
    encoders = getattr(state.module, "encoders", None)
    if encoders is None or len(text_columns) != len(encoders):
        return []
    return [
        str(column["name"])
        for column, encoder in zip(text_columns, encoders, strict=True)
        if getattr(encoder, "bigrams", None) is None and isinstance(encoder.embedding, nn.Embedding)
    ]


def shrink_vocabulary(step: Vocabulary, state: ModelState, feed: Feed) -> ModelState:
    """The state with only the most frequent ``1 − ratio`` of the tokens of its texts; words are split into these.

    Single letters and digits stay as far as the number of tokens allows, so that every word can still be split.

    :param feed: encoded rows, in which the tokens are counted.
    :raises ExportError: if no text column has a vocabulary that can shrink.
    """
    names = shrinkable_texts(state)
    if not names:
        raise ExportError(f"vocabulary: {type(state.module).__name__} reads no text whose tokens could be fewer")
    assert state.columns is not None
    module: Any = copy.deepcopy(state.module).eval()
    columns, begin, text_index = [], 0, 0
    for column in state.columns:
        column_width = width([column])
        if column["type"] == "text":
            if column["name"] in names:
                token_ids = feed[INPUT_NAME][:, begin : begin + column_width]
                index = _frequent_tokens(column["tokens"], token_ids, step.ratio)
                column = {**column, "tokens": [column["tokens"][i] for i in index]}
                encoder = module.encoders[text_index]
                encoder.embedding = _select_rows(encoder.embedding, index)
            text_index += 1
        columns.append(column)
        begin += column_width
    return ModelState(module, columns)


def _frequent_tokens(tokens: Any, ids: np.ndarray[Any, Any], ratio: float) -> list[int]:
    """Ids of the remaining tokens, ascending: padding, unknown, single letters and digits, then the most frequent."""
    count = max(UNKNOWN + 2, round(len(tokens) * (1.0 - ratio)))
    frequency = np.bincount(ids.astype(np.int64).ravel(), minlength=len(tokens))
    special = (PADDING, UNKNOWN)
    single_characters = [
        i for i, token in enumerate(tokens) if i > UNKNOWN and len(token.removeprefix("##")) == 1 and token.isascii()
    ]
    others = sorted(set(range(UNKNOWN + 1, len(tokens))) - set(single_characters), key=lambda i: (-frequency[i], i))
    return sorted([*special, *single_characters, *others][:count])


def _select_rows(table: nn.Embedding, index: list[int]) -> nn.Embedding:
    weight, frozen = table.weight.detach()[index].clone(), not table.weight.requires_grad
    smaller: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=frozen)
    return smaller
