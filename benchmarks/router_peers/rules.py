"""Rules for when a local model may answer: our promise, and the threshold that most people choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stillhouse.agreement import NoveltyGuard, PromiseKeeper
from stillhouse.records.agreement import Promise

__all__ = ["AGREEMENT", "CONFIDENCE", "Obedience", "OurPromise", "PointThreshold", "Rule"]

Array = np.ndarray[Any, Any]

AGREEMENT, CONFIDENCE = 0.98, 0.95


class Rule(Protocol):
    """Decides row by row.

    :ivar reacted: whether it has answered fewer rows since the fit, because of what audits or other answers showed.
    """

    reacted: bool

    def fit(self, texts: Sequence[str], held_texts: Sequence[str], confidences: Array, agrees: Array) -> None:
        """Begin with a new model: the texts it learned from, and held-out blind rows, oldest first."""

    def novelties(self, texts: Sequence[str]) -> Array:
        """How new each text is, ``[n]``."""

    def may_answer(self, confidence: float, novelty: float) -> bool:
        """Whether the model answers this row."""

    @property
    def asks_all(self) -> bool:
        """Whether nothing is answered now, so that every row is blind."""

    def observe(self, confidence: float, agrees: bool, novelty: float, blind: bool) -> None:
        """Learn from one row that the teacher answered."""


class OurPromise:
    """The promise of stillhouse: thresholds by fixed-sequence testing, a monitor of the audits, and a novelty guard."""

    def __init__(self, agreement: float = AGREEMENT) -> None:
        self.promise = Promise(agreement=agreement, confidence=CONFIDENCE)
        self.keeper = PromiseKeeper(self.promise)
        self.guard = NoveltyGuard.learn([])
        self.reacted = False

    def fit(self, texts: Sequence[str], held_texts: Sequence[str], confidences: Array, agrees: Array) -> None:
        self.guard = NoveltyGuard.learn(texts).calibrate(list(held_texts))
        self.keeper = PromiseKeeper(self.promise, novelty_limit=self.guard.limit)
        self.keeper.fit(np.clip(confidences, 0, 1), agrees, self.novelties(held_texts))
        self.reacted = False

    def novelties(self, texts: Sequence[str]) -> Array:
        return np.array([self.guard.score(text) for text in texts])

    def may_answer(self, confidence: float, novelty: float) -> bool:
        return self.keeper.may_answer(confidence, novelty)

    @property
    def asks_all(self) -> bool:
        return self.keeper.asks_all

    def observe(self, confidence: float, agrees: bool, novelty: float, blind: bool) -> None:
        before = None if agrees else self.keeper.state.epoch  # every alarm is raised by a disagreement
        self.keeper.observe(min(1.0, max(0.0, confidence)), agrees, novelty=novelty, blind=blind)
        if before is not None and self.keeper.state.epoch != before:
            self.reacted = True


class PointThreshold:
    """The smallest confidence above which the held-out rows agree as promised: no bound, no monitor, no guard."""

    def __init__(self, agreement: float = AGREEMENT) -> None:
        self.agreement, self.threshold, self.reacted = agreement, np.inf, False

    def fit(self, texts: Sequence[str], held_texts: Sequence[str], confidences: Array, agrees: Array) -> None:
        order = np.argsort(-confidences, kind="stable")
        share = np.cumsum(agrees[order]) / np.arange(1, len(order) + 1)
        kept = np.flatnonzero(share >= self.agreement)
        self.threshold = float(confidences[order][kept[-1]]) if len(kept) else np.inf

    def novelties(self, texts: Sequence[str]) -> Array:
        return np.zeros(len(texts))

    def may_answer(self, confidence: float, novelty: float) -> bool:
        return confidence >= self.threshold

    @property
    def asks_all(self) -> bool:
        return self.threshold == np.inf

    def observe(self, confidence: float, agrees: bool, novelty: float, blind: bool) -> None:
        return


class Obedience(PointThreshold):
    """A model that decides itself whether it answers: its confidence is 1 if it does, else 0."""

    def fit(self, texts: Sequence[str], held_texts: Sequence[str], confidences: Array, agrees: Array) -> None:
        self.threshold = 1.0

    @property
    def asks_all(self) -> bool:
        return False
