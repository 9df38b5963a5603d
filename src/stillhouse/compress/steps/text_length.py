"""Shorter texts: fewer tokens are read, because an encoder's time grows with their number."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from stillhouse.compress.target import ModelState
from stillhouse.config import ShortTexts
from stillhouse.errors import ExportError

__all__ = ["shorten_texts", "shortenable_texts"]

_MIN_TOKENS = 4  # that are still read of a text


def shortenable_texts(state: ModelState) -> list[str]:
    """Names of the text columns of which fewer tokens can be read.

    Each column has an encoder of its own in the module's ``encoders``, and ``lengths`` has the number of tokens that
    each encoder reads.
    """
    text_columns = [column for column in state.columns or () if column["type"] == "text"]
    lengths = getattr(state.module, "lengths", None)
    if getattr(state.module, "encoders", None) is None or lengths is None or len(text_columns) != len(lengths):
        return []
    return [str(column["name"]) for column in text_columns if column["length"] > _MIN_TOKENS]


def shorten_texts(step: ShortTexts, state: ModelState) -> ModelState:
    """The state that reads only the first ``1 − ratio`` of the tokens of its texts; the tokens after them are dropped.

    :raises ExportError: if the module reads no text, or none that can be shortened.
    """
    names = shortenable_texts(state)
    if not names:
        raise ExportError(f"length: {type(state.module).__name__} reads no text of which fewer tokens could be read")
    module: Any = copy.deepcopy(state.module).eval()
    assert state.columns is not None
    columns, text_index = [], 0
    for column in state.columns:
        if column["type"] == "text":
            if column["name"] in names:
                length = max(_MIN_TOKENS, round(column["length"] * (1.0 - step.ratio)))
                column = {**column, "length": length}
                module.lengths[text_index] = length
                _shorten_positions(module.encoders[text_index], length)
            text_index += 1
        columns.append(column)
    return ModelState(module, columns)


def _shorten_positions(encoder: nn.Module, length: int) -> None:
    """Drop the learned position embeddings beyond ``length`` tokens and the one start token."""
    positions = getattr(encoder, "places", None)
    if isinstance(positions, Tensor):
        encoder.places = nn.Parameter(positions[: length + 1].detach().clone())
