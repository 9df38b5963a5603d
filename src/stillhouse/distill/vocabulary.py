"""Makes the vocabulary of a text student: from its training texts, or from a teacher's vocabulary."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from stillhouse.variant import WordPiece, basic_words

__all__ = ["cut_vocabulary", "grow_vocabulary"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]")  # ids 0 and 1 of every vocabulary
MAX_WORDS = 50_000  # the most frequent ones; rarer words are ignored
MIN_PAIR_COUNT = 2


def grow_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """At most ``size`` tokens for WordPiece: the characters of the texts, then merged pairs.

    Byte-pair encoding (Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword
    Units", §3.2) within BERT's basic words: the most frequent pair of neighbouring tokens is merged into a token,
    repeatedly; ties go to the first in alphabetical order. The order of the texts does not matter.

    >>> grow_vocabulary(["hug", "hug", "hugs"], size=10)
    ['[PAD]', '[UNK]', '##g', '##s', '##u', 'h', '##ug', 'hug']
    """
    counts = _word_counts(texts)
    words = [[word[0], *(f"##{character}" for character in word[1:])] for word in counts]
    tokens = list(SPECIAL_TOKENS) + _characters(words, counts.values(), size - len(SPECIAL_TOKENS))
    known = set(tokens)
    pairs = _Pairs(words, list(counts.values()))
    while len(tokens) < size and (best := pairs.most_frequent()):
        merged = pairs.merge(best)
        if merged not in known and set(best) <= known:
            tokens.append(merged)
            known.add(merged)
    return tokens


def cut_vocabulary(texts: Iterable[str], size: int, tokens: Sequence[str], *, fill: bool = False) -> list[str]:
    """At most ``size`` of a teacher's ``tokens``: the single characters of the texts, then tokens by frequency.

    >>> cut_vocabulary(["a cat"], size=5, tokens=["a", "cat", "dog", "##s"], fill=True)
    ['[PAD]', '[UNK]', 'a', 'cat', 'dog']

    :param fill: whether words of the teacher that the texts lack follow, in the teacher's order: BERT's vocabulary has
        frequent words first.
    """
    ordered = [*SPECIAL_TOKENS, *dict.fromkeys(token for token in tokens if token not in SPECIAL_TOKENS)]
    pieces, uses = WordPiece(ordered), Counter[str]()
    seen: set[str] = set()
    for word, count in _word_counts(texts).items():
        for index in pieces.ids(word):
            uses[ordered[index]] += count
        seen |= {word[0], *(f"##{character}" for character in word[1:])}
    for token in SPECIAL_TOKENS:
        uses.pop(token, None)
    known = set(ordered)
    single = sorted(seen & known, key=lambda token: (-uses[token], token))
    others = sorted(uses.keys() - set(single), key=lambda token: (-uses[token], token))
    cut = [*SPECIAL_TOKENS, *single, *others]
    if fill:
        used = set(cut)
        cut += [token for token in ordered if len(token) > 1 and token.isalpha() and token not in used]
    return cut[:size]


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """Basic words and their counts, the most frequent first; ties in alphabetical order."""
    parts = Counter(part for text in texts for part in text.split(" "))
    counts = Counter[str]()
    for part, count in parts.items():
        for word in basic_words(part):
            counts[word] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Counter(dict(ordered[:MAX_WORDS]))


def _characters(words: Sequence[Sequence[str]], counts: Iterable[int], size: int) -> list[str]:
    """The ``size`` most frequent tokens of one character, at the start of a word or within; in alphabetical order."""
    uses = Counter[str]()
    for word, count in zip(words, counts, strict=True):
        for token in word:
            uses[token] += count
    return sorted(sorted(uses, key=lambda token: (-uses[token], token))[:size])


class _Pairs:
    """Counts of neighbouring tokens in all words, and where they occur; updated while pairs are merged."""

    def __init__(self, words: list[list[str]], counts: list[int]) -> None:
        self.words, self.counts = words, counts
        self.pair_counts: Counter[tuple[str, str]] = Counter()
        self.words_of_pair: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for index in range(len(words)):
            self._add(index, 1)
        self.queue = [(-count, pair) for pair, count in self.pair_counts.items()]
        heapq.heapify(self.queue)

    def most_frequent(self) -> tuple[str, str] | None:
        """The most frequent pair; None if no pair occurs twice."""
        while self.queue:
            count, pair = heapq.heappop(self.queue)
            if self.pair_counts[pair] == -count:  # else the entry is out of date
                return pair if -count >= MIN_PAIR_COUNT else None
        return None

    def merge(self, pair: tuple[str, str]) -> str:
        """Replace the pair by one token in every word; returns the token."""
        merged = pair[0] + pair[1].removeprefix("##")
        changed: set[tuple[str, str]] = set()
        for index in list(self.words_of_pair[pair]):
            changed |= self._add(index, -1)
            self.words[index] = _merge(self.words[index], pair, merged)
            changed |= self._add(index, 1)
        for neighbours in changed:
            if self.pair_counts[neighbours] > 0:
                heapq.heappush(self.queue, (-self.pair_counts[neighbours], neighbours))
        return merged

    def _add(self, index: int, sign: int) -> set[tuple[str, str]]:
        """Add (+1) or subtract (−1) the pairs of one word; returns them."""
        word = self.words[index]
        neighbours = list(pairwise(word))
        for pair in neighbours:
            self.pair_counts[pair] += sign * self.counts[index]
            if sign > 0:
                self.words_of_pair[pair].add(index)
            else:
                self.words_of_pair[pair].discard(index)
        return set(neighbours)


def _merge(word: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            result.append(merged)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result
