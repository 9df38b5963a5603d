"""Smaller vocabularies whose ids still mean the same words, and rows that share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.hashed_rows import SharedRows, hash_rows, hashable_tables
from stillhouse.compress.steps.vocabulary import shrink_vocabulary, shrinkable_texts
from stillhouse.compress.target import ModelState
from stillhouse.config import BagEncoder, HashedRows, Vocabulary
from stillhouse.errors import ExportError
from stillhouse.variant import PADDING, UNKNOWN, encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, sentences, tabular, text_student

X = {"x": encode(sentences(500), TEXT_COLUMNS)}
TOKENS = TEXT_COLUMNS[2]["tokens"]
BAG = BagEncoder(type="bag", width=12, bigrams=0)


def vocabulary(ratio: float) -> Vocabulary:
    return Vocabulary(method="vocabulary", ratio=ratio)


def hashed(ratio: float) -> HashedRows:
    return HashedRows(method="hashed_rows", ratio=ratio)


def tokens_of(state: ModelState) -> list[str]:
    assert state.columns is not None
    return list(state.columns[2]["tokens"])


# --------------------------------------------------------------------------- vocabulary


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_the_most_used_tokens_stay_with_their_vectors(ratio: float) -> None:
    state = ModelState(text_student(BAG), TEXT_COLUMNS)
    made = shrink_vocabulary(vocabulary(ratio), state, X)
    left = tokens_of(made)
    assert len(left) == round(len(TOKENS) * (1 - ratio)) and left == [token for token in TOKENS if token in left]
    table, before = made.module.encoders[0].embedding.weight, state.module.encoders[0].embedding.weight
    for place, token in enumerate(left):
        assert torch.equal(table[place], before[TOKENS.index(token)])
    letters = [token for token in TOKENS[2:] if len(token.removeprefix("##")) == 1]
    assert set(TOKENS[:2]) | set(letters) <= set(left)
    uses = np.bincount(X["x"][:, 2:].astype(int).ravel(), minlength=len(TOKENS))
    kept, gone = (
        [uses[TOKENS.index(t)] for t in TOKENS[2:] if t not in letters and (t in left) is held]
        for held in (True, False)
    )
    assert not kept or min(kept) >= max(gone)
    assert tokens_of(state) == TOKENS and made.columns[:2] == TEXT_COLUMNS[:2]  # type: ignore[index]


def test_words_of_kept_tokens_are_read_as_before() -> None:
    """Rows without a token that went give the same answers, though their ids are others."""
    state = ModelState(text_student(BAG), TEXT_COLUMNS)
    made = shrink_vocabulary(vocabulary(0.4), state, X)
    left, rows = set(tokens_of(made)), sentences(500)
    ids = X["x"][:, 2:].astype(int)
    whole = np.array([all(TOKENS[i] in left for i in row) for row in ids])
    assert 20 < whole.sum() < 500
    found = run_torch(made.module, {"x": encode(rows[whole], made.columns or ())})
    np.testing.assert_allclose(found, run_torch(state.module, {"x": X["x"][whole]}), atol=1e-6)
    assert (encode(rows[whole], made.columns or ())[:, 2:] != X["x"][whole, 2:]).any()


def test_a_word_whose_token_went_is_cut_into_what_stays() -> None:
    columns = [
        {
            "name": "said",
            "type": "text",
            "length": 6,
            "tokens": ["[PAD]", "[UNK]", "a", "##a", "b", "##b", "aba", "often"],
        }
    ]
    student = text_student(BAG)
    student.encoders[0].embedding = nn.Embedding(8, 12)
    rows = pd.DataFrame({"said": ["often often", "often aba"]})
    made = shrink_vocabulary(vocabulary(0.13), ModelState(student, columns), {"x": encode(rows, columns)})
    assert made.columns is not None and made.columns[0]["tokens"] == ["[PAD]", "[UNK]", "a", "##a", "b", "##b", "often"]
    np.testing.assert_array_equal(
        encode(pd.DataFrame({"said": ["aba often c"]}), made.columns), [[2, 5, 3, 6, UNKNOWN, PADDING]]
    )


def test_padding_and_unknown_stay_whatever_is_asked() -> None:
    made = shrink_vocabulary(vocabulary(0.999), ModelState(text_student(BAG), TEXT_COLUMNS), X)
    assert tokens_of(made)[:2] == TOKENS[:2] and len(tokens_of(made)) == 3


@pytest.mark.parametrize("encoder", ["convolution", "transformer"])
def test_it_is_exported_with_its_new_columns(encoder: str) -> None:
    made = shrink_vocabulary(vocabulary(0.5), ModelState(text_student(ENCODERS[encoder]), TEXT_COLUMNS), X)
    rows = {"x": encode(sentences(60, 3), made.columns or ())}
    assert rows["x"][:, 2:].max() < len(tokens_of(made))
    np.testing.assert_allclose(run_onnx(export_onnx(made.module, rows), rows), run_torch(made.module, rows), atol=1e-5)


def test_what_reads_pairs_of_ids_or_no_text_is_refused() -> None:
    pairs = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    assert shrinkable_texts(pairs) == [] == shrinkable_texts(ModelState(tabular())) and shrinkable_texts(
        ModelState(text_student(BAG), TEXT_COLUMNS)
    ) == ["said"]
    for state in (pairs, ModelState(tabular(), [])):
        with pytest.raises(ExportError, match=r"vocabulary: \w+ reads no text whose tokens could be fewer"):
            shrink_vocabulary(vocabulary(0.5), state, X)


# --------------------------------------------------------------------------- rows that share


def test_shared_rows_by_hand() -> None:
    """Two of six rows are their own; rows 2 and 4 share one, 3 and 5 the other."""
    table = torch.tensor([[1.0], [2], [10], [20], [30], [40]])
    made = SharedRows(table, own=2, shared=2)
    assert made.rows.weight.flatten().tolist() == [1, 2, 20, 30]
    assert made(torch.tensor([[0, 1, 2], [3, 4, 5]])).squeeze(2).tolist() == [[1, 2, 20], [30, 20, 30]]
    assert (len(made.rows.weight), made.num_embeddings, made.embedding_dim) == (4, 6, 1)


@pytest.mark.parametrize("seed", range(8))
def test_each_id_finds_the_mean_of_those_it_shares_with(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, width = int(random.integers(4, 60)), int(random.integers(1, 5))
    own, shared = int(random.integers(0, size - 2)), int(random.integers(1, size))
    table = torch.from_numpy(random.normal(size=(size, width)).astype(np.float32))
    found = SharedRows(table, own, shared)(torch.arange(size))
    for place in range(size):
        mates = [place] if place < own else [other for other in range(own, size) if (other - place) % shared == 0]
        torch.testing.assert_close(found[place], table[mates].mean(dim=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_large_tables_shrink_and_small_ones_stay(ratio: float) -> None:
    state = ModelState(tabular())
    assert hashable_tables(state) == ["embeddings.2"]
    made: Any = hash_rows(hashed(ratio), state).module
    left = max(2, round(106 * (1 - ratio)))
    shared = made.embeddings[2]
    assert isinstance(shared, SharedRows) and len(shared.rows.weight) == left and shared.own == left // 2
    assert torch.equal(shared.rows.weight[: left // 2], state.module.embeddings[2].weight[: left // 2])
    assert torch.equal(made.embeddings[0].weight, state.module.embeddings[0].weight)
    assert isinstance(state.module.embeddings[2], nn.Embedding)
    rows = feed(200, seed=3)
    np.testing.assert_allclose(run_onnx(export_onnx(made, rows), rows), run_torch(made, rows), atol=1e-6)
    frequent = rows["x"][:, 22] < left // 2  # rows of their own: nothing changes
    np.testing.assert_array_equal(run_torch(made, rows)[frequent], run_torch(state.module, rows)[frequent])


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_a_pair_reads_the_row_that_its_own_now_shares(ratio: float) -> None:
    """Whether or not the rows left divide those that there were."""
    state = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    table = state.module.encoders[0].bigrams.weight
    left = round(300 * (1 - ratio))
    with torch.no_grad():
        table[:] = torch.randn(left, 48)[torch.arange(300) % left]  # those that are to share are the same
    made: Any = hash_rows(hashed(ratio), state).module
    made.encoders[0].embedding = state.module.encoders[0].embedding
    assert len(made.encoders[0].bigrams.rows.weight) == left
    np.testing.assert_allclose(run_torch(made, X), run_torch(state.module, X), atol=1e-6)


def test_pairs_that_are_hashes_already_have_no_rows_of_their_own() -> None:
    state = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    assert hashable_tables(state) == ["encoders.0.embedding", "encoders.0.bigrams"]
    made: Any = hash_rows(hashed(0.5), state).module
    assert (made.encoders[0].bigrams.own, len(made.encoders[0].bigrams.rows.weight)) == (0, 150)
    assert made.encoders[0].embedding.own == round(len(TOKENS) / 2) // 2
    np.testing.assert_allclose(run_onnx(export_onnx(made, X), X), run_torch(made, X), atol=1e-5)
    again = ModelState(made, TEXT_COLUMNS)
    assert hashable_tables(again) == []
    with pytest.raises(ExportError, match="hashed_rows: TextStudent has no embedding table of 64 rows or more"):
        hash_rows(hashed(0.5), again)
