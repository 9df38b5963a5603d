"""Local models that learn from answers: ours and the peers that need no environment of their own.

Each is fitted from scratch at each refresh on the same kind of rows, on one thread. ``bytes`` counts all that its
decisions need. Linear weights of peers are counted at two bytes each and static vectors at one, as if they had been
compressed without a loss of quality.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.distillation_data import CACHE

__all__ = [
    "FrozenEncoder",
    "Lesson",
    "Model",
    "Probabilistic",
    "StaticTokens",
    "TfIdf",
    "encoder_bytes",
    "encoder_ms",
    "fit_head",
]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Lesson:
    """What a refresh may learn from.

    :ivar texts: sentences that the language model answered, ``[n]``.
    :ivar vectors: MiniLM's vectors of them, ``[n, 384]``.
    :ivar answers: its answers, ``[n]``, each an action.
    :ivar actions: K.
    :ivar other_texts: sentences that were answered locally, so that only their text is known, ``[m]``.
    :ivar other_vectors: MiniLM's vectors of them, ``[m, 384]``.
    """

    texts: Sequence[str]
    vectors: Array
    answers: Array
    actions: int
    other_texts: Sequence[str]
    other_vectors: Array
    seed: int

    @property
    def key(self) -> str:
        """A digest of everything."""
        digest = hashlib.sha256(
            json.dumps([list(self.texts), list(self.other_texts), self.actions, self.seed]).encode()
        )
        digest.update(np.asarray(self.answers, dtype=np.int64).tobytes())
        return digest.hexdigest()


class Model(Protocol):
    """A fitted model.

    :ivar bytes: of all that its decisions need.
    :ivar ms: CPU time of one decision from the text.
    """

    bytes: int
    ms: float

    def choose(self, texts: Sequence[str], vectors: Array) -> tuple[Array, Array]:
        """Its choices ``[n]`` (−1: none) and confidences ``[n]``; ``vectors`` are what MiniLM makes of the texts."""

    def close(self) -> None:
        """Give back what it holds."""


class Probabilistic:
    """A model whose choice is the most probable action, and whose confidence is that probability."""

    bytes: int

    def probabilities(self, texts: Sequence[str], vectors: Array) -> Array:
        """Probability of each action, ``[n, K]``."""
        raise NotImplementedError

    def decide(self, text: str) -> None:
        """Decide about one sentence from its text alone, as a server would: this is what is timed."""
        raise NotImplementedError

    def choose(self, texts: Sequence[str], vectors: Array) -> tuple[Array, Array]:
        probs = self.probabilities(texts, vectors)
        return probs.argmax(axis=1), probs.max(axis=1)

    @property
    def ms(self) -> float:
        return latency(self.decide)

    def close(self) -> None:
        return


def latency(decide: Callable[[str], object], rounds: int = 5) -> float:
    """CPU time of one decision (ms): the mean over some sentences, in the fastest of the rounds."""
    texts = [text for text in TIMED_TEXTS for _ in range(10)]
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        for text in texts:
            decide(text)
        times.append((time.thread_time() - start) / len(texts))
    return 1000 * min(times)


TIMED_TEXTS = (
    "What is the exchange rate for euros?",
    "I still have not received my new card, it should have been here last week",
    "how do i change my pin",
    "The ATM gave me the wrong amount of cash and I would like to have the rest of my money back, please",
    "please play the next song",
)
"""Sentences of usual length, for the measurement of latency."""


# --------------------------------------------------------------------------- TF-IDF


class TfIdf(Probabilistic):
    """TF-IDF of character n-grams within words (2 … 5) with logistic regression.

    Better on the development sentences than words, and than words with pairs of words, at the same size.
    """

    FEATURES = 9000
    STRENGTH = 30.0

    def __init__(self, lesson: Lesson) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectoriser = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=self.FEATURES
        )
        x = vectoriser.fit_transform(lesson.texts)
        self.regression = LogisticRegression(C=self.STRENGTH, max_iter=200, tol=1e-3).fit(x, lesson.answers)
        self.vectoriser, self.actions = vectoriser, lesson.actions
        self.weights = np.ascontiguousarray(self.regression.coef_.T.astype(np.float32))
        self.bytes = 2 * self.weights.size + 4 * x.shape[1] + sum(map(len, vectoriser.vocabulary_)) + x.shape[1]
        self.analyse = vectoriser.build_analyzer()

    def probabilities(self, texts: Sequence[str], vectors: Array) -> Array:
        probs = np.zeros((len(texts), self.actions))
        probs[:, self.regression.classes_] = self.regression.predict_proba(self.vectoriser.transform(texts))
        return probs

    def decide(self, text: str) -> None:
        counts: dict[int, int] = {}
        vocabulary = self.vectoriser.vocabulary_
        for gram in self.analyse(text):
            if (index := vocabulary.get(gram)) is not None:
                counts[index] = counts.get(index, 0) + 1
        index = np.fromiter(counts, dtype=np.int64, count=len(counts))
        values = (1 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))) * (
            self.vectoriser.idf_[index]
        )
        values /= max(1e-12, float(np.sqrt(values @ values)))
        softmax(values.astype(np.float32) @ self.weights[index] + self.regression.intercept_)


# --------------------------------------------------------------------------- static token embeddings


class StaticTokens(Probabilistic):
    """Static token embeddings with an MLP, after model2vec (Tulkens and van Dongen 2024).

    The vector of a token is MiniLM's for that token alone; a sentence is the mean of its tokens, rarer ones weighted
    more (smooth inverse frequency; Arora, Liang and Ma 2017). It has the tokens of the sentences learned from.
    """

    RARITY = 1e-2
    HIDDEN = 256

    def __init__(self, lesson: Lesson) -> None:
        from sklearn.neural_network import MLPClassifier

        pieces = token_vectors().pieces
        counts = np.bincount(
            np.concatenate([pieces.ids(text) for text in lesson.texts]), minlength=len(token_vectors().vectors)
        )
        share = counts / counts.sum()
        table = token_vectors().vectors
        self.table = ((table - share @ table) * (self.RARITY / (self.RARITY + share))[:, None]).astype(np.float32)
        self.table[counts == 0] = 0
        self.network = MLPClassifier((self.HIDDEN,), early_stopping=True, max_iter=60, random_state=lesson.seed)
        self.network.fit(self._encode(lesson.texts), lesson.answers)
        self.actions = lesson.actions
        weights = sum(layer.size for layer in self.network.coefs_)
        self.bytes = int((counts > 0).sum()) * (self.table.shape[1] + 6) + 2 * weights
        self.layers = [
            (weight.astype(np.float32), bias.astype(np.float32))
            for weight, bias in zip(self.network.coefs_, self.network.intercepts_, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> Array:
        pieces, x = token_vectors().pieces, np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        for number, text in enumerate(texts):
            if ids := pieces.ids(text):
                mean = self.table[ids].mean(axis=0)
                x[number] = mean / max(float(np.linalg.norm(mean)), 1e-9)
        return x * np.float32(np.sqrt(x.shape[1]))

    def probabilities(self, texts: Sequence[str], vectors: Array) -> Array:
        probs = np.zeros((len(texts), self.actions))
        probs[:, self.network.classes_] = self.network.predict_proba(self._encode(texts))
        return probs

    def decide(self, text: str) -> None:
        (first, first_bias), (second, second_bias) = self.layers
        hidden = np.maximum(self._encode([text])[0] @ first + first_bias, 0)
        softmax(hidden @ second + second_bias)


@dataclass(frozen=True)
class TokenVectors:
    """MiniLM's vector of each token of its vocabulary, float32 ``[V, 384]``; that of the first two is zero."""

    tokens: Sequence[str]
    pieces: Any
    vectors: Array


@functools.cache
def token_vectors() -> TokenVectors:
    """Made once, then cached on disk."""
    from examples.router import MiniLM
    from stillhouse.variant import WordPiece

    tokens = MiniLM().text_encoder().tokens
    ordered = ["[PAD]", "[UNK]", *(token for token in tokens if not token.startswith("["))]
    file = CACHE / "router" / f"tokens-{len(ordered)}.npy"
    if not file.exists():
        index = {token: number for number, token in enumerate(tokens)}
        vectors = _embed_tokens([index[token] for token in ordered[2:]])
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.vstack([np.zeros((2, vectors.shape[1]), np.float32), vectors]).astype(np.float16))
        partial.replace(file)
    return TokenVectors(ordered, WordPiece(ordered), np.load(file).astype(np.float32))


def _embed_tokens(ids: Sequence[int]) -> Array:
    import torch

    from benchmarks.distillation_data import _minilm

    network, begin, end, parts = _minilm()[0].auto_model.eval(), 101, 102, []
    with torch.no_grad():
        for start in range(0, len(ids), 512):
            batch = torch.tensor([[begin, token, end] for token in ids[start : start + 512]])
            mean = network(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state.mean(dim=1)
            parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(parts)


# --------------------------------------------------------------------------- frozen MiniLM


class FrozenEncoder(Probabilistic):
    """MiniLM, frozen, with logistic regression."""

    STRENGTH = 10.0

    def __init__(self, lesson: Lesson) -> None:
        self.regression, self.actions = fit_head(lesson.vectors, lesson.answers, self.STRENGTH), lesson.actions
        self.bytes = encoder_bytes() + 4 * self.regression.coef_.size

    def probabilities(self, texts: Sequence[str], vectors: Array) -> Array:
        probs = np.zeros((len(texts), self.actions))
        probs[:, self.regression.classes_] = self.regression.predict_proba(vectors)
        return probs

    def decide(self, text: str) -> None:
        self.regression.predict_proba(_embed_one(text))


def _embed_one(text: str) -> Array:
    from benchmarks.distillation_data import _minilm

    vectors: Array = _minilm().encode([text], normalize_embeddings=True, show_progress_bar=False)
    return vectors


@functools.cache
def encoder_ms() -> float:
    """CPU time of one sentence in MiniLM."""
    return latency(_embed_one, rounds=2)


def fit_head(vectors: Array, answers: Array, strength: float) -> Any:
    """Logistic regression on vectors of length 1."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(vectors, answers)


@functools.cache
def encoder_bytes() -> int:
    from examples.router import MiniLM

    return int(MiniLM().bytes_elsewhere)


def softmax(logits: Array) -> Array:
    """Of one row."""
    odds: Array = np.exp(logits - logits.max())
    return odds / odds.sum()
