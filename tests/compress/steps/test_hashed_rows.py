"""Embedding tables whose rare ids share rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.hashed_rows import SharedRows, hash_rows, hashable_tables
from stillhouse.compress.target import ModelState
from stillhouse.config import BagEncoder, HashedRows
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, sentences, tabular, text_student

X = {"x": encode(sentences(500), TEXT_COLUMNS)}
TOKENS = TEXT_COLUMNS[2]["tokens"]
BAG = BagEncoder(type="bag", width=12, bigrams=0)


def hashed(ratio: float) -> HashedRows:
    return HashedRows(method="hashed_rows", ratio=ratio)


def test_shared_rows_by_hand() -> None:
    """Two of six rows are their own; rows 2 and 4 share one, 3 and 5 the other."""
    table = torch.tensor([[1.0], [2], [10], [20], [30], [40]])
    embedding = SharedRows(table, own=2, shared=2)
    assert embedding.rows.weight.flatten().tolist() == [1, 2, 20, 30]
    assert embedding(torch.tensor([[0, 1, 2], [3, 4, 5]])).squeeze(2).tolist() == [[1, 2, 20], [30, 20, 30]]
    assert (len(embedding.rows.weight), embedding.num_embeddings, embedding.embedding_dim) == (4, 6, 1)


@pytest.mark.parametrize("seed", range(8))
def test_a_shared_row_is_the_mean_of_its_ids(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, width = int(random.integers(4, 60)), int(random.integers(1, 5))
    own, shared = int(random.integers(0, size - 2)), int(random.integers(1, size))
    table = torch.from_numpy(random.normal(size=(size, width)).astype(np.float32))
    actual = SharedRows(table, own, shared)(torch.arange(size))
    for index in range(size):
        mates = [index] if index < own else [other for other in range(own, size) if (other - index) % shared == 0]
        torch.testing.assert_close(actual[index], table[mates].mean(dim=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_large_tables_shrink_and_small_ones_stay(ratio: float) -> None:
    state = ModelState(tabular())
    assert hashable_tables(state) == ["embeddings.2"]
    module: Any = hash_rows(hashed(ratio), state).module
    left = max(2, round(106 * (1 - ratio)))
    shared = module.embeddings[2]
    assert isinstance(shared, SharedRows) and len(shared.rows.weight) == left and shared.own == left // 2
    assert torch.equal(shared.rows.weight[: left // 2], state.module.embeddings[2].weight[: left // 2])
    assert torch.equal(module.embeddings[0].weight, state.module.embeddings[0].weight)
    assert isinstance(state.module.embeddings[2], nn.Embedding)
    rows = feed(200, seed=3)
    np.testing.assert_allclose(run_onnx(export_onnx(module, rows), rows), run_torch(module, rows), atol=1e-6)
    frequent = rows["x"][:, 22] < left // 2  # rows of their own: nothing changes
    np.testing.assert_array_equal(run_torch(module, rows)[frequent], run_torch(state.module, rows)[frequent])


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_a_bigram_reads_its_shared_row(ratio: float) -> None:
    """Whether or not the rows left divide those that there were."""
    state = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    table = state.module.encoders[0].bigrams.weight
    left = round(300 * (1 - ratio))
    with torch.no_grad():
        table[:] = torch.randn(left, 48)[torch.arange(300) % left]  # those that are to share are the same
    module: Any = hash_rows(hashed(ratio), state).module
    module.encoders[0].embedding = state.module.encoders[0].embedding
    assert len(module.encoders[0].bigrams.rows.weight) == left
    np.testing.assert_allclose(run_torch(module, X), run_torch(state.module, X), atol=1e-6)


def test_hashed_bigrams_have_no_rows_of_their_own() -> None:
    state = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    assert hashable_tables(state) == ["encoders.0.embedding", "encoders.0.bigrams"]
    module: Any = hash_rows(hashed(0.5), state).module
    assert (module.encoders[0].bigrams.own, len(module.encoders[0].bigrams.rows.weight)) == (0, 150)
    assert module.encoders[0].embedding.own == round(len(TOKENS) / 2) // 2
    np.testing.assert_allclose(run_onnx(export_onnx(module, X), X), run_torch(module, X), atol=1e-5)
    again = ModelState(module, TEXT_COLUMNS)
    assert hashable_tables(again) == []
    with pytest.raises(ExportError, match="hashed_rows: TextStudent has no embedding table of 64 rows or more"):
        hash_rows(hashed(0.5), again)
