"""Smaller embedding tables: fewer tokens, or rows that share."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.compress.export import INPUT
from stillhouse.compress.subject import Feed, Form
from stillhouse.config import HashedRows, Vocabulary
from stillhouse.errors import ExportError
from stillhouse.variant import PADDING, UNKNOWN, width

__all__ = ["SharedRows", "hash_rows", "shrink_vocabulary", "tables", "texts"]

_FEWEST_ROWS = 64  # of a table that is worth sharing


def texts(form: Form) -> list[str]:
    """Names of the text columns whose vocabulary can shrink.

    Each has an encoder of its own in ``encoders``, with a table ``embedding`` and nothing else that token ids decide:
    an encoder of hashed pairs (``bigrams``) reads other pairs once its tokens have other ids.
    """
    named = [column for column in form.columns or () if column["type"] == "text"]
    encoders = getattr(form.module, "encoders", None)
    if encoders is None or len(named) != len(encoders):
        return []
    return [
        str(column["name"])
        for column, encoder in zip(named, encoders, strict=True)
        if getattr(encoder, "bigrams", None) is None and isinstance(encoder.embedding, nn.Embedding)
    ]


def shrink_vocabulary(step: Vocabulary, form: Form, feed: Feed) -> Form:
    """The form with only the most used ``1 − ratio`` of the tokens of its texts; words are cut into these.

    Single letters and digits stay, as long as there is room, so that any word can still be cut.

    :param feed: encoded rows, in which tokens are counted.
    :raises ExportError: if no text has a vocabulary that can shrink.
    """
    known = texts(form)
    if not known:
        raise ExportError(f"vocabulary: {type(form.module).__name__} reads no text whose tokens could be fewer")
    assert form.columns is not None
    module: Any = copy.deepcopy(form.module).eval()
    columns, begin, number = [], 0, 0
    for column in form.columns:
        used = width([column])
        if column["type"] == "text":
            if column["name"] in known:
                kept = _kept_tokens(column["tokens"], feed[INPUT][:, begin : begin + used], step.ratio)
                column = {**column, "tokens": [column["tokens"][place] for place in kept]}
                encoder = module.encoders[number]
                encoder.embedding = _rows_of(encoder.embedding, kept)
            number += 1
        columns.append(column)
        begin += used
    return Form(module, columns)


def _kept_tokens(tokens: Any, ids: np.ndarray[Any, Any], ratio: float) -> list[int]:
    """Places of the tokens that stay, ascending: padding, unknown, single letters, then the most used."""
    count = max(UNKNOWN + 2, round(len(tokens) * (1.0 - ratio)))
    uses = np.bincount(ids.astype(np.int64).ravel(), minlength=len(tokens))
    special = (PADDING, UNKNOWN)
    first = [
        place
        for place, token in enumerate(tokens)
        if place > UNKNOWN and len(token.removeprefix("##")) == 1 and token.isascii()
    ]
    others = sorted(set(range(UNKNOWN + 1, len(tokens))) - set(first), key=lambda place: (-uses[place], place))
    return sorted([*special, *first, *others][:count])


def _rows_of(table: nn.Embedding, kept: list[int]) -> nn.Embedding:
    smaller: nn.Embedding = nn.Embedding.from_pretrained(table.weight.detach()[kept].clone(), freeze=False)
    return smaller


# --------------------------------------------------------------------------- rows that share


class SharedRows(nn.Module):
    """An embedding whose first rows are their own, and whose others share: row ``own + (id − own) mod shared``.

    Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", §2. A row that is shared begins as the
    mean of those that share it.

    :param table: float ``[V, D]``.
    :param own: rows that stay their own, the first ones.
    :param shared: rows that the others share.
    """

    def __init__(self, table: Tensor, own: int, shared: int) -> None:
        super().__init__()
        self.own, self.shared, self.ids = own, shared, len(table)
        places = own + torch.remainder(torch.arange(len(table) - own), shared)
        rows = torch.zeros(own + shared, table.shape[1])
        rows[:own] = table[:own]
        rows.index_add_(0, places, table[own:])
        rows[own:] /= torch.bincount(places, minlength=own + shared)[own:, None].clamp(min=1)
        self.rows = nn.Embedding.from_pretrained(rows, freeze=False)

    @property
    def embedding_dim(self) -> int:
        """Values of a row."""
        return int(self.rows.embedding_dim)

    @property
    def num_embeddings(self) -> int:
        """Ids that it takes, as those of the table it stands for; an encoder of hashed pairs hashes into so many."""
        return self.ids

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 ``[…]`` to ``[…, D]``."""
        shared = self.own + torch.remainder(ids - self.own, self.shared)
        found: Tensor = self.rows(torch.where(ids < self.own, ids, shared))
        return found


def tables(form: Form) -> list[str]:
    """Names of the embedding tables that are large enough for their rows to share."""
    return [
        name
        for name, part in form.module.named_modules()
        if isinstance(part, nn.Embedding)
        and part.num_embeddings >= _FEWEST_ROWS
        and not name.endswith(".rows")  # shares already
    ]


def hash_rows(step: HashedRows, form: Form, feed: Feed) -> Form:
    """The form with large embedding tables of which ``ratio`` of the rows are gone; those with high ids share.

    Half of what is left are rows of their own, those with low ids: vocabularies begin with what is frequent.

    :raises ExportError: if there is no large table.
    """
    known = tables(form)
    if not known:
        raise ExportError(
            f"hashed_rows: {type(form.module).__name__} has no embedding table of {_FEWEST_ROWS} rows or more"
        )
    module = copy.deepcopy(form.module).eval()
    for name in known:
        table = module.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        left = max(2, round(table.num_embeddings * (1.0 - step.ratio)))
        hashed = name.endswith("bigrams")  # ids there are hashes already, none more frequent than others
        own = 0 if hashed else left // 2
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, SharedRows(table.weight.detach(), own, left - own))
    return Form(module, form.columns)
