"""Vocabularies: by byte-pair encoding, checked by hand, or cut from a teacher's."""

from __future__ import annotations

import random

from stillhouse.distill.vocabulary import cut_vocabulary, grow_vocabulary
from stillhouse.variant import WordPiece

SPECIAL = ["[PAD]", "[UNK]"]


def test_vocabulary_by_hand() -> None:
    """hug ×10, pug ×5, pun ×12, bun ×4, hugs ×5: joins ug (20), un (16), hug (15), pun (12) …"""
    texts = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5
    characters = ["##g", "##n", "##s", "##u", "b", "h", "p"]
    assert grow_vocabulary(texts, 9) == SPECIAL + characters
    assert grow_vocabulary(texts, 12) == SPECIAL + characters + ["##ug", "##un", "hug"]
    assert grow_vocabulary(texts, 100)[12:] == ["pun", "hugs", "pug", "bun"]


def test_pair_that_occurs_once_is_not_merged() -> None:
    assert grow_vocabulary(["ab cd cd"], 100) == [*SPECIAL, "##b", "##d", "a", "c", "cd"]


def test_overlapping_pairs() -> None:
    assert grow_vocabulary(["aaaaa", "aaaaa"], 100) == [*SPECIAL, "##a", "a", "##aa", "##aaaa", "aaaaa"]


def test_order_of_texts_does_not_matter() -> None:
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcde ", k=20)) for _ in range(300)]
    grown = grow_vocabulary(texts, 200)
    chance.shuffle(texts)
    assert grow_vocabulary(texts, 200) == grown
    assert len(grown) == len(set(grown)) == 200
    assert all(1 not in WordPiece(grown).ids(text) for text in texts)


def test_small_vocabulary_has_the_most_frequent_characters() -> None:
    assert grow_vocabulary(["a a a b b c"], 4) == [*SPECIAL, "a", "b"]
    assert grow_vocabulary([], 10) == SPECIAL
    assert grow_vocabulary(["", "  "], 10) == SPECIAL


def test_vocabulary_cut_from_a_teachers() -> None:
    tokens = ["[PAD]", "[unused0]", "[CLS]", "[UNK]", "book", "##ing", "b", "##o", "taxi", "t", "zebra", "a"]
    texts = ["booking a taxi", "book a taxi", "taxi"]
    assert cut_vocabulary(texts, 100, tokens) == [*SPECIAL, "a", "##o", "b", "t", "taxi", "book", "##ing"]
    assert cut_vocabulary(texts, 7, tokens) == [*SPECIAL, "a", "##o", "b", "t", "taxi"]
