"""Smaller embedding tables: rare ids share rows, by hashing."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stillhouse.compress.target import ModelState
from stillhouse.config import HashedRows
from stillhouse.errors import ExportError

__all__ = ["SharedRows", "hash_rows", "hashable_tables"]

_MIN_ROWS = 64  # rows of a table that is worth hashing


class SharedRows(nn.Module):
    """An embedding whose first ids have a row each and whose other ids share rows: ``own + (id − own) mod shared``.

    Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", §2. A shared row starts as the mean of
    the rows that it replaces.

    Example:
        >>> import torch
        >>> table = torch.arange(5.0)[:, None]
        >>> SharedRows(table, own=1, shared=2)(torch.arange(5)).flatten().tolist()
        [0.0, 2.0, 3.0, 2.0, 3.0]

    :param table: float ``[V, D]``.
    :param own: number of ids with a row each, the lowest ids.
    :param shared: number of rows that the other ids share.
    """

    def __init__(self, table: Tensor, own: int, shared: int) -> None:
        super().__init__()
        self.own, self.shared, self.ids = own, shared, len(table)
        index = own + torch.remainder(torch.arange(len(table) - own), shared)
        rows = torch.zeros(own + shared, table.shape[1])
        rows[:own] = table[:own]
        rows.index_add_(0, index, table[own:])
        rows[own:] /= torch.bincount(index, minlength=own + shared)[own:, None].clamp(min=1)
        self.rows = nn.Embedding.from_pretrained(rows, freeze=False)

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return int(self.rows.embedding_dim)

    @property
    def num_embeddings(self) -> int:
        """Number of ids, as in the table that this replaces; an encoder of hashed bigrams hashes into this range."""
        return self.ids

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 ``[…]`` to ``[…, D]``."""
        shared = self.own + torch.remainder(ids - self.own, self.shared)
        embedded: Tensor = self.rows(torch.where(ids < self.own, ids, shared))
        return embedded


def hashable_tables(state: ModelState) -> list[str]:
    """Names of the embedding tables that are large enough for hashing."""
    return [
        name
        for name, part in state.module.named_modules()
        if isinstance(part, nn.Embedding)
        and part.num_embeddings >= _MIN_ROWS
        and not name.endswith(".rows")  # of a SharedRows
    ]


def hash_rows(step: HashedRows, state: ModelState) -> ModelState:
    """The state with ``ratio`` of the rows of its large embedding tables removed; high ids share rows.

    Half of the remaining rows belong to one low id each: vocabularies begin with the most frequent tokens.

    :raises ExportError: if there is no large table.
    """
    names = hashable_tables(state)
    if not names:
        raise ExportError(
            f"hashed_rows: {type(state.module).__name__} has no embedding table of {_MIN_ROWS} rows or more"
        )
    module = copy.deepcopy(state.module).eval()
    for name in names:
        table = module.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        n_rows = max(2, round(table.num_embeddings * (1.0 - step.ratio)))
        is_hashed = name.endswith("bigrams")  # their ids are hashes already: none is more frequent by its number
        own = 0 if is_hashed else n_rows // 2
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, SharedRows(table.weight.detach(), own, n_rows - own))
    return ModelState(module, state.columns)
