"""Which tokens a text student knows: grown from its training rows, or cut from a teacher's vocabulary."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from stillhouse.variant import WordPiece, basic_words

__all__ = ["cut_vocabulary", "grow_vocabulary"]

SPECIAL = ("[PAD]", "[UNK]")  # places 0 and 1 of every vocabulary

_MOST_WORDS = 50_000  # rarer ones teach a vocabulary nothing
_FEWEST = 2  # occurrences of a pair, or it is not joined


def grow_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """At most ``size`` tokens, as WordPiece reads them: the characters seen, then what joining neighbours gives.

    Byte-pair encoding (Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword
    Units", §3.2) within BERT's basic words: the most frequent pair of neighbouring tokens becomes a token, again and
    again; of equals the first in alphabetical order. The same texts give the same vocabulary, whatever their order.
    """
    counts = _word_counts(texts)
    words = [[word[0], *(f"##{character}" for character in word[1:])] for word in counts]
    tokens = list(SPECIAL) + _characters(words, counts.values(), size - len(SPECIAL))
    known = set(tokens)
    pairs = _Pairs(words, list(counts.values()))
    while len(tokens) < size and (best := pairs.most_frequent()):
        joined = pairs.join(best)
        if joined not in known and set(best) <= known:
            tokens.append(joined)
            known.add(joined)
    return tokens


def cut_vocabulary(texts: Iterable[str], size: int, tokens: Sequence[str]) -> list[str]:
    """At most ``size`` of a teacher's ``tokens``: the texts' single characters, then what is frequent in the texts."""
    ordered = [*SPECIAL, *dict.fromkeys(token for token in tokens if token not in SPECIAL)]
    pieces, uses = WordPiece(ordered), Counter[str]()
    seen: set[str] = set()
    for word, count in _word_counts(texts).items():
        for place in pieces.ids(word):
            uses[ordered[place]] += count
        seen |= {word[0], *(f"##{character}" for character in word[1:])}
    for token in SPECIAL:
        uses.pop(token, None)
    known = set(ordered)
    single = sorted(seen & known, key=lambda token: (-uses[token], token))
    others = sorted(uses.keys() - set(single), key=lambda token: (-uses[token], token))
    return [*SPECIAL, *single, *others][:size]


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """Basic words and how often they come, the most frequent first and equals in alphabetical order."""
    parts = Counter(part for text in texts for part in text.split(" "))
    counts = Counter[str]()
    for part, count in parts.items():
        for word in basic_words(part):
            counts[word] += count
    ordered = sorted(counts.items(), key=lambda found: (-found[1], found[0]))
    return Counter(dict(ordered[:_MOST_WORDS]))


def _characters(words: Sequence[Sequence[str]], counts: Iterable[int], most: int) -> list[str]:
    """Single characters, at a word's begin and within, the most frequent ones in alphabetical order."""
    uses = Counter[str]()
    for word, count in zip(words, counts, strict=True):
        for token in word:
            uses[token] += count
    return sorted(sorted(uses, key=lambda token: (-uses[token], token))[:most])


class _Pairs:
    """Neighbouring tokens of all words, counted, and where they are; kept up to date while pairs are joined."""

    def __init__(self, words: list[list[str]], counts: list[int]) -> None:
        self.words, self.counts = words, counts
        self.found: Counter[tuple[str, str]] = Counter()
        self.where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for number in range(len(words)):
            self._count(number, 1)
        self.queue = [(-count, pair) for pair, count in self.found.items()]
        heapq.heapify(self.queue)

    def most_frequent(self) -> tuple[str, str] | None:
        """The pair that comes most often, if any comes twice."""
        while self.queue:
            count, pair = heapq.heappop(self.queue)
            if self.found[pair] == -count:
                return pair if -count >= _FEWEST else None
        return None  # what the queue says of a pair that has changed since is out of date

    def join(self, pair: tuple[str, str]) -> str:
        """Make the pair one token in every word."""
        joined = pair[0] + pair[1].removeprefix("##")
        changed: set[tuple[str, str]] = set()
        for number in list(self.where[pair]):
            changed |= self._count(number, -1)
            self.words[number] = _joined(self.words[number], pair, joined)
            changed |= self._count(number, 1)
        for each in changed:
            if self.found[each] > 0:
                heapq.heappush(self.queue, (-self.found[each], each))
        return joined

    def _count(self, number: int, sign: int) -> set[tuple[str, str]]:
        word = self.words[number]
        neighbours = list(pairwise(word))
        for pair in neighbours:
            self.found[pair] += sign * self.counts[number]
            if sign > 0:
                self.where[pair].add(number)
            else:
                self.where[pair].discard(number)
        return set(neighbours)


def _joined(word: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    result: list[str] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            result.append(joined)
            place += 2
        else:
            result.append(word[place])
            place += 1
    return result
