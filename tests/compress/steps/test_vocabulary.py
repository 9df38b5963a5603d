"""Smaller vocabularies: the remaining ids stand for the same words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.vocabulary import shrink_vocabulary, shrinkable_texts
from stillhouse.compress.target import ModelState
from stillhouse.config import BagEncoder, Vocabulary
from stillhouse.errors import ExportError
from stillhouse.variant import PADDING, UNKNOWN, encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, sentences, tabular, text_student

X = {"x": encode(sentences(500), TEXT_COLUMNS)}
TOKENS = TEXT_COLUMNS[2]["tokens"]
BAG = BagEncoder(type="bag", width=12, bigrams=0)


def vocabulary(ratio: float) -> Vocabulary:
    return Vocabulary(method="vocabulary", ratio=ratio)


def parse_tokens(state: ModelState) -> list[str]:
    assert state.columns is not None
    return list(state.columns[2]["tokens"])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_the_most_frequent_tokens_keep_their_embeddings(ratio: float) -> None:
    state = ModelState(text_student(BAG), TEXT_COLUMNS)
    shrunk = shrink_vocabulary(vocabulary(ratio), state, X)
    left = parse_tokens(shrunk)
    assert len(left) == round(len(TOKENS) * (1 - ratio)) and left == [token for token in TOKENS if token in left]
    table, before = shrunk.module.encoders[0].embedding.weight, state.module.encoders[0].embedding.weight
    for index, token in enumerate(left):
        assert torch.equal(table[index], before[TOKENS.index(token)])
    letters = [token for token in TOKENS[2:] if len(token.removeprefix("##")) == 1]
    assert set(TOKENS[:2]) | set(letters) <= set(left)
    uses = np.bincount(X["x"][:, 2:].astype(int).ravel(), minlength=len(TOKENS))
    remaining, removed = (
        [uses[TOKENS.index(t)] for t in TOKENS[2:] if t not in letters and (t in left) is is_remaining]
        for is_remaining in (True, False)
    )
    assert not remaining or min(remaining) >= max(removed)
    assert parse_tokens(state) == TOKENS and shrunk.columns[:2] == TEXT_COLUMNS[:2]  # type: ignore[index]


def test_rows_of_remaining_tokens_give_the_same_output() -> None:
    """Rows without a token that went give the same answers, though their ids are others."""
    state = ModelState(text_student(BAG), TEXT_COLUMNS)
    shrunk = shrink_vocabulary(vocabulary(0.4), state, X)
    left, rows = set(parse_tokens(shrunk)), sentences(500)
    ids = X["x"][:, 2:].astype(int)
    is_complete = np.array([all(TOKENS[i] in left for i in row) for row in ids])
    assert 20 < is_complete.sum() < 500
    actual = run_torch(shrunk.module, {"x": encode(rows[is_complete], shrunk.columns or ())})
    np.testing.assert_allclose(actual, run_torch(state.module, {"x": X["x"][is_complete]}), atol=1e-6)
    assert (encode(rows[is_complete], shrunk.columns or ())[:, 2:] != X["x"][is_complete, 2:]).any()


def test_a_word_without_its_token_is_split_into_remaining_tokens() -> None:
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
    shrunk = shrink_vocabulary(vocabulary(0.13), ModelState(student, columns), {"x": encode(rows, columns)})
    assert shrunk.columns is not None and shrunk.columns[0]["tokens"] == [
        "[PAD]",
        "[UNK]",
        "a",
        "##a",
        "b",
        "##b",
        "often",
    ]
    np.testing.assert_array_equal(
        encode(pd.DataFrame({"said": ["aba often c"]}), shrunk.columns), [[2, 5, 3, 6, UNKNOWN, PADDING]]
    )


def test_padding_and_unknown_always_stay() -> None:
    shrunk = shrink_vocabulary(vocabulary(0.999), ModelState(text_student(BAG), TEXT_COLUMNS), X)
    assert parse_tokens(shrunk)[:2] == TOKENS[:2] and len(parse_tokens(shrunk)) == 3


@pytest.mark.parametrize("encoder", ["convolution", "transformer"])
def test_it_is_exported_with_its_new_columns(encoder: str) -> None:
    shrunk = shrink_vocabulary(vocabulary(0.5), ModelState(text_student(ENCODERS[encoder]), TEXT_COLUMNS), X)
    rows = {"x": encode(sentences(60, 3), shrunk.columns or ())}
    assert rows["x"][:, 2:].max() < len(parse_tokens(shrunk))
    np.testing.assert_allclose(
        run_onnx(export_onnx(shrunk.module, rows), rows), run_torch(shrunk.module, rows), atol=1e-5
    )


def test_a_module_with_bigrams_or_without_text_is_refused() -> None:
    pairs = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    assert shrinkable_texts(pairs) == [] == shrinkable_texts(ModelState(tabular())) and shrinkable_texts(
        ModelState(text_student(BAG), TEXT_COLUMNS)
    ) == ["said"]
    for state in (pairs, ModelState(tabular(), [])):
        with pytest.raises(ExportError, match=r"vocabulary: \w+ reads no text whose tokens could be fewer"):
            shrink_vocabulary(vocabulary(0.5), state, X)
