"""Texts unlike anything learned from: they go to the teacher, whatever the student's confidence.

A student is trained to tell its actions apart, not to know what it has never seen, so some foreign texts get a high
confidence. The guard looks at the words only: the share of a text's information (inverse document frequency) that lies
in words never learned from, and the share of its neighbouring pairs of words that were never seen. The pairs notice a
foreign question in known words. On CLINC150, of the sentences out of scope that a student is sure of, it finds 37 %
where it sends 1.4 % of the others that the student is sure of to the teacher (53 % and 1.5 % with half of the intents).
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from stillhouse.files import write_atomic

__all__ = ["NoveltyGuard"]

Array = np.ndarray[Any, Any]

_WORDS = re.compile(r"\w+")
_MAX_PAIRS = 500_000
_MAX_CHARACTERS = 10_000  # of a text that are looked at


class NoveltyGuard:
    """How new a text is, 0…1, and the limit above which it goes to the teacher. Immutable.

    It holds checksums of words and pairs of words, not the texts.

    >>> learned = ["please book a table for two", "book a table for tonight", "cancel the table for tonight"]
    >>> guard = NoveltyGuard.learn(learned)
    >>> guard.score("cancel a table for two") < 0.25 < 0.9 < guard.score("quantum chromodynamics lecture")
    True

    :param words: checksums of the words learned from, uint32 ``[W]``.
    :param weights: their inverse document frequency, float32 ``[W]``.
    :param pairs: checksums of the pairs of neighbouring words, uint32 ``[P]``.
    :param new_weight: the weight of a word that was never learned from.
    :param limit: the largest score of a text that is not too novel.
    """

    def __init__(self, words: Array, weights: Array, pairs: Array, new_weight: float, limit: float = 1.0) -> None:
        self._weights = dict(zip(words.tolist(), weights.tolist(), strict=True))
        self._pairs = frozenset(pairs.tolist())
        self._new_weight = new_weight
        self.limit = limit

    @classmethod
    def learn(cls, texts: Iterable[str]) -> Self:
        """The guard for a student that learned from these texts; its limit is to be calibrated."""
        frequencies, pairs, count = Counter[int](), Counter[int](), 0
        for text in texts:
            words, neighbours = _features(text)
            frequencies.update(set(words))
            pairs.update(set(neighbours))
            count += 1
        weights = [math.log((count + 1) / (frequency + 1)) for frequency in frequencies.values()]
        return cls(
            np.array(list(frequencies), dtype=np.uint32),
            np.array(weights, dtype=np.float32),
            np.array([pair for pair, _ in pairs.most_common(_MAX_PAIRS)], dtype=np.uint32),
            math.log(count + 1) if count else 1.0,
        )

    def calibrate(self, texts: Sequence[str], share: float = 0.02) -> Self:
        """The same guard with the smallest limit that at most this share of the texts exceeds.

        :param texts: held-out texts of usual traffic; without any the limit stays.
        :param share: of usual texts that may go to the teacher for being novel, 0…1.
        """
        if not texts:
            return self
        scores = np.sort([self.score(text) for text in texts])
        limit = float(scores[max(0, math.ceil((1 - share) * len(scores)) - 1)])
        return type(self)(*self._arrays(), self._new_weight, limit)

    def score(self, text: str) -> float:
        """How new a text is: 0 if all its words and pairs were learned from, 1 if none was; 0 without a word.

        The mean of the two shares above. Takes about 1 µs a word.
        """
        words, pairs = _features(text)
        if not words:
            return 0.0
        new = known = 0.0
        for word in words:
            weight = self._weights.get(word)
            if weight is None:
                new += self._new_weight
            else:
                known += weight
        new_pairs = sum(pair not in self._pairs for pair in pairs)
        return 0.5 * (new / (new + known) if new else 0.0) + 0.5 * new_pairs / len(pairs)

    def save(self, path: Path) -> None:
        """Write the guard to a file that :meth:`load` reads; equal guards give equal files."""
        words, weights, pairs = self._arrays()
        constants = np.array([self._new_weight, self.limit])
        buffer = io.BytesIO()
        for array in (np.diff(words, prepend=np.uint32(0)), weights, np.diff(pairs, prepend=np.uint32(0)), constants):
            np.save(buffer, array, allow_pickle=False)  # the differences of sorted numbers are small
        write_atomic(path, zlib.compress(buffer.getvalue(), 9))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a guard.

        :raises OSError: if there is no such file.
        :raises ValueError: if it is not a guard's.
        """
        try:
            buffer = io.BytesIO(zlib.decompress(path.read_bytes()))
            words, weights, pairs, constants = (np.load(buffer, allow_pickle=False) for _ in range(4))
            new_weight, limit = constants.tolist()
            return cls(np.cumsum(words, dtype=np.uint32), weights, np.cumsum(pairs, dtype=np.uint32), new_weight, limit)
        except (zlib.error, EOFError, TypeError) as error:
            raise ValueError(f"{path} is not the file of a novelty guard: {error}") from error

    def _arrays(self) -> tuple[Array, Array, Array]:
        words = sorted(self._weights)
        return (
            np.array(words, dtype=np.uint32),
            np.array([self._weights[word] for word in words], dtype=np.float32),
            np.array(sorted(self._pairs), dtype=np.uint32),
        )


def _features(text: str) -> tuple[list[int], list[int]]:
    """Checksums of the words and of the pairs of neighbouring words, with the beginning and the end of the text."""
    words = [word.encode() for word in _WORDS.findall(text[:_MAX_CHARACTERS].lower())]
    pairs = [zlib.crc32(first + b" " + second) for first, second in zip([b"", *words], [*words, b""], strict=True)]
    return [zlib.crc32(word) for word in words], pairs
