"""Texts are split into token ids: examples by hand, and a comparison with the tokenizers library."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.distill.vocabulary import grow_vocabulary
from stillhouse.variant import Encoder, InputError, WordPiece, basic_words, encode, width

TOKENS = ["[PAD]", "[UNK]", "book", "##ing", "##s", "a", "taxi", ",", "tax", "##i", "é", "é"]
COLUMNS: list[dict[str, Any]] = [
    {"name": "hour", "type": "number"},
    {"name": "place", "type": "category", "values": ["here", "there"]},
    {"name": "said", "type": "text", "tokens": TOKENS, "length": 4},
    {"name": "noted", "type": "text", "tokens": ["[PAD]", "[UNK]", "ok"], "length": 2},
]


def ids(text: str) -> list[int]:
    return WordPiece(TOKENS).ids(text)


def test_the_longest_token_first() -> None:
    assert ids("Booking a TAXI") == [2, 3, 5, 6]
    assert ids("taxis,a") == [6, 4, 7, 5]
    assert ids("books  \t a\n") == [2, 4, 5]


def test_a_word_without_a_split_is_unknown() -> None:
    assert ids("bookx taxi x") == [1, 6, 1]
    assert ids("a" * 101) == [1]
    assert WordPiece(["[PAD]", "[UNK]", "a", "##a"]).ids("a" * 100) == [2] + [3] * 99


def test_the_names_of_padding_and_unknown_are_no_words() -> None:
    assert WordPiece(["pad", "unk", "ok"]).ids("pad unk ok") == [1, 1, 2]


def test_basic_words() -> None:
    assert basic_words("Can't pay 5€!") == ["can", "'", "t", "pay", "5€", "!"]
    assert basic_words("ÀÉÎ\u200b\x00õ") == ["aeio"]
    assert basic_words("東京へ go") == ["東", "京", "へ", "go"]
    assert basic_words("ΟΔΟΣ") == ["οδοσ"]
    assert basic_words(" \u2003\n") == []


def test_one_matrix_of_numbers_codes_and_token_ids() -> None:
    rows = pd.DataFrame(
        {"said": ["Booking a taxi, a taxi", None], "noted": ["OK", ""], "hour": [7, None], "place": ["there", "x"]}
    )
    matrix = encode(rows, COLUMNS)
    assert matrix.dtype == np.float32 and width(COLUMNS) == 8
    np.testing.assert_array_equal(matrix, [[7, 2, 2, 3, 5, 6, 2, 0], [np.nan, 0, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, "", " \u00a0"])
def test_all_empty_texts(value: object) -> None:
    rows = pd.DataFrame({"hour": [1.0], "place": ["here"], "said": ["a"], "noted": pd.Series([value], dtype=object)})
    assert encode(rows, COLUMNS)[0].tolist() == [1, 1, 5, 0, 0, 0, 0, 0]


def test_other_values_are_read_as_text() -> None:
    columns = [{"name": "said", "type": "text", "tokens": ["[PAD]", "[UNK]", "12", "true"], "length": 1}]
    assert encode(pd.DataFrame({"said": [12]}), columns).tolist() == [[2]]
    assert encode(pd.DataFrame({"said": [True]}), columns).tolist() == [[3]]
    with pytest.raises(InputError, match=r"missing columns \['said'\]"):
        encode(pd.DataFrame({"text": ["a"]}), columns)


def test_no_rows() -> None:
    rows = pd.DataFrame({"hour": [], "place": [], "said": [], "noted": []})
    assert encode(rows, COLUMNS).shape == (0, 8)


def test_the_largest_ids_survive_as_float32() -> None:
    tokens = ["[PAD]", "[UNK]", *(f"t{i}" for i in range(100_000))]
    columns = [{"name": "said", "type": "text", "tokens": tokens, "length": 1}]
    assert encode(pd.DataFrame({"said": ["t99999"]}), columns)[0, 0] == 100_001


def test_the_cache_of_words_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.variant._MAX_CACHED_WORDS", 2)
    pieces = WordPiece(TOKENS)
    texts = ["book a taxi", "taxis, books", "x", "book a taxi"]
    assert [pieces.ids(text) for text in texts * 2] == [ids(text) for text in texts * 2]
    assert pieces.ids("a a a a", 2) == [5, 5]
    encoder = Encoder(COLUMNS[2:3])
    twice = pd.DataFrame({"said": ["a taxi"] * 2})
    np.testing.assert_array_equal(encoder(twice), encoder(twice.iloc[:1])[[0, 0]])


# --------------------------------------------------------------------------- the tokenizers library


def library(tokens: list[str]) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordPiece(
        {token: i for i, token in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def same(texts: list[str], tokens: list[str]) -> None:
    other, ours = library(tokens), WordPiece(tokens)
    assert [ours.ids(text) for text in texts] == [other.encode(text).ids for text in texts]


def test_like_the_library_on_hard_unicode() -> None:
    """Characters of Unicode 3.2 whose category has not changed since."""
    old_table = unicodedata.ucd_3_2_0
    characters = [chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000 and old_table.category(chr(c)) != "Cn"]
    characters = [c for c in characters if old_table.category(c) == unicodedata.category(c)]
    alone = [f"ab{character}Cd" for character in characters]
    chance = random.Random(0)
    mixed = ["".join(chance.choices(characters, k=9)) + chance.choice(" .\t'ß") for _ in range(1000)]
    pool = "aÀéİıßŞΣς ﬁ①x́̈\u200d東京か가각 \t\n\r\x0b\x0c\x85\u2028\u00a0.,!?'’“”-—_$€+<|~^`¿·"
    dense = ["".join(chance.choices(pool, k=chance.randrange(30))) for _ in range(2000)]
    tokens = grow_vocabulary([*dense, *mixed], 4000)
    same(dense + mixed + alone, tokens)


def test_like_the_library_on_real_sentences() -> None:
    path = next(
        (
            file
            for parent in Path(__file__).parents
            if (file := parent / "shared/data/clinc150/data_full.json").exists()
        ),
        None,
    )
    if path is None:
        pytest.skip("CLINC150 is not here")
    data = json.loads(path.read_text(encoding="utf-8"))
    texts = [text for part in data.values() for text, _ in part]
    same(texts, grow_vocabulary([text for text, _ in data["train"]], 3000))
